"""What a client is told when something is wrong.

Codes and texts are API: Go, Node and Patroni compare the text, Python clients the code. So each stands
here once, as a `Fault`, exactly as etcd 3.5 words it; a few of our own follow at the end.

An `ApiError` also says what etcd leaves open: whether the write was applied, and whether the same call
may succeed later. "unknown" is never turned into "no" (trap 46). The door sends both in trailers.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, Literal, NamedTuple, TypeAlias

from raft import (
    AcksMissing,
    ChangeRefusal,
    ChangeRefused,
    LeaderAckRefused,
    NoQuorum,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    ProposalTooLarge,
    RaftError,
    Stopping,
    TransferFailed,
)

Applied: TypeAlias = Literal["yes", "no", "unknown"]

Trailers: TypeAlias = tuple[tuple[str, str], ...]
"""What goes to the client beside an answer, or beside an error."""


class Code(IntEnum):
    """gRPC status codes, by number: handlers know no transport."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ApiError(Exception):
    """Ends a request. `code` and `message` go to the client as they are."""

    def __init__(
        self,
        code: Code,
        message: str,
        *,
        applied: Applied = "no",
        retryable: bool = False,
        trailers: Trailers = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.applied: Applied = applied
        self.retryable = retryable
        self.trailers = trailers
        """Beside what every error says of `applied` and `retryable`."""


class Fault(NamedTuple):
    """A row of the error table. `error()` makes what is raised: an exception carries a traceback, so
    one object is never raised twice."""

    code: Code
    message: str
    retryable: bool = False

    def error(self, *, applied: Applied = "no") -> ApiError:
        return ApiError(self.code, self.message, applied=applied, retryable=self.retryable)


def _invalid(text: str) -> Fault:
    return Fault(Code.INVALID_ARGUMENT, f"etcdserver: {text}")


def _precondition(text: str, *, retryable: bool = False) -> Fault:
    return Fault(Code.FAILED_PRECONDITION, f"etcdserver: {text}", retryable)


def _unavailable(text: str) -> Fault:
    return Fault(Code.UNAVAILABLE, f"etcdserver: {text}", retryable=True)


# InvalidArgument
KEY_NOT_PROVIDED = _invalid("key is not provided")
KEY_NOT_FOUND = _invalid("key not found")
VALUE_PROVIDED = _invalid("value is provided")
LEASE_PROVIDED = _invalid("lease is provided")
TOO_MANY_OPS = _invalid("too many operations in txn request")
DUPLICATE_KEY = _invalid("duplicate key given in txn request")
INVALID_CLIENT_API_VERSION = _invalid("invalid client api version")
INVALID_SORT_OPTION = _invalid("invalid sort option")
MEMBER_BAD_URLS = _invalid("given member URLs are invalid")
REQUEST_TOO_LARGE = _invalid("request is too large")
USER_EMPTY = _invalid("user name is empty")
ROLE_EMPTY = _invalid("role name is empty")
AUTH_FAILED = _invalid("authentication failed, invalid user ID or password")
PERMISSION_NOT_GIVEN = _invalid("permission not given")
INVALID_AUTH_MANAGEMENT = _invalid("invalid auth management")
AUTH_OLD_REVISION = _invalid("revision of auth store is old")
WRONG_DOWNGRADE_FORMAT = _invalid("wrong downgrade target version format")
INVALID_DOWNGRADE_TARGET = _invalid("invalid downgrade target version")

# NotFound
LEASE_NOT_FOUND = Fault(Code.NOT_FOUND, "etcdserver: requested lease not found")
MEMBER_NOT_FOUND = Fault(Code.NOT_FOUND, "etcdserver: member not found")

# PermissionDenied, Unauthenticated
PERMISSION_DENIED = Fault(Code.PERMISSION_DENIED, "etcdserver: permission denied")
INVALID_AUTH_TOKEN = Fault(Code.UNAUTHENTICATED, "etcdserver: invalid auth token")

# ResourceExhausted
NO_SPACE = Fault(Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
TOO_MANY_REQUESTS = Fault(Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests", retryable=True)

# FailedPrecondition
LEASE_EXISTS = _precondition("lease already exists")
MEMBER_EXISTS = _precondition("member ID already exist")
PEER_URLS_EXIST = _precondition("Peer URLs already exists")
NOT_ENOUGH_STARTED = _precondition("re-configuration failed due to not enough started members")
MEMBER_NOT_LEARNER = _precondition("can only promote a learner member")
LEARNER_NOT_READY = _precondition(
    "can only promote a learner member which is in sync with leader", retryable=True
)
TOO_MANY_LEARNERS = _precondition("too many learner members in cluster")
CLUSTER_ID_MISMATCH = _precondition("cluster ID mismatch")
ROOT_USER_MISSING = _precondition("root user does not exist")
ROOT_ROLE_MISSING = _precondition("root user does not have root role")
USER_EXISTS = _precondition("user name already exists")
USER_NOT_FOUND = _precondition("user name not found")
ROLE_EXISTS = _precondition("role name already exists")
ROLE_NOT_FOUND = _precondition("role name not found")
ROLE_NOT_GRANTED = _precondition("role is not granted to the user")
PERMISSION_NOT_GRANTED = _precondition("permission is not granted to the role")
AUTH_NOT_ENABLED = _precondition("authentication is not enabled")
NOT_THE_LEADER = _precondition("not leader")
DOWNGRADE_IN_PROGRESS = _precondition("cluster has a downgrade job in progress")
NO_DOWNGRADE = _precondition("no inflight downgrade job")
BAD_TRANSFEREE = _precondition("bad leader transferee")

# OutOfRange
COMPACTED = Fault(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
FUTURE_REVISION = Fault(Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
LEASE_TTL_TOO_LARGE = Fault(Code.OUT_OF_RANGE, "etcdserver: too large lease TTL")

# Unavailable. The three in the middle are FailedPrecondition since etcd 3.6; we behave as 3.5.
NO_LEADER = _unavailable("no leader")
LEADER_CHANGED = _unavailable("leader changed")
SERVER_STOPPED = _unavailable("server stopped")
TIMEOUT = _unavailable("request timed out")
TIMEOUT_LEADER_FAILURE = _unavailable("request timed out, possibly due to previous leader failure")
TIMEOUT_CONNECTION_LOST = _unavailable("request timed out, possibly due to connection lost")
TIMEOUT_APPLIED_INDEX = _unavailable("request timed out, waiting for the applied index took too long")
NOT_CAPABLE = _unavailable("not capable")
LEARNER_UNSUPPORTED = _unavailable("rpc not supported for learner")
CLUSTER_VERSION_UNKNOWN = _unavailable("cluster version not found during downgrade")
UNHEALTHY = _unavailable("unhealthy cluster")

# DataLoss, Unknown
CORRUPT = Fault(Code.DATA_LOSS, "etcdserver: corrupt cluster")
LEADER_TRANSFER_TIMEOUT = Fault(
    Code.UNKNOWN, "etcdserver: request timed out, leader transfer took too long", retryable=True
)

# Our own: etcd has no text for these.
INVALID_COMPARE_OPTION = _invalid("invalid compare option")
"""A comparison or target that this version does not know. etcd takes the first for true."""
RESPONSE_TOO_LARGE = Fault(
    Code.RESOURCE_EXHAUSTED, "etcdserver: response is too large, use limit or a smaller range"
)
TOO_MANY_MEMBERS = _precondition("too many members in cluster")
ALARM_UNSUPPORTED = Fault(
    Code.UNIMPLEMENTED, "etcdserver: alarms can be listed here, but not activated or deactivated"
)
STATE_LOST = _unavailable("this member has lost its state, and waits for that of another")
STATE_REPLACED = _unavailable("the state was replaced while it was read")
ACKS_MISSING = _unavailable(
    "too few members acknowledge, and the ack policy lets in nothing new until they do"
)
ACKS_IMPOSSIBLE = _precondition("the ack policy asks for more members, or other labels, than there are")
ACKS_CHANGED = _unavailable("somebody else has changed the ack policy at the same time")
LEADER_ACK_DENIED = _precondition("x-ack: leader is not allowed here; see serve --unsafe-allow-leader-ack")
INVALID_COMMAND = _invalid("the log holds a command that this version does not understand")
INTERNAL = Fault(Code.INTERNAL, "etcdserver: internal error, see the log of this member")
UNPARSABLE = Fault(Code.INTERNAL, "grpc: error unmarshalling request")
"""Whose fault it is says the text; the code is what every gRPC server answers here."""

# Lines of a member's status. It answers all the same.
LOG_STALLED: Final = "log stalled: the disk of this member hangs"
RECOVERING: Final = "recovering: this member lost durable data, and has no vote until it has it back"


REFUSED_CHANGES: Final[dict[ChangeRefusal, Fault]] = {
    ChangeRefusal.UNKNOWN_MEMBER: MEMBER_NOT_FOUND,
    ChangeRefusal.ALREADY_MEMBER: MEMBER_EXISTS,
    ChangeRefusal.ID_USED: MEMBER_EXISTS,
    ChangeRefusal.NO_VOTERS: NOT_ENOUGH_STARTED,
    ChangeRefusal.TOO_MANY_LEARNERS: TOO_MANY_LEARNERS,
    ChangeRefusal.TOO_MANY_MEMBERS: TOO_MANY_MEMBERS,
    ChangeRefusal.LEARNER_BEHIND: LEARNER_NOT_READY,
    ChangeRefusal.QUORUM_AT_RISK: UNHEALTHY,
    ChangeRefusal.MALFORMED: MEMBER_BAD_URLS,
    ChangeRefusal.ACKS_IMPOSSIBLE: ACKS_IMPOSSIBLE,
    ChangeRefusal.ACKS_CHANGED: ACKS_CHANGED,
}
"""What a change of the membership is refused with. The rest passes with time: "request timed out"."""


def from_raft(error: RaftError, *, leader_known: bool) -> ApiError:
    """Return what a client is told for `error` of the log.

    `leader_known`: whether this member knows a leader now. Without one "no leader" is more help than
    "request timed out"; but where the outcome is unknown only the latter is true.
    """
    if isinstance(error, OutcomeUnknown):
        return TIMEOUT.error(applied=error.applied)
    if isinstance(error, ProposalTooLarge):
        return REQUEST_TOO_LARGE.error(applied=error.applied)
    if isinstance(error, Overloaded):
        return TOO_MANY_REQUESTS.error(applied=error.applied)
    if isinstance(error, AcksMissing):
        return ACKS_MISSING.error(applied=error.applied)
    if isinstance(error, LeaderAckRefused):
        return ApiError(Code.UNAVAILABLE, f"etcdserver: {error}", retryable=True)
    if isinstance(error, Stopping):
        return SERVER_STOPPED.error(applied=error.applied)
    if isinstance(error, ChangeRefused):
        return REFUSED_CHANGES.get(error.refusal, TIMEOUT).error()
    if isinstance(error, TransferFailed):
        return LEADER_TRANSFER_TIMEOUT.error()
    if isinstance(error, NotLeader | NoQuorum):
        return (TIMEOUT if leader_known else NO_LEADER).error(applied=error.applied)
    if error.retryable:
        return TIMEOUT.error(applied=error.applied)
    # A storage error, and what is not known yet: this member is ending, another may serve.
    return SERVER_STOPPED.error(applied=error.applied)


class StateError(Exception):
    """The state on this member's disk cannot be used. Never shown to clients: the member ends."""


class StateCorrupt(StateError):
    """LevelDB's files under `path` cannot be trusted.

    Nothing acknowledged is lost: this is applied state only. Remove it (`Store.wipe`) and it is built
    again from the log. Never `repair_db`: it reads with checksums off, and was seen to bring a
    flipped value back as good.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"the state in {path} is corrupt: {reason}. The next start builds it anew from the log"
        )
        self.path = path
        self.reason = reason


class StateFailed(StateError):
    """A read or a write of the files under `path` failed, or they cannot be opened."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"the state in {path} cannot be used: {reason}")


def reason_of(error: Exception) -> str:
    """Return what LevelDB or the system has said."""
    if error.args and isinstance(error.args[0], bytes):
        return error.args[0].decode(errors="replace")  # as LevelDB's errors come
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror} ({error.filename})"
    return str(error)


def state_failed(path: str, error: Exception) -> StateFailed:
    """Return what to raise where the files under `path` met `error`, of LevelDB or of the system."""
    return StateFailed(
        path,
        f"{reason_of(error)}. Nothing acknowledged is lost: the log has it. What to do: see that the disk is "
        f"well, has room, and can be written by this user, then start this member again",
    )


class StateFormatUnknown(StateError):
    """The state was written by a version with another format. Nothing was changed."""

    def __init__(self, path: str, found: int, known: int) -> None:
        super().__init__(
            f"the state in {path} has format {found}, and this version knows format {known}: "
            f"start the version that wrote it"
        )

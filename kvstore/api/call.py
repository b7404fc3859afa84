"""What is common to all methods: what a handler is given, and what it stands on."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from google.protobuf.message import DecodeError, Message

from kvstore.api.ack_metadata import (
    LEADER_ACKED,
    check_leader_ack,
    check_possible,
    leader_trailers,
    policy_unmet,
    revision_of,
    trailers_of,
    wish_of,
)
from kvstore.commands import CommandKind, encode_command
from kvstore.errors import (
    INTERNAL,
    LEARNER_UNSUPPORTED,
    NO_LEADER,
    REQUEST_TOO_LARGE,
    SERVER_STOPPED,
    TIMEOUT,
    UNPARSABLE,
    ApiError,
    StateError,
    Trailers,
    from_raft,
)
from kvstore.pb.rpc_pb2 import ResponseHeader
from kvstore.replica import Replica
from kvstore.store import Store
from raft import PolicyUnmet, RaftError

logger = logging.getLogger(__name__)

MIB = 1024 * 1024

T = TypeVar("T")

Reply: TypeAlias = Message | bytes
"""bytes: serialized already, where doing it at once would take too long."""

DEADLINE_SHARE = 0.9
"""How much of a client's own deadline a wait may use: the answer must come before it, so that the client
reads "request timed out" from us, and whether a write may have been applied, and not merely its own
DeadlineExceeded."""

DEADLINE_MARGIN_S = 0.15
"""At least so much is left of it, if half of it allows: the log looks at deadlines once a tick, so a wait
may last two ticks longer than it was to."""


class Call(Protocol):
    """One request as a door received it."""

    @property
    def request_bytes(self) -> bytes:
        """The serialized request, as it came: it goes into the log like that."""
        ...

    def time_left_s(self) -> float | None:
        """Seconds until the client gives up; None if it waits for ever."""
        ...

    def metadata(self, key: str) -> str | None: ...

    def metadata_under(self, prefix: str) -> Sequence[tuple[str, str | bytes]]:
        """Return the pairs whose key begins with `prefix`, in the order they came, repeated ones too."""
        ...

    def set_trailers(self, trailers: Trailers) -> None:
        """Send these with the answer, if it is a good one: an ApiError has its own. Called once at most."""
        ...


@dataclass(frozen=True, slots=True)
class ApiSettings:
    max_request_bytes: int = MIB * 3 // 2
    """A request that goes into the log (etcd: 1.5 MiB)."""
    max_txn_ops: int = 128
    """Comparisons or operations in a branch of a txn, children included (etcd: 128)."""
    election_timeout_s: float = 1.0
    allows_leader_ack: bool = False
    """Let requests be acknowledged by the leader alone. Such writes may be lost."""
    strict_reconfig_check: bool = True
    """Refuse a change of the membership after which those that are there would be no majority."""

    @property
    def request_timeout_s(self) -> float:
        """How long a request may wait for the log: etcd's rule, long enough for an election."""
        return 5.0 + 2 * self.election_timeout_s


class Method(NamedTuple):
    """A unary method: its gRPC path, its request's type, what answers it."""

    path: str
    request_type: type[Message]
    handler: Callable[[Any, Call], Awaitable[Reply]]


class StreamMethod(NamedTuple):
    """A method that answers with a stream: its path, its request's type, what yields the replies."""

    path: str
    request_type: type[Message]
    handler: Callable[[Any, Call], AsyncGenerator[Reply, None]]


class ApiContext:
    """What handlers stand on: a replica, its store, and the settings."""

    def __init__(self, store: Store, replica: Replica, settings: ApiSettings | None = None) -> None:
        self.store = store
        self.replica = replica
        self.settings = settings or ApiSettings()

    def fill_header(self, header: ResponseHeader, revision: int = 0) -> None:
        """Complete the header of a top-level answer. `revision` 0 leaves it as it is.

        The term must be this member's true one: Patroni refuses a member whose term goes back.
        """
        replica = self.replica
        header.cluster_id = replica.cluster_id
        header.member_id = replica.node_id
        header.raft_term = replica.term
        if revision:
            header.revision = revision

    def admit(self, call: Call, *, for_learners: bool = False) -> None:
        """Refuse at once what this member cannot serve: a learner nearly everything; and any member
        everything while no leader is known, if the client asks for that (`hasleader`)."""
        if not for_learners and self.replica.is_learner:
            raise LEARNER_UNSUPPORTED.error()
        if call.metadata("hasleader") == "true" and not self.replica.leader:
            raise NO_LEADER.error()

    async def propose(self, kind: CommandKind, call: Call, request: Message | None = None) -> Any:
        """Have the request applied and return the store's result. Raises ApiError.

        Under an ack policy, or with one of its own, the answer has trailers that say how it was met. With
        `request` given it may also be acknowledged by the leader alone, if it is plain: then
        LEADER_ACKED is returned, and there is no result.
        """
        data = call.request_bytes
        if len(data) > self.settings.max_request_bytes:
            raise REQUEST_TOO_LARGE.error()
        wish, replica = wish_of(call), self.replica
        command = encode_command(kind, data)
        try:
            if wish is not None and wish.is_leader:
                check_leader_ack(request, is_allowed=self.settings.allows_leader_ack)
                acked = await replica.propose_leader_acked(command, timeout_s=self.timeout_s(call))
                call.set_trailers(leader_trailers(acked))
                return LEADER_ACKED
            if wish is not None:
                check_possible(wish.request, replica.acks)
            done = await replica.propose_acked(
                command, timeout_s=self.timeout_s(call), ack=wish.request if wish is not None else None
            )
        except PolicyUnmet as error:
            raise policy_unmet(error, revision_of(error.result)) from error
        except RaftError as error:
            raise from_raft(error, leader_known=bool(replica.leader)) from error
        if wish is not None or done.state is not None:
            # By what the write met when it was applied: a policy may have come to be known since it came in.
            call.set_trailers(trailers_of(done))
        return done.result

    async def read_barrier(self, call: Call) -> None:
        """Wait until what is read here next is linearizable. Raises ApiError."""
        try:
            await self.replica.read_barrier(timeout_s=self.timeout_s(call))
        except RaftError as error:
            raise from_raft(error, leader_known=bool(self.replica.leader)) from error

    async def wait_applied(self, work: Awaitable[T], call: Call) -> T:
        """Wait for what follows from a write that is applied already; return it. Raises ApiError."""
        left = call.time_left_s()
        try:
            async with asyncio.timeout(None if left is None else max(left, 0) * DEADLINE_SHARE):
                return await work
        except TimeoutError:
            raise ApiError(TIMEOUT.code, TIMEOUT.message, applied="yes") from None

    def timeout_s(self, call: Call) -> float:
        """Return how long this request may wait for the log. Raises ApiError if no time is left."""
        longest = self.settings.request_timeout_s
        left = call.time_left_s()
        if left is None:
            return longest
        if left <= 0:
            raise TIMEOUT.error()
        return min(longest, left * DEADLINE_SHARE, max(left - DEADLINE_MARGIN_S, left / 2))


async def answer(method: Method, call: Call) -> bytes:
    """Parse, handle, serialize. Raises ApiError, and besides CancelledError nothing else.

    Every door goes through here, so that whatever happens in a handler has one meaning.
    """
    request = _parse(method, call)
    try:
        reply = await method.handler(request, call)
        return reply if isinstance(reply, bytes) else reply.SerializeToString()
    except ApiError:
        raise
    except Exception as error:
        raise _as_api_error(method, error) from error


async def answer_stream(method: StreamMethod, call: Call) -> AsyncGenerator[bytes, None]:
    """The same for a stream. The next reply is made when it is asked for. To be closed by who asks."""
    request = _parse(method, call)
    try:
        async with aclosing(method.handler(request, call)) as replies:
            async for reply in replies:
                yield reply if isinstance(reply, bytes) else reply.SerializeToString()
    except ApiError:
        raise
    except Exception as error:
        raise _as_api_error(method, error) from error


def _parse(method: Method | StreamMethod, call: Call) -> Message:
    try:
        return method.request_type.FromString(call.request_bytes)
    except DecodeError:
        raise UNPARSABLE.error() from None


def _as_api_error(method: Method | StreamMethod, error: Exception) -> ApiError:
    """Return what a client is told of an error that no handler was meant to let through."""
    if isinstance(error, RaftError):
        return from_raft(error, leader_known=False)  # no status: not started yet, or ending
    if isinstance(error, StateError):
        # Logged where it happened. This member is ending; another can serve.
        return SERVER_STOPPED.error(applied="unknown")
    # Type and frames, not the text: an exception's text may quote a key.
    frames = "".join(traceback.format_tb(error.__traceback__))
    logger.error("%s: unexpected %s\n%s", method.path, type(error).__name__, frames)
    return INTERNAL.error(applied="unknown")

"""What can go wrong with a request, by consequence.

Each error says whether repeating the request may help (`retryable`) and whether the write took
effect (`applied`). The hard rule: "unknown" is never turned into "no". A caller who repeats a
write of unknown outcome may apply it twice, and a client library that does it for him loses
linearizability without anybody noticing (Jepsen found this in jetcd, 2024).

    class              applied   what to do
    RequestRefused     no        change the request: repeating it will fail again
    Unavailable        no        try again later, or at another endpoint
    OutcomeUnknown     unknown   read back what is there, then decide
    AppliedWithFault   yes       do not repeat: the write is there, read the message
    PolicyUnmet        yes       likewise: it has fewer acknowledgements than it should have
"""

from __future__ import annotations

from typing import ClassVar, Literal

from kvstore.client.results import AckReport

Applied = Literal["yes", "no", "unknown"]

APPLIED_TRAILER = "quorumlog-applied"
"""Trailing metadata in which a quorumlog server says whether a failed write took effect. Its
values are those of `Applied`. etcd sends nothing of the kind."""


class ClientError(Exception):
    """Root of what a request may raise."""

    retryable: ClassVar[bool] = False
    """True if the same request may succeed later or at another endpoint, and repeating is safe."""
    applied: ClassVar[Applied] = "no"
    """Whether the write took effect. Always "no" for a read."""

    def __init__(self, message: str, *, code: str, endpoint: str = "") -> None:
        super().__init__(message)
        self.message = message
        """The server's text, unchanged (clients match on it), or ours if no server answered."""
        self.code = code
        """The gRPC status by name, e.g. "INVALID_ARGUMENT"."""
        self.endpoint = endpoint
        """Who said so; empty if no endpoint was reached."""


class RequestRefused(ClientError):
    """The server understood the request and refused it. The caller's fault, or a permission."""


class Unavailable(ClientError):
    """Nobody could serve the request now: no connection, no leader, no quorum, overload."""

    retryable = True


class OutcomeUnknown(ClientError):
    """The write was sent and no answer tells what became of it. It may even be applied later."""

    applied = "unknown"


class AppliedWithFault(ClientError):
    """The write is committed, but the server reports a fault beside it."""

    applied = "yes"


class PolicyUnmet(AppliedWithFault):
    """The write is committed, and has fewer acknowledgements than the ack policy, or its caller, wants; or
    nobody knows how many, for the leader changed, or the asked member stopped, meanwhile."""

    def __init__(self, message: str, *, code: str, endpoint: str = "", ack: AckReport) -> None:
        super().__init__(message, code=code, endpoint=endpoint)
        self.ack = ack


_REFUSALS = frozenset(
    {
        "INVALID_ARGUMENT",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "FAILED_PRECONDITION",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "UNAUTHENTICATED",
    }
)
"""Codes that only a server gives, and only for a request that it did not carry out."""

_REFUSED_BEFORE_PROPOSAL = frozenset(
    {
        "etcdserver: no leader",
        "etcdserver: too many requests",
        "etcdserver: not capable",
        "etcdserver: rpc not supported for learner",
        "etcdserver: unhealthy cluster",
    }
)
"""etcd's answers under retryable codes that are given before anything is proposed. "server
stopped" and "leader changed" are not among them: they also end requests already in the log."""

_MESSAGE_TOO_LARGE = "received message larger than max"
"""In the text of every gRPC server that refuses to read a request for its size."""


def classify(
    code: str,
    message: str,
    *,
    endpoint: str,
    is_write: bool,
    applied_trailer: str | None = None,
    ack: AckReport | None = None,
) -> ClientError:
    """Return the error that a finished call with status `code` means.

    `applied_trailer` is the value of APPLIED_TRAILER, if the server sent one: it is believed
    before anything else, since only the server can know. `ack`: what its trailers say of acknowledgements.
    """
    if is_write and applied_trailer == "yes" and ack is not None:
        return PolicyUnmet(message, code=code, endpoint=endpoint, ack=ack)
    kind: type[ClientError]
    if _MESSAGE_TOO_LARGE in message.lower():
        kind = RequestRefused
    elif not is_write:
        kind = _classify_read(code, message)
    elif applied_trailer == "yes":
        kind = AppliedWithFault
    elif applied_trailer == "no":
        kind = Unavailable if _is_passing(code, message) else RequestRefused
    elif applied_trailer is None:
        kind = _classify_write(code, message)
    else:
        kind = OutcomeUnknown
    return kind(message, code=code, endpoint=endpoint)


def _classify_read(code: str, message: str) -> type[ClientError]:
    if code in _REFUSALS:
        return RequestRefused
    if code == "DATA_LOSS" or (code == "RESOURCE_EXHAUSTED" and not _is_passing(code, message)):
        return RequestRefused
    return Unavailable


def _classify_write(code: str, message: str) -> type[ClientError]:
    """Judge a write by etcd's codes and texts alone. Whatever is not certain is unknown.

    RESOURCE_EXHAUSTED "database space exceeded" is among the uncertain: etcd also gives it when
    the quota trips while the put is being applied, and then the put stays.
    """
    if code in _REFUSALS:
        return RequestRefused
    if message in _REFUSED_BEFORE_PROPOSAL:
        return Unavailable
    return OutcomeUnknown


def _is_passing(code: str, message: str) -> bool:
    return code == "UNAVAILABLE" or message in _REFUSED_BEFORE_PROPOSAL

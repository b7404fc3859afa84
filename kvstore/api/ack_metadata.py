"""The acknowledgements that one write asks for by its metadata, and what its answer says of them in trailers.

A word that is not understood is refused before anything happens: MongoDB once took an unknown write concern
for a weaker one, and told nobody (Jepsen 4.2.6).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from google.protobuf.message import Message

from kvstore.errors import LEADER_ACK_DENIED, ApiError, Code, Trailers
from kvstore.late_deletes import LateDelete
from kvstore.pb.rpc_pb2 import (
    DeleteRangeRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    TxnResponse,
)
from raft import (
    ACK_REPLICAS_MAX,
    TIMEOUT_MS_MAX,
    AckedResult,
    AckRequest,
    AckRequirement,
    AckStage,
    AckView,
    LeaderAck,
    PolicyUnmet,
    impossible,
)

if TYPE_CHECKING:
    from kvstore.api.call import Call

ACK_KEY: Final = "x-ack"
"""Its one value is `leader`."""
REPLICAS_KEY: Final = "x-ack-replicas"
STAGE_KEY: Final = "x-ack-stage"
TIMEOUT_KEY: Final = "x-ack-timeout-ms"

MET_TRAILER: Final = "quorumlog-ack-met"
ACKED_TRAILER: Final = "quorumlog-acked"
NEEDED_TRAILER: Final = "quorumlog-ack-needed"
STATE_TRAILER: Final = "quorumlog-ack-state"
LEVEL_TRAILER: Final = "quorumlog-ack"
TERM_TRAILER: Final = "quorumlog-ack-term"
INDEX_TRAILER: Final = "quorumlog-ack-index"

OFF: Final = "off"
"""What a state is called while no policy is on."""

_KEYS: Final = (ACK_KEY, REPLICAS_KEY, STAGE_KEY, TIMEOUT_KEY)
_KEY_CHARS_SHOWN: Final = 40


LEADER_ACKED: Final = object()
"""Stands for the result of a write that is not applied yet, and may never be."""


class AckWish(NamedTuple):
    """What a request asks for."""

    request: AckRequest
    is_leader: bool
    """Weaker than a majority: the leader's own disk is enough."""


def wish_of(call: Call) -> AckWish | None:
    """Return what the metadata of `call` asks for; None, and nothing was looked at closely, if it has none.
    Raises ApiError."""
    pairs = call.metadata_under(ACK_KEY)
    return _parse(pairs) if pairs else None


def check_no_wish(call: Call) -> None:
    """Refuse one where acknowledgements cannot be asked for. Raises ApiError."""
    if wish_of(call) is not None:
        raise _bad("acknowledgements can be asked for puts, deletes, compactions and txns that write alone")


def check_possible(request: AckRequest, view: AckView) -> None:
    """Refuse what all members together could not give: it would only wait for its time to be over. Raises
    ApiError."""
    if request.replicas:
        requirement = view.settings.policy.requirement
        asked = AckRequirement(request.replicas, counts_learners=requirement.counts_learners)
        lacking = impossible(asked, view.membership)
        if lacking:
            raise _bad(f"metadata {REPLICAS_KEY}: {'; '.join(lacking)}")


def check_leader_ack(request: Message | None, *, is_allowed: bool) -> None:
    """Refuse all but a plain put or delete: whose answer tells nothing, and on which nothing else hangs.
    Raises ApiError."""
    if not is_allowed:
        raise LEADER_ACK_DENIED.error()
    if isinstance(request, PutRequest):
        is_plain = not (request.lease or request.prev_kv or request.ignore_value or request.ignore_lease)
    else:
        is_plain = isinstance(request, DeleteRangeRequest) and not request.prev_kv
    if not is_plain:
        raise _bad("x-ack: leader goes with a put or a delete alone, without lease, prev_kv and ignore_*")


def revision_of(result: object) -> int:
    """Return the revision that a write has led to, of the store's result for it."""
    if isinstance(result, int):
        return result
    if isinstance(result, LateDelete):
        return result.revision
    assert isinstance(result, PutResponse | DeleteRangeResponse | TxnResponse)
    return result.header.revision


def trailers_of(result: AckedResult) -> Trailers:
    """Return what the answer to a write says."""
    return _trailers("yes" if result.is_met else "no", result)


def leader_trailers(ack: LeaderAck) -> Trailers:
    return ((LEVEL_TRAILER, "leader"), (TERM_TRAILER, str(ack.term)), (INDEX_TRAILER, str(ack.index)))


def policy_unmet(error: PolicyUnmet, revision: int) -> ApiError:
    """Return what a client is told whose write is committed, but not where the policy wants it.

    ABORTED: clients repeat what is UNAVAILABLE, and this write they must not repeat.
    """
    if error.is_known:
        text = f"committed, ack policy unmet ({error.shortfall}, revision {revision})"
    else:
        why = "the leader changed, or this member stopped"
        text = f"committed, ack policy unknown: {why} (revision {revision})"
    trailers = _trailers("no" if error.is_known else "unknown", error)
    return ApiError(Code.ABORTED, f"etcdserver: {text}", applied="yes", trailers=trailers)


def _trailers(met: str, said: AckedResult | PolicyUnmet) -> Trailers:
    return (
        (MET_TRAILER, met),
        (ACKED_TRAILER, str(said.acked)),
        (NEEDED_TRAILER, str(said.needed)),
        (STATE_TRAILER, said.state.value if said.state is not None else OFF),
    )


def _parse(pairs: Sequence[tuple[str, str | bytes]]) -> AckWish | None:
    found: dict[str, str] = {}
    for key, value in pairs:
        if key != ACK_KEY and not key.startswith(ACK_KEY + "-"):
            continue
        if key not in _KEYS:
            raise _bad(f"metadata {key[:_KEY_CHARS_SHOWN]} is not known; known are {', '.join(_KEYS)}")
        if key in found or not isinstance(value, str):
            raise _bad(f"metadata {key} is given twice, or as bytes")
        found[key] = value
    if not found:
        return None
    if ACK_KEY in found:
        if found[ACK_KEY] != "leader" or len(found) > 1:
            raise _bad(f"metadata {ACK_KEY} has the one value leader, and goes with no other of its kind")
        return AckWish(AckRequest(), True)
    stage = found.get(STAGE_KEY)
    if stage is not None and stage not in [known.value for known in AckStage]:
        raise _bad(f"metadata {STAGE_KEY} is persisted or applied")
    return AckWish(
        AckRequest(
            replicas=_number(found, REPLICAS_KEY, 0, ACK_REPLICAS_MAX) or 0,
            stage=None if stage is None else AckStage(stage),
            timeout_ms=_number(found, TIMEOUT_KEY, 1, TIMEOUT_MS_MAX),
        ),
        False,
    )


def _number(found: dict[str, str], key: str, low: int, high: int) -> int | None:
    text = found.get(key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(high)) and low <= int(text) <= high):
        raise _bad(f"metadata {key} is a whole number from {low} to {high}")
    return int(text)


def _bad(text: str) -> ApiError:
    return ApiError(Code.INVALID_ARGUMENT, f"etcdserver: {text}")

"""A log of one member that applies at once: what the API's tests stand on instead of a cluster."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from kvstore import ApiContext, ApiSettings, GrpcDoor, Store, build_methods
from kvstore.commands import CommandKind, encode_command
from kvstore.pb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest
from raft import (
    AckCounters,
    AckedResult,
    AckPolicy,
    AckRequest,
    AckSettings,
    AckState,
    AckStats,
    AckView,
    ChangeRefusal,
    ChangeRefused,
    Command,
    LeaderAck,
    PolicyUnmet,
    WriteFate,
)
from raft.core.types import Membership

KINDS = {
    PutRequest: CommandKind.PUT,
    DeleteRangeRequest: CommandKind.DELETE_RANGE,
    CompactionRequest: CommandKind.COMPACT,
}


def command_of(request: Any) -> bytes:
    kind = KINDS.get(type(request), CommandKind.TXN)
    return encode_command(kind, request.SerializeToString())


class LocalStatus(NamedTuple):
    node_id: int = 0xABC
    cluster_id: int = 0xDEF
    leader: int = 0xABC
    term: int = 3
    commit_index: int = 0
    applied_index: int = 0
    is_log_stalled: bool = False
    is_recovering: bool = False


class LocalCall:
    """Fits kvstore.api.Call: a request without a deadline, that came in by no door."""

    def __init__(self, request_bytes: bytes = b"", metadata: Sequence[tuple[str, str | bytes]] = ()) -> None:
        self.request_bytes = request_bytes
        self._metadata = metadata
        self.trailers: dict[str, str] = {}

    def time_left_s(self) -> float | None:
        return None

    def metadata(self, key: str) -> str | None:
        return next((value for name, value in self._metadata if name == key and isinstance(value, str)), None)

    def metadata_under(self, prefix: str) -> list[tuple[str, str | bytes]]:
        return [pair for pair in self._metadata if pair[0].startswith(prefix)]

    def set_trailers(self, trailers: tuple[tuple[str, str], ...]) -> None:
        self.trailers = dict(trailers)


@dataclass(frozen=True)
class LocalMember:
    peer_urls: tuple[str, ...]
    incarnation: int = 0
    is_learner: bool = False
    labels: tuple[tuple[str, str], ...] = ()


class LocalReplica:
    """Fits kvstore.replica.Replica. `failure` is raised instead of doing anything."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.leader = LocalStatus().leader
        self.failure: Exception | None = None
        self.barriers = 0
        self.proposed = asyncio.Event()
        self.timeouts_s: list[float] = []
        self.is_learner = False
        self.members: Mapping[int, LocalMember] = {self.node_id: LocalMember(("http://127.0.0.1:1",), 7)}
        self.removed_members: tuple[int, ...] = ()
        self.is_log_stalled = self.is_recovering = False
        self.acks = AckView(0, 0, Membership(voters=frozenset(self.members)), {})
        self.ack_stats = AckStats(AckCounters(), None, 0, 0, 0, 0, {})
        self.ack_requests: list[AckRequest | None] = []
        self.ack_outcome: AckedResult | PolicyUnmet = AckedResult(None, 0, 3, True, 2, 1, AckState.SYNC)
        """How the next acknowledged writes end, but for their result and index."""
        self.meets_policy_late = False
        """Whether writes meet a policy that was not known here when they came in."""
        self.leader_acked: list[bytes] = []
        self.fates: dict[tuple[int, int], WriteFate] = {}
        self.changes: list[tuple[Any, ...]] = []
        """What was asked for, with whether it was strict."""
        self.refusals: list[Exception | None] = []
        """What the next changes meet, in order; None, or nothing: they are made."""
        self.change_asked = asyncio.Event()
        self.change_gate = asyncio.Event()
        """Cleared, a change is asked for, but not committed."""
        self.change_gate.set()

    node_id = LocalStatus().node_id
    cluster_id = LocalStatus().cluster_id
    term = LocalStatus().term

    async def propose(self, command: bytes, /, *, timeout_s: float) -> object:
        self.timeouts_s.append(timeout_s)
        self.proposed.set()
        if self.failure is not None:
            raise self.failure
        index = self.store.applied_index + 1
        [result] = self.store.apply([Command(index, 3, command)], index)
        if isinstance(result, Exception):
            raise result
        return result

    # Acknowledgements: what the next writes meet is told beforehand.

    @property
    def is_ack_policy_on(self) -> bool:
        return self.acks.settings.policy.is_on

    async def propose_acked(
        self, command: bytes, /, *, timeout_s: float, ack: AckRequest | None = None
    ) -> AckedResult:
        self.ack_requests.append(ack)
        result = await self.propose(command, timeout_s=timeout_s)
        index, told = self.store.applied_index, self.ack_outcome
        if ack is None and not (self.is_ack_policy_on or self.meets_policy_late):
            return AckedResult(result, index, 3, True, 0, 0, None)
        if isinstance(told, AckedResult):
            return told._replace(result=result, index=index)
        raise PolicyUnmet(
            result,
            index,
            acked=told.acked,
            needed=told.needed,
            state=told.state,
            is_known=told.is_known,
        )

    async def propose_leader_acked(self, command: bytes, /, *, timeout_s: float) -> LeaderAck:
        if self.failure is not None:
            raise self.failure
        self.leader_acked.append(command)
        return LeaderAck(3, 77)

    async def confirm_write(self, term: int, index: int, *, timeout_s: float) -> WriteFate:
        if self.failure is not None:
            raise self.failure
        return self.fates.get((term, index), WriteFate.UNKNOWN)

    async def set_ack_policy(self, policy: AckPolicy, *, before: AckPolicy | None, timeout_s: float) -> None:
        await self._change("ack", policy)
        if before is not None and before != self.acks.settings.policy:
            raise ChangeRefused(ChangeRefusal.ACKS_CHANGED)
        membership = replace(self.acks.membership, ack=AckSettings(policy))
        self.acks = self.acks._replace(membership=membership)

    async def set_labels(self, node_id: int, labels: Mapping[str, str], *, timeout_s: float) -> None:
        wanted = tuple(sorted(labels.items()))
        await self._change("labels", node_id, wanted)
        self.members = {**self.members, node_id: replace(self.members[node_id], labels=wanted)}

    async def read_barrier(self, *, timeout_s: float) -> None:
        self.timeouts_s.append(timeout_s)
        self.barriers += 1
        if self.failure is not None:
            raise self.failure

    async def _change(self, *what: Any) -> None:
        self.changes.append(what)
        self.change_asked.set()
        if self.refusals and (refusal := self.refusals.pop(0)) is not None:
            raise refusal
        await self.change_gate.wait()

    async def add_member(
        self, node_id: int, peer_urls: tuple[str, ...], *, is_learner: bool, is_strict: bool, timeout_s: float
    ) -> None:
        await self._change("add", node_id, is_strict)
        self.members = {**self.members, node_id: LocalMember(peer_urls, 0, is_learner)}

    async def remove_member(self, node_id: int, *, is_strict: bool, timeout_s: float) -> None:
        await self._change("remove", node_id, is_strict)
        self.members = {i: member for i, member in self.members.items() if i != node_id}

    async def promote_member(self, node_id: int, *, is_strict: bool, timeout_s: float) -> None:
        await self._change("promote", node_id, is_strict)
        self.members = {**self.members, node_id: LocalMember(self.members[node_id].peer_urls)}

    async def update_member(self, node_id: int, peer_urls: tuple[str, ...], *, timeout_s: float) -> None:
        await self._change("update", node_id)
        old = self.members[node_id]
        self.members = {**self.members, node_id: LocalMember(peer_urls, old.incarnation, old.is_learner)}

    async def replace_member(
        self, old_id: int, node_id: int, peer_urls: tuple[str, ...], *, is_strict: bool, timeout_s: float
    ) -> None:
        await self._change("replace", old_id, node_id, is_strict)
        new = LocalMember(peer_urls, 0, self.members[old_id].is_learner)
        self.members = {i: member for i, member in self.members.items() if i != old_id} | {node_id: new}

    async def transfer_leadership(self, target: int, *, timeout_s: float) -> None:
        await self._change("transfer", target)

    def status(self) -> LocalStatus:
        # The first entry of a log is the leader's own, which the store never sees.
        applied = max(self.store.applied_index, 1)
        return LocalStatus(
            leader=self.leader,
            commit_index=applied,
            applied_index=applied,
            is_log_stalled=self.is_log_stalled,
            is_recovering=self.is_recovering,
        )


class LocalServer:
    """Our store behind the real door, on a loop of its own in a thread of its own."""

    def __init__(self, path: str, settings: ApiSettings | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.store = Store(path)
        self.replica = LocalReplica(self.store)
        self.context = ApiContext(self.store, self.replica, settings)
        self._door: GrpcDoor | None = None
        self.port = self.run(self._start())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _start(self) -> int:
        self.store.start()
        self._door = GrpcDoor(build_methods(self.context))
        return await self._door.start("127.0.0.1:0")

    def stop(self) -> None:
        assert self._door is not None
        self.run(self._door.stop(grace_s=0.1))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self.store.close()

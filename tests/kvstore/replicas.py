"""A log of one member that applies at once: what the API's tests stand on instead of a cluster."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, NamedTuple

from kvstore import ApiContext, ApiSettings, GrpcDoor, Store, build_methods
from kvstore.commands import CommandKind, encode_command
from kvstore.pb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest
from raft import Command

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


class LocalReplica:
    """Fits kvstore.replica.Replica. `failure` is raised instead of doing anything."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.leader = LocalStatus().leader
        self.failure: Exception | None = None
        self.barriers = 0
        self.proposed = asyncio.Event()
        self.timeouts_s: list[float] = []

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

    async def read_barrier(self, *, timeout_s: float) -> None:
        self.timeouts_s.append(timeout_s)
        self.barriers += 1
        if self.failure is not None:
            raise self.failure

    def status(self) -> LocalStatus:
        applied = self.store.applied_index
        return LocalStatus(leader=self.leader, commit_index=applied, applied_index=applied)


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
        members = {LocalStatus().node_id: ["http://127.0.0.1:1"]}
        self._door = GrpcDoor(build_methods(self.context, members))
        return await self._door.start("127.0.0.1:0")

    def stop(self) -> None:
        assert self._door is not None
        self.run(self._door.stop(grace_s=0.1))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        self.store.close()

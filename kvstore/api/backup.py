"""quorumlogpb.Maintenance: Snapshot, a backup of the state, as one stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

from kvstore.api.call import ApiContext, Call, Reply, StreamMethod
from kvstore.errors import TOO_MANY_REQUESTS
from kvstore.pb.backup_pb2 import SnapshotRequest, SnapshotResponse

BACKUPS_MAX = 4
"""At a time. Each keeps LevelDB from giving back what was removed since it began."""


class BackupService:
    def __init__(self, context: ApiContext) -> None:
        self._context = context
        self._running = 0

    def methods(self) -> list[StreamMethod]:
        return [StreamMethod("/quorumlogpb.Maintenance/Snapshot", SnapshotRequest, self.snapshot)]

    async def snapshot(self, request: SnapshotRequest, call: Call) -> AsyncGenerator[Reply, None]:
        """Stream the state as of a moment after the call came in: all that was acknowledged by then is
        in it. Any member may be asked."""
        context = self._context
        context.admit(call, for_learners=True)
        if self._running >= BACKUPS_MAX:
            raise TOO_MANY_REQUESTS.error()
        self._running += 1
        try:
            await context.read_barrier(call)
            replica = context.replica
            pieces = context.store.backup(replica.cluster_id, replica.node_id, int(time.time() * 1000))
            async with aclosing(pieces):
                began = time.perf_counter()
                async for piece in pieces:
                    # As long a pause as the work took: everybody else has half of the loop at least.
                    await asyncio.sleep(time.perf_counter() - began)
                    if piece:
                        yield SnapshotResponse(data=piece)
                    began = time.perf_counter()
        finally:
            self._running -= 1

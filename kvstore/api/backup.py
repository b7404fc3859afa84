"""quorumlogpb.Maintenance: Snapshot, a backup of the state, as one stream."""

from __future__ import annotations

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
        context.check_leader(call)
        if self._running >= BACKUPS_MAX:
            raise TOO_MANY_REQUESTS.error()
        self._running += 1
        try:
            await context.read_barrier(call)
            replica = context.replica
            pieces = context.store.backup(replica.cluster_id, replica.node_id, int(time.time() * 1000))
            async with aclosing(pieces):
                async for piece in pieces:
                    # An empty one too: waiting for its write is what lets the loop turn.
                    yield SnapshotResponse(data=piece)
        finally:
            self._running -= 1

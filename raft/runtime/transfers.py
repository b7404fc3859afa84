"""Handing leadership over, as seen by whoever asked for it."""

from __future__ import annotations

import asyncio

from raft.core.errors import RaftError, Stopping, TransferFailed
from raft.core.ready import SoftState
from raft.core.types import NO_NODE, NodeId, Term


class TransferWaiters:
    """Those that wait for a transfer from this node. Owned by the driver."""

    def __init__(self) -> None:
        self._target: NodeId = NO_NODE
        self._term: Term = 0
        self._waiting: list[asyncio.Future[None]] = []

    def wait(self, target: NodeId, term: Term, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """Wait for `target` to lead a later term than `term`, in which this node leads."""
        self._target, self._term = target, term
        future: asyncio.Future[None] = loop.create_future()
        self._waiting.append(future)
        return future

    def looked(self, state: SoftState, transfer_target: NodeId, own_id: NodeId) -> None:
        """Say how things stand: whom this node takes for the leader, and to whom it is handing over."""
        if not self._waiting:
            return
        if state.term > self._term and state.leader == self._target:
            self._end(None)
        elif state.term > self._term and state.leader != NO_NODE:
            whom = "this member leads again" if state.leader == own_id else f"{state.leader:x} leads now"
            self._end(TransferFailed(f"leadership went elsewhere: {whom}"))
        elif state.term == self._term and transfer_target == NO_NODE:
            self._end(TransferFailed(f"{self._target:x} did not take over within an election timeout"))

    def fail_all(self) -> None:
        """This node stops."""
        self._end(Stopping("this node is shutting down"))

    def _end(self, error: RaftError | None) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if future.done():
                continue
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(type(error)(str(error)))

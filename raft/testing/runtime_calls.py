"""The clients' calls at a real node: what it answers to each, in one of its lives."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from raft.core.errors import AcksMissing, NotLeader, Overloaded, ProposalTooLarge, RaftError, Stopping
from raft.core.ready import Role
from raft.runtime.ack_requests import AckedResult, AckRequest, PolicyUnmet
from raft.testing.oracle import Operation
from raft.testing.requests import Caller
from raft.testing.runtime_acks import AckJudge, draw_wish
from raft.testing.virtual_loop import TICK_S

if TYPE_CHECKING:
    from raft.testing.runtime_node import RuntimeSimNode


class RefusableCaller(Caller, Protocol):
    """A client that can be told more than that there is no answer."""

    def refused(self, operation: Operation) -> None: ...


@dataclass(eq=False, slots=True)
class _Call:
    operation: Operation
    caller: RefusableCaller
    future: asyncio.Future[Any] | None = None
    """None as long as the node has not been asked."""
    wish: AckRequest | None = None


class Calls:
    """See above. Has of RequestTable what a client asks of it."""

    def __init__(self, node: RuntimeSimNode) -> None:
        self._node = node
        self._open: dict[int, _Call] = {}
        self._judge = AckJudge(node.world)

    def begin(self, operation: Operation, caller: RefusableCaller, command: bytes) -> None:
        call = self._open[operation.number] = _Call(operation, caller)
        self._node.loop.post(self._ask, call, command)

    def all(self) -> list[tuple[Caller, Operation]]:
        return [(call.caller, call.operation) for call in self._open.values()]

    def give_up(self, operation: Operation) -> bool:
        """The caller's own patience is at its end. Returns whether the call certainly had no effect."""
        call = self._open.pop(operation.number, None)
        if call is not None and call.future is not None:
            call.future.cancel()
            return operation.write is None
        return operation.write is None or call is not None

    def _ask(self, call: _Call, command: bytes) -> None:
        if call.operation.number not in self._open:
            return
        node, profile = self._node, self._node.world.profile
        # Half of them come to the node's deadline before the caller's own.
        ticks = 10_000 if node.world.calm else profile.timeout_ticks * (0.25 + node.random.random())
        try:
            if call.operation.write is None:
                barrier = node.node.read_barrier(timeout_s=ticks * TICK_S)
                call.future = node.loop.create_task(barrier)
            else:
                call.wish = wish = draw_wish(node.world, node.random)
                if wish is None:
                    call.future = node.node.propose_nowait(command, timeout_s=ticks * TICK_S)
                else:
                    node.world.counts["writes_with_wishes"] += 1
                    call.future = node.node.propose_acked_nowait(command, timeout_s=ticks * TICK_S, ack=wish)
        except RaftError as error:
            self._failed(call, error)
        else:
            call.future.add_done_callback(partial(self._answered, call))

    def _answered(self, call: _Call, future: asyncio.Future[Any]) -> None:
        if future.cancelled() or self._node.loop.is_dead:
            return
        error = future.exception()
        if self._open.get(call.operation.number) is not call:
            return
        if isinstance(error, RaftError) and not isinstance(error, PolicyUnmet):
            self._failed(call, error)
            return
        if error is not None and not isinstance(error, PolicyUnmet):
            raise error
        del self._open[call.operation.number]
        node, world = self._node, self._node.world
        if call.operation.write is not None:
            said = error or future.result()
            self._judge.told(call.operation.number, call.wish, said)
            result = said.result if isinstance(said, PolicyUnmet | AckedResult) else said
            call.caller.write_returned(call.operation, result)
            return
        if node.core.role is not Role.LEADER:
            world.counts["reads_served_by_followers"] += 1
        call.caller.read_returned(call.operation, world.application.read(node.machine, call.operation.key))

    def _failed(self, call: _Call, error: RaftError) -> None:
        del self._open[call.operation.number]
        self._node.world.counts["writes_refused_for_acks"] += isinstance(error, AcksMissing)
        if isinstance(error, AcksMissing | NotLeader | Overloaded | ProposalTooLarge | Stopping):
            call.caller.refused(call.operation)
        else:
            call.caller.connection_lost(call.operation)

"""Histories for the tests of the checkers: made by hand, and by a store that is right."""

from __future__ import annotations

import random
from dataclasses import dataclass

from kvstore.checking.acknowledged import State
from kvstore.checking.history import (
    Compare,
    Delete,
    History,
    Kv,
    Operation,
    Put,
    Range,
    RangeResult,
    Request,
    Result,
    Txn,
    apply,
    update,
)
from kvstore.checking.logs import LogEntry, NodeLog

A, B, ALL = b"a", b"b", Range(b"\0", b"\0")


class Scribe:
    """Writes a history down, one call at a time; each call gets a process of its own."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []

    def ok(self, start: int, end: int, request: Request, revision: int, result: Result) -> Operation:
        return self._add(Operation(0, 0, "n1", request, start, end, "ok", revision, result))

    def info(self, start: int, request: Request) -> Operation:
        return self._add(Operation(0, 0, "n1", request, start, error="deadline"))

    def _add(self, operation: Operation) -> Operation:
        operation.id = operation.process = len(self.operations)
        self.operations.append(operation)
        return operation


def kv(key: bytes, value: bytes, create: int, mod: int, version: int) -> Kv:
    return Kv(key, value, create, mod, version)


@dataclass
class Run:
    """A run against a store that is right, and all that there is to know of it."""

    history: History
    applied: list[Request]
    """In the order of the log."""
    states: list[dict[bytes, Kv]]
    """After each revision, from 1 on."""

    @property
    def operations(self) -> list[Operation]:
        return self.history.operations

    def state(self, name: str = "n1") -> State:
        return State(name, len(self.states), dict(self.states[-1]))

    def log(self, name: str = "n1") -> NodeLog:
        entries = [LogEntry(1, 1, None, False)]
        entries += [LogEntry(i, 1, request, True) for i, request in enumerate(self.applied, 2)]
        return NodeLog(name, len(entries), entries)


def random_run(rng: random.Random, length: int, lost_share: float) -> Run:
    """Each call takes effect at one instant between call and return; some replies are lost, of calls that
    took effect and of calls that did not. It ends with a read of everything."""
    scribe = Scribe()
    states: list[dict[bytes, Kv]] = [{}]
    applied: list[Request] = []
    for i in range(length):
        at, state = 10 * i, dict(states[-1])
        request = _random_request(rng, i, state)
        start, end = at - rng.randrange(0, 40), at + rng.randrange(0, 40)
        lost = rng.random() < lost_share and not isinstance(request, Range)
        if lost and rng.random() < 0.5:
            scribe.info(start, request)
            continue
        result, effects = apply(state, request, len(states) + 1)
        update(state, effects)
        if effects:
            states.append(state)
        if not isinstance(request, Range):
            applied.append(request)
        if lost:
            scribe.info(start, request)
        else:
            scribe.ok(start, end, request, len(states), result)
    end, last = 10 * length + 100, states[-1]
    scribe.ok(end, end + 1, ALL, len(states), RangeResult(tuple(last[k] for k in sorted(last))))
    return Run(History(scribe.operations), applied, states)


def _random_request(rng: random.Random, number: int, state: dict[bytes, Kv]) -> Request:
    value, key = b"v%d" % number, rng.choice((A, B))
    others = [kv.value for kv in state.values()] or [b"none"]
    return rng.choice(
        (
            Put(key, value, prev_kv=rng.random() < 0.5),
            Delete(key, prev_kv=rng.random() < 0.5),
            Range(key),
            Txn((Compare(key, "value", rng.choice(others)),), (Put(key, value),), (Range(key),)),
            Txn((), (Put(A, value), Put(B, value + b"'"))),
        )
    )


def random_history(rng: random.Random, length: int, lost_share: float) -> list[Operation]:
    return random_run(rng, length, lost_share).operations

"""Histories for the tests of the checkers: made by hand, and by a store that is right."""

from __future__ import annotations

import random

from kvstore.checking.history import (
    Compare,
    Delete,
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


def random_history(rng: random.Random, length: int, lost_share: float) -> list[Operation]:
    """A history of a right store: each call takes effect at one instant between call and return;
    some replies are lost, of calls that took effect and of calls that did not."""
    scribe = Scribe()
    state: dict[bytes, Kv] = {}
    revision = 1
    for i in range(length):
        at, value, key = 10 * i, b"v%d" % i, rng.choice((A, B))
        others = [kv.value for kv in state.values()] or [b"none"]
        request: Request = rng.choice(
            (
                Put(key, value, prev_kv=rng.random() < 0.5),
                Delete(key, prev_kv=rng.random() < 0.5),
                Range(key),
                Txn((Compare(key, "value", rng.choice(others)),), (Put(key, value),), (Range(key),)),
            )
        )
        start, end = at - rng.randrange(0, 40), at + rng.randrange(0, 40)
        lost = rng.random() < lost_share and not isinstance(request, Range)
        if lost and rng.random() < 0.5:
            scribe.info(start, request)
            continue
        result, effects = apply(state, request, revision + 1)
        revision += bool(effects)
        update(state, effects)
        if lost:
            scribe.info(start, request)
        else:
            scribe.ok(start, end, request, revision, result)
    end = 10 * length + 100
    scribe.ok(end, end + 1, ALL, revision, RangeResult(tuple(state[k] for k in sorted(state))))
    return scribe.operations

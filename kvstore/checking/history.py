"""What clients asked of a cluster, what they were told, and when: the material of the checkers.

Rules (etcd's robustness tests and Jepsen have the same):

* A client process has one request outstanding at a time.
* A write that met an error is `info`: it may have been applied, may be applied later, or never. It is
  `fail` only if the server itself proved that nothing was done. Calling an unknown write failed would
  let a checker accept a store that loses or doubles writes.
* A write that met an error which says that it is done, and at which revision, is `ok` if its answer is known
  without being told: that of a put which does not ask for the value before. If not, it is `info`.
* A read that met an error says nothing and is dropped.
* Written values are unique, so that a value found in the store names the write that put it there.

Requests and results here are plain values and not the wire's messages: the checkers are to know
nothing of how a history was obtained. docs/histories.md has the same for users, with the file's format.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

Outcome = Literal["ok", "fail", "info"]
Target = Literal["value", "create", "mod", "version"]


class Kv(NamedTuple):
    """One key as etcd shows it."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int


@dataclass(frozen=True, slots=True)
class Put:
    key: bytes
    value: bytes
    prev_kv: bool = False


@dataclass(frozen=True, slots=True)
class Delete:
    key: bytes
    range_end: bytes = b""
    prev_kv: bool = False


@dataclass(frozen=True, slots=True)
class Range:
    key: bytes
    range_end: bytes = b""
    serializable: bool = False


@dataclass(frozen=True, slots=True)
class Compare:
    """`target` of `key` equals `expected`. A missing key is 0 in numbers and equal to no value."""

    key: bytes
    target: Target
    expected: bytes | int


@dataclass(frozen=True, slots=True)
class Txn:
    compares: tuple[Compare, ...]
    success: tuple[Put | Delete | Range, ...]
    failure: tuple[Put | Delete | Range, ...] = ()


Request: TypeAlias = Put | Delete | Range | Txn


@dataclass(frozen=True, slots=True)
class PutResult:
    prev: Kv | None = None


@dataclass(frozen=True, slots=True)
class DeleteResult:
    deleted: int
    prev: tuple[Kv, ...] = ()


@dataclass(frozen=True, slots=True)
class RangeResult:
    kvs: tuple[Kv, ...]


@dataclass(frozen=True, slots=True)
class TxnResult:
    succeeded: bool
    results: tuple[PutResult | DeleteResult | RangeResult, ...]


Result: TypeAlias = PutResult | DeleteResult | RangeResult | TxnResult
State: TypeAlias = Mapping[bytes, Kv]
Effects: TypeAlias = dict[bytes, Kv | None]
"""What one revision changed; None: deleted."""


@dataclass(slots=True)
class Operation:
    """One call of one client process. Times are nanoseconds of one monotonic clock."""

    id: int
    process: int
    node: str
    request: Request
    call_ns: int
    return_ns: int | None = None
    """None if the outcome is unknown: the call may take effect at any later time."""
    outcome: Outcome = "info"
    revision: int = 0
    """header.revision of the reply."""
    result: Result | None = None
    error: str = ""
    """What was said. Of an acknowledged write: it is done, but not as it was wanted."""
    gave_up_ns: int | None = None
    """When the caller of an unknown outcome stopped waiting. For pictures: it says nothing of the effect."""
    line: int = field(default=0, compare=False)
    """Where the call stands in its file; 0 if it is from none."""

    def __str__(self) -> str:
        end = f"{self.return_ns}" if self.return_ns is not None else "?"
        told = f"revision {self.revision}: {self.result}" if self.outcome == "ok" else self.error
        return (
            f"#{self.id} process {self.process} at {self.node} [{self.call_ns}, {end}] "
            f"{self.request} -> {self.outcome} {told}"
        )


FINAL_READS_FROM: Final = -(2**62)
"""From here on downwards: ids and processes of reads that are no calls of a history: they were made of
everything afterwards, and are held against it as if they were."""


def is_final_read(operation: Operation) -> bool:
    return operation.id <= FINAL_READS_FROM


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened to the cluster, for pictures: a fault, a new leader."""

    at_ns: int
    text: str
    node: str = ""


@dataclass(slots=True)
class History:
    """The operations of one run, in the order in which they were called."""

    operations: list[Operation] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    first_revision: int = 1
    """The store's revision when the run began."""
    initial: dict[bytes, Kv] = field(default_factory=dict)
    """What was in it then."""

    def count(self, outcome: Outcome) -> int:
        return sum(operation.outcome == outcome for operation in self.operations)

    def save(self, path: Path) -> None:
        """Write the file that `quorumlog check-history` reads, e.g. as evidence of a failed run."""
        from kvstore.checking.history_file import save_history  # which knows this module

        save_history(self, path)


def selected(state: State, key: bytes, range_end: bytes) -> list[Kv]:
    """Return the keys of `state` that (key, range_end) means in etcd, in key order."""
    if not range_end:
        return [state[key]] if key in state else []
    open_end = range_end == b"\0"
    return [state[k] for k in sorted(state) if k >= key and (open_end or k < range_end)]


def apply(state: State, request: Request, revision: int) -> tuple[Result, Effects]:
    """Execute `request` on `state` as the write (if it is one) that makes `revision`.

    A specification in the plainest form, not a store: it is what the real one is held against.
    """
    if not isinstance(request, Txn):
        return _apply_one(state, request, revision)
    succeeded = all(_holds(state, compare) for compare in request.compares)
    seen = dict(state)
    effects: Effects = {}
    results: list[PutResult | DeleteResult | RangeResult] = []
    for op in request.success if succeeded else request.failure:
        result, changed = _apply_one(seen, op, revision)
        results.append(result)
        effects.update(changed)
        update(seen, changed)
    return TxnResult(succeeded, tuple(results)), effects


def update(state: dict[bytes, Kv], effects: Effects) -> None:
    """Bring `effects` into `state`."""
    for key, kv in effects.items():
        if kv is None:
            state.pop(key, None)
        else:
            state[key] = kv


def is_mutation(request: Request, result: Result) -> bool:
    """Return whether the reply `result` says that a revision was made."""
    if isinstance(request, Put):
        return True
    if isinstance(result, DeleteResult):
        return result.deleted > 0
    if isinstance(request, Txn) and isinstance(result, TxnResult):
        branch = request.success if result.succeeded else request.failure
        return any(is_mutation(op, part) for op, part in zip(branch, result.results, strict=True))
    return False


def is_answer_known(request: Request) -> bool:
    """Return whether the answer to a write that was done is clear without being told."""
    return isinstance(request, Put) and not request.prev_kv


def written_values(requests: Iterable[Request]) -> set[bytes]:
    """Return every value that some request would write."""
    values: set[bytes] = set()
    for request in requests:
        ops = (*request.success, *request.failure) if isinstance(request, Txn) else (request,)
        values.update(op.value for op in ops if isinstance(op, Put))
    return values


def kvs_of(result: Result | None) -> list[Kv]:
    """Return every key that a reply shows."""
    if isinstance(result, PutResult):
        return [result.prev] if result.prev else []
    if isinstance(result, DeleteResult):
        return list(result.prev)
    if isinstance(result, RangeResult):
        return list(result.kvs)
    if isinstance(result, TxnResult):
        return [kv for part in result.results for kv in kvs_of(part)]
    return []


def _apply_one(
    state: State, request: Put | Delete | Range, revision: int
) -> tuple[PutResult | DeleteResult | RangeResult, Effects]:
    if isinstance(request, Put):
        old = state.get(request.key)
        new = Kv(
            request.key,
            request.value,
            old.create_revision if old else revision,
            revision,
            old.version + 1 if old else 1,
        )
        return PutResult(old if request.prev_kv else None), {request.key: new}
    found = selected(state, request.key, request.range_end)
    if isinstance(request, Range):
        return RangeResult(tuple(found)), {}
    effects: Effects = {kv.key: None for kv in found}
    return DeleteResult(len(found), tuple(found) if request.prev_kv else ()), effects


def _holds(state: State, compare: Compare) -> bool:
    kv = state.get(compare.key)
    if compare.target == "value":
        return kv is not None and kv.value == compare.expected
    if kv is None:
        return compare.expected == 0
    actual = {"create": kv.create_revision, "mod": kv.mod_revision, "version": kv.version}
    return actual[compare.target] == compare.expected

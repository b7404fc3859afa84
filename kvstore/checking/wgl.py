"""A second opinion that knows no revisions: the search of Wing, Gong and Lowe, key by key.

The revision checker believes the store's own numbering. This one believes only values and times: it
looks for *some* order of the calls, each between its call and its return, that a plain register
could have answered. A history is linearizable if and only if its projection to each object is
(Herlihy and Wing 1990, theorem 1), and keys are objects as long as no call touches two of them
at once. A range read is projected to one read of each key, which is necessary but not sufficient;
whether the keys fit together is what the revision checker sees.

Method: Lowe, "Testing for linearizability" (2017): walk a linked list of calls and returns, linearize
the first call that the register allows, undo when a return comes first; remember pairs (set of
calls done, value). Exponential at worst, so it has a limit in steps, and short histories with few
clients are what it is for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from kvstore.checking.history import (
    Compare,
    Delete,
    DeleteResult,
    Kv,
    Operation,
    Put,
    PutResult,
    Range,
    RangeResult,
    Request,
    Result,
    Txn,
    TxnResult,
    apply,
    selected,
)
from kvstore.checking.revision_checker import Undecided, Violation, check_processes
from kvstore.checking.words import data_text

STEPS_MAX = 3_000_000
"""Some seconds of one core for each key."""
CALLS_SHOWN = 8

Value = bytes | None
Step = Callable[[Value], tuple[bool, Value]]
"""Given the register, returns whether the reply is the right one, and the register afterwards."""


@dataclass(slots=True)
class _Call:
    operation: Operation
    step: Step
    call_ns: int
    return_ns: int | None


class _Node:
    """An entry of the walk: the call or the return of one operation."""

    __slots__ = ("bit", "call", "match", "next", "prev")

    def __init__(self, call: _Call | None, bit: int, match: _Node | None) -> None:
        self.call = call
        self.bit = bit
        self.match = match
        """Of a call: its return, None if unknown."""
        self.prev: _Node | None = None
        self.next: _Node | None = None


def check_linearizable(
    operations: Sequence[Operation],
    *,
    initial: Mapping[bytes, Kv] | None = None,
    steps_max: int = STEPS_MAX,
    progress: Callable[[int, int], None] | None = None,
) -> list[Violation]:
    """Return one violation for each key whose calls no register could have answered.

    `initial`: what was in the store before. `progress` is told how many keys of how many are done. Raises
    ValueError for a call that cannot be projected to single keys, and Undecided if no key is wrong and for
    some key `steps_max` did not suffice: that is no verdict, and nobody may take it for one.
    """
    check_processes(operations)
    violations = []
    undecided: list[bytes] = []
    by_key = sorted(_by_key(operations).items())
    for number, (key, calls) in enumerate(by_key):
        if progress is not None:
            progress(number, len(by_key))
        kv = (initial or {}).get(key)
        value = kv.value if kv is not None else None
        is_right = _linearizable(calls, steps_max, value)
        if is_right is None:
            undecided.append(key)
        elif not is_right:
            violations.append(_violation(key, _shortest(calls, steps_max, value), len(calls)))
    if undecided and not violations:
        raise Undecided(
            f"{steps_max} steps were not enough for {data_text(undecided[0])} ({len(undecided)} such keys)"
        )
    return violations


def _violation(key: bytes, calls: Sequence[_Call], total: int) -> Violation:
    """`calls`: the first of them that nothing explains, in the order of their calls."""
    shown = [call.operation for call in calls[-CALLS_SHOWN:]]
    last = max((call for call in calls if call.return_ns is not None), key=lambda call: call.return_ns or 0)
    text = (
        f"no order explains the replies on {data_text(key)} up to that of #{last.operation.id}, "
        f"{len(calls)} calls of {total}"
    )
    if last.operation not in shown:
        shown.insert(0, last.operation)
    return Violation("not-linearizable", text, tuple(shown))


def _shortest(calls: Sequence[_Call], steps_max: int, value: Value) -> Sequence[_Call]:
    """Return the shortest beginning of a wrong history that is wrong: what people want to look at.

    At an instant, calls that have not returned may take effect or not. What is wrong then stays wrong, so the
    instant is found by bisection.
    """
    instants = sorted(call.return_ns for call in calls if call.return_ns is not None)

    def begun(at_ns: int) -> list[_Call]:
        return [
            call if call.return_ns is not None and call.return_ns <= at_ns else replace(call, return_ns=None)
            for call in sorted(calls, key=lambda call: call.call_ns)
            if call.call_ns <= at_ns
        ]

    low, high = 0, len(instants) - 1
    while low < high:
        middle = (low + high) // 2
        if _linearizable(begun(instants[middle]), steps_max, value) is False:
            high = middle
        else:
            low = middle + 1
    return begun(instants[high])


def _by_key(operations: Sequence[Operation]) -> dict[bytes, list[_Call]]:
    keys = set()
    for operation in operations:
        for part in _parts(operation.request):
            if isinstance(part, Range | Delete) and part.range_end:
                continue
            keys.add(part.key)
    calls: dict[bytes, list[_Call]] = defaultdict(list)
    for operation in operations:
        request, result = operation.request, operation.result
        if operation.outcome == "fail" or (isinstance(request, Range) and request.serializable):
            continue
        if operation.outcome == "info" and isinstance(request, Range):
            continue
        return_ns = operation.return_ns if operation.outcome == "ok" else None
        if isinstance(request, Range) and request.range_end:
            assert isinstance(result, RangeResult)
            found = {kv.key: kv for kv in result.kvs}
            everything = {key: Kv(key, b"", 0, 0, 0) for key in keys | set(found)}
            for kv in selected(everything, request.key, request.range_end):
                own = RangeResult((found[kv.key],) if kv.key in found else ())
                step = _step(Range(kv.key), own, kv.key)
                calls[kv.key].append(_Call(operation, step, operation.call_ns, return_ns))
            continue
        for key, alone, own_result in _single_keys(operation):
            step = _step(alone, own_result, key)
            calls[key].append(_Call(operation, step, operation.call_ns, return_ns))
    return calls


def _single_keys(operation: Operation) -> list[tuple[bytes, Request, Result | None]]:
    """Project a call to the keys that it touches. A txn without compares does to each key what it would
    have done to it alone; one with compares must keep to one key."""
    request, result = operation.request, operation.result if operation.outcome == "ok" else None
    parts = _parts(request)
    touched = {part.key for part in parts}
    if any(getattr(part, "range_end", b"") for part in parts):
        raise ValueError(f"writes a range: {operation}")
    if len(touched) == 1:
        return [(parts[0].key, request, result)]
    if not isinstance(request, Txn) or request.compares or len(touched) != len(parts):
        raise ValueError(f"touches more than one key: {operation}")
    results = result.results if isinstance(result, TxnResult) else (None,) * len(request.success)
    return [(op.key, op, own) for op, own in zip(request.success, results, strict=True)]


def _parts(request: Request) -> list[Put | Delete | Range | Compare]:
    if isinstance(request, Txn):
        return [*request.compares, *request.success, *request.failure]
    return [request]


def _step(request: Request, result: Result | None, key: bytes) -> Step:
    if isinstance(request, Txn):
        for compare in request.compares:
            if compare.target != "value" and compare.expected != 0:
                raise ValueError(f"compares a number, which a register does not have: {compare}")
    observed = None if result is None else _values_only(result)

    def step(value: Value) -> tuple[bool, Value]:
        state = {} if value is None else {key: Kv(key, value, 1, 1, 1)}
        expected, effects = apply(state, request, 2)
        after = effects[key] if key in effects else state.get(key)
        right = observed is None or observed == _values_only(expected)
        return right, after.value if after else None

    return step


def _values_only(result: Result) -> object:
    if isinstance(result, PutResult):
        return ("put", result.prev.value if result.prev else None)
    if isinstance(result, DeleteResult):
        return ("delete", result.deleted, tuple(kv.value for kv in result.prev))
    if isinstance(result, RangeResult):
        return ("range", tuple(kv.value for kv in result.kvs))
    assert isinstance(result, TxnResult)
    return (result.succeeded, tuple(_values_only(part) for part in result.results))


def _walk_list(calls: Sequence[_Call]) -> _Node:
    # A call at the same instant as a return goes first: the two overlap then, which allows more.
    events: list[tuple[int, int, _Node]] = []
    for i, call in enumerate(calls):
        returned = _Node(None, 1 << i, None) if call.return_ns is not None else None
        events.append((call.call_ns, 0, _Node(call, 1 << i, returned)))
        if returned is not None and call.return_ns is not None:
            events.append((call.return_ns, 1, returned))
    events.sort(key=lambda event: event[:2])
    head = last = _Node(None, 0, None)
    for _, _, node in events:
        last.next, node.prev = node, last
        last = node
    return head


def _linearizable(calls: Sequence[_Call], steps_max: int, value: Value) -> bool | None:
    """Return whether a register that holds `value` could have answered; None at `steps_max`."""
    head = _walk_list(calls)
    left = sum(call.return_ns is not None for call in calls)
    unknown = sum(1 << i for i, call in enumerate(calls) if call.return_ns is None)
    done = 0
    seen: dict[tuple[int, Value], list[int]] = defaultdict(list)
    undo: list[tuple[_Node, Value, bool]] = []
    node = head.next
    arrived = True
    steps = 0
    while left:
        if arrived:
            # Reads of the value that is there, and whatever else changes nothing, may as well be done now:
            # that closes no way, so there is no other choice to come back to.
            while (free := _free(head, value)) is not None:
                undo.append((free, value, True))
                done |= free.bit
                left -= 1
                _take_out(free)
            node, arrived = head.next, False
            continue
        steps += 1
        if steps > steps_max:
            return None
        if node is not None and node.call is not None:
            right, after = node.call.step(value)
            if right and after != value and _is_new(seen, done | node.bit, unknown, after):
                undo.append((node, value, False))
                done, value = done | node.bit, after
                left -= node.match is not None
                _take_out(node)
                arrived = True
            else:
                node = node.next
            continue
        # A return, or the end: everything before it was tried.
        while True:
            if not undo:
                return False
            node, value, is_free = undo.pop()
            done &= ~node.bit
            left += node.match is not None
            _put_back(node)
            if not is_free:
                break
        node = node.next
    return True


def _free(head: _Node, value: Value) -> _Node | None:
    """Return an answered call that may come next, got the right reply, and leaves `value` as it is."""
    node = head.next
    while node is not None and node.call is not None:
        if node.match is not None:
            right, after = node.call.step(value)
            if right and after == value:
                return node
        node = node.next
    return None


def _is_new(seen: dict[tuple[int, Value], list[int]], done: int, unknown: int, value: Value) -> bool:
    """Note a state of the search; return False if it cannot lead further than one seen before.

    Having used *fewer* unknown calls for the same answered ones and the same value leaves every option
    open that using more does, since no unknown call must ever be used.
    """
    used = done & unknown
    tried = seen[(done & ~unknown, value)]
    if any(before & used == before for before in tried):
        return False
    tried.append(used)
    return True


def _take_out(node: _Node) -> None:
    for one in (node, node.match):
        if one is not None:
            assert one.prev is not None
            one.prev.next = one.next
            if one.next is not None:
                one.next.prev = one.prev


def _put_back(node: _Node) -> None:
    for one in (node.match, node):
        if one is not None:
            assert one.prev is not None
            one.prev.next = one
            if one.next is not None:
                one.next.prev = one

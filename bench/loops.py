"""The two ways to put load on a server, and the counting. Nothing here knows what a request is sent over.

**Closed loop**: so many requests are in flight at any time, and the next is sent when one returns. It
measures what the server can do. But when the server stalls, so does the load: of all the requests that
clients with a will of their own would have sent during the stall, it sends none, and the percentiles hardly
show it (coordinated omission).

**Open loop**: requests are due at fixed times, whatever the server does, and a latency counts from the time
at which the request was *due*, not from when it could be sent. A stall of a second shows as a second for the
request that was due at its beginning, half a second for one due in its middle, and so on. At most
`outstanding_max` are on their way; what is due beyond that waits here, while its clock runs. What could not
be sent within the time-out after the end of the window counts as an error, not as nothing.

What counts, in both: a window that follows the warm-up.
* Throughput: successes that *ended* within it. Those begun in the warm-up balance those that end after it.
* Latency: successes that *began* (open loop: were due) within it, to their end, also if that came after it.
* Failures: requests that began or ended within it. Those of the warm-up are counted apart.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from bench.histogram import Histogram
from bench.workload import Request

Now = Callable[[], int]
Send = Callable[[Request], Awaitable[None]]
"""Returns once the request has succeeded; raises RequestFailed if not."""

FAILURE_PAUSE_S = 0.01
"""After a failure, so that a refused connection does not become a busy loop."""

SENT_AT_ONCE_MAX = 64
"""Requests of an open loop begun in one turn of the event loop."""

NS_PER_S = 1_000_000_000
FOREVER_NS = 1 << 62


class RequestFailed(Exception):
    """`may_have_applied`: it was a write, and nobody knows."""

    def __init__(self, reason: str, *, may_have_applied: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.may_have_applied = may_have_applied


@dataclass(slots=True)
class Tally:
    """What was counted. Can be added up over processes."""

    ok: Counter[str] = field(default_factory=Counter)
    """Successes within the window, by operation."""
    latency: dict[str, Histogram] = field(default_factory=dict)
    """By operation."""
    errors: Counter[str] = field(default_factory=Counter)
    """Requests that certainly had no effect, or only read, by reason."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Writes that failed and may have been applied, by reason: neither successes nor failures."""
    warmup_failures: Counter[str] = field(default_factory=Counter)
    lag: Histogram = field(default_factory=Histogram)
    """Open loop: how much later than due a request was sent. That part of a latency is the driver's, or
    comes of `outstanding_max`."""
    begin_ns: int = 0
    """The window."""
    end_ns: int = FOREVER_NS
    last_end_ns: int = 0

    def succeeded(self, op: str, begun_ns: int, ended_ns: int) -> None:
        if self.begin_ns <= ended_ns < self.end_ns:
            self.ok[op] += 1
        if self.begin_ns <= begun_ns < self.end_ns:
            histogram = self.latency.get(op)
            if histogram is None:
                histogram = self.latency[op] = Histogram()
            histogram.record((ended_ns - begun_ns) // 1000)
        self.last_end_ns = max(self.last_end_ns, ended_ns)

    def failed(self, failure: RequestFailed, ended_ns: int) -> None:
        if ended_ns < self.begin_ns:
            self.warmup_failures[failure.reason] += 1
        else:
            (self.unknown if failure.may_have_applied else self.errors)[failure.reason] += 1

    def add(self, other: Tally) -> None:
        self.ok += other.ok
        for op, histogram in other.latency.items():
            self.latency.setdefault(op, Histogram()).add(histogram)
        self.errors += other.errors
        self.unknown += other.unknown
        self.warmup_failures += other.warmup_failures
        self.lag.add(other.lag)

    @property
    def ok_total(self) -> int:
        return self.ok.total()

    @property
    def failed_total(self) -> int:
        return self.errors.total() + self.unknown.total()


async def run_closed(
    next_request: Callable[[], Request],
    sends: list[Send],
    tally: Tally,
    *,
    warmup_s: float,
    duration_s: float,
    count: int = 0,
    now_ns: Now = time.perf_counter_ns,
) -> float:
    """Keep one request in flight for each of `sends`. Return the seconds that throughput is divided by.

    With `count`, so many requests follow the warm-up, and take as long as they take.
    """
    if count and warmup_s:
        warming = Tally()
        await run_closed(next_request, sends, warming, warmup_s=0.0, duration_s=warmup_s, now_ns=now_ns)
        tally.warmup_failures += warming.errors + warming.unknown + warming.warmup_failures
        warmup_s = 0.0
    tally.begin_ns = now_ns() + round(warmup_s * NS_PER_S)
    tally.end_ns = FOREVER_NS if count else tally.begin_ns + round(duration_s * NS_PER_S)
    left = count or FOREVER_NS

    async def keep_one_in_flight(send: Send) -> None:
        nonlocal left
        while left:
            left -= 1
            begun_ns = now_ns()
            if begun_ns >= tally.end_ns:
                return
            request = next_request()
            try:
                await send(request)
            except RequestFailed as failure:
                tally.failed(failure, now_ns())
                await asyncio.sleep(FAILURE_PAUSE_S)
            else:
                tally.succeeded(request.op, begun_ns, now_ns())

    async with asyncio.TaskGroup() as group:
        for send in sends:
            group.create_task(keep_one_in_flight(send))
    return (now_ns() - tally.begin_ns) / NS_PER_S if count else duration_s


async def run_open(
    next_request: Callable[[], Request],
    sends: list[Send],
    tally: Tally,
    *,
    rate_per_s: float,
    outstanding_max: int,
    warmup_s: float,
    duration_s: float,
    timeout_s: float,
    count: int = 0,
    phase: float = 0.0,
    now_ns: Now = time.perf_counter_ns,
) -> float:
    """Send requests when they are due, over `sends` in turn. Return the seconds to divide throughput by.

    `phase`, from 0 to 1, shifts the schedule within one interval, so that several processes interleave.
    """
    interval_ns = NS_PER_S / rate_per_s
    warmups = round(rate_per_s * warmup_s)
    total = warmups + (count or max(1, round(rate_per_s * duration_s)))
    first_ns = now_ns() + round(phase * interval_ns)
    tally.begin_ns = first_ns + round(warmups * interval_ns)
    window_end_ns = first_ns + round(total * interval_ns)
    tally.end_ns = FOREVER_NS if count else window_end_ns
    give_up_ns = window_end_ns + round(timeout_s * NS_PER_S)
    slot_free = asyncio.Event()
    outstanding = number = sent_at_once = 0

    async def one(send: Send, request: Request, due_ns: int) -> None:
        nonlocal outstanding
        try:
            await send(request)
        except RequestFailed as failure:
            tally.failed(failure, now_ns())
        else:
            tally.succeeded(request.op, due_ns, now_ns())
        outstanding -= 1
        slot_free.set()

    async with asyncio.TaskGroup() as group:  # its end waits for all of them
        while number < total:
            due_ns = first_ns + round(number * interval_ns)
            at_ns = now_ns()
            if at_ns < due_ns or sent_at_once >= SENT_AT_ONCE_MAX:
                sent_at_once = 0
                await asyncio.sleep(max(0, due_ns - at_ns) / NS_PER_S)
            elif outstanding >= outstanding_max:
                slot_free.clear()
                try:
                    await asyncio.wait_for(slot_free.wait(), max(0, give_up_ns - at_ns) / NS_PER_S)
                except TimeoutError:
                    break
            else:
                if due_ns >= tally.begin_ns:
                    tally.lag.record((at_ns - due_ns) // 1000)
                outstanding += 1
                group.create_task(one(sends[number % len(sends)], next_request(), due_ns))
                number += 1
                sent_at_once += 1
        if number < total:
            reason = f"not sent within {timeout_s:g} s of the end, with {outstanding_max} outstanding"
            tally.errors[reason] += total - max(number, warmups)
    window_s = (window_end_ns - tally.begin_ns) / NS_PER_S
    return max(window_s, (tally.last_end_ns - tally.begin_ns) / NS_PER_S) if count else window_s

"""Closed and open loop on a virtual clock, against a server that stalls when it is told to."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.histogram import Histogram
from bench.loops import RequestFailed, Tally, run_closed, run_open
from bench.workload import Request

from .virtual_loop import now_ns, run_virtually

PUT = Request("put", "", b"")
GET = Request("get", "", b"")


@dataclass
class Server:
    """Answers after `service_s`, or `service_s` after the end of a stall that it meets."""

    service_s: float = 0.001
    stalls: list[tuple[float, float]] = field(default_factory=list)
    """Begin and end of each, in seconds."""
    failure: RequestFailed | None = None
    fails_from_s: float = 0.0
    arrivals_s: list[float] = field(default_factory=list)
    waiting: int = 0
    waiting_max: int = 0

    async def send(self, _: Request) -> None:
        loop = asyncio.get_running_loop()
        self.arrivals_s.append(loop.time())
        self.waiting += 1
        self.waiting_max = max(self.waiting, self.waiting_max)
        for begin_s, end_s in self.stalls:
            if begin_s <= loop.time() < end_s:
                await asyncio.sleep(end_s - loop.time())
        await asyncio.sleep(self.service_s)
        self.waiting -= 1
        if self.failure is not None and loop.time() >= self.fails_from_s:
            raise self.failure


def closed(
    server: Server, *, in_flight: int = 1, seconds: float = 10.0, warmup_s: float = 0.0, count: int = 0
) -> tuple[Tally, float]:
    tally = Tally()
    sends = [server.send] * in_flight
    run = run_closed(
        lambda: PUT, sends, tally, warmup_s=warmup_s, duration_s=seconds, count=count, now_ns=now_ns
    )
    return tally, run_virtually(run)


def opened(
    server: Server,
    *,
    rate: float = 100.0,
    seconds: float = 10.0,
    warmup_s: float = 0.0,
    count: int = 0,
    outstanding_max: int = 10_000,
    timeout_s: float = 5.0,
) -> tuple[Tally, float]:
    tally = Tally()
    run = run_open(
        lambda: PUT,
        [server.send],
        tally,
        rate_per_s=rate,
        outstanding_max=outstanding_max,
        warmup_s=warmup_s,
        duration_s=seconds,
        timeout_s=timeout_s,
        count=count,
        now_ns=now_ns,
    )
    return tally, run_virtually(run)


def latency(tally: Tally) -> Histogram:
    return tally.latency["put"]


# A stall


def test_a_stall_shows_in_the_percentiles_of_the_open_loop_and_not_of_the_closed() -> None:
    """A second's stall in ten: a tenth of all clients with a schedule of their own would have met it."""
    stall = [(5.0, 6.0)]
    without, _ = closed(Server(stalls=stall), in_flight=4)
    with_all, _ = opened(Server(stalls=stall), rate=100)
    assert latency(without).quantile(0.99) < 2_000
    assert latency(without).max_us > 900_000
    assert 880_000 < latency(with_all).quantile(0.99) < 1_010_000
    assert latency(with_all).quantile(0.89) < 2_000
    assert 480_000 < latency(with_all).quantile(0.95) < 520_000


def test_what_waits_for_a_free_place_has_its_clock_running() -> None:
    """The bound on what is outstanding must not bring the omission back."""
    server = Server(stalls=[(5.0, 6.0)])
    tally, _ = opened(server, outstanding_max=10)
    assert server.waiting_max == 10
    assert 880_000 < latency(tally).quantile(0.99) < 1_010_000
    assert tally.lag.max_us > 880_000
    assert tally.failed_total == 0


# The schedule of the open loop


def test_requests_are_sent_when_they_are_due() -> None:
    server = Server()
    tally, seconds = opened(server, rate=50, seconds=2.0)
    assert server.arrivals_s == pytest.approx([i / 50 for i in range(100)], abs=1e-6)
    assert seconds == 2.0
    assert tally.lag.max_us <= 1
    assert tally.ok_total == 100


def test_the_warm_up_is_on_the_same_schedule_and_not_counted() -> None:
    server = Server()
    tally, seconds = opened(server, rate=50, seconds=2.0, warmup_s=1.0)
    assert len(server.arrivals_s) == 150
    assert (latency(tally).count, tally.ok_total, seconds) == (100, 100, 2.0)


def test_an_open_loop_by_count() -> None:
    server = Server(service_s=0.5)
    tally, seconds = opened(server, rate=50, count=25)
    assert (len(server.arrivals_s), tally.ok_total) == (25, 25)
    assert seconds == pytest.approx(24 / 50 + 0.5)


def test_an_overloaded_server_is_not_flattered() -> None:
    """One that makes 100 a second is asked for 200: the backlog grows, and what is never sent is an error."""
    server = Server(service_s=0.01)
    tally, _ = opened(server, rate=200, seconds=10.0, outstanding_max=1, timeout_s=3.0)
    assert tally.ok_total == pytest.approx(1000, abs=2)
    assert latency(tally).count + tally.failed_total == 2000
    (reason,) = tally.errors
    assert reason.startswith("not sent")
    assert latency(tally).max_us > 6_000_000


@given(
    stalls=st.lists(
        st.tuples(st.floats(0.0, 3.0), st.floats(0.0, 2.0)).map(lambda pair: (pair[0], pair[0] + pair[1])),
        max_size=3,
    ),
    rate=st.sampled_from([1.0, 7.0, 33.0]),
    outstanding_max=st.integers(1, 20),
    timeout_s=st.floats(0.0, 2.0),
    warmup_s=st.sampled_from([0.0, 1.0]),
)
def test_no_request_that_was_due_is_left_out(
    stalls: list[tuple[float, float]], rate: float, outstanding_max: int, timeout_s: float, warmup_s: float
) -> None:
    server = Server(stalls=stalls)
    tally, _ = opened(
        server,
        rate=rate,
        seconds=3.0,
        warmup_s=warmup_s,
        outstanding_max=outstanding_max,
        timeout_s=timeout_s,
    )
    counted = latency(tally).count if tally.latency else 0
    assert counted + tally.failed_total == round(3 * rate)
    assert server.waiting_max <= outstanding_max


# What is counted


def test_a_closed_loop_keeps_so_many_in_flight() -> None:
    server = Server(service_s=0.1)
    tally, seconds = closed(server, in_flight=5, seconds=2.0)
    assert server.waiting_max == 5
    assert tally.ok_total / seconds == pytest.approx(50, abs=3)


def test_a_closed_loop_by_count_makes_exactly_as_many() -> None:
    server = Server(service_s=0.1)
    tally, seconds = closed(server, in_flight=4, count=10, warmup_s=0.5)
    assert (tally.ok_total, latency(tally).count) == (10, 10)
    assert seconds == pytest.approx(0.3)


def test_what_ends_after_the_window_is_latency_and_not_throughput() -> None:
    tally, _ = closed(Server(stalls=[(0.95, 3.0)]), seconds=1.0)
    assert latency(tally).count == tally.ok_total + 1
    assert latency(tally).max_us > 2_000_000


def test_failures_are_not_throughput_and_unknown_is_not_failed() -> None:
    unknown = RequestFailed("UNAVAILABLE: x", may_have_applied=True)
    refused = RequestFailed("NOT_FOUND: y", may_have_applied=False)
    for failure, (errors, unknowns) in ((unknown, (0, 1)), (refused, (1, 0))):
        for tally, _ in (
            closed(Server(failure=failure), seconds=1.0),
            opened(Server(failure=failure), seconds=1.0),
        ):
            assert tally.ok_total == 0
            assert not tally.latency
            assert bool(tally.errors.total()) == bool(errors)
            assert bool(tally.unknown.total()) == bool(unknowns)


def test_failures_of_the_warm_up_are_told_apart() -> None:
    failure = RequestFailed("UNAVAILABLE: x", may_have_applied=True)

    class Recovers(Server):
        async def send(self, request: Request) -> None:
            self.failure = failure if asyncio.get_running_loop().time() < 0.5 else None
            await super().send(request)

    for tally, _ in (
        closed(Recovers(), seconds=1.0, warmup_s=1.0),
        closed(Recovers(), count=100, warmup_s=1.0),
        opened(Recovers(), seconds=1.0, warmup_s=1.0),
    ):
        assert tally.warmup_failures.total() > 10
        assert tally.failed_total == 0
        assert tally.ok_total > 10


def test_a_closed_loop_pauses_after_a_failure() -> None:
    server = Server(service_s=0.0, failure=RequestFailed("UNAVAILABLE: refused", may_have_applied=True))
    closed(server, seconds=1.0)
    assert len(server.arrivals_s) <= 101


def test_operations_are_counted_apart_and_add_up_over_processes() -> None:
    one, other = Tally(end_ns=1000), Tally(end_ns=1000)
    one.succeeded(PUT.op, 0, 10)
    one.succeeded(GET.op, 0, 20)
    other.succeeded(GET.op, 0, 30)
    other.failed(RequestFailed("x", may_have_applied=False), 40)
    one.add(other)
    assert one.ok == {"put": 1, "get": 2}
    assert one.latency["get"].count == 2
    assert one.errors == {"x": 1}


def test_a_defect_of_the_driver_is_no_failed_request() -> None:
    class Broken(Server):
        async def send(self, request: Request) -> None:
            raise ZeroDivisionError

    for run in (closed, opened):
        with pytest.raises(ExceptionGroup):
            run(Broken())

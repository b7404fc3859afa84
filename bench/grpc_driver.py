"""The load generator in Python: any keys, any mix, both loops, every status; 250 to 400 us of CPU a request.

So one process makes some 3,000 requests a second at most, which is less than a cluster can serve.
More processes help while there are idle cores, and `h2load_driver` where there are none.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import resource
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Barrier
from typing import Any

import grpc
import grpc.aio

from bench.figures import Figures, Options
from bench.loops import RequestFailed, Send, Tally, run_closed, run_open
from bench.workload import DELETE, PUT, RANGE, TXN, Request, Requests

START_TIMEOUT_S = 30.0
REPORT_S = 0.5
PRELOADS_IN_FLIGHT = 8
CHANNEL_OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),
]
NO_EFFECT = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
"""Codes by which a store refuses a request before it does anything. All others leave a write's outcome open,
unless the server says in a trailer that it was not applied."""


class DriverError(Exception):
    """The measurement could not be made."""


@dataclass(slots=True)
class _Part:
    """What one process saw."""

    tally: Tally
    seconds: float
    cpu_cores: float


def measure(options: Options) -> Figures:
    """Run one measurement. Raises DriverError if it cannot be made."""
    if options.mix.only != "put":
        asyncio.run(_preload(options))
    if options.processes > 1:
        parts = _run_processes(options)
    else:
        tally = Tally()
        with progress(options, lambda: tally.ok_total):
            parts = [_run(options, 0, tally, None)]
    figures = Figures("grpc", options, max(part.seconds for part in parts), Tally())
    for part in parts:
        figures.tally.add(part.tally)
        figures.driver_cores += part.cpu_cores
    figures.driver_cores_max = float(min(options.processes, os.cpu_count() or 1))
    return figures


def unary(channel: grpc.aio.Channel, path: str) -> Callable[..., Awaitable[bytes]]:
    """Return a call that takes and returns serialized messages."""
    return channel.unary_unary(path, request_serializer=None, response_deserializer=None)


def failure_of(error: grpc.aio.AioRpcError, *, writes: bool) -> RequestFailed:
    """Say what a status tells of a request."""
    trailer: Any = error.trailing_metadata() or ()
    is_told = ("quorumlog-applied", "no") in tuple(trailer)
    certain = is_told or error.code() in NO_EFFECT
    return RequestFailed(f"{error.code().name}: {error.details()}", may_have_applied=writes and not certain)


def _requests(options: Options, seed: int) -> Requests:
    return Requests(
        options.mix,
        options.keys,
        options.value_size,
        range_keys=options.range_keys,
        serializable=options.serializable,
        seed=seed,
    )


async def _preload(options: Options) -> None:
    """Put every key once, so that gets find something."""
    bodies = _requests(options, options.seed).preload()

    async def put_next(txn: Any) -> None:
        for body in bodies:
            await txn(body, timeout=options.timeout_s)

    async with grpc.aio.insecure_channel(options.endpoints[0], options=CHANNEL_OPTIONS) as channel:
        txn = unary(channel, TXN)
        try:
            await asyncio.gather(*(put_next(txn) for _ in range(PRELOADS_IN_FLIGHT)))
        except grpc.aio.AioRpcError as error:
            raise DriverError(
                f"{options.endpoints[0]}: the keys could not be put: {error.code().name}: {error.details()}"
            ) from None


# Several processes


def _run_processes(options: Options) -> list[_Part]:
    # Spawned, not forked: gRPC's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(options.processes)
    counted = context.Array("q", options.processes)
    pipes = []
    processes = []
    for number in range(options.processes):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_child, args=(options, number, barrier, theirs, counted), daemon=True
        )
        process.start()
        theirs.close()
        processes.append(process)
        pipes.append(ours)
    try:
        with progress(options, lambda: sum(counted[:])):
            answers = [answer for pipe in _as_they_come(pipes) for answer in [_receive(pipe)]]
    finally:
        for process in processes:
            process.join(START_TIMEOUT_S)
            if process.is_alive():
                process.kill()
    reasons = [answer for answer in answers if isinstance(answer, str)]
    if reasons:
        raise DriverError(reasons[0])
    return [answer for answer in answers if isinstance(answer, _Part)]


def _as_they_come(pipes: list[Connection]) -> Iterator[Connection]:
    left: list[Any] = list(pipes)
    while left:
        for pipe in wait(left):
            left.remove(pipe)
            yield pipe  # type: ignore[misc] # only connections were waited for


def _receive(pipe: Connection) -> _Part | str:
    try:
        answer: _Part | str = pipe.recv()
        return answer
    except EOFError:
        return "a process of the load generator died"


def _child(options: Options, number: int, barrier: Barrier, pipe: Connection, counted: Any) -> None:
    tally = Tally()
    ended = threading.Event()

    def report() -> None:
        while not ended.wait(REPORT_S):
            counted[number] = tally.ok_total

    reporter = threading.Thread(target=report, daemon=True)
    reporter.start()
    try:
        pipe.send(_run(options, number, tally, barrier))
    except DriverError as error:
        barrier.abort()
        pipe.send(str(error))
    except threading.BrokenBarrierError:
        pipe.send(f"not all {options.processes} processes were connected within {START_TIMEOUT_S:g} s")
    finally:
        ended.set()
        reporter.join()


# Progress


@contextmanager
def progress(options: Options, ok_total: Callable[[], int] | None) -> Iterator[None]:
    """Say on standard error how a long run goes, from a thread: the loop is busy. `ok_total`: if known."""
    ended = threading.Event()

    def speak() -> None:
        begun_s = time.monotonic()
        before = 0
        while not ended.wait(options.progress_s):
            line = f"{options.mix}, {options.load}: {time.monotonic() - begun_s:,.0f} s"
            if ok_total is not None:
                now = ok_total()
                line += f", {now:,} done, {(now - before) / options.progress_s:,.0f}/s"
                before = now
            print(line, file=sys.stderr, flush=True)

    if not options.progress_s:
        yield
        return
    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield
    finally:
        ended.set()
        speaker.join()


# One process


def _run(options: Options, number: int, tally: Tally, barrier: Barrier | None) -> _Part:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_drive(options, number, tally, barrier))


def share(total: int, parts: int, number: int) -> int:
    """Return how many of `total` the part with this number gets."""
    return total // parts + (number < total % parts)


async def _drive(options: Options, number: int, tally: Tally, barrier: Barrier | None) -> _Part:
    connections = max(1, share(options.connections, options.processes, number))
    channels = [
        grpc.aio.insecure_channel(
            options.endpoints[(number + i) % len(options.endpoints)], options=CHANNEL_OPTIONS
        )
        for i in range(connections)
    ]
    try:
        await _connect(channels, options)
        if barrier is not None:
            barrier.wait(START_TIMEOUT_S)
        begun_s, cpu_s = time.monotonic(), _cpu_s()
        seconds = await _load(options, number, tally, [_sender(one, options) for one in channels])
        cores = (_cpu_s() - cpu_s) / (time.monotonic() - begun_s)
        return _Part(tally, seconds, cores)
    finally:
        for channel in channels:
            await channel.close(None)


async def _connect(channels: Iterable[grpc.aio.Channel], options: Options) -> None:
    ready = asyncio.gather(*(one.channel_ready() for one in channels))
    try:
        await asyncio.wait_for(ready, options.timeout_s)
    except TimeoutError:
        endpoints = ", ".join(options.endpoints)
        raise DriverError(f"no connection within {options.timeout_s:g} s to {endpoints}") from None


async def _load(options: Options, number: int, tally: Tally, senders: list[Send]) -> float:
    requests = _requests(options, options.seed + 1 + number)
    count = share(options.count, options.processes, number)
    if options.is_open:
        return await run_open(
            requests,
            senders,
            tally,
            rate_per_s=options.rate_per_s / options.processes,
            outstanding_max=max(1, share(options.outstanding_max, options.processes, number)),
            warmup_s=options.warmup_s,
            duration_s=options.duration_s,
            timeout_s=options.timeout_s,
            count=count,
            phase=number / options.processes,
        )
    in_flight = share(options.in_flight, options.processes, number)
    return await run_closed(
        requests,
        [senders[i % len(senders)] for i in range(in_flight)],
        tally,
        warmup_s=options.warmup_s,
        duration_s=options.duration_s,
        count=count,
    )


def _sender(channel: grpc.aio.Channel, options: Options) -> Send:
    calls = {path: unary(channel, path) for path in (PUT, RANGE, TXN, DELETE)}

    async def send(request: Request) -> None:
        try:
            await calls[request.path](request.body, timeout=options.timeout_s)
        except grpc.aio.AioRpcError as error:
            raise failure_of(error, writes=request.writes) from None

    return send


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime

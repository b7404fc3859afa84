"""The load generator in Python: any keys, any mix, every status seen; 250 to 400 us of CPU a request.

So one process makes some 3,000 requests a second at most, which is less than a cluster can serve.
More processes help while there are idle cores, and `h2load_driver` where there are none.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import resource
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier

import grpc
import grpc.aio

from bench.figures import Figures, Options
from kvstore.pb.rpc_pb2 import PutRequest, RangeRequest, RequestOp, TxnRequest

PUT, RANGE, TXN = ("/etcdserverpb.KV/" + name for name in ("Put", "Range", "Txn"))
PRELOAD_BATCH = 100
START_TIMEOUT_S = 20.0


@dataclass(slots=True)
class _Tally:
    latencies_us: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    cpu_s: float = 0.0
    measuring: bool = False
    stop: bool = False
    left: int = 0
    """Requests still to be begun, if a count was given."""


def measure(options: Options) -> Figures:
    """Run one measurement. Raises grpc.RpcError if the keys cannot be prepared."""
    if options.op != "put":
        asyncio.run(_preload(options))
    tallies = _run_processes(options) if options.processes > 1 else [_run(options, 0, None)]
    figures = Figures("grpc", options, max(tally.seconds for tally in tallies), [])
    for tally in tallies:
        figures.latencies_us += tally.latencies_us
        figures.errors += tally.errors
        figures.unknown += tally.unknown
        figures.driver_cores += tally.cpu_s / tally.seconds
    figures.driver_cores_max = float(min(options.processes, os.cpu_count() or 1))
    return figures


def key(number: int) -> bytes:
    return b"bench/%08d" % number


async def _preload(options: Options) -> None:
    value = os.urandom(options.value_bytes)
    async with grpc.aio.insecure_channel(options.endpoints[0]) as channel:
        txn = channel.unary_unary(TXN, request_serializer=TxnRequest.SerializeToString)
        for low in range(0, options.keys, PRELOAD_BATCH):
            numbers = range(low, min(low + PRELOAD_BATCH, options.keys))
            puts = [RequestOp(request_put=PutRequest(key=key(i), value=value)) for i in numbers]
            await txn(TxnRequest(success=puts), timeout=options.timeout_s)


def _run_processes(options: Options) -> list[_Tally]:
    # Spawned, not forked: gRPC's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(options.processes)
    started = []
    for number in range(options.processes):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_child, args=(options, number, barrier, theirs), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
    tallies = [pipe.recv() for _, pipe in started]
    for process, _ in started:
        process.join()
    return tallies


def _child(options: Options, number: int, barrier: Barrier, pipe: Connection) -> None:
    pipe.send(_run(options, number, barrier))


def _run(options: Options, number: int, barrier: Barrier | None) -> _Tally:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_drive(options, number, barrier))


def _share(total: int, parts: int, number: int) -> int:
    return total // parts + (number < total % parts)


async def _drive(options: Options, number: int, barrier: Barrier | None) -> _Tally:
    loops = _share(options.in_flight, options.processes, number)
    connections = max(1, _share(options.connections, options.processes, number))
    channels = [
        grpc.aio.insecure_channel(
            options.endpoints[(number + i) % len(options.endpoints)],
            options=[("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)],
        )
        for i in range(connections)
    ]
    try:
        ready = asyncio.gather(*(one.channel_ready() for one in channels))
        try:
            await asyncio.wait_for(ready, options.timeout_s)
        except TimeoutError:
            raise TimeoutError(
                f"no connection within {options.timeout_s:g} s to {options.endpoints}"
            ) from None
        if barrier is not None:
            barrier.wait(START_TIMEOUT_S)
        tally = _Tally()
        rng = random.Random(number)
        tasks = [
            asyncio.create_task(_loop(channels[i % connections], options, tally, rng)) for i in range(loops)
        ]
        await asyncio.sleep(options.warmup_s)
        tally.left = _share(options.count, options.processes, number)
        begun_s, cpu_s = time.monotonic(), _cpu_s()
        tally.measuring = True
        if options.count:
            await asyncio.gather(*tasks)
        else:
            await asyncio.sleep(options.duration_s)
        tally.seconds, tally.cpu_s = time.monotonic() - begun_s, _cpu_s() - cpu_s
        tally.measuring, tally.stop = False, True
        await asyncio.gather(*tasks)
        return tally
    finally:
        for channel in channels:
            await channel.close()


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def _loop(channel: grpc.aio.Channel, options: Options, tally: _Tally, rng: random.Random) -> None:
    put = channel.unary_unary(PUT, request_serializer=PutRequest.SerializeToString)
    get = channel.unary_unary(RANGE, request_serializer=RangeRequest.SerializeToString)
    value = rng.randbytes(options.value_bytes)
    while not tally.stop:
        counted = tally.measuring
        if counted and options.count:
            if not tally.left:
                return
            tally.left -= 1
        name = key(rng.randrange(options.keys))
        writes = options.op == "put" or (options.op == "mixed" and rng.random() < 0.5)
        begun_ns = time.perf_counter_ns()
        try:
            if writes:
                await put(PutRequest(key=name, value=value), timeout=options.timeout_s)
            else:
                request = RangeRequest(key=name, serializable=options.serializable)
                await get(request, timeout=options.timeout_s)
        except grpc.aio.AioRpcError as error:
            if counted:
                applied = dict(error.trailing_metadata() or ()).get("quorumlog-applied")
                failed = tally.unknown if writes and applied != "no" else tally.errors
                failed[f"{error.code().name}: {error.details()}"] += 1
            await asyncio.sleep(0.01)  # a refused connection must not become a busy loop
            continue
        # What ends after the window does not count, or a slow tail would be flattered by what follows.
        if counted and (tally.measuring or options.count):
            tally.latencies_us.append((time.perf_counter_ns() - begun_ns) / 1000)

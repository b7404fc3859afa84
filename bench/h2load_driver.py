"""h2load (Debian's nghttp2-client) as the load generator: some 10 us of CPU a request.

Its limits, since it knows HTTP/2 but not gRPC:

* It sends one request body over and over. So a run puts, or gets, one key; and a mixed load is two
  processes side by side, one that puts and one that gets, each with half of what is in flight. (So the
  shares of what is in flight are fixed, and those of what is answered are the server's.)
* It counts an HTTP status 200 as a success, which an error of gRPC has too. But such an error has no body:
  the bytes of the replies must be as many as those of one reply, asked for beforehand, times their number.
  And after puts the store's revision must have grown by their number. What is missing is reported.
* A write that failed and one of unknown outcome look the same to it: both are counted as unknown.
* When the time is over it drops what is in flight, uncounted: at most one latency for each place in flight.
* Closed loop only. It has an option for a rate, but a latency counts from when a request was sent, not from
  when it was due; see bench/loops.py on what that hides.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio

from bench.figures import Figures, Options
from bench.grpc_driver import DriverError, progress, share, unary
from bench.histogram import Histogram
from bench.loops import Tally
from bench.workload import PUT, RANGE, VALUE_BYTES_MAX, key
from kvstore.pb.rpc_pb2 import PutRequest, PutResponse, RangeRequest

HOW_TO_INSTALL = "h2load is not installed (Debian: apt-get install nghttp2-client); or use --driver grpc"
OPS = frozenset({"put", "get"})

_TOTALS = re.compile(r"requests: .* (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout")
_DATA = re.compile(r"traffic: .*\((\d+)\) data")
_FRAME_BYTES = 5
ONE_KEY = "one key, since h2load sends one request body a run"
SILENCE_S_MAX = 0.5
"""Without any reply before the end of a run by time, above which it is said."""
OUTPUT_LINES = 3
"""Of what h2load printed, if it failed."""


def is_installed() -> bool:
    return shutil.which("h2load") is not None


def why_not(options: Options) -> str | None:
    """Return why h2load cannot make this measurement, or None if it can."""
    if options.is_open:
        return "h2load's latencies count from when a request was sent: no open loop with it"
    if not set(options.mix.ops) <= OPS:
        return f"h2load puts and gets, and does not {', '.join(set(options.mix.ops) - OPS)}"
    if len({weight for _, weight in options.mix.shares}) > 1:
        return "h2load mixes puts and gets half and half only"
    if options.in_flight < len(options.mix.ops):
        return "h2load mixes by two processes: at least 2 in flight"
    if options.value_size.low != options.value_size.high:
        return "h2load sends one request body: values of one size only"
    return None


@dataclass(frozen=True, slots=True)
class _Stream:
    """One process of h2load."""

    op: str
    endpoint: str
    in_flight: int
    connections: int
    count: int
    name: str


@dataclass(frozen=True, slots=True)
class _Replies:
    """What the store answers at one moment."""

    revision: int
    bytes_of: dict[str, int]
    """Of the first endpoint."""
    more_of: dict[str, int] = field(default_factory=dict)
    """By how many bytes those of each endpoint are longer, or shorter: an id of a member, which is in each,
    takes eight to ten."""


def measure(options: Options) -> Figures:
    """Run one measurement. Raises ValueError for what h2load cannot do, DriverError if it fails."""
    if not is_installed():
        raise ValueError(HOW_TO_INSTALL)
    reason = why_not(options)
    if reason:
        raise ValueError(f"{reason}; use --driver grpc")
    streams = _streams(options)
    with tempfile.TemporaryDirectory(prefix="bench-load-") as name:
        directory = Path(name)
        asyncio.run(_ask(options))  # so that a failure of the server is not h2load's
        for op in options.mix.ops:
            body = _bodies(options)[op]
            (directory / op).write_bytes(b"\0" + struct.pack(">I", len(body)) + body)
        # The warm-up is a run of its own. The revision is read after it, and must grow by what is counted.
        if options.warmup_s:
            _run(options, directory, streams, options.warmup_s, 0)
        before = asyncio.run(_ask(options))
        cpu_s, begun_s = _children_cpu_s(), time.monotonic()
        with progress(options, None):
            outputs = _run(options, directory, streams, options.duration_s, options.count)
        cores = (_children_cpu_s() - cpu_s) / (time.monotonic() - begun_s)
        after = asyncio.run(_ask(options))
        tally, seconds, silence_s = _read_logs(directory, streams, options)
    _judge(tally, streams, outputs, before, after)
    figures = Figures("h2load", options, seconds, tally)
    figures.driver_cores = cores
    figures.driver_cores_max = float(min(len(streams), os.cpu_count() or 1))
    figures.notes.append(ONE_KEY)
    if silence_s > SILENCE_S_MAX:
        figures.notes.append(
            f"no reply in the last {silence_s:.1f} s; h2load drops what was in flight then, and its latencies"
        )
    return figures


def _streams(options: Options) -> list[_Stream]:
    """Share out the requests in flight: first over the operations, then over the endpoints."""
    streams = []
    ops = options.mix.ops
    for i, op in enumerate(ops):
        of_op = share(options.in_flight, len(ops), i)
        endpoints = options.endpoints[:of_op]
        for j, endpoint in enumerate(endpoints):
            in_flight = share(of_op, len(endpoints), j)
            connections = max(1, min(options.connections // (len(ops) * len(endpoints)), in_flight))
            while in_flight % connections:
                connections -= 1
            count = share(share(options.count, len(ops), i), len(endpoints), j)
            streams.append(
                _Stream(op, endpoint, in_flight, connections, max(count, in_flight), f"log-{op}-{j}")
            )
    return streams


def _bodies(options: Options) -> dict[str, bytes]:
    value = bytes(range(256)) * (VALUE_BYTES_MAX // 256)
    put = PutRequest(key=key(0), value=value[: options.value_size.low])
    get = RangeRequest(key=key(0), serializable=options.serializable)
    return {"put": put.SerializeToString(), "get": get.SerializeToString()}


async def _ask(options: Options) -> _Replies:
    """Put the key once, and get it once from each endpoint."""
    bodies = _bodies(options)
    async with grpc.aio.insecure_channel(options.endpoints[0]) as channel:
        try:
            written = await unary(channel, PUT)(bodies["put"], timeout=options.timeout_s)
            read = await unary(channel, RANGE)(bodies["get"], timeout=options.timeout_s)
        except grpc.aio.AioRpcError as error:
            raise DriverError(f"{options.endpoints[0]}: {error.code().name}: {error.details()}") from None
    more_of = {}
    for endpoint in options.endpoints[1:]:
        async with grpc.aio.insecure_channel(endpoint) as channel:
            try:
                there = await unary(channel, RANGE)(bodies["get"], timeout=options.timeout_s)
            except grpc.aio.AioRpcError as error:
                raise DriverError(f"{endpoint}: {error.code().name}: {error.details()}") from None
            more_of[endpoint] = len(there) - len(read)
    return _Replies(
        PutResponse.FromString(written).header.revision,
        {"put": len(written) + _FRAME_BYTES, "get": len(read) + _FRAME_BYTES},
        more_of,
    )


def _run(
    options: Options, directory: Path, streams: Sequence[_Stream], duration_s: float, count: int
) -> list[str]:
    processes = []
    for stream in streams:
        amount = ["-D", f"{round(duration_s * 1000)}ms"]
        if count:
            # A connection on which nothing comes for so long is given up, or a stalled server would hold us
            # for ever. Not with -D, which ends by itself: there it makes h2load 1.52 abort at the end.
            amount = ["-n", str(stream.count), "-N", f"{max(1, round(options.timeout_s * 1000))}ms"]
        log = directory / stream.name
        log.unlink(missing_ok=True)
        processes.append(
            subprocess.Popen(
                [
                    *("h2load", *amount, "-t", "1"),
                    *("-c", str(stream.connections), "-m", str(stream.in_flight // stream.connections)),
                    *("-d", str(directory / stream.op), f"--log-file={log}"),
                    *("-H", "content-type: application/grpc", "-H", "te: trailers"),
                    f"http://{stream.endpoint}{PUT if stream.op == 'put' else RANGE}",
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate()[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        if process.returncode or not _TOTALS.search(output):
            last_words = " / ".join(output.strip().splitlines()[-OUTPUT_LINES:])
            raise DriverError(f"h2load failed, status {process.returncode}: {last_words}")
    return outputs


def _read_logs(directory: Path, streams: Sequence[_Stream], options: Options) -> tuple[Tally, float, float]:
    """Return what was counted, the seconds of the window, and those at its end in which no reply came.

    A line of h2load's log: start in us, HTTP status, us until the end of the reply.
    """
    tally = Tally()
    first_us, last_us = 1 << 62, 0
    for stream in streams:
        histogram = tally.latency.setdefault(stream.op, Histogram())
        with (directory / stream.name).open() as log:
            for line in log:
                start, status, latency = line.split("\t")[:3]
                if status == "200":
                    histogram.record(int(latency))
                    tally.ok[stream.op] += 1
                    first_us = min(first_us, int(start))
                    last_us = max(last_us, int(start) + int(latency))
    used_s = (last_us - first_us) / 1e6 if tally.ok else 0.0
    if options.count and tally.ok:
        return tally, used_s, 0.0
    return tally, options.duration_s, options.duration_s - used_s


def _judge(
    tally: Tally, streams: Sequence[_Stream], outputs: Sequence[str], before: _Replies, after: _Replies
) -> None:
    """Find the errors, and those that h2load took for successes: these are no successes after all."""
    for op in {stream.op for stream in streams}:
        failed = tally.unknown if op == "put" else tally.errors
        done = empty = 0
        for stream, output in zip(streams, outputs, strict=True):
            if stream.op != op:
                continue
            totals, data = _TOTALS.search(output), _DATA.search(output)
            assert totals is not None and data is not None
            done += int(totals[1])
            # A reply grows by a byte now and then, with the revision in it. Divided by the smallest, the
            # bytes are those of at least so many replies; by the largest, of at most so many.
            smallest = min(one.bytes_of[op] + one.more_of.get(stream.endpoint, 0) for one in (before, after))
            empty += max(0, int(totals[1]) - int(data[1]) // smallest)
            for name, count in (("failed", totals[3]), ("errored", totals[4]), ("timeout", totals[5])):
                if int(count):
                    failed[f"h2load: {name}"] += int(count)
        if empty:
            failed["reply without a body: a gRPC error"] += empty
        lost = done - (after.revision - before.revision - 1) if op == "put" else 0
        if lost > empty:
            failed["answered, but the revision did not grow by it"] += lost - empty
        tally.ok[op] -= max(empty, lost)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime

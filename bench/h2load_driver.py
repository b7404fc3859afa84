"""h2load (Debian's nghttp2-client) as the load generator: some 10 us of CPU a request.

Its limits, since it knows HTTP/2 but not gRPC:

* It sends one request body over and over. So a run puts, or gets, one key.
* It counts an HTTP status 200 as a success, which an error of gRPC has too. So after a run of puts the
  store's revision must have grown by the number of replies, and the bytes of the replies must be
  as many as one reply, asked for beforehand, times their number; what is missing is reported as errors.
* A write that failed and one of unknown outcome look the same to it: both are counted as unknown.
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
from pathlib import Path

import grpc.aio

from bench.figures import Figures, Options
from bench.grpc_driver import PUT, RANGE, key
from kvstore.pb.rpc_pb2 import PutRequest, PutResponse, RangeRequest

_TOTALS = re.compile(r"requests: .* (\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout")
_DATA = re.compile(r"traffic: .*\((\d+)\) data")
REPLY_BYTES_SLACK = 0.97
"""A reply of varying size (the revision is a varint) is still a reply; an error has no body at all."""


def is_installed() -> bool:
    return shutil.which("h2load") is not None


def measure(options: Options) -> Figures:
    """Run one measurement. Raises ValueError for what h2load cannot do, RuntimeError if it fails."""
    if options.op == "mixed":
        raise ValueError("h2load sends one request body a run: no mixed load; use --driver grpc")
    targets = options.endpoints[: options.in_flight]
    with tempfile.TemporaryDirectory(prefix="bench-load-") as name:
        directory = Path(name)
        body, reply_bytes, revision = asyncio.run(_prepare(options))
        (directory / "body").write_bytes(b"\0" + struct.pack(">I", len(body)) + body)
        if options.count:
            _run(options, directory, targets, max(options.count // 10, options.in_flight))
        cpu_s, begun_s = _children_cpu_s(), time.monotonic()
        outputs = _run(options, directory, targets, options.count)
        cores = (_children_cpu_s() - cpu_s) / (time.monotonic() - begun_s)
        grown = asyncio.run(_prepare(options))[2] - revision - 1
        latencies, seconds = _read_logs(directory, len(targets), options)
    figures = Figures("h2load", options, seconds, latencies)
    figures.driver_cores = cores
    figures.driver_cores_max = float(min(len(targets), os.cpu_count() or 1))
    figures.notes.append("one key, since h2load sends one request body a run")
    _judge(figures, outputs, reply_bytes, grown)
    return figures


async def _prepare(options: Options) -> tuple[bytes, int, int]:
    """Put the key once; return the body to send, the size of a reply to it, and the revision."""
    put = PutRequest(key=key(0), value=bytes(range(256)) * (options.value_bytes // 256 + 1))
    put.value = put.value[: options.value_bytes]
    get = RangeRequest(key=key(0), serializable=options.serializable)
    async with grpc.aio.insecure_channel(options.endpoints[0]) as channel:
        written = await channel.unary_unary(
            PUT,
            request_serializer=PutRequest.SerializeToString,
            response_deserializer=PutResponse.FromString,
        )(put, timeout=options.timeout_s)
        read = await channel.unary_unary(RANGE)(get.SerializeToString(), timeout=options.timeout_s)
    if options.op == "put":
        return put.SerializeToString(), written.ByteSize() + 5, written.header.revision
    return get.SerializeToString(), len(read) + 5, written.header.revision


def _run(options: Options, directory: Path, targets: Sequence[str], count: int) -> list[str]:
    processes = []
    for number, endpoint in enumerate(targets):
        in_flight = options.in_flight // len(targets) + (number < options.in_flight % len(targets))
        connections = max(1, min(options.connections // len(targets), in_flight))
        while in_flight % connections:
            connections -= 1
        amount = (
            ["-n", str(max(count // len(targets), in_flight))]
            if count
            else ["-D", f"{options.duration_s:g}", f"--warm-up-time={options.warmup_s:g}"]
        )
        log = directory / f"log{number}"
        log.unlink(missing_ok=True)
        processes.append(
            subprocess.Popen(
                [
                    *("h2load", *amount, "-t", "1"),
                    *("-c", str(connections), "-m", str(in_flight // connections)),
                    *("-d", str(directory / "body"), f"--log-file={log}"),
                    *("-H", "content-type: application/grpc", "-H", "te: trailers"),
                    f"http://{endpoint}{PUT if options.op == 'put' else RANGE}",
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate()[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        if process.returncode or not _TOTALS.search(output):
            raise RuntimeError(f"h2load failed:\n{output}")
    return outputs


def _read_logs(directory: Path, targets: int, options: Options) -> tuple[list[float], float]:
    """h2load's log has the measured phase alone: start in us, status, us until the end of the reply."""
    latencies: list[float] = []
    first_us, last_us = 1 << 62, 0
    for number in range(targets):
        with (directory / f"log{number}").open() as log:
            for line in log:
                start, status, latency = line.split("\t")
                if status == "200":
                    latencies.append(float(latency))
                    first_us = min(first_us, int(start))
                    last_us = max(last_us, int(start) + int(latency))
    seconds = (last_us - first_us) / 1e6 if options.count and latencies else options.duration_s
    return latencies, seconds


def _judge(figures: Figures, outputs: Sequence[str], reply_bytes: int, grown: int) -> None:
    """Find the errors that h2load took for successes."""
    failed = figures.unknown if figures.options.op == "put" else figures.errors
    done = data_bytes = 0
    for output in outputs:
        totals, data = _TOTALS.search(output), _DATA.search(output)
        assert totals is not None and data is not None
        done += int(totals[1])
        data_bytes += int(data[1])
        for name, count in (("failed", totals[3]), ("errored", totals[4]), ("timeout", totals[5])):
            if int(count):
                failed[f"h2load: {name}"] += int(count)
    answered = data_bytes / reply_bytes
    if answered < REPLY_BYTES_SLACK * done:
        failed["reply without a body: a gRPC error"] += done - int(answered)
    if figures.options.op == "put" and grown < done:
        failed["answered, but the revision did not grow by it"] += done - grown


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime

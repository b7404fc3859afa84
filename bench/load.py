#!/usr/bin/env python3
"""Load on any etcd v3 endpoint: throughput, latency percentiles, failures by kind.

    python bench/load.py --endpoints 127.0.0.1:2379 --op put --in-flight 1,32,256
    python bench/load.py --rate 500 --op put=50,get=45,txn=5 --key-distribution zipf --duration 60
    python bench/load.py --driver h2load --op get --in-flight 256 --json result.json

--in-flight is a closed loop: so many requests are outstanding at any time, and the next is sent when one
returns. When the server stalls, so does the load, and its percentiles hide how long others would have
waited. --rate is an open loop: requests are due at fixed times, and latency counts from then on. Learn from
the closed loop what the server can do, and from the open one how long requests take at less than that.

Drivers: `grpc` (any workload, both loops, but costly) and `h2load` (cheap; closed loop; one key; puts, gets,
or half of each). The cores that the driver used stand beside every figure: where it was busy all the time,
the figure is the driver's, not the server's.

Exit status: 0, 1 if it could not be measured, 2 for wrong arguments, 3 if requests failed or their outcome
is unknown (the figures are printed all the same).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run as a file, this directory is on the path and the project is not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import grpc
import grpc.aio

from bench import grpc_driver, h2load_driver
from bench.conditions import Conditions, sentence
from bench.figures import LOAD_SCHEMA, Figures, Options, table, write_json
from bench.grpc_driver import DriverError
from bench.workload import Keys, Mix, ValueSize
from kvstore.pb.rpc_pb2 import StatusRequest, StatusResponse

STATUS_TIMEOUT_S = 2.0


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what load.py and compare.py have in common."""
    parser.add_argument("--value-bytes", default="256", metavar="N|LOW-HIGH", help="default 256")
    parser.add_argument("--keys", type=int, default=1000, help="how many there are (default 1000)")
    parser.add_argument(
        "--key-distribution",
        default="uniform",
        metavar="uniform|zipf[:EXPONENT]",
        help="how one is chosen (default uniform)",
    )
    parser.add_argument(
        "--duration", type=float, default=5.0, metavar="S", help="measured seconds (default %(default)g)"
    )
    parser.add_argument(
        "--warmup", type=float, default=1.0, metavar="S", help="seconds before that (default 1)"
    )
    parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="of a request (default 10)")
    parser.add_argument("--connections", type=int, default=4, help="in all (default 4)")
    parser.add_argument("--processes", type=int, default=1, help="of the driver grpc (default 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of requests")
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the figures as JSON, too; without FILE to standard output in place of the table",
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--endpoints",
        default=os.environ.get("QUORUMLOG_ENDPOINTS", "127.0.0.1:2379"),
        metavar="HOST:PORT,...",
        help="default QUORUMLOG_ENDPOINTS, else 127.0.0.1:2379",
    )
    parser.add_argument("--driver", choices=("grpc", "h2load"), default="grpc", help="default grpc")
    loop = parser.add_mutually_exclusive_group()
    loop.add_argument(
        "--in-flight",
        default="32",
        metavar="N,...",
        help="closed loop; several are measured in turn (default 32)",
    )
    loop.add_argument("--rate", metavar="N,...", help="open loop: requests a second; several in turn")
    parser.add_argument(
        "--outstanding-max", type=int, default=10_000, metavar="N", help="of the open loop (default 10000)"
    )
    parser.add_argument(
        "--op",
        default="put",
        metavar="OP[=SHARE],...",
        help="put, get, txn, delete, range; mixed is put=50,get=50 (default put)",
    )
    parser.add_argument("--range-keys", type=int, default=10, metavar="N", help="keys a range (default 10)")
    parser.add_argument("--serializable", action="store_true", help="gets and ranges that need no quorum")
    parser.add_argument("--count", type=int, default=0, help="requests in all, in place of --duration")
    parser.add_argument(
        "--progress",
        type=float,
        default=5.0,
        metavar="S",
        help="a line on stderr so often (default 5; 0: none)",
    )
    parser.add_argument(
        "--directory", type=Path, help="where the servers' data lies, if here: its disk is described, too"
    )
    add_load_arguments(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        options = _options(arguments)
        points = _points(arguments, options)
        conditions = Conditions(arguments.directory)
        measured = [measure(arguments.driver, point) for point in points]
        servers = asyncio.run(_server_versions(options.endpoints))
    except (ValueError, DriverError, OSError) as error:
        print(f"load.py: {error}", file=sys.stderr)
        return 1
    report = conditions.report()
    if arguments.json != "-":
        print(table(measured))
        print(sentence(report))
        print("; ".join(f"{endpoint} says it is {version}" for endpoint, version in servers.items()))
    if arguments.json:
        write_json(
            {
                "schema": LOAD_SCHEMA,
                "conditions": {**report, "servers": servers},
                "runs": [figures.summary() for figures in measured],
            },
            arguments.json,
        )
    failed = sum(figures.has_failures for figures in measured)
    if failed:
        print(f"load.py: {failed} of {len(measured)} runs had failures", file=sys.stderr)
    return 3 if failed else 0


def options_from(arguments: argparse.Namespace, endpoints: tuple[str, ...]) -> Options:
    """Read what add_load_arguments has added. Raises ValueError."""
    for name in ("duration", "timeout", "connections", "processes"):
        if getattr(arguments, name) <= 0:
            raise ValueError(f"--{name} must be above 0")
    if arguments.warmup < 0:
        raise ValueError("--warmup must not be below 0")
    return Options(
        endpoints=endpoints,
        keys=Keys.parse(arguments.keys, arguments.key_distribution),
        value_size=ValueSize.parse(arguments.value_bytes),
        connections=arguments.connections,
        processes=arguments.processes,
        duration_s=arguments.duration,
        warmup_s=arguments.warmup,
        timeout_s=arguments.timeout,
        seed=arguments.seed,
    )


def _options(arguments: argparse.Namespace) -> Options:
    words = [word.strip() for word in arguments.endpoints.split(",")]
    endpoints = tuple(word.removeprefix("http://").rstrip("/") for word in words if word)
    if not endpoints:
        raise ValueError("--endpoints names none")
    if (
        min(arguments.count, arguments.progress) < 0
        or min(arguments.outstanding_max, arguments.range_keys) < 1
    ):
        raise ValueError("--count and --progress from 0 up, --outstanding-max and --range-keys from 1 up")
    return replace(
        options_from(arguments, endpoints),
        mix=Mix.parse(arguments.op),
        range_keys=arguments.range_keys,
        serializable=arguments.serializable,
        outstanding_max=arguments.outstanding_max,
        count=arguments.count,
        progress_s=arguments.progress,
    )


def _points(arguments: argparse.Namespace, options: Options) -> list[Options]:
    if arguments.rate is None:
        return [replace(options, in_flight=n) for n in in_flight_list(arguments.in_flight)]
    try:
        rates = [float(word) for word in arguments.rate.split(",")]
    except ValueError:
        rates = [0.0]
    if not 0 < min(rates) <= max(rates) <= 1e6:
        raise ValueError(f"--rate {arguments.rate}: requests a second, above 0, separated by commas")
    return [replace(options, rate_per_s=rate) for rate in rates]


def in_flight_list(text: str) -> list[int]:
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise ValueError(f"--in-flight {text}: numbers from 1 up, separated by commas")
    return numbers


def measure(driver: str, options: Options) -> Figures:
    """Run one measurement with the driver named. Raises ValueError, DriverError."""
    if driver == "h2load":
        return h2load_driver.measure(options)
    if options.processes > (options.in_flight if not options.is_open else options.processes):
        raise ValueError(f"{options.processes} processes for {options.in_flight} in flight")
    return grpc_driver.measure(options)


async def _server_versions(endpoints: Sequence[str]) -> dict[str, str]:
    """Ask each endpoint for its version; quorumlog answers with that of the etcd that it behaves like."""

    async def ask(endpoint: str) -> str:
        async with grpc.aio.insecure_channel(endpoint) as channel:
            call: Any = channel.unary_unary(
                "/etcdserverpb.Maintenance/Status",
                request_serializer=StatusRequest.SerializeToString,
                response_deserializer=StatusResponse.FromString,
            )
            try:
                return str((await call(StatusRequest(), timeout=STATUS_TIMEOUT_S)).version)
            except grpc.aio.AioRpcError as error:
                return f"unknown ({error.code().name})"

    return dict(zip(endpoints, await asyncio.gather(*map(ask, endpoints)), strict=True))


if __name__ == "__main__":
    sys.exit(main())

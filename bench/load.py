#!/usr/bin/env python3
"""Closed-loop load on any etcd v3 endpoint: throughput, latency percentiles, errors by class.

    python bench/load.py --endpoints 127.0.0.1:2379 --op put --in-flight 4,32,256
    python bench/load.py --driver h2load --op get --in-flight 256 -o json

A closed loop keeps `--in-flight` requests outstanding and sends the next when one returns. When a server
stalls, so does the load, and the percentiles do not show what clients with a schedule of their own would
have waited (coordinated omission); for that, look at max.

Drivers: `grpc` (grpcio, any keys and mixes, but costly) and `h2load` (cheap, one key a run); each says
what it cannot see. The share of a core that the driver used is printed beside every figure: a figure at
which the driver is busy is the driver's, not the server's.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":  # run as a file, this directory is on the path and the project is not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import grpc
import grpc.aio

from bench import grpc_driver, h2load_driver
from bench.figures import Figures, Options, as_json, table


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what load.py and run_local.py have in common."""
    parser.add_argument(
        "--in-flight", default="32", help="requests outstanding, or several by commas (default 32)"
    )
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--keys", type=int, default=1000, help="puts and gets choose among so many")
    parser.add_argument("--duration", type=float, default=5.0, metavar="S", help="measured seconds")
    parser.add_argument("--warmup", type=float, default=1.0, metavar="S", help="seconds before that")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--processes", type=int, default=1, help="of the driver grpc (default 1)")
    parser.add_argument("--driver", choices=("grpc", "h2load"), default="grpc")
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--endpoints",
        default=os.environ.get("QUORUMLOG_ENDPOINTS", "127.0.0.1:2379"),
        help="HOST:PORT by commas (default QUORUMLOG_ENDPOINTS, else 127.0.0.1:2379)",
    )
    parser.add_argument("--op", choices=("put", "get", "mixed"), default="put", help="mixed: half and half")
    parser.add_argument("--serializable", action="store_true", help="gets that need no quorum")
    parser.add_argument("--count", type=int, default=0, help="requests in all, in place of --duration")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="of one request")
    add_load_arguments(parser)
    arguments = parser.parse_args(argv)
    options = options_from(
        arguments,
        tuple(one.strip().removeprefix("http://") for one in arguments.endpoints.split(",") if one.strip()),
    )
    options = replace(
        options,
        op=arguments.op,
        count=arguments.count,
        serializable=arguments.serializable,
        timeout_s=arguments.timeout,
    )
    try:
        measured = [
            measure(arguments.driver, replace(options, in_flight=in_flight))
            for in_flight in in_flight_list(arguments.in_flight)
        ]
    except (ValueError, RuntimeError, OSError, TimeoutError, grpc.RpcError) as error:
        reason = error.details() if isinstance(error, grpc.aio.AioRpcError) else error
        print(f"load.py: {reason or type(error).__name__}", file=sys.stderr)
        return 1
    print(as_json(measured) if arguments.output == "json" else table(measured))
    return 0


def options_from(arguments: argparse.Namespace, endpoints: tuple[str, ...]) -> Options:
    return Options(
        endpoints=endpoints,
        connections=arguments.connections,
        processes=arguments.processes,
        value_bytes=arguments.value_bytes,
        keys=arguments.keys,
        duration_s=arguments.duration,
        warmup_s=arguments.warmup,
    )


def in_flight_list(text: str) -> list[int]:
    numbers = [int(word) for word in text.split(",")]
    if not numbers or min(numbers) < 1:
        raise ValueError(f"--in-flight {text}: numbers from 1 up, separated by commas")
    return numbers


def measure(driver: str, options: Options) -> Figures:
    """Run one measurement with the driver named."""
    if driver == "grpc":
        return grpc_driver.measure(options)
    if not h2load_driver.is_installed():
        raise ValueError("h2load is not installed (Debian: nghttp2-client); use --driver grpc")
    return h2load_driver.measure(options)


if __name__ == "__main__":
    sys.exit(main())

"""Records what clients of a running cluster are told, for `quorumlog check-history`.

    python docs/examples/record_history.py history.jsonl 127.0.0.1:2379,127.0.0.1:2389 --seconds 20

The store need not be empty: what is in it is read first, and written down. Nobody else may write meanwhile.
Cut, kill and pause members while it runs; that is what it is for. Ctrl-C ends it sooner: what is in the file
is a history.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
import secrets
import sys
import time
from pathlib import Path

from kvstore.checking import history as h
from kvstore.checking.history_file import HistoryWriter
from kvstore.client import Client, ClientError

KEYS = [b"key-%d" % i for i in range(8)]
PAUSE_S = 0.01
TIMEOUT_S = 2.0
REVISION = re.compile(r"revision (\d+)\)$")
"""At the end of what is said of a write that is done, and not as it was wanted."""


class Recorder:
    """Gives calls their numbers, and writes down what is called and what is answered."""

    def __init__(self, writer: HistoryWriter, clients: int) -> None:
        self._writer = writer
        self._calls = 0
        self._run = secrets.token_hex(4)
        """In every value, so that no earlier run has written the same."""
        self.clients = clients

    async def run(self, process: int, endpoint: str, until_s: float) -> None:
        """One client process: one call at a time, each written down before it is made."""
        rng = random.Random(process)
        async with Client(endpoint, timeout_s=TIMEOUT_S) as client:
            while time.monotonic() < until_s:
                request = self._request(rng)
                call = h.Operation(self._number(), process, endpoint, request, time.monotonic_ns())
                self._writer.called(call)
                await make(client, call)
                self._writer.ended(call)
                if call.outcome == "info":
                    # Its last call may take effect at any time: a process that calls again is another one.
                    process, self.clients = self.clients, self.clients + 1
                await asyncio.sleep(PAUSE_S)

    def _number(self) -> int:
        self._calls += 1
        return self._calls

    def _request(self, rng: random.Random) -> h.Put | h.Delete | h.Range:
        key, dice = rng.choice(KEYS), rng.random()
        if dice < 0.5:
            return h.Put(key, f"value-{self._run}-{self._calls}".encode())  # no other call writes this
        return h.Delete(key) if dice < 0.6 else h.Range(key)


async def make(client: Client, call: h.Operation) -> None:
    """Make the call and note what came of it."""
    request = call.request
    try:
        if isinstance(request, h.Put):
            put = await client.put(request.key, request.value)
            call.revision, call.result = put.header.revision, h.PutResult()
        elif isinstance(request, h.Delete):
            gone = await client.delete(request.key)
            call.revision, call.result = gone.header.revision, h.DeleteResult(gone.deleted)
        else:
            found = await client.range(request.key)
            kvs = [
                h.Kv(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version) for kv in found.kvs
            ]
            call.revision, call.result = found.header.revision, h.RangeResult(tuple(kvs))
    except ClientError as error:
        call.error = f"{error.code}: {error.message}"
        told = REVISION.search(error.message) if error.applied == "yes" else None
        if told is not None and isinstance(request, h.Put):
            # Committed, and not where the ack policy wants it: done, so that its loss is to be found. The
            # answer to a put is empty. What a delete would have answered was not told: that stays unknown.
            call.outcome, call.revision, call.result = "ok", int(told[1]), h.PutResult()
            call.return_ns = time.monotonic_ns()
            return
        # Only what certainly changed nothing is a failure. A read changes nothing anyway.
        if error.applied != "no":
            call.gave_up_ns = time.monotonic_ns()
            return
        call.outcome = "fail"
    else:
        call.outcome = "ok"
    call.return_ns = time.monotonic_ns()


async def read_all(endpoints: list[str]) -> tuple[int, dict[bytes, h.Kv]]:
    """Return the store's revision, and all keys of that revision."""
    revision, kvs = 0, {}
    async with Client(endpoints, timeout_s=TIMEOUT_S) as client:
        async for page in client.range_pages(b"\0", b"\0"):
            revision = revision or page.header.revision
            for kv in page.kvs:
                kvs[kv.key] = h.Kv(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version)
    return revision, kvs


async def record(path: Path, endpoints: list[str], seconds: float, clients_each: int = 2) -> None:
    homes = [endpoint for endpoint in endpoints for _ in range(clients_each)]
    revision, initial = await read_all(endpoints)
    until_s = time.monotonic() + seconds
    with path.open("wb") as file:
        writer = HistoryWriter(file, first_revision=revision, initial=initial)
        recorder = Recorder(writer, len(homes))
        await asyncio.gather(*(recorder.run(i, home, until_s) for i, home in enumerate(homes)))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("endpoints", help="HOST:PORT,HOST:PORT,...")
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()
    if not args.seconds > 0:
        parser.error("--seconds must be larger than 0")
    try:
        asyncio.run(record(args.file, args.endpoints.split(","), args.seconds))
    except KeyboardInterrupt:
        print(f"interrupted; what was recorded is in {args.file}", file=sys.stderr)
        return 130
    except ClientError as error:
        print(f"the store cannot be read, nothing was recorded: {error.message}", file=sys.stderr)
        return 3
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

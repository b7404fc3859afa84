#!/usr/bin/env python3
"""One member of a cluster that is driven from inside its own process. bench/embedded.py starts three.

    python bench/embedded_node.py '{"kind": "raft", "number": 0, "ports": [...], "directory": "...", ...}'

It takes orders on standard input, one JSON object a line, and answers each with one on standard output:

    {"do": "status"}              who leads, and whether this member is ready
    {"do": "load", ...}           propose commands here for a while; answers with figures
    {"do": "digest"}              what the state looks like, and what this member has complained of

Both kinds replicate the same thing, a dict from a number to bytes, and are driven by the same loop: so many
commands in flight, and the next is proposed by the callback of one that is done. Both proposals are the plain
way that the library offers, with callbacks and without threads: `raft.Node.propose_nowait` on a uvloop, and
a `@replicated` method with `callback=` between calls of `doTick`. A command is done when the state machine
of this member, the leader, has applied it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import queue
import random
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.figures import Figures, Options
from bench.loops import NS_PER_S, RequestFailed, Tally
from bench.workload import Keys, Mix, ValueSize

Ended = Callable[[RequestFailed | None], None]
Propose = Callable[[int, bytes, Ended], None]

KEY = struct.Struct(">Q")
VALUES = 64
CLUSTER_ID = 4711


class State:
    """What is replicated."""

    def __init__(self) -> None:
        self.values: dict[int, bytes] = {}

    def digest(self) -> str:
        whole = hashlib.sha256()
        for key, value in sorted(self.values.items()):
            whole.update(KEY.pack(key) + KEY.pack(len(value)) + value)
        return whole.hexdigest()


class Drive:
    """A closed loop of callbacks. After a failure its place in flight stays empty: the run has failed anyhow.

    `on_idle` is called when nothing is in flight any more: the load is over.
    """

    def __init__(
        self, order: dict[str, Any], propose: Propose, on_idle: Callable[[], None] = lambda: None
    ) -> None:
        self._on_idle = on_idle
        rng = random.Random(order["seed"])
        self.tally = Tally()
        self.outstanding = 0
        self._order = order
        self._propose = propose
        self._values = [rng.randbytes(order["value_bytes"]) for _ in range(VALUES)]
        self._keys = order["keys"]
        self._number = 0

    def begin(self) -> None:
        self.tally.begin_ns = time.perf_counter_ns() + round(self._order["warmup_s"] * NS_PER_S)
        self.tally.end_ns = self.tally.begin_ns + round(self._order["duration_s"] * NS_PER_S)
        for _ in range(self._order["in_flight"]):
            self._next()

    def _next(self) -> None:
        begun_ns = time.perf_counter_ns()
        if begun_ns >= self.tally.end_ns:
            return
        self.outstanding += 1
        self._number += 1
        value = self._values[self._number % VALUES]
        self._propose(self._number % self._keys, value, partial(self._ended, begun_ns))

    def _ended(self, begun_ns: int, failure: RequestFailed | None) -> None:
        self.outstanding -= 1
        if failure is not None:
            self.tally.failed(failure, time.perf_counter_ns())
        else:
            self.tally.succeeded("put", begun_ns, time.perf_counter_ns())
            self._next()
        if not self.outstanding:
            self._on_idle()

    @property
    def give_up_ns(self) -> int:
        return self.tally.end_ns + int(self._order["timeout_s"] * NS_PER_S)

    def summary(self, cpu_s: float, begun_s: float) -> dict[str, Any]:
        """Return figures in the form of bench/figures.py."""
        order = self._order
        if self.outstanding:
            reason = f"no answer within {order['timeout_s']:g} s"
            self.tally.unknown[reason] += self.outstanding
        options = Options(
            endpoints=(),
            mix=Mix.parse("put"),
            keys=Keys(order["keys"]),
            value_size=ValueSize(order["value_bytes"], order["value_bytes"]),
            in_flight=order["in_flight"],
            connections=0,
            duration_s=order["duration_s"],
            warmup_s=order["warmup_s"],
            timeout_s=order["timeout_s"],
        )
        figures = Figures("in-process", options, order["duration_s"], self.tally)
        figures.driver_cores = (time.process_time() - cpu_s) / (time.monotonic() - begun_s)
        figures.driver_cores_max = float("inf")  # the driver is the member: its being busy tells nothing
        return figures.summary()


class Complaints(logging.Handler):
    """Counts what the library logs as an error, by the words of the message without its numbers."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.counted: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        self.counted[f"{record.levelname}: {record.msg}"] += 1


# Ours


class Machine:
    """A raft.StateMachine in memory."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.applied_index = 0

    def apply(self, commands: Sequence[Any], applied_index: int) -> Sequence[object]:
        values = self.state.values
        for command in commands:
            values[KEY.unpack_from(command.data)[0]] = command.data[KEY.size :]
        self.applied_index = applied_index
        return [None] * len(commands)

    def flush_wanted(self) -> bool:
        return False

    def flush(self) -> int:
        return 0

    def close(self) -> None:
        pass


async def serve_raft(
    spec: dict[str, Any], orders: queue.Queue[dict[str, Any]], complaints: Complaints
) -> None:
    import raft

    state = State()
    members = {
        i + 1: raft.InitialMember(f"n{i + 1}", (f"http://127.0.0.1:{port}",))
        for i, port in enumerate(spec["ports"])
    }
    config = raft.NodeConfig(
        data_dir=spec["directory"], node_id=spec["number"] + 1, cluster_id=CLUSTER_ID, members=members
    )
    node = await raft.Node.start(config, Machine(state))

    def propose(timeout_s: float, key: int, value: bytes, ended: Ended) -> None:
        try:
            future = node.propose_nowait(KEY.pack(key) + value, timeout_s=timeout_s)
        except raft.RaftError as error:
            ended(_raft_failure(error))
        else:
            future.add_done_callback(lambda done: ended(_raft_failure(done.exception())))

    async def load(order: dict[str, Any]) -> dict[str, Any]:
        cpu_s, begun_s = time.process_time(), time.monotonic()
        idle = asyncio.Event()
        drive = Drive(order, partial(propose, order["timeout_s"]), idle.set)
        drive.begin()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(idle.wait(), (drive.give_up_ns - time.perf_counter_ns()) / NS_PER_S)
        return drive.summary(cpu_s, begun_s)

    while True:
        order = await asyncio.to_thread(orders.get)
        if order["do"] == "status":
            status = node.status()
            answer({"leads": status.leader == status.node_id, "ready": status.leader != raft.NO_NODE})
        elif order["do"] == "load":
            answer(await load(order))
        else:
            answer({"digest": state.digest(), "complaints": complaints.counted})


def _raft_failure(error: BaseException | None) -> RequestFailed | None:
    if error is None:
        return None
    is_certain = getattr(error, "applied", "unknown") == "no"
    return RequestFailed(f"{type(error).__name__}: {error}", may_have_applied=not is_certain)


# PySyncObj


def serve_pysyncobj(
    spec: dict[str, Any], orders: queue.Queue[dict[str, Any]], complaints: Complaints
) -> None:
    from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated

    reasons = {value: name for name, value in vars(FAIL_REASON).items() if isinstance(value, int)}
    certain = {FAIL_REASON.QUEUE_FULL, FAIL_REASON.MISSING_LEADER, FAIL_REASON.REQUEST_DENIED}

    class Replicated(SyncObj):  # type: ignore[misc] # it has no types
        def __init__(self, own: str, others: list[str], conf: Any) -> None:
            self.state = State()
            super().__init__(own, others, conf)

        @replicated  # type: ignore[untyped-decorator]
        def put(self, key: int, value: bytes) -> None:
            self.state.values[key] = value

    addresses = [f"127.0.0.1:{port}" for port in spec["ports"]]
    own = addresses.pop(spec["number"])
    settings = dict(spec["settings"])
    if spec["journal"]:
        # With a journal alone, what it drops from that after 5,000 entries would be lost at a restart.
        settings["journalFile"] = f"{spec['directory']}/journal"
        settings["fullDumpFile"] = f"{spec['directory']}/dump"
    conf = SyncObjConf(autoTick=False, connectionRetryTime=0.2, **settings)
    node = Replicated(own, addresses, conf)

    def propose(key: int, value: bytes, ended: Ended) -> None:
        def called_back(_: object, reason: int) -> None:
            if reason == FAIL_REASON.SUCCESS:
                ended(None)
            else:
                ended(RequestFailed(reasons[reason], may_have_applied=reason not in certain))

        node.put(key, value, callback=called_back)

    def load(order: dict[str, Any]) -> dict[str, Any]:
        cpu_s, begun_s = time.process_time(), time.monotonic()
        drive = Drive(order, propose)
        drive.begin()
        while drive.outstanding and time.perf_counter_ns() < drive.give_up_ns:
            node.doTick(conf.autoTickPeriod)
        return drive.summary(cpu_s, begun_s)

    while True:
        node.doTick(conf.autoTickPeriod)
        try:
            order = orders.get_nowait()
        except queue.Empty:
            continue
        if order["do"] == "status":
            answer({"leads": node._isLeader(), "ready": node._getLeader() is not None and node.isReady()})
        elif order["do"] == "load":
            answer(load(order))
        else:
            answer({"digest": node.state.digest(), "complaints": complaints.counted})


# The process


def answer(reply: dict[str, Any]) -> None:
    print(json.dumps(reply), flush=True)


def main() -> None:
    spec = json.loads(sys.argv[1])
    complaints = Complaints()
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger().addHandler(complaints)
    orders: queue.Queue[dict[str, Any]] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            orders.put(json.loads(line))

    threading.Thread(target=read, daemon=True).start()
    if spec["kind"] == "pysyncobj":
        serve_pysyncobj(spec, orders, complaints)
    else:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve_raft(spec, orders, complaints))


if __name__ == "__main__":
    main()

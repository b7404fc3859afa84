"""An ack policy asks for more than a majority, and a replica is lost: under `fail`, and under `degrade`."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
from collections.abc import AsyncIterator
from dataclasses import dataclass

import grpc.aio

from bench.demo.record import Column, Figure, Kind, Outcome, Recording, Section, Span, by_hand, count
from bench.demo.screen import Screen
from bench.demo.stage import Stage, Times, check, staged
from kvstore.pb import ack_pb2
from tests.process.cluster import wait_until
from tests.process.rpc import Rpc

NODES = ("n1", "n2", "n3")
LEADER, LOST = 0, 2
TITLE = "More than a majority"
WAIT_MS, HOLD_MS = 500, 2_000
LOOK_EVERY_S = 0.1
CHANGE_TIMEOUT_S = 10.0
COLUMNS: tuple[Column, ...] = (
    ("writes: ok", "write", "acknowledged"),
    ("degraded", "write", "degraded"),
    ("unmet", "write", "unmet"),
    ("reads: ok", "read", "acknowledged"),
)
WRITES: tuple[Kind, ...] = ("write",)


@dataclass(slots=True)
class _Seen:
    """When which part of the story began."""

    set_s: float = 0.0
    lost_s: float = 0.0
    degrade_s: float = 0.0
    back_s: float = 0.0
    sync_s: float = 0.0


async def tell_semisync(screen: Screen, times: Times) -> Recording:
    recording = Recording("semisync", TITLE, NODES, columns=COLUMNS)
    screen.title(f"{TITLE}: every replica is to have each write, and one is lost")
    screen.say("Starting three nodes on this machine, on free ports, in a temporary directory ...")
    async with staged(recording, screen, times) as stage, _watched(stage):
        await _story(stage)
    return recording


async def _story(stage: Stage) -> None:
    screen, clients, recording, times = stage.screen, stage.clients, stage.recording, stage.times
    seen = _Seen()
    part_s = times.fault_s * 0.4
    await stage.move_leader(LEADER)
    screen.say(
        "n1 leads, and at each node clients write and read. A write is acknowledged when a majority, two of "
        "the three, have it on disk. That is always so."
    )
    clients.start()
    await stage.watch(times.before_s / 2)

    screen.say(
        "Now more is asked for: both other nodes must have each write, too. If that takes longer than "
        f"{WAIT_MS} ms its client is told: committed, but not where you wanted it.",
        command=f"quorumlog ack set --replicas 2 --on-timeout fail --wait-timeout {WAIT_MS}ms",
    )
    settings = ack_pb2.AckSettings(
        replicas=2, wait_timeout_ms=WAIT_MS, recover_hold_ms=HOLD_MS, on_timeout=ack_pb2.FAIL
    )
    await _set(stage, settings)
    seen.set_s = clients.now_s()
    stage.mark("replicas 2, fail")
    await stage.watch(times.before_s / 2)

    screen.say("Now n3 is lost (kill -9). A majority is still there, but not what the policy asks for.")
    stage.kill(LOST)
    seen.lost_s = clients.now_s()
    stage.mark("kill -9 n3", is_fault=True)
    await stage.watch(part_s)

    screen.say(
        "Those who would rather go on can say so: after a write has waited in vain the cluster falls back to "
        "the majority. That is an entry of the log, and every answer says it.",
        command="quorumlog ack set --on-timeout degrade",
    )
    await _set(stage, ack_pb2.AckSettings(on_timeout=ack_pb2.DEGRADE))
    seen.degrade_s = clients.now_s()
    stage.mark("degrade")
    await stage.watch(part_s)

    screen.say(f"n3 starts again. When the policy has been met for {HOLD_MS / 1000:g} s it counts again.")
    seen.back_s = clients.now_s()
    stage.mark("n3 starts again")
    await stage.restart(LOST)
    await _wait_in_sync(stage)
    seen.sync_s = clients.now_s()
    await stage.watch(times.after_s / 2)
    await clients.stop()
    recording.end_s = clients.now_s()

    screen.say("The clients have stopped. What they were told is checked now.")
    is_right = await check(stage)
    recording.is_good = _tell(stage, seen, is_right=is_right) and is_right
    _learn(recording)


# --- the policy ---------------------------------------------------------------------------------------------


async def _set(stage: Stage, settings: ack_pb2.AckSettings) -> None:
    async with Rpc(stage.cluster.members[LEADER].endpoint, timeout_s=CHANGE_TIMEOUT_S) as rpc:
        request = ack_pb2.AckSetRequest(settings=settings)
        await rpc.start("Ack/Set", request, ack_pb2.AckSetResponse.FromString, package="quorumlogpb")


async def _state(rpc: Rpc) -> str:
    """Return the state as the node knows it; nothing if it does not answer."""
    try:
        request = ack_pb2.AckGetRequest()
        reply = await rpc.start("Ack/Get", request, ack_pb2.AckGetResponse.FromString, package="quorumlogpb")
    except grpc.aio.AioRpcError:
        return ""
    return ack_pb2.AckState.Name(reply.state).lower()


async def _wait_in_sync(stage: Stage) -> None:
    async with Rpc(stage.cluster.members[LEADER].endpoint) as rpc:

        async def is_back() -> bool:
            return await _state(rpc) == "sync"

        await wait_until(is_back, "the policy is met for its hold time", HOLD_MS / 1000 + CHANGE_TIMEOUT_S)


@contextlib.asynccontextmanager
async def _watched(stage: Stage) -> AsyncIterator[None]:
    """Note the states of the policy while the body runs."""
    task = asyncio.create_task(_watch(stage))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _watch(stage: Stage) -> None:
    policy, clients = stage.recording.policy, stage.clients
    async with Rpc(stage.cluster.members[LEADER].endpoint) as rpc:
        while True:
            state, at_s = await _state(rpc), clients.now_s()
            if policy:
                policy[-1] = policy[-1]._replace(end_s=at_s)
            if state and (not policy or policy[-1].text != state):
                policy.append(Span(at_s, at_s, state))
            await asyncio.sleep(LOOK_EVERY_S)


# --- what is told of it -------------------------------------------------------------------------------------


def _tell(stage: Stage, seen: _Seen, *, is_right: bool) -> bool:
    """Say what the clients were told; return whether it is as promised."""
    recording, screen = stage.recording, stage.screen
    answers = recording.answers
    under_fail, under_degrade = (seen.lost_s, seen.degrade_s), (seen.degrade_s, seen.back_s)

    def writes(outcome: Outcome, begun: tuple[float, float]) -> int:
        return count(answers, outcome, kinds=WRITES, begun=begun)

    unmet, wrong = writes("unmet", under_fail), writes("acknowledged", under_fail)
    less, silent = writes("degraded", under_degrade), writes("acknowledged", under_degrade)
    again = writes("acknowledged", (seen.sync_s, float("inf")))
    is_told = unmet > 0 and wrong == 0
    screen.result(
        f"fail: {unmet} writes were committed and answered as not met, {wrong} as if all were well",
        is_good=is_told,
    )
    is_shown = less > 0 and silent == 0
    screen.result(
        f"degrade: {less:,} writes acknowledged by the majority with a word that says so, {silent} without",
        is_good=is_shown,
    )
    screen.result(f"n3 is back: {again:,} writes acknowledged by all three again", is_good=again > 0)
    recording.policy[:] = [span for span in recording.policy if span.begin_s <= recording.end_s]
    lost = "and nothing is lost" if is_right else "and NOT every answer was true: see below"
    silence = "None" if is_told and is_shown else "BUT NOT NONE"
    recording.headline = (
        "Three nodes were to have each write, and one was lost. Under fail "
        f"{unmet} clients were told: committed, policy unmet. Under degrade {less:,} writes were "
        f"acknowledged by the majority, and each answer said so. {silence} was acknowledged in silence, "
        f"{lost}."
    )
    recording.figures += [
        Figure(f"{wrong + silent}", "writes acknowledged as if all three had them, while one was gone"),
        Figure(f"{unmet}", "told under fail that they are committed and the policy unmet"),
        Figure(f"{less:,}", "acknowledged under degrade, each with the word degraded or recovering"),
        Figure(_cost(recording, seen), "median of a write: by a majority, and by all three"),
    ]
    return is_told and is_shown and again > 0


def _cost(recording: Recording, seen: _Seen) -> str:
    def median_ms(begin_s: float, end_s: float) -> str:
        waits_s = [
            answer.end_s - answer.begin_s
            for answer in recording.answers
            if answer.kind == "write"
            and answer.outcome == "acknowledged"
            and begin_s <= answer.begin_s < end_s
        ]
        return f"{statistics.median(waits_s) * 1000:.0f}" if waits_s else "-"

    return f"{median_ms(0.0, seen.set_s)}, {median_ms(seen.set_s, seen.lost_s)} ms"


def _learn(recording: Recording) -> None:
    recording.sections.insert(
        0,
        Section(
            "What is to be learnt",
            points=(
                (
                    "Only ever more",
                    "A majority on disk is never negotiable. The policy may ask for more, and when that "
                    "cannot be had, what remains is the majority: still more than one machine.",
                ),
                (
                    "Never in silence",
                    "Each answer says by how many the write was acknowledged, and in which state. Under fail "
                    "it is an error of its own, with a code that client libraries do not repeat (ABORTED): "
                    "the write is done, and a repetition would do it twice.",
                ),
                (
                    "The state is in the log",
                    "sync, degraded, recovering: each step is an entry that a majority has. A new leader "
                    "knows it, and a leader that has lost its majority can take none. A replica that comes "
                    "and goes does not make it flap, since the policy must have been met for a while.",
                ),
                (
                    "What MySQL does",
                    "Its semi-synchronous replication has degrade alone. After rpl_semi_sync_source_timeout, "
                    "10 seconds by default, the source goes on asynchronously: all who wait are told that "
                    "they succeeded, and only a status variable and the error log say more. From then on an "
                    "acknowledged write may exist on one machine, and is lost with it.",
                ),
            ),
        ),
    )
    recording.sections.append(
        by_hand(
            recording.name,
            ("./cluster.sh start 3", "a cluster of three"),
            (
                "./cluster.sh ctl ack set --replicas 2 --wait-timeout 500ms",
                "both others must have each write",
            ),
            ("./cluster.sh kill 3", "one is lost"),
            ("./cluster.sh ctl put key value", "committed, ack policy unmet: exit status 7"),
            ("./cluster.sh ctl ack set --on-timeout degrade", "rather go on, and say so"),
            ("./cluster.sh ctl ack show", "the policy, its state, and who has what"),
        )
    )

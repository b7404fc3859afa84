"""The leader is killed under load: who takes over, how long is no write acknowledged, is anything lost?"""

from __future__ import annotations

from bench.demo.record import (
    Figure,
    Recording,
    Section,
    Span,
    acknowledged_s,
    by_hand,
    count,
    longest_gap,
    reigns,
)
from bench.demo.screen import Screen
from bench.demo.stage import Stage, Times, check, staged

NODES = ("n1", "n2", "n3")
LEADER = 0
SETTLED_S = 1.0
TITLE = "The leader is killed"


async def tell_failover(screen: Screen, times: Times) -> Recording:
    recording = Recording("failover", TITLE, NODES)
    screen.title(f"{TITLE}: three nodes, one is lost")
    screen.say("Starting three nodes on this machine, on free ports, in a temporary directory ...")
    async with staged(recording, screen, times) as stage:
        await _story(stage)
    return recording


async def _story(stage: Stage) -> None:
    screen, clients, recording, times = stage.screen, stage.clients, stage.recording, stage.times
    await stage.move_leader(LEADER)
    screen.say(
        f"{stage.name(LEADER)} leads. At each node there are three clients: one writes, one reads "
        "(linearizable: never old data), one reads what just that node has (serializable: may be old). "
        "A write is acknowledged when two of the three nodes have it on disk."
    )
    clients.start()
    await stage.watch(times.before_s)

    screen.say(f"Now kill -9 of {stage.name(LEADER)}, in the middle of it. It has no time to tell anybody.")
    killed_s = clients.now_s()
    stage.mark(f"kill -9 {stage.name(LEADER)}", is_fault=True)
    stage.kill(LEADER)
    await stage.watch(times.fault_s * 0.6)

    screen.say(
        f"The two others go on without it. Now {stage.name(LEADER)} is started again, with the disk it had."
    )
    stage.mark(f"{stage.name(LEADER)} starts again")
    await stage.restart(LEADER)
    stage.mark(f"{stage.name(LEADER)} serves")
    await stage.watch(times.after_s)
    await clients.stop()
    recording.end_s = clients.now_s()

    screen.say("The clients have stopped. What they were told is checked now.")
    recording.is_good = await check(stage)
    _tell(stage, killed_s)
    _conclude(recording)


def _tell(stage: Stage, killed_s: float) -> None:
    """Say what happened to those who were told, and how long it took."""
    recording = stage.recording
    dead = stage.name(LEADER)
    alive = [node for node in recording.nodes if node != dead]
    (absence,) = recording.absences
    successor = next((one for one in reigns(recording.sights) if one.begin_s > killed_s), None)
    # Until some time after the election: a later pause of the machine is another matter.
    until_s = absence.end_s if successor is None else min(absence.end_s, successor.begin_s + SETTLED_S)
    gap = longest_gap(acknowledged_s(recording.answers, alive), killed_s, until_s)
    gap_s = gap[1] - gap[0]
    recording.spans.append(Span(*gap, f"no write acknowledged: {gap_s:.2f} s"))
    took_over = "nobody was seen to take over" if successor is None else f"{successor.node} took over"
    term = "" if successor is None else f" in term {successor.term}"
    stage.screen.result(
        f"{took_over}{term}; no write was acknowledged for {gap_s:.2f} s", is_good=successor is not None
    )
    acknowledged = count(recording.answers, "acknowledged", kinds=["write"])
    unknown = count(recording.answers, "unknown")
    kept = "every one is still there" if recording.is_good else "NOT every answer was true: see below"
    recording.headline = (
        f"The leader of three nodes was killed while clients wrote. {took_over}{term}; for {gap_s:.2f} "
        f"seconds no write was acknowledged. {acknowledged:,} were in all, and {kept}."
    )
    recording.figures += [
        Figure(f"{gap_s:.2f} s", "without an acknowledged write, as the clients of the others saw it"),
        Figure(f"{acknowledged:,}", "writes acknowledged"),
        Figure("0" if recording.is_good else "NOT 0?", "of them lost, by the check of all answers"),
        Figure(f"{unknown:,}", "writes under way at the kill whose outcome their clients could not know"),
    ]


def _conclude(recording: Recording) -> None:
    recording.sections.insert(
        0,
        Section(
            "What is to be learnt",
            points=(
                (
                    "Nothing is lost",
                    "A leader that dies takes nothing with it that was acknowledged: a majority has it on "
                    "disk, every later leader is elected by a majority, and two majorities share a node.",
                ),
                (
                    "Nobody waited",
                    "The election timeout is 1 to 2 seconds here, as in etcd. But where the process is "
                    "gone its port refuses connections. The others find that out at once, forget the "
                    "leader and elect another. A machine without power refuses nothing: there the timeout "
                    "counts.",
                ),
                (
                    "Beside etcd",
                    "etcd 3.5.1 waits for its timeout in both cases. bench/failover.py kills leaders of "
                    "both in turns on your machine and draws all times; docs/bench.md says how it "
                    "measures.",
                ),
                (
                    "The old leader comes back",
                    "It starts with the disk it had, and follows. What stood at the end of its log and "
                    "was never acknowledged is cut off if the others went on without it. With MySQL's "
                    "semi-synchronous replication such a source is to be thrown away: it may hold "
                    "transactions that nobody acknowledged, and commits them when it starts.",
                ),
            ),
        ),
    )
    recording.sections.append(
        by_hand(
            recording.name,
            ("./cluster.sh start 3", "a cluster of three"),
            ("./cluster.sh status", "who leads"),
            ("./cluster.sh kill 1", "kill -9 of node 1"),
            ("./cluster.sh ctl put key value", "a write, at any node that takes it"),
            ("./cluster.sh start", "what is down comes back"),
        )
    )

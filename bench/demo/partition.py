"""Five nodes are cut into two and three, with the leader on the small side: who answers, and who refuses?"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from bench.demo.record import (
    Answer,
    Figure,
    Recording,
    Section,
    Span,
    Table,
    acknowledged_s,
    by_hand,
    count,
    longest_gap,
    reigns,
    shown_duration,
)
from bench.demo.screen import Screen
from bench.demo.stage import Stage, Times, check, staged
from kvstore.pb import rpc_pb2
from raft import inspect_directory
from tests.process.cluster import wait_until
from tests.process.links import FAULT_INJECTION, heal, partition
from tests.process.rpc import Rpc

NODES = ("n1", "n2", "n3", "n4", "n5")
LEADER = 0
MINORITY, MAJORITY = (0, 1), (2, 3, 4)
BURST = 8
"""Writes at once, right after the cut, that the old leader still takes into its log."""
TITLE = "A network is cut in two"
AGREE_TIMEOUT_S = 10.0
SETTLED_S = 1.0


@dataclass(slots=True)
class Seen:
    """What the story looked up on its way."""

    cut_s: float = 0.0
    heal_begun_s: float = 0.0
    healed_s: float = 0.0
    """When the last member had lifted its cuts."""
    stale: tuple[int, int] = (0, 0)
    """Revision that a stale read at the old leader had, and that of the majority, at the same time."""
    tail: list[tuple[int, int]] = field(default_factory=list)
    """Index and term of what the old leader's log held above what was committed."""
    afterwards: dict[int, int] = field(default_factory=dict)
    """Term by index, of the same indexes in the same log at the end."""

    def replaced(self) -> list[int]:
        """Return the indexes of the tail at which another entry stands now."""
        return [index for index, term in self.tail if self.afterwards.get(index) not in (None, term)]


async def tell_partition(screen: Screen, times: Times) -> Recording:
    recording = Recording("partition", TITLE, NODES)
    screen.title(f"{TITLE}: five nodes, two here and three there")
    screen.say("Starting five nodes on this machine, on free ports, in a temporary directory ...")
    async with staged(recording, screen, times, extra_args=FAULT_INJECTION) as stage:
        await _story(stage)
    return recording


async def _story(stage: Stage) -> None:
    screen, clients, recording, times = stage.screen, stage.clients, stage.recording, stage.times
    seen = Seen()
    await stage.move_leader(LEADER)
    screen.say(
        "n1 leads. At each node there are three clients: one writes, one reads (linearizable: never old "
        "data), one reads what just that node has (serializable: may be old). A write is acknowledged when "
        "three of the five nodes have it on disk."
    )
    clients.start()
    await stage.watch(times.before_s)

    screen.say(
        "Now the network is cut: n1 and n2 on this side, n3, n4 and n5 on that side. All processes go on, "
        "and all clients reach their node; but nothing passes between the sides. n1, which leads, is on "
        "the small side, and does not know it yet: its clients write to it all the same. "
        f"{BURST} more writes at once are sent to n1, so that its log has something to lose."
    )
    await partition(stage.cluster, MINORITY, MAJORITY)
    # From here on, and not from when it was asked for: a write may still be acknowledged in between.
    seen.cut_s = clients.now_s()
    stage.mark("cut: n1 n2 | n3 n4 n5", is_fault=True)
    stage.begin_cut(MINORITY, MAJORITY)
    burst = asyncio.create_task(clients.write_at_once(LEADER, BURST))
    await stage.watch(times.fault_s)
    await burst
    seen.tail = await _tail(stage)
    seen.stale = await _staleness(stage)

    screen.say("Now the network is healed. Nobody has to be told, nothing has to be repaired by hand.")
    seen.heal_begun_s = clients.now_s()
    stage.end_cut()
    await heal(stage.cluster)
    seen.healed_s = clients.now_s()
    stage.mark("healed")
    await stage.watch(times.after_s)
    await clients.stop()
    recording.end_s = clients.now_s()

    screen.say("The clients have stopped. What they were told is checked now.")
    await _look_again(stage, seen)
    is_right = await check(stage)
    recording.is_good = _tell(stage, seen) and is_right
    end = (
        "all five are equal, and nothing acknowledged is lost" if is_right else "NOT all was right: see below"
    )
    recording.headline += f" After the heal {end}."
    _learn(recording, seen)


async def _tail(stage: Stage) -> list[tuple[int, int]]:
    """Return what stands in the old leader's log above what is committed, as it knows it."""
    member = stage.cluster.members[LEADER]
    async with Rpc(member.endpoint) as rpc:
        committed = (await rpc.status()).raftIndex
    return await _entries(stage, committed + 1)


async def _entries(stage: Stage, first: int, last: int | None = None) -> list[tuple[int, int]]:
    path = str(stage.cluster.members[LEADER].data_dir)

    def read() -> list[tuple[int, int]]:
        return [
            (one.index, one.term) for one in inspect_directory(path).entries(first, last) if one.is_current
        ]

    return await asyncio.to_thread(read)


async def _staleness(stage: Stage) -> tuple[int, int]:
    revisions = []
    for index in (LEADER, MAJORITY[0]):
        async with Rpc(stage.cluster.members[index].endpoint) as rpc:
            reply = await rpc.range(rpc_pb2.RangeRequest(key=b"key-00", serializable=True))
            revisions.append(reply.header.revision)
    return revisions[0], revisions[1]


async def _look_again(stage: Stage, seen: Seen) -> None:
    """Read the same indexes of the same log, when it has what the others have."""
    if not seen.tail:
        return
    last = max(index for index, _ in seen.tail)
    async with Rpc(stage.cluster.members[LEADER].endpoint) as rpc:

        async def has_followed() -> bool:
            return (await rpc.status()).raftIndex >= last

        await wait_until(has_followed, "n1 has followed", AGREE_TIMEOUT_S)
    seen.afterwards = dict(await _entries(stage, seen.tail[0][0], last))


def _tell(stage: Stage, seen: Seen) -> bool:
    """Say what became of it, and what was found; return whether it is as promised."""
    recording, screen = stage.recording, stage.screen
    answers = recording.answers
    small = [stage.name(index) for index in MINORITY]
    large = [stage.name(index) for index in MAJORITY]
    inside = (seen.cut_s, seen.heal_begun_s)
    # A call that was begun shortly before the heal may be answered after it.
    in_cut = [answer for answer in answers if answer.end_s <= seen.heal_begun_s]
    none = count(in_cut, "acknowledged", kinds=["write"], nodes=small, begun=inside)
    some = count(in_cut, "acknowledged", kinds=["write"], nodes=large, begun=inside)
    gap = _majority_gap(recording, large, seen)
    again_s = min(acknowledged_s(answers, small, begun_s=seen.cut_s), default=recording.end_s)
    recording.spans += [
        Span(*gap, f"majority elects: {gap[1] - gap[0]:.1f} s"),
        Span(seen.cut_s, again_s, f"minority acknowledges nothing: {again_s - seen.cut_s:.1f} s"),
    ]
    is_kept = none == 0 and some > 0
    screen.result(
        f"while the network was cut the side of two acknowledged {none} writes, the side of three {some:,}",
        is_good=is_kept,
    )
    replaced = seen.replaced()
    screen.result(
        f"{len(replaced)} entries in the log of n1 had reached no majority: replaced by what the majority "
        "wrote there, without anybody's doing",
        is_good=bool(replaced),
    )
    recording.sections.insert(0, _tail_section(seen))
    recording.headline = (
        "Five nodes were cut into two and three while clients wrote at all of them. The side of three "
        f"went on after {gap[1] - gap[0]:.1f} seconds and acknowledged {some:,} writes; the side of two, "
        f"with the old leader, acknowledged {none}."
    )
    recording.figures += [
        Figure(f"{none}", "writes acknowledged by the minority during the cut"),
        Figure(f"{some:,}", "by the majority, under a leader of its own"),
        Figure(f"{gap[1] - gap[0]:.1f} s", "until the majority had a leader and went on"),
        Figure(shown_return(answers, small, seen), "from the heal until both n1 and n2 acknowledged again"),
    ]
    return is_kept and bool(replaced)


def shown_return(answers: Sequence[Answer], small: Sequence[str], seen: Seen) -> str:
    """Return how long it took after the heal until the last of these nodes acknowledged a write again.

    A member lifts its cuts a moment before the last one has: who was that quick took no time."""
    firsts_s = [acknowledged_s(answers, [node], begun_s=seen.cut_s)[:1] for node in small]
    if not all(firsts_s):
        return "not seen"
    return shown_duration(max(0.0, max(first_s for (first_s,) in firsts_s) - seen.healed_s))


def _majority_gap(recording: Recording, large: Sequence[str], seen: Seen) -> tuple[float, float]:
    """Return the time around the election in which the majority's clients were acknowledged nothing."""
    elected_s = min(
        (one.begin_s for one in reigns(recording.sights) if one.node in large and one.begin_s > seen.cut_s),
        default=seen.heal_begun_s,
    )
    # Until some time after the election: a later pause of the machine is another matter.
    until_s = min(elected_s + SETTLED_S, seen.heal_begun_s)
    return longest_gap(acknowledged_s(recording.answers, large), seen.cut_s, until_s)


def _tail_section(seen: Seen) -> Section:
    rows: list[tuple[str, ...]] = []
    for (before, after), group in groupby(
        seen.tail, key=lambda entry: (entry[1], seen.afterwards.get(entry[0]))
    ):
        indexes = [index for index, _ in group]
        places = str(indexes[0]) if len(indexes) == 1 else f"{indexes[0]} to {indexes[-1]}"
        rows.append((places, f"term {before}", "nothing yet" if after is None else f"term {after}"))
    paragraphs = [
        f"When the cut came n1 led and went on taking writes into its log: {len(seen.tail)} entries of "
        "which it did not know whether a majority had them. None was acknowledged. "
        f"{BURST} more writes at once had been sent to n1 right after the cut, so that its log has something "
        "to lose: a client that waits for its answer leaves little there. They are counted among the writes "
        "at n1 everywhere on this page.",
        "When the network was healed n1 heard of the later term, became a follower, and its log was "
        "made equal to the new leader's from the first difference on. Below are the terms that stood there "
        "before and after.",
    ]
    kept = len(seen.tail) - len(seen.replaced())
    if kept:
        paragraphs.append(
            f"Of these entries {kept}, at the beginning, had reached the other side just before the cut, "
            "and so the new leader. They stay: clients who were told that the outcome is unknown were told "
            "the truth."
        )
    table = Table(("index in the log of n1", "before the heal", "afterwards"), tuple(rows))
    return Section("What became of the old leader's log?", tuple(paragraphs), table=table)


def _learn(recording: Recording, seen: Seen) -> None:
    old, new = seen.stale
    recording.sections.insert(
        0,
        Section(
            "What is to be learnt",
            points=(
                (
                    "CP",
                    "Consistent, and partition-tolerant. While the network is cut nobody can both be "
                    "consistent and answer everywhere. The side without a majority refuses what it cannot "
                    "promise, writes and linearizable reads, and says so. The other side goes on. Nobody "
                    "is told yes by both.",
                ),
                (
                    "AP, which this is not",
                    "Had n1 acknowledged its writes, both sides would have had a truth of their own, and "
                    "at the heal somebody's acknowledged write would have had to go. Which ones shows the "
                    "table below: here they had been promised to nobody.",
                ),
                (
                    "CA",
                    "Consistent and available: the left end of the picture, before the cut, and the right "
                    "one. Nobody can choose that for the time of a cut, for nobody chooses the cut.",
                ),
                (
                    "BASE, on request",
                    "Basically available, soft state, eventually consistent. Serializable reads were "
                    f"answered at every node all the time, at n1 with what it had: revision {old:,}, when "
                    f"the majority was at {new:,}. After the heal they show the same again. Such a read is "
                    "a choice of its caller, never a fallback.",
                ),
                (
                    "How the old leader knows",
                    "It does not, at first. But it acknowledges nothing without a majority, and a leader "
                    "that has not heard from one for an election timeout steps down by itself "
                    "(check-quorum). The small side cannot raise the term either, since it asks before it "
                    "stands for election (pre-vote): so it comes back without disturbing the leader of "
                    "the others.",
                ),
            ),
        ),
    )
    recording.sections.append(
        by_hand(
            recording.name,
            ("./cluster.sh start 5", "a cluster of five"),
            ('./cluster.sh partition "1,2|3,4,5"', "the cut of this page"),
            ("./cluster.sh status", "who leads, who is cut off from whom"),
            (
                "./cluster.sh ctl put key value",
                "a write, at any node that takes it; right after the cut its outcome may be unknown",
            ),
            ("./cluster.sh heal", "no cut any more"),
        )
    )

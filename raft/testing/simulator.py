"""One seed, one run: a cluster in a bad world, then a calm one, and judges beside it.

Safety phase: faults and clients as the seed's profile has them, for a number of steps. After each
step the invariants and the oracle look at what has changed.

Liveness phase: faults stop, nodes come up, messages arrive, in some seeds only for a quorum (calm.py). Within
LIVENESS_ELECTIONS_MAX election timeouts there must be one leader whom all that are well follow, all must be
of one mind on who is a member, and each must have answered a new write and a linearizable read; within as
many again all must have applied the same log. A cluster that is safe since it does nothing fails here.

Everything comes from one random.Random(seed); each inhabitant draws its own generator from it at
birth. Time is a number. Nothing is walked in an order that depends on hashes. So a seed on one commit is one
run, and `trace_hash`, taken over every step, tells whether two runs were the same.
"""

from __future__ import annotations

import os
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from zlib import crc32

from raft.core.config import Config
from raft.core.messages import Message, RequestVote, RequestVoteReply
from raft.core.raft import Raft
from raft.core.types import LogIndex, NodeId, Term
from raft.testing.acks import AckOperator
from raft.testing.application import KeyValueApplication
from raft.testing.calm import Remains, Visitor, break_node, draw_remains
from raft.testing.clients import Client
from raft.testing.clock import TICK, VirtualClock
from raft.testing.cluster import Cluster
from raft.testing.configurations import described
from raft.testing.counts import new_counts
from raft.testing.faults import Troublemaker
from raft.testing.invariants import Violation
from raft.testing.network import Codec, VirtualNetwork
from raft.testing.node import SimNode
from raft.testing.operator import Operator
from raft.testing.oracle import Oracle, Outcome
from raft.testing.parts import left_out, parts_of
from raft.testing.plants import Plant
from raft.testing.profile import Profile, draw_profile
from raft.testing.refusals import Refusals
from raft.testing.world import Application, Story
from raft.transport.codec import BlockCache, decode_frame, encode_message, frame_of

STEPS = 6000
"""Actions of the safety phase, if nothing else is asked for: some 60 election timeouts."""

LIVENESS_ELECTIONS_MAX = 40
"""Election timeouts within which a calm cluster must be well. With five nodes two in five elections
may split; twenty in a row do not."""

CATCH_UP_ELECTIONS_MAX = 8 * LIVENESS_ELECTIONS_MAX
"""The same where one with a slow disk or slow links is to get hundreds of entries one by one: as long as it
advances it is waited for, and not for ever. (At three ticks an entry, 40 timeouts are a hundred entries.)"""

CALM_STEPS_MAX = 50_000
"""Actions of the liveness phase. A thousand or two is usual: nodes that send each other the same messages for
ever are not well, and should not hold up the next seed."""


@dataclass(slots=True)
class Result:
    """How a run ended."""

    seed: int
    violation: str = ""
    """Name of the invariant or rule that did not hold; "" if all did."""
    detail: str = ""
    step: int = 0
    trace_hash: int = 0
    counts: Counter[str] = field(default_factory=new_counts)


class Simulation:
    """A World, made from a seed."""

    calm_steps_max = CALM_STEPS_MAX
    sends_visitors = True
    sees_stalls = False

    def __init__(
        self,
        seed: int,
        *,
        steps: int = STEPS,
        plant: Plant | None = None,
        ignored: frozenset[str] = frozenset(),
        story: Story | None = None,
        profile: Profile | None = None,
        without: Sequence[str] = (),
    ) -> None:
        """`plant`: run with a planted bug. `ignored`: names of invariants not to be checked.
        `profile`: use this one, not the one that the seed draws. `without`: parts of it that are left out."""
        self.seed = seed
        self.steps = steps
        self.story = story
        self.counts = new_counts()
        self.clock = VirtualClock()
        self.trace_hash = 0
        self.calm = False
        self._random = Random(seed)
        drawn = draw_profile(self.split_random())
        self.profile = left_out(profile or drawn, without)
        voters = frozenset(range(1, self.profile.voters + 1))
        self.cluster = Cluster(voters, ignored)
        self.oracle = self._make_oracle()
        self.application: Application = self._make_application(ignored)
        self.network = VirtualNetwork(
            self.clock,
            self.split_random(),
            self.profile.network,
            self._arrived,
            self.counts,
            _wire_codec() if self.profile.codec else None,
        )
        self.nodes: dict[NodeId, SimNode] = {}
        self._plant = plant
        for node_id in sorted(voters):
            self.nodes[node_id] = self._make_node(node_id)
        self._trouble = Troublemaker(self, self.network.cut, self.network.heal)
        self._refusals = Refusals(self, seed)
        self._clients = [self._make_client(number) for number in range(self.profile.clients)]
        fixed = self.profile.membership.is_fixed
        self._operator = None if fixed else Operator(self, self._begin, self._end)
        self._acks = self._make_ack_operator()
        self._forced: set[tuple[NodeId, Term]] = set()
        """Who campaigned in which term since leadership was handed over to it."""
        self._writes_before_calm = 0
        self._events_before_calm = 0
        self._remains = Remains()
        self._visitors: list[Visitor] = []

    def _make_node(self, node_id: NodeId) -> SimNode:
        plant = self._plant
        make = plant.node if plant else SimNode
        return make(self, node_id, self.cluster.initial.voters, plant.raft if plant else Raft)

    def _make_ack_operator(self) -> AckOperator | None:
        return AckOperator(self, self.seed) if self.profile.acks.change_ticks else None

    # What is replicated: the simulator's own keys and values, unless a subclass has something else

    def _make_oracle(self) -> Oracle:
        return Oracle()

    def _make_application(self, ignored: frozenset[str]) -> Application:
        return KeyValueApplication(self.oracle, self.profile.snapshots.chunk_bytes, ignored)

    def _make_client(self, number: int) -> Client:
        return Client(self, number)

    # The run

    def run(self) -> Result:
        """Run both phases. Never raises for a fault of the code under test: the Result tells it."""
        result = Result(self.seed, counts=self.counts)
        try:
            self._safety_phase()
            self._liveness_phase()
        except Violation as violation:
            result.violation, result.detail = violation.invariant, violation.detail
        except Exception as error:
            # An assertion of the code under test, or a refusal of the log to open, is a finding too.
            where = traceback.extract_tb(error.__traceback__)[-1]
            result.violation = f"no_exception.{type(error).__name__}"
            result.detail = f"{error} (in {where.name}, {os.path.basename(where.filename)}:{where.lineno})"
            self.note(0, "{}", traceback.format_exc())
        result.step, result.trace_hash = self.counts["events"], self.trace_hash
        self.counts["members_recovered"] = self.cluster.members_recovered
        if result.violation:
            self.note(0, "VIOLATION of {}: {}", result.violation, result.detail)
        return result

    def _safety_phase(self) -> None:
        voters, clients = self.profile.voters, self.profile.clients
        self.note(0, "seed {}: {} voters, {} clients; {}", self.seed, voters, clients, self._plan())
        self.note(0, "{}", self.profile)
        for node in self.nodes.values():
            node.start()
        for client in self._clients:
            client.think()
        self._trouble.start()
        self._refusals.start()
        if self._operator is not None:
            self._operator.start()
        if self._acks is not None:
            self._acks.start()
        for _ in range(self.steps):
            self._step()

    def _plan(self) -> str:
        return f"its plan has {', '.join(parts_of(self.profile)) or 'no faults'}"

    def _liveness_phase(self) -> None:
        self._stop_faults()
        self._writes_before_calm = self.counts["writes_acknowledged"]
        self._events_before_calm = self.counts["events"]
        timeout = self.profile.core.election_timeout_ticks * TICK
        begin = self.clock.now
        deadline = begin + LIVENESS_ELECTIONS_MAX * timeout
        halfway = begin + LIVENESS_ELECTIONS_MAX * timeout // 2
        last_end = self._last_end()
        while self.clock.now < deadline:
            calm_events = self.counts["events"] - self._events_before_calm
            if self.clock.now >= halfway or calm_events >= self.calm_steps_max // 5:
                # Where logs are cut as fast as they grow, who is behind gets one snapshot after the other as
                # long as all these write; and who is slow gets ever further behind.
                self._stop_clients()
            pause_until = self.clock.now + timeout
            while self.clock.now < pause_until:
                self._step()
            if self._operator is not None:
                self._operator.end_strangers()
            if self._acks is not None:
                self._acks.settle()
            if not self._what_is_amiss():
                break
            if self.clock.now >= deadline and self._last_end() > last_end:
                last_end = self._last_end()
                more = LIVENESS_ELECTIONS_MAX // 4 * timeout
                deadline = min(deadline + more, begin + CATCH_UP_ELECTIONS_MAX * timeout)
        else:
            elections = (self.clock.now - begin) // timeout
            raise Violation("liveness", f"{elections} election timeouts in calm: {self._what_is_amiss()}")
        self._last_judgement()

    def _last_end(self) -> int:
        """How far the log has come of whoever is furthest behind of those that are to be well."""
        return min((self.cluster.nodes[m].last_index for m in self._well() if m in self.nodes), default=0)

    def _stop_faults(self) -> None:
        """All is mended but what stays broken for good."""
        self.calm = True
        self.network.heal()
        self.network.faults = self.profile.network.calm()
        self._remains = draw_remains(self, self.split_random())
        self.network.cut(self._remains.links)
        for node_id, node in self.nodes.items():
            node.be_well()
            kind = self._remains.kinds.get(node_id, "")
            if kind:
                self.counts[f"calm_but_{kind}"] += 1
                break_node(node, kind)
        broken = ", ".join(f"node {node_id} ({kind})" for node_id, kind in self._remains.kinds.items())
        self.note(0, "faults stop{}", f", but for {broken}" if broken else "")
        if self.sends_visitors:
            self._visitors = [
                Visitor(self, self.profile.clients + number, node_id)
                for number, node_id in enumerate(self._well())
            ]
        for visitor in self._visitors:
            visitor.think()

    @property
    def unwell(self) -> frozenset[NodeId]:
        return self._remains.unwell

    def _well(self) -> list[NodeId]:
        """Return the members of whom everything is expected."""
        return sorted(self.cluster.configurations.newest.members - self.unwell)

    def _what_is_amiss(self) -> str:
        """Return why the cluster cannot be called well, or ""."""
        membership = self.cluster.configurations.newest
        down = [m for m in self._well() if m not in self.nodes or not self.nodes[m].up]
        recovering = [m for m in self._well() if self.cluster.is_recovering(m)]
        if recovering:
            return f"nodes {recovering} have not got back what they lost"
        if down:
            return f"nodes {down} are down"
        cores = {node_id: self.nodes[node_id].core for node_id in self._well()}
        views = {node_id: (core.term, core.leader) for node_id, core in cores.items()}
        if len(set(views.values())) != 1 or not membership.is_voter(next(iter(views.values()))[1]):
            return f"no common leader; (term, leader) at each node: {views}"
        leader = next(iter(views.values()))[1]
        if leader in self.unwell:
            return f"node {leader} leads, which is {self._remains.kinds[leader]}"
        for node_id in cores:
            view = self.nodes[node_id].view
            if view.effective != membership or view.committed != membership:
                return (
                    f"node {node_id} has the members {described(view.effective)}, not {described(membership)}"
                )
        if membership.is_joint and membership.auto_leave:
            return f"nobody ends what is joint: {described(membership)}"
        if self.counts["writes_acknowledged"] == self._writes_before_calm:
            return "no write was acknowledged"
        return next(filter(None, (visitor.missing() for visitor in self._visitors)), "")

    def _stop_clients(self) -> None:
        for client in self._clients:
            client.stop()

    def _last_judgement(self) -> None:
        """Let calls and queues run dry, then compare what every member has."""
        deadline = self.clock.now + LIVENESS_ELECTIONS_MAX * self.profile.core.election_timeout_ticks * TICK
        self._stop_clients()
        for visitor in self._visitors:
            visitor.stop()
        while lagging := self._lagging():
            if self.clock.now >= deadline:
                last = len(self.cluster.committed) - 1
                raise Violation(
                    "liveness", f"{last} is committed; applied, and the log's end, in calm: {lagging}"
                )
            self._step()
        for node_id in self._well():
            self.application.check_state(node_id, self.nodes[node_id].machine, "the state at the end")
        for operation in self.oracle.operations.values():
            if operation.outcome is Outcome.UNKNOWN and operation.number in self.oracle.positions:
                self.counts["writes_unknown_but_committed"] += 1

    def _lagging(self) -> dict[NodeId, tuple[LogIndex, LogIndex]]:
        """Return the members that have not applied all that is committed, or whose logs end elsewhere."""
        ends = {
            member: (self.nodes[member].machine.applied_index, self.cluster.nodes[member].last_index)
            for member in self._well()
        }
        last = len(self.cluster.committed) - 1
        return {member: end for member, end in ends.items() if end != (last, last)}

    def _step(self) -> None:
        self.counts["events"] += 1
        if not self.clock.step():
            raise AssertionError("nothing is left to happen, not even a tick")
        if self.cluster.newly_committed:
            self._take_committed()
        if self.calm and self.counts["events"] > self._events_before_calm + self.calm_steps_max:
            raise Violation("liveness", f"{self.calm_steps_max} steps in calm: {self._what_is_amiss()}")

    def _take_committed(self) -> None:
        entries, self.cluster.newly_committed = self.cluster.newly_committed, []
        self.counts["entries_committed"] += len(entries)
        self.note(0, "committed through {}", entries[-1].index)
        self.oracle.committed(entries)
        if self._operator is not None:
            self._operator.look()

    # What the inhabitants ask

    def split_random(self) -> Random:
        return Random(self._random.getrandbits(64))

    def core_config(self, node_id: NodeId, run_id: int) -> Config:
        core = self.profile.core
        return Config(
            node_id=node_id,
            run_id=run_id,
            election_timeout_ticks=core.election_timeout_ticks,
            heartbeat_ticks=core.heartbeat_ticks,
            append_bytes_max=core.append_bytes_max,
            inflight_messages_max=core.inflight_messages_max,
            inflight_bytes_max=max(8 << 20, core.append_bytes_max),
            uncommitted_bytes_max=core.uncommitted_bytes_max,
            apply_bytes_max=core.apply_bytes_max,
            apply_inflight_bytes_max=core.apply_inflight_bytes_max,
            learners_max=self.profile.membership.learners_max,
            pre_vote=core.pre_vote,
            check_quorum=core.check_quorum,
        )

    def send(self, message: Message) -> None:
        if self.story is not None:
            self.story.message(self.clock.now, "sends", message)
        self.cluster.message_left(message)
        if isinstance(message, RequestVote) and message.forced:
            self._forced.add((message.sender, message.term))
        if isinstance(message, RequestVoteReply) and message.granted:
            self._trouble.at_vote(self.nodes[message.sender])
        self.network.send(message)

    def _arrived(self, message: Message) -> None:
        node = self.nodes.get(message.to)
        if node is not None and node.up:
            if self.story is not None:
                self.story.message(self.clock.now, "gets", message)
            node.deliver(message)
            return
        self.counts["messages_to_the_dead"] += 1
        # The sender's transport may notice, as with a refused connection.
        sender = self.nodes.get(message.sender)
        if sender is not None:
            sender.unreachable(message.to)

    def stepped(
        self, node: SimNode, term: Term, leads: bool, commit_index: LogIndex, last_index: LogIndex
    ) -> None:
        state = b"%d %d %d %d %d %d" % (self.clock.now, node.node_id, term, leads, commit_index, last_index)
        self.trace_hash = crc32(state, self.trace_hash)
        before = len(self.cluster.committed)
        self.cluster.stepped(node.node_id, term, leads, commit_index, last_index)
        self.cluster.believes(node.node_id, node.view)
        if self.cluster.newly_committed:
            self._take_committed()
        elif self._operator is not None:
            self._operator.look()
        if self._acks is not None:
            self._acks.stepped(node)
        if leads and (node.node_id, term) in self._forced:
            self._forced.discard((node.node_id, term))
            self.counts["transfers_done"] += 1
        if leads:
            self._refusals.leads(node.node_id, term)
        if leads and len(self.cluster.committed) > before:
            self.moment(node)

    def moment(self, node: SimNode) -> None:
        self._trouble.at_moment(node)

    def gone(self, node: SimNode) -> None:
        self._refusals.gone(node.node_id)

    def restart_later(self, node: SimNode) -> None:
        ticks = 0.5 if self.calm else self._random.random() * self.profile.down_ticks_max
        self.clock.call_later(int(ticks * TICK), self._restart, node, node.life)

    def _restart(self, node: SimNode, life: int) -> None:
        is_over = self._remains.kinds.get(node.node_id) == "down"
        if node.life == life and not node.up and self.nodes.get(node.node_id) is node and not is_over:
            self.counts["restarts"] += 1
            node.start()

    def _begin(self, node_id: NodeId) -> None:
        """A machine with an empty disk becomes a node."""
        self.cluster.join(node_id)
        node = self.nodes[node_id] = self._make_node(node_id)
        node.start()

    def _end(self, node_id: NodeId) -> None:
        """A node is switched off for good."""
        self.counts["members_ended"] += 1
        node = self.nodes.pop(node_id)
        node.crash(power_cut=False)

    def note(self, node_id: NodeId, text: str, *arguments: object) -> None:
        if self.story is not None:
            self.story.tell(self.clock.now, node_id, text.format(*arguments))


def _wire_codec() -> Codec:
    """Return a function that passes a message through the wire format and back."""

    def through_the_wire(message: Message) -> Message:
        (decoded,) = decode_frame(frame_of([encode_message(message, BlockCache())])).messages
        return decoded

    return through_the_wire


def run_seed(
    seed: int, *, steps: int = STEPS, plant: Plant | None = None, ignored: frozenset[str] = frozenset()
) -> Result:
    """Run one seed to its end."""
    return Simulation(seed, steps=steps, plant=plant, ignored=ignored).run()

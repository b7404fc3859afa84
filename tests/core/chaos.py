"""A few pure cores, and a network and disks that do whatever an `act` says. Everything is checked at once.

Smaller and blunter than the simulator: no clock, no profile of faults. Each step is an operation and a
number, so that hypothesis can shrink a failure to the few steps that matter.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from raft.core.errors import RaftError
from raft.core.messages import AppendEntries, AppendEntriesReply, Message, RequestVoteReply
from raft.core.raft import Raft
from raft.core.types import Entry, EntryKind, LogIndex, Membership, NodeId, Term
from tests.core.driver import Node, voters

OPERATIONS = (
    ["deliver"] * 12
    + ["ready"] * 6
    + ["sync"] * 6
    + ["settle"] * 3
    + ["tick"] * 4
    + ["apply"] * 2
    + ["propose"] * 2
    + ["read", "drop", "duplicate", "crash", "restart", "restart", "unreachable", "campaign"]
)

WEIGHTS = {
    "deliver": 400,
    "ready": 200,
    "sync": 150,
    "settle": 100,
    "apply": 80,
    "propose": 60,
    "tick": 40,
    "read": 30,
    "duplicate": 30,
    "drop": 20,
    "restart": 15,
    "unreachable": 5,
    "crash": 3,
    "campaign": 2,
}
"""For long runs: failures are rare enough that much gets done between them."""

UNDER_WAY_MAX = 400
REORDER_MAX = 12


class Chaos:
    """`act` does one thing; what must always hold is asserted by the end of it."""

    def __init__(
        self,
        size: int,
        seed: int,
        *,
        membership: Membership | None = None,
        core_class: type[Raft] = Raft,
        **options: int,
    ) -> None:
        ids = range(1, size + 1)
        settings = {
            "inflight_messages_max": 3,
            "append_bytes_max": 200,
            "inflight_bytes_max": 500,
            "uncommitted_bytes_max": 2000,
            **options,
        }
        first = membership or voters(*ids)
        self.nodes = {
            i: Node(i, first, options=settings, random=random.Random(seed + i), core_class=core_class)
            for i in ids
        }
        self.size = size
        self.down: set[NodeId] = set()
        self.network: list[Message] = []
        self.leaders: dict[Term, NodeId] = {}
        self.votes: dict[tuple[NodeId, Term], NodeId] = {}
        self.entries: dict[tuple[LogIndex, Term], tuple[Entry, Term]] = {}
        self.committed: list[Entry] = []
        self.commit_term: Term = 0
        self.commit_seen = dict.fromkeys(ids, 0)
        self.reads: dict[NodeId, dict[int, LogIndex]] = {i: {} for i in ids}
        self.forwarded: dict[tuple[NodeId, int, int], list[bytes]] = {}
        self.committed_data: set[bytes] = set()
        self.refused: set[bytes] = set()
        self.proposed = self.reads_served = 0

    # What happens

    def act(self, operation: str, number: int) -> None:
        node = self.nodes[number % self.size + 1]
        number //= self.size
        if operation in ("deliver", "drop", "duplicate"):
            if self.network:
                # Reordered, but not without limit: who is overtaken by 400 others is as good as lost.
                self._carry(operation, number % min(len(self.network), REORDER_MAX))
        elif operation == "restart":
            if node.node_id in self.down:
                self.down.remove(node.node_id)
                node.restart()
                self.commit_seen[node.node_id] = 0
                self.reads[node.node_id] = {}
                self._check(node)
        elif node.node_id not in self.down:
            getattr(self, f"_{operation}")(node, number)
            self._check(node)

    def _carry(self, operation: str, place: int) -> None:
        message = self.network[place]
        if operation != "duplicate":
            self.network.pop(place)
        if operation == "drop" or message.to in self.down:
            return
        node = self.nodes[message.to]
        node.core.step(message)
        self._check(node)

    def _send(self, messages: Sequence[Message]) -> None:
        self.network += messages
        del self.network[:-UNDER_WAY_MAX]

    def _ready(self, node: Node, _: int = 0) -> None:
        if not node.core.has_ready():
            return
        seen = len(node.reads)
        ready = node.take_ready()
        last_index = node.core.last_index
        more_to_send = any(
            isinstance(m, AppendEntries) and m.entries and m.entries[-1].index < last_index
            for m in ready.messages
        )
        if ready.apply is None and not more_to_send:
            assert not node.core.has_ready(), "a Ready that leaves work for another: a busy loop"
        if ready.append is not None:
            self._check_entries(node, ready.append.entries)
        for position, index in node.reads[seen:]:
            self._check_reads(node, position, index)
        for ticket, _ in ready.dropped:
            self.refused.update(self.forwarded[node.node_id, node.run, ticket])
            assert not self.refused & self.committed_data, "refused, and yet committed"
        self._send(ready.messages)

    def _sync(self, node: Node, _: int = 0) -> None:
        if node.writes:
            replies = node.sync()
            for reply in replies:
                self._check_promise(node, reply)
            self._send(replies)
            self._check(node)

    def _settle(self, node: Node, _: int = 0) -> None:
        while node.core.has_ready() or node.writes or node.applies:
            self._ready(node)
            self._sync(node)
            self._apply(node)

    def _tick(self, node: Node, number: int) -> None:
        for _ in range(1 + number % 3):
            node.core.tick()

    def _apply(self, node: Node, _: int = 0) -> None:
        if node.applies:
            for entry in node.apply():
                assert self.committed[entry.index - 1] == entry, "applied what is not committed"

    def _propose(self, node: Node, number: int) -> None:
        payloads = []
        for _ in range(1 + number % 4):
            self.proposed += 1
            payloads.append(b"%d" % self.proposed)
        try:
            ticket = node.core.propose(payloads).ticket
        except RaftError:
            return
        if ticket:
            self.forwarded[node.node_id, node.run, ticket] = payloads

    def _read(self, node: Node, _: int) -> None:
        position = node.core.read_index()
        self.reads[node.node_id][position] = len(self.committed)

    def _crash(self, node: Node, number: int) -> None:
        node.crash(surviving_writes=number % (len(node.writes) + 1))
        self.down.add(node.node_id)

    def _unreachable(self, node: Node, number: int) -> None:
        node.core.report_unreachable(number % self.size + 1)

    def _campaign(self, node: Node, _: int) -> None:
        node.core.campaign()

    # What must hold

    def _check(self, node: Node) -> None:
        if node.node_id in self.down:
            return
        core = node.core
        if node.leads and self.leaders.setdefault(core.term, node.node_id) != node.node_id:
            raise AssertionError(f"two leaders in term {core.term}")
        if node.leads and core.term > self.commit_term and self.committed:
            last = self.committed[-1]
            assert core.log.matches(last.index, last.term), f"the leader of term {core.term} lacks {last[:2]}"
        commit = core.commit_index
        seen = self.commit_seen[node.node_id]
        assert commit >= seen, "the commit index fell"
        assert commit <= core.last_index
        if commit > seen:
            self.commit_seen[node.node_id] = commit
            # What a snapshot or a compacted log stands for was looked at before, at somebody else.
            low = max(seen + 1, core.log.first_index)
            assert low <= len(self.committed) + 1, "a snapshot of what was not committed"
            for entry in core.log.entries(low, commit + 1, 1 << 30):
                if entry.index <= len(self.committed):
                    assert self.committed[entry.index - 1] == entry, "two entries committed at one index"
                else:
                    self._commit(node, entry)

    def _commit(self, node: Node, entry: Entry) -> None:
        self.committed.append(entry)
        if entry.kind == EntryKind.COMMAND:
            assert entry.data not in self.committed_data, "a batch that came twice was appended twice"
            assert entry.data not in self.refused, "refused, and yet committed"
            self.committed_data.add(entry.data)
        self.commit_term = max(self.commit_term, node.core.term)
        holders = {
            other.node_id
            for other in self.nodes.values()
            if other.disk.last_index >= entry.index and other.disk.term(entry.index) == entry.term
        }
        self._check_holders(node, entry, holders)

    def _check_holders(self, node: Node, entry: Entry, holders: set[NodeId]) -> None:
        """`node` is the first to call `entry` committed; `holders` have it on their disks."""
        assert 2 * len(holders) > self.size, f"{entry[:2]} is committed and durable on {holders}"

    def _check_entries(self, node: Node, entries: Sequence[Entry]) -> None:
        for entry in entries:
            fact = (entry, node.core.log.term(entry.index - 1))
            known = self.entries.setdefault((entry.index, entry.term), fact)
            assert known == fact, "log matching: one position, two entries or two predecessors"

    def _check_promise(self, node: Node, reply: Message) -> None:
        if isinstance(reply, RequestVoteReply) and reply.granted:
            key = (reply.sender, reply.term)
            assert self.votes.setdefault(key, reply.to) == reply.to, f"two votes in term {reply.term}"
            state = node.hard_state
            assert state.term > reply.term or state[:2] == (reply.term, reply.to), (
                "a vote that is not durable"
            )
        if (
            isinstance(reply, AppendEntriesReply)
            and not reply.rejected
            and node.hard_state.term == reply.term
        ):
            assert node.disk.last_index >= reply.match_index, "an acknowledgement that is not durable"

    def _check_reads(self, node: Node, position: int, index: LogIndex) -> None:
        waiting = self.reads[node.node_id]
        for read in [read for read in waiting if read <= position]:
            assert index >= waiting.pop(read), "a stale read"
            self.reads_served += 1

    # Afterwards: with nothing failing any more, all comes to rest in agreement

    def calm(self) -> None:
        """Everyone comes back, nothing is lost: a leader, a commit, equal logs, every read answered."""
        for node_id in sorted(self.down):
            self.act("restart", node_id - 1)
        for _ in range(150):
            for node in self.nodes.values():
                node.core.tick()
                self._check(node)
            for _ in range(12):
                for node in self.nodes.values():
                    self._settle(node)
                    self._check(node)
                for _ in range(len(self.network)):
                    self._carry("deliver", 0)
            leaders = [node for node in self.nodes.values() if node.leads]
            is_idle = leaders and not leaders[-1].core.transfer_target and not any(self.reads.values())
            if is_idle and self._agree():
                break
        else:
            raise AssertionError("no rest: " + str([node.core.status() for node in self.nodes.values()]))
        before = len(self.committed)
        leaders[-1].core.propose([b"last"])
        for _ in range(6):
            for node in self.nodes.values():
                self._settle(node)
                self._check(node)
            for _ in range(len(self.network)):
                self._carry("deliver", 0)
        assert len(self.committed) == before + 1
        assert all(node.applied == self.committed for node in self.nodes.values())

    def _agree(self) -> bool:
        return all(
            node.applied == self.committed and node.core.last_index == len(self.committed)
            for node in self.nodes.values()
        )

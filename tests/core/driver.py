"""One core with the shell around it taken apart: every step of `ready.py`'s loop is a call here.

The disk is a list that can lose what was not synced. Nothing happens by itself, so that a test can
put a crash, a message or a second Ready between any two steps.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from raft.core.ack_policy import AckView
from raft.core.config import Config
from raft.core.errors import Compacted, Unavailable
from raft.core.membership_codec import decode_membership
from raft.core.messages import Message
from raft.core.raft import Raft
from raft.core.ready import (
    ChangeAnswer,
    DroppedProposal,
    ReadState,
    Ready,
    Role,
    StorageAppend,
    StorageApply,
)
from raft.core.types import (
    Entry,
    EntryKind,
    HardState,
    LogIndex,
    Membership,
    NodeId,
    SnapshotMeta,
    Term,
    entry_bytes,
)

ELECTION_TICKS = 10


class MemoryLog:
    """A StoredLog over a list: what is durable and published."""

    def __init__(
        self,
        entries: Iterable[Entry] = (),
        *,
        before: tuple[LogIndex, Term] = (0, 0),
        membership: Membership | None = None,
    ) -> None:
        """`membership`: the configuration at `before`, if the log knows it."""
        self.before_index, self.before_term = before
        self.list = list(entries)
        self.membership = membership

    def memberships(self) -> Sequence[tuple[LogIndex, Membership]]:
        found = [
            (entry.index, decode_membership(entry.data))
            for entry in self.list
            if entry.kind == EntryKind.MEMBERSHIP
        ]
        return found if self.membership is None else [(self.before_index, self.membership), *found]

    @property
    def first_index(self) -> LogIndex:
        return self.before_index + 1

    @property
    def last_index(self) -> LogIndex:
        return self.before_index + len(self.list)

    def term(self, index: LogIndex) -> Term:
        if index == self.before_index:
            return self.before_term
        if index < self.first_index:
            raise Compacted(index)
        if index > self.last_index:
            raise Unavailable(index)
        return self.list[index - self.first_index].term

    def entries(self, low: LogIndex, high: LogIndex, bytes_max: int) -> Sequence[Entry]:
        if low < self.first_index:
            raise Compacted(low)
        if high > self.last_index + 1:
            raise Unavailable(high)
        found: list[Entry] = []
        for entry in self.list[low - self.first_index : high - self.first_index]:
            bytes_max -= entry_bytes(entry)
            if bytes_max < 0 and found:
                break
            found.append(entry)
        return found

    def write(self, entries: Sequence[Entry]) -> None:
        """Writing entry i discards everything at or after i."""
        if entries:
            assert self.first_index <= entries[0].index <= self.last_index + 1, "a hole in the log"
            del self.list[entries[0].index - self.first_index :]
            self.list.extend(entries)

    def compact(self, index: LogIndex, membership: Membership) -> None:
        """Forget everything through `index`, where `membership` holds."""
        self.before_term = self.term(index)
        del self.list[: index - self.before_index]
        self.before_index, self.membership = index, membership

    def replace(self, meta: SnapshotMeta) -> None:
        """A snapshot stands in the place of the whole log."""
        self.list = []
        self.before_index, self.before_term, self.membership = meta.index, meta.term, meta.membership


class FixedTimeout(random.Random):
    """Draws always the same election timeout, so that a test can say who campaigns first."""

    def __init__(self, extra_ticks: int = 0) -> None:
        super().__init__(0)
        self.extra_ticks = extra_ticks

    def randrange(self, start: int, stop: int | None = None, step: int = 1) -> int:
        assert stop is not None
        return min(start + self.extra_ticks, stop - 1)


def terms_log(*terms: Term) -> list[Entry]:
    """Entries 1, 2, ... of these terms, as the paper's figures give logs."""
    return [Entry(i, term, EntryKind.COMMAND, b"%d" % i) for i, term in enumerate(terms, 1)]


def voters(*ids: NodeId) -> Membership:
    return Membership(voters=frozenset(ids))


@dataclass
class Node:
    """A core, its disk, its two queues, and what it handed out."""

    node_id: NodeId
    membership: Membership
    disk: MemoryLog = field(default_factory=MemoryLog)
    hard_state: HardState = HardState()
    options: Mapping[str, int] = field(default_factory=dict)
    random: random.Random = field(default_factory=FixedTimeout)
    run: int = 1
    core_class: type[Raft] = Raft
    state_index: LogIndex | None = None
    """What the state machine is at in the beginning; None: at the beginning of the log."""
    recovering: bool = False
    """What the disk says: it lost durable data."""

    def __post_init__(self) -> None:
        self.applied: list[Entry] = []
        self.states: dict[LogIndex, list[Entry]] = {}
        """By index: what a snapshot that came in has applied. Of one that is not here nothing is known."""
        self._boot()

    def _boot(self) -> None:
        begin = self.disk.before_index if self.state_index is None else self.state_index
        options = {"election_timeout_ticks": ELECTION_TICKS, "heartbeat_ticks": 1, **self.options}
        self.config = Config(node_id=self.node_id, run_id=self.node_id * 100 + self.run, **options)  # type: ignore[arg-type]
        self.core = self.core_class(
            self.config,
            log=self.disk,
            hard_state=self.hard_state,
            membership=self.membership,
            applied_index=self.applied[-1].index if self.applied else begin,
            random=self.random,
            is_recovering=self.recovering,
        )
        self.writes: deque[StorageAppend] = deque()
        self.applies: deque[StorageApply] = deque()
        self.reads: list[ReadState] = []
        self.dropped: list[DroppedProposal] = []
        self.changes: list[ChangeAnswer] = []
        self.snapshots_wanted: list[NodeId] = []
        self.views: list[AckView] = []

    @property
    def leads(self) -> bool:
        return self.core.role is Role.LEADER

    def take_ready(self) -> Ready:
        """Take a Ready and queue its parts. The caller sends `messages`."""
        ready = self.core.ready()
        if ready.append is not None:
            self.writes.append(ready.append)
        if ready.apply is not None:
            self.applies.append(ready.apply)
        self.reads += ready.reads
        self.dropped += ready.dropped
        self.changes += ready.changes
        self.snapshots_wanted += ready.snapshots_wanted
        if ready.acks is not None:
            self.views.append(ready.acks)
        return ready

    def _write(self, append: StorageAppend) -> None:
        if append.snapshot is not None:
            self.disk.replace(append.snapshot)
            self.applied = self.states.pop(append.snapshot.index, [])
        self.disk.write(append.entries)
        if append.hard_state is not None:
            self.hard_state = append.hard_state
        if append.ends_recovery:
            self.recovering = False

    def sync(self) -> Sequence[Message]:
        """Complete the log writer's next append. Return the replies that may leave now."""
        if self.writes[0].snapshot is not None:
            while self.applies:
                self.apply()
        append = self.writes.popleft()
        self._write(append)
        if append.snapshot is not None:
            self.core.snapshot_installed(append.snapshot)
        self.core.append_done(append.done)
        return append.replies

    def apply(self) -> Sequence[Entry]:
        """Complete the state machine's next batch."""
        entries = self.applies.popleft().entries
        for entry in entries:
            assert entry.index == (self.applied[-1].index if self.applied else self.disk.before_index) + 1
            self.applied.append(entry)
        self.core.apply_done(entries[-1].index)
        return entries

    def compact(self, index: LogIndex) -> None:
        """Drop the log through `index`, which is applied."""
        assert index <= self.core.applied_index
        self.disk.compact(index, self.core.membership_at(index))

    def snapshot(self) -> SnapshotMeta:
        """Return what a snapshot of the state machine as it is now stands for."""
        index = self.core.applied_index
        return SnapshotMeta(index, self.core.log.term(index), self.core.membership_at(index))

    def offer(self, meta: SnapshotMeta, state: Sequence[Entry] = ()) -> bool:
        """A snapshot came in, whose state has applied `state`."""
        is_wanted = self.core.offer_snapshot(meta)
        if is_wanted:
            self.states[meta.index] = list(state)
        return is_wanted

    def crash(self, surviving_writes: int = 0) -> None:
        """Lose everything but the disk, which got the first `surviving_writes` of the queue."""
        for _ in range(surviving_writes):
            self._write(self.writes.popleft())
        self.writes.clear()
        self.applies.clear()

    def lose(self, count: int) -> None:
        """The node is down, and its disk loses the last `count` entries, though not term and vote. The state
        that was ahead of what is left is lost too, and what was called committed."""
        del self.disk.list[len(self.disk.list) - count :]
        self.hard_state = self.hard_state._replace(
            commit_index=min(self.hard_state.commit_index, self.disk.last_index)
        )
        del self.applied[max(0, self.disk.last_index - self.disk.before_index) :]
        self.recovering = True

    def restart(self) -> None:
        self.run += 1
        self._boot()

    # For tests of one node: its peers are the test

    def settle(self) -> list[Message]:
        """Do all that can be done without others; return what was sent, replies included."""
        sent: list[Message] = []
        for _ in range(1000):
            if self.core.has_ready():
                sent += self.take_ready().messages
            elif self.writes:
                sent += self.sync()
            elif self.applies:
                self.apply()
            else:
                return sent
        raise AssertionError("the core is never done: a busy loop")

    def step(self, *messages: Message) -> list[Message]:
        """Take in `messages`, then settle."""
        for message in messages:
            self.core.step(message)
        return self.settle()

    def tick(self, count: int = 1) -> list[Message]:
        sent = []
        for _ in range(count):
            self.core.tick()
            sent += self.settle()
        return sent

    def log_terms(self) -> list[Term]:
        log = self.core.log
        return [log.term(index) for index in range(log.first_index, log.last_index + 1)]

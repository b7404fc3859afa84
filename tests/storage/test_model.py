"""The log against a naive list, with crashes of every kind in between."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raft.core.errors import StorageError
from raft.core.membership_codec import decode_membership
from raft.core.types import Entry, EntryKind, HardState, Membership
from raft.storage import LogOptions, LogStore, MemoryDisk
from tests.storage.logs import UNKNOWN, change, image, make_append, make_entries, open_log, voters

OPTIONS = LogOptions(segment_bytes=2048, cache_bytes_max=300, record_bytes_target=150, prepare_bytes=700)


class LogModel(RuleBasedStateMachine):
    """`entries`, `term` and `vote` are what was acknowledged; every one of them must survive anything."""

    disk: MemoryDisk
    log: LogStore

    @initialize()
    def start(self) -> None:
        self.disk = MemoryDisk()
        self.log = open_log(self.disk, OPTIONS)
        self.entries: list[Entry] = []
        """Entry i stands at i - 1; those below `first` are only remembered here."""
        self.term, self.vote, self.commit = 1, 0, 0
        self.first, self.previous_term = 1, 0
        self.base: tuple[int, Membership] = (0, UNKNOWN)
        """What the last snapshot brought, and where. Entries above it may say something newer."""

    def membership_at(self, index: int) -> Membership:
        """What holds there, UNKNOWN if the log never heard of any."""
        above = self.entries[self.base[0] : index]
        changes = [entry for entry in above if entry.kind == EntryKind.MEMBERSHIP]
        return decode_membership(changes[-1].data) if changes else self.base[1]

    def draw_appends(self, data: st.DataObject):
        """Appends as a core would ask for them, and the model after them."""
        entries, term, vote = list(self.entries), self.term, self.vote
        appends = []
        for _ in range(data.draw(st.integers(1, 3))):
            if data.draw(st.booleans()):
                raised = data.draw(st.integers(0, 2))
                # In one term a vote is given once, and never changed.
                if raised or not vote:
                    term, vote = term + raised, data.draw(st.integers(0, 3))
            state = HardState(term, vote, self.commit)
            first = data.draw(st.integers(self.commit + 1, len(entries) + 1))
            count = data.draw(st.integers(0, 6))
            new = make_entries(first, count, term, data.draw(st.sampled_from([10, 60, 400])))
            for place in data.draw(st.sets(st.integers(0, 5), max_size=2)):
                if place < count:
                    new[place] = change(
                        first + place, term, voters(first + place, data.draw(st.integers(1, 3)))
                    )
            if new:
                entries[first - 1 :] = new
            appends.append(make_append(new, state))
        return appends, entries, term, vote

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        appends, entries, term, vote = self.draw_appends(data)
        self.log.write(appends)
        for append in appends:
            self.log.publish(append)
        self.entries, self.term, self.vote = entries, term, vote

    @rule(data=st.data(), skip=st.integers(0, 3))
    def write_with_a_fault(self, data: st.DataObject, skip: int) -> None:
        appends, entries, term, vote = self.draw_appends(data)
        self.disk.fail_next("any", skip=skip)
        try:
            self.log.write(appends)
        except StorageError:
            before = (self.entries, self.term, self.vote)
            self.restart(data.draw(st.none() | st.integers(0, 99)))
            state = self.log.hard_state
            kept = self.entries[: self.first - 1] + list(image(self.log).entries)
            found = (kept, state.term, state.voted_for)
            # A log that was never written to has the term 0.
            found = (found[0], max(found[1], 1), found[2])
            assert found in (before, (entries, term, vote))
            self.entries, self.term, self.vote = found
            return
        for append in appends:
            self.log.publish(append)
        self.entries, self.term, self.vote = entries, term, vote
        self.restart(None)

    @rule(by=st.integers(0, 5))
    def commit_more(self, by: int) -> None:
        self.commit = max(self.commit, min(self.commit + by, len(self.entries)))
        state = HardState(self.term, self.vote, self.commit)
        if self.log.last_batch:
            self.log.write([make_append((), state, must_sync=False)])

    @rule()
    def note(self) -> None:
        self.log.note_high_water()

    @rule(seed=st.none() | st.integers(0, 99))
    def restart(self, seed: int | None) -> None:
        if seed is None:
            self.disk.crash_keep_all()
        else:
            self.disk.crash(random.Random(seed))
        self.log = open_log(self.disk, OPTIONS)

    @rule()
    def close_and_restart(self) -> None:
        self.log.close()
        self.disk.crash(random.Random(0))
        self.log = open_log(self.disk, OPTIONS)
        if self.log.last_batch:
            assert self.log.hard_state.commit_index <= self.commit

    def found_first(self) -> int:
        """Take over how far the log was compacted: only whole segments go, and which, is its own matter."""
        first = self.log.first_index
        assert self.first <= first <= self.commit + 1
        if first > self.first:
            self.previous_term = self.entries[first - 2].term
        self.first = first
        return first

    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.entries) + 2))
        kept = self.log.compact(index)
        self.log.publish_compaction()
        assert self.found_first() == kept <= max(index, self.first - 1) + 1
        if data.draw(st.booleans()):
            self.log.discard_dropped()

    @rule(data=st.data(), skip=st.integers(0, 8))
    def compact_with_a_fault(self, data: st.DataObject, skip: int) -> None:
        self.disk.fail_next("any", skip=skip)
        try:
            self.log.compact(len(self.entries))
        except StorageError:
            pass
        else:
            self.log.publish_compaction()
            self.found_first()
        self.restart(data.draw(st.none() | st.integers(0, 99)))
        self.found_first()

    def draw_snapshot(self, data: st.DataObject):
        """A snapshot as a leader may send one: nothing that was committed here is otherwise there."""
        index = data.draw(st.integers(max(self.first - 1, 1), len(self.entries) + 5))
        known = index <= len(self.entries) and self.term_at(index)
        if index <= self.commit or (known and data.draw(st.booleans())):
            term = self.term_at(index)
        else:
            term = max(self.term, self.entries[-1].term if self.entries else 1) + 1
        is_held = known == term
        entries = self.entries if is_held else make_entries(1, index, term)
        raised = max(self.term, term)
        vote = self.vote if raised == self.term else 0
        state = HardState(raised, vote, max(self.commit, index))
        held = self.membership_at(index if is_held else min(index, self.log.hard_state.commit_index))
        given = UNKNOWN
        if data.draw(st.booleans()):
            given = held if is_held and held != UNKNOWN else voters(index, data.draw(st.integers(1, 3)))
        base = (index, held if given == UNKNOWN else given)
        append = make_append((), state, snapshot=(index, term), membership=given)
        return append, (entries, raised, vote, index + 1, term, base)

    def term_at(self, index: int) -> int:
        return self.previous_term if index == self.first - 1 else self.entries[index - 1].term

    def take_snapshot(self, after) -> None:
        self.entries, self.term, self.vote, self.first, self.previous_term, self.base = after
        self.commit = max(self.commit, self.first - 1)

    @rule(data=st.data())
    def snapshot(self, data: st.DataObject) -> None:
        append, after = self.draw_snapshot(data)
        self.log.write([append])
        self.log.publish(append)
        self.take_snapshot(after)

    @rule(data=st.data(), skip=st.integers(0, 8))
    def snapshot_with_a_fault(self, data: st.DataObject, skip: int) -> None:
        append, after = self.draw_snapshot(data)
        self.disk.fail_next("any", skip=skip)
        try:
            self.log.write([append])
        except StorageError:
            self.restart(data.draw(st.none() | st.integers(0, 99)))
            term = self.log.hard_state.term
            first_index = self.log.first_index
            base = dict(self.log.memberships()).get(first_index - 1, UNKNOWN)
            found = (list(image(self.log).entries), max(term, 1), first_index, base)
            entries, raised, _, first, _, (_, membership) = after
            if found == (entries[first - 1 :], raised, first, membership):
                self.take_snapshot(after)
            else:
                before = self.membership_at(self.first - 1)
                assert found == (self.entries[self.first - 1 :], self.term, self.first, before)
        else:
            self.log.publish(append)
            self.take_snapshot(after)
            self.restart(None)

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        low = data.draw(st.integers(self.first, len(self.entries) + 1))
        high = data.draw(st.integers(low, len(self.entries) + 1))
        assert list(self.log.entries(low, high, 1 << 30)) == self.entries[low - 1 : high - 1]

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "log"):
            return
        assert self.log.first_index == self.first
        assert self.log.last_index == len(self.entries)
        assert self.log.term(self.first - 1) == self.previous_term
        spans = self.log.segments()
        if spans:
            assert (spans[0].first_index, spans[-1].last_index) == (self.first, len(self.entries))
            assert all(a.last_index + 1 == b.first_index for a, b in pairwise(spans))
        known = [(self.first - 1, self.membership_at(self.first - 1))]
        known += [
            (entry.index, decode_membership(entry.data))
            for entry in self.entries[self.first - 1 :]
            if entry.kind == EntryKind.MEMBERSHIP
        ]
        assert self.log.memberships() == [one for one in known if one[1] != UNKNOWN]
        state = self.log.hard_state
        assert (max(state.term, 1), state.voted_for) == (self.term, self.vote)
        assert state.commit_index <= self.commit <= len(self.entries)
        if len(self.entries) >= self.first:
            assert self.log.term(self.log.last_index) == self.entries[-1].term


TestLogModel = LogModel.TestCase
TestLogModel.settings = settings(max_examples=60, stateful_step_count=40)

"""The log against a naive list, with crashes of every kind in between."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raft.core.errors import StorageError
from raft.core.types import Entry, HardState
from raft.storage import LogOptions, LogStore, MemoryDisk
from tests.storage.logs import image, make_append, make_entries, open_log

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
        self.term, self.vote, self.commit = 1, 0, 0

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
            found = (list(image(self.log).entries), state.term, state.voted_for)
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
        self.commit = min(self.commit + by, len(self.entries))
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

    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        low = data.draw(st.integers(1, len(self.entries) + 1))
        high = data.draw(st.integers(low, len(self.entries) + 1))
        assert list(self.log.entries(low, high, 1 << 30)) == self.entries[low - 1 : high - 1]

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "log"):
            return
        assert self.log.last_index == len(self.entries)
        state = self.log.hard_state
        assert (max(state.term, 1), state.voted_for) == (self.term, self.vote)
        assert state.commit_index <= self.commit <= len(self.entries)
        if self.entries:
            assert self.log.term(self.log.last_index) == self.entries[-1].term


TestLogModel = LogModel.TestCase
TestLogModel.settings = settings(max_examples=60, stateful_step_count=40)

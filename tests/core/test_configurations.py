"""Which configuration holds where, against a twin that asks the whole log each time (traps 21, 22, 42)."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raft.core.configurations import Configurations
from raft.core.types import LogIndex, Membership
from tests.core.driver import voters

FIRST = voters(999)
OPERATIONS = ["append"] * 6 + ["configure"] * 5 + ["replace"] * 2 + ["commit"] * 5
OPERATIONS += ["compact", "compact", "restore", "restart", "forget"]
STEPS = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 2**16)), max_size=60)


class Twin:
    """A log, of which some entries are configurations, and its twin under test."""

    def __init__(self) -> None:
        self.entries: dict[LogIndex, Membership | None] = {}
        self.base: tuple[LogIndex, Membership] | None = None
        """What the log says of its beginning, if anything."""
        self.first, self.last, self.commit = 1, 0, 0
        self.count = 0
        self.under_test = Configurations(FIRST, [], 1, 0)

    def at(self, index: LogIndex) -> tuple[LogIndex, Membership]:
        """The nearest at or before `index`."""
        for i in range(index, self.first - 1, -1):
            found = self.entries[i]
            if found is not None:
                return i, found
        return self.base or (0, FIRST)

    def fresh(self) -> Membership:
        self.count += 1
        return voters(self.count)

    # Operations

    def append(self, number: int) -> None:
        self.last += 1
        self.entries[self.last] = None

    def configure(self, number: int) -> None:
        self.append(number)
        self.entries[self.last] = self.fresh()
        self.under_test.append(self.last, self.entries[self.last])  # type: ignore[arg-type]

    def replace(self, number: int) -> None:
        """Another leader's entries come in place of some that are not committed."""
        if self.last == self.commit:
            return
        first = self.commit + 1 + number % (self.last - self.commit)
        newest = self.at(self.last)
        self.last = first - 1
        changed = self.under_test.truncate(first)
        assert changed is (self.at(self.last) != newest)
        (self.configure if number % 3 == 0 else self.append)(number)

    def commit_some(self, number: int) -> None:
        before = self.at(self.commit)
        self.commit += number % (self.last - self.commit + 1)
        if number % 7:
            # The core does not tell it of every step.
            told = self.under_test.commit_to(self.commit)
            assert told or self.at(self.commit) == before or self.under_test.committed == self.at(self.commit)

    def compact(self, number: int) -> None:
        first = self.first + number % (self.commit - self.first + 2)
        self.base = None if self.at(first - 1)[0] == 0 else self.at(first - 1)
        self.first = first

    def forget(self, number: int) -> None:
        self.under_test.forget(self.first)

    def restore(self, number: int) -> None:
        index = self.commit + 1 + number % 5
        self.base = (index, self.fresh())
        self.first, self.last, self.commit = index + 1, index, index
        self.under_test.restore(*self.base)

    def restart(self, number: int) -> None:
        """The commit index is only a hint. A log names its base by the index before its first entry."""
        low = max(self.first - 1, 0)
        hint = low + number % (self.commit - low + 1)
        found = [(i, m) for i in range(self.first, self.last + 1) if (m := self.entries[i]) is not None]
        known = [(self.first - 1, self.base[1])] if self.base else []
        self.base = known[0] if known else None
        self.under_test = Configurations(FIRST, known + found, self.first, hint)
        assert self.under_test.committed == self.at(hint)
        self.under_test.commit_to(self.commit)

    # What must hold

    def check(self) -> None:
        under_test = self.under_test
        assert under_test.newest == self.at(self.last)
        for index in range(self.first - 1, self.last + 1):
            assert under_test.at(index).membership == self.at(index)[1], index
        under_test.commit_to(self.commit)
        assert under_test.committed.membership == self.at(self.commit)[1]
        assert not under_test.commit_to(self.commit)


@given(STEPS)
@settings(max_examples=200, deadline=None)
def test_like_the_whole_log(steps: list[tuple[str, int]]) -> None:
    twin = Twin()
    for operation, number in steps:
        getattr(twin, "commit_some" if operation == "commit" else operation)(number)
        if number % 4 == 0:
            twin.check()
    twin.check()


@pytest.mark.parametrize("seed", range(6))
def test_a_long_life(seed: int) -> None:
    source = random.Random(seed)
    twin = Twin()
    for _ in range(600):
        operation = source.choice(OPERATIONS)
        getattr(twin, "commit_some" if operation == "commit" else operation)(source.randrange(2**16))
        twin.check()


def test_what_was_forgotten_takes_no_room() -> None:
    """Nothing but what the log reaches is kept, however often the members change."""
    configurations = Configurations(FIRST, [], 1, 0)
    for index in range(1, 500):
        configurations.append(index, voters(index))
        configurations.commit_to(index)
        configurations.forget(index - 3)
    assert len(configurations._history) <= 6


def test_what_is_not_committed_is_not_forgotten() -> None:
    """No log drops it; but if it were asked to, the last committed one must stay."""
    configurations = Configurations(FIRST, [(5, voters(1)), (9, voters(2))], 1, 6)
    configurations.forget(100)
    assert (configurations.committed.index, configurations.newest.index) == (5, 9)


def test_the_first_configuration_stands_for_what_the_log_does_not_know() -> None:
    """A log that was compacted before its members ever changed says nothing of them."""
    configurations = Configurations(FIRST, [(30, voters(1))], 20, 25)
    assert configurations.at(25) == (0, FIRST)
    assert configurations.at(19) == (0, FIRST)
    assert configurations.committed == (0, FIRST)
    assert configurations.newest == (30, voters(1))

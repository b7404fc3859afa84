"""Read positions and rounds against a model that remembers each read."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from raft.core.reads import ReadRequests, ReadRounds, Waiter
from tests.core.driver import voters


@given(st.lists(st.tuples(st.sampled_from(["issue", "ask", "confirm", "again"]), st.integers(0, 12))))
@settings(max_examples=200, deadline=None)
def test_requests_keep_their_order(events: list[tuple[str, int]]) -> None:
    requests = ReadRequests()
    served: list[int] = []
    for event, number in events:
        if event == "issue":
            assert requests.issue() == requests.issued
        elif event == "ask":
            requests.asked = requests.issued
        elif event == "again":
            requests.ask_again()
        elif requests.confirm(number):
            served.append(number)
        assert requests.issued >= requests.asked >= requests.confirmed
    assert served == sorted(set(served))


class RoundsModel(RuleBasedStateMachine):
    """Five members. Each waiter is served by a round that began after it came, echoed by a majority."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds = ReadRounds()
        self.clock = 0
        self.commit = 0
        self.came: dict[tuple[int, int], int] = {}
        self.began: dict[int, tuple[int, int]] = {0: (0, 0)}
        self.echoed: dict[int, set[int]] = {}
        self.next_position = dict.fromkeys(range(1, 6), 0)

    @rule(node=st.integers(1, 5))
    def question(self, node: int) -> None:
        self.clock += 1
        self.next_position[node] += 1
        position = self.next_position[node]
        self.came[node, position] = self.clock
        self.rounds.add(node, Waiter(position, node))

    @rule()
    def commit_rises(self) -> None:
        self.commit += 1

    @rule()
    def begin(self) -> None:
        self.clock += 1
        if self.rounds.begin(self.commit):
            self.began[self.rounds.current] = (self.clock, self.commit)

    @rule(node=st.integers(1, 5), number=st.integers(0, 9))
    def echo(self, node: int, number: int) -> None:
        if number <= self.rounds.current:
            self.echoed.setdefault(node, set()).add(number)
        self.rounds.acked(node, number)

    @rule()
    def finish(self) -> None:
        confirmed = self.rounds.finish(voters(1, 2, 3, 4, 5))
        if confirmed is None:
            return
        current = self.rounds.current
        assert sum(max(rounds, default=0) >= current for rounds in self.echoed.values()) >= 3
        began, commit = self.began[current]
        assert confirmed.index == commit
        for node, waiter in confirmed.waiters.items():
            assert self.came[node, waiter.position] < began

    @invariant()
    def bounded(self) -> None:
        assert len(self.rounds._next) <= 5
        assert len(self.rounds._under_way) <= 5


RoundsModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestRounds = RoundsModel.TestCase


def test_an_older_question_does_not_replace_a_newer_one() -> None:
    rounds = ReadRounds()
    rounds.add(2, Waiter(5, 7))
    rounds.add(2, Waiter(3, 7))
    rounds.begin(0)
    rounds.acked(1, 1)
    rounds.acked(2, 1)
    confirmed = rounds.finish(voters(1, 2, 3))
    assert confirmed is not None
    assert confirmed.waiters[2] == Waiter(5, 7)


def test_an_echo_of_a_round_that_was_never_begun_counts_for_nothing() -> None:
    rounds = ReadRounds()
    for node in (1, 2, 3):
        rounds.acked(node, 1_000_000)
    rounds.add(1, Waiter(1, 1))
    assert rounds.begin(4)
    assert rounds.finish(voters(1, 2, 3)) is None

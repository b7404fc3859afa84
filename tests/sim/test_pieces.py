"""The pieces alone: clock, network, disk, the table of waiting calls."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from raft.core.messages import Heartbeat, Message, Propose
from raft.core.ready import Proposed
from raft.storage.memory_disk import MemoryDisk
from raft.testing.clock import VirtualClock
from raft.testing.counts import new_counts
from raft.testing.disk import PowerCut, PowerCutDisk
from raft.testing.machine import KeyValueMachine, KeyValueSource, Origin, Shelf, Write, WriteKind
from raft.testing.network import VirtualNetwork
from raft.testing.oracle import Operation
from raft.testing.profile import NetworkFaults
from raft.testing.requests import RequestTable


def test_clock_runs_actions_by_time_then_by_order_of_asking() -> None:
    clock, seen = VirtualClock(), []
    clock.call_later(5, seen.append, "c")
    clock.call_later(1, seen.append, "a")
    clock.call_later(5, seen.append, "d")
    clock.call_later(1, clock.call_later, 0, seen.append, "b")
    while clock.step():
        pass
    assert seen == ["a", "b", "c", "d"] and clock.now == 5


def test_clock_does_not_go_back() -> None:
    with pytest.raises(ValueError, match="negative"):
        VirtualClock().call_later(-1, print)


class Wire:
    """A network of which all deliveries are kept."""

    def __init__(self, faults: NetworkFaults, seed: int = 0) -> None:
        self.clock = VirtualClock()
        self.got: list[Message] = []
        self.counts: Counter[str] = new_counts()
        self.network = VirtualNetwork(self.clock, Random(seed), faults, self.got.append, self.counts)

    def send(self, count: int, source: int = 1, target: int = 2) -> None:
        for number in range(count):
            self.network.send(Heartbeat(sender=source, to=target, term=1, commit_index=number))

    def finish(self) -> list[int]:
        while self.clock.step():
            pass
        return [m.commit_index for m in self.got if isinstance(m, Heartbeat)]


def test_a_link_in_order_keeps_the_order() -> None:
    wire = Wire(NetworkFaults(slow=0.5, slow_max=5000, in_order=True))
    wire.send(200)
    assert wire.finish() == list(range(200))


def test_a_link_out_of_order_loses_nothing() -> None:
    wire = Wire(NetworkFaults(slow=0.5, slow_max=5000, in_order=False))
    wire.send(200)
    got = wire.finish()
    assert sorted(got) == list(range(200)) != got
    assert wire.counts["messages_reordered"]


def test_drops_and_copies() -> None:
    wire = Wire(NetworkFaults(drop=0.3, duplicate=0.3))
    wire.send(500)
    got = Counter(wire.finish())
    assert 250 < len(got) < 450 and max(got.values()) == 2
    assert len(got) == 500 - wire.counts["messages_dropped"]
    assert got.total() == len(got) + wire.counts["messages_duplicated"]


def test_a_forwarded_proposal_is_repeated_like_everything() -> None:
    wire = Wire(NetworkFaults(duplicate=1.0))
    wire.network.send(Propose(sender=1, to=2, term=1, ticket=1, run_id=1, payloads=(b"x",)))
    wire.finish()
    assert len(wire.got) == 2


def test_a_cut_is_one_way() -> None:
    wire = Wire(NetworkFaults())
    wire.network.cut([(1, 2)])
    wire.send(3, 1, 2)
    wire.send(3, 2, 1)
    assert wire.finish() == [0, 1, 2] and {m.to for m in wire.got} == {1}
    wire.network.heal()
    wire.send(1, 1, 2)
    assert wire.finish() == [0, 1, 2, 0]


@pytest.mark.parametrize(("cut_in_flight", "arrive"), [(True, 0), (False, 3)])
def test_a_cut_and_what_is_on_its_way(cut_in_flight: bool, arrive: int) -> None:
    wire = Wire(NetworkFaults(cut_in_flight=cut_in_flight))
    wire.send(3)
    wire.network.cut([(1, 2)])
    assert len(wire.finish()) == arrive


def test_the_power_fails_at_the_armed_operation_and_stays_off() -> None:
    disk = PowerCutDisk(MemoryDisk())
    file = disk.open("/a", create=True)
    disk.arm(1)
    file.write_at(b"x", 0)
    assert disk.unsynced_bytes == 1
    for _ in range(2):
        with pytest.raises(PowerCut):
            file.sync_data()
    with pytest.raises(PowerCut):
        disk.rename("/a", "/b")
    disk.disarm()
    file.sync_data()
    assert file.read_at(9, 0) == b"x"


def test_a_state_goes_in_pieces_from_any_of_them() -> None:
    state = {1: 100, 2: 200, 3: 300}
    chunks = list(KeyValueSource(state, 7).chunks(None))
    assert len(chunks) > 5
    for number, chunk in enumerate(chunks, 1):
        assert list(KeyValueSource(state, 7).chunks(chunk.position)) == chunks[number:]
    shelf = Shelf()
    machine = KeyValueMachine(shelf)
    sink = machine.begin_restore()
    for chunk in chunks:
        sink.write(chunk.data)
    sink.finish()
    assert shelf.index == 0
    sink.commit()
    assert machine.applied_index == 0
    machine.restore(sink, 7)
    assert (machine.state, machine.applied_index) == (state, 7)
    assert KeyValueMachine(shelf).state == state


def test_half_a_state_is_none() -> None:
    sink = KeyValueMachine(Shelf()).begin_restore()
    for chunk in list(KeyValueSource({1: 100}, 7).chunks(None))[:-1]:
        sink.write(chunk.data)
        with pytest.raises(ValueError, match=r"state|bytes"):
            sink.finish()
    with pytest.raises(AssertionError):
        sink.commit()


def test_what_a_snapshot_skips_is_given_up() -> None:
    """Whatever was sent in its last term, or before: it may be in it."""
    table, operation = table_with_one()
    table.mark_sent(Proposed(3, 10, 0))
    assert table.skipped(2) == []
    assert [write.operation for write in table.skipped(3)] == [operation]
    assert table.term_applied(4) == 0 and not table.sent


def test_a_power_cut_is_no_exception_that_code_could_catch() -> None:
    assert not issubclass(PowerCut, Exception)


class Deaf:
    def write_returned(self, operation: Operation, result: object) -> None: ...

    def read_returned(self, operation: Operation, value: int) -> None: ...

    def connection_lost(self, operation: Operation) -> None: ...


def table_with_one() -> tuple[RequestTable, Operation]:
    table = RequestTable(run_id=7)
    operation = Operation(1, 0, Write(1, WriteKind.PUT, 0, 0), invoked_at=0, floor=0)
    table.add_write(operation, Deaf(), b"")
    return table, operation


def test_an_unsent_write_has_certainly_failed() -> None:
    table, operation = table_with_one()
    assert table.give_up(operation)


def test_a_sent_write_is_unknown() -> None:
    table, operation = table_with_one()
    table.mark_sent(Proposed(3, 10, 0))
    assert not table.give_up(operation)


def test_a_refused_batch_is_unsent_again() -> None:
    table, operation = table_with_one()
    table.mark_sent(Proposed(3, 0, 1))
    assert table.batch_refused(2) == 0
    assert table.batch_refused(1) == 1
    assert table.give_up(operation)


def test_an_entry_of_a_later_term_proves_the_loss() -> None:
    table, operation = table_with_one()
    table.mark_sent(Proposed(3, 10, 0))
    assert table.term_applied(3) == 0
    assert table.term_applied(4) == 1
    assert table.give_up(operation)


def test_commands_of_another_run_are_nobodys() -> None:
    table, operation = table_with_one()
    table.mark_sent(Proposed(3, 10, 0))
    assert table.take_applied(Origin(8, 1)) is None
    found = table.take_applied(Origin(7, 1))
    assert found is not None and found.operation is operation
    assert table.take_applied(Origin(7, 1)) is None

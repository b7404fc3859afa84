"""A crash at every step in which one state takes the place of another: the next start finds the one or the
other, whole, and nothing else is left lying about."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kvstore import state_slots
from kvstore.errors import StateCorrupt, StateFailed
from kvstore.pb.rpc_pb2 import PutRequest
from kvstore.store import Store, open_or_rebuild
from tests.kvstore.files import active_slot, copy_state
from tests.kvstore.snapshots import committed, records, taken, written
from tests.kvstore.test_ranges import fill
from tests.kvstore.test_state import put, tables


class Crashes:
    """Stands in for `os` in kvstore.state_slots, and copies the state before and after each step that changes
    something: what a process killed there leaves, and, since what was not synced may be there or not, what
    a power cut does."""

    CHANGING = frozenset({"rename", "unlink", "rmdir", "mkdir", "fsync"})

    def __init__(self, path: str, copies: Path) -> None:
        self._path = path
        self._copies = copies
        self.steps: list[str] = []

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        if name not in self.CHANGING:
            return value

        def step(*arguments: Any) -> Any:
            self.copy(f"before {name}")
            result = value(*arguments)
            self.copy(f"after {name}")
            return result

        return step

    def copy(self, step: str) -> str:
        number = len(self.steps)
        self.steps.append(step)
        (self._copies / str(number)).mkdir(parents=True)
        return copy_state(self._path, str(self._copies / str(number)))

    def reopened(self, **options: Any) -> list[tuple[int, dict[bytes, bytes]]]:
        """Return applied index and records of each copy, as a start finds it."""
        found = []
        for number, step in enumerate(self.steps):
            path = str(self._copies / str(number))
            store = open_or_rebuild(path, **options)
            found.append((store.applied_index, records(store)))
            slot = os.path.basename(active_slot(path))
            assert sorted(os.listdir(path)) == ["active", slot], step
            fill(store, PutRequest(key=b"it goes on"))
            store.close()
            again = Store(path)
            assert again.applied_index == found[-1][0] + 1, step
            again.close()
        return found


def two_states(tmp_path: Path) -> tuple[Store, Store]:
    old, sender = Store(str(tmp_path / "state")), Store(str(tmp_path / "sender"))
    fill(old, PutRequest(key=b"old"))
    old.flush()
    fill(sender, *(PutRequest(key=b"%d" % number) for number in range(50)))
    return old, sender


def test_at_each_step_of_a_switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traps 13 and 20."""
    store, sender = two_states(tmp_path)
    old, new = (1, records(store)), (50, records(sender))
    crashes = Crashes(store._path, tmp_path / "crashes")
    monkeypatch.setattr(state_slots, "os", crashes)
    sink = written(store, taken(sender))
    crashes.copy("written")
    sink.finish()
    crashes.copy("finished")
    sink.commit()
    crashes.copy("committed")
    first_new = len(crashes.steps) - 1
    store.restore(sink, 50)
    store._removals.shutdown(wait=True)
    crashes.copy("restored")
    assert sorted(os.listdir(store._path)) == ["active", "slot-000002"]
    fill(store, PutRequest(key=b"after"))
    store.close()
    monkeypatch.undo()
    assert {"before rename", "after rename", "after fsync", "after mkdir", "after rmdir"} <= set(
        crashes.steps
    )
    found = crashes.reopened()
    assert all(state in (old, new) for state in found)
    renamed = crashes.steps.index("after rename")
    assert found[:renamed] == [old] * renamed
    assert found[first_new:] == [new] * (len(found) - first_new) and len(found) - first_new > 5
    last = Store(store._path)
    assert last.applied_index == 51
    last.close()
    sender.close()


def test_at_each_step_of_the_first_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    path.mkdir()
    crashes = Crashes(str(path), tmp_path / "crashes")
    monkeypatch.setattr(state_slots, "os", crashes)
    store = Store(str(path))
    monkeypatch.undo()
    assert len(crashes.steps) > 10
    assert {index for index, _ in crashes.reopened()} == {0}
    store.close()


def test_at_each_step_of_a_wipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is corrupt, and wiped again; or it is gone. Half of it is never opened."""
    path = str(tmp_path / "state")
    store = Store(path)
    store.apply([put(1)], 1)
    store.close()
    os.unlink(tables(path)[0])
    crashes = Crashes(path, tmp_path / "crashes")
    monkeypatch.setattr(state_slots, "os", crashes)
    store = open_or_rebuild(path)
    assert store.applied_index == 0
    store.close()
    monkeypatch.undo()
    assert len(crashes.steps) > 20
    assert {index for index, _ in crashes.reopened()} == {0}


def test_at_each_step_into_a_state_that_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the switch every start finds it lost again; after it never more."""
    sender = Store(str(tmp_path / "sender"))
    fill(sender, PutRequest(key=b"k"))
    sender._db.put(b"mbase", b"base")
    path = str(tmp_path / "state")
    store = Store(path, base=b"base")
    crashes = Crashes(path, tmp_path / "crashes")
    monkeypatch.setattr(state_slots, "os", crashes)
    store.restore(committed(store, taken(sender)), 1)
    store.close()
    monkeypatch.undo()
    lost = []
    for number in range(len(crashes.steps)):
        again = open_or_rebuild(str(tmp_path / "crashes" / str(number)), base=b"base")
        assert again.is_lost == (again.applied_index == 0) == (again.base != b"base")
        lost.append(again.is_lost)
        again.close()
    assert lost == sorted(lost, reverse=True) and not lost[-1] and lost[0]
    sender.close()


@pytest.mark.parametrize(
    "content", [b"", b"slot-000001x\n", b"slot-000009\n", b"../slot-000001\n", b"\xff" * 999]
)
def test_a_damaged_pointer_is_never_guessed(tmp_path: Path, content: bytes) -> None:
    path = str(tmp_path / "state")
    store = Store(path)
    store.apply([put(1)], 1)
    store.close()
    Path(path, "active").write_bytes(content)
    with pytest.raises(StateCorrupt, match="active"):
        Store(path)
    store = open_or_rebuild(path)
    assert (store.applied_index, sorted(os.listdir(path))) == (0, ["active", "slot-000001"])
    store.close()


def test_a_slot_without_its_own_pointer_is_no_empty_state(tmp_path: Path) -> None:
    """LevelDB makes a new database where its CURRENT is missing, whatever else is there."""
    path = str(tmp_path / "state")
    store = Store(path)
    store.apply([put(1)], 1)
    store.close()
    os.unlink(os.path.join(active_slot(path), "CURRENT"))
    with pytest.raises(StateCorrupt, match="no state is there"):
        Store(path)


def test_a_state_of_the_old_layout_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "state"
    store = Store(str(path))
    store.apply([put(1)], 1)
    store.close()
    slot = path / "slot-000001"
    for each in slot.iterdir():
        each.rename(path / each.name)
    slot.rmdir()
    (path / "active").unlink()
    before = sorted(os.listdir(path))
    with pytest.raises(StateFailed, match="make the directory slot-000001"):
        open_or_rebuild(str(path))
    assert sorted(os.listdir(path)) == before
    slot.mkdir()  # what it says to do
    for each in list(path.iterdir()):
        if each != slot:
            each.rename(slot / each.name)
    (path / "active").write_text("slot-000001\n")
    store = Store(str(path))
    assert store.applied_index == 1
    store.close()


@pytest.mark.parametrize("step", ["rename", "fsync"])
def test_a_switch_that_fails_before_its_step_changes_nothing_and_after_it_ends_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store, sender = two_states(tmp_path)
    failures: list[Exception] = []
    store.on_failure = failures.append
    sink = written(store, taken(sender))
    sink.finish()

    class Failing:
        def __getattr__(self, name: str) -> Any:
            if name == step:
                return self.fail
            return getattr(os, name)

        def fail(self, *arguments: Any) -> None:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(state_slots, "os", Failing())
    with pytest.raises(OSError):
        sink.commit()
    monkeypatch.undo()
    sink.discard()
    assert store.applied_index == 1
    if step == "rename":
        # That rename raised is no proof that nothing was renamed: what is there must stay, and the end tells.
        assert len(failures) == 1 and "which of two states" in str(failures[0])
        with pytest.raises(StateFailed):
            store.apply([put(2)], 2)
        assert os.path.exists(sink.slot)  # type: ignore[attr-defined]
    else:
        assert not failures and not os.path.exists(sink.slot)  # type: ignore[attr-defined]
        store.apply([put(2)], 2)
    store.close()
    again = Store(store._path)
    assert again.applied_index == (1 if step == "rename" else 2)
    again.close()
    sender.close()

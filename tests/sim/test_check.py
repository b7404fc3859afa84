"""`check` accepts machines that keep their contract, and names what a machine does that does not."""

from __future__ import annotations

import importlib.util
import io
import json
import random
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

import raft
from raft.testing import CheckFailed, check

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ledger = example("durable_ledger")
counter = example("replicated_counter")


def draw_command(rng: Random) -> bytes:
    one, other = rng.choice("abcdef"), rng.choice("abcdef")
    amount = rng.randrange(9)
    return rng.choice((f"pay {one} {amount}", f"move {one} {other} {amount}", "nonsense")).encode()


def digest(machine: object) -> object:
    return machine.applied_index, machine.balances


def test_the_counter_in_memory() -> None:
    counts = check(
        lambda _: counter.Counter(),
        lambda rng: str(rng.randrange(-9, 9)).encode(),
        seeds=range(4),
        digest=lambda machine: machine.total,
    )
    assert counts["restarts"] > 10 and counts["entries_committed"] > 50
    assert not counts["compactions"] and not counts["snapshots_begun"]


def test_the_ledger_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small chunks, so that a snapshot of six accounts can break off in its middle."""
    monkeypatch.setattr(ledger, "ACCOUNTS_PER_CHUNK", 2)
    counts = check(ledger.Ledger, draw_command, seeds=range(12), digest=digest)
    for name in ("restarts_from_flushed_state", "compactions", "snapshots_installed", "snapshots_broken"):
        assert counts[name] > 5, name


def test_a_seed_is_a_run() -> None:
    first, second = io.StringIO(), io.StringIO()
    for story in (first, second):
        check(ledger.Ledger, draw_command, seeds=[2], digest=digest, steps=800, trace=story)
    assert first.getvalue() == second.getvalue()
    assert "propose b'pay" in first.getvalue()


class Sliced(ledger.Ledger):
    """Pauses after each command, and shows nothing before the last."""

    def apply_sliced(
        self, commands: Sequence[raft.Command], applied_index: raft.LogIndex
    ) -> Generator[None, None, Sequence[object]]:
        for _ in commands:
            yield
        return super().apply(commands, applied_index)

    def apply(self, commands: Sequence[raft.Command], applied_index: raft.LogIndex) -> Sequence[object]:
        raise AssertionError("a machine that can be sliced is not applied to whole")


def test_a_machine_that_pauses() -> None:
    assert check(Sliced, draw_command, seeds=range(4), digest=digest)["entries_applied"] > 100


# Machines that break the contract, each in one way


class DrawsLots(ledger.Ledger):
    """Its results hang on more than the commands."""

    _lots = random.Random(1)

    def _apply_one(self, balances: dict[str, int], text: str) -> object:
        return super()._apply_one(balances, text), self._lots.random() < 0.5


class ForgetsQuietly(ledger.Ledger):
    """Returns the right results; its state depends on how the commands were grouped."""

    def apply(self, commands: Sequence[raft.Command], applied_index: raft.LogIndex) -> Sequence[object]:
        results = super().apply(commands, applied_index)
        self._state.balances["groups"] = self._state.balances.get("groups", 0) + 1
        return results


class IndexApart(ledger.Ledger):
    """Writes the state at each apply and its index at each flush: after a crash it applies twice."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._data_path = directory / "data.json"
        if self._data_path.exists():
            self._state = self._state._replace(balances=json.loads(self._data_path.read_text()))

    def apply(self, commands: Sequence[raft.Command], applied_index: raft.LogIndex) -> Sequence[object]:
        results = super().apply(commands, applied_index)
        self._data_path.write_text(json.dumps(self.balances))
        return results


class FlushesNothing(ledger.Ledger):
    """Says that all is durable."""

    def flush(self) -> raft.LogIndex:
        return self.applied_index


class SendsMost(ledger.Ledger):
    """Its snapshot lacks an account."""

    def open_snapshot(self) -> object:
        kept = dict(list(self.balances.items())[1:])
        return ledger.LedgerSource(ledger.State(self.applied_index, kept))


class _Wandering(ledger.LedgerSource):
    def __init__(self, machine: ledger.Ledger) -> None:
        super().__init__(machine._state)
        self._machine = machine

    def chunks(self, after: bytes | None) -> Iterator[raft.SnapshotChunk]:
        self._balances = self._machine.balances
        yield from super().chunks(after)


class SendsWhatComesLater(ledger.Ledger):
    """Its snapshot is not held: it changes as the machine goes on."""

    def open_snapshot(self) -> object:
        return _Wandering(self)


class _Repeating(ledger.LedgerSource):
    def chunks(self, after: bytes | None) -> Iterator[raft.SnapshotChunk]:
        yield from super().chunks(None)


class SendsAllAgain(ledger.Ledger):
    """Goes on from the beginning, wherever it was to go on."""

    def open_snapshot(self) -> object:
        return _Repeating(self._state)


class SaysNewer(ledger.Ledger):
    """Its snapshot is said to be of an entry that is not in it."""

    def open_snapshot(self) -> object:
        return ledger.LedgerSource(self._state._replace(applied_index=self.applied_index + 1))


class _Uncommitted(ledger.LedgerSink):
    def commit(self) -> None:
        self.state = ledger.read_state(self._incoming)


class RestoresInMemory(ledger.Ledger):
    """Goes on with a restored state of which the disk knows nothing until the next flush."""

    def begin_restore(self) -> object:
        return _Uncommitted(self._path)

    def restore(self, sink: object, index: raft.LogIndex) -> None:
        self._state = sink.state


class Raises(ledger.Ledger):
    """Raises what it should return."""

    def _apply_one(self, balances: dict[str, int], text: str) -> object:
        result = super()._apply_one(balances, text)
        if isinstance(result, Exception):
            raise result
        return result


class LosesAResult(ledger.Ledger):
    """Returns nothing for what it refuses."""

    def apply(self, commands: Sequence[raft.Command], applied_index: raft.LogIndex) -> Sequence[object]:
        results = super().apply(commands, applied_index)
        return [result for result in results if not isinstance(result, Exception)]


class StopsAtCommands(ledger.Ledger):
    """Takes the index of the last command, though entries of the library's own follow it."""

    def apply(self, commands: Sequence[raft.Command], applied_index: raft.LogIndex) -> Sequence[object]:
        last = commands[-1].index if commands else self.applied_index
        return super().apply(commands, last)


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (DrawsLots, "results_follow_the_log"),
        (ForgetsQuietly, "state_follows_the_log"),
        (IndexApart, "state_follows_the_log"),
        (FlushesNothing, "flushed_state_survives"),
        (SendsMost, "state_follows_the_log"),
        (SendsWhatComesLater, "chunks_are_always_the_same"),
        (SendsAllAgain, "chunks_are_always_the_same"),
        (SaysNewer, "snapshot_is_of_the_state"),
        (RestoresInMemory, "flushed_state_survives"),
        (Raises, "no_exception.Refused"),
        (LosesAResult, "one_result_a_command"),
        (StopsAtCommands, "applied_index_is_told"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_what_a_machine_must_not_do(
    machine: type[raft.StateMachine], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "ACCOUNTS_PER_CHUNK", 2)
    with pytest.raises(CheckFailed) as caught:
        check(machine, draw_command, seeds=range(40), digest=digest)
    assert name in str(caught.value)
    assert "seeds=[" in str(caught.value)


def test_without_a_digest_results_alone_tell() -> None:
    with pytest.raises(CheckFailed, match="results_follow_the_log"):
        check(DrawsLots, draw_command, seeds=range(4))
    check(ForgetsQuietly, draw_command, seeds=[1], steps=500)

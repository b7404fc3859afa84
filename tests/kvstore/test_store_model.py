"""The store against the naive model: any requests, in any groups, with restarts and crashes between."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kvstore import dooms, history, late_deletes, sweep
from kvstore import store as store_module
from kvstore.backup import backup_records
from kvstore.checks import check_txn
from kvstore.errors import ApiError
from kvstore.keys import (
    EVENT,
    INDEX,
    INDEX_END,
    META,
    REVISION_BYTES,
    index_key,
    key_of_event,
    pack_revision,
    unpack_revision,
)
from kvstore.late_deletes import LateDelete
from kvstore.pb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeResponse,
    PutRequest,
    PutResponse,
    RangeRequest,
    RangeResponse,
    TxnRequest,
)
from kvstore.ranges import fill_response
from kvstore.slices import run_at_once
from kvstore.store import Store
from raft import Command
from tests.kvstore import strategies
from tests.kvstore.files import copy_state
from tests.kvstore.model import Model
from tests.kvstore.replicas import command_of
from tests.kvstore.snapshots import install, records

SMALL_LIMITS: list[tuple[Any, str, int]] = [
    (dooms, "LARGE_DELETE_KEYS", 1),
    (dooms, "SLICE_KEYS_MAX", 2),
    (late_deletes, "EVENTS_WALKED_MAX", 3),
    (history, "VERSIONS_CHUNK", 3),
    (history, "VERSIONS_WALKED_MAX", 2),
    (store_module, "DOOMS_MAX", 3),
]


class StoreMachine(RuleBasedStateMachine):
    """`log` is the Raft log: what a restarted store is given again from its applied index on.

    Compacted history is removed in tiny steps between everything else; nothing may show how far it is.
    """

    @initialize()
    def start(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="store-model-"))
        self.life = 0
        self.log: list[Command] = []
        self.model = Model()
        self.store = Store(str(self.root / "0"))
        self.loop = asyncio.new_event_loop()
        self.slice_events_max = sweep.SLICE_EVENTS_MAX
        sweep.SLICE_EVENTS_MAX = 3  # so that a removal has a middle
        # So that every delete of a range goes the long way, and one often meets others that still do.
        self.limits = [(module, name, getattr(module, name)) for module, name, _ in SMALL_LIMITS]
        for module, name, limit in SMALL_LIMITS:
            setattr(module, name, limit)
        self.late: dict[LateDelete, int] = {}

    def teardown(self) -> None:
        sweep.SLICE_EVENTS_MAX = self.slice_events_max
        for module, name, limit in self.limits:
            setattr(module, name, limit)
        if hasattr(self, "store"):
            self.store.close()
            self.loop.close()
            shutil.rmtree(self.root)

    @rule(requests=st.lists(strategies.writes(), min_size=1, max_size=6), gap=st.integers(0, 2))
    def apply_group(self, requests: list[Any], gap: int) -> None:
        """A group sees its own earlier commands. `gap`: entries that are not commands lie between."""
        first = self.log[-1].index + 1 + gap if self.log else 1 + gap
        group = [Command(first + i, 7, command_of(request)) for i, request in enumerate(requests)]
        self.log += group
        results = self.store.apply(group, group[-1].index)
        for request, result in zip(requests, results, strict=True):
            expected = self.expect(request)
            assert_same(self.outcome(result), expected)
            if isinstance(result, LateDelete):
                self.late[result] = expected.deleted

    @rule(
        before=st.lists(strategies.puts(), max_size=2),
        request=st.one_of(strategies.deletes(), strategies.txns()),
        steps=st.integers(1, 6),
        crashes=st.booleans(),
    )
    def apply_with_pauses(self, before: list[Any], request: Any, steps: int, crashes: bool) -> None:
        """In a pause the state is that before the command, whole; and a crash then is as if it had never
        begun, though a part of it is on disk."""
        first = self.log[-1].index + 1 if self.log else 1
        requests = [*before, request]
        group = [Command(first + i, 7, command_of(each)) for i, each in enumerate(requests)]
        expected = [self.expect(each) for each in requests]
        work = self.store.apply_sliced(group, group[-1].index)
        try:
            for _ in range(steps):
                next(work)
                self.in_a_pause(group)
            if crashes:
                work.close()
                self.store.flush()
                self.reopen_after_crash()
                group = [command for command in group if command.index > self.store.applied_index]
                work = self.store.apply_sliced(group, first + len(requests) - 1)
            while True:
                next(work)
        except StopIteration as stop:
            results = stop.value
        self.log += [Command(first + i, 7, command_of(each)) for i, each in enumerate(requests)]
        for result, each in zip(reversed(results), reversed(expected), strict=False):
            assert_same(self.outcome(result), each)

    def in_a_pause(self, group: list[Command]) -> None:
        """Whatever the store shows now is what applying up to its applied index has made."""
        done = [command for command in group if command.index <= self.store.applied_index]
        twin = Store(str(self.root / "twin"))
        for command in [*self.log, *done]:
            twin.apply([command], command.index)
        assert self.hashes() == [self.loop.run_until_complete(twin.hash_all()), self.kv_hash(twin)]
        install(twin, self.store)  # nothing of the command under way goes along
        assert self.hashes() == [self.loop.run_until_complete(twin.hash_all()), self.kv_hash(twin)]
        assert records(twin) == records(self.store)
        twin.close()
        shutil.rmtree(self.root / "twin")
        self.store.sweep_slice()

    def outcome(self, result: object) -> Any:
        """A put without prev_kv answers with its revision alone, and a large delete's count comes later."""
        if isinstance(result, int):
            response = PutResponse()
            response.header.revision = result
            return response
        if isinstance(result, LateDelete):
            deleted = self.loop.run_until_complete(self.store.deleted(result))
            answer = DeleteRangeResponse(deleted=deleted)
            answer.header.revision = result.revision
            return answer
        return result

    def kv_hash(self, store: Store) -> Any:
        return self.loop.run_until_complete(store.hash_revisions(0))

    def expect(self, request: Any) -> Any:
        try:
            if isinstance(request, TxnRequest):
                check_txn(request, 100)
            return self.model.write(request)
        except ApiError as error:
            return error

    @rule(back=st.integers(-2, 12))
    def compact(self, back: int) -> None:
        """At a revision at, below, or above what there is; and then something in the same group."""
        revision = self.model.revision - back
        first = self.log[-1].index + 1 if self.log else 1
        requests = [CompactionRequest(revision=revision), PutRequest(key=b"a")]
        group = [Command(first + i, 7, command_of(request)) for i, request in enumerate(requests)]
        self.log += group
        compacted, put = self.store.apply(group, group[-1].index)
        try:
            expected: Any = self.model.compact(revision)
        except ApiError as error:
            expected = error
        assert_same(compacted, expected)
        assert_same(self.outcome(put), self.expect(requests[1]))

    @rule(slices=st.integers(1, 3))
    def remove_some(self, slices: int) -> None:
        before = self.hashes()
        for _ in range(slices):
            self.store.sweep_slice()
            assert self.hashes() == before
            self.read_every_revision()
        for late, deleted in self.late.items():
            assert self.loop.run_until_complete(self.store.deleted(late)) == deleted

    @rule()
    def write_down(self) -> None:
        """What is not written of large deletes is in a backup as it will be written."""
        before = self.backup()
        while self.store.written_revision < self.store.revision:
            self.store.sweep_slice()
            assert self.backup() == before

    def backup(self) -> list[Any]:
        view = self.store._view()
        found = list(filter(None, backup_records(view)))
        view.close()
        assert found == sorted(found)
        return found

    @rule()
    def read_every_revision(self) -> None:
        for revision in range(max(self.model.compacted, 1), self.model.revision + 1):
            request = RangeRequest(key=b"\x00", range_end=b"\x00", revision=revision)
            found = RangeResponse()
            run_at_once(fill_response(found, self.loop.run_until_complete(self.store.range(request))))
            assert_same(found, self.model.read(request))
            for key in strategies.KEYS:
                stored = self.loop.run_until_complete(
                    self.store.range(RangeRequest(key=key, revision=revision))
                )
                assert stored.count == (key in self.model.states[revision])

    @rule()
    def remove_all(self) -> None:
        before = self.hashes()
        while not self.store.is_swept or self.store._dooms:
            self.store.sweep_slice()
        assert self.hashes() == before
        assert old_records(self.store) == self.model.kept()
        # And so does another, which was given every command by itself, with no work between.
        twin = Store(str(self.root / "twin"))
        for command in self.log:
            twin.apply([command], command.index)
        while not twin.is_swept or twin._dooms:
            twin.sweep_slice()
        assert data_records(twin) == data_records(self.store)
        twin.close()
        shutil.rmtree(self.root / "twin")

    def hashes(self) -> Any:
        store = self.store
        return [self.loop.run_until_complete(work) for work in (store.hash_all(), store.hash_revisions(0))]

    @rule(request=strategies.ranges())
    def read(self, request: Any) -> None:
        try:
            expected = self.model.read(request)
        except ApiError as error:
            expected = error
        found: Any
        try:
            result = self.loop.run_until_complete(self.store.range(request))
            found = RangeResponse()
            run_at_once(fill_response(found, result))
        except ApiError as error:
            found = error
        assert_same(found, expected)

    @rule(request=strategies.read_txns())
    def read_txn(self, request: Any) -> None:
        try:
            expected = self.model.read(request)
        except ApiError as error:
            expected = error
        found: Any
        try:
            found = self.loop.run_until_complete(self.store.txn(request))
        except ApiError as error:
            found = error
        assert_same(found, expected)

    @rule()
    def flush(self) -> None:
        assert self.store.flush() == self.store.applied_index

    @rule()
    def restart(self) -> None:
        """A clean stop loses nothing: there is nothing to replay."""
        applied_index = self.store.applied_index
        self.store.close()
        self.late.clear()
        self.store = Store(str(self.root / str(self.life)))
        assert self.store.applied_index == applied_index

    @rule()
    def crash(self) -> None:
        """The files as they lie at this moment, LevelDB's log among them; then the log from there on.

        Each command takes effect once, which the hash of the whole history shows.
        """
        before = self.hashes()
        applied_index = self.store.applied_index
        self.reopen_after_crash()
        assert self.store.applied_index <= applied_index
        again = [command for command in self.log if command.index > self.store.applied_index]
        for command in again:
            self.store.apply([command], command.index)
        if applied_index > self.store.applied_index:
            self.store.apply([], applied_index)
        assert self.hashes() == before

    @rule(own=st.lists(strategies.puts(), max_size=2), crashes=st.booleans())
    def go_on_as_another(self, own: list[Any], crashes: bool) -> None:
        """A store that had another state is sent this one, and everything after this is done by it."""
        before = self.hashes()
        old = self.root / str(self.life)
        self.life += 1
        self.late.clear()
        store = Store(str(self.root / str(self.life)))
        for request in own:
            store.apply([Command(store.applied_index + 1, 1, command_of(request))], store.applied_index + 1)
        install(store, self.store)
        assert records(store) == records(self.store)
        assert store.applied_index == self.store.applied_index
        self.store.close()
        shutil.rmtree(old)
        self.store = store
        if crashes:
            self.reopen_after_crash()
        assert self.hashes() == before

    def reopen_after_crash(self) -> None:
        self.late.clear()
        old = self.root / str(self.life)
        self.life += 1
        new = self.root / str(self.life)
        copy_state(str(old), str(new))
        self.store.close()
        shutil.rmtree(old)
        self.store = Store(str(new))

    @invariant()
    def same_revision(self) -> None:
        if hasattr(self, "store"):
            assert self.store.revision == self.model.revision
            assert self.store.compact_revision == self.model.compacted


def data_records(store: Store) -> dict[bytes, bytes]:
    return {key: value for key, value in records(store).items() if not key.startswith(META)}


def old_records(store: Store) -> set[tuple[bytes, int]]:
    """Return (key, revision) of the history at or below the compact revision; both copies must agree."""
    bound = pack_revision(max(store.compact_revision, 0) + 1, 0)
    index = {
        (index_key(record[:-REVISION_BYTES]), unpack_revision(record[-REVISION_BYTES:])[0])
        for record in store._db.iterator(start=INDEX, stop=INDEX_END, include_value=False)
        if record[-REVISION_BYTES:] < bound
    }
    events = {
        (key_of_event(event), unpack_revision(record[1:])[0])
        for record, event in store._db.iterator(start=EVENT, stop=EVENT + bound)
    }
    assert index == events
    return index


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, ApiError) or isinstance(found, ApiError):
        assert isinstance(found, ApiError) and isinstance(expected, ApiError), (found, expected)
        assert (found.code, found.message) == (expected.code, expected.message)
    else:
        assert found == expected


TestStoreAgainstModel = StoreMachine.TestCase
TestStoreAgainstModel.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)

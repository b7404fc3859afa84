"""What the store is given, and what it must hold after each command.

Two oracles that know nothing of each other: the naive model of tests/kvstore tells what every kept revision
looks like; a fresh store that has applied the same commands tells the checksum of all records.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from kvstore.commands import CommandKind, encode_command
from kvstore.errors import ApiError
from kvstore.pb.command_pb2 import PublishRequest
from kvstore.pb.rpc_pb2 import CompactionRequest, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest
from kvstore.store import Store
from raft import Command
from tests.kvstore.model import Model, State
from tests.kvstore.replicas import command_of
from tests.powercut.storing import digest, run, sweep_all

TERM = 3
COMMANDS = 220
HOT_KEYS = 40
CROWD_KEYS = 520
"""More than `kvstore.dooms.LARGE_DELETE_KEYS`: deleted at once they go the long way."""
CROWD_TXN_KEYS = 104
VALUE_BYTES_MAX = 3000
COMPACTED_BEHIND_MAX = 40
"""Revisions. Little history is kept, so that a state is looked at in milliseconds."""
GROUP_COMMANDS_MAX = 6
FLUSH_EVERY_GROUPS = 6

CROWD, CROWD_END = b"crowd/", b"crowd0"


class Expected(NamedTuple):
    """The state after some command, as a replay on a fresh store has it."""

    revision: int
    compact_revision: int
    hash_all: int


class Workload:
    """The same for the same seed, in whatever process."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._random = random.Random(f"workload {seed}")
        self.model = Model()
        self.requests: list[Any] = []
        """The command with index i is the one at i - 1."""
        self._crowd = 0
        """Keys of the crowd that are there."""
        self._revisions = [self.model.revision]
        """By index: the revision after that command."""
        while len(self.requests) < COMMANDS:
            self._add(self._next())
        self.commands = [Command(i, TERM, encode(each)) for i, each in enumerate(self.requests, 1)]
        self.group_ends = self._groups()
        self.flush_after = set(self.group_ends[FLUSH_EVERY_GROUPS::FLUSH_EVERY_GROUPS])
        self.allowed = {0, *self.group_ends, *self._before_large()}
        """Every applied index that a state may ever have had."""

    @property
    def end(self) -> int:
        return len(self.requests)

    def groups_after(self, applied_index: int, until: int) -> list[Sequence[Command]]:
        """Return what comes after `applied_index` up to the first group's end at or above `until`."""
        groups: list[Sequence[Command]] = []
        start = applied_index
        for end in self.group_ends:
            if end > start:
                groups.append(self.commands[start:end])
                start = end
            if end >= until:
                break
        return groups

    def state_at(self, applied_index: int, revision: int) -> State:
        assert revision <= self._revisions[applied_index]
        return self.model.states[revision]

    def _next(self) -> Any:
        die = self._random.randrange(100)
        if self._crowd < CROWD_KEYS and (self._crowd or die < 5):
            request = TxnRequest()
            for i in range(self._crowd, self._crowd + CROWD_TXN_KEYS):
                value = self._random.randbytes(self._random.randrange(60))
                request.success.append(
                    RequestOp(request_put=PutRequest(key=CROWD + b"%04d" % i, value=value))
                )
            self._crowd += CROWD_TXN_KEYS
            return request
        if self._crowd == CROWD_KEYS and die < 10:
            self._crowd = 0
            delete = DeleteRangeRequest(key=CROWD, range_end=CROWD_END)
            if die < 5:
                return delete
            ops = [RequestOp(request_delete_range=delete), RequestOp(request_put=self._put())]
            return TxnRequest(success=ops if die < 8 else ops[::-1])
        if die < 62:
            return self._put()
        if die < 72:
            return DeleteRangeRequest(key=self._key())
        if die < 76:
            return DeleteRangeRequest(key=self._key(), range_end=self._key())
        if die < 90:
            keys = sorted({self._key() for _ in range(3)})
            ops = [RequestOp(request_put=self._put(key)) for key in keys]
            return TxnRequest(success=ops)
        if die < 92:
            return PublishRequest(member_id=self._random.randrange(3), name=f"n{self._random.random()}")
        newest = self.model.revision
        return CompactionRequest(revision=self._random.randint(max(newest - COMPACTED_BEHIND_MAX, 1), newest))

    def _key(self) -> bytes:
        return b"hot/%02d" % self._random.randrange(HOT_KEYS)

    def _put(self, key: bytes = b"") -> PutRequest:
        value = self._random.randbytes(self._random.randrange(VALUE_BYTES_MAX))
        return PutRequest(key=key or self._key(), value=value)

    def _add(self, request: Any) -> None:
        self.requests.append(request)
        if isinstance(request, PublishRequest):
            pass
        elif isinstance(request, CompactionRequest):
            with suppress(ApiError):  # the store refuses it as well
                self.model.compact(request.revision)
        else:
            self.model.write(request)
        self._revisions.append(self.model.revision)

    def _groups(self) -> list[int]:
        ends = []
        end = 0
        while end < self.end:
            end = min(end + self._random.randint(1, GROUP_COMMANDS_MAX), self.end)
            ends.append(end)
        return ends

    def _before_large(self) -> set[int]:
        """What comes before a command that may be large is written by itself (`Store.apply_sliced`)."""
        found = set()
        for index, request in enumerate(self.requests, 1):
            ops = [RequestOp(request_delete_range=request)] if isinstance(request, DeleteRangeRequest) else []
            if isinstance(request, TxnRequest):
                ops = list(request.success)
            if any(op.request_delete_range.range_end for op in ops):
                found.add(index - 1)
        return found


def encode(request: Any) -> bytes:
    if isinstance(request, PublishRequest):
        return encode_command(CommandKind.PUBLISH, request.SerializeToString())
    return command_of(request)


class Replayed:
    """A fresh store that has applied the workload command by command, and removed at once what was due for
    removal; what it held on its way."""

    def __init__(self, workload: Workload, path: str) -> None:
        self.workload = workload
        store = Store(path)
        self.expected = {0: look(store)}
        """By applied index, for those that a state may have."""
        for command in workload.commands:
            store.apply([command], command.index)
            sweep_all(store)
            if command.index in workload.allowed:
                self.expected[command.index] = look(store)
        self.records = digest(store)
        """Of everything in LevelDB, when nothing is left that is due for removal."""
        store.close()


def apply_until(path: str, workload: Workload, index: int) -> None:
    """Have the store in `path` at `index`, and stopped."""
    store = Store(path)
    store.apply(workload.commands[store.applied_index : index], index)
    store.close()


def look(store: Store) -> Expected:
    return Expected(store.revision, store.compact_revision, run(store.hash_all())[0])

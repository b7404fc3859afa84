"""Opens what a power cut has left, and compares it with a replay of the log.

What must hold of every state
    it opens, and the applied index is one that a state has had, and not below what flush() has returned
    every record that members have in common is as in a replay of the commands up to there
    every kept revision reads as the naive model has it
    with the rest of the commands applied it ends as a replay does, record by record

A state may instead be *refused* as corrupt, and built again from nothing (StateCorrupt). That loses nothing
where the log is whole. But it need not be once something was flushed, so `hunt` says when that may be.
"""

from __future__ import annotations

import random
import re
from typing import NamedTuple

import plyvel

from kvstore.errors import StateCorrupt, StateError
from kvstore.keys import pack_header
from kvstore.pb.rpc_pb2 import RangeRequest
from kvstore.store import Store, open_or_rebuild
from tests.kvstore.model import Kv
from tests.powercut.storing import abandon, digest, run, sweep_all
from tests.powercut.workload import Replayed, look

REVISIONS_READ = 6
"""Of those that are kept, when a state is seen for the first time."""

CONTINUED_AGAIN_SHARE = 0.02
"""A state that was seen before is continued only now and then: the files may be others than then."""


class Finding(Exception):
    """A state that must not be."""


class Known(NamedTuple):
    """What the program had said when the power failed."""

    begun: int = 0
    """Through which index commands had been given to the store."""
    flushed: int = 0
    """Through which index the state was durable."""
    is_marked: bool = False
    """The state is being marked as corrupt, or was, and nothing is durable since: it should be refused."""

    is_reopened: bool = False
    """LevelDB has opened, or is about to, what was there before: it names a new manifest then."""

    def after(self, mark: str) -> Known:
        word, _, index = mark.partition(" ")
        if word == "opening":
            return self._replace(is_reopened=True)
        if word == "marking":
            return self._replace(is_marked=True)
        if word == "lost":
            return Known(is_marked=True)
        if word == "begun":
            return self._replace(begun=max(self.begun, int(index)))
        if word == "switched":
            return Known(max(self.begun, int(index)), int(index))
        assert word == "flushed", mark
        return self._replace(flushed=max(self.flushed, int(index)), is_marked=False)


class Verdict(NamedTuple):
    applied_index: int
    refused: str
    """Why the state was refused; empty if it was not."""


def stored(kv: Kv) -> bytes:
    return pack_header(kv.create, kv.mod, kv.version, kv.lease) + kv.value


class Judge:
    """Knows what it has seen: most of thousands of states hold one of a few hundred sets of records."""

    def __init__(self, replayed: Replayed, continued_share: float) -> None:
        """`continued_share`: how many of the sets of records are continued to the end, from 0 to 1."""
        self._workload = replayed.workload
        self._replayed = replayed
        self._continued_share = continued_share
        self._dice = random.Random(self._workload.seed)
        self._seen: set[tuple[int, bytes]] = set()

    def judge(self, path: str, known: Known) -> Verdict:
        """Open and judge the state in `path`, which is used up. Raises Finding."""
        try:
            return self._judge(path, known)
        except StateError as error:
            raise Finding(f"{type(error).__name__}: {error}") from error
        except plyvel.Error as error:
            raise Finding(f"LevelDB: {error}") from error

    def _judge(self, path: str, known: Known) -> Verdict:
        refused = ""
        try:
            store = Store(path)
        except StateCorrupt as error:
            refused = re.sub(r"\d{6}", "NNNNNN", str(error).replace(path, "..."))
            store = open_or_rebuild(path)
            if store.applied_index:
                raise Finding(f"rebuilt from nothing, and at index {store.applied_index}") from error
        try:
            index = store.applied_index
            if index < known.flushed and not refused:
                raise Finding(f"at index {index}, though {known.flushed} was durable")
            if index > known.begun or index not in self._workload.allowed:
                raise Finding(f"at index {index}, which was never a state's (begun: {known.begun})")
            key = index, digest(store)
            is_new = key not in self._seen
            if is_new:
                self._check(store, index)
            if self._dice.random() < (self._continued_share if is_new else CONTINUED_AGAIN_SHARE):
                self._continue(store, path)
            self._seen.add(key)
            return Verdict(index, refused)
        finally:
            abandon(store)

    def _check(self, store: Store, index: int) -> None:
        found, expected = look(store), self._replayed.expected[index]
        if found != expected:
            raise Finding(f"at index {index} it is {found}, and a replay is {expected}")
        oldest = max(store.compact_revision, 1)
        revisions = range(oldest, store.revision + 1)
        some = random.Random(index).sample(revisions, min(REVISIONS_READ, len(revisions)))
        for revision in {*some, oldest, store.revision}:
            self._check_revision(store, index, revision)

    def _check_revision(self, store: Store, index: int, revision: int) -> None:
        request = RangeRequest(key=b"\x00", range_end=b"\x00", revision=revision)
        found = run(store.range(request)).items
        state = self._workload.state_at(index, revision)
        if found != [(key, stored(state[key])) for key in sorted(state)]:
            raise Finding(f"at index {index} revision {revision} does not read as the model has it")

    def _continue(self, store: Store, path: str) -> None:
        """Apply the rest, stop, start, and compare with what a replay ends with."""
        end = self._workload.end
        for group in self._workload.groups_after(store.applied_index, end):
            store.apply(group, group[-1].index)
        sweep_all(store)
        if look(store) != self._replayed.expected[end]:
            raise Finding("with the rest of the commands applied it is not as a replay is")
        store.close()
        again = Store(path)
        try:
            if again.applied_index != end or digest(again) != self._replayed.records:
                raise Finding("with the rest applied and all history removed there are other records")
        finally:
            abandon(again)

"""What stands in a member's log, without the member: for checkers that look for a command there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from raft.core.types import EntryKind, LogIndex, Term
from raft.runtime.proposals import ORIGIN_BYTES
from raft.storage.inspection import Inspection

_COMMAND = EntryKind.COMMAND.name.lower()


class LoggedCommand(NamedTuple):
    index: LogIndex  # type: ignore[assignment] # shadows tuple.index, which nobody calls
    term: Term
    command: bytes | None
    """As it was given to `propose`. None: an entry of the library's own."""


def logged_commands(found: Inspection) -> Iterator[LoggedCommand]:
    """Yield the entries of a log as it is now, in order; what was replaced or dropped is left out.

    Not all of them need be committed: `found.hard_state` says what the member knew of that. Raises OSError,
    and ValueError if the log cannot be judged.
    """
    if found.scan is None:
        raise ValueError(f"the log of {found.path} cannot be read as a whole")
    for facts, data in found.entries_with_data():
        if facts.is_current:
            command = data[ORIGIN_BYTES:] if facts.kind == _COMMAND else None
            yield LoggedCommand(facts.index, facts.term, command)

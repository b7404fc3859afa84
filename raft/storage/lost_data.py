"""A log that ends below its high-water mark: what is lost, what was promised, and what a start does.

    well --a start finds the end lost--> recovering --an append that ends it is durable--> well

A member that acknowledged an entry and has it no more must not vote: it would elect a leader that lacks the
entry too, and what was acknowledged to a client would be gone. But it need not be thrown away. Its votes and
terms are exact in the mark (high_water.py), so it can go on as one that promises nothing new until it has
everything again. When that is, is for the core to say (raft/core/recovering.py, docs/adr/0014).

The fact is durable before anything is cut. What each crash of such a start leaves:

    before the mark says recovering      everything as it was; the next start finds the same
    after that, before the end is cut    the same log: the next start cuts it
    after the cut, before the log has    the mark has them still, and the log is short of it: the next start
      the mark's term and vote             writes them
    after that                           a log like any other; the mark says recovering until it is ended

Later batches get the numbers of those that were lost. Only their bytes could be mistaken for them, and those
were zeroed, or are not whole.

Refused as before: a log of which a file is missing that nothing says was dropped, one without a single
segment, and one whose high-water file is gone. There a person can put something back.
"""

from __future__ import annotations

from raft.core.types import HardState
from raft.storage.errors import LostDurableData
from raft.storage.high_water import HighWater, Mark
from raft.storage.recovery import LogScan
from raft.storage.segment import segment_path


def find_loss(scan: LogScan, mark: Mark) -> str:
    """Return what the log lacks of what the mark knows was durable; "" if nothing."""
    state = scan.hard_state
    if scan.batch < mark.batch:
        return f"the log ends with batch {scan.batch}, batch {mark.batch} was durable"
    if state.term < mark.term:
        return f"the log knows term {state.term}, term {mark.term} was durable"
    if state.term == mark.term and mark.voted_for and state.voted_for != mark.voted_for:
        return f"in term {mark.term} the log has the vote {state.voted_for:x}, {mark.voted_for:x} was durable"
    return ""


def check_complete(scan: LogScan, mark: Mark, directory: str, high_water_path: str) -> str:
    """Return what is lost, as `find_loss`. Raises MissingSegment, and LostDurableData if a member with what
    is left could not even recover."""
    loss = find_loss(scan, mark)
    if loss and (scan.missing is not None or not scan.generations):
        # If it is the proof that was lost, then no file is missing that could be put back.
        paths = (segment_path(directory, scan.end_generation), high_water_path)
        raise LostDurableData(paths, f"{loss}, and what is left does not begin where it should")
    if scan.missing is not None:
        raise scan.missing
    return loss


def note_loss(high_water: HighWater) -> None:
    """Make durable that this member is recovering. Raises OSError."""
    mark = high_water.mark
    high_water.write(mark._replace(lost_batch=max(mark.batch, mark.lost_batch, 1)))


def promised(found: HardState, mark: Mark) -> HardState:
    """Return what the log has of term and vote, or what the mark has if that is later."""
    if mark.term > found.term or (mark.term == found.term and mark.voted_for):
        return HardState(mark.term, mark.voted_for, found.commit_index)
    return found

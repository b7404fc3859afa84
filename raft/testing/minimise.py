"""A failing run, made smaller: fewer steps, fewer kinds of faults, fewer clients, as long as it fails alike.

Delta debugging (Zeller, Hildebrandt 2002) over the parts of a seed's plan, one by one, since few of them
matter and none is worth an hour: the effort is bounded by a number of runs. What counts is that the same
invariant does not hold; the numbers in it may be others. A smaller run is not always one of the same bug, but
it is a bug.
"""

from __future__ import annotations

from dataclasses import replace

from raft.testing.case import Case
from raft.testing.parts import STOPS, parts_of
from raft.testing.simulator import Result

RUNS_MAX = 60
"""Runs that one failing seed may cost."""

SHORTER = (0.5, 0.75)
"""What is tried of the steps of a run that fails only after they are over."""


def minimise(case: Case, result: Result, runs_max: int = RUNS_MAX) -> tuple[Case, Result]:
    """Return the smallest case found that fails as `result` of `case` does, and how it fails."""
    return _Search(case, result, runs_max).run()


class _Search:
    def __init__(self, case: Case, result: Result, runs_max: int) -> None:
        self._best, self._result = case, result
        self._runs_left = runs_max
        self._kind = result.violation

    def run(self) -> tuple[Case, Result]:
        self._cut_after_violation()
        is_smaller = True
        while is_smaller and self._runs_left:
            is_smaller = self._leave_out_parts()
            is_smaller |= self._shorten()
        return self._best, self._result

    def _leave_out_parts(self) -> bool:
        """Try without each part. Return whether any of them did not matter."""
        is_smaller = False
        for name in parts_of(self._best.simulation().profile) + ([STOPS] if self._best.runtime else []):
            if name not in self._best.without:
                is_smaller |= self._try(replace(self._best, without=(*self._best.without, name)))
        return is_smaller

    def _shorten(self) -> bool:
        is_shorter = False
        for share in SHORTER:
            is_shorter |= self._try(replace(self._best, steps=max(1, int(self._best.steps * share))))
        return is_shorter

    def _try(self, case: Case) -> bool:
        if not self._runs_left or case == self._best:
            return False
        self._runs_left -= 1
        result = case.run()
        if result.violation != self._kind:
            return False
        self._best, self._result = case, result
        self._cut_after_violation()
        return True

    def _cut_after_violation(self) -> None:
        """Of a run that failed before its steps were over the rest does not matter."""
        factor = self._best.simulation().steps // self._best.steps
        steps = -(-self._result.step // factor)
        if 0 < steps < self._best.steps:
            self._best = replace(self._best, steps=steps)

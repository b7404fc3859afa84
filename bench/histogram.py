"""Latencies counted in bounded memory, with an error that is stated.

A list of all latencies grows with the run, and a sample of them loses just the rare slow ones that matter.
So the value is rounded to its leading bits and counted: as HdrHistogram does it (Gil Tene), in a few
lines of our own.

Values are whole microseconds. Below 2**SUB_BITS each has a counter of its own: exact. Above, every power
of two is cut into 2**(SUB_BITS - 1) counters of equal width, so that a value and the bounds of its counter
differ by less than one part in 2**(SUB_BITS - 1): 0.2 %. A quantile is reported as the *upper* bound of its
counter, or the largest value seen if that is less: never smaller than the truth, and at most 0.2 % larger.
Smallest, largest, count and sum are exact.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

SUB_BITS = 10
VALUE_BITS = 36
VALUE_MAX_US = (1 << VALUE_BITS) - 1
"""Nineteen hours. What is larger is counted as this; `max_us` is exact all the same."""

_HALF = 1 << (SUB_BITS - 1)
COUNTERS = _HALF * (VALUE_BITS - SUB_BITS + 2)
"""14,336, of 8 bytes each: 112 KiB a histogram, however many values."""

RELATIVE_ERROR_MAX = 1 / _HALF

PERCENTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}


class Histogram:
    __slots__ = ("_counters", "count", "max_us", "min_us", "sum_us")

    def __init__(self) -> None:
        self._counters = array("Q", [0]) * COUNTERS
        self.count = 0
        self.sum_us = 0
        self.min_us = 0
        self.max_us = 0

    def record(self, value_us: int) -> None:
        """Count one value. A clock that stepped back gives a negative one: it counts as 0."""
        value_us = max(0, value_us)
        self._counters[_index(value_us)] += 1
        self.sum_us += value_us
        self.min_us = value_us if not self.count else min(self.min_us, value_us)
        self.max_us = max(self.max_us, value_us)
        self.count += 1

    def add(self, other: Histogram) -> None:
        """Count everything that `other` has counted."""
        if not other.count:
            return
        for index, count in enumerate(other._counters):
            if count:
                self._counters[index] += count
        self.min_us = other.min_us if not self.count else min(self.min_us, other.min_us)
        self.max_us = max(self.max_us, other.max_us)
        self.sum_us += other.sum_us
        self.count += other.count

    def quantile(self, share: float) -> int:
        """Return a value that at least `share` of all do not exceed (nearest rank), in microseconds; 0 of
        none. See the top for the error."""
        if not self.count:
            return 0
        rank = max(1, min(self.count, -int(-share * self.count // 1)))
        seen = 0
        for index, count in enumerate(self._counters):
            seen += count
            if seen >= rank:
                return max(self.min_us, min(_upper(index), self.max_us))
        raise AssertionError("the counters hold fewer values than were counted")

    @property
    def mean_us(self) -> float:
        return self.sum_us / self.count if self.count else 0.0

    def summary(self) -> dict[str, Any]:
        """Return what the JSON reports have under `latency_us`."""
        return {
            "count": self.count,
            "mean": round(self.mean_us, 1),
            "min": self.min_us,
            **{name: self.quantile(share) for name, share in PERCENTILES.items()},
            "max": self.max_us,
        }


def _index(value_us: int) -> int:
    value_us = min(value_us, VALUE_MAX_US)
    shift = max(0, value_us.bit_length() - SUB_BITS)
    return shift * _HALF + (value_us >> shift)


def _upper(index: int) -> int:
    """Return the largest value that is counted at `index`."""
    if index < 2 * _HALF:
        return index
    shift = index // _HALF - 1
    return ((index - shift * _HALF + 1) << shift) - 1

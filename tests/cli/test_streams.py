"""A standard stream that is closed must not lend its number to a file of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import chain, combinations

import pytest

CHILD = """
import os, sys
from quorumlog.streams import occupy_standard_streams
occupy_standard_streams()
found = os.open(os.devnull, os.O_RDONLY)
null = os.stat(os.devnull)
taken = [os.fstat(n) for n in range(3)]
os.write(int(sys.argv[1]), b"%d %d" % (found, sum(os.path.samestat(t, null) for t in taken)))
"""


@pytest.mark.parametrize("closed", list(chain.from_iterable(combinations(range(3), n) for n in range(4))))
def test_numbers_of_closed_streams_are_taken(closed: tuple[int, ...]) -> None:
    read_end, write_end = os.pipe()

    def close() -> None:
        for number in closed:
            os.close(number)

    process = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(write_end)],
        pass_fds=[write_end],
        preexec_fn=close,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.communicate()
    os.close(write_end)
    with os.fdopen(read_end) as answer:
        found, on_null = map(int, answer.read().split())
    assert process.returncode == 0
    assert found > 2
    assert on_null == len(closed)

"""How serve ends when the disk fails in its very last moments."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore.client import Client
from quorumlog import serve
from raft import StorageError
from raft.storage.log_store import LogStore

from .test_serve_start import config_for, served


async def test_a_log_that_cannot_be_closed_is_no_clean_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended with status 0, as if all were well, and whoever supervises it saw nothing."""
    config = config_for(tmp_path)
    close = LogStore.close

    def fail(log: LogStore) -> None:
        close(log)
        raise StorageError("the log could not be written: Input/output error")

    monkeypatch.setattr(LogStore, "close", fail)
    server = serve._Server(config)
    task = asyncio.create_task(server.run())
    async with Client(config.listen_client_urls, timeout_s=15) as client:
        await served(client)
    server._ended.set()
    with pytest.raises(StorageError, match="Input/output error"):
        await asyncio.wait_for(task, 20)


HANG = """
import ctypes
from quorumlog import serve

serve._end_surely(0.1)
ctypes.PyDLL(None).sleep(600)
"""


def test_a_process_in_which_no_python_can_run_any_more_ends_all_the_same() -> None:
    """A LevelDB that is closed while its disk hangs waits for its thread, and lets nobody else run."""
    done = subprocess.run([sys.executable, "-c", HANG], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (serve.EXIT_FATAL, "", "")

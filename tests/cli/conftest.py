"""A real etcd for the client to talk to: the protocol is etcd's, so etcd is the judge."""

from __future__ import annotations

import http.client
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import free_port

ETCD = Path(sys.executable).parent / "etcd"
ETCDCTL = Path(sys.executable).parent / "etcdctl"
START_ATTEMPTS = 5
START_SECONDS_MAX = 30


def _start_etcd(directory: Path) -> tuple[subprocess.Popen[bytes], str] | None:
    """Start one member on free ports and wait until it serves. None if a port was taken by then."""
    client_url, peer_url = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    with open(directory / "etcd.log", "wb") as log:
        process = subprocess.Popen(
            [
                ETCD,
                f"--data-dir={directory / 'data'}",
                f"--listen-client-urls={client_url}",
                f"--advertise-client-urls={client_url}",
                f"--listen-peer-urls={peer_url}",
                f"--initial-advertise-peer-urls={peer_url}",
                f"--initial-cluster=default={peer_url}",
                "--unsafe-no-fsync",
            ],
            stdout=log,
            stderr=log,
        )
    deadline = time.monotonic() + START_SECONDS_MAX
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if _is_healthy(client_url.removeprefix("http://")):
                return process, client_url.removeprefix("http://")
        except OSError:
            time.sleep(0.02)  # between two looks; the condition is what is waited for
    _stop(process)
    return None


def _is_healthy(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=1)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a running etcd of one member. Shared: a test uses keys of its own."""
    for _ in range(START_ATTEMPTS):
        started = _start_etcd(tmp_path_factory.mktemp("etcd"))
        if started is not None:
            process, endpoint = started
            try:
                yield endpoint
            finally:
                _stop(process)
            return
    raise RuntimeError("etcd did not start; its log is in the directory of this session's fixtures")


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    """A key prefix that no other test uses."""
    return f"{request.node.name}/"

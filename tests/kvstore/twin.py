"""A real etcd 3.5.1 of one member, to compare with."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.ports import free_ports

BIN = Path(sys.executable).parent


class Etcd:
    def __init__(self, directory: Path) -> None:
        client, peer = free_ports(2)
        self.port = client
        self._log = (directory / "etcd.log").open("wb")
        urls = {"client": f"http://127.0.0.1:{client}", "peer": f"http://127.0.0.1:{peer}"}
        arguments = [
            "--name=twin",
            f"--data-dir={directory / 'twin.etcd'}",
            f"--listen-client-urls={urls['client']}",
            f"--advertise-client-urls={urls['client']}",
            f"--listen-peer-urls={urls['peer']}",
            f"--initial-advertise-peer-urls={urls['peer']}",
            f"--initial-cluster=twin={urls['peer']}",
            "--unsafe-no-fsync",
        ]
        self._process = subprocess.Popen([BIN / "etcd", *arguments], stdout=self._log, stderr=self._log)
        deadline = time.monotonic() + 30
        while True:
            assert self._process.poll() is None, (directory / "etcd.log").read_text()[-2000:]
            try:
                socket.create_connection(("127.0.0.1", client), timeout=1).close()
                return
            except OSError:
                assert time.monotonic() < deadline, "etcd does not listen"
                time.sleep(0.02)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(10)
        self._log.close()

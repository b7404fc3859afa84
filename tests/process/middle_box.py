"""A middle box before a member's peer port: it carries TCP on, and resets, delays or refuses as a test says.

Members dial each other through it, for its address is the one that the member advertises. Which connection
is whose it reads from the handshake, in which the one who dials gives its name.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from tests.ports import free_port

from .cluster import LocalCluster

SNIFFED_BYTES_MAX = 4096
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER with no time: a close resets."""


class BoxedCluster(LocalCluster):
    """Members whose peer ports are reached through middle boxes. The first alone is quick to campaign: it
    leads in the beginning, and of the others nobody stands for election before most of a minute is over."""

    def __init__(self, directory: Path, *, first_election_ms: int = 5000, **options: Any) -> None:
        self._ports: dict[str, int] = {}
        super().__init__(directory, election_ms=first_election_ms, **options)

    def command(self, index: int, **changed: str) -> list[str]:
        url = f"http://127.0.0.1:{self.real_port(index)}"
        patience = [] if index == 0 else ["--election-timeout", "50000"]
        return [*super().command(index, **{"listen_peer_urls": url, **changed}), *patience]

    def real_port(self, index: int) -> int:
        return self._ports.setdefault(self.members[index].name, free_port())

    def boxes(self) -> list[MiddleBox]:
        # The field `name` of a Handshake (peer.proto): its tag, its length, and the name.
        dialling = {
            f":{chr(len(member.name))}{member.name}".encode(): i for i, member in enumerate(self.members)
        }
        return [
            MiddleBox(member.peer_port, self.real_port(i), dialling) for i, member in enumerate(self.members)
        ]


class _Splice:
    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.writers = (near, far)
        self.dialled_by: int | None = None

    def reset(self) -> None:
        for writer in self.writers:
            sock = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()


class MiddleBox:
    """Use as an async context. `dialling`: by what in a handshake each member is known, and its number."""

    def __init__(self, port: int, target_port: int, dialling: Mapping[bytes, int]) -> None:
        self._port, self._target_port, self._dialling = port, target_port, dialling
        self._server: asyncio.Server | None = None
        self._splices: set[_Splice] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._queue: contextlib.ExitStack | None = None
        self.delay_s: Callable[[], float] = lambda: 0.0
        """How long the next bytes are held up; what follows them waits too, as behind a lost packet."""

    async def __aenter__(self) -> MiddleBox:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        self.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def open(self) -> None:
        self.close()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    def close(self) -> None:
        """Refuse connections. Those that are there stay."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._queue is not None:
            self._queue.close()
            self._queue = None

    def fill(self) -> None:
        """Have a full listen queue: who dials gets no answer."""
        self.close()
        self._queue = stack = contextlib.ExitStack()
        server = stack.enter_context(socket.socket())
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", self._port))
        server.listen(0)
        for _ in range(100):
            client = stack.enter_context(socket.socket())
            client.settimeout(0.2)
            try:
                client.connect(server.getsockname())
            except TimeoutError:
                return
        raise AssertionError("a queue of no length takes 100")

    def reset(self, dialled_by: int | None = None) -> int:
        """Reset the connections of one who has dialled, or all; return how many."""
        chosen = [x for x in self._splices if dialled_by is None or x.dialled_by == dialled_by]
        for splice in chosen:
            splice.reset()
        return len(chosen)

    def carries(self) -> Collection[int | None]:
        """Whose connections there are."""
        return {splice.dialled_by for splice in self._splices}

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            # The member is down. Whoever dials it would be refused; here he is reset.
            writer.transport.abort()
            return
        splice = _Splice(writer, far_writer)
        self._splices.add(splice)
        try:
            await asyncio.gather(
                self._carry(reader, far_writer, splice), self._carry(far_reader, writer, None)
            )
        except asyncio.CancelledError:
            pass  # the end of the test
        finally:
            self._splices.discard(splice)
            self._tasks.discard(task)
            writer.close()
            far_writer.close()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sniffs: _Splice | None
    ) -> None:
        begin = b""
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                if sniffs is not None and sniffs.dialled_by is None and len(begin) < SNIFFED_BYTES_MAX:
                    begin += data
                    sniffs.dialled_by = next((i for text, i in self._dialling.items() if text in begin), None)
                if delay_s := self.delay_s():
                    await asyncio.sleep(delay_s)
                writer.write(data)
                await writer.drain()
        writer.close()


def bad_weather(source: random.Random) -> Callable[[], float]:
    """Delays as of a line that is long, and of which packets are lost: TCP sends those again after 0.2 s."""
    return lambda: source.uniform(0.0, 0.02) + (0.2 if source.random() < 0.03 else 0.0)

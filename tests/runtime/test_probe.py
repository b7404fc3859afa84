"""Whether anybody listens somewhere: judged on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from raft.transport.probe import Verdict, probe
from tests.ports import free_ports

PATIENT_S = 20.0
"""For an answer that comes."""
BRIEF_S = 0.2
"""For one that never comes."""


def here(port: int) -> str:
    return f"127.0.0.1:{port}"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def address_of(server: socket.socket) -> str:
    return here(server.getsockname()[1])


async def test_nobody_listens() -> None:
    assert await probe([here(free_ports(1)[0])], PATIENT_S) is Verdict.REFUSED


async def test_somebody_listens_who_never_accepts(listener: socket.socket) -> None:
    """As a paused process does: its kernel answers for it."""
    assert await probe([address_of(listener)], PATIENT_S) is Verdict.CONNECTED


async def test_a_connection_that_is_reset_once_it_is_accepted() -> None:
    is_over = asyncio.Event()

    async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        is_over.set()

    async with await asyncio.start_server(reset, "127.0.0.1", 0) as server:
        assert await probe([address_of(server.sockets[0])], PATIENT_S) is Verdict.CONNECTED
        async with asyncio.timeout(PATIENT_S):
            await is_over.wait()


@pytest.fixture
def full_queue() -> Iterator[str]:
    """The address of a listener whose queue takes no more: it answers no SYN."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(100):
            client = stack.enter_context(socket.socket())
            client.settimeout(BRIEF_S)
            try:
                client.connect(server.getsockname())
            except TimeoutError:
                break
        else:
            raise AssertionError("a queue of no length takes 100")
        yield address_of(server)


async def test_a_full_listen_queue_is_silent(full_queue: str) -> None:
    assert await probe([full_queue], BRIEF_S) is Verdict.UNKNOWN


async def test_all_of_a_members_addresses_count(full_queue: str, listener: socket.socket) -> None:
    first, second = map(here, free_ports(2))
    assert await probe([first, second], PATIENT_S) is Verdict.REFUSED
    assert await probe([first, address_of(listener)], PATIENT_S) is Verdict.CONNECTED
    assert await probe([address_of(listener), second], PATIENT_S) is Verdict.CONNECTED
    assert await probe([first, full_queue], BRIEF_S) is Verdict.UNKNOWN
    assert await probe([], PATIENT_S) is Verdict.UNKNOWN


def resolve_to(monkeypatch: pytest.MonkeyPatch, *targets: tuple[str, int]) -> None:
    """Have every name be these places."""

    async def resolve(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", target) for target in targets]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve, raising=False)


async def test_all_places_of_a_name_count(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = free_ports(1)[0]
    resolve_to(monkeypatch, ("127.0.0.1", closed), ("127.0.0.2", closed))
    assert await probe(["peer.example:1"], PATIENT_S) is Verdict.REFUSED
    resolve_to(monkeypatch, ("127.0.0.2", closed), listener.getsockname())
    assert await probe(["peer.example:1"], PATIENT_S) is Verdict.CONNECTED


async def test_a_name_that_is_not_resolved_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object, **__: object) -> list[Any]:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", fail, raising=False)
    assert await probe(["peer.example:1"], PATIENT_S) is Verdict.UNKNOWN


def fail_at(monkeypatch: pytest.MonkeyPatch, port: int, number: int) -> None:
    """Have connections to `port` end with an errno."""
    loop = asyncio.get_running_loop()
    connect = loop.sock_connect

    async def sock_connect(sock: socket.socket, address: Any) -> None:
        if address[1] == port:
            raise OSError(number, "as the test wants")
        await connect(sock, address)

    monkeypatch.setattr(loop, "sock_connect", sock_connect, raising=False)


@pytest.mark.parametrize(
    "number",
    [
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.EACCES,
        errno.ECONNRESET,
        errno.ETIMEDOUT,
        errno.EMFILE,
    ],
)
async def test_other_errors_say_nothing(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beside a refusal."""
    lost, refused = free_ports(2)
    fail_at(monkeypatch, lost, number)
    assert await probe([here(lost)], PATIENT_S) is Verdict.UNKNOWN
    assert await probe([here(refused), here(lost)], PATIENT_S) is Verdict.UNKNOWN


async def test_a_place_that_this_host_cannot_dial_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "localhost" is ::1 too, also where IPv6 is off."""
    strange, refused = free_ports(2)
    fail_at(monkeypatch, strange, errno.EADDRNOTAVAIL)
    assert await probe([here(strange), here(refused)], PATIENT_S) is Verdict.REFUSED
    assert await probe([here(strange)], PATIENT_S) is Verdict.UNKNOWN

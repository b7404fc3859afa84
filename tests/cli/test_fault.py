"""The socket by which a member is told of faults, and `quorumlog fault`, which speaks to it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import stat
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from quorumlog.cli import main
from quorumlog.fault_client import (
    DELAY_MS_MAX,
    LINE_BYTES_MAX,
    LOSS_PERCENT_MAX,
    NoAnswer,
    NobodyThere,
    Question,
    called,
    counted,
    words,
)
from quorumlog.fault_socket import CLIENTS_MAX, FaultControl, FaultSocket, MemberName
from raft import Direction, FaultyTransport, Link, LinkRule, ListenError, MemoryNetwork

N1, N2, N3 = (f"http://127.0.0.1:{port}" for port in (2380, 2390, 2400))
MEMBERS = [
    MemberName(0xA1, "n1", (N1,)),
    MemberName(0xA2, "n2", (N2,)),
    MemberName(0xA3, "", (N3, "http://n3:1")),
]
CUT = LinkRule(is_cut=True)
OUT, IN = Direction.OUT, Direction.IN


class Target:
    """Member A1, as far as faults go. Its data directory is deeper than the path of a socket may be."""

    def __init__(self, directory: Path) -> None:
        self.data_dir = directory / ("d" * 100) / "data"
        self.data_dir.mkdir(parents=True)
        self.path = self.data_dir / "faults.sock"
        self.transport = FaultyTransport(MemoryNetwork().transport(0xA1), random.Random(0))
        self.members = list(MEMBERS)
        control = FaultControl(0xA1, self.transport, lambda: self.members)
        self.socket = FaultSocket(str(self.data_dir), control)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        directory = os.open(self.data_dir, os.O_RDONLY)
        try:
            return await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/faults.sock")
        finally:
            os.close(directory)

    async def say(self, *lines: bytes) -> list[dict[str, Any]]:
        """Send lines over one connection; return the answers that come until its end."""
        reader, writer = await self.connect()
        writer.write(b"".join(line + b"\n" for line in lines))
        writer.write_eof()
        answers = [json.loads(line) for line in (await reader.read()).splitlines()]
        writer.close()
        return answers

    async def ask(self, request: Any) -> dict[str, Any]:
        [answer] = await self.say(json.dumps(request).encode())
        return answer

    async def set(self, *links: Any) -> dict[str, Any]:
        return await self.ask({"op": "set", "links": links})

    async def run(self, *arguments: str) -> int:
        """`quorumlog fault ...`, for this member."""
        name, *rest = arguments
        return await asyncio.to_thread(main, ["fault", name, "--data-dir", str(self.data_dir), *rest])


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[Target]:
    made = Target(tmp_path)
    await made.socket.start()
    async with asyncio.timeout(30):
        yield made
    await made.socket.stop()


def cut(*ids: int, directions: Sequence[Direction] = (OUT, IN)) -> dict[Link, LinkRule]:
    return {Link(node_id, direction): CUT for node_id in ids for direction in directions}


# The socket -------------------------------------------------------------------------------------------------


async def test_it_is_for_its_owner_alone_and_gone_after_the_stop(target: Target) -> None:
    mode = target.path.stat().st_mode
    assert stat.S_ISSOCK(mode) and stat.S_IMODE(mode) == 0o600
    assert len(str(target.path)) > 108, "no bare path of a socket"
    await target.socket.stop()
    assert not target.path.exists()
    await target.socket.stop()


async def test_a_stop_ends_whoever_is_connected(target: Target) -> None:
    reader, writer = await target.connect()
    writer.write(b'{"op": "show"}\n')
    await reader.readline()
    await target.socket.stop()
    assert asyncio.all_tasks() == {asyncio.current_task()}, "nothing is left behind"
    assert await reader.read() == b""
    writer.close()


async def test_what_a_killed_process_left_is_replaced(tmp_path: Path) -> None:
    target = Target(tmp_path)
    here = Path.cwd()
    os.chdir(target.data_dir)
    try:
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind("faults.sock")
    finally:
        os.chdir(here)
    with pytest.raises(NobodyThere, match="Connection refused"):
        Question(str(target.data_dir), {"op": "show"}, 5.0)
    await target.socket.start()
    assert (await target.ask({"op": "show"}))["ok"]
    await target.socket.stop()


async def test_what_is_in_the_way_is_named(tmp_path: Path) -> None:
    target = Target(tmp_path)
    target.path.mkdir()
    with pytest.raises(ListenError, match=r"faults\.sock, which --enable-fault-injection asks for: Is a dir"):
        await target.socket.start()
    assert target.path.is_dir()
    await target.socket.stop()


BAD = [
    (b"", "not a request"),
    (b"hello", "not a request"),
    (b"\xff\xfe{", "not a request"),
    (b"[" * 60_000, "not a request"),
    (b"[]", "a request is a JSON object"),
    (b"7", "a request is a JSON object"),
    (b"{}", "no operation None"),
    (b'{"op": "explode"}', "no operation 'explode'"),
    (b'{"op": ["set"]}', "no operation"),
    (b'{"op": "heal", "links": []}', "nothing is called 'links' here"),
    (b'{"op": "set"}', "links: a list"),
    (b'{"op": "set", "links": []}', "links: a list"),
    (b'{"op": "set", "links": [7]}', "each is a JSON object"),
    (b'{"op": "set", "links": [{"peers": "all"}]}', "a change says what is to be"),
    (b'{"op": "set", "links": [{"peers": "all", "cut": 1}]}', "cut: true or false"),
    (b'{"op": "set", "links": [{"peers": "all", "delay_ms": true}]}', "delay_ms: a number"),
    (b'{"op": "set", "links": [{"peers": "all", "delay_ms": 1.5}]}', "delay_ms: a number"),
    (b'{"op": "set", "links": [{"peers": "all", "delay_ms": -1}]}', "a delay of -1 ms"),
    (b'{"op": "set", "links": [{"peers": "all", "delay_ms": 1' + b"0" * 400 + b"}]}", "from 0 to 60000"),
    (b'{"op": "set", "links": [{"peers": "all", "loss_percent": 101}]}', "a loss of 101 %"),
    (b'{"op": "set", "links": [{"peers": "all", "loss_percent": NaN}]}', "a loss of nan %"),
    (b'{"op": "set", "links": [{"peers": "all", "loss_percent": 1' + b"0" * 400 + b"}]}", "not a request"),
    (b'{"op": "set", "links": [{"peers": "some", "cut": true}]}', "peers: a list"),
    (b'{"op": "set", "links": [{"cut": true}]}', "peers: a list"),
    (b'{"op": "set", "links": [{"peers": [7], "cut": true}]}', "peers: a list"),
    (b'{"op": "set", "links": [{"peers": ["n9"], "cut": true}]}', "no other member is called 'n9'"),
    (b'{"op": "set", "links": [{"peers": ["n1"], "cut": true}]}', "no other member is called 'n1'"),
    (b'{"op": "set", "links": [{"peers": [""], "cut": true}]}', "no other member is called ''"),
    (b'{"op": "set", "links": [{"peers": ["n2"], "direction": "up", "cut": true}]}', "direction: both"),
    (b'{"op": "set", "links": [{"peers": ["n2"], "direction": [], "cut": true}]}', "direction: both"),
    (b'{"op": "set", "links": [{"peers": ["n2"], "cut": true, "for": 7}]}', "nothing is called 'for' here"),
]


async def test_bad_input_gets_an_error_and_changes_nothing(target: Target) -> None:
    await target.set({"peers": ["n2"], "cut": True})
    answers = await target.say(*(line for line, _ in BAD), b'{"op": "show"}')
    for (line, says), answer in zip(BAD, answers[:-1], strict=True):
        assert not answer["ok"] and says in answer["error"], (line[:100], answer)
    assert answers[-1]["ok"] and target.transport.rules == cut(0xA2)


async def test_a_line_without_an_end_is_not_gathered(target: Target) -> None:
    answers = await target.say(b"x" * (LINE_BYTES_MAX + 1), b'{"op": "show"}')
    assert answers == [{"ok": False, "error": f"a request of more than {LINE_BYTES_MAX} bytes"}]
    assert (await target.ask({"op": "show"}))["ok"], "others are served"


async def test_two_clients_at_once(target: Target) -> None:
    one, other = await target.connect(), await target.connect()
    for reader, writer in (one, other, one, other):
        writer.write(b'{"op": "show"}\n')
        assert json.loads(await reader.readline())["ok"]
    one[1].write(b'{"op": "se')
    assert (await target.set({"peers": ["n2"], "cut": True}))["ok"]
    one[1].close()  # in the middle of a line
    other[1].write(b'{"op": "show"}\n')
    assert len(json.loads(await other[0].readline())["links"]) == 2
    other[1].close()


async def test_a_client_that_does_not_listen_harms_nobody(target: Target) -> None:
    _, writer = await target.connect()
    writer.write(b'{"op": "show"}\n' * 1000)
    await writer.drain()
    writer.transport.abort()
    assert (await target.ask({"op": "show"}))["ok"]


async def test_too_many_clients_are_refused(target: Target) -> None:
    clients = []
    for _ in range(CLIENTS_MAX):
        reader, writer = await target.connect()
        writer.write(b'{"op": "show"}\n')
        assert json.loads(await reader.readline())["ok"]
        clients.append(writer)
    reader, writer = await target.connect()
    assert "are open already" in json.loads(await reader.readline())["error"]
    assert await reader.read() == b""
    for each in (*clients, writer):
        each.close()


async def test_members_are_named_in_three_ways(target: Target) -> None:
    for name in ("n2", "a2", N2, N2 + "/"):
        assert (await target.set({"peers": [name], "cut": True}))["ok"]
        assert target.transport.rules == cut(0xA2)
        await target.ask({"op": "heal"})
        assert target.transport.rules == {}
    assert (await target.set({"peers": ["http://n3:1"], "direction": "in", "cut": True}))["ok"]
    assert target.transport.rules == cut(0xA3, directions=[IN])
    target.members.append(MemberName(0xA4, "n2", ("http://127.0.0.1:2410",)))
    assert "several other members" in (await target.set({"peers": ["n2"], "cut": True}))["error"]


async def test_a_set_changes_what_it_names_and_all_of_it_or_nothing(target: Target) -> None:
    await target.set({"peers": "all", "delay_ms": 5}, {"peers": ["n2"], "direction": "out", "cut": True})
    assert target.transport.rules == {
        Link(0xA2, OUT): LinkRule(is_cut=True, delay_ms=5),
        Link(0xA2, IN): LinkRule(delay_ms=5),
        Link(0xA3, OUT): LinkRule(delay_ms=5),
        Link(0xA3, IN): LinkRule(delay_ms=5),
    }
    answer = await target.set({"peers": "all", "cut": False, "delay_ms": 0}, {"peers": ["n9"], "cut": True})
    assert not answer["ok"] and len(target.transport.rules) == 4
    answer = await target.set(
        {"peers": "all", "cut": False, "delay_ms": 0}, {"peers": ["a3"], "loss_percent": 2.5}
    )
    assert target.transport.rules == {link: LinkRule(loss_percent=2.5) for link in cut(0xA3)}
    assert answer["member"] == {"id": 0xA1, "name": "n1", "peer_urls": [N1]}
    assert answer["links"][0] == {
        "peer": {"id": 0xA3, "name": "", "peer_urls": [N3, "http://n3:1"]},
        "direction": "out",
        "cut": False,
        "delay_ms": 0,
        "loss_percent": 2.5,
        "waiting": 0,
    }
    assert not any(answer["counters"].values())


# The command ------------------------------------------------------------------------------------------------


async def test_the_commands_do_what_they_are_called(
    target: Target, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    async def said(*arguments: str) -> list[str]:
        assert await target.run(*arguments) == 0
        return capfdbinary.readouterr().out.decode().splitlines()

    assert (await said("show"))[0] == "no faults"
    table = await said("cut", "n2", "--direction", "out")
    assert table[:2] == ["PEER  DIRECTION  CUT  DELAY  LOSS  WAITING", "n2    out        yes  0 ms   0 %   0"]
    await said("slow", "20")
    await said("flaky", "1.5%", N3)
    assert target.transport.rules == {
        Link(0xA2, OUT): LinkRule(is_cut=True, delay_ms=20),
        Link(0xA2, IN): LinkRule(delay_ms=20),
        Link(0xA3, OUT): LinkRule(delay_ms=20, loss_percent=1.5),
        Link(0xA3, IN): LinkRule(delay_ms=20, loss_percent=1.5),
    }
    await said("slow", "0060000ms")
    await said("flaky", "100")
    assert target.transport.rules[Link(0xA3, IN)] == LinkRule(delay_ms=60_000, loss_percent=100)
    await said("slow", "0")
    await said("flaky", "0")
    await said("cut", "--only", "a3")
    assert target.transport.rules == cut(0xA3)
    assert "a3, in, yes, 0 ms, 0 %, 0" in await said("show", "-o", "simple")
    [line] = await said("show", "-o", "json")
    assert json.loads(line)["links"][1]["direction"] == "in"
    await said("cut", "all")
    assert target.transport.rules == cut(0xA2, 0xA3)
    assert (await said("heal"))[0] == "no faults" and target.transport.rules == {}


async def test_the_commands_say_what_went_wrong(
    target: Target, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    async def complaint(status: int, *arguments: str) -> str:
        assert await target.run(*arguments) == status
        printed = capfdbinary.readouterr()
        assert printed.out == b"" and printed.err.count(b"\n") == 1
        return printed.err.decode()

    assert "refused: no other member is called 'n9' here" in await complaint(1, "cut", "n9")
    for name, bad, limits in (
        *(("flaky", text, "0 to 100 ") for text in ("101", "100.1", "nan", "x", "-1", "9" * 400, "5 %")),
        *(("slow", text, "0 to 60000 ") for text in ("60001", "9" * 5000, "-1", "1.5", "1s", "1ms2")),
    ):
        with pytest.raises(SystemExit, match="2"):
            await target.run(name, bad)
        said = capfdbinary.readouterr().err.decode()
        assert said.startswith(f"quorumlog fault {name}: ") and said.count("\n") == 1 and limits in said
    await target.socket.stop()
    assert "--enable-fault-injection" in await complaint(3, "show")
    target.data_dir.rmdir()
    assert "No such file or directory" in await complaint(3, "show")
    assert target.transport.rules == {}


async def test_a_member_that_does_not_answer_may_do_it_later(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """It is paused: its kernel takes the connection and the request."""
    target = Target(tmp_path)
    directory = os.open(target.data_dir, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{directory}/faults.sock")
        listener.listen()
        assert await target.run("heal", "--timeout", "100ms") == 4
        assert capfdbinary.readouterr().err.endswith(b"hangs or is paused, and may do it yet\n")
        listener.accept()[0].close()
        # It was asked for nothing that it could do later.
        assert await target.run("show", "--timeout", "100ms") == 3
        assert capfdbinary.readouterr().err == (
            b"quorumlog fault show: unavailable: no answer within 0.1 s: the member hangs or is paused\n"
        )
        listener.accept()[0].close()
        asked = asyncio.create_task(target.run("heal"))
        accepted, _ = await asyncio.to_thread(listener.accept)
        assert await asyncio.to_thread(accepted.recv, 1000)
        accepted.close()
        assert await asked == 4
        assert b"outcome unknown: the member has ended without an answer" in capfdbinary.readouterr().err
        question = Question(str(target.data_dir), {"op": "show"}, 5.0)
        accepted, _ = listener.accept()
        accepted.sendall(b"[]\n")
        with pytest.raises(NoAnswer, match="does not know"):
            question.answer()
        accepted.close()
    os.close(directory)


async def test_links_are_sorted_by_the_member_they_lead_to(target: Target) -> None:
    target.members += [MemberName(node_id, f"n{node_id - 0xA0}", ()) for node_id in (0xA5, 0xA4)]
    answer = await target.set({"peers": ["n5", "n2"], "cut": True}, {"peers": ["a3", "n4"], "cut": True})
    assert [(called(link["peer"]), link["direction"]) for link in answer["links"]] == [
        (name, direction) for name in ("a3", "n2", "n4", "n5") for direction in ("out", "in")
    ]


def test_the_limits_are_those_of_a_member() -> None:
    LinkRule(delay_ms=DELAY_MS_MAX, loss_percent=LOSS_PERCENT_MAX)
    with pytest.raises(ValueError, match="a delay"):
        LinkRule(delay_ms=DELAY_MS_MAX + 1)
    with pytest.raises(ValueError, match="a loss"):
        LinkRule(loss_percent=LOSS_PERCENT_MAX + 0.1)


@pytest.mark.parametrize("name", ["show", "slow", "flaky"])
def test_help_offers_no_endpoints_and_tells_the_limits(
    name: str, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fault", name, "--help"])
    text = capfdbinary.readouterr().out.decode()
    assert "--endpoints" not in text and "--timeout" in text
    assert {"show": "--data-dir", "slow": "0 to 60000", "flaky": "0 to 100"}[name] in text


def test_words() -> None:
    def link(name: str, direction: str, cut: bool = False, delay: int = 0, loss: float = 0) -> dict[str, Any]:
        peer = {"id": 0xA7, "name": name, "peer_urls": []}
        fields = {"cut": cut, "delay_ms": delay, "loss_percent": loss}
        return {"peer": peer, "direction": direction, "waiting": 0, **fields}

    assert words([]) == "none"
    assert words([link("n2", "in", True), link("n2", "out", True)]) == "cut=n2"
    links = [
        link("", "out", True),
        link("n3", "in", True),
        link("n3", "out", delay=5),
        link("n3", "out", loss=2.5),
    ]
    assert words(links) == "cut-to=a7;cut-from=n3;flaky-to=2.5%:n3;slow-to=5ms:n3"
    assert (
        counted({"dropped_cut": 1, "dropped_loss": 2, "dropped_overflow": 3, "delayed": 4, "pipes_broken": 5})
        == "dropped 6 messages (cut 1, lost 2, no room 3), delayed 4, broke 5 pipes"
    )

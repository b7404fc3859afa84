"""check-history, as a user calls it, on files."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kvstore.checking import state_file
from kvstore.checking.history import History, Mark, Operation, Put, PutResult, Range, RangeResult
from kvstore.checking.history_file import save_history
from quorumlog.cli import main
from quorumlog.commands import check_history
from tests.checking.histories import A, B, Scribe, kv
from tests.cli.helpers import assert_one_line, quorumlog

HOSTILE = b"</script><script>alert(1)</script>\x1b[2J"

Save = Callable[..., str]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def to_file(scribe: Scribe) -> str:
        path = tmp_path / "history.jsonl"
        save_history(History(scribe.operations, [Mark(3, "killed \x1b[2J <b>", "n1")]), path)
        return str(path)

    return to_file


@pytest.fixture
def scribe() -> Scribe:
    scribe = Scribe()
    scribe.ok(0, 10, Put(A, b"1"), 2, PutResult())
    scribe.ok(20, 30, Put(A, HOSTILE), 3, PutResult())
    scribe.info(35, Put(B, b"3"))
    return scribe


def show_stale(scribe: Scribe) -> None:
    scribe.ok(40, 50, Range(A), 2, RangeResult((kv(A, b"1", 2, 2, 1),)))


def final(path: Path, kvs: list[dict[str, object]], revision: int = 3, **more: object) -> str:
    path.write_text(json.dumps({"header": {"revision": revision, "raft_term": 2}, "kvs": kvs, **more}))
    return str(path)


def etcd_kv(key: bytes, value: bytes, create: int, mod: int, version: int) -> dict[str, object]:
    fields = {"create_revision": create, "mod_revision": mod, "version": version, "lease": 7}
    return {"key": base64.b64encode(key).decode(), "value": base64.b64encode(value).decode(), **fields}


def run(capfdbinary: pytest.CaptureFixture[bytes], *arguments: str) -> tuple[int, str, str]:
    status = main(["check-history", *arguments])
    printed = capfdbinary.readouterr()
    return status, printed.out.decode(), printed.err.decode()


def test_a_right_history(scribe: Scribe, save: Save, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    status, out, err = run(capfdbinary, save(scribe))
    assert (status, err) == (0, "")
    assert out.startswith("correct: 3 calls of 3 clients: 2 acknowledged, 0 refused, 1 unknown\n")
    assert "revisions     correct" in out


def test_a_wrong_history_is_told_with_the_calls_and_nothing_that_a_terminal_obeys(
    scribe: Scribe, save: Save, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    show_stale(scribe)
    status, out, _ = run(capfdbinary, save(scribe), "--wgl")
    assert status == 1
    assert out.startswith("wrong: 4 calls")
    assert "stale-read: answered as of revision 2 after 3 had been answered" in out
    assert '#1, client 1 at n1, 0.000000 s to 0.000000 s: put "a" = "</script>' in out
    assert "\x1b" not in out
    status, out, _ = run(capfdbinary, save(scribe), "-o", "json")
    found = json.loads(out)
    assert (status, found["verdict"], found["faults"][0]["ids"]) == (1, "wrong", [1, 3])


def test_a_search_that_ends_at_its_limit_is_no_pass(
    scribe: Scribe, save: Save, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    status, out, _ = run(capfdbinary, save(scribe), "--wgl", "--steps-max", "1")
    assert status == 4
    assert "not decided" in out.splitlines()[0]


def test_an_empty_store_is_asked_for_where_it_was_not(
    save: Save, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    scribe = Scribe()
    scribe.ok(0, 10, Put(A, b"1"), 17, PutResult())
    status, out, _ = run(capfdbinary, save(scribe))
    assert status == 1
    assert "Was the store empty when the history began" in out
    scribe.operations.clear()
    status, out, _ = run(capfdbinary, save(scribe))
    assert (status, out.split(":")[0]) == (4, "not decided")
    assert "no call was acknowledged" in out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_shown_to_people_and_wiped_away(
    scribe: Scribe, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also before an error. That others see none of it, the tests above say."""
    path = save(scribe)
    monkeypatch.setattr(check_history, "_PROGRESS_PAUSE_S", 0.0)
    for arguments, told in (
        ([path, "--wgl"], "searching an order: key 2 of 2"),
        ([path, "--log", "."], "log in ."),
    ):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        main(["check-history", *arguments])
        shown, _, rest = terminal.getvalue().rpartition("\r\033[K")
        assert told in shown
        assert rest == "" or rest.startswith("quorumlog check-history: . is no data directory")


def test_the_final_state(
    scribe: Scribe, save: Save, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    right = final(tmp_path / "right.json", [etcd_kv(A, HOSTILE, 2, 3, 2)], count=1)
    assert run(capfdbinary, save(scribe), "--final", right)[0] == 0
    lost = final(tmp_path / "lost.json", [etcd_kv(A, b"1", 2, 2, 1)])
    status, out, _ = run(capfdbinary, save(scribe), "--final", lost)
    assert status == 1
    assert "lost-write" in out
    assert f"\n  the final read in {lost[:30]}" in out and "-4611" not in out
    status, out, _ = run(capfdbinary, save(scribe), "--final", lost, "-o", "json")
    faults = json.loads(out)["faults"]
    assert {number for fault in faults for number in fault["ids"]} <= {0, 1, 2}
    status, out, _ = run(capfdbinary, save(scribe), "--final", right, "--final", lost)
    assert "nodes-differ" in out


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is no JSON as `get --from-key"),
        ("[" * 100_000, "is no JSON as `get --from-key"),
        ("{}", "field 'header': is missing"),
        ('{"header":{"revision":3},"more":true}', "field 'more': says that keys are missing"),
        ('{"header":{"revision":3},"kvs":[{"key":"?"}]}', "field 'kvs[0].key': is no base64"),
        ('{"header":{"revision":3},"kvs":[{"key":"YQ=="}]}', "field 'kvs[0].create_revision': is missing"),
    ],
)
def test_a_file_that_is_no_state(content: str, told: str) -> None:
    with pytest.raises(state_file.StateUnreadable) as raised:
        state_file.parse_state(content.encode(), "final.json")
    assert str(raised.value).startswith("final.json")
    assert told in str(raised.value)


def test_the_picture_takes_the_place_of_nothing_that_is_checked(
    scribe: Scribe, save: Save, tmp_path: Path
) -> None:
    path = save(scribe)
    state = final(tmp_path / "final.json", [etcd_kv(A, HOSTILE, 2, 3, 2)])
    (tmp_path / "n1" / "log").mkdir(parents=True)
    entry = tmp_path / "n1" / "log" / "entries"
    entry.write_text("entries")
    for number, other in enumerate((path, state, str(entry))):
        symlink, hard = tmp_path / f"symlink{number}", tmp_path / f"hard{number}"
        symlink.symlink_to(other)
        hard.hardlink_to(other)
        before = Path(other).read_bytes()
        for out in (other, str(symlink), str(hard)):
            arguments = ("--final", state, "--log", str(tmp_path / "n1"), "--html", out)
            told = ("would overwrite", other) if number < 2 else ("in the data directory",)
            assert_one_line(quorumlog("check-history", path, *arguments), 2, *told)
            assert Path(other).read_bytes() == before
    inside = str(tmp_path / "n1" / "new.html")
    refused = quorumlog("check-history", path, "--log", str(tmp_path / "n1"), "--html", inside)
    assert_one_line(refused, 2, "in the data directory")
    assert_one_line(quorumlog("check-history", path, "--html", "-"), 2, "--html needs a file")
    assert not Path("-").exists()
    # Before anything is read: that there is no history is not found.
    missing = quorumlog("check-history", str(tmp_path / "none"), "--final", state, "--html", state)
    assert_one_line(missing, 2, "would overwrite")


def test_a_picture_is_there_as_a_whole_or_not_at_all(
    scribe: Scribe, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, page, link = save(scribe), tmp_path / "page.html", tmp_path / "link.html"
    link.symlink_to(page)
    page.write_text("of yesterday")
    page.chmod(0o640)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("quorumlog.commands.output_file.os.replace", fail)
        assert main(["check-history", path, "--html", str(link)]) == 6
    assert page.read_text() == "of yesterday"
    assert {one.name for one in tmp_path.iterdir()} == {"history.jsonl", "page.html", "link.html"}
    assert main(["check-history", path, "--html", str(link)]) == 0
    assert link.is_symlink() and "Timeline" in page.read_text()
    assert page.stat().st_mode & 0o777 == 0o640
    assert main(["check-history", path, "--html", "/dev/null"]) == 0
    assert Path("/dev/null").is_char_device()


def test_the_limit_of_the_search_is_one(scribe: Scribe, save: Save) -> None:
    path = save(scribe)
    assert_one_line(quorumlog("check-history", path, "--steps-max", "9"), 2, "give --wgl as well")
    assert_one_line(quorumlog("check-history", path, "--wgl", "--steps-max", "0"), 2, "give 1 or more")


def test_what_cannot_be_read(scribe: Scribe, save: Save, tmp_path: Path) -> None:
    missing, bad = str(tmp_path / "missing"), tmp_path / "bad"
    bad.write_text('{"format":"quorumlog-history","version":1}\n{"type":"end"}\n')
    path = save(scribe)
    assert_one_line(quorumlog("check-history", missing), 2, "cannot read", "No such file")
    assert_one_line(quorumlog("check-history", str(bad)), 2, "bad, line 2, field 'type': is none of invoke")
    assert_one_line(quorumlog("check-history", "-", stdin=b""), 2, "standard input is empty")
    assert_one_line(quorumlog("check-history", path, "--log", missing), 2, "is no directory")
    assert_one_line(quorumlog("check-history", path, "--log", str(tmp_path)), 2, "is no data directory")
    assert_one_line(quorumlog("check-history", path, "--endpoints", "127.0.0.1:1"), 3, "refused")
    drawn = quorumlog("check-history", path, "--html", str(tmp_path / "no" / "page.html"))
    assert_one_line(drawn, 6, "checked, but", "No such file")
    two = Scribe()
    two.ok(0, 10, Put(A, b"1"), 2, PutResult())
    two.ok(5, 20, Put(A, b"2"), 3, PutResult()).process = 0
    told = "is no history: line 4: process 0 called again before its call 0 had returned"
    assert_one_line(quorumlog("check-history", save(two)), 2, told)
    two.operations[0] = Operation(0, 0, "n1", Put(A, b"1"), 0, error="deadline")
    told = "line 5: process 0 called again after `info` (its call 0); give it a new number"
    assert_one_line(quorumlog("check-history", save(two)), 2, told)
    two.operations[0].error = ""
    told = "line 4: process 0 called again after a call that has no end"
    assert_one_line(quorumlog("check-history", save(two)), 2, told)

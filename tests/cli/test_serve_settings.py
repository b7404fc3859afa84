"""The settings of serve: where each comes from, and every fault told at once."""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from kvstore import AutoCompaction
from quorumlog.flags import OPTIONS, ServeConfig, add_options, cluster_id, load, member_id
from quorumlog.serve import LEADER_ACK_STATEMENT
from raft import ConfigError
from tests.ports import free_port

N1, N2, N3 = (f"http://127.0.0.1:{port}" for port in (2380, 2390, 2400))
THREE = ["--name", "n1", "--initial-cluster", f"n1={N1},n2={N2},n3={N3}", "--listen-peer-urls", N1]


def settings(*args: str, env: Mapping[str, str] | None = None) -> ServeConfig:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return load(parser.parse_args(args), env or {})


def faults(*args: str, env: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        settings(*args, env=env)
    return caught.value.faults


def test_the_defaults_are_etcds() -> None:
    config = settings()
    assert config.name == "default" and config.data_dir == "default.quorumlog"
    assert config.listen_client_urls == config.advertise_client_urls == ("http://localhost:2379",)
    assert config.listen_peer_urls == ("http://localhost:2380",)
    assert (config.heartbeat_interval_ms, config.election_timeout_ms) == (100, 1000)
    assert (config.max_request_bytes, config.max_txn_ops) == (1572864, 128)
    [(node_id, member)] = config.members.items()
    assert node_id == config.node_id and member == ("default", ("http://localhost:2380",))
    assert not config.is_cluster_given and not config.is_joining
    assert config.strict_reconfig_check and config.learners_max == 1


def test_the_limit_of_a_disk_that_hangs_is_in_seconds() -> None:
    assert settings().log_stall_exit_s == 20
    assert settings("--log-stall-exit", "3").log_stall_exit_s == 3
    assert faults("--log-stall-exit", "0") == ["--log-stall-exit '0': a whole number from 1 to 3600"]


def test_labels_are_told_in_the_order_of_their_names() -> None:
    assert settings().labels is None
    assert settings("--labels", "zone=dr, rack=7").labels == (("rack", "7"), ("zone", "dr"))
    for wrong in ("zone", "zone=", "=dr", "zone=d r", "zone=a,zone=b", "z=" + "a" * 64):
        [fault] = faults("--labels", wrong)
        assert fault.startswith(f"--labels {wrong!r}: "), fault


def test_writes_that_the_leader_alone_has_are_not_to_be_had_without_knowing_what_they_are() -> None:
    assert not settings().allows_leader_ack
    config = settings("--unsafe-allow-leader-ack", "--max-unreplicated-entries", "7")
    assert config.allows_leader_ack and config.unreplicated_entries_max == 7
    command = [sys.executable, "-m", "quorumlog", "serve", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert " ".join(LEADER_ACK_STATEMENT.split()) in " ".join(told.split())
    page = (Path(__file__).parents[2] / "docs" / "ack-policy.md").read_text(encoding="utf-8")
    quoted = " ".join(
        page.replace("`--max-unreplicated-*`", "--max-unreplicated-*").replace("\n> ", " ").split()
    )
    assert LEADER_ACK_STATEMENT in quoted


def test_switches_are_given_as_to_etcd() -> None:
    assert not settings("--strict-reconfig-check=false", "--insecure").strict_reconfig_check
    assert settings("--strict-reconfig-check", "--name", "n1").strict_reconfig_check
    assert not settings(env={"QUORUMLOG_STRICT_RECONFIG_CHECK": "false"}).strict_reconfig_check


def test_faults_are_injected_only_where_that_was_asked_for() -> None:
    assert not settings().is_fault_injection_enabled
    assert settings("--enable-fault-injection").is_fault_injection_enabled
    assert settings(env={"QUORUMLOG_ENABLE_FAULT_INJECTION": "true"}).is_fault_injection_enabled
    assert faults("--enable-fault-injection=maybe") == ["--enable-fault-injection 'maybe': true or false"]


def test_a_member_that_was_added_is_told_of_all_others() -> None:
    config = settings(*THREE, "--initial-cluster-state", "existing", "--max-learners", "3")
    assert config.is_joining and config.learners_max == 3
    assert config.advertise_peer_urls == (N1,)
    assert {member.peer_urls for member in config.members.values()} == {(N1,), (N2,), (N3,)}


def test_every_member_computes_the_same_ids() -> None:
    configs = [
        settings("--name", name, "--initial-cluster", cluster, "--listen-peer-urls", url)
        for name, url in (("n1", N1), ("n2", N2), ("n3", N3))
        for cluster in (f"n1={N1},n2={N2},n3={N3}", f"n3={N3},n1={N1}/, n2={N2}")
    ]
    assert len({config.cluster_id for config in configs}) == 1
    assert len({frozenset(config.members) for config in configs}) == 1
    assert len({config.node_id for config in configs}) == 3
    other = settings(*THREE, "--initial-cluster-token", "another")
    assert other.cluster_id != configs[0].cluster_id and other.node_id != configs[0].node_id


def test_ids_are_as_they_always_were() -> None:
    """They are in data directories: another way to compute them would lock everyone out."""
    assert member_id((N2, N1), "token") == member_id((N1, N2), "token") == 0x503B9C554C0E5EA9
    assert cluster_id([2, 1]) == cluster_id([1, 2]) == 0x869B3BADFBF1D6B7


def test_a_flag_goes_before_a_variable_and_that_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('name = "file"\nmax-txn-ops = 7\nheartbeat-interval = 20\n')
    env = {"QUORUMLOG_NAME": "variable", "QUORUMLOG_MAX_TXN_OPS": "8", "QUORUMLOG_ENDPOINTS": "x"}
    config = settings("--config-file", str(file), "--name", "flag", env=env)
    assert (config.name, config.max_txn_ops, config.heartbeat_interval_ms) == ("flag", 8, 20)
    env["QUORUMLOG_CONFIG_FILE"] = str(file)
    assert settings(env=env).name == "variable"
    assert settings(env={"QUORUMLOG_CONFIG_FILE": str(file)}).max_txn_ops == 7


def test_a_file_may_use_lists_and_switches(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('insecure = true\nlisten-client-urls = ["http://10.0.0.1:1", "http://127.0.0.1:1"]\n')
    assert settings("--config-file", str(file)).listen_client_urls == (
        "http://10.0.0.1:1",
        "http://127.0.0.1:1",
    )


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "node.toml"
    file.write_text("nmae = 'x'\ninsecure = { a = 1 }\n")
    found = faults(
        *("--config-file", str(file), "--name", "a,b", "--listen-client-urls", "127.0.0.1:1"),
        *("--listen-peer-urls", "https://127.0.0.1:2", "--heartbeat-interval", "1"),
        *("--election-timeout", "99999", "--max-request-bytes", "many", "--log-level", "loud"),
        *("--initial-cluster-state", "old", "--initial-cluster", "x"),
        *("--strict-reconfig-check=maybe", "--max-learners", "0"),
    )
    text = "\n".join(found)
    for part in (
        "no setting is called nmae",
        "insecure must be",
        "--name 'a,b'",
        "--listen-client-urls: bad URL '127.0.0.1:1'",
        "TLS is not supported yet",
        "--heartbeat-interval '1': a whole number from 10",
        "--election-timeout '99999'",
        "--max-request-bytes 'many'",
        "--log-level 'loud'",
        "--initial-cluster-state 'old': new or existing",
        "--strict-reconfig-check 'maybe': true or false",
        "--max-learners '0': a whole number from 1",
        "'x' is not NAME=URL",
    ):
        assert part in text
    assert all("\n" not in fault for fault in found)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["--listen-client-urls", "http://0.0.0.0:2379"], "not on loopback"),
        (["--listen-peer-urls", "http://10.1.2.3:2380"], "not on loopback"),
        (["--listen-client-urls", "http://example.org:2379"], "not on loopback"),
        (["--insecure", "--listen-client-urls", "http://[::]:2379"], "--advertise-client-urls must be given"),
        (["--listen-client-urls", " , "], "--listen-client-urls is empty"),
        (["--election-timeout", "400"], "at least 5 times"),
        (["--initial-cluster", f"other={N1}"], "no member called default"),
        (["--name", "n1", "--initial-cluster", f"n1={N1}"], "--initial-advertise-peer-urls are"),
        ([*THREE, "--initial-cluster", f"n1={N1},n2={N1}"], "is given twice"),
        (["--config-file", "/nonexistent.toml"], "No such file"),
        (["--max-request-bytes", "99999999"], "--max-request-bytes"),
        (["--max-txn-ops", "-1"], "--max-txn-ops"),
        (["--log-bytes-max", "1000"], "--log-bytes-max"),
        (["--log-segment-bytes", "2147483648"], "--log-segment-bytes"),
        (["--state-flush-bytes", "0"], "--state-flush-bytes"),
        (["--snapshot-bytes-per-second", "fast"], "--snapshot-bytes-per-second"),
        (["--auto-compaction-mode", "daily"], "--auto-compaction-mode 'daily': periodic or revision"),
        (["--auto-compaction-retention", "soon"], "--auto-compaction-retention 'soon': hours, or"),
        (["--auto-compaction-retention", "-1"], "--auto-compaction-retention '-1'"),
        (["--auto-compaction-retention", "10ms"], "--auto-compaction-retention '10ms'"),
        (
            ["--auto-compaction-mode", "revision", "--auto-compaction-retention", "1h"],
            "--auto-compaction-retention '1h': a number of revisions",
        ),
    ],
)
def test_a_fault_says_which_setting(args: list[str], text: str) -> None:
    assert any(text in fault for fault in faults(*args))


def test_other_addresses_are_taken_if_that_is_asked_for() -> None:
    config = settings(
        *("--insecure", "--listen-client-urls", "http://0.0.0.0:2379"),
        *("--advertise-client-urls", "http://db1.example.org:2379"),
    )
    assert config.advertise_client_urls == ("http://db1.example.org:2379",)


@pytest.mark.parametrize(
    ("mode", "retention", "expected"),
    [
        ("periodic", "0", None),
        ("revision", "0", None),
        ("periodic", "2", AutoCompaction("periodic", 7200)),
        ("periodic", "1h30m", AutoCompaction("periodic", 5400)),
        ("periodic", "1.5m", AutoCompaction("periodic", 90)),
        ("revision", "1000", AutoCompaction("revision", 1000)),
    ],
)
def test_auto_compaction(mode: str, retention: str, expected: AutoCompaction | None) -> None:
    args = ("--auto-compaction-mode", mode, "--auto-compaction-retention", retention)
    assert settings(*args).auto_compaction == expected


def test_a_member_may_have_several_urls() -> None:
    config = settings(
        *("--name", "n1", "--initial-cluster", f"n1={N1},n2={N3},n1={N2}"),
        *("--initial-advertise-peer-urls", f"{N2},{N1}"),
    )
    assert config.members[config.node_id].peer_urls == (N1, N2)


def test_every_setting_is_in_the_help() -> None:
    done = run_serve("--help")
    assert done.returncode == 0 and not done.stderr
    for option in OPTIONS:
        assert f"--{option.name} " in done.stdout.replace("\n", " ")


# The process --------------------------------------------------------------------------------------


def run_serve(*args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "quorumlog", "serve", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_bad_settings_end_with_status_2_and_a_line_each(tmp_path: Path) -> None:
    done = run_serve("--data-dir", str(tmp_path / "d"), "--log-level", "loud", "--max-txn-ops", "0")
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and len(lines) == 2
    assert all(line.startswith("quorumlog serve: --") for line in lines)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("kind", ["client", "peer"])
def test_a_taken_port_ends_with_status_1_and_its_address(tmp_path: Path, kind: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy, idle = (f"http://127.0.0.1:{port}" for port in (taken.getsockname()[1], free_port()))
        urls = {"client": (busy, idle), "peer": (idle, busy)}[kind]
        done = run_serve(
            *("--data-dir", str(tmp_path / "d"), "--listen-client-urls", urls[0]),
            *("--listen-peer-urls", urls[1]),
        )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert busy.removeprefix("http://") in line and "another process listens there" in line

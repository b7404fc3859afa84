"""ack, and the options of writes that ask for acknowledgements, as a user runs them: on our API, on a
stand-in for the log, and against a real etcd, which knows nothing of the kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import raft
from kvstore import ApiSettings, publish_member
from quorumlog.cli import main
from quorumlog.commands.exits import Exit
from raft import AckedResult, AckState, AckView, MemberAcks, PolicyUnmet, WriteFate
from raft.core.types import Membership
from tests.cli.helpers import Outcome, assert_one_line, quorumlog
from tests.kvstore.replicas import LocalMember, LocalServer, LocalStatus

OWN = LocalStatus().node_id


def ok(outcome: Outcome) -> str:
    assert (outcome.status, outcome.stderr) == (0, ""), outcome
    return outcome.text


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    """A stand-in for a cluster of "one", which is asked and leads, and B, which is not heard from."""
    server = LocalServer(str(tmp_path / "state"), ApiSettings(allows_leader_ack=True))
    replica = server.replica
    replica.members = {
        OWN: LocalMember(("http://127.0.0.1:1",), 7),
        0xB: LocalMember(("http://127.0.0.1:2",), 8),
    }
    acks = {OWN: MemberAcks(OWN, 90, 0, True), 0xB: MemberAcks(0xB, 60, 0, False)}
    replica.acks = AckView(3, OWN, Membership(voters=frozenset(replica.members)), acks)
    server.run(publish_member(server.context, "one", [f"http://127.0.0.1:{server.port}"]))
    yield server
    server.stop()


@pytest.fixture
def endpoint(server: LocalServer) -> str:
    return f"127.0.0.1:{server.port}"


def test_the_policy_is_set_shown_and_taken_away(server: LocalServer, endpoint: str) -> None:
    said = ok(
        quorumlog(
            *("ack", "set", "--replicas", "1", "--require", "zone=dr:1", "--require", "zone:2"),
            *("--wait-timeout", "700ms", "--on-timeout", "degrade", "--no-wait-no-replica"),
            endpoints=endpoint,
        )
    )
    assert said == (
        "1 replicas and zone=dr:1 and zone:2, persisted, after_apply, degrade after 700 ms, do not wait for "
        "members that are not there, recovered after 5000 ms; sync\n"
    )
    server.replica.ack_stats.counters.yes_tx = 41
    shown = ok(quorumlog("ack", "show", endpoints=endpoint))
    assert "met now: no" in shown and "yes_tx" in shown and "no_tx" not in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["abc", "one", "leader", "-", "yes", "90", "-", "0", "-", "-"] in lines
    assert ["b", "-", "follower", "-", "no", "60", "-", "0", "-", "-"] in lines
    found = json.loads(ok(quorumlog("ack", "show", "-o", "json", endpoints=endpoint)))
    assert found["policy"]["rules"] == ["zone=dr:1", "zone:2"] and found["state"] == "sync"
    assert found["counters"][endpoint]["yes_tx"] == 41 and not found["members"][0]["is_heard"]
    assert ok(quorumlog("ack", "set", "--off", endpoints=endpoint)) == "off: a majority is all; off\n"


def test_more_than_there_are_is_refused_with_what_there_is(server: LocalServer, endpoint: str) -> None:
    server.replica.refusals = [raft.ChangeRefused(raft.ChangeRefusal.ACKS_IMPOSSIBLE)]
    refused = quorumlog("ack", "set", "--replicas", "5", endpoints=endpoint)
    assert_one_line(refused, Exit.REFUSED, "quorumlog ack set: refused", "no such ack policy", "5")


@pytest.mark.parametrize(
    "arguments",
    [
        ("ack", "set"),
        ("ack", "set", "--require", "zone"),
        ("ack", "set", "--require", "zone=:1"),
        ("ack", "set", "--require", "zone:many"),
        ("ack", "set", "--off", "--replicas", "1"),
        ("ack", "labels", "one", "zone"),
        ("ack", "labels", "one", "zone=a", "zone=b"),
        ("put", "k", "v", "--ack-replicas", "-1"),
        ("put", "k", "v", "--ack-timeout", "9s"),
        ("put", "k", "v", "--ack", "leader", "--ack-replicas", "1"),
        ("put", "k", "v", "--ack", "leader", "--prev-kv"),
        ("txn", "--then", "get k", "--ack-replicas", "1"),
    ],
)
def test_what_makes_no_sense_is_not_sent(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main([*arguments, "--endpoints", "127.0.0.1:1"])
    except SystemExit as error:  # of argparse
        status = int(str(error))
    told = capsys.readouterr()
    assert (status, told.out) == (Exit.USAGE, "") and told.err.startswith("quorumlog ")
    assert len(told.err.splitlines()) == 1


def test_labels_are_replaced(server: LocalServer, endpoint: str) -> None:
    assert "zone=dr,rack=7" in ok(quorumlog("ack", "labels", "one", "zone=dr", "rack=7", endpoints=endpoint))
    assert server.replica.members[OWN].labels == (("rack", "7"), ("zone", "dr"))
    assert "none" in ok(quorumlog("ack", "labels", "abc", endpoints=endpoint))
    assert server.replica.members[OWN].labels == ()


def test_a_write_says_by_whom_it_was_acknowledged(server: LocalServer, endpoint: str) -> None:
    asks = ("--ack-replicas", "1", "--ack-timeout", "2s")
    acknowledged = "acknowledged: 2 of 1 replicas, the ack policy is sync\n"
    assert ok(quorumlog("put", "k", "v", *asks, endpoints=endpoint)) == "OK\n" + acknowledged
    found = json.loads(ok(quorumlog("txn", "--then", "put k w", *asks, "-o", "json", endpoints=endpoint)))
    assert found["ack"] == {"met": "yes", "acked": 2, "needed": 1, "state": "sync"}
    server.replica.ack_outcome = AckedResult(None, 0, 3, False, 0, 1, AckState.DEGRADED)
    degraded = quorumlog("del", "k", *asks, endpoints=endpoint)
    assert (degraded.status, degraded.text) == (0, "1\n")
    assert "done, but the ack policy was not met: 0 of 1 replicas" in degraded.stderr
    server.replica.ack_outcome = PolicyUnmet(None, 0, acked=0, needed=1)
    unmet = quorumlog("put", "k", "x", *asks, endpoints=endpoint)
    assert_one_line(
        unmet, Exit.UNMET, "committed, ack policy unmet (acked 0 of 1, revision", "do not repeat it"
    )
    assert quorumlog("get", "k", "--print-value-only", endpoints=endpoint).text == "x"


def test_a_write_that_the_leader_alone_has_can_be_asked_for_later(server: LocalServer, endpoint: str) -> None:
    assert ok(quorumlog("put", "k", "v", "--ack", "leader", endpoints=endpoint)) == (
        "OK by the leader alone: term 3, index 77\n"
    )
    server.replica.fates = {(3, 77): WriteFate.LOST, (3, 78): WriteFate.COMMITTED}
    lost = quorumlog("ack", "confirm", "3", "77", endpoints=endpoint)
    assert (lost.status, lost.text) == (Exit.NEGATIVE, "lost\n")
    assert ok(quorumlog("ack", "confirm", "3", "78", endpoints=endpoint)) == "committed\n"


def test_a_server_that_knows_nothing_of_acknowledgements_is_not_taken_for_one_that_gave_them(
    etcd: str, key: str
) -> None:
    told = quorumlog("put", key, "v", "--ack-replicas", "1", endpoints=etcd)
    assert_one_line(told, Exit.AFTERWARDS, "applied, but: the server says nothing of acknowledgements")
    assert quorumlog("get", key, "--print-value-only", endpoints=etcd).text == "v"
    assert_one_line(quorumlog("ack", "show", endpoints=etcd), Exit.REFUSED, "quorumlog ack show: refused")

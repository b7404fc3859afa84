"""ack, and the options of writes that ask for acknowledgements, as a user runs them: on our API, on a
stand-in for the log, and against a real etcd, which knows nothing of the kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import raft
from kvstore import ApiSettings, publish_member
from kvstore.client import AckSettings, Client, RequestRefused
from quorumlog.cli import main
from quorumlog.commands.ack_options import REPLICAS_MAX
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
        "members that are not there, recovered after 5000 ms; sync; not met now\n"
    )
    server.replica.ack_stats.counters.yes_tx = 41
    server.replica.ack_stats.counters.wait_histogram[:] = [1] * len(
        server.replica.ack_stats.counters.wait_histogram
    )
    shown = ok(quorumlog("ack", "show", endpoints=endpoint))
    assert "met now: no" in shown and "yes_tx" in shown and "no_tx" not in shown
    lines = [line.split() for line in shown.splitlines()]
    assert ["abc", "one", "leader", "-", "yes", "90", "-", "0", "-", "-"] in lines
    assert ["b", "-", "follower", "-", "no", "60", "-", "0", "-", "-"] in lines
    buckets = [line[0] for line in lines if line and line[0].startswith("wait_histogram_")]
    assert buckets == [*(f"wait_histogram_le_{ms}ms" for ms in raft.WAIT_BUCKETS_MS), "wait_histogram_more"]
    found = json.loads(ok(quorumlog("ack", "show", "-o", "json", endpoints=endpoint)))
    assert found["policy"]["rules"] == ["zone=dr:1", "zone:2"] and found["state"] == "sync"
    assert found["counters"][endpoint]["yes_tx"] == 41 and not found["members"][0]["is_heard"]
    assert ok(quorumlog("ack", "set", "--off", endpoints=endpoint)) == "off: a majority is all; off\n"


def test_a_policy_that_is_met_is_said_to_be_when_it_is_set(server: LocalServer, endpoint: str) -> None:
    server.replica.acks = server.replica.acks._replace(
        members={i: MemberAcks(i, 90, 0, True) for i in server.replica.members}
    )
    assert ok(quorumlog("ack", "set", "--replicas", "1", endpoints=endpoint)).endswith("; sync; met now\n")
    found = json.loads(ok(quorumlog("ack", "set", "--replicas", "1", "-o", "json", endpoints=endpoint)))
    assert found["met"] is True
    # Asked of one that does not know what members have, nothing is said of it.
    server.replica.acks = server.replica.acks._replace(members={})
    assert ok(quorumlog("ack", "set", "--replicas", "1", endpoints=endpoint)).endswith("; sync\n")


def test_what_members_have_applied_is_shown_only_while_it_is_asked_for(
    server: LocalServer, endpoint: str
) -> None:
    acks = {i: MemberAcks(i, 90, 80, True) for i in server.replica.members}
    server.replica.acks = server.replica.acks._replace(members=acks)

    def applied() -> tuple[str, object]:
        [line] = [
            line
            for line in ok(quorumlog("ack", "show", "-o", "simple", endpoints=endpoint)).splitlines()
            if line.startswith("b,")
        ]
        found = json.loads(ok(quorumlog("ack", "show", "-o", "json", endpoints=endpoint)))
        return line.split(", ")[6], found["members"][0]["applied_index"]

    ok(quorumlog("ack", "set", "--replicas", "1", endpoints=endpoint))
    assert applied() == ("-", None)
    ok(quorumlog("ack", "set", "--stage", "applied", endpoints=endpoint))
    assert applied() == ("80", 80)


def test_that_there_is_no_leader_is_said(server: LocalServer, endpoint: str) -> None:
    server.replica.leader = 0
    shown = quorumlog("ack", "show", endpoints=endpoint)
    assert_one_line(shown, Exit.UNAVAILABLE, f"quorumlog ack show: no leader is known to {endpoint}")
    assert "policy: off" in shown.text


async def test_a_number_that_no_message_holds_is_refused_like_any_other() -> None:
    async with Client("127.0.0.1:1") as client:
        with pytest.raises(RequestRefused, match="out of range"):
            await client.ack_set(AckSettings(replicas=5_000_000_000))


def test_the_most_replicas_are_those_of_the_library() -> None:
    assert REPLICAS_MAX == raft.ACK_REPLICAS_MAX


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
        ("ack", "set", "--replicas", "256"),
        ("ack", "set", "--replicas", "5000000000"),
        ("ack", "set", "--wait-timeout", "25h"),
        ("ack", "labels", "one", "zone=a", "zone=b"),
        ("ack", "labels", "one", "zone=a", "--none"),
        ("put", "k", "v", "--ack-replicas", "-1"),
        ("put", "k", "v", "--ack-replicas", "256"),
        ("put", "k", "v", "--ack-replicas", "0", "--ack-stage", "applied"),
        ("put", "k", "v", "--ack-replicas", "0", "--ack-timeout", "1s"),
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
    # Who gives none is told of them, and takes none away.
    membership = replace(server.replica.acks.membership, labels=((OWN, (("rack", "7"), ("zone", "dr"))),))
    server.replica.acks = server.replica.acks._replace(membership=membership)
    assert (
        ok(quorumlog("ack", "labels", "one", endpoints=endpoint))
        == "member abc has the labels rack=7,zone=dr\n"
    )
    found = json.loads(ok(quorumlog("ack", "labels", "abc", "-o", "json", endpoints=endpoint)))
    assert found == {"ID": OWN, "labels": {"rack": "7", "zone": "dr"}}
    assert ok(quorumlog("ack", "labels", "b", endpoints=endpoint)) == "member b has the labels none\n"
    assert len(server.replica.changes) == 1
    assert "none" in ok(quorumlog("ack", "labels", "abc", "--none", endpoints=endpoint))
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
    for revision, command in ((6, ("put", "k", "y")), (7, ("txn", "--then", "put k z")), (8, ("del", "k"))):
        unmet = quorumlog(*command, *asks, "-o", "json", endpoints=endpoint)
        assert_one_line(unmet, Exit.UNMET, f"revision {revision}")
        assert json.loads(unmet.text) == {
            "header": {"revision": revision},
            "ack": {"met": "no", "acked": 0, "needed": 1, "state": "off"},
        }


def test_a_write_of_which_nothing_was_asked_is_told_so(server: LocalServer, endpoint: str) -> None:
    server.replica.ack_outcome = AckedResult(None, 0, 3, True, 0, 0, None)
    for asked in (("--ack-stage", "applied"), ("--ack-timeout", "1s"), ("--ack-replicas", "0")):
        told = quorumlog("put", "k", "v", *asked, endpoints=endpoint)
        assert told.text == "OK\n"
        assert_one_line(told, Exit.OK, "quorumlog put: done, by a majority: nothing was asked for above that")


def test_a_write_that_the_leader_alone_has_can_be_asked_for_later(server: LocalServer, endpoint: str) -> None:
    assert ok(quorumlog("put", "k", "v", "--ack", "leader", endpoints=endpoint)) == (
        "OK by the leader alone: term 3, index 77\n"
    )
    found = json.loads(ok(quorumlog("put", "k", "v", "--ack", "leader", "-o", "json", endpoints=endpoint)))
    assert found == {"ack": {"level": "leader", "term": 3, "index": 77}}
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

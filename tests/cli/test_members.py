"""member and move-leader as a user runs them: against a real etcd, and our own calls against our own API."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore import publish_member
from tests.cli.conftest import ETCDCTL
from tests.cli.helpers import Outcome, assert_one_line, quorumlog
from tests.kvstore.replicas import LocalMember, LocalServer, LocalStatus

URL, OTHER_URL = "http://127.0.0.1:11", "http://127.0.0.1:12"
OWN = LocalStatus().node_id


def ok(outcome: Outcome) -> str:
    assert (outcome.status, outcome.stderr) == (0, ""), outcome
    return outcome.text


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    """Our API on a stand-in for a cluster of three: "one", which is asked and leads, B and C."""
    server = LocalServer(str(tmp_path / "state"))
    server.replica.members = {
        OWN: LocalMember(("http://127.0.0.1:1",), 7),
        0xB: LocalMember(("http://127.0.0.1:2",), 8),
        0xC: LocalMember(("http://127.0.0.1:3",), 9, is_learner=True),
    }
    server.run(publish_member(server.context, "one", [f"http://127.0.0.1:{server.port}"]))
    yield server
    server.stop()


def test_a_learner_comes_and_goes(etcd: str) -> None:
    said = ok(
        quorumlog(
            "member", "add", "new one", "--peer-urls", f"{URL}, {OTHER_URL}", "--learner", endpoints=etcd
        )
    )
    head, *settings = said.splitlines()
    assert head.startswith("# member ") and "added as learner to cluster" in head
    shell = subprocess.run(["bash", "-c", f"set -a; {said}\nenv"], capture_output=True, text=True, check=True)
    found = dict(line.split("=", 1) for line in shell.stdout.splitlines() if line.startswith("QUORUMLOG_"))
    assert found["QUORUMLOG_NAME"] == "new one"
    assert found["QUORUMLOG_INITIAL_ADVERTISE_PEER_URLS"] == f"{URL},{OTHER_URL}"
    assert found["QUORUMLOG_INITIAL_CLUSTER_STATE"] == "existing"
    members = found["QUORUMLOG_INITIAL_CLUSTER"].split(",")
    assert {f"new one={URL}", f"new one={OTHER_URL}"} < set(members) and len(members) == 3
    assert any(member.startswith("default=") for member in members) and len(settings) == 4

    new_id = head.split()[2]
    listed = ok(quorumlog("member", "list", "-o", "simple", endpoints=etcd))
    assert f"{new_id}, unstarted, , {URL} {OTHER_URL}, , learner\n" in listed
    too_many = quorumlog(
        "member", "add", "x", "--peer-urls", "http://127.0.0.1:13", "--learner", endpoints=etcd
    )
    assert_one_line(too_many, 1, "refused: etcdserver: too many learner members in cluster")
    updated = quorumlog("member", "update", new_id, "--peer-urls", URL, "-o", "json", endpoints=etcd)
    ours = json.loads(ok(updated))["members"]
    printed = subprocess.run(
        [ETCDCTL, "--endpoints", etcd, "member", "list", "-w", "json"], capture_output=True
    )
    assert ours == json.loads(printed.stdout)["members"]
    behind = quorumlog("member", "promote", new_id, endpoints=etcd)
    assert_one_line(behind, 1, "refused: etcdserver: can only promote a learner member which is in sync")
    gone = ok(quorumlog("member", "remove", new_id, endpoints=etcd))
    assert gone.startswith(f"member {new_id} removed from cluster ")


def test_what_is_refused(etcd: str) -> None:
    for words in (["remove", "5"], ["update", "5", "--peer-urls", URL], ["promote", "5"]):
        assert_one_line(quorumlog("member", *words, endpoints=etcd), 1, "etcdserver: member not found")
    bad = quorumlog("member", "add", "x", "--peer-urls", "nonsense", endpoints=etcd)
    assert_one_line(bad, 1, "etcdserver: given member URLs are invalid")
    known = quorumlog("member", "promote", "default", endpoints=etcd)
    assert_one_line(known, 1, "etcdserver: can only promote a learner member")
    foreign = quorumlog("member", "replace", "default", "x", "--peer-urls", URL, endpoints=etcd)
    assert_one_line(foreign, 1, "quorumlogpb.Cluster")


def test_bad_arguments(etcd: str) -> None:
    assert_one_line(quorumlog("member", "remove", "nobody", endpoints=etcd), 2, "no member is called nobody")
    assert_one_line(quorumlog("member", "remove", "-1", endpoints=etcd), 2)
    assert_one_line(
        quorumlog("member", "add", "a=b", "--peer-urls", URL, endpoints=etcd), 2, "'a=b' cannot be"
    )
    assert_one_line(quorumlog("member", "add", "a", endpoints=etcd), 2, "--peer-urls")
    assert_one_line(quorumlog("member", endpoints=etcd), 2, "COMMAND")


def test_leadership_of_one_is_its_own_already(etcd: str) -> None:
    """etcd answers that it is done."""
    assert ok(quorumlog("move-leader", "default", endpoints=etcd)).startswith("leadership moved from ")
    refused = quorumlog("move-leader", "5", endpoints=etcd)
    assert_one_line(refused, 1, "etcdserver: bad leader transferee")


def test_a_member_is_replaced(server: LocalServer) -> None:
    said = ok(
        quorumlog("member", "replace", "b", "two", "--peer-urls", URL, endpoints=f"127.0.0.1:{server.port}")
    )
    [(what, old, new, is_strict)] = server.replica.changes
    assert (what, old, is_strict) == ("replace", 0xB, True)
    assert said.startswith(f"# member {new:x} takes the place of b in cluster ")
    cluster = shlex.split(said.splitlines()[2])[0]
    # One that has never run has no name yet: its id stands for it, since `serve` takes no empty one.
    assert set(cluster.partition("=")[2].split(",")) == {
        "one=http://127.0.0.1:1",
        f"two={URL}",
        "c=http://127.0.0.1:3",
    }


def test_names_and_ids(server: LocalServer) -> None:
    endpoint = f"127.0.0.1:{server.port}"
    ok(quorumlog("member", "update", "one", "--peer-urls", URL, endpoints=endpoint))
    assert server.replica.changes == [("update", OWN)]
    server.run(publish_member(server.context, "b", ["http://127.0.0.1:9"]))
    ok(quorumlog("member", "remove", "b", endpoints=endpoint))  # the id, not the name
    assert server.replica.changes[1:] == [("remove", 0xB, True)]


def test_move_leader_finds_the_leader(server: LocalServer) -> None:
    endpoint = f"127.0.0.1:{server.port}"
    moved = json.loads(ok(quorumlog("move-leader", "b", "-o", "json", endpoints=endpoint)))
    assert moved == {"from": OWN, "to": 0xB} and server.replica.changes == [("transfer", 0xB)]
    server.replica.leader = 0xB  # which has told no URL
    assert_one_line(
        quorumlog("move-leader", "one", endpoints=endpoint), 3, "the leader, b, tells no client URL"
    )
    server.replica.leader = 0
    assert_one_line(quorumlog("move-leader", "one", "--timeout", "1", endpoints=endpoint), 3, "no leader")


def test_move_leader_asks_a_leader_that_is_no_endpoint(server: LocalServer, tmp_path: Path) -> None:
    """What the members publish is where it is found."""
    asked = LocalServer(str(tmp_path / "asked"))
    try:
        asked.replica.node_id = 0xC
        asked.replica.members = server.replica.members = {
            i: LocalMember(member.peer_urls, member.incarnation)
            for i, member in server.replica.members.items()
        }
        leader = server.store.published_members()[OWN]
        asked.replica.node_id = OWN
        asked.run(publish_member(asked.context, leader.name, list(leader.client_urls)))
        asked.replica.node_id = 0xC
        ok(quorumlog("move-leader", "b", endpoints=f"127.0.0.1:{asked.port}"))
    finally:
        asked.stop()
    assert asked.replica.changes == [] and server.replica.changes == [("transfer", 0xB)]

"""The real etcdctl, unmodified, against every member."""

from __future__ import annotations

import base64
import json

import pytest

from .cluster import LocalCluster, program, run

ETCDCTL = program("etcdctl")


async def ctl(cluster: LocalCluster, member: int | None, *words: str, stdin: str = "") -> str:
    """Run etcdctl against one member, or all; return what it prints."""
    endpoints = cluster.endpoints if member is None else [cluster.members[member].endpoint]
    status, out, err = await run(ETCDCTL, f"--endpoints={','.join(endpoints)}", *words, stdin=stdin.encode())
    assert status == 0, f"etcdctl {' '.join(words)}: status {status}\n{out}{err}"
    return out


@pytest.mark.parametrize("member", [0, 1, 2])
async def test_every_member_serves_puts_gets_and_deletes(shared: LocalCluster, member: int) -> None:
    other = (member + 1) % 3
    key = f"ctl-{member}-"
    for i in range(3):
        assert await ctl(shared, member, "put", f"{key}{i}", f"value {i}") == "OK\n"
    assert await ctl(shared, other, "get", f"{key}1") == f"{key}1\nvalue 1\n"
    assert await ctl(shared, other, "get", f"{key}1", "--print-value-only") == "value 1\n"
    keys = f"{key}0\n\n{key}1\n\n{key}2\n\n"
    assert await ctl(shared, other, "get", "--prefix", key, "--keys-only") == keys
    limited = f"{key}0\nvalue 0\n{key}1\nvalue 1\n"
    assert await ctl(shared, other, "get", "--prefix", key, "--limit=2") == limited
    assert await ctl(shared, other, "get", f"{key}0", f"{key}2") == limited
    assert await ctl(shared, other, "get", f"{key}1", "--from-key", "--limit=1") == f"{key}1\nvalue 1\n"
    descending = await ctl(shared, other, "get", "--prefix", key, "--order=DESCEND", "--limit=1")
    assert descending == f"{key}2\nvalue 2\n"
    count = await ctl(shared, other, "get", "--prefix", key, "--count-only", "-w", "fields")
    assert '"Count" : 3\n' in count
    assert '"Key"' not in count
    assert await ctl(shared, other, "put", f"{key}1", "new", "--prev-kv") == f"OK\n{key}1\nvalue 1\n"
    assert await ctl(shared, member, "del", f"{key}0") == "1\n"
    assert await ctl(shared, member, "del", "--prefix", key, "--prev-kv") == (
        f"2\n{key}1\nnew\n{key}2\nvalue 2\n"
    )
    assert await ctl(shared, other, "get", "--prefix", key) == ""


async def test_the_json_form_and_reads_of_the_past(shared: LocalCluster) -> None:
    first = json.loads(await ctl(shared, 0, "put", "past", "one", "-w", "json"))["header"]
    second = json.loads(await ctl(shared, 1, "put", "past", "two", "-w", "json"))["header"]
    assert second["revision"] == first["revision"] + 1
    assert second["cluster_id"] == first["cluster_id"]
    assert second["member_id"] != first["member_id"]
    assert second["raft_term"] >= first["raft_term"] > 0
    read = json.loads(await ctl(shared, 2, "get", "past", "-w", "json"))
    assert read["header"]["revision"] == second["revision"]
    (kv,) = read["kvs"]
    assert kv == {
        "key": base64.b64encode(b"past").decode(),
        "create_revision": first["revision"],
        "mod_revision": second["revision"],
        "version": 2,
        "value": base64.b64encode(b"two").decode(),
    }
    assert await ctl(shared, 2, "get", "past", f"--rev={first['revision']}") == "past\none\n"
    assert await ctl(shared, 2, "get", "past", "--consistency=s") in ("past\none\n", "past\ntwo\n")


async def test_a_txn_from_stdin(shared: LocalCluster) -> None:
    await ctl(shared, 0, "put", "account", "10")
    txn = 'value("account") = "10"\n\nput account 20\nget account\n\nget account\n\n'
    assert await ctl(shared, 1, "txn", stdin=txn) == "SUCCESS\n\nOK\n\naccount\n20\n"
    assert await ctl(shared, 2, "txn", stdin=txn) == "FAILURE\n\naccount\n20\n"
    created = 'create("account") > "0"\nversion("account") > "1"\n\ndel account\n\n\n'
    assert await ctl(shared, 0, "txn", stdin=created) == "SUCCESS\n\n1\n"


async def test_status_health_hash_and_members(shared: LocalCluster) -> None:
    status = json.loads(await ctl(shared, None, "endpoint", "status", "-w", "json"))
    assert [one["Endpoint"] for one in status] == shared.endpoints
    leaders = {one["Status"]["leader"] for one in status}
    members = [one["Status"]["header"]["member_id"] for one in status]
    assert len(set(members)) == 3
    assert len(leaders) == 1
    assert leaders <= set(members)
    assert {one["Status"]["version"] for one in status} == {"3.5.1"}
    for one in status:
        assert one["Status"]["raftTerm"] > 0
        assert one["Status"]["raftIndex"] >= one["Status"]["raftAppliedIndex"] > 0
        assert one["Status"]["dbSize"] > 0
    table = await ctl(shared, None, "endpoint", "status", "--cluster", "-w", "table")
    assert all(endpoint in table for endpoint in shared.endpoints)

    health = json.loads(await ctl(shared, None, "endpoint", "health", "-w", "json"))
    assert [one["health"] for one in health] == [True, True, True]

    hashes = json.loads(await ctl(shared, None, "endpoint", "hashkv", "-w", "json"))
    at = {one["HashKV"]["header"]["revision"] for one in hashes}
    assert len(at) == 1
    assert len({one["HashKV"]["hash"] for one in hashes}) == 1

    listed = json.loads(await ctl(shared, 1, "member", "list", "-w", "json"))["members"]
    assert {one["ID"] for one in listed} == set(members)
    assert {one["name"]: (one["peerURLs"], one["clientURLs"]) for one in listed} == {
        member.name: ([member.peer_url], [f"http://{member.endpoint}"]) for member in shared.members
    }
    assert await ctl(shared, 0, "alarm", "list") == ""


async def test_errors_reach_the_user(shared: LocalCluster) -> None:
    endpoint = f"--endpoints={shared.members[0].endpoint}"
    status, _, err = await run(ETCDCTL, endpoint, "get", "x", "--rev=1000000000")
    assert status == 1
    assert "etcdserver: mvcc: required revision is a future revision" in err
    status, _, err = await run(ETCDCTL, endpoint, "put", "", "value")
    assert status == 1
    assert "etcdserver: key is not provided" in err

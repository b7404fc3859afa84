"""Members come and go in a cluster of real processes, at the hand of the real etcdctl."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import grpc
import pytest

from kvstore.pb import rpc_pb2

from .cluster import LocalCluster, program, run, wait_until
from .conftest import MakeCluster
from .rpc import Rpc
from .workload import Workload, verify, verify_equal_members

ETCDCTL = program("etcdctl")
QUORUMLOG = str(Path(sys.executable).with_name("quorumlog"))
LEARNER = "etcdserver: rpc not supported for learner"


async def ctl(cluster: LocalCluster, *words: str, at: int = 0, status: int = 0) -> str:
    """Run etcdctl against one member; return what it prints, or what it complains of."""
    endpoint = f"--endpoints={cluster.members[at].endpoint}"
    found, out, err = await run(ETCDCTL, endpoint, *words)
    assert found == status, f"etcdctl {' '.join(words)}: status {found}\n{out}{err}"
    return err if status else out


async def own(cluster: LocalCluster, *words: str, at: int = 0, status: int = 0) -> str:
    """The same with `quorumlog`."""
    found, out, err = await run(QUORUMLOG, "--endpoints", cluster.members[at].endpoint, *words)
    assert found == status, f"quorumlog {' '.join(words)}: status {found}\n{out}{err}"
    return err if status else out


async def change(cluster: LocalCluster, *words: str) -> str:
    """Run etcdctl until the cluster is found healthy: etcd wants connections that are five seconds old."""

    async def made() -> str | None:
        status, out, err = await run(ETCDCTL, f"--endpoints={cluster.members[0].endpoint}", *words)
        assert status == 0 or "etcdserver: unhealthy cluster" in err, err
        return out if status == 0 else None

    return await wait_until(made, "etcdctl " + " ".join(words), poll_s=0.2)


async def id_of(cluster: LocalCluster, index: int, *, at: int = 0) -> str:
    """Return the id of a member in hexadecimal, found by its peer URL."""
    listed = json.loads(await ctl(cluster, "member", "list", "-w", "json", at=at))["members"]
    url = cluster.members[index].peer_url
    return next(f"{member['ID']:x}" for member in listed if member["peerURLs"] == [url])


async def add(cluster: LocalCluster, *options: str) -> int:
    """Add a member, start it, and return its index. Whether it serves already is not looked at."""
    index = cluster.make_member(joins=True)
    member = cluster.members[index]
    said = await change(cluster, "member", "add", member.name, f"--peer-urls={member.peer_url}", *options)
    settings = dict(line.split("=", 1) for line in said.splitlines() if line.startswith("ETCD_"))
    assert settings["ETCD_INITIAL_CLUSTER_STATE"] == '"existing"'
    assert f"{member.name}={member.peer_url}" in settings["ETCD_INITIAL_CLUSTER"]
    cluster.start(index)
    return index


async def promote(cluster: LocalCluster, index: int) -> None:
    """Promote a learner as soon as it has caught up."""
    member_id = await id_of(cluster, index)

    async def promoted() -> bool:
        status, _, err = await run(
            ETCDCTL, f"--endpoints={cluster.members[0].endpoint}", "member", "promote", member_id
        )
        assert status == 0 or "in sync with leader" in err, err
        return status == 0

    await wait_until(promoted, f"{cluster.members[index].name} is promoted", poll_s=0.2)


async def started(make_cluster: MakeCluster, **options: object) -> LocalCluster:
    cluster = make_cluster(**options)
    cluster.start()
    await cluster.wait_healthy()
    return cluster


async def status_of(cluster: LocalCluster, index: int) -> rpc_pb2.StatusResponse | None:
    async with Rpc(cluster.members[index].endpoint) as rpc:
        try:
            return await rpc.status(timeout_s=1.0)
        except grpc.aio.AioRpcError:
            return None


async def caught_up(cluster: LocalCluster, index: int, revision: int) -> None:
    async def has_it() -> bool:
        status = await status_of(cluster, index)
        return status is not None and status.header.revision >= revision

    await wait_until(has_it, f"{cluster.members[index].name} has revision {revision}")


async def test_a_learner_joins_and_becomes_a_voter(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = await started(make_cluster)
    async with Workload(cluster, seed=11) as load:
        await load.wait_acknowledged(50)
        new = await add(cluster, "--learner")
        status = await wait_until(lambda: status_of(cluster, new), "the learner answers")
        assert status.isLearner
        async with Rpc(cluster.endpoints[0]) as rpc:
            read = await rpc.read_all()
        await caught_up(cluster, new, read.header.revision)
        assert await ctl(cluster, "get", "", "--prefix", "--consistency=s", at=new)
        for words in (["get", "a"], ["put", "a", "b"], ["member", "list"]):
            assert LEARNER in await ctl(cluster, *words, at=new, status=1)
        other = "--peer-urls=http://127.0.0.1:1"
        refused = await ctl(cluster, "member", "add", "n5", other, "--learner", status=1)
        assert "etcdserver: too many learner members in cluster" in refused
        await promote(cluster, new)
        await cluster.wait_healthy([new])
        await load.wait_acknowledged(50)
    await cluster.wait_healthy()
    await verify(cluster, load.history, tmp_path / "history.jsonl")


async def test_a_voter_is_added_and_another_removed_under_load(
    make_cluster: MakeCluster, tmp_path: Path
) -> None:
    cluster = await started(make_cluster)
    leader = await cluster.leader()
    follower = next(i for i in (1, 2) if i != leader)
    async with Workload(cluster, seed=12) as load:
        await load.wait_acknowledged(50)
        new = await add(cluster)
        await cluster.wait_healthy([new])
        await change(cluster, "member", "remove", await id_of(cluster, follower))
        cluster.members[follower].is_gone = True
        await load.wait_acknowledged(50)
        await ctl(cluster, "put", "who is", "left", at=new)
    assert len(json.loads(await ctl(cluster, "member", "list", "-w", "json", at=new))["members"]) == 3


@pytest.mark.ours
@pytest.mark.parametrize("asked", ["itself", "another"])
async def test_the_leader_is_removed(make_cluster: MakeCluster, asked: str) -> None:
    """It hands over, and its process ends and says why, at every later start too."""
    cluster = await started(make_cluster)
    leader = await cluster.leader()
    others = [i for i in range(3) if i != leader]
    at = leader if asked == "itself" else others[0]
    said = await ctl(cluster, "member", "remove", await id_of(cluster, leader, at=at), at=at)
    assert "removed from cluster" in said
    assert await cluster.wait_exit(leader) == 1
    text = cluster.members[leader].log_tail()
    assert "was removed from the cluster" in text and "member add" in text
    assert "Traceback" not in text
    await cluster.wait_healthy(others)
    await ctl(cluster, "put", "two", "are enough", at=others[1])
    cluster.start(leader)
    assert await cluster.wait_exit(leader) == 1
    assert cluster.members[leader].log_tail().count("quorumlog serve: this member was removed") == 2


@pytest.mark.ours
async def test_a_follower_is_asked_for_its_own_removal(make_cluster: MakeCluster) -> None:
    """The entry that ends it is not sent to it any more: it answers by what the others tell it."""
    cluster = await started(make_cluster)
    leader = await cluster.leader()
    follower = next(i for i in range(3) if i != leader)
    said = await own(cluster, "member", "remove", cluster.members[follower].name, "-o", "json", at=follower)
    assert len(json.loads(said)["members"]) == 2
    assert await cluster.wait_exit(follower) == 1
    await cluster.wait_healthy([i for i in range(3) if i != follower])


@pytest.mark.ours
async def test_a_member_that_was_down_learns_of_its_removal(make_cluster: MakeCluster) -> None:
    cluster = await started(make_cluster)
    await cluster.stop(2)
    await ctl(cluster, "member", "remove", await id_of(cluster, 2))
    assert "etcdserver: member not found" in await ctl(cluster, "member", "remove", "5", status=1)
    cluster.start(2)
    assert await cluster.wait_exit(2) == 1
    assert "was removed from the cluster" in cluster.members[2].log_tail()
    await cluster.wait_healthy([0, 1])


@pytest.mark.ours
async def test_a_member_moves_to_another_address(make_cluster: MakeCluster) -> None:
    cluster = await started(make_cluster)
    member = cluster.members[2]
    member_id = await id_of(cluster, 2)
    moved = cluster.make_member()  # only for its ports
    address = cluster.members.pop(moved).peer_url
    taken = f"--peer-urls={cluster.members[1].peer_url}"
    assert "Peer URLs already exists" in await ctl(cluster, "member", "update", member_id, taken, status=1)
    await cluster.stop(2)
    await ctl(cluster, "member", "update", member_id, f"--peer-urls={address}")
    cluster.start(2, listen_peer_urls=address)
    await cluster.wait_healthy()
    cluster.kill(1)  # now it is needed
    await ctl(cluster, "put", "from", "there")
    listed = json.loads(await ctl(cluster, "member", "list", "-w", "json"))["members"]
    assert {one["name"]: one["peerURLs"] for one in listed}[member.name] == [address]


async def test_leadership_is_moved(make_cluster: MakeCluster) -> None:
    cluster = await started(make_cluster)
    leader = await cluster.leader()
    other = next(i for i in range(3) if i != leader)
    target = await id_of(cluster, other)
    assert "etcdserver: bad leader transferee" in await ctl(cluster, "move-leader", "5", at=leader, status=1)
    said = await ctl(cluster, "move-leader", target, at=leader)
    assert said.startswith("Leadership transferred from")
    assert await cluster.leader() == other
    await cluster.wait_healthy()


@pytest.mark.ours
async def test_leadership_is_moved_by_our_command_from_wherever(make_cluster: MakeCluster) -> None:
    cluster = await started(make_cluster)
    leader = await cluster.leader()
    target, asked = (i for i in range(3) if i != leader)
    said = await own(cluster, "move-leader", cluster.members[target].name, at=asked)
    assert said.startswith("leadership moved from ")
    assert await cluster.leader() == target


@pytest.mark.ours
async def test_a_wiped_member_is_replaced_in_one_change(make_cluster: MakeCluster) -> None:
    """The same addresses, another id; two members are enough for it, which could remove nobody else."""
    cluster = await started(make_cluster)
    await ctl(cluster, "put", "kept", "by two")
    cluster.kill(2)
    cluster.wipe(2)
    old = await id_of(cluster, 2)
    said = await own(cluster, "member", "replace", old, "n3", "--peer-urls", cluster.members[2].peer_url)
    assert f"takes the place of {old} in" in said and 'QUORUMLOG_INITIAL_CLUSTER_STATE="existing"' in said
    assert await id_of(cluster, 2) != old
    cluster.members[2].joins = True
    cluster.start(2)
    await cluster.wait_healthy()
    cluster.kill(1)
    assert await ctl(cluster, "get", "kept", at=2) == "kept\nby two\n"


@pytest.mark.ours
async def test_a_cluster_of_one_grows(make_cluster: MakeCluster) -> None:
    """A second voter counts before it runs; that it was added is answered all the same."""
    cluster = await started(make_cluster, size=1)
    await ctl(cluster, "put", "a", "b")
    new = cluster.make_member(joins=True)
    said = await own(cluster, "member", "add", "n2", "--peer-urls", cluster.members[new].peer_url)
    assert "added as voter" in said
    cluster.start(new)
    await cluster.wait_healthy()
    assert await ctl(cluster, "get", "a", at=new) == "a\nb\n"
    third = await add(cluster, "--learner")
    await promote(cluster, third)
    await cluster.wait_healthy()
    cluster.kill(0)
    assert await ctl(cluster, "get", "a", at=third) == "a\nb\n"


@pytest.mark.ours
async def test_what_does_not_fit_the_cluster_is_refused_at_the_first_start(
    make_cluster: MakeCluster,
) -> None:
    cluster = await started(make_cluster)
    new = cluster.make_member(joins=True)
    member = cluster.members[new]

    async def refusal(**changed: str) -> str:
        before = len(member.log_path.read_text()) if member.log_path.exists() else 0
        cluster.start(new, **changed)
        assert await cluster.wait_exit(new, 30) == 2
        return member.log_path.read_text()[before:]

    text = await refusal()
    assert "quorumlog member add n4 --peer-urls " + member.peer_url in text
    assert "--initial-cluster-state existing: --initial-cluster must name" in await refusal(
        initial_cluster=f"n4={member.peer_url}"
    )
    await ctl(cluster, "member", "add", "n4", f"--peer-urls={member.peer_url}", "--learner")
    two = ",".join(f"{one.name}={one.peer_url}" for one in (cluster.members[0], member))
    assert "member count is unequal: it names 2, and cluster " in await refusal(initial_cluster=two)
    wrong = ",".join(f"{one.name}={one.peer_url}" for one in cluster.members if one is not cluster.members[2])
    stranger = "http://127.0.0.1:1"
    assert stranger in await refusal(initial_cluster=f"{wrong},n3={stranger}")
    assert not (member.data_dir / "identity.json").exists()

    # Nobody answers: it waits, and says so, until it is told to stop.
    nobody = f"n1={stranger},n4={member.peer_url}"
    cluster.start(new, initial_cluster=nobody)

    async def waits() -> bool:
        return "cannot join the cluster yet, trying on: 127.0.0.1:1" in member.log_tail()

    await wait_until(waits, "it says that it waits")
    assert await cluster.stop(new) == 0

    # At last; and what is there is taken at every later start, whatever the flags say.
    for changed in ({}, {"initial_cluster": nobody}, {"initial_cluster_state": "new"}):
        cluster.start(new, **changed)
        await wait_until(lambda: status_of(cluster, new), "it answers")
        assert await cluster.stop(new) == 0
    # But under its id there is no other directory.
    cluster.wipe(new)
    assert "was started before, with another data directory" in await refusal()


@pytest.mark.ours
async def test_a_restored_cluster_grows(make_cluster: MakeCluster, tmp_path: Path) -> None:
    """What it was restored to is in no log: the new member waits for a snapshot, and has all of it."""
    old = await started(make_cluster, size=1)
    await ctl(old, "put", "from", "the old one")
    file = tmp_path / "backup.snap"
    await own(old, "snapshot", "save", str(file))
    cluster = make_cluster(token="restored")
    for member in cluster.members:
        flags = cluster.command(cluster.members.index(member))
        wanted = (
            "--name",
            "--data-dir",
            "--initial-cluster",
            "--initial-cluster-token",
            "--initial-advertise-peer-urls",
        )
        words = [word for flag in wanted for word in (flag, flags[flags.index(flag) + 1])]
        status, _, err = await run(QUORUMLOG, "snapshot", "restore", str(file), *words)
        assert status == 0, err
    cluster.start()
    await cluster.wait_healthy()
    new = await add(cluster)
    await cluster.wait_healthy([new])
    assert await ctl(cluster, "get", "from", at=new) == "from\nthe old one\n"
    async with Rpc(cluster.members[new].endpoint) as rpc:
        revision = (await rpc.put(rpc_pb2.PutRequest(key=b"and", value=b"the new one"))).header.revision
    await verify_equal_members(cluster, revision)
    assert json.loads((cluster.members[new].data_dir / "restored.json").read_text())["snapshot_sha256"]
    await cluster.stop(new)
    cluster.start(new)
    await cluster.wait_healthy()

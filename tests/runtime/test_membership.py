"""Members that come and go, on real nodes: real logs, a network in memory."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raft import DataDirectory, InitialMember, MemberRemoved, NodeId, NotLeader, TransferFailed
from raft.core.errors import ChangeRefusal, ChangeRefused
from raft.core.ready import MembershipView
from raft.runtime.members import Members, initial_membership
from raft.runtime.node import Node

from .cluster import Cluster, until

TIMEOUT_S = 20.0


def url(node_id: NodeId) -> str:
    return f"http://127.0.0.1:{node_id}"


async def promote(node: Node, learner: NodeId) -> None:
    """Promote `learner` as soon as it has caught up."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                await node.promote_member(learner, timeout_s=TIMEOUT_S)
                return
            except ChangeRefused as error:
                assert error.refusal is ChangeRefusal.LEARNER_BEHIND
                await asyncio.sleep(0.01)


class GrowingCluster(Cluster):
    """A Cluster to which nodes can be added that begin with nothing."""

    async def join(self, node_id: NodeId) -> Node:
        """Start a node with an empty log, which knows the members at the beginning and no more."""
        path = str(self.directory / f"n{node_id}")
        directory = DataDirectory.open(
            path, cluster_id=77, node_id=node_id, members=self.members, is_joining=True
        )
        directory.close()
        machine = self.machines[node_id] = self.make_machine(node_id)
        assert self.network is not None
        self.nodes[node_id] = node = await Node.start(
            self.config(node_id, name=f"n{node_id}", peer_urls=(url(node_id),)),
            machine,
            transport=self.network.transport(node_id, incarnation=node_id),
        )
        return node

    async def start(self, node_id: NodeId) -> Node:
        assert self.network is not None
        machine = self.machines[node_id] = self.make_machine(node_id)
        self.nodes[node_id] = node = await Node.start(
            self.config(node_id), machine, transport=self.network.transport(node_id, incarnation=node_id)
        )
        return node

    async def put(self, key: bytes) -> None:
        leader = await self.leader()
        await self.nodes[leader].propose(b"add %s 1" % key, timeout_s=TIMEOUT_S)


@pytest.fixture
async def cluster(tmp_path: Path) -> Any:
    # A transfer is given up after an election timeout: two syncs of a busy disk must fit in.
    async with GrowingCluster(tmp_path, election_timeout_ticks=25) as made:
        yield made


async def test_a_group_grows_by_a_learner_and_by_a_voter(cluster: GrowingCluster) -> None:
    leader = cluster.nodes[await cluster.leader()]
    await leader.add_member(4, [url(4)], is_learner=True, timeout_s=TIMEOUT_S)
    assert leader.members[4].is_learner
    learner = await cluster.join(4)
    assert learner.is_learner
    await until(lambda: 4 in learner.members, "the learner knows that it is one")
    await promote(leader, 4)
    await until(lambda: not learner.is_learner, "the learner knows that it votes")
    follower = cluster.nodes[await cluster.a_follower()]
    await follower.add_member(5, [url(5)], timeout_s=TIMEOUT_S)
    await cluster.join(5)
    await leader.propose(b"add a 1", timeout_s=TIMEOUT_S)
    await cluster.applied_everywhere()
    assert all(set(node.members) == {1, 2, 3, 4, 5} for node in cluster.nodes.values())
    assert cluster.machines[5].sums == {"a": 1}


async def test_a_learner_that_never_runs_is_not_promoted(cluster: GrowingCluster) -> None:
    """Trap 44."""
    leader = cluster.nodes[await cluster.leader()]
    await leader.add_member(4, [url(4)], is_learner=True, timeout_s=TIMEOUT_S)
    for node in list(cluster.nodes.values()):
        await until(lambda node=node: 4 in node.members, "the learner is known everywhere")
        with pytest.raises(ChangeRefused) as caught:
            await node.promote_member(4, timeout_s=TIMEOUT_S)
        assert caught.value.refusal is ChangeRefusal.LEARNER_BEHIND
        assert caught.value.retryable and caught.value.applied == "no"


async def test_a_removed_member_stops_and_stays_stopped(cluster: GrowingCluster) -> None:
    gone = await cluster.a_follower()
    leader = cluster.nodes[await cluster.leader()]
    await leader.remove_member(gone, timeout_s=TIMEOUT_S)
    removed = cluster.nodes.pop(gone)
    with pytest.raises(MemberRemoved, match="removed from the cluster"):
        await asyncio.wait_for(removed.wait_stopped(), TIMEOUT_S)
    with pytest.raises(MemberRemoved):
        await cluster.start(gone)
    with pytest.raises(ChangeRefused) as caught:
        await leader.add_member(gone, [url(gone)], timeout_s=TIMEOUT_S)
    assert caught.value.refusal is ChangeRefusal.ID_USED


async def test_the_leader_can_be_removed_and_another_one_leads(cluster: GrowingCluster) -> None:
    leader = await cluster.leader()
    other = cluster.nodes[await cluster.a_follower()]
    removed = cluster.nodes[leader]
    await other.remove_member(leader, timeout_s=TIMEOUT_S)
    with pytest.raises(MemberRemoved):
        await asyncio.wait_for(removed.wait_stopped(), TIMEOUT_S)
    del cluster.nodes[leader]
    assert await cluster.leader() != leader
    await cluster.put(b"a")


async def test_every_member_is_replaced(cluster: GrowingCluster) -> None:
    for old, new in ((1, 4), (2, 5), (3, 6)):
        await cluster.put(b"%d" % old)
        asked = cluster.nodes[await cluster.a_follower()]
        await cluster.join(new)
        await asked.replace_member(old, new, [url(new)], timeout_s=TIMEOUT_S)
        with pytest.raises(MemberRemoved):
            await asyncio.wait_for(cluster.nodes.pop(old).wait_stopped(), TIMEOUT_S)
    await cluster.put(b"end")
    await cluster.applied_everywhere()
    assert cluster.machines[6].sums == {"1": 1, "2": 1, "3": 1, "end": 1}


async def test_leadership_is_handed_to_whom_one_wants(cluster: GrowingCluster) -> None:
    leader = await cluster.leader()
    target = await cluster.a_follower()
    with pytest.raises(NotLeader):
        await cluster.nodes[target].transfer_leadership(target, timeout_s=TIMEOUT_S)
    with pytest.raises(TransferFailed, match="no other voter"):
        await cluster.nodes[leader].transfer_leadership(99, timeout_s=TIMEOUT_S)
    await cluster.applied_everywhere()
    await cluster.nodes[leader].transfer_leadership(target, timeout_s=TIMEOUT_S)
    assert await cluster.leader() == target
    await cluster.nodes[target].transfer_leadership(target, timeout_s=TIMEOUT_S)


async def test_a_transfer_to_one_that_is_cut_off_fails_and_the_leader_leads_on(
    cluster: GrowingCluster,
) -> None:
    leader = await cluster.leader()
    target = await cluster.a_follower()
    assert cluster.network is not None
    cluster.network.isolate(target, [i for i in cluster.nodes if i != target])
    with pytest.raises(TransferFailed, match="did not take over"):
        await cluster.nodes[leader].transfer_leadership(target, timeout_s=TIMEOUT_S)
    await cluster.nodes[leader].propose(b"add a 1", timeout_s=TIMEOUT_S)
    cluster.network.heal()


async def test_a_stop_hands_leadership_over(cluster: GrowingCluster) -> None:
    leader = await cluster.leader()
    await cluster.applied_everywhere()
    term = cluster.nodes[leader].term
    await cluster.stop(leader)
    # At once: the others need not even notice that somebody is gone.
    assert {node.leader for node in cluster.nodes.values()} & set(cluster.nodes)
    assert all(node.term == term + 1 for node in cluster.nodes.values())


async def test_incarnations_are_committed(cluster: GrowingCluster) -> None:
    def all_known() -> bool:
        return all(info.incarnation for node in cluster.nodes.values() for info in node.members.values())

    await until(all_known, "the incarnations of all members are in the configuration")


async def test_the_members_come_back_from_the_log(cluster: GrowingCluster) -> None:
    leader = cluster.nodes[await cluster.leader()]
    await leader.add_member(4, [url(4)], timeout_s=TIMEOUT_S)
    await cluster.join(4)
    await cluster.applied_everywhere()
    for node_id in list(cluster.nodes):
        await cluster.stop(node_id)
    for node_id in (1, 2, 3):
        node = await cluster.start(node_id)
        assert set(node._made_members().effective) == {1, 2, 3, 4}
    await cluster.leader()
    await cluster.put(b"a")


async def test_a_change_without_a_leader_is_not_made(cluster: GrowingCluster) -> None:
    leader = await cluster.leader()
    for node_id in [i for i in cluster.nodes if i != leader]:
        await cluster.stop(node_id)
    node = cluster.nodes[leader]
    await until(lambda: node.leader == 0, "no leader is known")
    with pytest.raises(NotLeader) as caught:
        await node.remove_member(leader, timeout_s=0.5)
    assert caught.value.applied == "no"


async def test_bad_urls_are_refused_here(cluster: GrowingCluster) -> None:
    leader = cluster.nodes[await cluster.leader()]
    for urls in ([], ["nonsense"], ["http://127.0.0.1:1"] * 100, ["http://" + "x" * 5000 + ":1"]):
        with pytest.raises(ValueError):
            await leader.add_member(4, urls, timeout_s=TIMEOUT_S)


def test_a_leader_that_is_removed_stays_connected_while_it_hands_over() -> None:
    initial = {i: InitialMember(f"n{i}", (f"http://10.0.0.{i}:1",)) for i in (1, 2, 3)}
    three = initial_membership(initial)
    members = Members(1, initial, MembershipView(three, 0, three, 0))
    two = replace(initial_membership({i: initial[i] for i in (1, 2)}), removed=(3,))
    members.update(MembershipView(two, 9, two, 9))
    peers, removed = members.peers(3)
    assert [(peer.node_id, peer.addresses) for peer in peers] == [(2, ("10.0.0.2:1",)), (3, ("10.0.0.3:1",))]
    assert not removed
    peers, removed = members.peers(2)
    assert [peer.node_id for peer in peers] == [2] and removed == {3}


async def test_strangers_are_not_remembered(cluster: GrowingCluster) -> None:
    node = cluster.nodes[await cluster.leader()]
    for number in range(2000):
        assert node._check_peer(1000 + number, 7)
    assert not {i for i in node._parts.directory.incarnations if i >= 1000}
    other = await cluster.a_follower()
    assert node._check_peer(other, other) and not node._check_peer(other, other + 1)

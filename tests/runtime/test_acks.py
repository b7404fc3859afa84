"""The ack policy on real nodes in one process: rows A1 to A3, A5, A6, A9 and A10 of the matrix."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raft import (
    AckedResult,
    AckPolicy,
    AckRequest,
    AckRequirement,
    AcksMissing,
    AckStage,
    AckState,
    ChangeRefusal,
    ChangeRefused,
    LabelRule,
    Node,
    NodeId,
    OnTimeout,
    OutcomeUnknown,
    Overloaded,
    PolicyUnmet,
    WaitPoint,
)
from raft.core import messages as m
from raft.transport.memory import DROP

from .cluster import until
from .machines import Refused
from .test_membership import GrowingCluster, url

TIMEOUT_S = 20.0
SOON_S = 3.0
"""Of a wait that ends by the policy: more than any of these takes, and less than `TIMEOUT_S`."""

TWO = AckRequirement(replicas=2)


def policy(requirement: AckRequirement = TWO, **settings: Any) -> AckPolicy:
    return AckPolicy(requirement, **{"wait_timeout_ms": 300, "recover_hold_ms": 300, **settings})


@pytest.fixture
async def cluster(tmp_path: Path) -> Any:
    async with GrowingCluster(tmp_path, election_timeout_ticks=20) as made:
        yield made


async def put(node: Node, timeout_s: float = TIMEOUT_S, **ack: Any) -> AckedResult:
    request = AckRequest(**ack) if ack else None
    return await node.propose_acked(b"add x 1", timeout_s=timeout_s, ack=request)


async def put_unmet(node: Node, **ack: Any) -> PolicyUnmet:
    with pytest.raises(PolicyUnmet) as caught:
        await put(node, **ack)
    assert caught.value.applied == "yes" and not caught.value.retryable
    return caught.value


async def known(cluster: GrowingCluster, is_known: Callable[[Node], bool], what: str) -> None:
    await until(lambda: all(map(is_known, cluster.nodes.values())), what)


async def with_policy(cluster: GrowingCluster, wanted: AckPolicy) -> tuple[Node, Node, Node]:
    """Set `wanted`; return the leader, and two followers."""
    leader = await cluster.leader()
    first, second = [node for i, node in cluster.nodes.items() if i != leader]
    await first.set_ack_policy(wanted, timeout_s=TIMEOUT_S)
    await known(cluster, lambda n: n.acks.settings.policy == wanted, "the policy is known")
    await known(cluster, lambda n: (n.ack_stats.status is not None) == wanted.is_on, "and committed")
    return cluster.nodes[leader], first, second


def silence(cluster: GrowingCluster, *silent: Node) -> None:
    assert cluster.network is not None
    for node in silent:
        cluster.network.isolate(node.node_id, [i for i in cluster.nodes if i != node.node_id])


def heal(cluster: GrowingCluster) -> None:
    assert cluster.network is not None
    cluster.network.heal()


# No policy ------------------------------------------------------------------------------------------


async def test_without_a_policy_a_write_says_where_it_stands(cluster: GrowingCluster) -> None:
    node = cluster.nodes[await cluster.a_follower()]
    first, second = await put(node), await put(node)
    assert (first.result, second.result, first.is_met, first.needed, first.state) == (1, 2, True, 0, None)
    assert second.index == first.index + 1 and second.term == first.term == node.term
    with pytest.raises(Refused):
        await node.propose_acked(b"refuse x", timeout_s=TIMEOUT_S)
    stats = node.ack_stats
    assert stats.status is None and stats.counters.yes_tx == stats.counters.tx_waits == 0


@pytest.mark.parametrize("stage", AckStage)
async def test_one_write_may_ask_for_more_wherever_it_is_proposed(
    cluster: GrowingCluster, stage: AckStage
) -> None:
    await cluster.leader()
    for node in cluster.nodes.values():
        acked = await put(node, replicas=2, stage=stage)
        assert acked.is_met and acked.acked == 2 and acked.needed == 2 and acked.state is None
        if stage is AckStage.APPLIED:
            assert len({machine.sums["x"] for machine in cluster.machines.values()}) == 1
        assert node.ack_stats.counters.yes_tx == 1
    silence(cluster, cluster.nodes[quiet := await cluster.a_follower()])
    for node in cluster.nodes.values():
        if node.node_id != quiet:
            assert (await put(node, replicas=1, stage=stage)).is_met
            error = await put_unmet(node, replicas=2, stage=stage, timeout_ms=100)
            assert (error.acked, error.needed, error.is_known) == (1, 2, True)
    assert all(node.ack_stats.wait_sessions == 0 for node in cluster.nodes.values())


async def test_more_than_there_are_is_unmet_and_nothing_else(cluster: GrowingCluster) -> None:
    node = cluster.nodes[await cluster.leader()]
    error = await put_unmet(node, replicas=9, timeout_ms=50)
    assert error.result == 1 and error.needed == 9
    with pytest.raises(ValueError, match="replicas"):
        AckRequest(replicas=256)
    with pytest.raises(ValueError, match="timeout_ms"):
        AckRequest(timeout_ms=0)


# A1, A2, A3 -----------------------------------------------------------------------------------------


async def test_fail_answers_committed_and_unmet(cluster: GrowingCluster) -> None:
    """A1."""
    leader, near, far = await with_policy(cluster, policy())
    for node in (leader, near, far):
        acked = await put(node)
        assert acked.is_met and (acked.acked, acked.needed, acked.state) == (2, 2, AckState.SYNC)
    assert await leader.propose(b"add x 1", timeout_s=TIMEOUT_S) == 4
    silence(cluster, far)
    for total, node in enumerate((leader, near), 5):
        error = await put_unmet(node)
        assert (error.result, error.acked, error.needed, error.is_known) == (total, 1, 2, True)
        assert error.state is AckState.SYNC
        assert cluster.machines[node.node_id].sums["x"] == total, "committed, and there"
        stats = node.ack_stats
        assert stats.counters.policy_failed_tx == stats.counters.wait_timeouts == 1
    with pytest.raises(PolicyUnmet):
        await near.propose(b"add x 1", timeout_s=TIMEOUT_S)
    assert leader.ack_stats.status is AckState.SYNC and leader.ack_stats.no_times == 0
    await until(lambda: leader.ack_stats.clients == 1, "one is not heard any more")
    stats = leader.ack_stats
    assert stats.members[far.node_id].match_lag_entries >= 3 and stats.members[far.node_id].match_lag_bytes
    assert stats.members[near.node_id].match_lag_entries == 0
    heal(cluster)
    await until(lambda: leader.ack_stats.members[far.node_id].match_lag_entries == 0, "it is there again")
    assert (await put(leader)).is_met


async def test_degrade_is_committed_once_and_said_in_every_answer(cluster: GrowingCluster) -> None:
    """A2, and the way back."""
    leader, near, far = await with_policy(cluster, policy(on_timeout=OnTimeout.DEGRADE))
    assert (await put(near)).is_met
    silence(cluster, far)
    answers = await asyncio.gather(*(put(node) for node in (leader, near) for _ in range(5)))
    assert all(not a.is_met and a.state is AckState.DEGRADED and a.acked == 1 for a in answers)
    assert await leader.propose(b"add x 1", timeout_s=TIMEOUT_S) == 12
    for node in (leader, near):
        stats = node.ack_stats
        assert stats.status is AckState.DEGRADED and stats.no_times == 1
        assert stats.counters.no_tx >= 5 and stats.counters.policy_failed_tx == 0
    waits = leader.ack_stats.counters.tx_waits
    late = await put(leader)
    assert not late.is_met and leader.ack_stats.counters.tx_waits == waits, "nobody waits now"
    error = await put_unmet(near, replicas=2)
    assert error.state is AckState.DEGRADED, "a wish of one's own is not lifted"
    heal(cluster)
    await known(cluster, lambda n: n.ack_stats.status is AckState.SYNC, "all is well again")
    assert (await put(near)).is_met
    assert leader.ack_stats.state_changes_total == 3 and leader.ack_stats.no_times == 1


@pytest.mark.parametrize("on_timeout", OnTimeout)
@pytest.mark.parametrize("wait_point", WaitPoint)
async def test_without_a_majority_nothing_is_acknowledged_and_nothing_degrades(
    cluster: GrowingCluster, on_timeout: OnTimeout, wait_point: WaitPoint
) -> None:
    """A3."""
    wanted = policy(AckRequirement(replicas=1), on_timeout=on_timeout, wait_point=wait_point)
    leader, first, second = await with_policy(cluster, wanted)
    silence(cluster, first, second)
    with pytest.raises(OutcomeUnknown):
        await put(leader, timeout_s=0.8)
    assert leader.ack_stats.status is AckState.SYNC and leader.ack_stats.no_times == 0
    assert leader.ack_stats.counters.yes_tx == leader.ack_stats.counters.no_tx == 0


# A5 -------------------------------------------------------------------------------------------------


async def test_who_waits_while_the_leader_changes_is_told_that_nobody_knows(cluster: GrowingCluster) -> None:
    leader, near, far = await with_policy(cluster, policy(wait_timeout_ms=20_000))
    silence(cluster, far)
    futures = [
        node.propose_acked_nowait(b"add x 1", timeout_s=TIMEOUT_S, ack=None) for node in (leader, near)
    ]
    futures.append(near.propose_nowait(b"add x 1", timeout_s=TIMEOUT_S))  # type: ignore[arg-type]
    waiting = (leader, near)
    await until(lambda: sum(node.ack_stats.wait_sessions for node in waiting) == 3, "all are applied")
    await leader.transfer_leadership(near.node_id, timeout_s=TIMEOUT_S)
    results = await asyncio.gather(*futures, return_exceptions=True)
    for result in results:
        assert isinstance(result, PolicyUnmet) and not result.is_known and result.applied == "yes"
    assert sorted(result.result for result in results) == [1, 2, 3]  # type: ignore[union-attr, type-var]


async def test_a_new_leader_keeps_the_state(cluster: GrowingCluster) -> None:
    leader, near, far = await with_policy(
        cluster, policy(on_timeout=OnTimeout.DEGRADE, recover_hold_ms=60_000)
    )
    silence(cluster, far)
    assert not (await put(leader)).is_met
    await leader.transfer_leadership(near.node_id, timeout_s=TIMEOUT_S)
    acked = await put(near)
    assert not acked.is_met and acked.state is AckState.DEGRADED


# Before apply ---------------------------------------------------------------------------------------


async def test_before_apply_shows_nothing_until_it_is_met(cluster: GrowingCluster) -> None:
    """A6, of a state machine: nobody has applied it."""
    leader, near, far = await with_policy(
        cluster, policy(wait_point=WaitPoint.BEFORE_APPLY, wait_timeout_ms=20_000)
    )
    assert (await put(near)).is_met
    silence(cluster, far)
    futures = [
        asyncio.ensure_future(node.propose_acked_nowait(b"add x 1", timeout_s=TIMEOUT_S))
        for node in (leader, near)
    ]
    index = leader.status().commit_index + 2
    await until(
        lambda: leader.acks.members[near.node_id].persisted_index >= index, "a majority has both writes"
    )
    for node in (leader, near):
        await node.read_barrier(timeout_s=TIMEOUT_S)
        assert cluster.machines[node.node_id].sums == {"x": 1}
    heal(cluster)
    assert all(acked.is_met and acked.acked == 2 for acked in await asyncio.gather(*futures))


async def test_before_apply_and_fail_refuses_what_is_new_until_members_are_back(
    cluster: GrowingCluster,
) -> None:
    leader, near, far = await with_policy(cluster, policy(wait_point=WaitPoint.BEFORE_APPLY))
    assert (await put(leader)).is_met
    silence(cluster, far)
    error = await put_unmet(near)
    assert error.state is AckState.DEGRADED and error.result == 2 and error.acked == 1
    for node in (leader, near):
        with pytest.raises(AcksMissing) as caught:
            await put(node)
        assert caught.value.applied == "no" and caught.value.retryable
    heal(cluster)
    await known(cluster, lambda n: n.ack_stats.status is AckState.SYNC, "all is well again")
    assert (await put(near)).result == 3, "what was refused is in no log"


async def test_before_apply_and_degrade_goes_on_and_says_so(cluster: GrowingCluster) -> None:
    wanted = policy(wait_point=WaitPoint.BEFORE_APPLY, on_timeout=OnTimeout.DEGRADE)
    leader, near, far = await with_policy(cluster, wanted)
    silence(cluster, far)
    for node in (leader, near):
        acked = await put(node)
        assert not acked.is_met and acked.state is AckState.DEGRADED and acked.acked == 1


# A9, labels, learners -------------------------------------------------------------------------------


async def test_what_the_members_cannot_give_is_refused(cluster: GrowingCluster) -> None:
    node = cluster.nodes[await cluster.a_follower()]
    for requirement in (AckRequirement(replicas=3), AckRequirement(rules=(LabelRule("zone", "dr", 1),))):
        with pytest.raises(ChangeRefused) as caught:
            await node.set_ack_policy(policy(requirement), timeout_s=TIMEOUT_S)
        assert caught.value.refusal is ChangeRefusal.ACKS_IMPOSSIBLE and not caught.value.retryable
    assert (await put(node)).is_met and node.ack_stats.status is None


async def test_a_zone_that_is_far_away_is_waited_for_by_its_label(cluster: GrowingCluster) -> None:
    leader = await cluster.leader()
    node = cluster.nodes[leader]
    near, far = (i for i in cluster.nodes if i != leader)
    for member, zone in ((leader, "a"), (near, "a"), (far, "dr")):
        await node.set_labels(member, {"zone": zone, "disk": "fast"}, timeout_s=TIMEOUT_S)
    assert node.members[far].labels == (("disk", "fast"), ("zone", "dr"))
    await node.set_labels(far, {"disk": "fast", "zone": "dr"}, timeout_s=TIMEOUT_S)
    with pytest.raises(ValueError, match="labels"):
        await node.set_labels(far, {"zone": "no good"}, timeout_s=TIMEOUT_S)
    wanted = policy(AckRequirement(rules=(LabelRule("zone", "dr", 1), LabelRule("zone", "", 2))))
    await with_policy(cluster, wanted)
    assert (await put(node)).is_met
    with pytest.raises(ChangeRefused) as caught:
        await node.set_labels(far, {}, timeout_s=TIMEOUT_S)
    assert caught.value.refusal is ChangeRefusal.ACKS_IMPOSSIBLE
    silence(cluster, cluster.nodes[far])
    error = await put_unmet(node)
    assert error.acked == 1, "the near one has it, and is of the wrong zone"


async def test_learners_count_only_where_the_policy_says_so(cluster: GrowingCluster) -> None:
    leader = cluster.nodes[await cluster.leader()]
    await leader.add_member(4, [url(4)], is_learner=True, timeout_s=TIMEOUT_S)
    await cluster.join(4)
    learned = AckRequirement(replicas=3, counts_learners=True)
    with pytest.raises(ChangeRefused):
        await leader.set_ack_policy(policy(AckRequirement(replicas=3)), timeout_s=TIMEOUT_S)
    await leader.set_ack_policy(policy(learned, wait_timeout_ms=10_000), timeout_s=TIMEOUT_S)
    for node in cluster.nodes.values():
        acked = await put(node)
        assert acked.is_met and acked.acked == 3
    await leader.set_ack_policy(policy(TWO), timeout_s=TIMEOUT_S)
    silence(cluster, cluster.nodes[await cluster.a_follower()])
    assert (await put_unmet(leader)).acked == 1, "the learner has it, and does not count"


async def test_who_is_not_there_is_not_waited_for_if_so_asked(cluster: GrowingCluster) -> None:
    wanted = policy(wait_timeout_ms=60_000, wait_no_replica=False)
    leader, near, far = await with_policy(cluster, wanted)
    silence(cluster, far)
    await until(lambda: leader.ack_stats.clients == near.ack_stats.clients == 1, "it is missed")
    async with asyncio.timeout(SOON_S):
        for node in (leader, near):
            assert (await put_unmet(node)).acked == 1
    await leader.set_ack_policy(
        policy(wait_timeout_ms=60_000, wait_no_replica=False, on_timeout=OnTimeout.DEGRADE),
        timeout_s=TIMEOUT_S,
    )
    async with asyncio.timeout(SOON_S):
        acked = await put(near)
    assert not acked.is_met and acked.state is AckState.DEGRADED


# A10 ------------------------------------------------------------------------------------------------


async def test_what_is_forged_late_or_twice_acknowledges_nothing(cluster: GrowingCluster) -> None:
    leader, near, far = await with_policy(cluster, policy(wait_timeout_ms=1000))
    silence(cluster, far)
    futures = [node.propose_acked_nowait(b"add x 1", timeout_s=TIMEOUT_S) for node in (leader, near)]
    await until(lambda: leader.ack_stats.wait_sessions + near.ack_stats.wait_sessions == 2, "both wait")
    index = leader.status().last_index
    term = leader.term

    def reply(sender: NodeId, to: Node, match_index: int, reply_term: int) -> m.Message:
        return m.AppendEntriesReply(
            sender=sender, to=to.node_id, term=reply_term, rejected=False, match_index=match_index
        )

    everything = tuple(m.MemberAcks(i, index, index, True) for i in (1, 2, 3))
    forged: list[m.Message] = [
        *[reply(near.node_id, leader, index, term)] * 3,
        reply(near.node_id, leader, index - 1, term),
        reply(far.node_id, leader, index, term - 1),
        reply(leader.node_id, leader, index, term),
        reply(99, leader, index, term),
        m.Applied(sender=99, to=leader.node_id, term=term, index=index),
    ]
    for message in forged:
        leader._made_driver().on_messages([message])
    near._made_driver().on_messages(
        [
            m.Acks(sender=far.node_id, to=near.node_id, term=term, members=everything),
            m.Acks(sender=leader.node_id, to=near.node_id, term=term - 1, members=everything),
        ]
    )
    for future in futures:
        with pytest.raises(PolicyUnmet) as caught:
            await future
        assert caught.value.acked == 1 and caught.value.is_known
    assert leader.ack_stats.counters.wait_pos_backtraverse >= 1
    heal(cluster)
    assert (await put(near)).acked == 2


async def test_news_that_are_lost_and_late_make_answers_late_and_not_wrong(cluster: GrowingCluster) -> None:
    leader, near, far = await with_policy(cluster, policy(wait_timeout_ms=10_000))
    assert cluster.network is not None
    seen = 0

    def fault(message: m.Message) -> float:
        nonlocal seen
        if not isinstance(message, m.Acks):
            return 0.0
        seen += 1
        return DROP if seen % 3 == 0 else 0.01 * (seen % 5)

    cluster.network.fault = fault
    for total in range(1, 16):
        node = (leader, near, far)[total % 3]
        acked = await put(node)
        assert acked.result == total and acked.is_met and acked.acked == 2
        others = [leader.acks.members[one.node_id].persisted_index for one in (near, far)]
        assert min(others) >= acked.index, "both others have it"
    assert seen > 15


async def test_who_asks_and_is_not_heard_asks_again(cluster: GrowingCluster) -> None:
    """Without a policy nobody is told anything unasked, and the question is one message."""
    assert cluster.network is not None
    node = cluster.nodes[await cluster.a_follower()]
    asked = 0

    def fault(message: m.Message) -> float:
        nonlocal asked
        if isinstance(message, m.AckInterest):
            asked += 1
            return DROP if asked == 1 else 0.0
        return 0.0

    cluster.network.fault = fault
    acked = await put(node, replicas=2, timeout_ms=15_000)
    assert acked.is_met and acked.acked == 2 and asked >= 2


# Times, limits, ends ----------------------------------------------------------------------------------


async def test_the_first_of_all_deadlines_counts(cluster: GrowingCluster) -> None:
    _, near, far = await with_policy(cluster, policy(wait_timeout_ms=60_000))
    silence(cluster, far)
    async with asyncio.timeout(SOON_S):
        assert (await put_unmet(near, timeout_ms=200)).is_known
        with pytest.raises(PolicyUnmet) as caught:
            await put(near, timeout_s=0.5)
        assert caught.value.is_known and caught.value.acked == 1, "applied: so it is not unknown"
    assert near.ack_stats.wait_sessions == 0


async def test_who_waits_counts_against_the_limit(tmp_path: Path) -> None:
    async with GrowingCluster(tmp_path, election_timeout_ticks=20, proposals_waiting_max=3) as cluster:
        _, near, far = await with_policy(cluster, policy(wait_timeout_ms=60_000))
        silence(cluster, far)
        futures = [near.propose_nowait(b"add x 1", timeout_s=TIMEOUT_S) for _ in range(3)]
        await until(lambda: near.ack_stats.wait_sessions == 3, "all are applied")
        with pytest.raises(Overloaded):
            near.propose_nowait(b"add x 1", timeout_s=TIMEOUT_S)
        heal(cluster)
        assert await asyncio.gather(*futures) == [1, 2, 3]
        assert await near.propose(b"add x 1", timeout_s=TIMEOUT_S) == 4


async def test_at_the_stop_it_is_committed_and_nobody_knows_more(cluster: GrowingCluster) -> None:
    _, near, far = await with_policy(cluster, policy(wait_timeout_ms=60_000))
    silence(cluster, far)
    future = near.propose_acked_nowait(b"add x 1", timeout_s=TIMEOUT_S)
    await until(lambda: near.ack_stats.wait_sessions, "it is applied")
    await cluster.stop(near.node_id)
    with pytest.raises(PolicyUnmet) as caught:
        await future
    assert not caught.value.is_known and caught.value.result == 1


async def test_a_policy_goes_as_it_came(cluster: GrowingCluster) -> None:
    _, near, far = await with_policy(cluster, policy(wait_timeout_ms=60_000))
    silence(cluster, far)
    future = near.propose_acked_nowait(b"add x 1", timeout_s=TIMEOUT_S)
    await until(lambda: near.ack_stats.wait_sessions, "it waits")
    await near.set_ack_policy(AckPolicy(), timeout_s=TIMEOUT_S)
    acked = await future
    assert acked.is_met and acked.needed == 0 and near.ack_stats.status is None


async def test_labels_are_set_also_where_an_old_log_shows_them_already(
    cluster: GrowingCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = cluster.nodes[await cluster.leader()]
    old = cluster.nodes[await cluster.a_follower()]
    await leader.set_labels(old.node_id, {"zone": "a"}, timeout_s=TIMEOUT_S)
    await known(cluster, lambda n: n.members[old.node_id].labels == (("zone", "a"),), "the label is known")
    seen = old.members
    await leader.set_labels(old.node_id, {"zone": "b"}, timeout_s=TIMEOUT_S)
    with monkeypatch.context() as patch:
        # As after a start, before the leader was heard of.
        patch.setattr(type(old), "members", property(lambda self: seen))
        await old.set_labels(old.node_id, {"zone": "a"}, timeout_s=TIMEOUT_S)
    await known(cluster, lambda n: n.members[old.node_id].labels == (("zone", "a"),), "the label is set")
    await leader.set_labels(old.node_id, {"zone": "a"}, timeout_s=TIMEOUT_S)

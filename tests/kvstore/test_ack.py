"""The ack policy in the API: metadata, trailers, errors, quorumlogpb.Ack. On a stand-in for the log."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc
import pytest

import raft
from kvstore import ApiSettings
from kvstore.api.ack import publish_labels
from kvstore.pb import ack_pb2
from kvstore.pb.rpc_pb2 import (
    CompactionRequest,
    DeleteRangeRequest,
    MemberUpdateRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    StatusRequest,
    TxnRequest,
)
from raft import (
    AckedResult,
    AckPolicy,
    AckRequest,
    AckRequirement,
    AckSettings,
    AckStage,
    AckState,
    AckView,
    ChangeRefusal,
    ChangeRefused,
    LabelRule,
    MemberAcks,
    OnTimeout,
    PolicyUnmet,
    WaitPoint,
    WriteFate,
)
from raft.core.types import Membership
from tests.kvstore.replicas import LocalMember, LocalServer
from tests.kvstore.rpc import Client, Failure

PUT = PutRequest(key=b"k", value=b"v")
DELETE = DeleteRangeRequest(key=b"k")
TXN = TxnRequest(success=[RequestOp(request_put=PUT)])
COMPACT = CompactionRequest(revision=1)
WRITES = (("KV/Put", PUT), ("KV/DeleteRange", DELETE), ("KV/Txn", TXN), ("KV/Compact", COMPACT))
ONE = AckRequirement(replicas=1)


@pytest.fixture
def client(server: LocalServer) -> Any:
    client = Client(server.port)
    yield client
    client.close()


def set_policy(server: LocalServer, policy: AckPolicy, *others: int, state: AckState = AckState.SYNC) -> None:
    """Others are members too, and have everything."""
    replica = server.replica
    ids = (replica.node_id, *others)
    replica.members = {i: LocalMember((f"http://127.0.0.1:{n + 1}",), 7) for n, i in enumerate(ids)}
    replica.acks = AckView(
        term=3,
        leader=replica.node_id,
        membership=Membership(voters=frozenset(ids), ack=AckSettings(policy, state)),
        members={i: MemberAcks(i, 10**6, 0, True) for i in ids},
    )


def trailers_of(answer: Any) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key.startswith("quorumlog-ack")}


def test_without_a_policy_nothing_is_said(server: LocalServer, client: Client) -> None:
    for method, request in WRITES:
        _, trailers = client.call_with_trailers(method, request)
        assert trailers == {}, method
    assert server.replica.ack_requests == [None] * len(WRITES)


def test_a_policy_that_was_not_known_yet_when_a_write_came_in_is_told_of(
    server: LocalServer, client: Client
) -> None:
    server.replica.ack_outcome = AckedResult(None, 0, 3, False, 0, 1, AckState.DEGRADED)
    server.replica.meets_policy_late = True
    for method, request in WRITES:
        _, trailers = client.call_with_trailers(method, request)
        assert (trailers["quorumlog-ack-met"], trailers["quorumlog-ack-state"]) == ("no", "degraded"), method


def test_under_a_policy_every_write_says_how_it_was_met(server: LocalServer, client: Client) -> None:
    set_policy(server, AckPolicy(ONE), 2, 3)
    for method, request in WRITES:
        _, trailers = client.call_with_trailers(method, request)
        assert trailers == {
            "quorumlog-ack-met": "yes",
            "quorumlog-acked": "2",
            "quorumlog-ack-needed": "1",
            "quorumlog-ack-state": "sync",
        }, method
    assert server.replica.ack_requests == [None] * len(WRITES)
    server.replica.ack_outcome = AckedResult(None, 0, 3, False, 0, 1, AckState.DEGRADED)
    _, trailers = client.call_with_trailers("KV/Put", PUT)
    assert (trailers["quorumlog-ack-met"], trailers["quorumlog-ack-state"]) == ("no", "degraded")
    _, trailers = client.call_with_trailers("KV/Range", RangeRequest(key=b"k"))
    assert trailers == {}


def test_a_write_may_ask_for_more(server: LocalServer, client: Client) -> None:
    set_policy(server, AckPolicy(), 2, 3)
    server.replica.ack_outcome = AckedResult(None, 0, 3, True, 2, 2, None)
    metadata = (
        ("x-ack-replicas", "2"),
        ("x-ack-stage", "applied"),
        ("x-ack-timeout-ms", "500"),
        ("x-acorn", "?"),
    )
    _, trailers = client.call_with_trailers("KV/Put", PUT, metadata=metadata)
    assert trailers["quorumlog-ack-state"] == "off" and trailers["quorumlog-acked"] == "2"
    client.call_with_trailers("KV/Put", PUT, metadata=(("x-ack-replicas", "0"),))
    assert server.replica.ack_requests == [
        AckRequest(2, AckStage.APPLIED, 500),
        AckRequest(0, None, None),
    ]


@pytest.mark.parametrize(
    "metadata",
    [
        (("x-ack-replica", "1"),),
        (("x-ack-", "1"),),
        (("x-ack-replicas", "-1"),),
        (("x-ack-replicas", "256"),),
        (("x-ack-replicas", "1.0"),),
        (("x-ack-replicas", ""),),
        (("x-ack-replicas", "9" * 400),),
        (("x-ack-replicas", "1"), ("x-ack-replicas", "1")),
        (("x-ack-replicas-bin", b"1"),),
        (("x-ack-stage", "fsynced"),),
        (("x-ack-timeout-ms", "0"),),
        (("x-ack-timeout-ms", "86400001"),),
        (("x-ack", "all"),),
        (("x-ack", "leader"), ("x-ack-replicas", "1")),
        (("x-ack-replicas", "3"),),  # there are two beside the leader
    ],
)
def test_what_is_not_understood_is_refused_before_anything_happens(
    server: LocalServer, client: Client, metadata: Any
) -> None:
    set_policy(server, AckPolicy(), 2, 3)
    for method, request in WRITES:
        answer = client.call(method, request, metadata=metadata)
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, method
        assert "x-ack" in answer.message and answer.message.startswith("etcdserver: ")
        assert answer.trailers["quorumlog-applied"] == "no"
    assert not server.replica.proposed.is_set()


@pytest.mark.parametrize("metadata", [(("x-ack-replicas", "1"),), (("x-ack-nonsense", "1"),)])
def test_acknowledgements_cannot_be_asked_for_a_change_of_the_members_or_a_read(
    server: LocalServer, client: Client, metadata: Any
) -> None:
    read = RequestOp(request_range=RangeRequest(key=b"k"))
    change = MemberUpdateRequest(ID=server.replica.node_id, peerURLs=["http://127.0.0.1:9"])
    for method, request in (
        ("Cluster/MemberUpdate", change),
        ("/quorumlogpb.Ack/Set", ack_pb2.AckSetRequest()),
        ("KV/Range", RangeRequest(key=b"k")),
        ("KV/Txn", TxnRequest(success=[read])),
    ):
        assert client.call(method, request, metadata=metadata).code is grpc.StatusCode.INVALID_ARGUMENT
    assert server.replica.changes == []


@pytest.mark.parametrize(
    ("is_known", "text", "met"),
    [
        (True, "committed, ack policy unmet (acked 1 of 2, revision {})", "no"),
        (
            False,
            "committed, ack policy unknown: the leader changed, or this member stopped (revision {})",
            "unknown",
        ),
    ],
)
def test_an_unmet_policy_says_that_the_write_is_there(
    server: LocalServer, client: Client, is_known: bool, text: str, met: str
) -> None:
    set_policy(server, AckPolicy(AckRequirement(replicas=2)), 2, 3)
    server.replica.ack_outcome = PolicyUnmet(
        None, 0, acked=1, needed=2, state=AckState.SYNC, is_known=is_known
    )
    put_with_previous = PutRequest(key=b"k", prev_kv=True)
    for revision, (method, request) in enumerate((*WRITES[:3], ("KV/Put", put_with_previous)), 2):
        answer = client.call(method, request)
        assert answer[:2] == (grpc.StatusCode.ABORTED, "etcdserver: " + text.format(revision)), method
        assert trailers_of(answer.trailers) == {
            "quorumlog-ack-met": met,
            "quorumlog-acked": "1",
            "quorumlog-ack-needed": "2",
            "quorumlog-ack-state": "sync",
        }
        assert answer.trailers["quorumlog-applied"] == "yes"
        assert answer.trailers["quorumlog-retryable"] == "false"
    assert client.call("Maintenance/Status", StatusRequest()).header.revision == 5


def test_who_finds_his_write_without_effect_is_told_that_and_not_of_acknowledgements(
    server: LocalServer, client: Client
) -> None:
    set_policy(server, AckPolicy(ONE), 2)
    server.replica.ack_outcome = PolicyUnmet(None, 0, acked=0, needed=1)
    answer = client.call("KV/Put", PutRequest(key=b"none", ignore_value=True))
    assert answer[:2] == (grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: key not found")


def test_missing_acknowledgers_are_a_refusal_that_passes(server: LocalServer, client: Client) -> None:
    set_policy(server, AckPolicy(ONE, WaitPoint.BEFORE_APPLY), 2)
    server.replica.failure = raft.AcksMissing("too few")
    answer = client.call("KV/Put", PUT)
    assert answer.code is grpc.StatusCode.UNAVAILABLE and "ack policy" in answer.message
    assert answer.trailers["quorumlog-applied"] == "no"
    assert answer.trailers["quorumlog-retryable"] == "true"


LEADER = (("x-ack", "leader"),)


def test_the_leader_alone_acknowledges_only_where_it_is_allowed(server: LocalServer, client: Client) -> None:
    answer = client.call("KV/Put", PUT, metadata=LEADER)
    assert (
        answer.code is grpc.StatusCode.FAILED_PRECONDITION and "--unsafe-allow-leader-ack" in answer.message
    )
    assert server.replica.leader_acked == []


@pytest.fixture
def unsafe(server: LocalServer) -> LocalServer:
    server.context.settings = ApiSettings(allows_leader_ack=True)
    return server


def test_a_write_that_the_leader_alone_has_tells_no_revision(unsafe: LocalServer, client: Client) -> None:
    for method, request in (("KV/Put", PUT), ("KV/DeleteRange", DELETE)):
        answer, trailers = client.call_with_trailers(method, request, metadata=LEADER)
        assert (answer.header.revision, answer.header.raft_term) == (0, 3)
        assert trailers == {
            "quorumlog-ack": "leader",
            "quorumlog-ack-term": "3",
            "quorumlog-ack-index": "77",
        }
    assert len(unsafe.replica.leader_acked) == 2 and not unsafe.replica.proposed.is_set()


def test_the_leader_alone_acknowledges_nothing_on_which_more_hangs(
    unsafe: LocalServer, client: Client
) -> None:
    for method, request in (
        ("KV/Txn", TXN),
        ("KV/Compact", COMPACT),
        ("KV/Put", PutRequest(key=b"k", lease=5)),
        ("KV/Put", PutRequest(key=b"k", prev_kv=True)),
        ("KV/Put", PutRequest(key=b"k", ignore_value=True)),
        ("KV/Put", PutRequest(key=b"k", ignore_lease=True)),
        ("KV/DeleteRange", DeleteRangeRequest(key=b"k", prev_kv=True)),
    ):
        answer = client.call(method, request, metadata=LEADER)
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, request
        assert answer.trailers["quorumlog-applied"] == "no"
    assert unsafe.replica.leader_acked == [] and not unsafe.replica.proposed.is_set()


def test_a_leader_that_will_not_acknowledge_alone_says_why(unsafe: LocalServer, client: Client) -> None:
    unsafe.replica.failure = raft.LeaderAckRefused("1000 writes lack a majority already")
    answer = client.call("KV/Put", PUT, metadata=LEADER)
    assert answer[:2] == (grpc.StatusCode.UNAVAILABLE, "etcdserver: 1000 writes lack a majority already")
    assert answer.trailers["quorumlog-applied"] == "no"


def test_what_became_of_a_write_can_be_asked(server: LocalServer, client: Client) -> None:
    fates = ack_pb2.ConfirmWriteResponse
    server.replica.fates = {
        (1, 1): WriteFate.COMMITTED,
        (1, 2): WriteFate.LOST,
        (1, 3): WriteFate.PENDING,
    }
    for index, fate in ((1, fates.COMMITTED), (2, fates.LOST), (3, fates.PENDING), (4, fates.UNKNOWN)):
        request = ack_pb2.ConfirmWriteRequest(term=1, index=index)
        assert client.call("/quorumlogpb.Ack/ConfirmWrite", request).fate == fate
    for request in (ack_pb2.ConfirmWriteRequest(term=1), ack_pb2.ConfirmWriteRequest(index=1)):
        answer = client.call("/quorumlogpb.Ack/ConfirmWrite", request)
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT
    server.replica.failure = raft.NoQuorum()
    request = ack_pb2.ConfirmWriteRequest(term=1, index=1)
    assert client.call("/quorumlogpb.Ack/ConfirmWrite", request).code is grpc.StatusCode.UNAVAILABLE


def test_settings_that_are_not_given_stay(server: LocalServer, client: Client) -> None:
    set_policy(server, AckPolicy(), 2, 3)

    def set_to(**settings: Any) -> Any:
        request = ack_pb2.AckSetRequest(settings=ack_pb2.AckSettings(**settings))
        return client.call("/quorumlogpb.Ack/Set", request)

    rules = ack_pb2.AckRules(rules=[ack_pb2.AckRule(label="zone", value="dr", count=1)])
    answer = set_to(replicas=1, rules=rules, on_timeout=ack_pb2.DEGRADE, counts_learners=True)
    assert answer.settings.replicas == 1 and answer.state == ack_pb2.SYNC
    answer = set_to(wait_timeout_ms=700, recover_hold_ms=900, wait_no_replica=False)
    expected = AckPolicy(
        AckRequirement(1, (LabelRule("zone", "dr", 1),), counts_learners=True),
        wait_timeout_ms=700,
        on_timeout=OnTimeout.DEGRADE,
        wait_no_replica=False,
        recover_hold_ms=900,
    )
    assert server.replica.changes[-1] == ("ack", expected)
    assert answer.settings.rules == rules and answer.settings.stage == ack_pb2.PERSISTED
    answer = set_to(replicas=0, rules=ack_pb2.AckRules())
    assert answer.state == ack_pb2.OFF and answer.settings.wait_timeout_ms == 700
    assert server.replica.barriers == 3


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"replicas": 256}, "256"),
        ({"wait_timeout_ms": 0}, "wait_timeout_ms"),
        ({"stage": 7}, "does not know"),
        ({"wait_point": ack_pb2.BEFORE_APPLY, "stage": ack_pb2.APPLIED}, "its own application"),
        ({"rules": ack_pb2.AckRules(rules=[ack_pb2.AckRule(label="a b", count=1)])}, "letters"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    server: LocalServer, client: Client, settings: dict[str, Any], word: str
) -> None:
    request = ack_pb2.AckSetRequest(settings=ack_pb2.AckSettings(**settings))
    answer = client.call("/quorumlogpb.Ack/Set", request)
    assert answer.code is grpc.StatusCode.INVALID_ARGUMENT and word in answer.message
    assert server.replica.changes == []


def test_more_than_there_are_is_refused_with_what_there_is(server: LocalServer, client: Client) -> None:
    set_policy(server, AckPolicy(), 2, 3)
    server.replica.refusals = [ChangeRefused(ChangeRefusal.ACKS_IMPOSSIBLE)]
    request = ack_pb2.AckSetRequest(settings=ack_pb2.AckSettings(replicas=5))
    answer = client.call("/quorumlogpb.Ack/Set", request)
    assert answer.code is grpc.StatusCode.FAILED_PRECONDITION
    assert "5" in answer.message and "2" in answer.message, answer.message
    assert answer.trailers["quorumlog-applied"] == "no"
    labels = ((2, (("zone", "a"),)), (3, (("zone", "b"),)))
    server.replica.acks = server.replica.acks._replace(
        membership=replace(server.replica.acks.membership, labels=labels)
    )
    server.replica.refusals = [ChangeRefused(ChangeRefusal.ACKS_IMPOSSIBLE)]
    rules = ack_pb2.AckRules(rules=[ack_pb2.AckRule(label="zone", value="moon", count=1)])
    request = ack_pb2.AckSetRequest(settings=ack_pb2.AckSettings(rules=rules))
    message = client.call("/quorumlogpb.Ack/Set", request).message
    assert "zone=moon:1" in message and message.endswith("(their labels are zone=a, zone=b)"), message


def test_of_two_who_change_a_part_each_neither_is_lost(server: LocalServer, client: Client) -> None:
    replica = server.replica
    set_policy(server, AckPolicy(ONE), 2, 3)
    ask = replica._change
    others = [replace(AckPolicy(ONE), wait_timeout_ms=ms) for ms in (111, 222)]

    async def somebody_was_first(*what: Any) -> None:
        if others:
            settings = AckSettings(others.pop(0))
            replica.acks = replica.acks._replace(membership=replace(replica.acks.membership, ack=settings))
        await ask(*what)

    replica._change = somebody_was_first  # type: ignore[method-assign]
    request = ack_pb2.AckSetRequest(settings=ack_pb2.AckSettings(replicas=2))
    answer = client.call("/quorumlogpb.Ack/Set", request)
    assert (answer.settings.replicas, answer.settings.wait_timeout_ms) == (2, 222)
    assert len(replica.changes) == 3
    # Not for ever.
    others += [replace(AckPolicy(ONE), wait_timeout_ms=ms) for ms in range(1, 99)]
    answer = client.call("/quorumlogpb.Ack/Set", request)
    assert answer.code is grpc.StatusCode.UNAVAILABLE and "at the same time" in answer.message
    assert answer.trailers["quorumlog-applied"] == "no"


def test_the_same_settings_again_are_no_error(server: LocalServer, client: Client) -> None:
    server.replica.refusals = [ChangeRefused(ChangeRefusal.NOTHING_TO_DO)]
    answer = client.call("/quorumlogpb.Ack/Set", ack_pb2.AckSetRequest())
    assert not isinstance(answer, Failure) and answer.state == ack_pb2.OFF


def test_how_it_stands_is_told_without_a_quorum(server: LocalServer, client: Client) -> None:
    set_policy(server, AckPolicy(ONE), 2, 3, state=AckState.DEGRADED)
    replica = server.replica
    replica.failure, replica.leader = raft.NoQuorum(), 0
    view = replica.acks
    members = {**view.members, 2: MemberAcks(2, 0, 0, False), 3: MemberAcks(3, 0, 0, False)}
    membership = Membership(
        voters=view.membership.voters - {3},
        learners=frozenset({3}),
        labels=((2, (("zone", "dr"),)),),
        ack=view.membership.ack,
    )
    replica.acks = view._replace(members=members, membership=membership)
    answer = client.call("/quorumlogpb.Ack/Get", ack_pb2.AckGetRequest())
    assert (answer.state, answer.is_met, answer.acked) == (ack_pb2.DEGRADED, False, 0)
    two, three, own = answer.members
    assert (two.ID, three.ID, own.ID) == (2, 3, replica.node_id)
    assert own.is_leader and own.is_heard and own.persisted_index == 10**6
    assert [(label.name, label.value) for label in two.labels] == [("zone", "dr")]
    assert three.is_learner and not two.is_learner and two.is_known and not two.is_heard
    counters = {counter.name: counter.value for counter in answer.counters}
    assert counters["yes_tx"] == counters["wait_histogram_more"] == counters["wait_histogram_le_1ms"] == 0
    replica.acks = view._replace(members={})
    answer = client.call("/quorumlogpb.Ack/Get", ack_pb2.AckGetRequest())
    assert answer.leader == 0 and not any(member.is_known for member in answer.members)


def test_the_status_shows_a_policy_that_is_not_in_force(server: LocalServer, client: Client) -> None:
    for policy, state, errors in (
        (AckPolicy(ONE), AckState.SYNC, []),
        (AckPolicy(ONE), AckState.DEGRADED, ["ack policy degraded"]),
        (AckPolicy(ONE), AckState.RECOVERING, ["ack policy recovering"]),
    ):
        set_policy(server, policy, 2, state=state)
        assert list(client.call("Maintenance/Status", StatusRequest()).errors) == errors


def test_labels_are_replaced(server: LocalServer, client: Client) -> None:
    own = server.replica.node_id
    for given, labels in (([("zone", "a"), ("rack", "1")], (("rack", "1"), ("zone", "a"))), ([], ())):
        request = ack_pb2.AckSetLabelsRequest(
            ID=own, labels=[ack_pb2.AckLabel(name=n, value=v) for n, v in given]
        )
        assert not isinstance(client.call("/quorumlogpb.Ack/SetLabels", request), Failure)
        assert server.replica.changes[-1] == ("labels", own, labels)
    for given in ([("zone", "a"), ("zone", "b")], [("zone", "")], [("z" * 64, "a")]):
        request = ack_pb2.AckSetLabelsRequest(
            ID=own, labels=[ack_pb2.AckLabel(name=n, value=v) for n, v in given]
        )
        assert client.call("/quorumlogpb.Ack/SetLabels", request).code is grpc.StatusCode.INVALID_ARGUMENT
    answer = client.call("/quorumlogpb.Ack/SetLabels", ack_pb2.AckSetLabelsRequest(ID=9))
    assert answer.message == "etcdserver: member not found"


def test_own_labels_are_published_until_they_are_there(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kvstore.api.ack.PUBLISH_PAUSE_S", 0.0)
    monkeypatch.setattr("kvstore.api.ack.REFUSED_PAUSE_S", 0.0)
    replica, labels = server.replica, (("zone", "a"),)
    replica.refusals = [raft.NotLeader(), ChangeRefused(ChangeRefusal.ACKS_IMPOSSIBLE), None]
    server.run(publish_labels(server.context, labels))
    assert replica.members[replica.node_id].labels == labels
    assert len(replica.changes) == 3
    [warning] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "change it first" in warning.message
    server.run(publish_labels(server.context, labels))
    assert len(replica.changes) == 3


def test_own_labels_are_published_though_an_old_log_shows_them(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were changed while this member was down: a read barrier brings what it has missed."""
    replica, labels = server.replica, (("zone", "a"),)
    own = replica.members[replica.node_id]
    replica.members = {replica.node_id: replace(own, labels=labels)}
    barrier = replica.read_barrier

    async def learning(*, timeout_s: float) -> None:
        await barrier(timeout_s=timeout_s)
        if not replica.changes:
            replica.members = {replica.node_id: replace(own, labels=(("zone", "b"),))}

    monkeypatch.setattr(replica, "read_barrier", learning)
    server.run(publish_labels(server.context, labels))
    assert replica.changes == [("labels", replica.node_id, labels)]

"""Changes of the membership through the door: what is asked of the log, and what clients are told of it.

Codes and texts are those that etcd 3.5.1 answers to the same requests, but for one code: see below.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

import raft
from kvstore import build_methods, publish_member
from kvstore.api import cluster
from kvstore.errors import ApiError
from kvstore.pb import ack_pb2
from kvstore.pb.backup_pb2 import SnapshotRequest, SnapshotResponse
from kvstore.pb.cluster_pb2 import MemberReplaceRequest
from kvstore.pb.rpc_pb2 import (
    AlarmRequest,
    CompactionRequest,
    DefragmentRequest,
    DeleteRangeRequest,
    HashKVRequest,
    HashRequest,
    MemberAddRequest,
    MemberListRequest,
    MemberPromoteRequest,
    MemberRemoveRequest,
    MemberUpdateRequest,
    MoveLeaderRequest,
    PutRequest,
    RangeRequest,
    StatusRequest,
    TxnRequest,
)
from raft import ChangeRefusal, ChangeRefused
from tests.kvstore.replicas import LocalCall, LocalMember, LocalServer, LocalStatus
from tests.kvstore.rpc import Client, Failure

OWN = LocalStatus().node_id
REPLACE = "/quorumlogpb.Cluster/MemberReplace"
URL = "http://127.0.0.1:5"


@pytest.fixture
def client(server: LocalServer) -> Any:
    client = Client(server.port)
    yield client
    client.close()


@pytest.fixture
def three(server: LocalServer) -> LocalServer:
    """A cluster of three voters and a learner, 0xD."""
    server.replica.members = {
        OWN: LocalMember(("http://127.0.0.1:1",), 7),
        0xB: LocalMember(("http://127.0.0.1:2",), 8),
        0xC: LocalMember(("http://127.0.0.1:3",), 9),
        0xD: LocalMember(("http://127.0.0.1:4",), 10, is_learner=True),
    }
    return server


def told(answer: Any) -> tuple[str, str]:
    assert isinstance(answer, Failure), answer
    assert answer.trailers["quorumlog-applied"] == "no"
    return answer.code.name, answer.message.removeprefix("etcdserver: ")


def test_a_member_is_added(three: LocalServer, client: Client) -> None:
    request = MemberAddRequest(peerURLs=["http://127.0.0.1:9", URL])
    answer = client.call("Cluster/MemberAdd", request)
    assert list(answer.member.peerURLs) == [URL, "http://127.0.0.1:9"]
    assert (answer.member.name, list(answer.member.clientURLs), answer.member.isLearner) == ("", [], False)
    assert [m.ID for m in answer.members] == sorted([OWN, 0xB, 0xC, 0xD, answer.member.ID])
    assert next(m for m in answer.members if m.ID == answer.member.ID) == answer.member
    header = answer.header
    assert (header.cluster_id, header.member_id) == (LocalStatus().cluster_id, OWN)
    assert (header.raft_term, header.revision) == (LocalStatus().term, 0)
    assert three.replica.changes == [("add", answer.member.ID, True)]
    assert three.replica.barriers == 1  # what it was compared with is the newest
    learner = client.call("Cluster/MemberAdd", MemberAddRequest(peerURLs=["http://[::1]:6"], isLearner=True))
    assert learner.member.isLearner


def test_ids_are_never_the_same() -> None:
    """But for the same addition once more, of which the first may be under way."""

    def new_id(url: str = URL, cluster_id: int = 7, members: Any = (1, 2), removed: Any = ()) -> int:
        return cluster.new_member_id([url], cluster_id, members, removed)

    first = new_id()
    later = [new_id(removed=(first,)), new_id(members=(1, 2, 3)), new_id(removed=(first, 3))]
    ids = {first, *later, new_id("http://127.0.0.1:6"), new_id(cluster_id=8)}
    assert len(ids) == 6 and all(0 < i < 1 << 64 for i in ids)
    assert new_id() == first


def test_an_addition_that_is_repeated_has_the_same_id(three: LocalServer, client: Client) -> None:
    """Else both would be members, if the first one is committed after all."""
    three.replica.refusals = [raft.OutcomeUnknown(), raft.ChangeRefused(raft.ChangeRefusal.ALREADY_MEMBER)]
    request = MemberAddRequest(peerURLs=[URL])
    unknown, again = (client.call("Cluster/MemberAdd", request) for _ in range(2))
    assert unknown.trailers["quorumlog-applied"] == "unknown"
    assert told(again) == ("FAILED_PRECONDITION", "member ID already exist")
    assert three.replica.changes[0] == three.replica.changes[1]
    three.replica.members = {i: one for i, one in three.replica.members.items() if i != 0xB}
    three.replica.removed_members = (0xB,)
    assert client.call("Cluster/MemberAdd", request).member.ID != three.replica.changes[0][1]


@pytest.mark.parametrize(
    "urls",
    [
        [],
        [""],
        ["nonsense"],
        ["127.0.0.1:5"],
        ["http://127.0.0.1"],
        ["http://127.0.0.1:5/path"],
        ["https://127.0.0.1:5"],
        ["http://127.0.0.1:5", "ftp://127.0.0.1:5"],
        [f"http://127.0.0.1:{port}" for port in range(1000, 1017)],
    ],
)
def test_bad_urls(three: LocalServer, client: Client, urls: list[str]) -> None:
    for method, request in (
        ("Cluster/MemberAdd", MemberAddRequest(peerURLs=urls)),
        ("Cluster/MemberUpdate", MemberUpdateRequest(ID=0xB, peerURLs=urls)),
        (REPLACE, MemberReplaceRequest(ID=0xB, peerURLs=urls)),
    ):
        assert told(client.call(method, request)) == ("INVALID_ARGUMENT", "given member URLs are invalid")
    assert three.replica.changes == []


def test_no_two_members_have_one_url(three: LocalServer, client: Client) -> None:
    urls = [URL, " http://127.0.0.1:2/"]
    for method, request in (
        ("Cluster/MemberAdd", MemberAddRequest(peerURLs=urls)),
        ("Cluster/MemberUpdate", MemberUpdateRequest(ID=0xC, peerURLs=urls)),
        (REPLACE, MemberReplaceRequest(ID=0xC, peerURLs=urls)),
    ):
        assert told(client.call(method, request)) == ("FAILED_PRECONDITION", "Peer URLs already exists")
    assert three.replica.changes == []
    # Its own it may keep, and leave to who takes its place.
    assert not isinstance(
        client.call("Cluster/MemberUpdate", MemberUpdateRequest(ID=0xB, peerURLs=urls)), Failure
    )
    assert not isinstance(client.call(REPLACE, MemberReplaceRequest(ID=0xB, peerURLs=urls)), Failure)


def test_unknown_members(three: LocalServer, client: Client) -> None:
    for method, request in (
        ("Cluster/MemberRemove", MemberRemoveRequest(ID=5)),
        ("Cluster/MemberUpdate", MemberUpdateRequest(ID=5, peerURLs=[URL])),
        ("Cluster/MemberPromote", MemberPromoteRequest(ID=5)),
        (REPLACE, MemberReplaceRequest(ID=5, peerURLs=[URL])),
    ):
        assert told(client.call(method, request)) == ("NOT_FOUND", "member not found")
    assert three.replica.changes == []


def test_remove_update_promote_replace(three: LocalServer, client: Client) -> None:
    updated = client.call("Cluster/MemberUpdate", MemberUpdateRequest(ID=0xB, peerURLs=[URL]))
    assert {m.ID: list(m.peerURLs) for m in updated.members}[0xB] == [URL]
    voter = MemberPromoteRequest(ID=0xB)
    assert told(client.call("Cluster/MemberPromote", voter)) == (
        "FAILED_PRECONDITION",
        "can only promote a learner member",
    )
    promoted = client.call("Cluster/MemberPromote", MemberPromoteRequest(ID=0xD))
    assert not any(m.isLearner for m in promoted.members)
    removed = client.call("Cluster/MemberRemove", MemberRemoveRequest(ID=0xC))
    assert [m.ID for m in removed.members] == [0xB, 0xD, OWN]
    replaced = client.call(REPLACE, MemberReplaceRequest(ID=0xB, peerURLs=[URL]))
    new = replaced.member
    assert [m.ID for m in replaced.members] == sorted([new.ID, 0xD, OWN]) and list(new.peerURLs) == [URL]
    for answer in (updated, promoted, removed, replaced):
        assert (answer.header.member_id, answer.header.revision) == (OWN, 0)
    assert three.replica.changes == [
        ("update", 0xB),
        ("promote", 0xD, True),
        ("remove", 0xC, True),
        ("replace", 0xB, new.ID, True),
    ]


def test_who_takes_a_learners_place_is_a_learner(three: LocalServer, client: Client) -> None:
    assert client.call(REPLACE, MemberReplaceRequest(ID=0xD, peerURLs=[URL])).member.isLearner


def test_a_removed_members_publication_is_not_shown(three: LocalServer, client: Client) -> None:
    three.run(publish_member(three.context, "one", ["http://127.0.0.1:8"]))
    assert [m.name for m in client.call("Cluster/MemberList", MemberListRequest()).members] == [
        "",
        "",
        "",
        "one",
    ]
    client.call("Cluster/MemberRemove", MemberRemoveRequest(ID=OWN))
    assert [m.ID for m in client.call("Cluster/MemberList", MemberListRequest()).members] == [0xB, 0xC, 0xD]


REFUSALS = [
    (ChangeRefusal.UNKNOWN_MEMBER, "NOT_FOUND", "member not found"),
    (ChangeRefusal.ID_USED, "NOT_FOUND", "member not found"),
    # etcd declares this code, and sends UNKNOWN, by an oversight.
    (
        ChangeRefusal.NO_VOTERS,
        "FAILED_PRECONDITION",
        "re-configuration failed due to not enough started members",
    ),
    (ChangeRefusal.TOO_MANY_LEARNERS, "FAILED_PRECONDITION", "too many learner members in cluster"),
    (ChangeRefusal.TOO_MANY_MEMBERS, "FAILED_PRECONDITION", "too many members in cluster"),
    (
        ChangeRefusal.LEARNER_BEHIND,
        "FAILED_PRECONDITION",
        "can only promote a learner member which is in sync with leader",
    ),
    (ChangeRefusal.QUORUM_AT_RISK, "UNAVAILABLE", "unhealthy cluster"),
    (ChangeRefusal.MALFORMED, "INVALID_ARGUMENT", "given member URLs are invalid"),
    (ChangeRefusal.PENDING, "UNAVAILABLE", "request timed out"),
    (ChangeRefusal.NOT_READY, "UNAVAILABLE", "request timed out"),
    (ChangeRefusal.TRANSFERRING, "UNAVAILABLE", "request timed out"),
]


@pytest.mark.parametrize(("refusal", "code", "text"), REFUSALS, ids=lambda value: str(value)[:25])
def test_what_the_log_refuses(
    three: LocalServer, client: Client, refusal: ChangeRefusal, code: str, text: str
) -> None:
    three.replica.refusals = [ChangeRefused(refusal, 0xD)]
    assert told(client.call("Cluster/MemberPromote", MemberPromoteRequest(ID=0xD))) == (code, text)
    assert three.replica.members[0xD].is_learner


def test_members_that_never_ran_are_told_from_members_that_are_down(
    three: LocalServer, client: Client
) -> None:
    members = three.replica.members
    three.replica.members = {
        i: LocalMember(m.peer_urls, m.incarnation if i == OWN else 0) for i, m in members.items()
    }
    three.replica.refusals = [ChangeRefused(ChangeRefusal.QUORUM_AT_RISK) for _ in range(3)]
    never = "re-configuration failed due to not enough started members"
    add, remove = MemberAddRequest(peerURLs=[URL]), MemberRemoveRequest(ID=OWN)
    assert told(client.call("Cluster/MemberAdd", add))[1] == never
    assert told(client.call("Cluster/MemberRemove", remove))[1] == never
    three.replica.members = members
    assert told(client.call("Cluster/MemberAdd", add))[1] == "unhealthy cluster"


def test_what_is_like_that_already_is_done(three: LocalServer, client: Client) -> None:
    three.replica.refusals = [ChangeRefused(ChangeRefusal.NOTHING_TO_DO)]
    request = MemberUpdateRequest(ID=0xB, peerURLs=["http://127.0.0.1:2"])
    assert not isinstance(client.call("Cluster/MemberUpdate", request), Failure)


def test_an_unknown_outcome_is_told_as_that(three: LocalServer, client: Client) -> None:
    three.replica.refusals = [raft.OutcomeUnknown()]
    answer = client.call("Cluster/MemberRemove", MemberRemoveRequest(ID=0xB))
    assert answer[:2] == (grpc.StatusCode.UNAVAILABLE, "etcdserver: request timed out")
    assert answer.trailers["quorumlog-applied"] == "unknown"


def test_without_a_majority_nothing_is_asked_for(three: LocalServer, client: Client) -> None:
    three.replica.failure, three.replica.leader = raft.NoQuorum(), 0
    assert told(client.call("Cluster/MemberRemove", MemberRemoveRequest(ID=0xB)))[1] == "no leader"
    assert three.replica.changes == []


def test_two_additions_at_once_do_not_get_one_url(three: LocalServer) -> None:
    """The second is compared with what the first has made of the membership."""

    async def add_both() -> list[Any]:
        service, request = cluster.ClusterService(three.context), MemberAddRequest(peerURLs=[URL])
        three.replica.change_gate.clear()
        adding = [asyncio.ensure_future(service.member_add(request, LocalCall())) for _ in range(2)]
        await three.replica.change_asked.wait()
        for _ in range(50):  # as far as the second one gets
            await asyncio.sleep(0)
        three.replica.change_gate.set()
        return await asyncio.gather(*adding, return_exceptions=True)

    answers = three.run(add_both())
    [failure] = [answer for answer in answers if isinstance(answer, Exception)]
    assert isinstance(failure, ApiError) and failure.message == "etcdserver: Peer URLs already exists"
    assert len(three.replica.changes) == 1


async def _set(event: asyncio.Event, is_set: bool) -> None:
    if is_set:
        event.set()
    else:
        event.clear()


def test_a_second_voter_is_answered_before_it_runs(server: LocalServer, client: Client) -> None:
    """Its addition cannot be committed before, and nobody could start it without its id."""
    server.run(_set(server.replica.change_gate, False))
    answer = client.call("Cluster/MemberAdd", MemberAddRequest(peerURLs=[URL]))
    assert answer.member.ID in [m.ID for m in answer.members] and len(answer.members) == 2
    assert list(server.replica.members) == [OWN]
    server.run(_set(server.replica.change_gate, True))


def test_what_a_second_voter_is_refused_for_is_told(server: LocalServer, client: Client) -> None:
    server.replica.refusals = [ChangeRefused(ChangeRefusal.TOO_MANY_MEMBERS)]
    answer = client.call("Cluster/MemberAdd", MemberAddRequest(peerURLs=[URL]))
    assert told(answer)[1] == "too many members in cluster"


# Leadership


def test_move_leader(three: LocalServer, client: Client) -> None:
    answer = client.call("Maintenance/MoveLeader", MoveLeaderRequest(targetID=0xB))
    assert not answer.HasField("header")  # as in etcd
    assert three.replica.changes == [("transfer", 0xB)]
    client.call("Maintenance/MoveLeader", MoveLeaderRequest(targetID=OWN))
    assert len(three.replica.changes) == 1  # it leads


@pytest.mark.parametrize("target", [0, 5, 0xD])
def test_nobody_but_a_voter_can_lead(three: LocalServer, client: Client, target: int) -> None:
    answer = client.call("Maintenance/MoveLeader", MoveLeaderRequest(targetID=target))
    assert told(answer) == ("FAILED_PRECONDITION", "bad leader transferee")


def test_only_the_leader_hands_over(three: LocalServer, client: Client) -> None:
    three.replica.leader = 0xC
    answer = client.call("Maintenance/MoveLeader", MoveLeaderRequest(targetID=0xB))
    assert told(answer) == ("FAILED_PRECONDITION", "not leader")
    three.replica.leader, three.replica.refusals = OWN, [raft.NotLeader()]
    answer = client.call("Maintenance/MoveLeader", MoveLeaderRequest(targetID=0xB))
    assert told(answer) == ("FAILED_PRECONDITION", "not leader")


def test_a_transfer_that_fails(three: LocalServer, client: Client) -> None:
    three.replica.refusals = [raft.TransferFailed("too slow")]
    answer = client.call("Maintenance/MoveLeader", MoveLeaderRequest(targetID=0xB))
    assert told(answer) == ("UNKNOWN", "request timed out, leader transfer took too long")
    assert answer.trailers["quorumlog-retryable"] == "true"


# A learner


def test_a_learner_serves_next_to_nothing(three: LocalServer, client: Client) -> None:
    client.call("KV/Put", PutRequest(key=b"k", value=b"v"))
    three.replica.is_learner = True
    for method, request in (
        ("KV/Range", RangeRequest(key=b"k")),
        ("KV/Put", PutRequest(key=b"k")),
        ("KV/DeleteRange", DeleteRangeRequest(key=b"k")),
        ("KV/Txn", TxnRequest()),
        ("KV/Compact", CompactionRequest(revision=1)),
        ("Cluster/MemberList", MemberListRequest()),
        ("Cluster/MemberAdd", MemberAddRequest(peerURLs=[URL])),
        ("Cluster/MemberRemove", MemberRemoveRequest(ID=0xB)),
        ("Cluster/MemberUpdate", MemberUpdateRequest(ID=0xB, peerURLs=[URL])),
        ("Cluster/MemberPromote", MemberPromoteRequest(ID=0xD)),
        (REPLACE, MemberReplaceRequest(ID=0xB, peerURLs=[URL])),
        ("Maintenance/MoveLeader", MoveLeaderRequest(targetID=0xB)),
        ("Maintenance/Alarm", AlarmRequest()),
        ("Maintenance/Hash", HashRequest()),
        ("Maintenance/HashKV", HashKVRequest()),
        ("Maintenance/Defragment", DefragmentRequest()),
        ("/quorumlogpb.Ack/Set", ack_pb2.AckSetRequest()),
        ("/quorumlogpb.Ack/SetLabels", ack_pb2.AckSetLabelsRequest()),
        ("/quorumlogpb.Ack/ConfirmWrite", ack_pb2.ConfirmWriteRequest(term=1, index=1)),
    ):
        answer = client.call(method, request)
        assert told(answer) == ("UNAVAILABLE", "rpc not supported for learner"), method
    assert not isinstance(client.call("/quorumlogpb.Ack/Get", ack_pb2.AckGetRequest()), Failure)
    [kv] = client.call("KV/Range", RangeRequest(key=b"k", serializable=True)).kvs
    assert kv.value == b"v"
    assert client.call("Maintenance/Status", StatusRequest()).isLearner
    snapshot = client.channel.unary_stream("/quorumlogpb.Maintenance/Snapshot")
    replies = [
        SnapshotResponse.FromString(r) for r in snapshot(SnapshotRequest().SerializeToString(), timeout=20)
    ]
    assert replies


def test_every_method_is_tried_as_a_learner(three: LocalServer) -> None:
    """A new method must say whether a learner serves it: one that forgets `admit` is found here."""
    names = {path.rpartition("/")[2] for path in build_methods(three.context)}
    assert names == {
        *("Range", "Put", "DeleteRange", "Txn", "Compact", "Status", "Alarm", "Hash", "HashKV", "Defragment"),
        *("MemberList", "MemberAdd", "MemberRemove", "MemberUpdate", "MemberPromote", "MemberReplace"),
        *("MoveLeader", "Snapshot", "Get", "Set", "SetLabels", "ConfirmWrite"),
    }

"""Codes and texts that clients compare: every one of etcd's table, and what the log's errors become."""

from __future__ import annotations

import pytest

import raft
from kvstore import errors
from kvstore.errors import Code, Fault, from_raft

# The table of etcd 3.5 by code, as clients have it.
TABLE = {
    Code.INVALID_ARGUMENT: """key is not provided|key not found|value is provided|lease is provided
        |too many operations in txn request|duplicate key given in txn request|invalid client api version
        |invalid sort option|given member URLs are invalid|request is too large|user name is empty
        |role name is empty|authentication failed, invalid user ID or password|permission not given
        |invalid auth management|revision of auth store is old|wrong downgrade target version format
        |invalid downgrade target version""",
    Code.NOT_FOUND: "requested lease not found|member not found",
    Code.PERMISSION_DENIED: "permission denied",
    Code.RESOURCE_EXHAUSTED: "mvcc: database space exceeded|too many requests",
    Code.FAILED_PRECONDITION: """lease already exists|member ID already exist|Peer URLs already exists
        |re-configuration failed due to not enough started members|can only promote a learner member
        |can only promote a learner member which is in sync with leader|too many learner members in cluster
        |cluster ID mismatch|root user does not exist|root user does not have root role
        |user name already exists|user name not found|role name already exists|role name not found
        |role is not granted to the user|permission is not granted to the role
        |authentication is not enabled|not leader|bad leader transferee
        |cluster has a downgrade job in progress|no inflight downgrade job""",
    Code.OUT_OF_RANGE: """mvcc: required revision has been compacted
        |mvcc: required revision is a future revision|too large lease TTL""",
    Code.UNAVAILABLE: """no leader|leader changed|server stopped|request timed out
        |request timed out, possibly due to previous leader failure
        |request timed out, possibly due to connection lost
        |request timed out, waiting for the applied index took too long|unhealthy cluster
        |not capable|rpc not supported for learner|cluster version not found during downgrade""",
    Code.DATA_LOSS: "corrupt cluster",
    Code.UNAUTHENTICATED: "invalid auth token",
}


@pytest.mark.parametrize("code", TABLE)
def test_every_text_of_the_table(code: Code) -> None:
    known = {fault.message: fault.code for fault in vars(errors).values() if isinstance(fault, Fault)}
    for text in TABLE[code].split("|"):
        assert known[f"etcdserver: {text.strip()}"] == code


RAFT = [
    (raft.NotLeader(), False, "no leader", Code.UNAVAILABLE, "no", True),
    (raft.NotLeader(5), True, "request timed out", Code.UNAVAILABLE, "no", True),
    (raft.NoQuorum(), False, "no leader", Code.UNAVAILABLE, "no", True),
    (raft.NoQuorum(), True, "request timed out", Code.UNAVAILABLE, "no", True),
    # "no leader" would say that nothing was written, and nobody knows that.
    (raft.OutcomeUnknown(), False, "request timed out", Code.UNAVAILABLE, "unknown", True),
    (raft.Overloaded(), True, "too many requests", Code.RESOURCE_EXHAUSTED, "no", True),
    (raft.ProposalTooLarge(), True, "request is too large", Code.INVALID_ARGUMENT, "no", False),
    (raft.Stopping(), True, "server stopped", Code.UNAVAILABLE, "no", True),
    (raft.Transferring(), True, "request timed out", Code.UNAVAILABLE, "no", True),
    (raft.StorageError(), True, "server stopped", Code.UNAVAILABLE, "unknown", True),
]


@pytest.mark.parametrize("case", RAFT, ids=lambda case: f"{type(case[0]).__name__}-{case[1]}")
def test_errors_of_the_log(case: tuple[raft.RaftError, bool, str, Code, str, bool]) -> None:
    error, leader_known, text, code, applied, retryable = case
    told = from_raft(error, leader_known=leader_known)
    assert (told.message, told.code) == (f"etcdserver: {text}", code)
    assert (told.applied, told.retryable) == (applied, retryable)

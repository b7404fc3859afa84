"""Which error a gRPC status means: above all, what must stay "unknown"."""

from __future__ import annotations

import grpc
import pytest

from kvstore.client import AppliedWithFault, ClientError, OutcomeUnknown, RequestRefused, Unavailable
from kvstore.client.errors import classify

REFUSALS = ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "OUT_OF_RANGE", "UNIMPLEMENTED")
CODES = tuple(code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK)


def of(code: str, text: str = "x", *, is_write: bool = True, trailer: str | None = None) -> ClientError:
    return classify(code, text, endpoint="e", is_write=is_write, applied_trailer=trailer)


@pytest.mark.parametrize("code", CODES)
def test_without_a_word_of_the_server_only_a_refusal_is_certain(code: str) -> None:
    certain = (*REFUSALS, "ALREADY_EXISTS", "PERMISSION_DENIED", "UNAUTHENTICATED")
    error = of(code)
    assert isinstance(error, RequestRefused if code in certain else OutcomeUnknown)
    assert error.applied == ("no" if code in certain else "unknown")
    assert not error.retryable


@pytest.mark.parametrize("code", CODES)
def test_the_trailer_is_believed(code: str) -> None:
    assert of(code, trailer="yes").applied == "yes"
    assert of(code, trailer="unknown").applied == "unknown"
    assert of(code, trailer="no").applied == "no"
    assert of(code, trailer="a word of the future").applied == "unknown"


def test_not_applied_is_repeated_only_where_it_may_help() -> None:
    assert isinstance(of("UNAVAILABLE", trailer="no"), Unavailable)
    assert isinstance(of("RESOURCE_EXHAUSTED", "etcdserver: too many requests", trailer="no"), Unavailable)
    assert isinstance(of("INVALID_ARGUMENT", trailer="no"), RequestRefused)


def test_etcd_answers_given_before_the_proposal_are_certain() -> None:
    for text in ("etcdserver: no leader", "etcdserver: too many requests"):
        for code in ("UNAVAILABLE", "UNKNOWN", "RESOURCE_EXHAUSTED"):
            assert isinstance(of(code, text), Unavailable)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("UNAVAILABLE", "etcdserver: request timed out"),
        ("UNAVAILABLE", "etcdserver: leader changed"),
        ("UNAVAILABLE", "etcdserver: server stopped"),
        # etcd gives this also when the quota trips while the put is being applied.
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded"),
        ("CANCELLED", "context canceled"),
    ],
)
def test_etcd_answers_that_leave_it_open(code: str, text: str) -> None:
    assert isinstance(of(code, text), OutcomeUnknown)


def test_a_request_too_large_for_grpc_was_never_read() -> None:
    for text in ("grpc: received message larger than max (9 vs. 8)", "Received message larger than max"):
        assert isinstance(of("RESOURCE_EXHAUSTED", text), RequestRefused)


@pytest.mark.parametrize("code", CODES)
def test_a_read_is_never_unknown(code: str) -> None:
    assert of(code, is_write=False).applied == "no"


def test_reads_are_repeated_when_nobody_could_serve_them() -> None:
    for code in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "CANCELLED"):
        assert of(code, is_write=False).retryable
    for code in (*REFUSALS, "DATA_LOSS"):
        assert not of(code, is_write=False).retryable


def test_an_applied_write_is_not_to_be_repeated() -> None:
    error = of("ABORTED", "committed, policy unmet", trailer="yes")
    assert isinstance(error, AppliedWithFault)
    assert not error.retryable

"""Right histories pass, and each way of being wrong that a checker claims to find is found.

The wrong ones are made of right ones by one change, of the kind that a broken store would make.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.checking.acknowledged import State
from kvstore.checking.equality import NodeHash
from kvstore.checking.history import (
    Delete,
    History,
    Kv,
    Operation,
    Put,
    PutResult,
    Range,
    RangeResult,
    Txn,
    TxnResult,
    is_mutation,
    kvs_of,
)
from kvstore.checking.logs import LogEntry, NodeLog, is_quorum
from kvstore.checking.verdict import Evidence, Report, check_history
from tests.checking.histories import Run, Scribe, random_run

LENGTH = 40


def evidence_of(run: Run) -> Evidence:
    hashes = [NodeHash(name, len(run.states), 0, 7) for name in ("n1", "n2")]
    states, logs = [run.state("n1"), run.state("n2")], [run.log("n1"), run.log("n2")]
    return Evidence(states, hashes, logs, has_all_voters=True)


def kinds(report: Report) -> set[str]:
    return {violation.kind for violation in report.violations}


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.15]))
def test_right_histories_pass_every_check(seed: int, lost_share: float) -> None:
    run = random_run(random.Random(seed), LENGTH, lost_share)
    for evidence in (None, evidence_of(run)):
        report = check_history(run.history, evidence, with_wgl=True)
        assert report.status == "correct", report.violations
        if evidence is not None:
            assert len(report.checks) == 6
            assert report.resolution is not None
            applied = {request for request in run.applied if not isinstance(request, Delete)}
            for one in run.operations:
                if one.outcome == "info" and not isinstance(one.request, Delete):
                    found = "once" if one.request in applied else "absent"
                    assert report.resolution.found[one.id] == found


# Each changes a run in place and returns the kinds of which one must be told, or None if this run has nothing
# to be spoilt so.
Spoil = Callable[[Run, random.Random], set[str] | None]


def answered(run: Run, kind: type, *, mutates: bool | None = None) -> list[Operation]:
    found = [one for one in run.operations[:-1] if one.outcome == "ok" and isinstance(one.request, kind)]
    if mutates is None:
        return found
    return [one for one in found if one.result and is_mutation(one.request, one.result) == mutates]


def writes(run: Run) -> list[Operation]:
    return answered(run, Put | Delete | Txn, mutates=True)


def rows(state: dict[bytes, Kv]) -> RangeResult:
    return RangeResult(tuple(state[key] for key in sorted(state)))


def stale_read(run: Run, rng: random.Random) -> set[str] | None:
    last = run.operations[-1]
    revision = rng.randrange(1, len(run.states))
    last.revision, last.result = revision, rows(run.states[revision - 1])
    return {"stale-read"}


def read_of_the_past_under_a_new_revision(run: Run, rng: random.Random) -> set[str] | None:
    last = run.operations[-1]
    past = [state for state in run.states if state != run.states[-1]]
    last.result = rows(rng.choice(past))
    return {"response", "lost-write"}


def phantom(run: Run, rng: random.Random) -> set[str] | None:
    shown = [one for one in answered(run, Range) if kvs_of(one.result)]
    if not shown:
        return None
    read = rng.choice(shown)
    (kv,) = kvs_of(read.result)
    read.result = RangeResult((kv._replace(value=b"nobody's"),))
    return {"phantom"}


def wrong_bookkeeping(run: Run, rng: random.Random) -> set[str] | None:
    shown = [one for one in answered(run, Range) if kvs_of(one.result)]
    if not shown:
        return None
    read, field = rng.choice(shown), rng.choice(("version", "create_revision", "mod_revision"))
    (kv,) = kvs_of(read.result)
    read.result = RangeResult((kv._replace(**{field: getattr(kv, field) + 1}),))
    return {"response", "lost-write", "doubled-write"}


def wrong_prev_kv(run: Run, rng: random.Random) -> set[str] | None:
    found = [one for one in answered(run, Put) if one.result and one.result != PutResult()]
    if not found:
        return None
    write = rng.choice(found)
    (kv,) = kvs_of(write.result)
    write.result = rng.choice((PutResult(), PutResult(kv._replace(version=kv.version + 1))))
    return {"response", "lost-write"}


def revision_twice(run: Run, rng: random.Random) -> set[str] | None:
    one, other = rng.sample(writes(run), 2)
    one.revision = other.revision
    return {"duplicate-revision"}


def revision_back_in_time(run: Run, rng: random.Random) -> set[str] | None:
    found = writes(run)
    pairs = [(a, b) for a in found for b in found if a.return_ns and a.return_ns < b.call_ns]
    if not pairs:
        return None
    one, other = rng.choice(pairs)
    one.revision, other.revision = other.revision, one.revision
    return {"real-time", "stale-read"}


def miscounted_delete(run: Run, rng: random.Random) -> set[str] | None:
    found = answered(run, Delete, mutates=True)
    if not found:
        return None
    write = rng.choice(found)
    write.result = replace(write.result, deleted=2)  # type: ignore[type-var]
    return {"response"}


def wrong_branch(run: Run, rng: random.Random) -> set[str] | None:
    """The store says it took the other branch than it did."""
    found = [one for one in answered(run, Txn, mutates=True) if one.request.failure]  # type: ignore[union-attr]
    if not found:
        return None
    rng.choice(found).result = TxnResult(False, (RangeResult(()),))
    return {"response", "gap", "wrong-branch", "stale-read", "doubled-write"}


def half_a_txn(run: Run, rng: random.Random) -> set[str] | None:
    """All members lost one of two puts, and agree on that."""
    for one in reversed(writes(run)):
        if isinstance(one.request, Txn) and len(one.request.success) == 2:
            state = run.states[-1]
            halves = [key for key, kv in state.items() if kv.mod_revision == one.revision]
            if len(halves) == 2:
                del state[rng.choice(halves)]
                run.operations.pop()
                return {"lost-write"}
    return None


def lost_write(run: Run, rng: random.Random) -> set[str] | None:
    """All members lost the newest value of a key, and agree on that; no client reads after."""
    acknowledged = {one.revision for one in writes(run)}
    found = [key for key, kv in run.states[-1].items() if kv.mod_revision in acknowledged]
    unknown = {
        one.request.key for one in run.operations if one.outcome == "info" and isinstance(one.request, Delete)
    }
    found = [key for key in found if key not in unknown]
    if not found:
        return None
    del run.states[-1][rng.choice(found)]
    run.operations.pop()
    return {"lost-write"}


def store_went_back(run: Run, rng: random.Random) -> set[str] | None:
    del run.states[rng.randrange(1, len(run.states)) :]
    run.operations.pop()
    last = max(one.revision for one in run.operations)
    return {"lost-write"} if len(run.states) < last else None


def read_of_a_refused_write(run: Run, rng: random.Random) -> set[str] | None:
    shown = {kv.value for one in run.operations if one.outcome == "ok" for kv in kvs_of(one.result)}
    found = [one for one in answered(run, Put) if one.request.value in shown]  # type: ignore[union-attr]
    if not found:
        return None
    write = rng.choice(found)
    write.outcome, write.result, write.revision = "fail", None, 0
    return {"refused-but-applied", "gap"}


def acknowledged_and_in_no_log(run: Run, rng: random.Random) -> set[str] | None:
    write = rng.choice(answered(run, Put | Txn, mutates=True))
    run.applied.remove(write.request)
    return {"lost-write"}


def doubled_in_the_log(run: Run, rng: random.Random) -> set[str] | None:
    run.applied.append(rng.choice(answered(run, Put)).request)
    return {"doubled-write"}


def doubled_in_the_store(run: Run, rng: random.Random) -> set[str] | None:
    """An acknowledged put was done again, later, behind everybody's back."""
    write = rng.choice(answered(run, Put))
    assert isinstance(write.request, Put)
    state = dict(run.states[-1])
    old = state.get(write.request.key)
    revision = len(run.states) + 1
    state[write.request.key] = Kv(write.request.key, write.request.value, revision, revision, 1)
    if old is not None:
        state[old.key] = state[old.key]._replace(create_revision=old.create_revision, version=old.version + 1)
    run.states.append(state)
    return {"doubled-write", "gap"}


SPOILS: Sequence[Spoil] = [
    stale_read,
    read_of_the_past_under_a_new_revision,
    phantom,
    wrong_bookkeeping,
    wrong_prev_kv,
    revision_twice,
    revision_back_in_time,
    miscounted_delete,
    wrong_branch,
    half_a_txn,
    lost_write,
    store_went_back,
    read_of_a_refused_write,
    acknowledged_and_in_no_log,
    doubled_in_the_log,
    doubled_in_the_store,
]
WITH_LOGS = {acknowledged_and_in_no_log, doubled_in_the_log}


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda spoil: spoil.__name__)
def test_one_change_is_found(spoil: Spoil) -> None:
    """In a run of which all is known, and in one of which the logs must tell some outcomes: without them, a
    write of unknown outcome may explain by chance what was changed."""
    count = 0
    for seed in range(60):
        rng = random.Random(seed)
        run = random_run(rng, LENGTH, lost_share=0.1 if seed % 2 else 0.0)
        wanted = spoil(run, rng)
        if wanted is None:
            continue
        count += 1
        evidence = evidence_of(run)
        if not seed % 2 and spoil not in WITH_LOGS:
            evidence = Evidence(evidence.states)
        report = check_history(run.history, evidence)
        assert report.status == "wrong", seed
        assert kinds(report) & wanted, (seed, report.violations)
    assert count >= 20


def test_logs_that_contradict_what_was_acknowledged_are_no_witness_for_gaps() -> None:
    """All that comes behind the entry that they lack would have another revision in a replay of them, and
    calls that did nothing wrong would be accused."""
    for seed in range(1, 41, 2):
        rng = random.Random(seed)
        run = random_run(rng, LENGTH, lost_share=0.15)
        acknowledged_and_in_no_log(run, rng)
        assert kinds(check_history(run.history, evidence_of(run))) == {"lost-write"}


# What only evidence beside the history shows


def small_run() -> Run:
    return random_run(random.Random(7), LENGTH, lost_share=0.0)


def test_members_that_differ_are_named_with_the_key() -> None:
    run = small_run()
    state = run.state("n2")
    key = next(iter(state.kvs))
    evidence = Evidence(
        [
            run.state("n1"),
            State("n2", state.revision, {**state.kvs, key: state.kvs[key]._replace(version=99)}),
        ]
    )
    report = check_history(run.history, evidence)
    (violation,) = [one for one in report.violations if one.kind == "nodes-differ"]
    assert "n1 and n2 differ" in violation.text
    assert f'"{key.decode()}"' in violation.text


def test_hashes_that_differ_and_hashes_that_cannot_be_compared() -> None:
    run = small_run()
    hashes = [NodeHash("n1", 9, 0, 1), NodeHash("n2", 9, 0, 2)]
    assert kinds(check_history(run.history, Evidence(hashes=hashes))) == {"nodes-differ"}
    for other in (NodeHash("n2", 8, 0, 1), NodeHash("n2", 9, 3, 1)):
        report = check_history(run.history, Evidence(hashes=[hashes[0], other]))
        assert report.status == "not decided"
    alone = check_history(run.history, Evidence(hashes=hashes[:1]))
    assert alone.status == "correct" and "equal hashes" not in {check.name for check in alone.checks}
    equal = [NodeHash(name, 9, 0, 1) for name in ("n1", "n2")]
    assert check_history(run.history, Evidence(hashes=equal)).status == "correct"


def test_logs_that_are_committed_and_differ() -> None:
    run = small_run()
    log = run.log("n2")
    entries = [*log.entries[:3], LogEntry(4, 1, Put(b"z", b"z"), True), *log.entries[4:]]
    evidence = Evidence(logs=[run.log("n1"), replace(log, entries=entries)])
    assert "logs-differ" in kinds(check_history(run.history, evidence))


def test_what_is_only_in_an_uncommitted_tail_stays_unknown() -> None:
    """It may yet be committed, or replaced; a tail that another log has replaced is believed by nobody."""
    run = small_run()
    extra = Operation(900, 900, "n1", Put(b"z", b"z"), 5)
    run.operations.append(extra)
    log = run.log("n1")
    end = len(log.entries)
    tail = replace(run.log("n2"), entries=[*log.entries, LogEntry(end + 1, 1, extra.request, True)])
    logs = [log, tail]
    for has_all_voters in (False, True):
        report = check_history(run.history, Evidence(logs=logs, has_all_voters=has_all_voters))
        assert report.resolution is not None
        assert report.resolution.found[extra.id] == "unresolved"
    replaced = replace(log, commit_index=end + 1, entries=[*log.entries, LogEntry(end + 1, 2, None, False)])
    report = check_history(run.history, Evidence(logs=[replaced, tail], has_all_voters=True))
    assert report.resolution is not None
    assert report.resolution.found[extra.id] == "absent"
    both = [tail, replace(tail, name="n1")]
    report = check_history(run.history, Evidence(logs=both, has_all_voters=True))
    assert report.resolution is not None
    assert report.resolution.found[extra.id] == "once"


def test_a_log_that_begins_late_does_not_prove_that_something_never_was() -> None:
    run = small_run()
    extra = Operation(900, 900, "n1", Put(b"z", b"z"), 5)
    run.operations.append(extra)
    log = run.log()
    late = replace(log, entries=log.entries[3:])
    report = check_history(run.history, Evidence(logs=[late], has_all_voters=True))
    assert report.status == "correct"
    assert report.resolution is not None
    assert report.resolution.found[extra.id] == "unresolved"
    logs = [late, replace(log, name="n2", commit_index=5)]
    report = check_history(run.history, Evidence(logs=logs, has_all_voters=True))
    assert report.resolution is not None
    assert report.resolution.found[extra.id] == "absent"


def test_a_member_that_is_behind_accuses_nobody() -> None:
    """What it does not have yet was not lost, and may be in the log of another."""
    run = small_run()
    extra = Operation(900, 900, "n1", Put(b"z", b"z"), 5)
    run.operations.append(extra)
    log = run.log()
    behind = replace(log, commit_index=5, entries=log.entries[:7])
    report = check_history(run.history, Evidence(logs=[behind]))
    assert (report.status, report.violations) == ("not decided", [])
    assert report.resolution is not None
    assert report.resolution.found[extra.id] == "unresolved"
    report = check_history(run.history, Evidence(logs=[behind], has_all_voters=True))
    assert kinds(report) == {"lost-write"}


def test_an_acknowledged_write_that_is_in_no_log() -> None:
    """Some of the logs do not have all that was acknowledged. Those of a majority do."""
    run = small_run()
    lost = Operation(900, 900, "n1", Put(b"z", b"z"), 5, 6, "ok", len(run.states) + 1, PutResult())
    run.operations.append(lost)
    one, two = run.log("n1"), run.log("n2")
    report = check_history(run.history, Evidence(logs=[one]))
    logs = report.checks[0]
    assert (logs.name, logs.status) == ("logs", "not decided")
    assert "1 acknowledged writes are in none of them" in logs.text
    report = check_history(run.history, Evidence(logs=[one, two], has_quorum=True))
    assert report.checks[0].status == "wrong"
    assert [found.operations for found in report.checks[0].violations] == [(lost,)]
    late = replace(one, entries=one.entries[3:])
    assert is_quorum([one, two], [1, 2], [frozenset({1, 2, 3})])
    assert not is_quorum([one, late], [1, 2], [frozenset({1, 2, 3})])  # what was compacted may have it
    assert not is_quorum([one, two], [1, 2], [frozenset({1, 2, 3}), frozenset({1, 2, 3, 4})])
    assert not is_quorum([one, two], [1, 2], [])
    assert not is_quorum([one, one], [1, 1], [frozenset({1, 2, 3})])


def test_logs_of_another_cluster_say_nothing() -> None:
    run = small_run()
    strange = NodeLog("n1", 3, [LogEntry(i, 1, Put(b"z", b"%d" % i), True) for i in (1, 2, 3)])
    report = check_history(run.history, Evidence(logs=[strange]))
    assert report.checks[0].status == "not decided"
    late = replace(strange, entries=strange.entries[1:])
    assert check_history(run.history, Evidence(logs=[late], has_all_voters=True)).status == "not decided"


def test_where_nothing_was_acknowledged_there_is_nothing_to_be_right() -> None:
    scribe = Scribe()
    scribe.info(1, Put(b"a", b"1"))
    for history in (History(), History(scribe.operations)):
        report = check_history(history)
        assert report.status == "not decided"
        assert "no call was acknowledged" in report.checks[0].text


def test_a_store_that_was_not_empty_is_told_of() -> None:
    scribe = Scribe()
    scribe.ok(0, 10, Put(b"a", b"1"), 17, PutResult())
    report = check_history(History(scribe.operations))
    assert kinds(report) == {"gap"} and "Was the store empty" in report.hint
    assert check_history(History(scribe.operations, first_revision=16)).hint == ""
    scribe.ok(20, 30, Range(b"b"), 17, RangeResult((Kv(b"b", b"0", 3, 3, 1),)))
    report = check_history(History(scribe.operations, first_revision=16))
    assert kinds(report) == {"phantom"} and "Was the store empty" in report.hint


def test_a_refused_write_that_is_in_the_log() -> None:
    run = small_run()
    refused = Operation(900, 900, "n1", Put(b"z", b"z"), 5, 6, "fail", error="UNAVAILABLE")
    run.operations.append(refused)
    run.applied.append(refused.request)
    report = check_history(run.history, Evidence(logs=[run.log()]))
    assert kinds(report) == {"refused-but-applied"}


def test_a_search_without_end_is_not_decided_and_no_pass() -> None:
    run = random_run(random.Random(3), LENGTH, lost_share=0.3)
    report = check_history(run.history, with_wgl=True, steps_max=3)
    assert report.status == "not decided"
    assert [check.status for check in report.checks] == ["correct", "correct", "not decided"]
    run.operations[-1].result = RangeResult(())
    assert check_history(run.history, with_wgl=True, steps_max=3).status == "wrong"


def test_two_calls_of_one_client_at_once_are_no_history() -> None:
    run = small_run()
    for one in run.operations[:2]:
        one.process, one.call_ns, one.return_ns = 1, 0, 10
    with pytest.raises(ValueError, match="process 1 called again before its call 0 had returned"):
        check_history(run.history)

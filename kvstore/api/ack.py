"""quorumlogpb.Ack: the ack policy of the cluster, the labels of members, and what became of writes that the
leader alone had acknowledged.

A change is an entry of the log, as those of the members are: whichever member is asked proposes it. Whether
the members there are could meet a policy only the leader decides; what there is, is told here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import fields
from functools import partial
from typing import Any, Final, TypeVar

from kvstore.api.ack_metadata import check_no_wish
from kvstore.api.call import ApiContext, Call, Method
from kvstore.errors import ACKS_CHANGED, MEMBER_NOT_FOUND, ApiError, Code, from_raft
from kvstore.pb import ack_pb2 as pb
from raft import (
    LABELS_MAX,
    WAIT_BUCKETS_MS,
    AckPolicy,
    AckRequirement,
    AckSettings,
    AckStage,
    AckState,
    AckStats,
    AckView,
    ChangeRefusal,
    ChangeRefused,
    LabelRule,
    OnTimeout,
    RaftError,
    Stopping,
    WaitPoint,
    WriteFate,
    check_label,
    impossible,
    judge,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS_MAX: Final = 5
"""To change a part of the policy while others change it, too."""
PUBLISH_PAUSE_S: Final = 0.5
"""Between two attempts to have the own labels committed."""
REFUSED_PAUSE_S: Final = 10.0
"""The same while the policy needs the labels that were there before: only a person can end that."""

_STAGES: Final[dict[int, AckStage]] = {pb.PERSISTED: AckStage.PERSISTED, pb.APPLIED: AckStage.APPLIED}
_WAIT_POINTS: Final[dict[int, WaitPoint]] = {
    pb.AFTER_APPLY: WaitPoint.AFTER_APPLY,
    pb.BEFORE_APPLY: WaitPoint.BEFORE_APPLY,
}
_ON_TIMEOUT: Final[dict[int, OnTimeout]] = {pb.FAIL: OnTimeout.FAIL, pb.DEGRADE: OnTimeout.DEGRADE}
_STATES: Final = {
    AckState.SYNC: pb.SYNC,
    AckState.DEGRADED: pb.DEGRADED,
    AckState.RECOVERING: pb.RECOVERING,
}
_FATES: Final = {
    WriteFate.COMMITTED: pb.ConfirmWriteResponse.COMMITTED,
    WriteFate.LOST: pb.ConfirmWriteResponse.LOST,
    WriteFate.PENDING: pb.ConfirmWriteResponse.PENDING,
    WriteFate.UNKNOWN: pb.ConfirmWriteResponse.UNKNOWN,
}


class AckService:
    def __init__(self, context: ApiContext) -> None:
        self._context = context

    def methods(self) -> list[Method]:
        path = "/quorumlogpb.Ack/"
        return [
            Method(path + "Get", pb.AckGetRequest, self.get),
            Method(path + "Set", pb.AckSetRequest, self.set),
            Method(path + "SetLabels", pb.AckSetLabelsRequest, self.set_labels),
            Method(path + "ConfirmWrite", pb.ConfirmWriteRequest, self.confirm_write),
        ]

    async def get(self, request: pb.AckGetRequest, call: Call) -> pb.AckGetResponse:
        """About what this member knows, without the others: so it answers without a quorum too."""
        context = self._context
        view, stats, status = context.replica.acks, context.replica.ack_stats, context.replica.status()
        response = pb.AckGetResponse(
            settings=_settings_message(view.settings.policy),
            state=_state(view.settings),
            leader=view.leader if view.members else 0,
            members=self._members(view, stats),
            commit_index=status.commit_index,
            counters=_counters(stats),
        )
        if view.members:
            judged = judge(view.settings.policy.requirement, view, status.commit_index)
            response.is_met, response.acked = judged.is_met, judged.acked
        context.fill_header(response.header)
        return response

    async def set(self, request: pb.AckSetRequest, call: Call) -> pb.AckSetResponse:
        """Change what is given, and leave the rest as it is, also if somebody else changes that at once."""
        context = self._context
        context.admit(call)
        check_no_wish(call)
        replica = context.replica
        for attempt in range(ATTEMPTS_MAX):
            await context.read_barrier(call)
            before = replica.acks.settings.policy
            try:
                policy = _changed(before, request.settings)
            except ValueError as error:
                raise _invalid(error) from None
            change = partial(replica.set_ack_policy, policy, before=before)
            try:
                await self._make(call, policy.requirement, change)
            except ApiError as error:
                if error.message != ACKS_CHANGED.message or attempt == ATTEMPTS_MAX - 1:
                    raise
            else:
                break
        settings = replica.acks.settings
        response = pb.AckSetResponse(settings=_settings_message(settings.policy), state=_state(settings))
        context.fill_header(response.header)
        return response

    async def set_labels(self, request: pb.AckSetLabelsRequest, call: Call) -> pb.AckSetLabelsResponse:
        context = self._context
        context.admit(call)
        check_no_wish(call)
        try:
            labels = checked_labels((label.name, label.value) for label in request.labels)
        except ValueError as error:
            raise _invalid(error) from None
        await context.read_barrier(call)
        replica = context.replica
        if request.ID not in replica.members:
            raise MEMBER_NOT_FOUND.error()
        await self._make(call, None, partial(replica.set_labels, request.ID, dict(labels)))
        response = pb.AckSetLabelsResponse()
        context.fill_header(response.header)
        return response

    async def confirm_write(self, request: pb.ConfirmWriteRequest, call: Call) -> pb.ConfirmWriteResponse:
        context = self._context
        context.admit(call)
        if not request.term or not request.index:
            raise _invalid(ValueError("term and index are those of the write's trailers"))
        try:
            fate = await context.replica.confirm_write(
                request.term, request.index, timeout_s=context.timeout_s(call)
            )
        except RaftError as error:
            raise from_raft(error, leader_known=bool(context.replica.leader)) from error
        response = pb.ConfirmWriteResponse(fate=_FATES[fate])
        context.fill_header(response.header)
        return response

    async def _make(
        self, call: Call, wanted: AckRequirement | None, change: Callable[..., Awaitable[None]]
    ) -> None:
        """Make a change. `wanted`: what is to be required by it, if that is what changes. Raises ApiError."""
        context = self._context
        try:
            await change(timeout_s=context.timeout_s(call))
        except ChangeRefused as error:
            if error.refusal is ChangeRefusal.NOTHING_TO_DO:
                return
            membership = context.replica.acks.membership
            lacking = impossible(wanted, membership) if wanted is not None else ()
            if error.refusal is ChangeRefusal.ACKS_IMPOSSIBLE and lacking:
                text = f"etcdserver: no such ack policy with these members: {'; '.join(lacking)}"
                there = sorted({f"{name}={value}" for _, pairs in membership.labels for name, value in pairs})
                if wanted is not None and wanted.rules:
                    text += f" (their labels are {', '.join(there) or 'none'})"
                raise ApiError(Code.FAILED_PRECONDITION, text) from error
            raise from_raft(error, leader_known=bool(context.replica.leader)) from error
        except RaftError as error:
            raise from_raft(error, leader_known=bool(context.replica.leader)) from error

    def _members(self, view: AckView, stats: AckStats) -> list[pb.AckMember]:
        published, labels = self._context.store.published_members(), dict(view.membership.labels)
        listed = []
        for node_id in sorted(view.membership.members):
            member = pb.AckMember(
                ID=node_id,
                name=published[node_id].name if node_id in published else "",
                is_learner=not view.membership.is_voter(node_id),
                is_leader=bool(view.members) and node_id == view.leader,
                labels=[pb.AckLabel(name=name, value=value) for name, value in labels.get(node_id, ())],
            )
            acks, lag = view.members.get(node_id), stats.members.get(node_id)
            if acks is not None:
                member.is_known, member.is_heard = True, acks.is_heard
                member.persisted_index, member.applied_index = acks.persisted_index, acks.applied_index
            if lag is not None:
                member.match_lag_entries = lag.match_lag_entries
                if lag.match_lag_bytes is not None:
                    member.match_lag_bytes = lag.match_lag_bytes
                if lag.last_ack_age_ms is not None:
                    member.last_ack_age_ms = lag.last_ack_age_ms
            listed.append(member)
        return listed


def checked_labels(labels: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return labels in the order of their names. Raises ValueError."""
    pairs = tuple(sorted(labels))
    for name, value in pairs:
        check_label(name, value)
    if len(pairs) > LABELS_MAX or len(dict(pairs)) < len(pairs):
        raise ValueError(f"a member has {LABELS_MAX} labels at most, each once")
    return pairs


async def publish_labels(context: ApiContext, labels: tuple[tuple[str, str], ...]) -> None:
    """Have the labels of this member committed, in the place of those it had. Tries until it is done.

    Run it as a task beside the server; it ends by itself, or by Stopping.
    """
    replica, timeout_s = context.replica, context.settings.request_timeout_s
    while True:
        pause_s = PUBLISH_PAUSE_S
        try:
            # The own log may be of before others changed the labels, while this member was down.
            await replica.read_barrier(timeout_s=timeout_s)
            own = replica.members.get(replica.node_id)
            if own is not None and own.labels == labels:
                return
            await replica.set_labels(replica.node_id, dict(labels), timeout_s=timeout_s)
            return
        except Stopping:
            raise
        except ChangeRefused as error:
            if error.refusal is ChangeRefusal.NOTHING_TO_DO:
                return
            if error.refusal is ChangeRefusal.ACKS_IMPOSSIBLE:
                pause_s = REFUSED_PAUSE_S
                logger.warning("the ack policy needs the labels that this member had: change it first")
        except RaftError as error:
            logger.info("cannot publish the labels of this member yet: %s", error)
        await asyncio.sleep(pause_s)


def _changed(policy: AckPolicy, given: pb.AckSettings) -> AckPolicy:
    """Return `policy` with what is given. Raises ValueError."""
    before = policy.requirement
    has = given.HasField
    return AckPolicy(
        requirement=AckRequirement(
            replicas=given.replicas if has("replicas") else before.replicas,
            rules=_rules(given.rules) if has("rules") else before.rules,
            stage=_known(_STAGES, given.stage) if has("stage") else before.stage,
            counts_learners=given.counts_learners if has("counts_learners") else before.counts_learners,
        ),
        wait_point=_known(_WAIT_POINTS, given.wait_point) if has("wait_point") else policy.wait_point,
        wait_timeout_ms=given.wait_timeout_ms if has("wait_timeout_ms") else policy.wait_timeout_ms,
        on_timeout=_known(_ON_TIMEOUT, given.on_timeout) if has("on_timeout") else policy.on_timeout,
        wait_no_replica=given.wait_no_replica if has("wait_no_replica") else policy.wait_no_replica,
        recover_hold_ms=given.recover_hold_ms if has("recover_hold_ms") else policy.recover_hold_ms,
    )


def _known(table: dict[int, T], number: int) -> T:
    """Raises ValueError for a number of an enum that this version does not know."""
    if number not in table:
        raise ValueError("a setting has a value that this version does not know")
    return table[number]


def _rules(given: pb.AckRules) -> tuple[LabelRule, ...]:
    return tuple(LabelRule(rule.label, rule.value, rule.count) for rule in given.rules)


def _settings_message(policy: AckPolicy) -> pb.AckSettings:
    required = policy.requirement
    rules = [pb.AckRule(label=rule.label, value=rule.value, count=rule.count) for rule in required.rules]
    return pb.AckSettings(
        replicas=required.replicas,
        rules=pb.AckRules(rules=rules),
        stage=_number(_STAGES, required.stage),
        counts_learners=required.counts_learners,
        wait_point=_number(_WAIT_POINTS, policy.wait_point),
        wait_timeout_ms=policy.wait_timeout_ms,
        on_timeout=_number(_ON_TIMEOUT, policy.on_timeout),
        wait_no_replica=policy.wait_no_replica,
        recover_hold_ms=policy.recover_hold_ms,
    )


def _number(table: dict[int, T], value: T) -> Any:
    return next(number for number, known in table.items() if known is value)


def _state(settings: AckSettings) -> Any:
    return _STATES[settings.state] if settings.policy.is_on else pb.OFF


def _counters(stats: AckStats) -> list[pb.AckCounter]:
    """Return all counters under the names that operators of MySQL know, the histogram with its bounds."""
    found: dict[str, int] = {
        "clients": stats.clients,
        "wait_sessions": stats.wait_sessions,
        "no_times": stats.no_times,
        "state_changes_total": stats.state_changes_total,
        "tx_avg_wait_time_us": stats.tx_avg_wait_time_us,
        "net_avg_wait_time_us": stats.net_avg_wait_time_us,
    }
    for field in fields(stats.counters):
        value = getattr(stats.counters, field.name)
        if field.name == "wait_histogram":
            bounds = [f"le_{bound}ms" for bound in WAIT_BUCKETS_MS]
            for bound, count in zip([*bounds, "more"], value, strict=True):
                found[f"{field.name}_{bound}"] = count
        else:
            found[field.name] = value
    return [pb.AckCounter(name=name, value=found[name]) for name in sorted(found)]


def _invalid(error: ValueError) -> ApiError:
    return ApiError(Code.INVALID_ARGUMENT, f"etcdserver: {error}")

"""Acknowledgements: what a write may ask for above a majority, what it is told of them, and the policy of the
cluster. Only quorumlog knows them (docs/ack-policy.md); etcd takes a write without a look at what was asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from kvstore.client.errors import RequestRefused
from kvstore.client.results import AckReport, Header, header_from
from kvstore.pb import ack_pb2

Stage = Literal["persisted", "applied"]
Fate = Literal["unknown", "committed", "lost", "pending"]

LEADER_ACK: Final = (("x-ack", "leader"),)


@dataclass(frozen=True, slots=True)
class AckWish:
    """What one write asks for. It may only strengthen what the cluster has."""

    replicas: int = 0
    """Members beside the leader that must have it."""
    stage: Stage | None = None
    """None: as the cluster has it."""
    timeout_s: float | None = None

    def metadata(self) -> tuple[tuple[str, str], ...]:
        pairs = [("x-ack-replicas", str(self.replicas))]
        if self.stage is not None:
            pairs.append(("x-ack-stage", self.stage))
        if self.timeout_s is not None:
            pairs.append(("x-ack-timeout-ms", str(max(1, round(self.timeout_s * 1000)))))
        return tuple(pairs)


class LeaderAck(NamedTuple):
    """A write that the leader alone has. `Client.confirm_write` tells what became of it."""

    term: int
    index: int  # type: ignore[assignment] # shadows tuple.index, which nobody calls


class AckRule(NamedTuple):
    """So many members with this value of a label; with value "": so many different values."""

    label: str
    value: str
    count: int  # type: ignore[assignment] # shadows tuple.count, which nobody calls

    def __str__(self) -> str:
        return f"{self.label}={self.value}:{self.count}" if self.value else f"{self.label}:{self.count}"


@dataclass(frozen=True, slots=True)
class AckSettings:
    """The policy. In `Client.ack_set`, None stays as it is; in what a server says nothing is None."""

    replicas: int | None = None
    rules: tuple[AckRule, ...] | None = None
    stage: Stage | None = None
    counts_learners: bool | None = None
    wait_point: Literal["after_apply", "before_apply"] | None = None
    wait_timeout_ms: int | None = None
    on_timeout: Literal["fail", "degrade"] | None = None
    wait_no_replica: bool | None = None
    recover_hold_ms: int | None = None

    @property
    def is_on(self) -> bool:
        return bool(self.replicas or self.rules)


@dataclass(frozen=True, slots=True)
class AckMember:
    member_id: int
    name: str
    is_learner: bool
    is_leader: bool
    labels: tuple[tuple[str, str], ...]
    is_known: bool
    """Whether the asked member knows what follows."""
    is_heard: bool
    persisted_index: int
    applied_index: int
    """0: it was not asked. Old, unless somebody asks for `applied` now: see `AckStatus.tells_applied`."""
    lag_entries: int
    lag_bytes: int | None
    """None: only the leader knows."""
    last_ack_age_ms: int | None


@dataclass(frozen=True, slots=True)
class AckStatus:
    """How it stands, as one member knows it."""

    header: Header
    settings: AckSettings
    state: str
    leader: int
    """Of whom the view of the members is; 0: there is none."""
    members: tuple[AckMember, ...]
    commit_index: int
    is_met: bool
    """For everything that is committed."""
    acked: int
    counters: Mapping[str, int]

    @property
    def tells_applied(self) -> bool:
        """Whether members are asked all the time for what they have applied, so that it is known."""
        return self.settings.is_on and self.settings.stage == "applied"


_METS: Final[dict[str, Literal["yes", "no", "unknown"]]] = {"yes": "yes", "no": "no", "unknown": "unknown"}
_STAGES: Final[dict[str, ack_pb2.AckStage]] = {"persisted": ack_pb2.PERSISTED, "applied": ack_pb2.APPLIED}
_WAIT_POINTS: Final[dict[str, ack_pb2.AckWaitPoint]] = {
    "after_apply": ack_pb2.AFTER_APPLY,
    "before_apply": ack_pb2.BEFORE_APPLY,
}
_ON_TIMEOUT: Final[dict[str, ack_pb2.AckOnTimeout]] = {"fail": ack_pb2.FAIL, "degrade": ack_pb2.DEGRADE}


def settings_message(settings: AckSettings) -> ack_pb2.AckSettings:
    """Return what goes to a server: only what is given. Raises RequestRefused for a number that no field of
    the message holds."""
    try:
        return _settings_message(settings)
    except ValueError as error:
        raise RequestRefused(f"the settings cannot be sent: {error}", code="INVALID_ARGUMENT") from None


def _settings_message(settings: AckSettings) -> ack_pb2.AckSettings:
    message = ack_pb2.AckSettings()
    for name in (
        "replicas",
        "counts_learners",
        "wait_timeout_ms",
        "wait_no_replica",
        "recover_hold_ms",
    ):
        if (value := getattr(settings, name)) is not None:
            setattr(message, name, value)
    if settings.rules is not None:
        rules = [ack_pb2.AckRule(label=r.label, value=r.value, count=r.count) for r in settings.rules]
        message.rules.CopyFrom(ack_pb2.AckRules(rules=rules))
    if settings.stage is not None:
        message.stage = _STAGES[settings.stage]
    if settings.wait_point is not None:
        message.wait_point = _WAIT_POINTS[settings.wait_point]
    if settings.on_timeout is not None:
        message.on_timeout = _ON_TIMEOUT[settings.on_timeout]
    return message


def labels_message(labels: Iterable[tuple[str, str]]) -> list[ack_pb2.AckLabel]:
    return [ack_pb2.AckLabel(name=name, value=value) for name, value in labels]


def settings_from(message: ack_pb2.AckSettings) -> AckSettings:
    return AckSettings(
        replicas=message.replicas,
        rules=tuple(AckRule(rule.label, rule.value, rule.count) for rule in message.rules.rules),
        stage="applied" if message.stage == ack_pb2.APPLIED else "persisted",
        counts_learners=message.counts_learners,
        wait_point="before_apply" if message.wait_point == ack_pb2.BEFORE_APPLY else "after_apply",
        wait_timeout_ms=message.wait_timeout_ms,
        on_timeout="degrade" if message.on_timeout == ack_pb2.DEGRADE else "fail",
        wait_no_replica=message.wait_no_replica,
        recover_hold_ms=message.recover_hold_ms,
    )


def state_from(state: ack_pb2.AckState) -> str:
    return ack_pb2.AckState.Name(state).lower()


def status_from(message: ack_pb2.AckGetResponse) -> AckStatus:
    return AckStatus(
        header=header_from(message.header),
        settings=settings_from(message.settings),
        state=state_from(message.state),
        leader=message.leader,
        members=tuple(map(_member_from, message.members)),
        commit_index=message.commit_index,
        is_met=message.is_met,
        acked=message.acked,
        counters={counter.name: counter.value for counter in message.counters},
    )


def _member_from(message: ack_pb2.AckMember) -> AckMember:
    return AckMember(
        member_id=message.ID,
        name=message.name,
        is_learner=message.is_learner,
        is_leader=message.is_leader,
        labels=tuple((label.name, label.value) for label in message.labels),
        is_known=message.is_known,
        is_heard=message.is_heard,
        persisted_index=message.persisted_index,
        applied_index=message.applied_index,
        lag_entries=message.match_lag_entries,
        lag_bytes=message.match_lag_bytes if message.HasField("match_lag_bytes") else None,
        last_ack_age_ms=message.last_ack_age_ms if message.HasField("last_ack_age_ms") else None,
    )


def fate_from(message: ack_pb2.ConfirmWriteResponse) -> Fate:
    fates: dict[int, Fate] = {
        ack_pb2.ConfirmWriteResponse.COMMITTED: "committed",
        ack_pb2.ConfirmWriteResponse.LOST: "lost",
        ack_pb2.ConfirmWriteResponse.PENDING: "pending",
    }
    return fates.get(message.fate, "unknown")


def report_from(trailers: Mapping[str, str]) -> AckReport | None:
    """Return what the trailers of a write say; None if nothing, or nothing that makes sense."""
    met = _METS.get(trailers.get("quorumlog-ack-met", ""))
    if met is None:
        return None
    try:
        acked, needed = int(trailers["quorumlog-acked"]), int(trailers["quorumlog-ack-needed"])
        return AckReport(met, acked, needed, trailers["quorumlog-ack-state"])
    except (KeyError, ValueError):
        return None


def revision_in(text: str) -> int:
    """Return the revision that a write has led to, of what a server says whose policy was not met; 0 if it
    does not say."""
    found = re.search(r"\brevision (\d{1,19})\)", text)
    return int(found[1]) if found else 0


def leader_ack_from(trailers: Mapping[str, str]) -> LeaderAck | None:
    """Return which write the leader alone has acknowledged; None if no server said so."""
    try:
        return LeaderAck(int(trailers["quorumlog-ack-term"]), int(trailers["quorumlog-ack-index"]))
    except (KeyError, ValueError):
        return None

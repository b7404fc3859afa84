"""What an ack policy says: values only, each checked when made. What it means is in `ack_policy.py`.

Source: ARCHITECTURE.md 6; docs/adr/0015. MySQL's semi-synchronous replication has most of these settings
under other names, and one that is missing here: it never tells that it gave up.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

ACK_REPLICAS_MAX: Final = 255
RULES_MAX: Final = 16
LABELS_MAX: Final = 16
"""Of one member."""
LABEL_CHARS_MAX: Final = 63
"""Of a label's name, and of its value."""
TIMEOUT_MS_MAX: Final = 86_400_000


class WaitPoint(Enum):
    AFTER_APPLY = "after_apply"
    """Commit and apply as ever; only the reply waits. (MySQL: AFTER_COMMIT; there it makes phantoms.)"""
    BEFORE_APPLY = "before_apply"
    """Nothing is committed, so nothing is visible anywhere, before the policy is met. (MySQL: AFTER_SYNC.)"""


class AckStage(Enum):
    PERSISTED = "persisted"
    APPLIED = "applied"


class OnTimeout(Enum):
    FAIL = "fail"
    DEGRADE = "degrade"


class AckState(Enum):
    SYNC = "sync"
    DEGRADED = "degraded"
    RECOVERING = "recovering"


class LabelRule(NamedTuple):
    """`zone=dr:1`: of the members that have an entry, the leader among them, so many have this value.
    `zone:2` (value ""): they have so many different values of this label."""

    label: str
    value: str
    count: int  # type: ignore[assignment] # shadows tuple.count, which nobody calls

    def __str__(self) -> str:
        return f"{self.label}={self.value}:{self.count}" if self.value else f"{self.label}:{self.count}"


@dataclass(frozen=True, slots=True)
class AckRequirement:
    """Who must have an entry, beside a majority."""

    replicas: int = 0
    """Members other than the leader."""
    rules: tuple[LabelRule, ...] = ()
    stage: AckStage = AckStage.PERSISTED
    counts_learners: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.replicas <= ACK_REPLICAS_MAX:
            raise ValueError(f"{self.replicas} acknowledging replicas; 0 to {ACK_REPLICAS_MAX}")
        if len(self.rules) > RULES_MAX or len(set(self.rules)) < len(self.rules):
            raise ValueError(f"more than {RULES_MAX} rules on labels, or the same one twice")
        for rule in self.rules:
            check_label(rule.label, rule.value or "any")
            if not 1 <= rule.count <= ACK_REPLICAS_MAX:
                raise ValueError(f"{rule}: a count is 1 to {ACK_REPLICAS_MAX}")

    @property
    def is_nothing(self) -> bool:
        """Whether a majority is all that is asked for."""
        return not (self.replicas or self.rules)


@dataclass(frozen=True, slots=True)
class AckPolicy:
    """The settings of a cluster. The default asks for nothing above the majority."""

    requirement: AckRequirement = AckRequirement()
    wait_point: WaitPoint = WaitPoint.AFTER_APPLY
    wait_timeout_ms: int = 3000
    """How long a write may wait; below the 5 s that clients have, and the 7 s of a proposal."""
    on_timeout: OnTimeout = OnTimeout.FAIL
    wait_no_replica: bool = True
    """False: if too few who could acknowledge are reachable, what `on_timeout` says is done at once."""
    recover_hold_ms: int = 5000
    """For how long the policy must have been met before the state is SYNC again."""

    def __post_init__(self) -> None:
        for name in ("wait_timeout_ms", "recover_hold_ms"):
            if not 1 <= getattr(self, name) <= TIMEOUT_MS_MAX:
                raise ValueError(f"{name} is {getattr(self, name)}; 1 to {TIMEOUT_MS_MAX}")
        if self.wait_point is WaitPoint.BEFORE_APPLY and self.requirement.stage is AckStage.APPLIED:
            raise ValueError("before_apply and applied: a write cannot wait for its own application")

    @property
    def is_on(self) -> bool:
        return not self.requirement.is_nothing


@dataclass(frozen=True, slots=True)
class AckSettings:
    """What the configuration holds: the policy, and how it stands with it. SYNC while the policy is off."""

    policy: AckPolicy = AckPolicy()
    state: AckState = AckState.SYNC


NO_ACKS: Final = AckSettings()
"""A majority is all."""


def check_label(label: str, value: str) -> None:
    """Raises ValueError unless both are short, and made of letters, digits, `-`, `_` and `.`."""
    for text in (label, value):
        if not 1 <= len(text) <= LABEL_CHARS_MAX or not all(
            c.isascii() and (c.isalnum() or c in "-_.") for c in text
        ):
            raise ValueError(
                f"labels and their values are 1 to {LABEL_CHARS_MAX} letters, digits, '-', '_' or '.'"
            )

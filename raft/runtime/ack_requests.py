"""What one write may ask above the ack policy of the cluster, and what its caller is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from raft.core.ack_types import ACK_REPLICAS_MAX, TIMEOUT_MS_MAX, AckStage, AckState, LabelRule
from raft.core.errors import RaftError
from raft.core.types import LogIndex, Term


@dataclass(frozen=True, slots=True)
class AckRequest:
    """May only strengthen what the cluster asks for. Raises ValueError.

    What is asked for here holds in every state of the cluster: a caller who says two gets two, or an error.
    (MongoDB once took less than a caller had asked for, and did not say so.)
    """

    replicas: int = 0
    """Members other than the leader that must have the write."""
    stage: AckStage | None = None
    """None: as the cluster has it."""
    timeout_ms: int | None = None
    """From the moment in which the write is applied here. None: as the cluster has it."""
    asks: bool = field(init=False, compare=False, repr=False)
    """Whether it needs to know more than the policy does. A stage alone asks of those whom the policy asks
    for: of nobody, where it is off."""

    def __post_init__(self) -> None:
        if not 0 <= self.replicas <= ACK_REPLICAS_MAX:
            raise ValueError(f"{self.replicas} acknowledging replicas; 0 to {ACK_REPLICAS_MAX}")
        if self.timeout_ms is not None and not 1 <= self.timeout_ms <= TIMEOUT_MS_MAX:
            raise ValueError(f"timeout_ms is {self.timeout_ms}; 1 to {TIMEOUT_MS_MAX}")
        object.__setattr__(self, "asks", self.replicas > 0 or self.stage is AckStage.APPLIED)

    @property
    def wants_applied(self) -> bool:
        return self.stage is AckStage.APPLIED


class AckedResult(NamedTuple):
    """What became of a write that was applied."""

    result: object
    """The state machine's."""
    index: LogIndex  # type: ignore[assignment] # shadows tuple.index, which nobody calls
    term: Term
    is_met: bool
    """False only where the policy says to degrade: a majority has the write, and perhaps nobody else."""
    acked: int
    """Members other than the leader that count and have it, as far as is known here."""
    needed: int
    """How many had to. Rules on labels come on top."""
    state: AckState | None
    """None: no policy is on."""


class PolicyUnmet(RaftError):
    """The write is committed and applied, and the ack policy was not met in time: do not repeat it.

    `is_known` False: whether it was met is not known, for the leader changed, or this node stopped, while it
    waited.
    """

    applied = "yes"

    def __init__(
        self,
        result: object,
        index: LogIndex,
        *,
        acked: int = 0,
        needed: int = 0,
        unmet_rules: tuple[LabelRule, ...] = (),
        state: AckState | None = None,
        is_known: bool = True,
    ) -> None:
        shortfall = f"acked {acked} of {needed}"
        if unmet_rules:
            # Of a policy that asks for labels the numbers alone may look as if all were there.
            shortfall += f", not {' nor '.join(map(str, unmet_rules))}"
        if is_known:
            text = f"committed, ack policy unmet ({shortfall}, entry {index})"
        else:
            text = f"committed, ack policy unknown: the leader changed, or this node stopped (entry {index})"
        super().__init__(text)
        self.result = result
        self.index = index
        self.acked = acked
        self.needed = needed
        self.shortfall = shortfall
        """What is there of what was asked for, in words."""
        self.state = state
        self.is_known = is_known

"""Labels and ack policies as bytes: in a configuration, and in a wish for another one.

    labels:    count u8, then each: length u8, name, length u8, value      (names in rising order)
    policy:    replicas u8 | stage u8 | wait point u8 | on timeout u8 | flags u8 | timeout u32 | hold u32
               | count u8, then each rule: length u8, label, length u8, value, count u8
    settings:  state u8, policy

Little-endian, ASCII. One value has one form, and all faults are ValueError: what is read here came from a
disk or another member, and stands in the log for ever.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Final, TypeVar

from raft.core.ack_types import (
    LABEL_CHARS_MAX,
    LABELS_MAX,
    RULES_MAX,
    AckPolicy,
    AckRequirement,
    AckSettings,
    AckStage,
    AckState,
    LabelRule,
    OnTimeout,
    WaitPoint,
    check_label,
)
from raft.core.types import Labels

LABELS_BYTES_MAX: Final = 1 + LABELS_MAX * 2 * (1 + LABEL_CHARS_MAX)
"""Of one member."""
POLICY_BYTES_MAX: Final = 14 + RULES_MAX * (3 + 2 * LABEL_CHARS_MAX)

# By their numbers on disk and on the wire: never reorder.
_STAGES = (AckStage.PERSISTED, AckStage.APPLIED)
_WAIT_POINTS = (WaitPoint.AFTER_APPLY, WaitPoint.BEFORE_APPLY)
_ON_TIMEOUT = (OnTimeout.FAIL, OnTimeout.DEGRADE)
_STATES = (AckState.SYNC, AckState.DEGRADED, AckState.RECOVERING)

_Value = TypeVar("_Value")

_COUNTS_LEARNERS = 1
_WAIT_NO_REPLICA = 2
_POLICY = struct.Struct("<BBBBBIIB")


def check_labels(labels: Labels) -> None:
    """Raise ValueError unless a member may have these labels."""
    if len(labels) > LABELS_MAX:
        raise ValueError(f"{len(labels)} labels of one member, at most {LABELS_MAX}")
    for name, value in labels:
        check_label(name, value)
    if any(low >= high for (low, _), (high, _) in pairwise(labels)):
        raise ValueError("labels of a member are out of order, or doubled")


def check_settings(ack: AckSettings) -> None:
    """Raise ValueError for a state of a policy that is off."""
    if ack.state is not AckState.SYNC and not ack.policy.is_on:
        raise ValueError(f"an ack policy that is off, and {ack.state.value}")


def encode_labels(labels: Labels) -> bytes:
    """Return the bytes of one member's labels. Raises ValueError for what may not be."""
    check_labels(labels)
    return b"".join([bytes([len(labels)]), *(_text(text) for pair in labels for text in pair)])


def encode_policy(policy: AckPolicy) -> bytes:
    required = policy.requirement
    flags = _COUNTS_LEARNERS * required.counts_learners + _WAIT_NO_REPLICA * policy.wait_no_replica
    parts = [
        _POLICY.pack(
            required.replicas,
            _STAGES.index(required.stage),
            _WAIT_POINTS.index(policy.wait_point),
            _ON_TIMEOUT.index(policy.on_timeout),
            flags,
            policy.wait_timeout_ms,
            policy.recover_hold_ms,
            len(required.rules),
        )
    ]
    for rule in required.rules:
        parts += [_text(rule.label), _text(rule.value), bytes([rule.count])]
    return b"".join(parts)


def encode_settings(ack: AckSettings) -> bytes:
    check_settings(ack)
    return bytes([_STATES.index(ack.state)]) + encode_policy(ack.policy)


def read_labels(data: bytes, offset: int) -> tuple[Labels, int]:
    """Return the labels at `offset`, and where they end."""
    count, offset = _byte(data, offset)
    if count > LABELS_MAX:
        raise ValueError(f"{count} labels of one member, at most {LABELS_MAX}")
    found = []
    for _ in range(count):
        name, offset = _read_text(data, offset)
        value, offset = _read_text(data, offset)
        found.append((name, value))
    labels = tuple(found)
    check_labels(labels)
    return labels, offset


def read_settings(data: bytes, offset: int) -> tuple[AckSettings, int]:
    """Return the settings at `offset`, and where they end."""
    number, offset = _byte(data, offset)
    state = _one_of(_STATES, number)
    policy, offset = _read_policy(data, offset)
    ack = AckSettings(policy, state)
    check_settings(ack)
    return ack, offset


def decode_labels(data: bytes) -> Labels:
    """Return the labels that `data` is. Raises ValueError if it is not exactly that."""
    labels, end = read_labels(data, 0)
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes behind labels")
    return labels


def decode_policy(data: bytes) -> AckPolicy:
    """Return the policy that `data` is. Raises ValueError if it is not exactly one."""
    policy, end = _read_policy(data, 0)
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes behind an ack policy")
    return policy


def _read_policy(data: bytes, offset: int) -> tuple[AckPolicy, int]:
    try:
        replicas, stage, wait_point, on_timeout, flags, timeout_ms, hold_ms, count = _POLICY.unpack_from(
            data, offset
        )
    except struct.error:
        raise ValueError("an ack policy that is cut off") from None
    if flags > (_COUNTS_LEARNERS | _WAIT_NO_REPLICA) or count > RULES_MAX:
        raise ValueError(f"an ack policy with flags {flags:#x} and {count} rules")
    offset += _POLICY.size
    rules = []
    for _ in range(count):
        label, offset = _read_text(data, offset)
        value, offset = _read_text(data, offset)
        rule_count, offset = _byte(data, offset)
        rules.append(LabelRule(label, value, rule_count))
    policy = AckPolicy(
        requirement=AckRequirement(
            replicas=replicas,
            rules=tuple(rules),
            stage=_one_of(_STAGES, stage),
            counts_learners=bool(flags & _COUNTS_LEARNERS),
        ),
        wait_point=_one_of(_WAIT_POINTS, wait_point),
        wait_timeout_ms=timeout_ms,
        on_timeout=_one_of(_ON_TIMEOUT, on_timeout),
        wait_no_replica=bool(flags & _WAIT_NO_REPLICA),
        recover_hold_ms=hold_ms,
    )
    return policy, offset


def _one_of(values: tuple[_Value, ...], number: int) -> _Value:
    if number >= len(values):
        raise ValueError(f"{type(values[0]).__name__} {number} is not known")
    return values[number]


def _text(text: str) -> bytes:
    data = text.encode("ascii")
    return bytes([len(data)]) + data


def _byte(data: bytes, offset: int) -> tuple[int, int]:
    if offset >= len(data):
        raise ValueError("labels or an ack policy that are cut off")
    return data[offset], offset + 1


def _read_text(data: bytes, offset: int) -> tuple[str, int]:
    length, offset = _byte(data, offset)
    end = offset + length
    if length > LABEL_CHARS_MAX or end > len(data):
        raise ValueError("a label that runs over its end")
    # A UnicodeDecodeError is a ValueError.
    return data[offset:end].decode("ascii"), end

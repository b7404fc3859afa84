from kvstore.pb import rpc_pb2 as _rpc_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AckStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PERSISTED: _ClassVar[AckStage]
    APPLIED: _ClassVar[AckStage]

class AckWaitPoint(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AFTER_APPLY: _ClassVar[AckWaitPoint]
    BEFORE_APPLY: _ClassVar[AckWaitPoint]

class AckOnTimeout(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FAIL: _ClassVar[AckOnTimeout]
    DEGRADE: _ClassVar[AckOnTimeout]

class AckState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OFF: _ClassVar[AckState]
    SYNC: _ClassVar[AckState]
    DEGRADED: _ClassVar[AckState]
    RECOVERING: _ClassVar[AckState]
PERSISTED: AckStage
APPLIED: AckStage
AFTER_APPLY: AckWaitPoint
BEFORE_APPLY: AckWaitPoint
FAIL: AckOnTimeout
DEGRADE: AckOnTimeout
OFF: AckState
SYNC: AckState
DEGRADED: AckState
RECOVERING: AckState

class AckRule(_message.Message):
    __slots__ = ("label", "value", "count")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    label: str
    value: str
    count: int
    def __init__(self, label: _Optional[str] = ..., value: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class AckRules(_message.Message):
    __slots__ = ("rules",)
    RULES_FIELD_NUMBER: _ClassVar[int]
    rules: _containers.RepeatedCompositeFieldContainer[AckRule]
    def __init__(self, rules: _Optional[_Iterable[_Union[AckRule, _Mapping]]] = ...) -> None: ...

class AckSettings(_message.Message):
    __slots__ = ("replicas", "rules", "stage", "counts_learners", "wait_point", "wait_timeout_ms", "on_timeout", "wait_no_replica", "recover_hold_ms")
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    COUNTS_LEARNERS_FIELD_NUMBER: _ClassVar[int]
    WAIT_POINT_FIELD_NUMBER: _ClassVar[int]
    WAIT_TIMEOUT_MS_FIELD_NUMBER: _ClassVar[int]
    ON_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    WAIT_NO_REPLICA_FIELD_NUMBER: _ClassVar[int]
    RECOVER_HOLD_MS_FIELD_NUMBER: _ClassVar[int]
    replicas: int
    rules: AckRules
    stage: AckStage
    counts_learners: bool
    wait_point: AckWaitPoint
    wait_timeout_ms: int
    on_timeout: AckOnTimeout
    wait_no_replica: bool
    recover_hold_ms: int
    def __init__(self, replicas: _Optional[int] = ..., rules: _Optional[_Union[AckRules, _Mapping]] = ..., stage: _Optional[_Union[AckStage, str]] = ..., counts_learners: _Optional[bool] = ..., wait_point: _Optional[_Union[AckWaitPoint, str]] = ..., wait_timeout_ms: _Optional[int] = ..., on_timeout: _Optional[_Union[AckOnTimeout, str]] = ..., wait_no_replica: _Optional[bool] = ..., recover_hold_ms: _Optional[int] = ...) -> None: ...

class AckLabel(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: str
    def __init__(self, name: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class AckMember(_message.Message):
    __slots__ = ("ID", "name", "is_learner", "is_leader", "labels", "is_known", "is_heard", "persisted_index", "applied_index", "match_lag_entries", "match_lag_bytes", "last_ack_age_ms")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    IS_LEARNER_FIELD_NUMBER: _ClassVar[int]
    IS_LEADER_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    IS_KNOWN_FIELD_NUMBER: _ClassVar[int]
    IS_HEARD_FIELD_NUMBER: _ClassVar[int]
    PERSISTED_INDEX_FIELD_NUMBER: _ClassVar[int]
    APPLIED_INDEX_FIELD_NUMBER: _ClassVar[int]
    MATCH_LAG_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    MATCH_LAG_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAST_ACK_AGE_MS_FIELD_NUMBER: _ClassVar[int]
    ID: int
    name: str
    is_learner: bool
    is_leader: bool
    labels: _containers.RepeatedCompositeFieldContainer[AckLabel]
    is_known: bool
    is_heard: bool
    persisted_index: int
    applied_index: int
    match_lag_entries: int
    match_lag_bytes: int
    last_ack_age_ms: int
    def __init__(self, ID: _Optional[int] = ..., name: _Optional[str] = ..., is_learner: _Optional[bool] = ..., is_leader: _Optional[bool] = ..., labels: _Optional[_Iterable[_Union[AckLabel, _Mapping]]] = ..., is_known: _Optional[bool] = ..., is_heard: _Optional[bool] = ..., persisted_index: _Optional[int] = ..., applied_index: _Optional[int] = ..., match_lag_entries: _Optional[int] = ..., match_lag_bytes: _Optional[int] = ..., last_ack_age_ms: _Optional[int] = ...) -> None: ...

class AckCounter(_message.Message):
    __slots__ = ("name", "value")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    name: str
    value: int
    def __init__(self, name: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...

class AckGetRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AckGetResponse(_message.Message):
    __slots__ = ("header", "settings", "state", "leader", "members", "commit_index", "is_met", "acked", "counters")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    COMMIT_INDEX_FIELD_NUMBER: _ClassVar[int]
    IS_MET_FIELD_NUMBER: _ClassVar[int]
    ACKED_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    header: _rpc_pb2.ResponseHeader
    settings: AckSettings
    state: AckState
    leader: int
    members: _containers.RepeatedCompositeFieldContainer[AckMember]
    commit_index: int
    is_met: bool
    acked: int
    counters: _containers.RepeatedCompositeFieldContainer[AckCounter]
    def __init__(self, header: _Optional[_Union[_rpc_pb2.ResponseHeader, _Mapping]] = ..., settings: _Optional[_Union[AckSettings, _Mapping]] = ..., state: _Optional[_Union[AckState, str]] = ..., leader: _Optional[int] = ..., members: _Optional[_Iterable[_Union[AckMember, _Mapping]]] = ..., commit_index: _Optional[int] = ..., is_met: _Optional[bool] = ..., acked: _Optional[int] = ..., counters: _Optional[_Iterable[_Union[AckCounter, _Mapping]]] = ...) -> None: ...

class AckSetRequest(_message.Message):
    __slots__ = ("settings",)
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    settings: AckSettings
    def __init__(self, settings: _Optional[_Union[AckSettings, _Mapping]] = ...) -> None: ...

class AckSetResponse(_message.Message):
    __slots__ = ("header", "settings", "state")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    header: _rpc_pb2.ResponseHeader
    settings: AckSettings
    state: AckState
    def __init__(self, header: _Optional[_Union[_rpc_pb2.ResponseHeader, _Mapping]] = ..., settings: _Optional[_Union[AckSettings, _Mapping]] = ..., state: _Optional[_Union[AckState, str]] = ...) -> None: ...

class AckSetLabelsRequest(_message.Message):
    __slots__ = ("ID", "labels")
    ID_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ID: int
    labels: _containers.RepeatedCompositeFieldContainer[AckLabel]
    def __init__(self, ID: _Optional[int] = ..., labels: _Optional[_Iterable[_Union[AckLabel, _Mapping]]] = ...) -> None: ...

class AckSetLabelsResponse(_message.Message):
    __slots__ = ("header",)
    HEADER_FIELD_NUMBER: _ClassVar[int]
    header: _rpc_pb2.ResponseHeader
    def __init__(self, header: _Optional[_Union[_rpc_pb2.ResponseHeader, _Mapping]] = ...) -> None: ...

class ConfirmWriteRequest(_message.Message):
    __slots__ = ("term", "index")
    TERM_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    term: int
    index: int
    def __init__(self, term: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...

class ConfirmWriteResponse(_message.Message):
    __slots__ = ("header", "fate")
    class Fate(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[ConfirmWriteResponse.Fate]
        COMMITTED: _ClassVar[ConfirmWriteResponse.Fate]
        LOST: _ClassVar[ConfirmWriteResponse.Fate]
        PENDING: _ClassVar[ConfirmWriteResponse.Fate]
    UNKNOWN: ConfirmWriteResponse.Fate
    COMMITTED: ConfirmWriteResponse.Fate
    LOST: ConfirmWriteResponse.Fate
    PENDING: ConfirmWriteResponse.Fate
    HEADER_FIELD_NUMBER: _ClassVar[int]
    FATE_FIELD_NUMBER: _ClassVar[int]
    header: _rpc_pb2.ResponseHeader
    fate: ConfirmWriteResponse.Fate
    def __init__(self, header: _Optional[_Union[_rpc_pb2.ResponseHeader, _Mapping]] = ..., fate: _Optional[_Union[ConfirmWriteResponse.Fate, str]] = ...) -> None: ...

"""What a client asks of the store, as immutable values: operations, comparisons, transactions.

The same values serve for single requests and inside a transaction. They are not checked here
beyond what cannot be encoded: the server's errors are the API, and it gives them for both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from kvstore.pb import rpc_pb2

SortTarget = Literal["KEY", "VERSION", "CREATE", "MOD", "VALUE"]
SortOrder = Literal["NONE", "ASCEND", "DESCEND"]
CompareTarget = Literal["VERSION", "CREATE", "MOD", "VALUE", "LEASE"]
CompareOperator = Literal["=", "!=", "<", ">"]

EVERY_KEY_FROM: Final = b"\0"
"""As a range end: no upper bound."""

LARGEST_INT64 = 2**63 - 1


def prefix_range(prefix: bytes) -> tuple[bytes, bytes]:
    """Return (key, range_end) of all keys that begin with `prefix`; an empty one means all keys.

    The end is the prefix with its last byte raised by one; bytes 0xff at the end cannot be
    raised and are dropped, for what follows "a\\xff..." is "b".
    """
    if not prefix:
        return b"\0", EVERY_KEY_FROM
    raisable = prefix.rstrip(b"\xff")
    if not raisable:
        return prefix, EVERY_KEY_FROM
    return prefix, raisable[:-1] + bytes([raisable[-1] + 1])


@dataclass(frozen=True, slots=True)
class Put:
    """Set a key. `lease` attaches it (0 detaches it from any)."""

    key: bytes
    value: bytes = b""
    lease: int = 0
    prev_kv: bool = False
    ignore_value: bool = False
    """Keep the value, and give none: only the lease is changed."""
    ignore_lease: bool = False

    def to_request(self) -> rpc_pb2.PutRequest:
        return rpc_pb2.PutRequest(
            key=self.key,
            value=self.value,
            lease=self.lease,
            prev_kv=self.prev_kv,
            ignore_value=self.ignore_value,
            ignore_lease=self.ignore_lease,
        )


@dataclass(frozen=True, slots=True)
class Range:
    """Read the keys in [key, range_end); with an empty range_end, just `key`."""

    key: bytes
    range_end: bytes = b""
    limit: int = 0
    revision: int = 0
    """Read the state as of this revision; 0 is the newest."""
    sort_target: SortTarget = "KEY"
    sort_order: SortOrder = "NONE"
    serializable: bool = False
    """Answer from the state of the member that is asked, which may lie behind. Works without a
    quorum. The default is linearizable."""
    keys_only: bool = False
    count_only: bool = False
    min_mod_revision: int = 0
    max_mod_revision: int = 0
    min_create_revision: int = 0
    max_create_revision: int = 0

    def to_request(self) -> rpc_pb2.RangeRequest:
        return rpc_pb2.RangeRequest(
            key=self.key,
            range_end=self.range_end,
            limit=self.limit,
            revision=self.revision,
            sort_order=self.sort_order,
            sort_target=self.sort_target,
            serializable=self.serializable,
            keys_only=self.keys_only,
            count_only=self.count_only,
            min_mod_revision=self.min_mod_revision,
            max_mod_revision=self.max_mod_revision,
            min_create_revision=self.min_create_revision,
            max_create_revision=self.max_create_revision,
        )


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete the keys in [key, range_end); with an empty range_end, just `key`."""

    key: bytes
    range_end: bytes = b""
    prev_kv: bool = False

    def to_request(self) -> rpc_pb2.DeleteRangeRequest:
        return rpc_pb2.DeleteRangeRequest(key=self.key, range_end=self.range_end, prev_kv=self.prev_kv)


_OPERATORS: Final = {"=": "EQUAL", "!=": "NOT_EQUAL", "<": "LESS", ">": "GREATER"}


@dataclass(frozen=True, slots=True)
class Compare:
    """One condition on a key, e.g. Compare("VERSION", b"k", "=", 0): "k does not exist".

    A missing key has version, create, mod and lease 0, and no value: a comparison of its VALUE
    never holds. With `range_end` every key in the range must meet the condition.
    """

    target: CompareTarget
    key: bytes
    operator: CompareOperator
    operand: int | bytes
    """bytes for the target VALUE, else an integer."""
    range_end: bytes = b""

    def __post_init__(self) -> None:
        if self.operator not in _OPERATORS:
            raise ValueError(f"{self.operator!r} is not one of = != < >")
        if isinstance(self.operand, bytes) != (self.target == "VALUE"):
            raise ValueError(f"{self.target} cannot be compared with {type(self.operand).__name__}")
        if isinstance(self.operand, int) and not -LARGEST_INT64 <= self.operand <= LARGEST_INT64:
            raise ValueError(f"{self.operand} does not fit into 64 bits")

    def to_request(self) -> rpc_pb2.Compare:
        message = rpc_pb2.Compare(
            target=self.target,
            result=_OPERATORS[self.operator],
            key=self.key,
            range_end=self.range_end,
        )
        setattr(message, _OPERAND_FIELDS[self.target], self.operand)
        return message


_OPERAND_FIELDS: Final[dict[str, str]] = {
    "VERSION": "version",
    "CREATE": "create_revision",
    "MOD": "mod_revision",
    "VALUE": "value",
    "LEASE": "lease",
}


@dataclass(frozen=True, slots=True)
class Txn:
    """If all of `compare` holds do `success`, else `failure`: atomically, in one revision.

    Built step by step, each step a new value:
    `Txn().when(Compare("VERSION", b"k", "=", 0)).then(Put(b"k", b"v")).otherwise(Range(b"k"))`
    """

    compare: tuple[Compare, ...] = ()
    success: tuple[Operation, ...] = ()
    failure: tuple[Operation, ...] = ()

    def when(self, *compare: Compare) -> Txn:
        """Add conditions, which must all hold."""
        return Txn(self.compare + compare, self.success, self.failure)

    def then(self, *operations: Operation) -> Txn:
        """Add operations to do, in this order, if all conditions hold."""
        return Txn(self.compare, self.success + operations, self.failure)

    def otherwise(self, *operations: Operation) -> Txn:
        """Add operations to do, in this order, if a condition does not hold."""
        return Txn(self.compare, self.success, self.failure + operations)

    @property
    def is_write(self) -> bool:
        """True if either branch may change the store: then it must not be repeated blindly."""
        return any(map(_is_write, self.success + self.failure))

    @property
    def is_serializable(self) -> bool:
        """True if every read in it may be answered without a quorum."""
        operations = self.success + self.failure
        return bool(operations) and all(map(_is_serializable, operations))

    def to_request(self) -> rpc_pb2.TxnRequest:
        return rpc_pb2.TxnRequest(
            compare=[compare.to_request() for compare in self.compare],
            success=[_wrap(operation) for operation in self.success],
            failure=[_wrap(operation) for operation in self.failure],
        )


Operation: TypeAlias = "Put | Range | Delete | Txn"


def _is_write(operation: Operation) -> bool:
    return operation.is_write if isinstance(operation, Txn) else not isinstance(operation, Range)


def _is_serializable(operation: Operation) -> bool:
    return isinstance(operation, Range) and operation.serializable


_WRAPPERS: Final[dict[type, Callable[..., rpc_pb2.RequestOp]]] = {
    Put: lambda request: rpc_pb2.RequestOp(request_put=request),
    Range: lambda request: rpc_pb2.RequestOp(request_range=request),
    Delete: lambda request: rpc_pb2.RequestOp(request_delete_range=request),
    Txn: lambda request: rpc_pb2.RequestOp(request_txn=request),
}


def _wrap(operation: Operation) -> rpc_pb2.RequestOp:
    return _WRAPPERS[type(operation)](operation.to_request())

"""An asynchronous client for quorumlog and for any other server of the etcd v3 API.

async with Client("127.0.0.1:2379,127.0.0.1:2389") as client:
    await client.put(b"k", b"v")
    kv = await client.get(b"k")
    txn = Txn().when(Compare("MOD", b"k", "=", kv.mod_revision)).then(Put(b"k", b"w"))
    result = await client.txn(txn)
"""

from kvstore.client.acks import (
    AckMember,
    AckRule,
    AckSettings,
    AckStatus,
    AckWish,
    LeaderAck,
)
from kvstore.client.client import CONNECT_TIMEOUT_S, PAGE_KEYS, TIMEOUT_S, Client
from kvstore.client.connection import NoConnection
from kvstore.client.errors import (
    Applied,
    AppliedWithFault,
    ClientError,
    OutcomeUnknown,
    PolicyUnmet,
    RequestRefused,
    Unavailable,
)
from kvstore.client.operations import (
    EVERY_KEY_FROM,
    Compare,
    Delete,
    Operation,
    Put,
    Range,
    SortOrder,
    SortTarget,
    Txn,
    prefix_range,
)
from kvstore.client.results import (
    AckReport,
    DeleteResult,
    HashKVResult,
    Header,
    KeyValue,
    Member,
    MemberAddResult,
    MemberListResult,
    MemberStatus,
    OpResult,
    PutResult,
    RangeResult,
    TxnResult,
)

__all__ = [
    "CONNECT_TIMEOUT_S",
    "EVERY_KEY_FROM",
    "PAGE_KEYS",
    "TIMEOUT_S",
    "AckMember",
    "AckReport",
    "AckRule",
    "AckSettings",
    "AckStatus",
    "AckWish",
    "Applied",
    "AppliedWithFault",
    "Client",
    "ClientError",
    "Compare",
    "Delete",
    "DeleteResult",
    "HashKVResult",
    "Header",
    "KeyValue",
    "LeaderAck",
    "Member",
    "MemberAddResult",
    "MemberListResult",
    "MemberStatus",
    "NoConnection",
    "OpResult",
    "Operation",
    "OutcomeUnknown",
    "PolicyUnmet",
    "Put",
    "PutResult",
    "Range",
    "RangeResult",
    "RequestRefused",
    "SortOrder",
    "SortTarget",
    "Txn",
    "TxnResult",
    "Unavailable",
    "prefix_range",
]

"""What is asked of the store: which operations, on which keys, with values of which size."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, NamedTuple

from kvstore.pb.rpc_pb2 import (
    Compare,
    DeleteRangeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)

OPS: Final = ("put", "get", "txn", "delete", "range")
WRITES: Final = frozenset({"put", "txn", "delete"})
PUT, RANGE, TXN, DELETE = ("/etcdserverpb.KV/" + name for name in ("Put", "Range", "Txn", "DeleteRange"))

KEYS_MAX: Final = 10**8
VALUE_BYTES_MAX: Final = 1024 * 1024
"""Both stores take requests of 1.5 MiB."""

_POOL_BYTES = 64 * 1024
_PRELOAD_TXN_BYTES = 512 * 1024
_PRELOAD_TXN_OPS = 100
"""Both stores take 128 operations a txn."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of operations; they need not add up to anything."""

    shares: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str) -> Mix:
        """Read "put", "mixed" (puts and gets, half and half) or "put=50,get=45,txn=5". Raises ValueError."""
        if text == "mixed":
            text = "put=50,get=50"
        if "=" not in text:
            text += "=1"
        shares: dict[str, float] = {}
        for part in text.split(","):
            name, _, number = part.partition("=")
            name = name.strip()
            try:
                share = float(number)
            except ValueError:
                share = -1.0
            if name not in OPS or name in shares or not 0 < share < math.inf:
                raise ValueError(
                    f"workload {text}: OP=SHARE, separated by commas, each of {', '.join(OPS)} once at most, "
                    f"with a share above 0"
                )
            shares[name] = share
        return cls(tuple(shares.items()))

    @property
    def ops(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.shares)

    @property
    def only(self) -> str | None:
        """The one operation, if there is only one."""
        return self.ops[0] if len(self.shares) == 1 else None

    def __str__(self) -> str:
        return self.only or ",".join(f"{name}={share:g}" for name, share in self.shares)


@dataclass(frozen=True, slots=True)
class ValueSize:
    """From `low` to `high` bytes, each size as likely."""

    low: int = 256
    high: int = 256

    @classmethod
    def parse(cls, text: str) -> ValueSize:
        """Read "256" or "100-1000". Raises ValueError."""
        low, dash, high = text.partition("-")
        try:
            size = cls(int(low), int(high if dash else low))
        except ValueError:
            size = cls(1, 0)
        if not 0 <= size.low <= size.high <= VALUE_BYTES_MAX:
            raise ValueError(f"value size {text}: BYTES or LOW-HIGH, {VALUE_BYTES_MAX} at most")
        return size

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


class Zipf:
    """Numbers from 0 to n-1, the k-th as likely as 1 / (k+1)**exponent.

    By rejection-inversion (Hörmann and Derflinger 1996): no table, so that 10**8 keys cost no memory.
    """

    def __init__(self, n: int, exponent: float, rng: random.Random) -> None:
        self._n, self._exponent, self._random = n, exponent, rng.random
        self._low = self._integral(1.5) - 1.0
        self._high = self._integral(n + 0.5)
        self._sure = 2.0 - self._inverse(self._integral(2.5) - 2.0**-exponent)

    def __call__(self) -> int:
        while True:
            u = self._high + self._random() * (self._low - self._high)
            x = self._inverse(u)
            k = max(1, min(self._n, int(x + 0.5)))
            if k - x <= self._sure or u >= self._integral(k + 0.5) - k**-self._exponent:
                return k - 1

    def _integral(self, x: float) -> float:
        """The integral of t**-exponent from 1 to x."""
        if self._exponent == 1.0:
            return math.log(x)
        return float((x ** (1.0 - self._exponent) - 1.0) / (1.0 - self._exponent))

    def _inverse(self, y: float) -> float:
        if self._exponent == 1.0:
            return math.exp(y)
        return float(max(0.0, 1.0 + y * (1.0 - self._exponent)) ** (1.0 / (1.0 - self._exponent)))


@dataclass(frozen=True, slots=True)
class Keys:
    """`count` keys; chosen uniformly, or after Zipf's law if `zipf` is above 0."""

    count: int = 1000
    zipf: float = 0.0

    @classmethod
    def parse(cls, count: int, distribution: str) -> Keys:
        """Read "uniform", "zipf" (exponent 0.99, as YCSB has it) or "zipf:EXPONENT". Raises ValueError."""
        name, _, exponent = distribution.partition(":")
        try:
            zipf = {"uniform": 0.0, "zipf": float(exponent or 0.99)}[name]
        except (KeyError, ValueError):
            zipf = -1.0
        if not 0 <= zipf <= 10 or (name == "uniform" and exponent) or (name == "zipf" and not zipf):
            raise ValueError(f"key distribution {distribution}: uniform, zipf or zipf:EXPONENT, up to 10")
        if not 1 <= count <= KEYS_MAX:
            raise ValueError(f"{count} keys: from 1 to {KEYS_MAX}")
        return cls(count, zipf)

    def chooser(self, rng: random.Random) -> Callable[[], int]:
        if not self.zipf or self.count == 1:
            return lambda: rng.randrange(self.count)
        rank = Zipf(self.count, self.zipf, rng)
        # Popular keys lie scattered, not side by side. A step that is prime to the count visits each once.
        step = self.count * 5 // 8 + 1
        while math.gcd(step, self.count) != 1:
            step += 1
        return lambda: rank() * step % self.count

    def __str__(self) -> str:
        return f"zipf:{self.zipf:g}" if self.zipf else "uniform"


def key(number: int) -> bytes:
    return b"bench/%08d" % number


_END = b"bench0"
"""Behind all keys: "0" follows "/"."""


class Request(NamedTuple):
    op: str
    path: str
    body: bytes

    @property
    def writes(self) -> bool:
        return self.op in WRITES


class Requests:
    """Makes requests, the same ones from the same seed."""

    def __init__(
        self,
        mix: Mix,
        keys: Keys,
        size: ValueSize,
        *,
        range_keys: int = 10,
        serializable: bool = False,
        seed: int = 0,
    ) -> None:
        self._rng = random.Random(seed)
        self._keys, self._size = keys, size
        self._range_keys, self._serializable = range_keys, serializable
        self._choose = keys.chooser(self._rng)
        self._pool = self._rng.randbytes(_POOL_BYTES + size.high)
        makers: dict[str, Callable[[int], Request]] = {
            "put": lambda i: Request("put", PUT, self._put(i).SerializeToString()),
            "get": lambda i: Request("get", RANGE, self._get(i).SerializeToString()),
            "txn": lambda i: Request("txn", TXN, self._txn(i).SerializeToString()),
            "delete": lambda i: Request("delete", DELETE, DeleteRangeRequest(key=key(i)).SerializeToString()),
            "range": lambda i: Request("range", RANGE, self._range(i).SerializeToString()),
        }
        self._makers = [makers[name] for name in mix.ops]
        self._shares = list(accumulate(share for _, share in mix.shares))

    def __call__(self) -> Request:
        number = self._choose()
        if len(self._makers) == 1:
            return self._makers[0](number)
        (make,) = self._rng.choices(self._makers, cum_weights=self._shares)
        return make(number)

    def _put(self, number: int) -> PutRequest:
        # From a pool of what does not compress: new random bytes for each would cost more than to send them.
        size = self._rng.randint(self._size.low, self._size.high)
        begin = self._rng.randrange(_POOL_BYTES)
        return PutRequest(key=key(number), value=self._pool[begin : begin + size])

    def _get(self, number: int) -> RangeRequest:
        return RangeRequest(key=key(number), serializable=self._serializable)

    def _range(self, number: int) -> RangeRequest:
        end = number + self._range_keys
        return RangeRequest(
            key=key(number),
            range_end=key(end) if end < KEYS_MAX else _END,
            serializable=self._serializable,
        )

    def _txn(self, number: int) -> TxnRequest:
        """Reads and overwrites a key that is there; makes one that is not."""
        there = Compare(key=key(number), target=Compare.VERSION, result=Compare.GREATER, version=0)
        read = RequestOp(request_range=RangeRequest(key=key(number)))
        write = RequestOp(request_put=self._put(number))
        return TxnRequest(compare=[there], success=[read, write], failure=[write])

    def preload(self) -> Iterator[bytes]:
        """Yield the bodies of txns that put each key once."""
        per_txn = max(1, min(_PRELOAD_TXN_OPS, _PRELOAD_TXN_BYTES // max(1, self._size.high)))
        for low in range(0, self._keys.count, per_txn):
            yield _puts([self._put(i) for i in range(low, min(low + per_txn, self._keys.count))])


def _puts(puts: Sequence[PutRequest]) -> bytes:
    return TxnRequest(success=[RequestOp(request_put=put) for put in puts]).SerializeToString()

"""A read of all keys as a file: what `quorumlog get --from-key '' -o json` prints, or etcdctl."""

from __future__ import annotations

import json

from kvstore.checking.acknowledged import State
from kvstore.checking.fields import Fault, Fields
from kvstore.checking.history import Kv


class StateUnreadable(ValueError):
    """The file is no read of all keys. Whoever made it must make it again."""


def parse_state(text: bytes, name: str) -> State:
    """Raises StateUnreadable. Fields that a state does not need are passed over: etcd has more than we."""
    try:
        fields = Fields(json.loads(text.decode()), "")
        revision = fields.object("header").number("revision", low=1)
        if fields.flag("more"):
            raise Fault("more", "says that keys are missing: it was read with a limit")
        kvs = {kv.key: kv for kv in (_kv(one) for one in fields.objects("kvs", len(text)))}
    except Fault as fault:
        where = f", field {fault.field!r}" if fault.field else ""
        raise StateUnreadable(f"{name}{where}: {fault}") from None
    except (ValueError, RecursionError):
        raise StateUnreadable(f"{name} is no JSON as `get --from-key '' -o json` prints it") from None
    return State(name, revision, kvs, is_file=True)


def _kv(fields: Fields) -> Kv:
    return Kv(
        fields.base64("key"),
        fields.base64("value", b""),  # what is empty or zero is left out, as etcd does
        fields.number("create_revision"),
        fields.number("mod_revision"),
        fields.number("version"),
    )

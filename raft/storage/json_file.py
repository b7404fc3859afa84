"""Small files of JSON that are replaced whole, and prove to be whole.

People may read them with a pager; a checksum in the file keeps a flipped bit, and a helpful hand, from
turning one id into another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from zlib import crc32

from raft.core.membership_codec import MEMBERSHIP_BYTES_MAX
from raft.storage.disk import Disk
from raft.storage.errors import CorruptIdentity, FormatTooNew

JSON_FORMAT_VERSION = 1
JSON_BYTES_MAX = 4 * 1024 * 1024 + 2 * MEMBERSHIP_BYTES_MAX
"""More than any file has: a configuration stands in hexadecimal digits in one of them."""
_CHECKSUM = "crc32"


def write_json(disk: Disk, directory: str, name: str, content: Mapping[str, Any]) -> None:
    """Replace `name` by `content`, durably: the file is the old or the new one at every moment.

    Raises OSError; the file on disk is then one of the two.
    """
    body = {"format": JSON_FORMAT_VERSION, **content}
    text = json.dumps({**body, _CHECKSUM: _checksum(body)}, indent=2, sort_keys=True) + "\n"
    path = f"{directory}/{name}"
    temporary = f"{path}.new"
    file = disk.open(temporary, create=True)
    try:
        file.truncate(0)
        file.write_at(text.encode(), 0)
        file.sync_data()
    finally:
        file.close()
    disk.rename(temporary, path)
    disk.sync_directory(directory)


def read_json(disk: Disk, directory: str, name: str) -> dict[str, Any]:
    """Return what `write_json` wrote. Raises FileNotFoundError, CorruptIdentity, FormatTooNew, OSError."""
    path = f"{directory}/{name}"
    file = disk.open(path)
    try:
        size = file.size()
        if size > JSON_BYTES_MAX:
            raise CorruptIdentity(path, f"the file has {size} bytes, at most {JSON_BYTES_MAX} are expected")
        raw = file.read_at(size, 0)
    finally:
        file.close()
    try:
        content = json.loads(raw.decode())
    except (ValueError, RecursionError):
        raise CorruptIdentity(path, "the file is not JSON; it was damaged or written by hand") from None
    if not isinstance(content, dict):
        raise CorruptIdentity(path, "the file does not hold a JSON object")
    version = content.get("format")
    if isinstance(version, int) and version > JSON_FORMAT_VERSION:
        raise FormatTooNew(path, version, JSON_FORMAT_VERSION)
    checksum = content.pop(_CHECKSUM, None)
    if version != JSON_FORMAT_VERSION or checksum != _checksum(content):
        raise CorruptIdentity(path, "the checksum is wrong; the file was damaged or changed by hand")
    return content


def _checksum(content: Mapping[str, Any]) -> str:
    return f"{crc32(json.dumps(content, sort_keys=True).encode()):08x}"

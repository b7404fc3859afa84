"""Takes a JSON object of unknown origin apart, field by field."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

NUMBER_MAX: Final = 2**63 - 1


class Fault(ValueError):
    """Something is wrong with a field; the caller knows in which line."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(text)
        self.field = field


class Fields:
    """An object whose fields are taken one by one. What is left at the end is a mistake: a misspelt field
    that is passed over would be believed to say what its absence says."""

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise Fault(path, "is no JSON object")
        self._left: dict[str, Any] = value
        self.path = path

    def has(self, name: str) -> bool:
        return name in self._left

    def number(self, name: str, *, low: int = 0, default: int | None = None) -> int:
        value = self._take(name, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise Fault(self._path_of(name), "is no whole number")
        if not low <= value <= NUMBER_MAX:
            raise Fault(self._path_of(name), f"is not from {low} to 2^63-1")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._take(name, default)
        if not isinstance(value, str):
            raise Fault(self._path_of(name), "is no string")
        return value

    def flag(self, name: str, *, is_required: bool = False) -> bool:
        value = self._take(name, None if is_required else False)
        if not isinstance(value, bool):
            raise Fault(self._path_of(name), "is neither true nor false")
        return value

    def data(self, name: str, default: bytes | None = None) -> bytes:
        """Bytes: a string, which is their UTF-8, or {"base64": "..."}."""
        if default is not None and name not in self._left:
            return default
        value = self._take(name, None)
        try:
            if isinstance(value, str):
                return value.encode()
            if isinstance(value, dict) and value.keys() == {"base64"}:
                return base64.b64decode(value["base64"], validate=True)
        except UnicodeEncodeError:
            raise Fault(self._path_of(name), 'holds half a surrogate pair; use {"base64": ...}') from None
        except (binascii.Error, TypeError, ValueError):
            raise Fault(self._path_of(name), "is no base64") from None
        raise Fault(self._path_of(name), 'is neither a string nor {"base64": ...}')

    def base64(self, name: str, default: bytes | None = None) -> bytes:
        """Bytes in the way of etcd's JSON."""
        if default is not None and name not in self._left:
            return default
        try:
            return base64.b64decode(self.text(name), validate=True)
        except (binascii.Error, ValueError) as error:
            if isinstance(error, Fault):
                raise
            raise Fault(self._path_of(name), "is no base64") from None

    def object(self, name: str) -> Fields:
        return Fields(self._take(name, None), self._path_of(name))

    def objects(self, name: str, count_max: int) -> list[Fields]:
        """A list of objects; one that is absent is empty."""
        value = self._take(name, [])
        path = self._path_of(name)
        if not isinstance(value, list):
            raise Fault(path, "is no list")
        if len(value) > count_max:
            raise Fault(path, f"has more than {count_max}")
        return [Fields(one, f"{path}[{i}]") for i, one in enumerate(value)]

    def end(self) -> None:
        for name in self._left:
            raise Fault(self._path_of(name[:60]), "is not known")

    def _take(self, name: str, default: Any) -> Any:
        value = self._left.pop(name, default)
        if value is None:
            raise Fault(self._path_of(name), "is missing")
        return value

    def _path_of(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

"""Fields of decoded JSON by name: ``user.id`` is the key ``id`` in the object ``user``, or a key that is called so. Pure.

At each level a key that stands there as it is named counts first, so that names with dots in them (OpenTelemetry's ``http.method``) are
found, alone or behind others: ``attributes.http.method``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

MISSING: Final[Any] = object()


def find(data: Any, name: str) -> Any:
    """The value, or MISSING."""
    while isinstance(data, dict):
        if name in data:
            return data[name]
        head, dot, name = name.partition(".")
        if not dot or head not in data:
            break
        data = data[head]
    return MISSING


def changed(data: dict[str, Any], name: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    """``data`` with another value there, what ``change`` makes of the present one; MISSING: without it. Nothing there: ``data`` itself."""
    if name in data:
        value = change(data[name])
        return {**data, name: value} if value is not MISSING else {key: item for key, item in data.items() if key != name}
    head, dot, rest = name.partition(".")
    inner = data.get(head) if dot else None
    if not isinstance(inner, dict):
        return data
    new = changed(inner, rest, change)
    return data if new is inner else {**data, head: new}


def put(data: dict[str, Any], source: Any, name: str, value: Any) -> None:
    """Into ``data``, which is being made, the value that ``find(source, name)`` gave, in objects named as in ``source``."""
    head, dot, rest = name.partition(".")
    if name in source or not dot:
        data[name] = value
    else:
        put(data.setdefault(head, {}), source[head], rest, value)

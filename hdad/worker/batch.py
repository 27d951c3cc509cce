"""What a pipeline stage sees and makes: ``Record`` and ``Batch``. Pure; part of the public API.

A record keeps the position of the entry it came from, whatever stages do with it; that is how every entry is accounted for (I10).
Bytes are decoded when asked for, once: a stage that only looks at one field pays for one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import orjson

from hdad._core import decode_entry, encode_entry, single_value
from hdad.record import Position, RecordKind

_JSON_STARTS = (b"{", b"[")
_VALUE = int(RecordKind.VALUE)


Entry = tuple[int, int, bytes]  # ms, seq, raw body; a record keeps the very object it came from


class _Unset:
    __slots__ = ()


_UNSET = _Unset()


class Record:
    """One record: an entry as Redis had it (``fields``), or a value that a stage made (``value``).

    ``ms`` and ``seq`` are the entry's ID. Records are values: ``with_value`` and ``with_fields`` make new ones.
    """

    __slots__ = ("_body", "_data", "_fields", "kind", "origin", "stream")
    _fields: dict[bytes, bytes]

    def __init__(self, stream: str, origin: Entry, kind: int, body: bytes | None, data: Any = _UNSET) -> None:
        self.stream, self.origin, self.kind = stream, origin, kind
        self._body = body
        self._data = data

    @property
    def ms(self) -> int:
        """The first part of the entry's ID."""
        return self.origin[0]

    @property
    def seq(self) -> int:
        """The second part of the entry's ID."""
        return self.origin[1]

    @property
    def body(self) -> bytes:
        """The bytes that go into the log. Raises TypeError if a stage's value has no JSON (orjson)."""
        if self._body is None:
            self._body = orjson.dumps(self._data)
        return self._body

    @property
    def position(self) -> Position:
        """The entry's ID."""
        return Position(self.origin[0], self.origin[1])

    @property
    def fields(self) -> dict[bytes, bytes]:
        """The entry's fields. Of a field that stands there twice, the last. Empty for a value."""
        try:
            return self._fields
        except AttributeError:
            self._fields = dict(decode_entry(self.body)) if self.kind == RecordKind.ENTRY else {}
            return self._fields

    @property
    def value(self) -> bytes | None:
        """The bytes that a stage made; None for an entry."""
        return self.body if self.kind == RecordKind.VALUE else None

    @property
    def data(self) -> Any:
        """The decoded content. Raises ValueError if it should be JSON and is not.

        Of a value: its JSON. Of an entry with one field: the JSON in it, if it begins like an object or array. Of any other entry: a
        dict of text, field by field (bytes that are not UTF-8 become U+FFFD).
        """
        if self._data is _UNSET:
            self._data = self._decode()
        return self._data

    def _decode(self) -> Any:
        if self.kind == RecordKind.VALUE:
            return orjson.loads(self.body)
        only = single_value(self.body)
        if only is not None and only.startswith(_JSON_STARTS):
            return orjson.loads(only)
        fields = self.fields
        return {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in fields.items()}

    def with_value(self, value: bytes | bytearray | str | Any) -> Record:
        """The same entry with a new value: bytes as they are, text as UTF-8, anything else as JSON (orjson), encoded once, at the end."""
        if isinstance(value, (bytes, bytearray)):
            return Record(self.stream, self.origin, _VALUE, bytes(value))
        if isinstance(value, str):
            return Record(self.stream, self.origin, _VALUE, value.encode())
        return Record(self.stream, self.origin, _VALUE, None, value)

    def with_fields(self, fields: dict[bytes, bytes]) -> Record:
        """The same entry with other fields."""
        return Record(self.stream, self.origin, RecordKind.ENTRY, encode_entry(fields.items()))

    def __repr__(self) -> str:
        content = self.fields if self.kind == RecordKind.ENTRY else self.body[:40]
        return f"Record({self.stream!r}, {self.position}, {RecordKind(self.kind).name}, {content!r})"


class Batch(Sequence[Record]):
    """Records of one stream, in stream order. Iterate it; ``stream`` is its name (bytes that are not UTF-8 are surrogate-escaped)."""

    __slots__ = ("_records", "stream")

    def __init__(self, stream: str, records: Sequence[Record]) -> None:
        self.stream = stream
        self._records = records

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

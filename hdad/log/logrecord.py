"""What a reader gives out: frames and records of the log. Formats: no I/O; part of the public API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from hdad._core import decode_entry
from hdad.errors import FormatError
from hdad.log.format import FrameHeader
from hdad.record import Position, RecordKind


@dataclass(frozen=True, slots=True)
class Frame:
    """One valid frame. ``payload`` is a view of a private buffer. ``lane`` is the stream's name (surrogate-escaped), "" if none."""

    header: FrameHeader
    payload: memoryview
    lane: str

    @property
    def lsn(self) -> int:
        """Its log sequence number."""
        return self.header.lsn


class LogRecord(NamedTuple):
    """One record. ``body``: as it is stored; see ``fields``, ``value`` and ``dead_letter``."""

    lane: str
    position: Position
    kind: RecordKind
    body: bytes
    lsn: int
    label_ns: int

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """Of an entry: its fields as Redis had them, in order. Of anything else: none."""
        return decode_entry(self.body) if self.kind is RecordKind.ENTRY else []

    @property
    def value(self) -> bytes | None:
        """The bytes that a stage made; None for an entry or a dead letter."""
        return self.body if self.kind is RecordKind.VALUE else None

    @property
    def dead_letter(self) -> tuple[dict[str, Any], list[tuple[bytes, bytes]] | None] | None:
        """Why it failed, and the entry's fields (None when the entry was cut); None if this is no dead letter."""
        if self.kind is not RecordKind.DEAD_LETTER:
            return None
        size = int.from_bytes(self.body[:4], "little")
        if 4 + size > len(self.body):
            raise FormatError(f"LSN {self.lsn}: a dead letter whose reason is longer than it")
        try:
            fields = decode_entry(self.body[4 + size :])
        except ValueError:
            fields = None
        return orjson.loads(self.body[4 : 4 + size]), fields

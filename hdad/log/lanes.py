"""Rows of the lane table as segment heads and LANES frames hold them. Formats: bytes ↔ values only.

The payload is a table head and then, for each lane, a row and the lane's name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, Protocol, Self

from hdad.errors import FormatError
from hdad.limits import LANE_NAME_BYTES_MAX, LANES_MAX
from hdad.log.fields import Field, codec
from hdad.record import Position

TABLE_FIELDS: Final = (
    Field(0, "Q", "segment_sequence", "writer", "of the segment that this frame lies in"),
    Field(8, "I", "row_count", "writer", "rows that follow"),
    Field(12, "I", "reserved", "writer", "zero"),
)
ROW_FIELDS: Final = (
    Field(0, "I", "id", "writer", "of the lane, from 1; never given twice in a log"),
    Field(4, "H", "name_size", "writer", "bytes of the name that follows the row"),
    Field(6, "H", "flags", "writer", "1: halted until an operator accepts; others zero"),
    Field(8, "Q", "epoch", "writer", "of the lane's newest assignment"),
    Field(16, "Q", "position_ms", "writer", "the lane is in the log up to here"),
    Field(24, "Q", "position_seq", "writer", ""),
    Field(32, "Q", "entries", "writer", "read: committed + dead + filtered"),
    Field(40, "Q", "committed", "writer", "entries with a result in the log"),
    Field(48, "Q", "dead", "writer", "entries in the log as dead letters"),
    Field(56, "Q", "filtered", "writer", "entries of which the pipeline kept nothing"),
    Field(64, "Q", "lost", "writer", "entries that Redis dropped before they were read"),
    Field(72, "Q", "frames", "writer", "data frames"),
    Field(80, "Q", "before", "writer", "entries the stream had ever had when the lane began; 2**63: not known"),
)
ROW_HEAD_SIZE: Final = 88
_HEAD: Final = codec(TABLE_FIELDS, 16)
_ROW: Final = codec(ROW_FIELDS, ROW_HEAD_SIZE)
_FLAG_HALTED: Final = 1
_U64: Final = 2**64
_UNKNOWN_ORDINAL: Final = _U64 - 1


BEFORE_UNKNOWN: Final = 2**63


class DataFrame(Protocol):
    """What a lane's row needs to know of a data frame; a header from a device or a frame in a ring."""

    @property
    def lane_id(self) -> int: ...
    @property
    def lane_epoch(self) -> int: ...
    @property
    def to(self) -> Position: ...
    @property
    def entry_count(self) -> int: ...
    @property
    def committed_count(self) -> int: ...
    @property
    def dead_count(self) -> int: ...
    @property
    def filtered_count(self) -> int: ...
    @property
    def lost_count(self) -> int: ...


class LaneRow(NamedTuple):
    """A lane as the log knows it. ``before``: entries that the stream had ever had when the lane began (BEFORE_UNKNOWN: not known).

    A tuple, since the writer makes one for each frame.
    """

    id: int
    name: bytes
    epoch: int
    position: Position
    entries: int = 0
    committed: int = 0
    dead: int = 0
    filtered: int = 0
    lost: int = 0
    frames: int = 0
    before: int = 0
    is_halted: bool = False

    @classmethod
    def new(cls, id: int, name: bytes, position: Position, before: int) -> Self:
        """A lane of which nothing was read yet."""
        return cls(id, name, 0, position, before=before)

    @property
    def ordinal(self) -> int:
        """How many entries the stream had had up to ``position``; 2**64 - 1 when that is not known (source/cursor)."""
        if self.before == BEFORE_UNKNOWN:
            return _UNKNOWN_ORDINAL
        return (self.before + self.entries + self.lost) % _U64

    @property
    def counts(self) -> tuple[int, ...]:
        """What only data frames change."""
        return self.entries, self.committed, self.dead, self.filtered, self.lost, self.frames

    def after(self, frame: DataFrame) -> LaneRow:
        """The row after a data frame of this lane."""
        id, name, _, _, entries, committed, dead, filtered, lost, frames, before, is_halted = self
        return LaneRow(
            id, name, frame.lane_epoch, frame.to, entries + frame.entry_count, committed + frame.committed_count, dead + frame.dead_count,
            filtered + frame.filtered_count, lost + frame.lost_count, frames + 1, before, is_halted,
        )  # fmt: skip


def rows_size(rows: Iterable[LaneRow]) -> int:
    """Bytes of a payload with these rows."""
    return _HEAD.size + sum(ROW_HEAD_SIZE + len(row.name) for row in rows)


def encode_rows(segment_sequence: int, rows: Iterable[LaneRow]) -> bytes:
    """The payload of a segment head or LANES frame."""
    parts: list[bytes] = []
    pack, add = _ROW.pack, parts.append
    for id_, name, epoch, (ms, seq), entries, committed, dead, filtered, lost, frames, before, is_halted in rows:
        flags = _FLAG_HALTED if is_halted else 0
        add(pack(id_, len(name), flags, epoch, ms, seq, entries, committed, dead, filtered, lost, frames, before))
        add(name)
    return _HEAD.pack(segment_sequence, len(parts) // 2, 0) + b"".join(parts)


def decode_rows(payload: memoryview | bytes) -> tuple[int, list[LaneRow]]:
    """(segment sequence, rows). Raises FormatError (I9)."""
    size = len(payload)
    if size < _HEAD.size:
        raise FormatError(f"lane table of {size} bytes")
    sequence, count, zero = _HEAD.unpack_from(payload)
    if zero or count > LANES_MAX:
        raise FormatError(f"lane table of {count} rows, reserved {zero}")
    rows: list[LaneRow] = []
    offset = _HEAD.size
    for _ in range(count):
        if offset + ROW_HEAD_SIZE > size:
            raise FormatError(f"lane table ends within row {len(rows)}")
        id_, name_size, flags, epoch, ms, seq, entries, committed, dead, filtered, lost, frames, before = _ROW.unpack_from(payload, offset)
        offset += ROW_HEAD_SIZE
        if not 0 < id_ < LANES_MAX or name_size > LANE_NAME_BYTES_MAX or offset + name_size > size or flags & ~_FLAG_HALTED:
            raise FormatError(f"lane table: row {len(rows)} has id {id_}, a name of {name_size} bytes, flags {flags}")
        name = bytes(payload[offset : offset + name_size])
        offset += name_size
        is_halted = bool(flags & _FLAG_HALTED)
        rows.append(LaneRow(id_, name, epoch, Position(ms, seq), entries, committed, dead, filtered, lost, frames, before, is_halted))
    if offset != size:
        raise FormatError(f"lane table: {size - offset} bytes after the last row")
    return sequence, rows

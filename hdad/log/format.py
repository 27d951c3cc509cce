"""The bytes of a frame: header codec, the validity rules, and the fast paths of worker and writer. Formats: bytes ↔ values only.

One field table drives the codec, FORMAT.md and ``hdactl log layout`` (log/fields).

A frame at an address is valid if and only if
 (1) its magic is HDADFRM1 and its version is known,          (2) its header CRC32C is right and its reserved bytes are zero,
 (3) its uuid is this log's,                                  (4) its address is where it lies,
 (5) its LSN is the one expected,                             (6) its predecessor CRC is the header CRC of the frame before it,
 (7) its writer epoch is not smaller than its predecessor's, nor, from the superblock's begin_lsn on, than the superblock's,
 (8) it ends within its segment, its payload ends within it, and its kind is one of the device's,
 (9) its payload CRC32C is right.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final, NamedTuple

from crc32c import crc32c

from hdad._core import build_header, stamp_header
from hdad.log.fields import Field, codec
from hdad.record import Position

MAGIC: Final = b"HDADFRM1"
VERSION: Final = 1  # FORMAT: a change of anything here needs a new one


class FrameKind(IntEnum):
    """What a frame holds. From 128 on: in rings only, never on a device."""

    DATA = 1
    SEGMENT_HEAD = 2
    LANES = 3
    PADDING = 4
    HELLO = 128


DEVICE_KINDS: Final = frozenset((FrameKind.DATA, FrameKind.SEGMENT_HEAD, FrameKind.LANES, FrameKind.PADDING))


FIELDS: Final = (
    Field(0, "I", "header_crc", "writer", "CRC32C of bytes 4 to 192"),
    Field(4, "I", "payload_crc", "worker", "CRC32C of the payload, stored_size bytes"),
    Field(8, "8s", "magic", "worker", "HDADFRM1"),
    Field(16, "H", "version", "worker", "1"),
    Field(18, "B", "kind", "worker", "1 data, 2 segment head, 3 lanes, 4 padding"),
    Field(19, "B", "codec", "worker", "0: the payload is stored as it is"),
    Field(20, "I", "reserved", "worker", "zero"),
    Field(24, "16s", "uuid", "writer", "of the log"),
    Field(40, "Q", "lsn", "writer", "log sequence number: +1 each frame, the first is 1"),
    Field(48, "Q", "durable_lsn", "writer", "everything up to it was durable when this frame was stamped"),
    Field(56, "Q", "address", "writer", "byte on the device where this frame begins"),
    Field(64, "Q", "writer_epoch", "writer", "of the writer that stamped it"),
    Field(72, "I", "predecessor_crc", "writer", "header_crc of the frame with the LSN before; 0 for the first"),
    Field(76, "I", "lane_id", "worker", "data: which lane; otherwise 0"),
    Field(80, "Q", "lane_epoch", "worker", "data: of the lane's assignment; segment head: the segment's sequence"),
    Field(88, "Q", "from_ms", "worker", "data: the frame covers positions after this one; segment head: segments left out before it"),
    Field(96, "Q", "from_seq", "worker", ""),
    Field(104, "Q", "to_ms", "worker", "data: up to and including this one"),
    Field(112, "Q", "to_seq", "worker", ""),
    Field(120, "I", "record_count", "worker", "records in the payload; segment head and lanes: rows"),
    Field(124, "I", "entry_count", "worker", "stream entries that were read for it"),
    Field(128, "I", "stored_size", "worker", "bytes of the payload"),
    Field(132, "I", "raw_size", "worker", "the same before the codec; padding: bytes from its address to the segment's end"),
    Field(136, "Q", "label_ns", "worker", "wall clock, for people"),
    Field(144, "Q", "lost_count", "worker", "entries that Redis dropped before they were read, found with this frame"),
    Field(152, "I", "filtered_count", "worker", "entries of which the pipeline kept nothing"),
    Field(156, "I", "dead_count", "worker", "entries that became dead letters"),
    Field(160, "I", "worker", "worker", "index of the worker that built it"),
    Field(164, "28s", "reserved_end", "worker", "zero"),
)
FRAME_HEADER_SIZE: Final = 192
_HEADER: Final = codec(FIELDS, FRAME_HEADER_SIZE)
_ZEROS: Final = bytes(28)


class FrameHeader(NamedTuple):
    """All fields, in the order of the table."""

    header_crc: int
    payload_crc: int
    magic: bytes
    version: int
    kind: int
    codec: int
    reserved: int
    uuid: bytes
    lsn: int
    durable_lsn: int
    address: int
    writer_epoch: int
    predecessor_crc: int
    lane_id: int
    lane_epoch: int
    from_ms: int
    from_seq: int
    to_ms: int
    to_seq: int
    record_count: int
    entry_count: int
    stored_size: int
    raw_size: int
    label_ns: int
    lost_count: int
    filtered_count: int
    dead_count: int
    worker: int
    reserved_end: bytes

    @property
    def from_(self) -> Position:
        """Positions after this one are covered."""
        return Position(self.from_ms, self.from_seq)

    @property
    def to(self) -> Position:
        """The last position that is covered."""
        return Position(self.to_ms, self.to_seq)

    @property
    def committed_count(self) -> int:
        """Entries of which at least one record is here, dead letters not counted."""
        return self.entry_count - self.filtered_count - self.dead_count


assert FrameHeader._fields == tuple(field.name for field in FIELDS)


class Expectation(NamedTuple):
    """What the next frame has to be. ``end``: of its segment. ``predecessor_crc`` None: not known (the first frame looked at)."""

    uuid: bytes
    address: int
    lsn: int
    predecessor_crc: int | None
    writer_epoch_min: int
    end: int
    block_size: int


def frame_size(stored_size: int, block_size: int) -> int:
    """Bytes a frame takes: header and payload, rounded up to whole blocks."""
    return -(-(FRAME_HEADER_SIZE + stored_size) // block_size) * block_size


def occupied(header: FrameHeader, block_size: int) -> int:
    """Bytes from this frame's address to the next frame's."""
    return header.raw_size if header.kind == FrameKind.PADDING else frame_size(header.stored_size, block_size)


def build_frame_header(
    view: memoryview,
    *,
    kind: int,
    lane_id: int,
    lane_epoch: int,
    from_: Position,
    to: Position,
    record_count: int,
    entry_count: int,
    stored_size: int,
    payload_crc: int,
    label_ns: int,
    lost_count: int,
    filtered_count: int,
    dead_count: int,
    worker: int,
    raw_size: int | None = None,
) -> None:
    """Everything that ``stamp`` does not fill. ``view``: at least the header's bytes. Whole frames are sealed by ``hdad._core``."""
    build_header(
        view, kind, payload_crc, (lane_id, lane_epoch), from_, to, record_count, entry_count, stored_size,
        stored_size if raw_size is None else raw_size, label_ns, lost_count, filtered_count, dead_count, worker,
    )  # fmt: skip


def stamp(view: memoryview, *, uuid: bytes, lsn: int, durable_lsn: int, address: int, writer_epoch: int, predecessor_crc: int) -> int:
    """Make a frame one of this log, at this place. Returns the header CRC."""
    return stamp_header(view, uuid, lsn, durable_lsn, address, writer_epoch, predecessor_crc)


def decode_header(view: memoryview | bytes) -> FrameHeader:
    """All fields, unchecked. ``view``: at least FRAME_HEADER_SIZE bytes."""
    return FrameHeader._make(_HEADER.unpack_from(view))


def encode_header(header: FrameHeader) -> bytes:
    """The bytes that ``decode_header`` read."""
    return _HEADER.pack(*header)


def broken_rules(view: memoryview, header: FrameHeader, expected: Expectation) -> list[int]:
    """Rules (1) to (8) that a header breaks, none if it is valid. A payload is checked by ``is_payload_right``."""
    if header.magic != MAGIC or header.version != VERSION:
        return [1]
    if header.reserved or header.codec or header.reserved_end != _ZEROS or crc32c(view[4:FRAME_HEADER_SIZE]) != header.header_crc:
        return [2]
    broken = []
    if header.uuid != expected.uuid:
        broken.append(3)
    if header.address != expected.address:
        broken.append(4)
    if header.lsn != expected.lsn:
        broken.append(5)
    if expected.predecessor_crc is not None and header.predecessor_crc != expected.predecessor_crc:
        broken.append(6)
    if header.writer_epoch < expected.writer_epoch_min:
        broken.append(7)
    size = occupied(header, expected.block_size)
    if (
        header.kind not in DEVICE_KINDS
        or size < max(expected.block_size, FRAME_HEADER_SIZE + header.stored_size)
        or size % expected.block_size
        or expected.address + size > expected.end
    ):
        broken.append(8)
    return broken


def is_payload_right(header: FrameHeader, payload: memoryview) -> bool:
    """Rule (9). ``payload``: ``stored_size`` bytes; of padding, none."""
    return len(payload) == header.stored_size and crc32c(payload) == header.payload_crc


def is_of_log(view: memoryview, uuid: bytes, address: int) -> FrameHeader | None:
    """A frame of this log that lies where it says, whatever its LSN; None if there is none. The payload is not looked at."""
    if bytes(view[8:16]) != MAGIC:
        return None
    header = decode_header(view)
    if header.uuid != uuid or header.address != address or header.version != VERSION or header.kind not in DEVICE_KINDS:
        return None
    return header if crc32c(view[4:FRAME_HEADER_SIZE]) == header.header_crc else None

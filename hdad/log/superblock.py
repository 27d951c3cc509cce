"""Superblock copies and lease blocks: codecs and the choice among copies. Formats: bytes ↔ values only.

A copy is valid if and only if magic, version and CRC are right. Of the valid copies the one with the highest sequence counts. An update
is written copy by copy with a flush between, so at any instant at least one whole copy is there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from crc32c import crc32c

from hdad.errors import ForeignDeviceError, GeometryMismatchError, UnknownVersionError
from hdad.log.fields import Field, codec
from hdad.log.geometry import SEGMENTS_OFFSET, UNIT, Geometry, plan

SUPERBLOCK_MAGIC: Final = b"HDADSUP1"
LEASE_MAGIC: Final = b"HDADLSE1"
VERSION: Final = 1
SUPERBLOCK_FIELDS: Final = (
    Field(0, "I", "crc", "writer", "CRC32C of bytes 4 to 160"),
    Field(4, "I", "reserved", "format", "zero"),
    Field(8, "8s", "magic", "format", "HDADSUP1"),
    Field(16, "I", "version", "format", "1"),
    Field(20, "I", "block_size", "format", "512 or 4096; frames are whole blocks"),
    Field(24, "16s", "uuid", "format", "of the log"),
    Field(40, "Q", "sequence", "writer", "+1 each update; the highest valid copy counts"),
    Field(48, "Q", "writer_epoch", "writer", "+1 for each writer that opens the log"),
    Field(56, "Q", "size", "format", "of the device, bytes; another size is refused"),
    Field(64, "Q", "segment_size", "format", "bytes, a multiple of 4096"),
    Field(72, "Q", "segment_count", "format", "segments in the circle"),
    Field(80, "Q", "segments_offset", "format", "byte where segment 0 begins"),
    Field(88, "Q", "created_ns", "format", "wall clock, for people"),
    Field(96, "64s", "label", "format", "UTF-8, ends with zeros"),
)
LEASE_FIELDS: Final = (
    Field(0, "I", "crc", "writer", "CRC32C of bytes 4 to 216"),
    Field(4, "I", "slot", "writer", "which of the lease blocks this is"),
    Field(8, "8s", "magic", "writer", "HDADLSE1"),
    Field(16, "I", "version", "writer", "1"),
    Field(20, "I", "reserved", "writer", "zero"),
    Field(24, "16s", "log_uuid", "writer", "of the log"),
    Field(40, "16s", "node_uuid", "writer", "of the writer's host"),
    Field(56, "Q", "writer_epoch", "writer", "of the writer that ticks it"),
    Field(64, "Q", "counter", "writer", "+1 each tick"),
    Field(72, "Q", "durable_lsn", "writer", "everything up to it was durable before this block was written"),
    Field(80, "Q", "label_ns", "writer", "wall clock, for people"),
    Field(88, "128s", "contact", "writer", "UTF-8, ends with zeros"),
)
_SUPERBLOCK: Final = codec(SUPERBLOCK_FIELDS, 160)
_LEASE: Final = codec(LEASE_FIELDS, 216)
LABEL_BYTES_MAX: Final = 64
CONTACT_BYTES_MAX: Final = 128


@dataclass(frozen=True, slots=True)
class Superblock:
    """What a log is."""

    uuid: bytes
    sequence: int
    writer_epoch: int
    geometry: Geometry
    created_ns: int
    label: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """A writer's sign of life. ``durable_lsn`` is evidence that everything up to it was durable (I5)."""

    slot: int
    log_uuid: bytes
    node_uuid: bytes
    writer_epoch: int
    counter: int
    durable_lsn: int
    label_ns: int
    contact: str = ""


def _sealed(content: bytes) -> bytes:
    return struct.pack("<I", crc32c(content[4:])) + content[4:] + bytes(UNIT - len(content))


def encode_superblock(superblock: Superblock) -> bytes:
    """One copy, UNIT bytes."""
    g = superblock.geometry
    content = _SUPERBLOCK.pack(
        0,
        0,
        SUPERBLOCK_MAGIC,
        VERSION,
        g.block_size,
        superblock.uuid,
        superblock.sequence,
        superblock.writer_epoch,
        g.size,
        g.segment_size,
        g.segment_count,
        SEGMENTS_OFFSET,
        superblock.created_ns,
        superblock.label.encode()[:LABEL_BYTES_MAX],
    )
    return _sealed(content)


def decode_superblock(view: memoryview | bytes) -> Superblock | None:
    """One copy; None when there is none. Raises UnknownVersionError, FormatError (a geometry that cannot be)."""
    content = bytes(view[: _SUPERBLOCK.size])
    crc, zero, magic, version, block_size, uuid, sequence, epoch, size, segment_size, count, offset, created, label = _SUPERBLOCK.unpack(
        content
    )
    if magic != SUPERBLOCK_MAGIC or crc != crc32c(content[4:]) or zero:
        return None
    if version != VERSION:
        raise UnknownVersionError(f"an hdad log of format version {version}; this program knows {VERSION}")
    geometry = plan(size, block_size, segment_size)
    if geometry.segment_count != count or offset != SEGMENTS_OFFSET:
        raise GeometryMismatchError(
            f"superblock: {count} segments from {offset}; {geometry.segment_count} from {SEGMENTS_OFFSET} fit {size} bytes"
        )
    return Superblock(uuid, sequence, epoch, geometry, created, label.rstrip(b"\0").decode("utf-8", "replace"))


def choose(copies: Iterable[Superblock | None]) -> Superblock:
    """The copy that counts. Raises ForeignDeviceError when there is none, or when they are of different logs."""
    valid = [copy for copy in copies if copy is not None]
    if not valid:
        raise ForeignDeviceError("no hdad log here: no superblock copy is valid. Make one with: hdactl log format")
    if len({copy.uuid for copy in valid}) > 1:
        uuids = ", ".join(sorted({copy.uuid.hex() for copy in valid}))
        raise ForeignDeviceError(
            f"superblock copies of different logs ({uuids}): formatting was interrupted; format again with --force-uuid"
        )
    return max(valid, key=lambda copy: copy.sequence)


def encode_lease(lease: Lease) -> bytes:
    """One lease block, UNIT bytes."""
    content = _LEASE.pack(
        0,
        lease.slot,
        LEASE_MAGIC,
        VERSION,
        0,
        lease.log_uuid,
        lease.node_uuid,
        lease.writer_epoch,
        lease.counter,
        lease.durable_lsn,
        lease.label_ns,
        lease.contact.encode()[:CONTACT_BYTES_MAX],
    )
    return _sealed(content)


def decode_lease(view: memoryview | bytes, log_uuid: bytes) -> Lease | None:
    """One lease block of this log; None when there is none."""
    content = bytes(view[: _LEASE.size])
    crc, slot, magic, version, zero, uuid, node, epoch, counter, durable_lsn, label_ns, contact = _LEASE.unpack(content)
    if magic != LEASE_MAGIC or version != VERSION or crc != crc32c(content[4:]) or zero or uuid != log_uuid:
        return None
    return Lease(slot, uuid, node, epoch, counter, durable_lsn, label_ns, contact.rstrip(b"\0").decode("utf-8", "replace"))


def check_device(superblock: Superblock, size: int, logical_block_size: int) -> None:
    """Refuse a device that is not as it was. Raises GeometryMismatchError."""
    g = superblock.geometry
    if size != g.size:
        raise GeometryMismatchError(f"the log was made for {g.size} bytes, the device has {size}")
    if g.block_size % logical_block_size:
        raise GeometryMismatchError(f"the log has blocks of {g.block_size} bytes, the device of {logical_block_size}")


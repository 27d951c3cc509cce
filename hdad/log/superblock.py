"""Superblock copies and lease blocks: codecs and the choice among copies. Formats: bytes ↔ values only.

A copy is valid if and only if magic, version and CRC are right. Of the valid copies the one with the highest writer epoch counts, of
those the one with the highest sequence: a copy that a writer wrote late, after another had taken over, does not. An update is written copy
by copy with a flush between, so at any instant at least one whole copy is there.

A writer that takes over says in the superblock where its part of the log begins, before it writes any frame: frames of older epochs at or
past ``begin_lsn`` are void from then on, wherever they lie and whenever they get there (I4).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from crc32c import crc32c

from hdad.errors import ForeignDeviceError, GeometryMismatchError, UnknownVersionError
from hdad.log.fields import Field, codec
from hdad.log.geometry import SEGMENTS_OFFSET, UNIT, Geometry, plan

SUPERBLOCK_MAGIC: Final = b"HDADSUP1"
LEASE_MAGIC: Final = b"HDADLSE1"
VERSION: Final = 2  # FORMAT: 1 had neither beginnings of writers nor states of leases
SUPERBLOCK_FIELDS: Final = (
    Field(0, "I", "crc", "writer", "CRC32C of bytes 4 to 192"),
    Field(4, "I", "reserved", "format", "zero"),
    Field(8, "8s", "magic", "format", "HDADSUP1"),
    Field(16, "I", "version", "format", "2"),
    Field(20, "I", "block_size", "format", "512 or 4096; frames are whole blocks"),
    Field(24, "16s", "uuid", "format", "of the log"),
    Field(40, "Q", "sequence", "writer", "+1 each update; of valid copies of the highest writer epoch the highest counts"),
    Field(48, "Q", "writer_epoch", "writer", "+1 for each writer that opens the log"),
    Field(56, "Q", "size", "format", "of the device, bytes; another size is refused"),
    Field(64, "Q", "segment_size", "format", "bytes, a multiple of 4096"),
    Field(72, "Q", "segment_count", "format", "segments in the circle"),
    Field(80, "Q", "segments_offset", "format", "byte where segment 0 begins"),
    Field(88, "Q", "created_ns", "format", "wall clock, for people"),
    Field(96, "64s", "label", "format", "UTF-8, ends with zeros"),
    Field(160, "Q", "begin_sequence", "writer", "no frame of this writer epoch lies in an older segment"),
    Field(168, "Q", "begin_lsn", "writer", "frames from this LSN on are valid only with this writer epoch or a newer one"),
    Field(176, "16s", "writer_node", "writer", "uuid of the host whose writer raised the epoch; zeros: none has"),
)
LEASE_FIELDS: Final = (
    Field(0, "I", "crc", "writer", "CRC32C of bytes 4 to 272"),
    Field(4, "I", "slot", "writer", "which of the lease blocks this is"),
    Field(8, "8s", "magic", "writer", "HDADLSE1"),
    Field(16, "I", "version", "writer", "2"),
    Field(20, "I", "state", "writer", "0 active, 1 released, 2 claiming, 3 asking, 4 idle"),
    Field(24, "16s", "log_uuid", "writer", "of the log"),
    Field(40, "16s", "node_uuid", "writer", "of the writer's host"),
    Field(56, "Q", "writer_epoch", "writer", "of the writer that ticks it"),
    Field(64, "Q", "counter", "writer", "+1 each tick"),
    Field(72, "Q", "durable_lsn", "writer", "everything up to it was durable before this block was written"),
    Field(80, "Q", "label_ns", "writer", "wall clock, for people"),
    Field(88, "128s", "contact", "writer", "UTF-8, ends with zeros"),
    Field(216, "16s", "boot_uuid", "writer", "of the kernel's present life on that host"),
    Field(232, "16s", "successor", "writer", "released: uuid of the only host that may take over at once; zeros: any"),
    Field(248, "Q", "since_ns", "writer", "wall clock, for people: when this state began"),
    Field(256, "Q", "key", "writer", "reservation key of that host; 0: it uses none"),
    Field(264, "I", "renew_ms", "writer", "the longest pause between two ticks"),
    Field(268, "I", "timeout_ms", "writer", "the takeover timeout that this writer's own limits are made for"),
)
SUPERBLOCK_SIZE: Final = 192
LEASE_SIZE: Final = 272
_SUPERBLOCK: Final = codec(SUPERBLOCK_FIELDS, SUPERBLOCK_SIZE)
_LEASE: Final = codec(LEASE_FIELDS, LEASE_SIZE)
NOBODY: Final = bytes(16)
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
    begin_sequence: int = 0
    begin_lsn: int = 0
    writer_node: bytes = NOBODY

    def epoch_min(self, lsn: int) -> int:
        """The least writer epoch that a frame with this LSN may have."""
        return self.writer_epoch if lsn >= self.begin_lsn else 0


class LeaseState(IntEnum):
    """What a host says of itself in its lease block."""

    ACTIVE = 0  # it is the writer
    RELEASED = 1  # it was the writer, and has stopped: all is durable, nothing is on its way
    CLAIMING = 2  # it is about to become the writer
    ASKING = 3  # it asks the writer to release the log to it
    IDLE = 4  # it claimed or asked, and does not any more


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
    state: LeaseState = LeaseState.ACTIVE
    boot_uuid: bytes = NOBODY
    successor: bytes = NOBODY
    since_ns: int = 0
    key: int = 0
    renew_ms: int = 0
    timeout_ms: int = 0


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
        superblock.begin_sequence,
        superblock.begin_lsn,
        superblock.writer_node,
    )
    return _sealed(content)


def decode_superblock(view: memoryview | bytes) -> Superblock | None:
    """One copy; None when there is none. Raises UnknownVersionError, FormatError (a geometry that cannot be)."""
    content = bytes(view[: _SUPERBLOCK.size])
    crc, zero, magic, version, block_size, uuid, sequence, epoch, size, segment_size, count, offset, created, label, *begin = (
        _SUPERBLOCK.unpack(content)
    )
    if magic != SUPERBLOCK_MAGIC or zero:
        return None
    if version != VERSION and _is_sealed_by_another_version(content):
        raise UnknownVersionError(f"an hdad log of format version {version}; this program knows {VERSION}")
    if version != VERSION or crc != crc32c(content[4:]):
        return None
    geometry = plan(size, block_size, segment_size)
    if geometry.segment_count != count or offset != SEGMENTS_OFFSET:
        raise GeometryMismatchError(
            f"superblock: {count} segments from {offset}; {geometry.segment_count} from {SEGMENTS_OFFSET} fit {size} bytes"
        )
    return Superblock(uuid, sequence, epoch, geometry, created, label.rstrip(b"\0").decode("utf-8", "replace"), *begin)


def _is_sealed_by_another_version(content: bytes) -> bool:
    """Whether the CRC is right for the size that copies had, or will have: rot in the version field must not pass for another version."""
    crc = int.from_bytes(content[:4], "little")
    return crc in (crc32c(content[4:160]), crc32c(content[4:]))


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
    return max(valid, key=lambda copy: (copy.writer_epoch, copy.sequence))


def encode_lease(lease: Lease) -> bytes:
    """One lease block, UNIT bytes."""
    content = _LEASE.pack(
        0,
        lease.slot,
        LEASE_MAGIC,
        VERSION,
        lease.state,
        lease.log_uuid,
        lease.node_uuid,
        lease.writer_epoch,
        lease.counter,
        lease.durable_lsn,
        lease.label_ns,
        lease.contact.encode()[:CONTACT_BYTES_MAX],
        lease.boot_uuid,
        lease.successor,
        lease.since_ns,
        lease.key,
        lease.renew_ms,
        lease.timeout_ms,
    )
    return _sealed(content)


def decode_lease(view: memoryview | bytes, log_uuid: bytes) -> Lease | None:
    """One lease block of this log; None when there is none."""
    content = bytes(view[: _LEASE.size])
    crc, slot, magic, version, state, uuid, node, epoch, counter, durable_lsn, label_ns, contact, *more = _LEASE.unpack(content)
    if magic != LEASE_MAGIC or version != VERSION or crc != crc32c(content[4:]) or uuid != log_uuid or state > LeaseState.IDLE:
        return None
    text = contact.rstrip(b"\0").decode("utf-8", "replace")
    return Lease(slot, uuid, node, epoch, counter, durable_lsn, label_ns, text, LeaseState(state), *more)


def check_device(superblock: Superblock, size: int, logical_block_size: int) -> None:
    """Refuse a device that is not as it was. Raises GeometryMismatchError."""
    g = superblock.geometry
    if size != g.size:
        raise GeometryMismatchError(f"the log was made for {g.size} bytes, the device has {size}")
    if g.block_size % logical_block_size:
        raise GeometryMismatchError(f"the log has blocks of {g.block_size} bytes, the device of {logical_block_size}")


"""Forgeries: fields with values that no honest writer makes, under checksums that are right.

A forged frame keeps its place in the chain: the frames behind it are stamped anew, so that whoever follows the chain comes past it.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from typing import Final

from crc32c import crc32c

from hdad.log import format as frame_format
from hdad.log.fields import Field, codec
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind
from hdad.log.geometry import LEASES_OFFSET, UNIT
from hdad.log.lanes import ROW_FIELDS, ROW_HEAD_SIZE, TABLE_FIELDS
from hdad.log.superblock import LEASE_FIELDS, SUPERBLOCK_FIELDS
from tests.hostile.base import BaseLog, Frame

_TABLE_HEAD_SIZE: Final = 16
_EXTREMES: Final = (0, 1, 2, 3, 4, 7, 8, 127, 128, 191, 192, 511, 512, 513, 4095, 4096, 4097, 65_535, 65_536, 2**20, 2**31 - 1, 2**31,
                    2**32 - 193, 2**32 - 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1)  # fmt: skip


def _value(field: Field, old: int | bytes, rng: random.Random) -> int | bytes:
    """Another value for ``field``: an extreme, something near the old one, or anything."""
    if isinstance(old, bytes):
        return rng.choice((bytes(len(old)), b"\xff" * len(old), rng.randbytes(len(old))))
    limit = 1 << 8 * field.size
    near = old + rng.choice((-4096, -512, -1, 1, 512, 4096))
    return rng.choice((rng.choice(_EXTREMES), near, rng.randrange(limit))) % limit


def _forge_field(image: bytearray, address: int, fields: Sequence[Field], rng: random.Random, spare: Sequence[str]) -> str:
    """Change one field of the structure at ``address``, but none of ``spare``."""
    layout = codec(fields, sum(field.size for field in fields))
    values = list(layout.unpack_from(image, address))
    index = rng.choice([index for index, field in enumerate(fields) if field.name not in spare])
    old = values[index]
    values[index] = _value(fields[index], old, rng)
    layout.pack_into(image, address, *values)
    return f"{fields[index].name} at {address}: {values[index]!r} instead of {old!r}"


def _seal(image: bytearray, address: int, size: int) -> None:
    """The CRC32C of a structure that keeps it in its first four bytes."""
    image[address : address + 4] = struct.pack("<I", crc32c(bytes(image[address + 4 : address + size])))


def _restamp(base: BaseLog, image: bytearray, first: Frame) -> None:
    """Right header CRCs from ``first`` on, each with its predecessor's."""
    predecessor: int | None = None
    for frame in base.frames:
        if frame.header.lsn < first.header.lsn:
            continue
        if predecessor is not None:
            image[frame.address + 72 : frame.address + 76] = struct.pack("<I", predecessor)
        _seal(image, frame.address, FRAME_HEADER_SIZE)
        predecessor = struct.unpack_from("<I", image, frame.address)[0]


def _reseal_payload(image: bytearray, frame: Frame) -> None:
    """The payload's CRC over as many bytes as the header says now, if they are there."""
    size = min(struct.unpack_from("<I", image, frame.address + 128)[0], 1 << 22)
    content = bytes(image[frame.address + FRAME_HEADER_SIZE : frame.address + FRAME_HEADER_SIZE + size])
    image[frame.address + 4 : frame.address + 8] = struct.pack("<I", crc32c(content))


def _forge_header(base: BaseLog, image: bytearray, rng: random.Random) -> str:
    frame = rng.choice(base.frames)
    text = _forge_field(image, frame.address, frame_format.FIELDS, rng, ("header_crc", "predecessor_crc"))
    if rng.random() < 0.8:
        _reseal_payload(image, frame)
    _restamp(base, image, frame)
    return f"LSN {frame.header.lsn} (kind {frame.header.kind}): {text}"


def _forge_records(base: BaseLog, image: bytearray, rng: random.Random) -> str:
    """Bytes of a data frame's payload."""
    frame = rng.choice([frame for frame in base.frames if frame.header.kind == FrameKind.DATA and frame.header.stored_size] or base.frames)
    start, size = frame.address + FRAME_HEADER_SIZE, frame.size - FRAME_HEADER_SIZE
    if not size:
        return "nothing: an empty payload"
    for _ in range(rng.randint(1, 4)):
        offset = min(rng.choice((rng.randrange(size), rng.randrange(min(size, 24)))), size - 1)
        image[start + offset] = rng.choice((0, 1, 2, 3, 127, 128, 255, rng.randrange(256)))
    _reseal_payload(image, frame)
    _restamp(base, image, frame)
    return f"LSN {frame.header.lsn}: bytes of its records"


def _forge_table(base: BaseLog, image: bytearray, rng: random.Random) -> str:
    """A row, or the count of rows, of a segment head or LANES frame."""
    frame = rng.choice([frame for frame in base.frames if frame.header.kind in (FrameKind.SEGMENT_HEAD, FrameKind.LANES)])
    start = frame.address + FRAME_HEADER_SIZE
    has_row = frame.header.stored_size >= _TABLE_HEAD_SIZE + ROW_HEAD_SIZE
    if has_row and rng.random() < 0.7:
        text = _forge_field(image, start + _TABLE_HEAD_SIZE, ROW_FIELDS, rng, ())
    else:
        text = _forge_field(image, start, TABLE_FIELDS, rng, ())
    _reseal_payload(image, frame)
    _restamp(base, image, frame)
    return f"LSN {frame.header.lsn}: {text}"


def _forge_superblock(base: BaseLog, image: bytearray, rng: random.Random) -> str:
    addresses = base.geometry.copies if rng.random() < 0.7 else [rng.choice(base.geometry.copies)]
    state = rng.getstate()
    text = ""
    for address in addresses:
        rng.setstate(state)
        text = _forge_field(image, address, SUPERBLOCK_FIELDS, rng, ("crc", "magic"))
        _seal(image, address, 160)
    return f"superblock, {len(addresses)} copies: {text}"


def _forge_lease(base: BaseLog, image: bytearray, rng: random.Random) -> str:
    slots = [lease.slot for lease in base.leases] or [0]
    address = LEASES_OFFSET + rng.choice(slots) * UNIT
    text = _forge_field(image, address, LEASE_FIELDS, rng, ("crc", "magic", "log_uuid"))
    _seal(image, address, 216)
    return f"lease: {text}"


FORGERIES: Final[tuple[Callable[[BaseLog, bytearray, random.Random], str], ...]] = (
    _forge_header, _forge_header, _forge_header, _forge_records, _forge_table, _forge_table, _forge_superblock, _forge_lease,
)  # fmt: skip


def forge(base: BaseLog, image: bytearray, rng: random.Random) -> str:
    """One forgery, in words."""
    return rng.choice(FORGERIES)(base, image, rng)

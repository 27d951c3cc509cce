"""Damage of a whole log, drawn from a seed: what devices, cables, careless people and liars do to its bytes.

Accidents change bytes and leave checksums as they were: bits flip, sectors and blocks are zeroed, filled with garbage or ones, swapped,
duplicated elsewhere, shifted, left as they were before the last writer, and files are truncated, extended, wiped or spliced. They hit every
zone of the device. Forgeries (tests/hostile/forge.py) also make the checksums right again: nobody can tell that such bytes are a lie, but
sizes, counts and offsets in them must not be believed (I9).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from hdad.limits import MIB
from hdad.log.format import FrameKind, occupied
from hdad.log.geometry import LEASE_COUNT, LEASES_OFFSET, SEGMENTS_OFFSET, UNIT
from tests.hostile.base import BaseLog
from tests.hostile.forge import forge

SIZES: Final = (512, 512, 4096, 4096, 65_536)
EVERYTHING_ODDS: Final = 0.1  # a fault of the whole file
FORGED_ODDS: Final = 0.25
Extent = tuple[int, int]  # address, bytes


@dataclass
class Damaged:
    """A damaged log. ``is_forged``: some checksum was made right again, so that a lie may pass for the truth.
    ``is_restored``: a large part is as it was before the last writer, and may be a whole log again."""

    base: BaseLog
    image: bytearray
    faults: list[str] = field(default_factory=list)
    zones: list[str] = field(default_factory=list)
    is_forged: bool = False
    is_restored: bool = False


def zones_of(base: BaseLog) -> dict[str, list[Extent]]:
    """Every zone of the device and where it lies; what a log does not have is left out."""
    geometry = base.geometry
    zones: dict[str, list[Extent]] = {
        "superblock": [(address, UNIT) for address in geometry.copies],
        "lease": [(LEASES_OFFSET + slot * UNIT, UNIT) for slot in range(LEASE_COUNT)],
        "gap": [(LEASES_OFFSET + LEASE_COUNT * UNIT, SEGMENTS_OFFSET - LEASES_OFFSET - LEASE_COUNT * UNIT)],
        "head": [], "lanes": [], "header": [], "payload": [], "slack": [], "padding": [], "free": [],
    }  # fmt: skip
    ends = dict.fromkeys(range(geometry.segment_count), 0)
    for frame in base.frames:
        header = frame.header
        if header.kind == FrameKind.SEGMENT_HEAD:
            zones["head"].append((frame.address, frame.size))
        elif header.kind == FrameKind.LANES:
            zones["lanes"].append((frame.address, frame.size))
        elif header.kind == FrameKind.PADDING:
            zones["padding"].append((frame.address, header.raw_size))
        else:
            zones["header"].append((frame.address, 192))
            zones["payload"].append((frame.address + 192, frame.size - 192))
        end = frame.address + occupied(header, geometry.block_size)
        zones["slack"].append((frame.address + frame.size, end - frame.address - frame.size))
        index = (frame.address - SEGMENTS_OFFSET) // geometry.segment_size
        ends[index] = max(ends[index], end)
    for index, end in ends.items():
        start = max(end, geometry.segment_address(index))
        zones["free"].append((start, geometry.segment_address(index) + geometry.segment_size - start))
    behind = SEGMENTS_OFFSET + geometry.segment_count * geometry.segment_size
    zones["behind"] = [(behind, len(base.image) - behind)]
    return {name: some for name, found in zones.items() if (some := [extent for extent in found if extent[1] > 0])}


# -- accidents ---------------------------------------------------------------------------------------------------------------------------


def _place(damaged: Damaged, rng: random.Random) -> Extent:
    """A sector, a block or 64 KiB that begins in a zone drawn with equal odds, however small it is."""
    zones = zones_of(damaged.base)
    zone = rng.choice(sorted(zones))
    damaged.zones.append(zone)
    address, size = rng.choice(zones[zone])
    unit = rng.choice(SIZES)
    start = (address + rng.randrange(size)) // min(unit, 4096) * min(unit, 4096)
    return start, min(unit, len(damaged.image) - start)


def _flip(damaged: Damaged, rng: random.Random) -> str:
    zones = zones_of(damaged.base)
    zone = rng.choice(sorted(zones))
    damaged.zones.append(zone)
    address, size = rng.choice(zones[zone])
    bits = sorted((address + rng.randrange(size)) * 8 + rng.randrange(8) for _ in range(rng.randint(1, 8)))
    for bit in bits:
        damaged.image[bit // 8] ^= 1 << bit % 8
    return f"bits {bits} flipped in {zone}"


def _zero(damaged: Damaged, rng: random.Random) -> str:
    start, size = _place(damaged, rng)
    damaged.image[start : start + size] = bytes(size)
    return f"{size} bytes at {start} zeroed"


def _ones(damaged: Damaged, rng: random.Random) -> str:
    start, size = _place(damaged, rng)
    damaged.image[start : start + size] = b"\xff" * size
    return f"{size} bytes at {start} all ones"


def _garbage(damaged: Damaged, rng: random.Random) -> str:
    start, size = _place(damaged, rng)
    damaged.image[start : start + size] = rng.randbytes(size)
    return f"{size} bytes at {start} garbage"


def _swap(damaged: Damaged, rng: random.Random) -> str:
    (one, size), (two, other) = _place(damaged, rng), _place(damaged, rng)
    size = min(size, other)
    image = damaged.image
    image[one : one + size], image[two : two + size] = image[two : two + size], image[one : one + size]
    return f"{size} bytes at {one} and {two} swapped"


def _duplicate(damaged: Damaged, rng: random.Random) -> str:
    (one, size), (two, other) = _place(damaged, rng), _place(damaged, rng)
    size = min(size, other)
    damaged.image[two : two + size] = damaged.image[one : one + size]
    return f"{size} bytes at {one} again at {two}"


def _shift(damaged: Damaged, rng: random.Random) -> str:
    start, size = _place(damaged, rng)
    by = rng.randint(1, 511)
    damaged.image[start : start + size] = bytes(damaged.image[start + size - by : start + size] + damaged.image[start : start + size - by])
    return f"{size} bytes at {start} rotated by {by}"


def _former(damaged: Damaged, rng: random.Random) -> str:
    start, size = _place(damaged, rng)
    damaged.image[start : start + size] = damaged.base.former[start : start + size]
    return f"{size} bytes at {start} as before the last writer"


ACCIDENTS: Final[tuple[Callable[[Damaged, random.Random], str], ...]] = (
    _flip, _flip, _zero, _ones, _garbage, _swap, _duplicate, _shift, _former,
)  # fmt: skip


# -- faults of the whole file ------------------------------------------------------------------------------------------------------------


def _truncate(damaged: Damaged, rng: random.Random) -> str:
    whole = len(damaged.image)
    size = rng.choice((0, 1, 511, 4096, 4 * UNIT, MIB, rng.randrange(whole), whole - 1, whole - UNIT))
    del damaged.image[size:]
    return f"truncated to {size} bytes"


def _extend(damaged: Damaged, rng: random.Random) -> str:
    size = rng.choice((1, 512, 4096, MIB))
    damaged.image += rng.choice((bytes(size), rng.randbytes(size)))
    return f"{size} bytes longer"


def _wipe(damaged: Damaged, rng: random.Random) -> str:
    start = rng.choice((0, 0, rng.randrange(len(damaged.image))))
    size = min(rng.choice((4096, MIB, 2 * MIB, len(damaged.image))), len(damaged.image) - start)
    damaged.image[start : start + size] = bytes(size) if rng.random() < 0.5 else rng.randbytes(size)
    return f"{size} bytes at {start} wiped"


def _splice(damaged: Damaged, rng: random.Random) -> str:
    """The end of the log as it was before its last writer: half of a restore."""
    damaged.is_restored = True
    start = rng.randrange(0, len(damaged.image), 4096)
    damaged.image[start:] = damaged.base.former[start:]
    return f"from {start} on as before the last writer"


WHOLE: Final[tuple[Callable[[Damaged, random.Random], str], ...]] = (_truncate, _truncate, _extend, _wipe, _wipe, _splice)


def damage(base: BaseLog, rng: random.Random) -> Damaged:
    """One to six accidents, or a fault of the whole file, or forgeries, which may come with accidents."""
    damaged = Damaged(base, bytearray(base.image))
    what = rng.random()
    if what < FORGED_ODDS:
        damaged.is_forged = True
        for _ in range(rng.randint(1, 3)):
            damaged.faults.append(forge(base, damaged.image, rng))
            damaged.zones.append("forged")
    if what >= FORGED_ODDS + EVERYTHING_ODDS or (damaged.is_forged and rng.random() < 0.3):
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            damaged.faults.append(rng.choice(ACCIDENTS)(damaged, rng))
    elif not damaged.is_forged:
        damaged.zones.append("everything")
        damaged.faults.append(rng.choice(WHOLE)(damaged, rng))
    return damaged

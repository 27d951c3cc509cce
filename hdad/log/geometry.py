"""Where things lie on the device. Pure arithmetic; nobody else computes an address."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from hdad.errors import FormatError
from hdad.limits import KIB, MIB, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN, SEGMENTS_MIN

UNIT: Final = 4096  # superblock copies and lease blocks take one each, whatever the block size
SEGMENTS_OFFSET: Final = MIB
LEASES_OFFSET: Final = 2 * UNIT
LEASE_COUNT: Final = 8
BLOCK_SIZES: Final = (512, 4096)
SEGMENT_BYTES_DEFAULT: Final = 256 * MIB
SEGMENT_BYTES_SMALL: Final = 4 * MIB  # chosen for small devices: takes frames of the default size


@dataclass(frozen=True, slots=True)
class Geometry:
    """All sizes in bytes. ``size``: of the device when it was formatted."""

    size: int
    block_size: int
    segment_size: int
    segment_count: int

    @property
    def copies(self) -> tuple[int, ...]:
        """Addresses of the superblock copies."""
        end = self.size // UNIT * UNIT
        return 0, UNIT, end - 2 * UNIT, end - UNIT

    @property
    def frame_size_max(self) -> int:
        """The largest frame: a quarter of a segment."""
        return self.segment_size // 4

    def segment_address(self, sequence: int) -> int:
        """Where the segment with this sequence begins."""
        return SEGMENTS_OFFSET + sequence % self.segment_count * self.segment_size

    def segment_end(self, sequence: int) -> int:
        """Where it ends."""
        return self.segment_address(sequence) + self.segment_size


def plan(size: int, block_size: int, segment_size: int = 0) -> Geometry:
    """A geometry for a device of ``size`` bytes. ``segment_size`` 0: 256 MiB, or on a small device less, 4 MiB at least.

    Raises FormatError.
    """
    if block_size not in BLOCK_SIZES:
        raise FormatError(f"block size {block_size}; allowed: {', '.join(map(str, BLOCK_SIZES))}")
    room = size // UNIT * UNIT - SEGMENTS_OFFSET - 2 * UNIT
    if not segment_size:
        segment_size = SEGMENT_BYTES_DEFAULT
        while segment_size > SEGMENT_BYTES_SMALL and room // segment_size < 2 * SEGMENTS_MIN:
            segment_size //= 2
    if not SEGMENT_BYTES_MIN <= segment_size <= SEGMENT_BYTES_MAX or segment_size % UNIT:
        raise FormatError(f"segment size {segment_size}; allowed: {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}, a multiple of {UNIT}")
    count = max(0, room) // segment_size
    if count < SEGMENTS_MIN:
        need = SEGMENTS_OFFSET + SEGMENTS_MIN * segment_size + 2 * UNIT
        raise FormatError(f"a device of {size} bytes is too small: {SEGMENTS_MIN} segments of {segment_size // KIB} KiB need {need} bytes")
    return Geometry(size, block_size, segment_size, count)

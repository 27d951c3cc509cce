"""What is gone from a damaged log, and what is left that knows it: computed from bytes that changed, without hdad's recovery or reader."""

from __future__ import annotations

from typing import NamedTuple

from hdad.log.format import FrameKind, occupied
from hdad.log.geometry import LEASES_OFFSET, SEGMENTS_OFFSET, UNIT
from tests.hostile.base import BaseLog, Frame
from tests.hostile.damage import Damaged

LEASE_SIZE = 216


class Missing(NamedTuple):
    """``told_lsns``: frames that are not whole any more, and that something recovery looks at calls durable, so that their loss must be
    told: a lease block, a frame of a segment with a whole head, or a frame of the segment in which they lie. ``last_lsn``: their last.

    A segment whose head is gone is found only from the last frame before it. Its head, that frame and all lease blocks gone together are
    more than the fault model promises to tell (tests/sim/disk.py): recovery reads one segment, not two.
    """

    last_lsn: int
    told_lsns: list[int]


def missing_of(damaged: Damaged) -> Missing:
    """Compare a damaged log with what it was."""
    base, image, whole = damaged.base, damaged.image, damaged.base.image
    lease_lsn = 0
    for lease in base.leases:
        address = LEASES_OFFSET + lease.slot * UNIT
        if image[address : address + LEASE_SIZE] == whole[address : address + LEASE_SIZE]:
            lease_lsn = max(lease_lsn, lease.durable_lsn)
    gone: list[Frame] = []
    witnesses: dict[int, int] = {}  # by segment: what its whole frames call durable
    headless, lost = set(), set()
    is_last_gone = False
    for frame in base.frames:
        segment = (frame.address - SEGMENTS_OFFSET) // base.geometry.segment_size
        if image[frame.address : frame.address + frame.size] == whole[frame.address : frame.address + frame.size]:
            witnesses[segment] = max(witnesses.get(segment, 0), frame.header.durable_lsn)
        else:
            gone.append(frame)
            if frame.header.kind == FrameKind.SEGMENT_HEAD:
                headless.add(segment)
                if is_last_gone:
                    lost.add(segment)
        is_last_gone = bool(gone) and gone[-1] is frame
    reused = being_reused(base)
    told = []
    for frame in gone:
        own = (frame.address - SEGMENTS_OFFSET) // base.geometry.segment_size
        evidence = max([lease_lsn, *(lsn for segment, lsn in witnesses.items() if segment not in (lost if segment == own else headless))])
        if frame.header.lsn <= evidence and frame.address not in reused:
            told.append(frame.header.lsn)
    return Missing(max(told, default=0), told)


def being_reused(base: BaseLog) -> range:
    """The addresses of the oldest segment when the newest is full: what is wrong there looks like a write that had begun."""
    geometry, last = base.geometry, base.frames[-1]
    newest = max(frame.header.lane_epoch for frame in base.frames if frame.header.kind == FrameKind.SEGMENT_HEAD)
    if newest + 1 < geometry.segment_count or last.address + occupied(last.header, geometry.block_size) < geometry.segment_end(newest):
        return range(0)
    return range(geometry.segment_address(newest + 1), geometry.segment_end(newest + 1))

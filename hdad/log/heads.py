"""Segment heads on a device, as readers look for them: where the log begins, goes on, and is newest. Edge: reads, keeps nothing.

``superblock`` is as the reader knows it; it is set anew when another writer has begun, and says which heads are void.
"""

from __future__ import annotations

from collections.abc import Callable

from hdad.errors import CorruptionError
from hdad.log.device import BlockDevice
from hdad.log.format import FRAME_HEADER_SIZE, is_payload_right
from hdad.log.geometry import UNIT
from hdad.log.lanes import LaneRow
from hdad.log.opening import carry_out
from hdad.log.recovery import LOOKS_MAX, Head, being_reused, find_newest, head_at, no_head, recover, rows_of
from hdad.log.superblock import Superblock


class Heads:
    """Sequences in, heads out. All methods raise DeviceError."""

    def __init__(self, device: BlockDevice, superblock: Superblock) -> None:
        self.superblock = superblock
        self._device = device
        self._geometry = superblock.geometry

    def in_place_of(self, sequence: int) -> Head | None:
        """The head at the place of this sequence, of whichever lap."""
        index = sequence % self._geometry.segment_count
        return head_at(self._device.read(self._geometry.segment_address(sequence), UNIT), self.superblock, index)

    def at(self, sequence: int) -> Head | None:
        """The head of the segment with this sequence, if it is still, or already, there."""
        head = self.in_place_of(sequence)
        return head if head is not None and head.sequence == sequence else None

    def newest(self) -> Head:
        """Raises CorruptionError: there is none."""
        head = carry_out(self._device, find_newest(self.superblock))
        if head is None:
            raise no_head(self.superblock)
        return head

    def oldest(self, newest: Head) -> Head:
        """The oldest that is there, when ``newest`` is the newest."""
        for sequence in range(self.first(newest), newest.sequence):
            head = self.at(sequence)
            if head is not None:
                return head
        return newest

    def ends(self) -> tuple[Head, Head, set[int]]:
        """The newest and the oldest head, of one moment: a writer that goes on overwrites what had been the oldest. And the sequences
        before the oldest whose heads should be there: the circle has room for them, and nobody left them out."""
        newest = self.newest()
        for _ in range(LOOKS_MAX):
            oldest = self.oldest(newest)
            missing = set(range(self.first(newest), oldest.sequence)) - set(oldest.left_out)
            before, newest = newest, self.newest() if missing else newest
            if newest.sequence == before.sequence:
                return newest, oldest, missing
        return newest, oldest, set()

    def are_being_overwritten(self, missing: set[int], newest: Head, evidence_lsn: int) -> bool:
        """Whether these old heads may be missing since a write in flight is over them, or was torn there by a crash."""
        if newest.sequence + 1 < self._geometry.segment_count:
            return False
        try:
            log = carry_out(self._device, recover(self.superblock, evidence_lsn, accept_damage=True))
        except CorruptionError:
            return False
        has_moved_on = missing == {self.first(newest)} and log.sequence != newest.sequence
        return has_moved_on or missing <= set(being_reused(log, self.superblock))

    def first(self, newest: Head) -> int:
        """The sequence of the segment that should be the oldest."""
        return max(0, newest.sequence + 1 - self._geometry.segment_count)

    def following(self, sequence: int) -> Head | None:
        """The next head after this sequence that is part of the log. Up to where the last writer took over, segments may be left out."""
        found, last = None, max(sequence + 1, self.superblock.begin_sequence)
        for later in range(sequence + 1, min(last + 1, sequence + self._geometry.segment_count)):
            head = self.at(later)
            if head is not None:
                if found is not None and found.sequence not in head.left_out:
                    break
                found = head
        return found

    def last(self, oldest: Head, newest: Head, fits: Callable[[Head], bool]) -> Head:
        """Bisection: the last head from ``oldest`` to ``newest`` that fits; ``oldest`` if none does."""
        low, high, best = oldest.sequence, newest.sequence, oldest
        while low <= high:
            middle = (low + high) // 2
            head = self.at(middle)
            if head is not None and fits(head):
                best, low = head, middle + 1
            elif head is None:
                low = middle + 1  # overwritten since we looked: what is wanted lies later, or is gone
            else:
                high = middle - 1
        return best

    def table(self, head: Head) -> list[LaneRow]:
        """The lane table at ``head``; none when it is not whole."""
        size = FRAME_HEADER_SIZE + head.header.stored_size
        if size > self._geometry.segment_size:  # I9
            return []
        view = self._device.read(head.header.address, -(-size // UNIT) * UNIT)
        if not is_payload_right(head.header, view[FRAME_HEADER_SIZE:size]):
            return []
        try:
            return rows_of(head.header, view[FRAME_HEADER_SIZE:size])
        except CorruptionError:
            return []

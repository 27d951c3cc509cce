"""The writer's side of one ring: how far it was read, what waits in it for durability, and whether its worker rings the bell.

Runs in the writer. Ring room is given back only when its frames are durable, since the device reads from it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from hdad._core import RingFrame, scan_frames
from hdad.errors import LocalProtocolError
from hdad.exchange.slots import RING_BLOCK, WorkerSlot

BYTES_PER_ROUND: Final = 8 * 1024 * 1024  # LIMIT: admitted from one ring before the others have their turn


class Intake:
    """``scanned``: read up to here; ``held``: ends of frames and the LSN each waits for. ``is_watched``: a publish rings the bell."""

    __slots__ = ("held", "is_watched", "scanned", "slot")

    def __init__(self, slot: WorkerSlot) -> None:
        self.slot = slot
        self.scanned = slot.data.head
        self.held: deque[tuple[int, int]] = deque()
        self.is_watched = False

    @property
    def has_news(self) -> bool:
        """True: there is something that was not scanned yet."""
        return self.slot.data.tail != self.scanned

    def frames(self) -> list[RingFrame]:
        """What is new, whole frames with the right payload CRC, up to BYTES_PER_ROUND. Raises LocalProtocolError (I9)."""
        ring = self.slot.data
        available = ring.tail - self.scanned
        if not available:
            return []
        self.wake()
        try:
            return scan_frames(ring.view(self.scanned, available), RING_BLOCK, BYTES_PER_ROUND)
        except ValueError as error:
            raise LocalProtocolError(f"ring {self.slot.index} at {self.scanned}: {error}") from error

    def taken(self, size: int, lsn: int) -> None:
        """A frame of ``size`` bytes was dealt with; its room waits for ``lsn`` (0: for nothing)."""
        self.scanned += size
        self.held.append((self.scanned, lsn))

    def watch(self) -> bool:
        """From now on a publish rings the bell. True: something is there already; do not sleep."""
        if not self.is_watched:
            self.is_watched = True
            return self.slot.data.consumer_sleep(self.scanned)
        return self.has_news

    def wake(self) -> None:
        """The bell need not be rung for this ring."""
        if self.is_watched:
            self.is_watched = False
            self.slot.data.consumer_awake()

    def drop_all(self) -> None:
        """Give back everything that is in the ring."""
        size = len(self.slot.data.poll())
        if size:
            self.slot.data.release(size)
        self.scanned = self.slot.data.head

    def release(self, durable_lsn: int) -> bool:
        """Give back what is durable. True: the worker waits for room."""
        end, held = 0, self.held
        while held and held[0][1] <= durable_lsn:
            end = held.popleft()[0]
        return bool(end) and self.slot.data.release(end - self.slot.data.head)

"""Builds frames in the worker's ring: claims room, packs records behind the header's place, publishes whole frames.

Runs in a worker. A frame that was not published does not exist (I6); published ones stay until the writer has made them durable. Frames
in the ring are multiples of RING_BLOCK, so that the device's DMA can start at any of them. When the ring has no room the answer is
None, never a wait (I7). One native call packs and seals a frame: what Python does here is the same for one entry and for thousands.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson

from hdad._core import Record, Ring, XReadReply, measure_records, pack_values, seal_frame
from hdad.clock import wall_ns
from hdad.exchange.slots import RING_BLOCK
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind, frame_size
from hdad.record import ORIGIN, Position
from hdad.worker.lane import Lane

RECORD_HEADER_SIZE: Final = 24
_DATA: Final = int(FrameKind.DATA)
_HELLO: Final = int(FrameKind.HELLO)
PUBLISH_BYTES: Final = 256 * 1024  # frames of one reply are published together, but the writer is not kept waiting for more than this
ValueRecord = tuple[int, int, int, bytes]  # ms, seq, kind, body


class FrameBuilder:
    """One worker's way into its ring."""

    def __init__(self, ring: Ring, worker: int, frame_bytes_max: int) -> None:
        self._ring = ring
        self._worker = worker
        self.frame_bytes_max = frame_bytes_max // RING_BLOCK * RING_BLOCK
        self.payload_bytes_max = self.frame_bytes_max - FRAME_HEADER_SIZE
        self._together = min(PUBLISH_BYTES, ring.capacity // 4)
        self._view: memoryview | None = None  # room that is claimed
        self._used = 0  # of it, by frames that are not published yet
        self.wake_writer = False  # True: something was published while the writer slept; ring the bell
        self.frames = 0
        self.records = 0

    def _room(self, payload_bytes: int) -> memoryview | None:
        """Room for a frame with so much payload, behind those that wait to be published. None: the ring has no room."""
        size = min(self.frame_bytes_max, frame_size(payload_bytes, RING_BLOCK))
        if self._view is not None:
            if self._used + size <= len(self._view):
                return self._view[self._used : self._used + size]
            self.publish()
        self._view = self._ring.claim(max(size, self._together)) or self._ring.claim(size)
        if self._view is None:
            if not self._ring.producer_sleep(size):
                return None
            self._ring.producer_awake()
            self._view = self._ring.claim(size)
        return self._view if self._view is None or len(self._view) == size else self._view[:size]

    def announce(self) -> bool:
        """A reply is here, frames follow. True: the writer sleeps, ring its bell early."""
        return self._ring.announce()

    def publish(self) -> None:
        """Show the writer what was built."""
        if self._used:
            self.wake_writer |= self._ring.publish(self._used)
        self._view, self._used = None, 0

    def _add(self, size: int, record_count: int) -> None:
        self._used += size
        self.frames += 1
        self.records += record_count

    def entries(self, lane: Lane, reply: XReadReply, stream: int, skip: int, bytes_bound: int, entry_bytes_max: int) -> int | None:
        """Pack entries of ``reply`` from ``skip`` on into one frame, natively. Returns how many; None: no room in the ring.

        The frame is seen after ``publish``, or when PUBLISH_BYTES are together. 0 means that the entry at ``skip`` is larger than
        ``entry_bytes_max``. ``bytes_bound``: no more than this is there to pack.
        """
        view = self._room(bytes_bound)
        if view is None:
            return None
        count, size, to = reply.pack_frame(
            stream, skip, view, entry_bytes_max, RING_BLOCK, _DATA, (lane.lane_id, lane.epoch), lane.framed, lane.lost, self._worker,
            wall_ns(),
        )  # fmt: skip
        if to is not None:
            self._add(size, count)
            lane.framed, lane.lost = to, 0
            if self._used >= self._together:
                self.publish()
        return count

    def values(
        self, lane: Lane, to: Position, records: Sequence[Record | ValueRecord], entry_count: int, filtered: int, dead: int
    ) -> bool | None:
        """One frame of ``records``, up to ``to``, published at once: a stage may kill this process with the next one's entries.

        None: no room in the ring. The caller sees that the records fit a frame.
        """
        stored, _ = measure_records(records)
        assert stored <= self.payload_bytes_max, "the caller splits"
        view = self._room(stored)
        if view is None:
            return None
        packed, used = pack_values(view[FRAME_HEADER_SIZE:], records)
        assert packed == len(records) and used == stored
        size = seal_frame(
            view, RING_BLOCK, _DATA, used, (lane.lane_id, lane.epoch), lane.framed, to, packed, entry_count, lane.lost, filtered, dead,
            self._worker, wall_ns(),
        )  # fmt: skip
        self._add(size, packed)
        lane.framed, lane.lost = to, 0
        self.publish()
        return True

    def hello(self, content: dict[str, object]) -> bool:
        """A HELLO for the writer. False: no room in the ring."""
        payload = orjson.dumps(content)
        view = self._room(len(payload))
        if view is None:
            return False
        stored = len(payload)
        assert stored <= self.payload_bytes_max, "the caller sends in pieces"
        view[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + stored] = payload
        size = seal_frame(view, RING_BLOCK, _HELLO, stored, (0, 0), ORIGIN, ORIGIN, 0, 0, 0, 0, 0, self._worker, wall_ns())
        self._add(size, 0)
        self.publish()
        return True

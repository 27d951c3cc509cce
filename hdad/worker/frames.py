"""Builds frames in the worker's ring: claims room, packs records behind the header's place, publishes whole frames.

Runs in a worker. A frame that was not published does not exist (I6); published ones stay until the writer has made them durable. Frames
in the ring are multiples of RING_BLOCK, so that the device's DMA can start at any of them. When the ring has no room the answer is
None, never a wait (I7).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import orjson
from crc32c import crc32c

from hdad._core import Ring, XReadReply, pack_values
from hdad.clock import wall_ns
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind, build_frame_header
from hdad.record import Position
from hdad.worker.lane import Lane

RING_BLOCK: Final = 4096
RECORD_HEADER_SIZE: Final = 24
_ZEROS: Final = bytes(RING_BLOCK)
ValueRecord = tuple[int, int, int, bytes]  # ms, seq, kind, body


def ring_size(stored_size: int) -> int:
    """Bytes that a frame with ``stored_size`` bytes of payload takes in the ring."""
    return -(-(FRAME_HEADER_SIZE + stored_size) // RING_BLOCK) * RING_BLOCK


class FrameBuilder:
    """One worker's way into its ring."""

    def __init__(self, ring: Ring, worker: int, frame_bytes_max: int) -> None:
        self._ring = ring
        self._worker = worker
        self.frame_bytes_max = frame_bytes_max
        self.payload_bytes_max = frame_bytes_max - FRAME_HEADER_SIZE
        self.wake_writer = False  # True: something was published while the writer slept; ring the bell
        self.frames = 0
        self.records = 0

    def _claim(self, payload_bytes: int) -> memoryview | None:
        size = min(self.frame_bytes_max, ring_size(payload_bytes))
        view = self._ring.claim(size)
        if view is None:
            if not self._ring.producer_sleep(size):
                return None
            self._ring.producer_awake()
            view = self._ring.claim(size)
        return view

    def _publish(
        self, view: memoryview, lane: Lane, to: Position, stored_size: int, record_count: int, entry_count: int, filtered: int, dead: int
    ) -> None:
        payload = view[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + stored_size]
        build_frame_header(
            view,
            kind=FrameKind.DATA,
            lane_id=lane.lane_id,
            lane_epoch=lane.epoch,
            from_=lane.framed,
            to=to,
            record_count=record_count,
            entry_count=entry_count,
            stored_size=stored_size,
            payload_crc=crc32c(payload),
            label_ns=wall_ns(),
            lost_count=lane.lost,
            filtered_count=filtered,
            dead_count=dead,
            worker=self._worker,
        )
        self._seal(view, stored_size)
        lane.framed = to
        lane.lost = 0
        self.records += record_count

    def _seal(self, view: memoryview, stored_size: int) -> None:
        end = FRAME_HEADER_SIZE + stored_size
        size = ring_size(stored_size)
        view[end:size] = _ZEROS[: size - end]
        self.wake_writer |= self._ring.publish(size)
        self.frames += 1

    def entries(self, lane: Lane, reply: XReadReply, stream: int, skip: int, bytes_bound: int, entry_bytes_max: int) -> int | None:
        """Pack entries of ``reply`` from ``skip`` on into one frame, natively. Returns how many; None: no room in the ring.

        0 means that the entry at ``skip`` is larger than ``entry_bytes_max``. ``bytes_bound``: no more than this is there to pack.
        """
        view = self._claim(min(bytes_bound, self.payload_bytes_max))
        if view is None:
            return None
        packed, used, ms, seq = reply.pack(stream, skip, view[FRAME_HEADER_SIZE:], entry_bytes_max)
        if packed:
            self._publish(view, lane, Position(ms, seq), used, packed, packed, 0, 0)
        return packed

    def values(self, lane: Lane, to: Position, records: Sequence[ValueRecord], entry_count: int, filtered: int, dead: int) -> bool | None:
        """One frame of ``records``, up to ``to``. None: no room in the ring. The caller sees that they fit a frame."""
        size = sum(RECORD_HEADER_SIZE + len(body) for _, _, _, body in records)
        assert size <= self.payload_bytes_max, "the caller splits"
        view = self._claim(size)
        if view is None:
            return None
        packed, used = pack_values(view[FRAME_HEADER_SIZE:], list(records))
        assert packed == len(records) and used == size
        self._publish(view, lane, to, used, packed, entry_count, filtered, dead)
        return True

    def hello(self, content: dict[str, object]) -> bool:
        """A HELLO for the writer. False: no room in the ring."""
        payload = orjson.dumps(content)
        view = self._claim(len(payload))
        if view is None:
            return False
        stored = len(payload)
        assert stored <= self.payload_bytes_max, "the caller sends in pieces"
        view[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + stored] = payload
        build_frame_header(
            view,
            kind=FrameKind.HELLO,
            lane_id=0,
            lane_epoch=0,
            from_=Position(0, 0),
            to=Position(0, 0),
            record_count=0,
            entry_count=0,
            stored_size=stored,
            payload_crc=crc32c(payload),
            label_ns=wall_ns(),
            lost_count=0,
            filtered_count=0,
            dead_count=0,
            worker=self._worker,
        )
        self._seal(view, stored)
        return True

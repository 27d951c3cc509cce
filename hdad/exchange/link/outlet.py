"""A worker's ring whose frames go to another host: the link plays the writer's side of it.

Runs in the link of a host without the writer. Reads frames in order, and gives their room back only when the writer's host has released
the same room there: so to the worker an empty ring means, as ever, that everything is durable. Frames are never sent twice: when the
connection breaks, all that is in the ring is dropped, and the worker is asked to begin anew from the log's positions, as by a writer that
has just started (DESIGN, Rings). Until its first HELLO after that, whatever it publishes belongs to assignments that are over, and is
dropped.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Any, Final, NamedTuple

import orjson

from hdad._core import RingFrame, scan_frames
from hdad.errors import LocalProtocolError
from hdad.exchange.backring import Message, MessageType, Outbox
from hdad.exchange.link.scrutiny import seal
from hdad.exchange.link.wire import GONE_CREDIT, PIECE_BYTES_MAX
from hdad.exchange.slots import RING_BLOCK, WorkerSlot, ring_bell
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind

_DATA: Final = int(FrameKind.DATA)
SCAN_BYTES: Final = 1024 * 1024  # looked at in one go; at least one frame


class ChannelState(Enum):
    """Of a worker's channel."""

    CLOSED = "closed"
    OPENING = "opening"
    OPEN = "open"


class Piece(NamedTuple):
    """What goes out next. ``whole``: the frame's size with its first piece, else 0."""

    view: memoryview
    whole: int


class Held(NamedTuple):
    """Ring room up to ``end``, free once the far side has released ``far_end``. ``frame`` None: it was dropped, or is no data."""

    end: int
    far_end: int
    frame: RingFrame | None


class Outlet:
    """See the module."""

    def __init__(self, slot: WorkerSlot) -> None:
        self.slot = slot
        self.outbox = Outbox()
        self.state = ChannelState.CLOSED
        self.retry_ns = 0  # when to ask again for a ring over there
        self.idle_since_ns = 0  # since when there is no worker; 0: there is one
        self.generation = 0  # of the worker that greeted last
        self.is_introduced = False
        self._scanned = slot.data.head
        self._seen = self._scanned  # what lies before it was looked at
        self._ready: deque[RingFrame] = deque()  # looked at and not dealt with
        self._is_watched = False
        self._held: deque[Held] = deque()
        self._sent = 0  # far ring bytes used since OPENED
        self._credit_max = 0
        self._released = 0
        self._frame: memoryview | None = None
        self._offset = 0
        self._dead: tuple[int, int] | None = None  # (ring position, generation) of a worker that died

    def reset(self) -> None:
        """A new connection: drop what is in the ring, and ask the worker to begin anew."""
        size = len(self.slot.data.poll())
        if size and self.slot.data.release(size):
            ring_bell(self.slot.back_bell)
        self.state = ChannelState.CLOSED
        self._scanned = self._seen = self.slot.data.head
        self._held.clear()
        self._ready.clear()
        self._frame, self._offset = None, 0
        self._dead = None
        self.is_introduced = False
        self.retry_ns = 0
        self.outbox.clear()
        self.outbox.put(Message(MessageType.WHO))

    def opened(self, credit: int) -> None:
        """There is a ring over there."""
        self.state = ChannelState.OPEN
        self._credit_max, self._sent, self._released = credit, 0, 0

    @property
    def is_quiet(self) -> bool:
        """True: all that was sent is released."""
        return self._frame is None and self._sent == self._released and not self._held

    def died(self, generation: int) -> None:
        """The supervisor says: the worker's process has ended. What it had published is whole (I6)."""
        if self.generation <= generation:
            self._dead = self.slot.data.tail, generation

    def take_gone(self) -> bool:
        """True, once: the worker is dead and all its frames were sent; tell it over there."""
        if self._dead is None or self._scanned < self._dead[0] or self._frame is not None:
            return False
        generation = self._dead[1]
        if self.generation > generation or not self.is_introduced or self.state is not ChannelState.OPEN:
            self._dead = None  # its successor has greeted, which says the same; or nobody over there knows of it
            return False
        if self._sent + GONE_CREDIT - self._released > self._credit_max:
            return False
        self._dead = None
        self._sent += GONE_CREDIT
        self.is_introduced = False
        return True

    # -- frames out -------------------------------------------------------------------------------------------------------------------

    def next_piece(self) -> Piece | None:
        """The next piece; None: nothing is there, or there is no credit for it. Raises LocalProtocolError: the ring holds no frames."""
        if self._frame is None and not self._next_frame():
            return None
        assert self._frame is not None
        offset, size = self._offset, len(self._frame)
        view = self._frame[offset : offset + PIECE_BYTES_MAX]
        self._offset += len(view)
        if self._offset == size:
            self._frame, self._offset = None, 0
        return Piece(view, 0 if offset else size)

    def _scan(self) -> None:
        """Look at what is new in the ring."""
        ring = self.slot.data
        available = ring.tail - self._seen
        if not available:
            return
        self.wake()
        try:
            self._ready.extend(scan_frames(ring.view(self._seen, available), RING_BLOCK, SCAN_BYTES))
        except ValueError as error:
            raise LocalProtocolError(f"ring {self.slot.index} at {self._seen}: {error}") from error
        self._seen = self._scanned + sum(frame.size for frame in self._ready)

    def _next_frame(self) -> bool:
        if not self._ready:
            self._scan()
        while self._ready:
            frame = self._ready[0]
            if frame.kind == FrameKind.HELLO:
                self._look_at_hello(frame.payload)
            is_dropped = not self.is_introduced
            if not is_dropped:
                if self.state is not ChannelState.OPEN or self._sent + frame.size - self._released > self._credit_max:
                    return False
                self._frame, self._offset = frame.view[: FRAME_HEADER_SIZE + frame.stored_size], 0
                seal(self._frame)
                self._sent += frame.size
            self._ready.popleft()
            self._scanned += frame.size
            self._held.append(Held(self._scanned, self._sent, frame if frame.kind == _DATA and not is_dropped else None))
            if not is_dropped:
                return True
            self._release()
        return False

    def _look_at_hello(self, payload: memoryview) -> None:
        content: dict[str, Any] = orjson.loads(payload)
        if content.get("is_first"):
            self.generation = content["generation"]
            self.is_introduced = True
            self.idle_since_ns = 0

    # -- what comes back --------------------------------------------------------------------------------------------------------------

    def credited(self, released: int) -> list[RingFrame] | None:
        """Over there ``released`` bytes are free again. Returns the data frames that are done; None: the number cannot be."""
        if not self._released <= released <= self._sent:
            return None
        self._released = released
        return self._release()

    def _release(self) -> list[RingFrame]:
        done: list[RingFrame] = []
        end = 0
        while self._held and self._held[0].far_end <= self._released:
            held = self._held.popleft()
            end = held.end
            if held.frame is not None:
                done.append(held.frame)
        if end and self.slot.data.release(end - self.slot.data.head):
            ring_bell(self.slot.back_bell)
        return done

    def hear(self, message: Message) -> None:
        """A message for the worker. What waits before a WELCOME was for its predecessor, what waits before WHO from another writer."""
        if message.type in (MessageType.WELCOME, MessageType.WHO):
            self.outbox.clear()
            self.outbox.who = False
        self.outbox.put(message)

    def flush(self) -> None:
        """Messages for the worker, as many as fit."""
        if self.outbox and self.outbox.flush(self.slot.back):
            ring_bell(self.slot.back_bell)

    # -- sleeping ---------------------------------------------------------------------------------------------------------------------

    def sleep(self) -> bool:
        """From now on the worker rings when it publishes. True: it has by now, do not sleep."""
        if self._ready:
            return False  # there is enough; what lacks is credit
        if not self._is_watched:
            self._is_watched = True
            return self.slot.data.consumer_sleep(self._seen)
        return self.slot.data.tail != self._seen

    def wake(self) -> None:
        """No bells any more: it is looked at anyhow."""
        if self._is_watched:
            self._is_watched = False
            self.slot.data.consumer_awake()

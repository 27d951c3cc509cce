"""A ring of the writer's host whose worker is on another host: the link plays the worker's side of it.

Runs in the link of the writer's host. Owns which ring is whose, the generations, and what each remote worker was assigned. The writer
learns of a remote worker's end by a frame in its ring, behind everything that had come (``scrutiny.build_gone``): so death is in order
with the worker's frames, whichever process dies or restarts. A ring is given to another worker only when it is empty.

Generations are unique per ring for ever: the link's own generation (it grows with each fork), then a number of this link's. A link that
starts declares whoever its predecessor served dead.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from hdad.exchange.backring import Message, MessageType, decode, encode
from hdad.exchange.link.scrutiny import build_gone, check_payload, read_hello, stamp_worker
from hdad.exchange.link.wire import GONE_CREDIT, Reason, WireError
from hdad.exchange.slots import RING_BLOCK, WorkerSlot
from hdad.log.format import FRAME_HEADER_SIZE, FrameHeader, FrameKind

HELLOS_MAX: Final = 64  # LIMIT: first HELLOs of one ring that the writer has not welcomed yet
_ZEROS: Final = bytes(RING_BLOCK)
assert GONE_CREDIT == RING_BLOCK


def ring_size(size: int) -> int:
    """Bytes that a frame of ``size`` bytes takes in a ring."""
    return -(-size // RING_BLOCK) * RING_BLOCK


class InletState(Enum):
    """Of one ring."""

    FREE = "free"
    OPEN = "open"  # a remote worker's
    CLOSING = "closing"  # its worker is gone; the writer has not taken all of it yet


class Inlet:
    """See the module. ``link_generation``: of this process."""

    def __init__(self, slot: WorkerSlot, link_generation: int) -> None:
        self.slot = slot
        self.state = InletState.CLOSING if slot.data.tail else InletState.FREE
        self.credit_max = slot.data.capacity - GONE_CREDIT  # the last block is for the news of the end
        self.frames = 0
        self._is_gone_due = self.state is InletState.CLOSING
        self._generation = link_generation << 32
        self._said: dict[int, int] = {}  # generation here → the worker's own
        self._assigned: dict[int, int] = {}
        self._base = 0
        self._credited = 0
        self._is_watched = False
        self._view: memoryview | None = None
        self._header: FrameHeader | None = None

    @property
    def is_empty(self) -> bool:
        """True: the writer has taken everything, and what was to be durable is."""
        return self.slot.data.head == self.slot.data.tail

    @property
    def assigned(self) -> dict[int, int]:
        """Lane → newest epoch that this worker was told, since it is here. LIMIT: lanes of the log."""
        return self._assigned

    def open(self) -> int:
        """A remote worker gets this ring. Returns its bytes of credit."""
        assert self.state is InletState.FREE
        self.state = InletState.OPEN
        self._base, self._credited = self.slot.data.tail, 0
        self._assigned.clear()
        self._said.clear()
        self._drop_back()
        return self.credit_max

    def _drop_back(self) -> None:
        """What lies in the back ring was for somebody before."""
        size = len(self.slot.back.poll())
        if size:
            self.slot.back.release(size)

    # -- frames in --------------------------------------------------------------------------------------------------------------------

    def begin(self, header: FrameHeader, size: int) -> memoryview:
        """Room for a frame of ``size`` bytes whose header was checked. Raises WireError: the peer has no credit for it."""
        assert self.state is InletState.OPEN
        data = self.slot.data
        whole = ring_size(size)
        view = data.claim(whole) if data.tail - data.head + whole <= self.credit_max else None
        if view is None:
            raise WireError(f"link: a frame of {size} bytes, and no credit for it", Reason.LIES)
        self._view, self._header = view, header
        return view

    def end(self) -> bool:
        """The frame lies where ``begin`` said: check and publish it. True: wake the writer. Raises WireError."""
        view, header = self._view, self._header
        if view is None or header is None:
            raise WireError("link: the end of a frame that is not there", Reason.LIES)
        end = FRAME_HEADER_SIZE + header.stored_size
        payload = view[FRAME_HEADER_SIZE:end]
        check_payload(header, payload)
        stamp_worker(view, self.slot.index, self._greet(payload) if header.kind == FrameKind.HELLO else None)
        size = ring_size(end)
        view[end:size] = _ZEROS[: size - end]
        self._view = self._header = None
        self.frames += 1
        return self.slot.data.publish(size)

    def _greet(self, payload: memoryview) -> int:
        """A HELLO: its worker's generation in this ring, a new one if it is the worker's first."""
        content = read_hello(payload)
        if content.get("is_first"):
            if len(self._said) >= HELLOS_MAX:
                del self._said[next(iter(self._said))]  # the writer that it greeted has died since, or never lived
            self._generation += 1
            self._said[self._generation] = content["generation"]
        return self._generation

    def gone(self) -> bool:
        """The worker is dead; another may follow on this ring. True: wake the writer. Raises WireError: the peer has no credit for it."""
        if self._view is not None or self.slot.data.tail - self.slot.data.head + GONE_CREDIT > self.credit_max:
            raise WireError("link: news of a death in the middle of a frame, or without credit for it", Reason.LIES)
        return self._publish_gone()

    def _publish_gone(self) -> bool:
        view = self.slot.data.claim(GONE_CREDIT)
        if view is None:  # only after a restart of the link, when the ring holds the news of the last end already
            self._is_gone_due = True
            return False
        self._is_gone_due = False
        end = build_gone(view, self.slot.index, self._generation)
        view[end:GONE_CREDIT] = _ZEROS[: GONE_CREDIT - end]
        return self.slot.data.publish(GONE_CREDIT)

    def close(self) -> bool:
        """The connection or the channel is over. True: wake the writer."""
        assert self.state is InletState.OPEN
        self.state = InletState.CLOSING
        self._view = self._header = None  # what was claimed and not published does not exist (I6)
        return self._publish_gone()

    def settle(self) -> bool:
        """Free a ring that is done with. True: wake the writer."""
        if self.state is not InletState.CLOSING:
            return False
        if self._is_gone_due:
            return self._publish_gone()
        if self.is_empty:
            self._drop_back()
            self.state = InletState.FREE
        return False

    # -- messages out -----------------------------------------------------------------------------------------------------------------

    def take_back(self) -> tuple[list[bytes], bool]:
        """The writer's messages, as the worker shall see them, and whether the writer waits for room in the back ring."""
        back = self.slot.back
        if back.tail == back.head:
            return [], False
        if self._is_watched:
            self._is_watched = False
            back.consumer_awake()
        view = back.poll()
        size = len(view)
        messages = [encode(self._pass(message)) for message in decode(view)]
        view.release()
        return messages, back.release(size)

    def _pass(self, message: Message) -> Message:
        if message.type in (MessageType.ASSIGN, MessageType.REFUSED):
            self._assigned[message.lane_id] = max(message.lane_epoch, self._assigned.get(message.lane_id, 0))
        elif message.type is MessageType.WELCOME:
            own = self._said.get(message.extra, 0)
            for generation in [older for older in self._said if older <= message.extra]:
                del self._said[generation]
            return message._replace(extra=own)
        return message

    @property
    def free_bytes(self) -> int:
        """What the remote worker may still send, once it has heard of all credit."""
        return max(0, self.credit_max - (self.slot.data.tail - self.slot.data.head))

    def take_credit(self) -> int | None:
        """Ring bytes released since OPENED, if there are more than were told."""
        released = self.slot.data.head - self._base
        if released == self._credited:
            return None
        self._credited = released
        return released

    # -- sleeping ---------------------------------------------------------------------------------------------------------------------

    def sleep(self) -> bool:
        """From now on the writer rings when it says or releases something. True: it has by now, do not sleep."""
        data, back = self.slot.data, self.slot.back
        if self.state is InletState.FREE:
            return False
        if not self._is_watched:
            self._is_watched = True
            if back.consumer_sleep(back.head):
                return True
        if back.tail != back.head:
            return True
        used = data.tail - (self._base + self._credited if self.state is InletState.OPEN else data.head)
        return bool(used) and data.producer_sleep(data.capacity - used + 1)  # any release is news: there is credit to give

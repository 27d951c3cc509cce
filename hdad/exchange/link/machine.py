"""One connection between two links, sans-IO: received bytes become events, messages become bytes; what may be said when is a table.

Runs in a link, a feed or a reader; does no I/O and reads no clock. Frames are not copied through it: at the first piece of a frame comes
a ``FrameBegun``, the driver answers with ``place`` (where the frame is to lie, in a ring), and the bytes that follow land there,
whichever way they are cut. Invariants: memory is one receive buffer, and what the driver queued, which it keeps below OUT_BYTES_MAX by
asking ``has_room``; bytes of a frame that was not ended are never seen by anybody (I6); whatever the peer sends is checked first (I9).

    spaces() → where the next bytes shall land; received(n); then next_event() until it is None
    send(...), send_piece(...) → outgoing() → what to give to the kernel; sent(n)
    tick(now_ns): pings, and the limits of timeline.py
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import Final, NamedTuple

from hdad.errors import LocalProtocolError
from hdad.exchange.link.timeline import Timeline
from hdad.exchange.link.wire import (
    BODY_BYTES_MAX,
    HEAD_SIZE,
    PIECES,
    Greeting,
    Kind,
    Reason,
    Role,
    WireError,
    check_body,
    decode_greeting,
    decode_head,
    decode_reason,
    decode_words,
    encode,
    encode_bye,
    encode_greeting,
    encode_piece,
)
from hdad.limits import KIB
from hdad.log.format import FRAME_HEADER_SIZE

BUFFER_BYTES: Final = 64 * KIB  # LIMIT: received and not understood yet
DIRECT_BYTES_MIN: Final = 8 * KIB  # a piece of which more than this is missing is received in its place
OVERFLOW_BYTES: Final = 4 * KIB  # behind it, so that the next head comes along
OUT_BYTES_MAX: Final = 512 * KIB  # LIMIT: queued by a driver that asks ``has_room``
UNREAD_BYTES_MAX: Final = 2048 * KIB  # LIMIT: queued in answer to a peer that asks and does not read
CONTROL_PER_SECOND_MAX: Final = 2000  # LIMIT: messages of a worker host or reader that are no pieces of frames
SECOND_NS: Final = 1_000_000_000
assert BUFFER_BYTES > HEAD_SIZE + BODY_BYTES_MAX + OVERFLOW_BYTES


class State(Enum):
    """Of a connection."""

    GREETING = "greeting"  # who connected has not been heard, or not been answered
    OPEN = "open"
    ENDED = "ended"  # a BYE went or came


_K, _R, _S = Kind, Role, State
# What the peer may say. Legend: (peer's role, our state) → kinds. A kind that is not there is GARBAGE.
HEARD: Final[dict[tuple[Role, State], frozenset[Kind]]] = {
    # a worker host says HELLO, then what its workers do
    (_R.WORKERS, _S.GREETING): frozenset((_K.HELLO, _K.BYE)),
    (_R.WORKERS, _S.OPEN): frozenset((_K.OPEN, _K.FRAME, _K.GONE, _K.CLOSE, _K.PING, _K.PONG, _K.BYE)),
    # the writer's host answers HELLO, then grants and reports
    (_R.WRITER, _S.GREETING): frozenset((_K.WELCOME, _K.NOT_WRITER, _K.BYE)),
    (_R.WRITER, _S.OPEN): frozenset((_K.OPENED, _K.FULL, _K.CREDIT, _K.BACK, _K.PING, _K.PONG, _K.BYE, _K.NOT_WRITER)),
    # a reader says HELLO and what it wants; then it only listens
    (_R.READER, _S.GREETING): frozenset((_K.HELLO, _K.BYE)),
    (_R.READER, _S.OPEN): frozenset((_K.SUBSCRIBE, _K.PING, _K.PONG, _K.BYE)),
    # the feed answers, then sends the log
    (_R.FEED, _S.GREETING): frozenset((_K.WELCOME, _K.BYE)),
    (_R.FEED, _S.OPEN): frozenset(
        (_K.LANE, _K.LOG, _K.PROGRESS, _K.END, _K.LAPPED, _K.DAMAGED, _K.PING, _K.PONG, _K.BYE)
    ),
}  # fmt: skip
# After the last word nothing is listened to.
HEARD.update({(role, _S.ENDED): frozenset() for role in Role})
_AFTER: Final[dict[tuple[State, Kind], State]] = {
    (_S.GREETING, _K.HELLO): _S.GREETING,  # open once it is answered
    (_S.GREETING, _K.WELCOME): _S.OPEN,
    (_S.GREETING, _K.NOT_WRITER): _S.ENDED,
    (_S.OPEN, _K.NOT_WRITER): _S.ENDED,
    (_S.GREETING, _K.BYE): _S.ENDED,
    (_S.OPEN, _K.BYE): _S.ENDED,
}  # every other message leaves the state as it is


class Greeted(NamedTuple):
    """HELLO or WELCOME came."""

    greeting: Greeting


class FrameBegun(NamedTuple):
    """The header of a frame of ``size`` bytes (padding not counted) is here; call ``place`` before the next event. ``header``: a copy."""

    kind: Kind
    channel: int
    size: int
    header: bytes


class FrameEnded(NamedTuple):
    """All of it lies where it was placed."""

    kind: Kind
    channel: int


class Told(NamedTuple):
    """Any other message."""

    kind: Kind
    channel: int
    value: int
    body: bytes


class Ended(NamedTuple):
    """The peer said BYE or NOT_WRITER. ``words``: why, or where the writer is."""

    reason: Reason | None
    words: str


Event = Greeted | FrameBegun | FrameEnded | Told | Ended


class Overdue(Exception):
    """A limit of the timeline has passed. ``reason``: which."""

    def __init__(self, reason: Reason, words: str) -> None:
        super().__init__(words)
        self.reason = reason


class _Partial:
    """A frame on its way. ``view`` is None until it is placed."""

    __slots__ = ("filled", "header", "size", "view")

    def __init__(self, size: int, header: bytes) -> None:
        self.size, self.header, self.filled = size, header, 0
        self.view: memoryview | None = None


class Connection:
    """``roles``: those the peer may have. ``is_caller``: this side connected and greets first. ``is_patient``: a peer may be silent."""

    def __init__(
        self, greeting: Greeting, roles: Sequence[Role], *, is_caller: bool, frame_bytes_max: int, now_ns: int, is_patient: bool = False
    ) -> None:  # fmt: skip
        self.greeting = greeting
        self.peer: Greeting | None = None
        self.state = State.GREETING
        self.timeline = Timeline(greeting.silence_ms * 1_000_000, greeting.silence_ms * 1_000_000)
        self.rtt_ns = 0  # of the newest ping that was answered
        self.received_bytes = self.sent_bytes = 0
        self._roles = tuple(roles)
        self._frame_bytes_max = frame_bytes_max
        self._is_patient = is_patient
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._start = self._end = 0
        self._partials: dict[int, _Partial] = {}
        self._current: _Partial | None = None
        self._current_kind, self._current_channel = Kind.FRAME, 0
        self._piece_left = 0
        self._waiting_for_place = False
        self._out: deque[bytes | memoryview] = deque()
        self.out_bytes = 0
        self._now_ns = self._born_ns = self._heard_ns = self._begun_ns = self._said_ns = now_ns
        self._second_ns, self._second_count = now_ns, 0
        self._is_inside = False  # a message has begun and is not whole
        self._out_since_ns = 0  # since when bytes wait that the kernel does not take; 0: none do
        if is_caller:
            self._put(encode(Kind.HELLO, body=encode_greeting(greeting)))

    # -- bytes in ---------------------------------------------------------------------------------------------------------------------

    def spaces(self) -> list[memoryview]:
        """Where received bytes are to land, in order; never empty."""
        if self.state is State.ENDED:  # what still comes is thrown away, and lands in nobody's ring
            self._start, self._end, self._current = 0, 0, None
        if self._start == self._end:
            self._start = self._end = 0
        elif self._start > BUFFER_BYTES // 2:
            rest = bytes(self._buffer[self._start : self._end])
            self._buffer[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        direct = self._direct()
        if direct is not None:
            return [direct, self._buffer[self._end : self._end + OVERFLOW_BYTES]]
        return [self._buffer[self._end :]]

    def _direct(self) -> memoryview | None:
        partial = self._current
        if partial is None or partial.view is None or self._start != self._end or self._piece_left < DIRECT_BYTES_MIN:
            return None
        return partial.view[partial.filled : partial.filled + self._piece_left]

    def received(self, size: int, now_ns: int) -> None:
        """``size`` bytes landed in what ``spaces`` gave last."""
        self.received_bytes += size
        self._now_ns = self._heard_ns = now_ns
        direct = self._direct()
        if direct is not None:
            assert self._current is not None
            here = min(size, len(direct))
            self._current.filled += here
            self._piece_left -= here
            size -= here
        self._end += size
        assert self._end <= BUFFER_BYTES, "more bytes than there was space"

    def next_event(self) -> Event | None:
        """The next event in what was received; None: more bytes are needed. Raises WireError, after which nothing is asked again."""
        if self.state is State.ENDED:
            self._start, self._end, self._current = 0, 0, None
            return None
        assert not self._waiting_for_place, "a frame was announced and not placed"
        while True:
            if self._current is not None:
                ended = self._fill()
                if ended is not None:
                    return ended
                if self._current is not None:
                    break
            available = self._end - self._start
            if available < HEAD_SIZE:
                break
            head = decode_head(self._buffer[self._start : self._start + HEAD_SIZE])
            self._check_allowed(head.kind)
            if head.kind in PIECES:
                begun = self._begin_piece(head.kind, head.channel, head.size, head.value)
                if begun is not None:
                    return begun
                if not self._piece_left:
                    break
                continue
            if available < HEAD_SIZE + head.size:
                break
            message = self._buffer[self._start : self._start + HEAD_SIZE + head.size]
            check_body(head, message)
            body = bytes(message[HEAD_SIZE:])
            self._start += HEAD_SIZE + head.size
            self._whole()
            self._count_control()
            event = self._understand(head.kind, head.channel, head.value, body)
            if event is not None:
                return event
        is_inside = self._current is not None or self._end > self._start
        if is_inside and not self._is_inside:
            self._begun_ns = self._now_ns
        self._is_inside = is_inside
        return None

    def _whole(self) -> None:
        """A whole message came; one behind it may have begun."""
        self._begun_ns = self._now_ns

    def _count_control(self) -> None:
        if self._now_ns - self._second_ns >= SECOND_NS:
            self._second_ns, self._second_count = self._now_ns, 0
        self._second_count += 1
        if self._second_count > CONTROL_PER_SECOND_MAX and self.peer is not None and self.peer.role in (Role.WORKERS, Role.READER):
            raise WireError(f"link: more than {CONTROL_PER_SECOND_MAX} control messages in a second", Reason.FLOOD)

    def _check_allowed(self, kind: Kind) -> None:
        roles = (self.peer.role,) if self.peer is not None else self._roles
        if not any(kind in HEARD[role, self.state] for role in roles) or (kind is Kind.HELLO and self.peer is not None):
            raise WireError(f"link: {kind.name} from a {'/'.join(role.name for role in roles)} while {self.state.value}")

    def _begin_piece(self, kind: Kind, channel: int, size: int, whole: int) -> FrameBegun | None:
        partial = self._partials.get(channel)
        if partial is not None:
            if whole or size > partial.size - partial.filled:
                raise WireError(f"link: a piece of {size} bytes, whole {whole}; {partial.size - partial.filled} are missing")
            self._start += HEAD_SIZE
            self._current, self._current_kind, self._current_channel, self._piece_left = partial, kind, channel, size
            return None
        if not FRAME_HEADER_SIZE <= size <= whole <= self._frame_bytes_max:
            raise WireError(f"link: a frame of {whole} bytes begins with {size}; at most {self._frame_bytes_max}")
        if self._end - self._start < HEAD_SIZE + FRAME_HEADER_SIZE:
            return None
        self._start += HEAD_SIZE
        header = bytes(self._buffer[self._start : self._start + FRAME_HEADER_SIZE])
        self._current = self._partials[channel] = _Partial(whole, header)
        self._current_kind, self._current_channel, self._piece_left = kind, channel, size
        self._waiting_for_place = True
        return FrameBegun(kind, channel, whole, header)

    def place(self, view: memoryview) -> None:
        """Where the frame that has just begun is to lie: ``size`` bytes at least. They are the frame's when FrameEnded comes."""
        assert self._waiting_for_place and self._current is not None and len(view) >= self._current.size
        self._current.view = view
        self._waiting_for_place = False

    def _fill(self) -> FrameEnded | None:
        partial = self._current
        assert partial is not None and partial.view is not None
        size = min(self._end - self._start, self._piece_left)
        if size:
            partial.view[partial.filled : partial.filled + size] = self._buffer[self._start : self._start + size]
            partial.filled += size
            self._piece_left -= size
            self._start += size
        if self._piece_left:
            return None
        self._current = None
        self._whole()
        if partial.filled < partial.size:
            return None
        del self._partials[self._current_channel]
        partial.view = None
        return FrameEnded(self._current_kind, self._current_channel)

    def _understand(self, kind: Kind, channel: int, value: int, body: bytes) -> Event | None:
        self.state = _AFTER.get((self.state, kind), self.state)
        if kind is Kind.PING:
            if self.has_room:  # a peer that does not read needs no answer
                self._put(encode(Kind.PONG, 0, value))
            return None
        if kind is Kind.PONG:
            self.rtt_ns = max(0, self._now_ns - value)
            return None
        if kind in (Kind.HELLO, Kind.WELCOME):
            self.peer = decode_greeting(body)
            if self.peer.role not in self._roles:
                raise WireError(f"link: a {self.peer.role.name} here; wanted: {'/'.join(role.name for role in self._roles)}")
            self.timeline = Timeline(self.timeline.silence_ns, self.peer.silence_ms * 1_000_000)
            return Greeted(self.peer)
        if kind is Kind.NOT_WRITER:
            return Ended(None, decode_words(body, BODY_BYTES_MAX))
        if kind is Kind.BYE:
            return Ended(decode_reason(value), decode_words(body, BODY_BYTES_MAX))
        return Told(kind, channel, value, body)

    # -- bytes out --------------------------------------------------------------------------------------------------------------------

    @property
    def has_room(self) -> bool:
        """False: enough is queued; go on when it has been sent."""
        return self.out_bytes < OUT_BYTES_MAX

    def welcome(self, greeting: Greeting) -> None:
        """Answer HELLO: from now on the connection is open."""
        assert self.peer is not None and self.state is State.GREETING
        self.state = State.OPEN
        self._put(encode(Kind.WELCOME, body=encode_greeting(greeting)))

    def not_writer(self, contact: str) -> None:
        """The writer is elsewhere; the last word."""
        self._put(encode(Kind.NOT_WRITER, body=contact.encode()))
        self.state = State.ENDED

    def bye(self, reason: Reason, words: str = "") -> None:
        """The last word."""
        if self.state is not State.ENDED:
            self._put(encode_bye(reason, words))
            self.state = State.ENDED

    def send(self, kind: Kind, channel: int = 0, value: int = 0, body: bytes = b"") -> None:
        """Queue a message. Raises LocalProtocolError if the connection is not open."""
        if self.state is not State.OPEN:
            raise LocalProtocolError(f"link: {kind.name} while {self.state.value}")
        self._put(encode(kind, channel, value, body))

    def send_piece(self, kind: Kind, channel: int, piece: memoryview, whole: int) -> None:
        """Queue a piece of a frame; its memory stays as it is until sent. ``whole``: the frame's size with its first piece, else 0."""
        if self.state is not State.OPEN:
            raise LocalProtocolError(f"link: {kind.name} while {self.state.value}")
        self._put(encode_piece(kind, channel, len(piece), whole))
        self._put(piece)

    def _put(self, data: bytes | memoryview) -> None:
        self._out.append(data)
        self.out_bytes += len(data)
        if self.out_bytes > UNREAD_BYTES_MAX:
            raise WireError(f"link: {self.out_bytes} bytes wait for a peer that does not read", Reason.STALLED)

    def outgoing(self, count_max: int = 64) -> list[bytes | memoryview]:
        """What goes out next, in order; at most ``count_max`` buffers."""
        if len(self._out) <= count_max:
            return list(self._out)
        return [self._out[index] for index in range(count_max)]

    def sent(self, size: int, now_ns: int) -> None:
        """The kernel took ``size`` bytes of ``outgoing``; 0: it took none."""
        self.sent_bytes += size
        self.out_bytes -= size
        if size:
            self._said_ns = now_ns
        while size:
            first = self._out[0]
            if len(first) > size:
                self._out[0] = memoryview(first)[size:]
                break
            size -= len(first)
            self._out.popleft()
        if not self._out:
            self._out_since_ns = 0
        elif self._said_ns == now_ns or not self._out_since_ns:
            self._out_since_ns = now_ns

    # -- time -------------------------------------------------------------------------------------------------------------------------

    def tick(self, now_ns: int) -> None:
        """Queue the ping that is due. Raises Overdue when a limit has passed."""
        line = self.timeline
        if self.state is State.GREETING:
            if now_ns - self._born_ns > line.greeting_ns:
                raise Overdue(Reason.SILENT, f"no greeting within {line.greeting_ns // 1_000_000} ms")
            return
        if now_ns - self._heard_ns > line.silence_ns and not self._is_patient:
            raise Overdue(Reason.SILENT, f"nothing heard for {(now_ns - self._heard_ns) // 1_000_000} ms")
        if self._is_inside and now_ns - self._begun_ns > line.stall_ns:
            raise Overdue(Reason.STALLED, f"a message begun {(now_ns - self._begun_ns) // 1_000_000} ms ago is not whole")
        if self._out_since_ns and now_ns - self._out_since_ns > line.stall_ns:
            raise Overdue(Reason.STALLED, f"{self.out_bytes} bytes were not read for {(now_ns - self._out_since_ns) // 1_000_000} ms")
        if self.state is State.OPEN and now_ns - self._said_ns >= line.ping_ns and not self._out:
            self._put(encode(Kind.PING, 0, now_ns))
            self._said_ns = now_ns

    @property
    def due_ns(self) -> int:
        """When ``tick`` has something to do."""
        return self._said_ns + self.timeline.ping_ns

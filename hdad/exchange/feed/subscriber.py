"""One reader of the log on another host, as the feed sees it: what it asked for, and how far it was sent.

Runs in the feed. Each reader has a log reader of its own on the device, and is sent no faster than it takes: what waits for it is one
frame and the machine's queue (I7). A reader that is slow is overtaken by the log's circle, and told so (LAPPED). Raises what the log
reader raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Final

from hdad.exchange.link.line import Line
from hdad.exchange.link.sockets import Stream
from hdad.exchange.link.wire import PIECE_BYTES_MAX, Kind, StartKind, Subscription, WireError, encode_number
from hdad.log.format import FRAME_HEADER_SIZE, encode_header
from hdad.log.logrecord import Frame
from hdad.log.reader import LogReader, Start
from hdad.record import Position

PROGRESS_NS: Final = 200_000_000  # a reader whose frames are rare learns so often how far the log has been looked at
STEPS_PER_ROUND: Final = 512  # LIMIT: frames looked at before the others have their turn
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Phase(Enum):
    """Of a subscriber."""

    SECURING = "securing"
    GREETING = "greeting"
    ASKING = "asking"  # welcomed; what it wants is not known yet
    SENDING = "sending"
    PARTING = "parting"


class Subscriber:
    """One connection."""

    def __init__(self, stream: Stream, line: Line, now_ns: int) -> None:
        self.stream = stream
        self.line = line
        self.phase = Phase.SECURING
        self.born_ns = now_ns
        self.parted_ns = 0
        self.name = ""
        self.frames = 0
        self.lanes: set[int] = set()  # told by name
        self.is_done = False  # all that it asked for was sent
        self._wanted: Subscription | None = None
        self._reader: LogReader | None = None
        self._steps: Iterator[Frame | None] | None = None
        self._payload = memoryview(b"")  # of the frame on its way
        self._offset = 0
        self._damages = 0
        self._told_lsn = 0
        self._told_ns = 0

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.name} ({self.stream.peer})" if self.name else self.stream.peer

    @property
    def next_lsn(self) -> int:
        """The log was looked at for it up to here."""
        return self._reader.next_lsn if self._reader is not None else 0

    def subscribe(self, wanted: Subscription, open_log: Callable[..., LogReader]) -> None:
        """Begin. Raises what ``LogReader`` raises, WireError: it has asked already."""
        if self._reader is not None:
            raise WireError("link: a second subscription on one connection")
        self._wanted = wanted
        lane = wanted.lane.decode("utf-8", "surrogateescape") if wanted.lane is not None else None
        after: Position | None = wanted.after
        self._reader = open_log(_start_of(wanted), lane=lane, after=after, on_damage="skip" if wanted.skips_damage else "raise")
        self.phase = Phase.SENDING
        self._tell_progress(0)

    def _tell_progress(self, now_ns: int) -> None:
        assert self._reader is not None
        lsn = max(self._reader.next_lsn, self._reader.start_lsn)
        self.line.machine.send(Kind.PROGRESS, 0, lsn)
        self._told_lsn, self._told_ns = lsn, now_ns

    def advance(self, durable_lsn: int, now_ns: int) -> bool:
        """Send what there is room for. ``durable_lsn``: the newest that is worth looking for. True: something was done."""
        reader, machine = self._reader, self.line.machine
        assert reader is not None and self._wanted is not None
        if self.is_done:
            return False
        work = self._send_pieces()
        if not self._payload and reader.next_lsn > self._told_lsn and now_ns - self._told_ns > PROGRESS_NS:
            self._tell_progress(now_ns)  # never in the middle of a frame: all before it has been said
        reader.learn_durable(durable_lsn)
        for _ in range(STEPS_PER_ROUND):
            if self._payload or not machine.has_room:
                return work
            if self._steps is None:
                if reader.next_lsn > durable_lsn:
                    break
                self._steps = reader.look()
            try:
                frame = next(self._steps)
            except StopIteration:
                self._steps = None
                break
            self._tell_damage(reader)
            work = True
            if frame is not None:
                self._begin(frame)
                self._send_pieces()
        else:
            return True
        if not self._wanted.is_following:
            self._end(reader)
        return work

    def _end(self, reader: LogReader) -> None:
        """All that is durable was sent."""
        assert self._wanted is not None
        for row in reader.lanes.values():
            if row.name == self._wanted.lane:
                self._tell_lane(row.id, row.name)  # it exists, also if nothing was found in it
        self.line.machine.send(Kind.END, 0, reader.next_lsn)
        self.is_done = True

    def _tell_damage(self, reader: LogReader) -> None:
        for damage in reader.damaged[self._damages :]:
            self.line.machine.send(Kind.DAMAGED, 0, damage.first_lsn, encode_number(damage.address, damage.reason))
        self._damages = len(reader.damaged)

    def _tell_lane(self, lane_id: int, name: bytes) -> None:
        if lane_id not in self.lanes:
            self.lanes.add(lane_id)
            self.line.machine.send(Kind.LANE, 0, lane_id, name)

    def _begin(self, frame: Frame) -> None:
        header = frame.header
        self._tell_lane(header.lane_id, frame.lane.encode("utf-8", "surrogateescape"))
        head = memoryview(encode_header(header))
        self.line.machine.send_piece(Kind.LOG, 0, head, FRAME_HEADER_SIZE + header.stored_size)
        self._payload, self._offset = frame.payload, 0
        self.frames += 1
        self._told_lsn = header.lsn + 1

    def _send_pieces(self) -> bool:
        work = False
        machine = self.line.machine
        while self._payload and machine.has_room:
            piece = self._payload[self._offset : self._offset + PIECE_BYTES_MAX]
            if piece:
                machine.send_piece(Kind.LOG, 0, piece, 0)
                self._offset += len(piece)
                work = True
            if self._offset == len(self._payload):
                self._payload = memoryview(b"")
        return work

    def close(self) -> None:
        """Let socket and device go."""
        self.stream.close()
        self._steps = None
        if self._reader is not None:
            self._reader.close()


def _start_of(wanted: Subscription) -> Start:
    if wanted.start is StartKind.LSN:
        return wanted.from_
    if wanted.start is StartKind.TIME:
        return _EPOCH + timedelta(microseconds=min(wanted.from_ // 1000, 200_000_000_000_000_000))
    return "end" if wanted.start is StartKind.END else None

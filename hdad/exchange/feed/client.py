"""Reading the log from a host that has it, over TCP, with the same iterators as ``LogReader``. Edge; part of the public API.

Blocks its caller, never the feed. After a break it connects again, to the same host or another one, and goes on behind the last frame it
handed out: no record is lost or comes twice. What was overwritten meanwhile is a LappedError, damage a CorruptionError or an entry in
``damaged``, as with ``LogReader``. Every frame's checksums are looked at here, too.
"""

from __future__ import annotations

import logging
import os
import random
import select
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final, Literal, Self

from crc32c import crc32c

from hdad._core import RecordIterator
from hdad.addresses import FEED_PORT_DEFAULT, Address
from hdad.clock import monotonic_ns
from hdad.errors import CorruptionError, ForeignDeviceError, LappedError, LinkError
from hdad.exchange.link.line import Line
from hdad.exchange.link.machine import Connection, Ended, Event, FrameBegun, FrameEnded, Greeted, Overdue, Told
from hdad.exchange.link.sockets import SocketOptions, StreamLost, TcpNetwork
from hdad.exchange.link.timeline import backoff_ns
from hdad.exchange.link.trust import Trust, TrustFiles
from hdad.exchange.link.wire import (
    Greeting,
    Kind,
    Reason,
    Role,
    StartKind,
    Subscription,
    WireError,
    decode_number,
    encode_subscription,
)
from hdad.limits import FRAME_BYTES_MAX
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind, decode_header, is_payload_right
from hdad.log.logrecord import Frame, LogRecord
from hdad.log.reader import Start
from hdad.log.recovery import Damage
from hdad.record import Position, RecordKind

SILENCE_MS: Final = 5000
PATIENCE_S: Final = 10.0  # a reader that does not follow, or never got an answer, gives up after so long
FINAL: Final = frozenset((Reason.REFUSED, Reason.VERSION, Reason.FAILED, Reason.GARBAGE, Reason.LIES))  # asking again would not help
SECOND_NS: Final = 1_000_000_000


class RemoteReader:
    """``addresses``: hosts that serve the log, asked in turn. The other parameters as ``LogReader``; ``trust``: for tls:// addresses.

    Raises LinkError (no host answers, or refuses), LappedError, CorruptionError, ForeignDeviceError (another log than before).
    """

    def __init__(
        self, addresses: Sequence[Address], start: Start = None, *, lane: str | None = None, after: Position | None = None,
        on_damage: Literal["raise", "skip"] = "raise", trust: TrustFiles | None = None, patience_s: float = PATIENCE_S,
    ) -> None:  # fmt: skip
        if after is not None and lane is None:
            raise ValueError("after= needs lane=")
        self.damaged: list[Damage] = []
        self.breaks = 0  # connections that were lost and made again
        self._addresses = list(addresses)
        self._wanted = _subscription(start, lane, after, on_damage)
        self._after = after
        self._on_damage = on_damage
        self._patience_ns = int(patience_s * SECOND_NS)
        loaded = Trust(trust) if trust is not None else None
        self._network = TcpNetwork(lambda: loaded, SocketOptions(4 * SILENCE_MS))
        self._logger = logging.getLogger("hdad.reader")
        self._names: dict[int, bytes] = {}
        self._next_lsn = 0  # 0: nothing is known yet
        self._log_uuid = bytes(16)
        self._line: Line | None = None
        self._turn = 0
        self._room = bytearray()  # where a frame lands
        self._frames: deque[Frame] = deque()  # whole, not handed out; LIMIT: what one round of Line.receive takes
        self._is_following = False
        self._is_at_end = False
        self._failures = 0
        self._without_ns = monotonic_ns()
        self._words = "no answer yet"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        line, self._line = self._line, None
        if line is not None:
            try:
                line.part(Reason.DONE, "", monotonic_ns())
            except (StreamLost, WireError):  # it is over already
                pass
            line.stream.close()

    @property
    def next_lsn(self) -> int:
        """The LSN that comes next; 0: not known yet."""
        return self._next_lsn

    def lane_names(self) -> list[bytes]:
        """Names of the lanes that were met so far."""
        return list(self._names.values())

    # -- what callers want ------------------------------------------------------------------------------------------------------------

    def frames(self, *, follow: bool = False, timeout_s: float | None = None) -> Iterator[Frame]:
        """Data frames that are durable, in order. ``follow``: wait for more, for at most ``timeout_s`` without any (None: for ever)."""
        if follow != self._is_following or self._is_at_end:
            self.close()  # it was asked for otherwise; what was not handed out comes again
            self._frames.clear()
        self._is_following, self._is_at_end = follow, False
        if self._line is None:
            self._without_ns = monotonic_ns()
        quiet_since_ns = monotonic_ns()
        while True:
            while self._frames:
                frame = self._frames.popleft()
                self._next_lsn = frame.lsn + 1
                yield frame
                quiet_since_ns = monotonic_ns()
            now_ns = monotonic_ns()
            if self._is_at_end or (follow and timeout_s is not None and now_ns - quiet_since_ns > timeout_s * SECOND_NS):
                return
            self._work(now_ns, quiet_since_ns + int(timeout_s * SECOND_NS) if timeout_s is not None else None)

    def records(self, *, follow: bool = False, timeout_s: float | None = None) -> Iterator[LogRecord]:
        """Records of ``frames``, one by one."""
        after = self._after
        for frame in self.frames(follow=follow, timeout_s=timeout_s):
            for ms, seq, kind, body in RecordIterator(frame.payload):
                if after is None or (ms, seq) > after:
                    yield LogRecord(frame.lane, Position(ms, seq), RecordKind(kind), bytes(body), frame.header.lsn, frame.header.label_ns)

    # -- the connection ---------------------------------------------------------------------------------------------------------------

    def _work(self, now_ns: int, until_ns: int | None) -> None:
        """Wait for something, and take it. Returns at ``until_ns`` at the latest."""
        try:
            if self._line is None:
                self._connect(now_ns)
                return
            line = self._line
            if not line.receive(monotonic_ns(), self._handle) and not self._frames and not self._is_at_end:
                line.machine.tick(monotonic_ns())
                line.flush(monotonic_ns())
                due_ns = min(line.machine.due_ns, until_ns if until_ns is not None else line.machine.due_ns)
                _wait(line, max(0, due_ns - monotonic_ns()))
        except StreamLost as lost:
            self._lose(str(lost), is_final=False)
        except Overdue as overdue:
            self._lose(str(overdue), is_final=False)
        except WireError as error:
            self._lose(str(error), is_final=False)  # another host, or another try, may be whole

    def _connect(self, now_ns: int) -> None:
        address = self._addresses[self._turn % len(self._addresses)]
        self._turn += 1
        stream = self._network.connect(address)
        greeting = Greeting(Role.READER, SILENCE_MS, os.urandom(16), bytes(16), FRAME_BYTES_MAX, 0, socket.gethostname())
        try:
            while not stream.establish():
                if monotonic_ns() - now_ns > SILENCE_MS * 1_000_000:
                    raise StreamLost(f"{address}: no connection within {SILENCE_MS} ms")
                poller = select.poll()
                if stream.fileno() >= 0:
                    poller.register(stream.fileno(), select.POLLOUT if stream.wants_write else select.POLLIN)
                poller.poll(20)
        except StreamLost:
            stream.close()
            raise
        machine = Connection(greeting, (Role.FEED,), is_caller=True, frame_bytes_max=FRAME_BYTES_MAX, now_ns=monotonic_ns())
        self._line = Line(stream, machine)
        self._line.flush(monotonic_ns())

    def _lose(self, words: str, *, is_final: bool) -> None:
        """The connection is over: try again after a pause, or raise LinkError."""
        was_fine = self._line is not None and not self._without_ns
        if self._line is not None:
            self._line.stream.close()
            self._line = None
        self.breaks += was_fine
        now_ns = monotonic_ns()
        self._without_ns = self._without_ns or now_ns
        self._words = words
        is_hopeless = now_ns - self._without_ns > self._patience_ns and not (self._is_following and self._next_lsn)
        if is_final or is_hopeless:
            raise LinkError(words)
        self._failures += 1
        self._logger.info("%s; tried again", words)
        if self._failures % len(self._addresses) == 0 and not was_fine:
            select.poll().poll(backoff_ns(self._failures // len(self._addresses), random.random()) // 1_000_000)

    # -- what comes -------------------------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if isinstance(event, FrameBegun):
            self._room = bytearray(event.size)
            assert self._line is not None
            self._line.machine.place(memoryview(self._room))
        elif isinstance(event, FrameEnded):
            self._frames.append(self._frame(memoryview(self._room)))
        elif isinstance(event, Greeted):
            self._greeted(event.greeting)
        elif isinstance(event, Ended):
            reason = event.reason or Reason.DONE
            if reason in FINAL and len(self._addresses) == 1:
                self._lose(f"the host that serves the log says: {event.words}", is_final=True)
            raise StreamLost(f"the host that serves the log says: {event.words or reason.name.lower()}")
        else:
            self._told(event)

    def _greeted(self, peer: Greeting) -> None:
        if any(self._log_uuid) and peer.log_uuid != self._log_uuid:
            raise ForeignDeviceError(f"{peer.name} serves log {peer.log_uuid.hex()}; what was read before is of {self._log_uuid.hex()}")
        self._log_uuid = peer.log_uuid
        self._failures = 0
        self._without_ns = 0
        wanted = self._wanted._replace(is_following=self._is_following)
        if self._next_lsn:
            wanted = wanted._replace(start=StartKind.LSN, from_=self._next_lsn)
        assert self._line is not None
        self._line.machine.send(Kind.SUBSCRIBE, body=encode_subscription(wanted))
        self._line.flush(monotonic_ns())

    def _told(self, event: Told) -> None:
        if event.kind is Kind.LANE:
            self._names[event.value] = event.body
        elif event.kind is Kind.PROGRESS:
            if not self._frames:
                self._next_lsn = max(self._next_lsn, event.value)
        elif event.kind is Kind.END:
            self._is_at_end = True
        elif event.kind is Kind.LAPPED:
            raise LappedError(event.value, decode_number(event.body)[0])
        elif event.kind is Kind.DAMAGED:
            address, words = decode_number(event.body)
            if self._on_damage == "raise":
                raise CorruptionError(address, f"the frame with LSN {event.value}, which had been durable", words or "other bytes")
            if not any(damage.address == address for damage in self.damaged):
                self.damaged.append(Damage(event.value, address, words))

    def _frame(self, view: memoryview) -> Frame:
        """A whole frame, checked. Raises WireError."""
        header = decode_header(view)
        payload = view[FRAME_HEADER_SIZE:]
        if (
            header.kind != FrameKind.DATA
            or crc32c(view[4:FRAME_HEADER_SIZE]) != header.header_crc
            or header.uuid != self._log_uuid
            or not is_payload_right(header, payload)
        ):
            raise WireError(f"link: the frame with LSN {header.lsn} is not what was written")
        last = self._frames[-1].lsn if self._frames else self._next_lsn - 1
        if header.lsn <= last:
            raise WireError(f"link: LSN {header.lsn} after {last}")
        name = self._names.get(header.lane_id)
        if name is None:
            raise WireError(f"link: a frame of lane {header.lane_id}, which was not named")
        return Frame(header, payload, name.decode("utf-8", "surrogateescape"))


def _subscription(start: Start, lane: str | None, after: Position | None, on_damage: str) -> Subscription:
    name = lane.encode("utf-8", "surrogateescape") if lane is not None else None
    kind, number = StartKind.OLDEST, 0
    if start == "end":
        kind = StartKind.END
    elif isinstance(start, datetime):
        moment = start if start.tzinfo is not None else start.astimezone(UTC)
        kind, number = StartKind.TIME, int(moment.timestamp() * SECOND_NS)
    elif isinstance(start, int):
        kind, number = StartKind.LSN, start
    elif after is not None:
        kind = StartKind.AFTER
    return Subscription(kind, number, False, name, after, on_damage == "skip")


def _wait(line: Line, duration_ns: int) -> None:
    poller = select.poll()
    poller.register(line.stream.fileno(), select.POLLIN | (select.POLLOUT if line.wants_write else 0))
    poller.poll(-(-duration_ns // 1_000_000))


def connect(
    host: str, start: Start = None, *, lane: str | None = None, after: Position | None = None,
    on_damage: Literal["raise", "skip"] = "raise", tls_cert_file: str = "", tls_key_file: str = "", tls_ca_file: str = "",
) -> RemoteReader:  # fmt: skip
    """A reader of the log that ``host`` serves ([feed] listen): ``tls://HOST:PORT``, or several with commas, asked in turn.

    Without a scheme it is TLS, without a port 7412. TLS needs a certificate, its key and the authority of the feed's certificate. Nothing
    is connected before the first frame is asked for. Raises ValueError (no address), HdadError (a TLS file cannot be used).
    """
    addresses = [Address.parse(text.strip(), FEED_PORT_DEFAULT) for text in host.split(",")]
    trust = TrustFiles(tls_cert_file, tls_key_file, tls_ca_file)
    if any(address.is_tls for address in addresses) and not all(trust):
        raise ValueError(f"{host}: TLS needs a certificate, its key and an authority; tcp:// does without")
    return RemoteReader(
        addresses, start, lane=lane, after=after, on_damage=on_damage, trust=trust if all(trust) else None
    )

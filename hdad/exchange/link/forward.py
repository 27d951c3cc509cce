"""The worker host's half of a link: finds the writer, and brings it the frames of all local workers over one connection.

Runs in the link of a host without the writer. Owns the connection, the order in which workers have their turn (a piece each), and whom to
ask next. Candidates are asked in turn; one that is not the writer may say who is, and that one is asked next if this host may trust it.
When the connection breaks nothing is sent again: every ring is dropped and every worker begins anew (outlet.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, Final

from hdad.addresses import Address, is_peer_allowed
from hdad.alarms import Alarms
from hdad.errors import LocalProtocolError
from hdad.exchange.backring import decode
from hdad.exchange.link.ledger import Ledger
from hdad.exchange.link.line import Line
from hdad.exchange.link.machine import Connection, Ended, Event, Greeted, Overdue, State, Told
from hdad.exchange.link.outlet import ChannelState, Outlet
from hdad.exchange.link.sockets import Network, Stream, StreamLost, Wait
from hdad.exchange.link.timeline import CHANNEL_IDLE_NS, CHANNEL_RETRY_NS, Timeline, backoff_ns
from hdad.exchange.link.wire import Greeting, Kind, Reason, Role, WireError
from hdad.metrics.counters import RoleBlock

ALARM_AFTER_NS: Final = 1_000_000_000
CALL_LOOK_NS: Final = 20_000_000
HINTS_MAX: Final = 3  # LIMIT: followed in a row, so that hosts that name each other do not keep us running
SEND_BYTES_PER_ROUND: Final = 4 * 1024 * 1024


class Phase(Enum):
    """Where we are with the writer."""

    RESTING = "resting"  # between two attempts
    CALLING = "calling"  # name, TCP, TLS
    GREETING = "greeting"
    SERVING = "serving"
    STOPPED = "stopped"  # the local writer reads the rings, or drained


class Forwarder:
    """``dice`` gives numbers from 0 to 1, ``wall_us`` the wall clock; ``greeting``: what this host says of itself."""

    def __init__(
        self, outlets: Sequence[Outlet], ledger: Ledger, candidates: Sequence[Address], greeting: Greeting, network: Network,
        alarms: Alarms, block: RoleBlock, dice: Callable[[], float], wall_us: Callable[[], int],
    ) -> None:  # fmt: skip
        self.phase = Phase.RESTING
        self.is_draining = False
        self.allowed_names: tuple[str, ...] = ()
        self.last_error = ""
        self.outlets = outlets
        self._ledger = ledger
        self._candidates = list(candidates)
        self._greeting = greeting
        self._network = network
        self._alarms = alarms
        self._block = block
        self._dice = dice
        self._logger = logging.getLogger("hdad.link")
        self._timeline = Timeline(greeting.silence_ms * 1_000_000, greeting.silence_ms * 1_000_000)
        self._turn = 0
        self._attempts = 0  # since the last success
        self._hint: Address | None = None
        self._hints = 0
        self._due_ns = 0
        self._began_ns = 0
        self._without_ns = 0  # since when there is no writer; 0: there is one
        self._address = self._candidates[0] if self._candidates else Address("tcp", "", 0)
        self._stream: Stream | None = None
        self._line: Line | None = None
        self._since_ns = 0
        self._now_ns = 0
        self._log_uuid = bytes(16)
        self._wall_us = wall_us
        self._next = 0  # whose turn it is
        self._counted = (0, 0)  # bytes in and out of this connection that are in the counters

    @property
    def is_serving(self) -> bool:
        """True: frames go to a writer."""
        return self.phase is Phase.SERVING

    @property
    def is_drained(self) -> bool:
        """True: every local ring is empty, hence durable, and the writer was told good-bye."""
        return self.is_draining and self.phase is Phase.STOPPED

    # -- one round --------------------------------------------------------------------------------------------------------------------

    def run(self, now_ns: int) -> bool:
        """What can be done now. True when anything was."""
        self._now_ns = now_ns
        if self.phase is Phase.STOPPED:
            return False
        try:
            if self.is_draining and self._is_nothing_left():
                self._stop()
                return True
            work = self._go_on(now_ns)
        except StreamLost as lost:
            self._lose(Reason.LOST, str(lost))
            return True
        except Overdue as overdue:
            self._lose(overdue.reason, f"{self._address}: {overdue}")
            return True
        except WireError as error:
            self._lose(error.reason, f"{self._address}: {error}")
            return True
        self._ledger.show(now_ns)
        if self._without_ns and now_ns - self._without_ns > ALARM_AFTER_NS:
            self._alarms.set("link", f"no writer is reached ({self.last_error or 'no answer yet'}); entries wait in Redis")
        return work

    def _go_on(self, now_ns: int) -> bool:
        if self.phase is Phase.RESTING:
            return now_ns >= self._due_ns and bool(self._candidates) and self._call(now_ns)
        if self.phase is Phase.CALLING:
            assert self._stream is not None
            if self._stream.establish():
                self._greet(self._stream, now_ns)
                return True
            if now_ns - self._began_ns > self._timeline.connect_ns:
                raise StreamLost(f"{self._address}: no connection within {self._timeline.connect_ns // 1_000_000} ms")
            return False
        line = self._line
        assert line is not None
        work = line.receive(now_ns, self._handle)
        if self.phase is Phase.SERVING:
            work |= self._forward(line, now_ns)
        line.machine.tick(now_ns)
        work |= line.flush(now_ns)
        self._count(line)
        return work

    # -- finding the writer -----------------------------------------------------------------------------------------------------------

    def _call(self, now_ns: int) -> bool:
        self._without_ns = self._without_ns or now_ns
        if self._hint is not None:
            self._address, self._hint = self._hint, None
        else:
            self._address = self._candidates[self._turn % len(self._candidates)]
            self._turn += 1
        self._attempts += 1
        self._began_ns = now_ns
        self.phase = Phase.CALLING
        self._stream = self._network.connect(self._address)
        return True

    def _greet(self, stream: Stream, now_ns: int) -> None:
        if stream.is_secure and not is_peer_allowed(stream.names, self.allowed_names):
            raise StreamLost(f"{self._address}: its certificate is for {', '.join(stream.names)}, which link.peers does not allow")
        machine = Connection(
            self._greeting, (Role.WRITER,), is_caller=True, frame_bytes_max=self._greeting.frame_bytes_max, now_ns=now_ns
        )
        self._line = Line(stream, machine)
        self._counted = (0, 0)
        self.phase = Phase.GREETING

    def _welcomed(self, peer: Greeting) -> None:
        if peer.frame_bytes_max < self._greeting.frame_bytes_max:
            raise WireError(
                f"its log.frame_bytes_max is {peer.frame_bytes_max}, here it is {self._greeting.frame_bytes_max}: lower it here",
                Reason.REFUSED,
            )
        if any(self._log_uuid) and peer.log_uuid != self._log_uuid:
            raise WireError(f"it writes log {peer.log_uuid.hex()}, the writer before wrote {self._log_uuid.hex()}", Reason.REFUSED)
        self._log_uuid = peer.log_uuid
        self.phase = Phase.SERVING
        self._since_ns = self._now_ns
        self._attempts = self._hints = self._without_ns = 0
        self.last_error = ""
        self._block.add("connects")
        for outlet in self.outlets:
            outlet.reset()
        self._logger.info("the writer is %s (%s)", self._address, peer.name)
        self._alarms.clear("link", f"frames go to {self._address}")

    def _not_writer(self, contact: str) -> None:
        """Go where it says, if that is one of our candidates or shows a certificate."""
        self._block.add("not_writer")
        hint: Address | None = None
        try:
            hint = Address.parse(contact) if contact else None
        except ValueError:
            self._logger.debug("%s names %r as writer, which is no address", self._address, contact)
        is_known = hint is not None and (hint in self._candidates or hint.is_tls)
        if is_known and hint != self._address and self._hints < HINTS_MAX:
            self._hints += 1
            self._hint = hint
        raise StreamLost(f"{self._address}: not the writer{f', which is {contact}' if contact else ''}")

    def _lose(self, reason: Reason, words: str) -> None:
        """The connection is over, or was none."""
        was_serving = self.phase is Phase.SERVING
        if self._line is not None and reason is not Reason.LOST:
            try:
                self._line.part(reason, words, self._now_ns)
            except (StreamLost, WireError):  # it cannot be told any more
                pass
        self._close()
        self.last_error = words
        self.phase = Phase.RESTING
        self._without_ns = self._without_ns or self._now_ns
        if was_serving:
            self._block.add("losses")
            self._ledger.forget_owners()
            self._logger.warning("link lost: %s", words)
        else:
            self._logger.debug("%s", words)
        if self._hint is not None or self._attempts % len(self._candidates):
            self._due_ns = self._now_ns
            return
        self._due_ns = self._now_ns + backoff_ns(max(1, self._attempts // len(self._candidates)), self._dice())

    def _close(self) -> None:
        if self._line is not None:
            self._line.stream.finish()
        if self._stream is not None:
            self._stream.close()
        self._stream = self._line = None
        for channel in range(len(self.outlets)):
            self._alarms.clear(f"link-full:{channel}")  # the next writer may have room

    # -- what comes back --------------------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if isinstance(event, Told):
            self._told(event)
        elif isinstance(event, Greeted):
            self._welcomed(event.greeting)
        elif isinstance(event, Ended):
            if event.reason is None:
                self._not_writer(event.words)
            raise StreamLost(f"{self._address}: it ended the connection: {event.reason.name.lower() if event.reason else ''} {event.words}")

    def _told(self, event: Told) -> None:
        if event.channel >= len(self.outlets):
            raise WireError(f"link: channel {event.channel} of {len(self.outlets)}", Reason.LIES)
        outlet = self.outlets[event.channel]
        if event.kind is Kind.BACK:
            try:
                messages = decode(event.body)
            except LocalProtocolError as error:
                raise WireError(f"link: {error}") from error
            for message in messages:
                outlet.hear(message)
                self._ledger.told(event.channel, message, self._now_ns)
        elif event.kind is Kind.CREDIT:
            done = outlet.credited(event.value)
            if done is None:
                raise WireError(f"link: a credit of {event.value} bytes that were never sent", Reason.LIES)
            if done:
                self._ledger.done(done, self._wall_us())
        elif event.kind is Kind.OPENED:
            if outlet.state is not ChannelState.OPENING:
                raise WireError(f"link: channel {event.channel} is opened, and nobody asked", Reason.LIES)
            outlet.opened(event.value)
            self._alarms.clear(f"link-full:{event.channel}")
        elif outlet.state is ChannelState.OPENING:  # FULL
            outlet.state = ChannelState.CLOSED
            outlet.retry_ns = self._now_ns + CHANNEL_RETRY_NS
            self._alarms.set(
                f"link-full:{event.channel}",
                f"{self._address} has no ring left for worker {event.channel}: raise link.remote_workers_max there, or run fewer workers",
            )

    # -- what goes out ----------------------------------------------------------------------------------------------------------------

    def _forward(self, line: Line, now_ns: int) -> bool:
        work = False
        machine = line.machine
        budget = machine.sent_bytes + SEND_BYTES_PER_ROUND
        for channel, outlet in enumerate(self.outlets):
            outlet.flush()
            work |= self._care(machine, channel, outlet, now_ns)
        while machine.sent_bytes < budget:
            if not self._fill(machine):
                break
            work = True
            line.flush(now_ns)
            if not machine.has_room:
                break
        return work

    def _care(self, machine: Connection, channel: int, outlet: Outlet, now_ns: int) -> bool:
        """Open, close, and tell of deaths."""
        if outlet.take_gone():
            machine.send(Kind.GONE, channel)
            outlet.idle_since_ns = now_ns
            return True
        if outlet.state is ChannelState.CLOSED:
            if outlet.is_introduced and now_ns >= outlet.retry_ns:
                outlet.state = ChannelState.OPENING
                machine.send(Kind.OPEN, channel)
                return True
        elif outlet.idle_since_ns and now_ns - outlet.idle_since_ns > CHANNEL_IDLE_NS and outlet.is_quiet:
            outlet.state = ChannelState.CLOSED
            outlet.idle_since_ns = 0
            machine.send(Kind.CLOSE, channel)
            return True
        return False

    def _fill(self, machine: Connection) -> bool:
        """A piece of each worker in turn, while there is room. True: there was one."""
        work = False
        count = len(self.outlets)
        idle = 0
        while machine.has_room and idle < count:
            self._next = (self._next + 1) % count
            piece = self.outlets[self._next].next_piece()
            if piece is None:
                idle += 1
                continue
            idle = 0
            work = True
            machine.send_piece(Kind.FRAME, self._next, piece.view, piece.whole)
            if piece.whole:
                self._block.add("frames_out")
        return work

    def _count(self, line: Line) -> None:
        now = (line.machine.received_bytes, line.machine.sent_bytes)
        self._block.add("bytes_in", now[0] - self._counted[0])
        self._block.add("bytes_out", now[1] - self._counted[1])
        self._counted = now

    # -- stopping ---------------------------------------------------------------------------------------------------------------------

    def _is_nothing_left(self) -> bool:
        return all(outlet.slot.data.head == outlet.slot.data.tail for outlet in self.outlets)

    def _stop(self) -> None:
        if self._line is not None and self._line.machine.state is State.OPEN:
            self._line.part(Reason.DONE, "drained", self._now_ns)
        self._close()
        self.phase = Phase.STOPPED

    def let_go(self) -> None:
        """The local writer takes over: nothing of the rings is touched after this."""
        try:
            if self._line is not None:
                self._line.part(Reason.DONE, "this host writes now", self._now_ns)
        except (StreamLost, WireError):  # it cannot be told any more
            pass
        self._close()
        self._ledger.forget_owners()
        self._alarms.clear("link")
        self.phase = Phase.STOPPED

    def resume(self) -> None:
        """The local writer is no more: look for another."""
        if self.phase is Phase.STOPPED and not self.is_draining:
            self.phase, self._due_ns, self._attempts = Phase.RESTING, 0, 0

    # -- waiting ----------------------------------------------------------------------------------------------------------------------

    def waits_for(self) -> list[Wait]:
        """Sockets, and for what."""
        if self._line is not None:
            return [(self._line.stream, True, self._line.wants_write)]
        return [(self._stream, True, self._stream.wants_write)] if self._stream is not None else []

    def due_ns(self, now_ns: int) -> int:
        """When ``run`` has something to do at the latest."""
        due_ns = now_ns + self._timeline.ping_ns
        if self.phase is Phase.RESTING:
            due_ns = min(due_ns, self._due_ns)
        if self.phase is Phase.CALLING:
            due_ns = now_ns + CALL_LOOK_NS  # its socket may be another by then
        if self._line is not None:
            due_ns = min(due_ns, self._line.machine.due_ns)
        for outlet in self.outlets:
            if outlet.state is ChannelState.CLOSED and outlet.is_introduced and self.phase is Phase.SERVING:
                due_ns = min(due_ns, outlet.retry_ns)
        return min(due_ns, self._ledger.due_ns or due_ns)

    def sleep(self) -> bool:
        """From now on the workers ring. True: there is something by now, do not sleep."""
        if self.phase is not Phase.SERVING:
            return False
        return any([outlet.sleep() for outlet in self.outlets])

    def report(self, now_ns: int) -> dict[str, Any]:
        """For status: plain data."""
        peer = self._line.machine.peer if self._line is not None else None
        return {
            "phase": self.phase.value,
            "address": str(self._address),
            "name": peer.name if peer is not None else "",
            "secure": self._line.stream.is_secure if self._line is not None else None,
            "since_s": round((now_ns - self._since_ns) / 1e9, 1) if self.is_serving else None,
            "rtt_us": self._line.machine.rtt_ns // 1000 if self._line is not None else None,
            "last_error": self.last_error,
        }

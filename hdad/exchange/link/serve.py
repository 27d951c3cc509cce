"""The writer's half of a link: worker hosts connect, and their workers' frames go into rings of this host.

Runs in the link of the writer's host. Owns the listeners, the connections (guests), and which of the remote rings is whose. What a guest
sends is looked at before anything of it is published; a guest that breaks a rule is told why, counted, and closed, and the others go on.
When a connection ends, however it ends, each of its rings tells the writer so, behind the frames that had come.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final

from hdad.addresses import is_peer_allowed
from hdad.alarms import Alarms
from hdad.exchange.link.inlet import Inlet, InletState
from hdad.exchange.link.line import Line
from hdad.exchange.link.machine import Connection, Ended, Event, FrameBegun, FrameEnded, Greeted, Overdue, Told
from hdad.exchange.link.scrutiny import check_header, check_lane
from hdad.exchange.link.sockets import Listener, Stream, StreamLost, Wait
from hdad.exchange.link.whois import WhoIsWriter
from hdad.exchange.link.wire import BODY_BYTES_MAX, Greeting, Kind, Reason, Role, WireError
from hdad.log.format import FrameKind
from hdad.metrics.counters import RoleBlock

LINGER_NS: Final = 1_000_000_000  # after the last word the peer has so long to read it
ACCEPTS_PER_ROUND: Final = 16
PEERS_SHOWN_MAX: Final = 48  # LIMIT: of one report, which is one message
NEWS_KEPT: Final = 20  # LIMIT: ends of connections that status tells


class GoodBye(Exception):
    """The peer has said BYE."""

    def __init__(self, reason: Reason, words: str) -> None:
        super().__init__(words)
        self.reason = reason


class Phase(Enum):
    """Of a guest."""

    SECURING = "securing"
    GREETING = "greeting"
    OPEN = "open"
    PARTING = "parting"  # the last word was said; what it still sends is not read


class Guest:
    """One connection. ``channels``: the remote worker's number → its ring here."""

    def __init__(self, stream: Stream, line: Line, now_ns: int) -> None:
        self.stream = stream
        self.line = line
        self.phase = Phase.SECURING
        self.born_ns = now_ns
        self.parted_ns = 0
        self.name = ""
        self.node = b""
        self.channels: dict[int, Inlet] = {}
        self.without_ring: set[int] = set()  # channels that were told FULL last
        self.frames = 0

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.name} ({self.stream.peer})" if self.name else self.stream.peer


class Server:
    """See the module. ``greeting``: what this host says of itself (role WRITER)."""

    def __init__(
        self, inlets: Sequence[Inlet], listeners: Sequence[Listener], greeting: Greeting, whois: WhoIsWriter, alarms: Alarms,
        block: RoleBlock, connections_max: int,
    ) -> None:  # fmt: skip
        self.allowed_names: tuple[str, ...] = ()
        self.is_draining = False
        self.guests: list[Guest] = []
        self.ends: Counter[str] = Counter()  # reason → connections
        self.news: list[tuple[str, str]] = []  # (who, why) of the newest ends
        self._inlets = inlets
        self._listeners = listeners
        self._greeting = greeting
        self._whois = whois
        self._alarms = alarms
        self._block = block
        self._connections_max = connections_max
        self._logger = logging.getLogger("hdad.link")
        self._now_ns = 0
        self._wakes_writer = False
        self._guest: Guest | None = None  # whose event is handled
        self._owners: dict[int, Guest] = {}  # slot index → guest

    @property
    def is_drained(self) -> bool:
        """True: nothing of a remote worker is on its way, and all were told good-bye. On a host without the writer nobody takes what
        is left in the rings of those that it served once; the next writer drops it."""
        if not self.is_draining or self.guests:
            return False
        return not self._whois.look().is_here or all(inlet.state is InletState.FREE for inlet in self._inlets)

    def take_wake(self) -> bool:
        """True, once: ring the data bell."""
        wakes, self._wakes_writer = self._wakes_writer, False
        return wakes

    # -- one round --------------------------------------------------------------------------------------------------------------------

    def run(self, now_ns: int) -> bool:
        """What can be done now. True when anything was."""
        self._now_ns = now_ns
        work = self._accept(now_ns)
        for guest in list(self.guests):
            work |= self._attend(guest, now_ns)
        for inlet in self._inlets:
            if inlet.state is InletState.CLOSING:
                self._wakes_writer |= inlet.settle()
        return work

    def _accept(self, now_ns: int) -> bool:
        work = False
        for listener in self._listeners:
            for _ in range(ACCEPTS_PER_ROUND):
                stream = listener.accept()
                if stream is None:
                    break
                work = True
                machine = Connection(
                    self._greeting, (Role.WORKERS,), is_caller=False, frame_bytes_max=self._greeting.frame_bytes_max, now_ns=now_ns
                )
                guest = Guest(stream, Line(stream, machine), now_ns)
                if len(self.guests) >= self._connections_max or self.is_draining:
                    self._end(guest, Reason.CROWDED, f"{len(self.guests)} connections; link.connections_max is {self._connections_max}")
                    continue
                self.guests.append(guest)
        return work

    def _attend(self, guest: Guest, now_ns: int) -> bool:
        self._guest = guest
        try:
            return self._go_on(guest, now_ns)
        except StreamLost as lost:
            self._end(guest, Reason.LOST, str(lost))
        except GoodBye as bye:
            self._end(guest, bye.reason, str(bye))
        except Overdue as overdue:
            self._part(guest, overdue.reason, str(overdue))
        except WireError as error:
            self._part(guest, error.reason, str(error))
        return True

    def _go_on(self, guest: Guest, now_ns: int) -> bool:
        if guest.phase is Phase.SECURING:
            if not guest.stream.establish():
                guest.line.machine.tick(now_ns)
                return False
            if guest.stream.is_secure and not is_peer_allowed(guest.stream.names, self.allowed_names):
                raise WireError(f"its certificate is for {', '.join(guest.stream.names)}, which link.peers does not allow", Reason.REFUSED)
            guest.phase = Phase.GREETING
        if guest.phase is Phase.PARTING:
            return self._see_off(guest, now_ns)
        work = False
        if not (self.is_draining and guest.phase is Phase.OPEN):
            before = guest.line.machine.received_bytes
            work = guest.line.receive(now_ns, self._handle)
            self._block.add("bytes_in", guest.line.machine.received_bytes - before)
        if guest.phase is Phase.OPEN:
            work |= self._tell(guest)
            if self.is_draining and all(inlet.is_empty for inlet in guest.channels.values()):
                self._part(guest, Reason.DONE, "the writer's host is being stopped")
                return True
            if not self._whois.look().is_here:
                self._redirect(guest)
                return True
        if not (self.is_draining and guest.phase is Phase.OPEN):
            guest.line.machine.tick(now_ns)
        return self._flush(guest, now_ns) | work

    def _flush(self, guest: Guest, now_ns: int) -> bool:
        before = guest.line.machine.sent_bytes
        work = guest.line.flush(now_ns)
        self._block.add("bytes_out", guest.line.machine.sent_bytes - before)
        return work

    # -- ends -------------------------------------------------------------------------------------------------------------------------

    def _part(self, guest: Guest, reason: Reason, words: str) -> None:
        """Tell the peer why, and give it time to read it."""
        try:
            guest.line.machine.bye(reason, words)
        except WireError:  # it does not read anyhow
            self._end(guest, reason, words)
            return
        self._begin_parting(guest, reason, words)

    def told_where(self, contact: str) -> None:
        """Where the writer is when it is not here."""
        self._whois.told(contact)

    def _redirect(self, guest: Guest) -> None:
        contact = self._whois.look().contact
        guest.line.machine.not_writer(contact)
        self._begin_parting(guest, Reason.DONE, f"the writer is {contact or 'elsewhere'}")

    def _begin_parting(self, guest: Guest, reason: Reason, words: str) -> None:
        self._leave_rings(guest)
        self._note(guest, reason, words)
        guest.phase = Phase.PARTING
        guest.parted_ns = self._now_ns
        try:
            self._flush(guest, self._now_ns)
        except StreamLost:
            self._drop(guest)
            return
        if guest.line.is_said:
            guest.stream.finish()

    def _see_off(self, guest: Guest, now_ns: int) -> bool:
        """Until the peer has closed its side, or long enough."""
        was_said = guest.line.is_said
        work = self._flush(guest, now_ns)
        if guest.line.is_said and not was_said:
            guest.stream.finish()
        work |= guest.line.receive(now_ns, self._handle)
        if now_ns - guest.parted_ns > LINGER_NS:
            self._drop(guest)
        return work

    def _end(self, guest: Guest, reason: Reason, words: str) -> None:
        """Without a word."""
        if guest.phase is not Phase.PARTING:
            self._leave_rings(guest)
            self._note(guest, reason, words)
        self._drop(guest)

    def _leave_rings(self, guest: Guest) -> None:
        for inlet in guest.channels.values():
            self._wakes_writer |= inlet.close()
            self._owners.pop(inlet.slot.index, None)
        guest.channels.clear()
        guest.without_ring.clear()
        self._look_who_waits()

    def _look_who_waits(self) -> None:
        """Rings lack only as long as somebody who is here wants one."""
        if not any(guest.without_ring for guest in self.guests):
            self._alarms.clear("link-rings")

    def _note(self, guest: Guest, reason: Reason, words: str) -> None:
        name = reason.name.lower()
        self.ends[name] += 1
        self._block.add(f"ends_{name}")
        is_probe = reason is Reason.LOST and not guest.name  # somebody looked whether the port is open
        level = logging.DEBUG if is_probe else logging.INFO if reason is Reason.DONE else logging.WARNING
        self._logger.log(level, "%s: %s: %s", guest.label, name, words)
        if not is_probe:
            self.news = [*self.news[-NEWS_KEPT + 1 :], (guest.label, f"{name}: {words}")]

    def _drop(self, guest: Guest) -> None:
        guest.stream.close()
        if guest in self.guests:
            self.guests.remove(guest)

    # -- what a guest says ------------------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        guest = self._guest
        assert guest is not None
        if isinstance(event, FrameBegun):
            inlet = self._inlet(guest, event.channel)
            header = check_header(event.header, event.size)
            if header.kind == FrameKind.DATA:
                check_lane(header, inlet.assigned)
            guest.line.machine.place(inlet.begin(header, event.size))
        elif isinstance(event, FrameEnded):
            self._wakes_writer |= self._inlet(guest, event.channel).end()
            guest.frames += 1
            self._block.add("frames_in")
        elif isinstance(event, Told):
            self._told(guest, event)
        elif isinstance(event, Greeted):
            self._greeted(guest, event.greeting)
        elif guest.phase is not Phase.PARTING:
            assert isinstance(event, Ended)
            raise GoodBye(event.reason or Reason.DONE, event.words)

    def _inlet(self, guest: Guest, channel: int) -> Inlet:
        inlet = guest.channels.get(channel)
        if inlet is None:
            raise WireError(f"link: channel {channel}, which is not open", Reason.LIES)
        return inlet

    def _greeted(self, guest: Guest, peer: Greeting) -> None:
        guest.name, guest.node = peer.name, peer.node
        if not self._whois.look().is_here:
            self._redirect(guest)
            return
        if peer.frame_bytes_max > self._greeting.frame_bytes_max:
            raise WireError(
                f"its log.frame_bytes_max is {peer.frame_bytes_max}, here it is {self._greeting.frame_bytes_max}", Reason.REFUSED
            )
        for other in list(self.guests):
            if other is not guest and other.node == peer.node and other.phase is not Phase.PARTING:
                self._end(other, Reason.LOST, "it has come again")
        guest.phase = Phase.OPEN
        guest.line.machine.welcome(self._greeting._replace(log_uuid=self._whois.look().log_uuid))
        self._block.add("connects")
        self._logger.info("%s has come, with %d workers", guest.label, peer.workers)

    def _told(self, guest: Guest, event: Told) -> None:
        channel = event.channel
        if event.kind is Kind.OPEN:
            if channel in guest.channels:
                raise WireError(f"link: channel {channel} is opened twice", Reason.LIES)
            inlet = next((inlet for inlet in self._inlets if inlet.state is InletState.FREE), None)
            if inlet is None:
                guest.line.machine.send(Kind.FULL, channel)
                guest.without_ring.add(channel)
                self._alarms.set("link-rings", f"no ring is left for worker {channel} of {guest.label}: raise link.remote_workers_max")
                return
            guest.channels[channel] = inlet
            self._owners[inlet.slot.index] = guest
            guest.line.machine.send(Kind.OPENED, channel, inlet.open())
            guest.without_ring.discard(channel)
            self._look_who_waits()
            return
        inlet = self._inlet(guest, channel)
        if event.kind is Kind.GONE:
            self._wakes_writer |= inlet.gone()
        else:  # CLOSE
            del guest.channels[channel]
            self._owners.pop(inlet.slot.index, None)
            self._wakes_writer |= inlet.close()

    # -- what the writer says ---------------------------------------------------------------------------------------------------------

    def _tell(self, guest: Guest) -> bool:
        """Messages and credit of all its rings. Credit goes first: a worker that hears DURABLE finds its ring empty."""
        work = False
        machine = guest.line.machine
        for channel, inlet in guest.channels.items():
            messages, is_waiting = inlet.take_back() if machine.has_room else ([], False)
            self._wakes_writer |= is_waiting
            credit = inlet.take_credit()
            if credit is not None:
                machine.send(Kind.CREDIT, channel, credit)
                work = True
            body = bytearray()
            for message in messages:
                if len(body) + len(message) > BODY_BYTES_MAX:
                    machine.send(Kind.BACK, channel, body=bytes(body))
                    body.clear()
                body += message
            if body:
                machine.send(Kind.BACK, channel, body=bytes(body))
                work = True
        return work

    # -- waiting ----------------------------------------------------------------------------------------------------------------------

    def waits_for(self) -> list[Wait]:
        """Sockets, and for what."""
        found: list[Wait] = [(listener, True, False) for listener in self._listeners]
        for guest in self.guests:
            found.append((guest.stream, not (self.is_draining and guest.phase is Phase.OPEN), guest.line.wants_write))
        return found

    def due_ns(self, now_ns: int) -> int:
        """When ``run`` has something to do at the latest."""
        return min([now_ns + LINGER_NS // 2, *(guest.line.machine.due_ns for guest in self.guests)])

    def sleep(self) -> bool:
        """From now on the writer rings. True: there is something by now, do not sleep."""
        return any([inlet.sleep() for inlet in self._inlets])

    def report(self, now_ns: int) -> dict[str, Any]:
        """For status: plain data."""
        return {
            "listen": [str(listener.address) for listener in self._listeners],
            "rings": {"free": sum(inlet.state is InletState.FREE for inlet in self._inlets), "all": len(self._inlets)},
            "ends": dict(self.ends),
            "news": [f"{who}: {why}" for who, why in self.news],
            "peers_all": len(self.guests),
            "peers": [
                {
                    "name": guest.name,
                    "address": guest.stream.peer,
                    "secure": guest.stream.is_secure,
                    "phase": guest.phase.value,
                    "since_s": round((now_ns - guest.born_ns) / 1e9, 1),
                    "rtt_us": guest.line.machine.rtt_ns // 1000,
                    "frames_in": guest.frames,
                    "bytes_in": guest.line.machine.received_bytes,
                    "credit_bytes": sum(inlet.free_bytes for inlet in guest.channels.values()),
                    "bytes_out": guest.line.machine.sent_bytes,
                    "workers": {str(channel): inlet.slot.index for channel, inlet in guest.channels.items()},
                }
                for guest in self.guests[:PEERS_SHOWN_MAX]
            ],
        }

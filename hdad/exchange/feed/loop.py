"""The feed: serves the log to readers on hosts without the device. Its own process, so that neither the writer nor the link wait for
readers.

Runs on a host with the device, writing or not. One thread; each reader has its turn, bounded, and reads the device for itself, directly.
Owns the listeners, the subscribers, and what is known of the newest durable LSN: the writer's counters where it runs, else the lease
blocks. A reader that does not read is waited for up to STALL, in which the log may overtake it; that is its loss only, and told to it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from hdad.addresses import is_peer_allowed
from hdad.alarms import Alarms
from hdad.errors import HdadError, LappedError
from hdad.exchange.channel import Channel
from hdad.exchange.feed.subscriber import Phase, Subscriber
from hdad.exchange.link.line import Line
from hdad.exchange.link.machine import Connection, Ended, Event, Greeted, Overdue, Told
from hdad.exchange.link.sockets import Listener, StreamLost, Wait
from hdad.exchange.link.watcher import Watcher
from hdad.exchange.link.wire import (
    Greeting,
    Kind,
    Reason,
    Role,
    WireError,
    decode_subscription,
    encode_number,
)
from hdad.limits import FRAME_BYTES_MAX
from hdad.log.reader import LogReader
from hdad.metrics.counters import RoleBlock, State

SILENCE_MS: Final = 15_000  # of the feed's greeting. A reader may be busy for longer; stalled is who reads nothing for four times this
LOOK_NS: Final = 5_000_000  # readers that follow learn of new frames so soon
LINGER_NS: Final = 1_000_000_000
WAIT_NS_MAX: Final = 500_000_000
ACCEPTS_PER_ROUND: Final = 16
SECOND_NS: Final = 1_000_000_000


class FeedLoop:
    """``open_log`` makes a reader of the log; ``durable_lsn`` is the newest known to be durable; ``reload``: trust and peers anew."""

    def __init__(
        self, channel: Channel, block: RoleBlock, listeners: Sequence[Listener], greeting: Greeting, open_log: Callable[..., LogReader],
        durable_lsn: Callable[[int], int], alarms: Alarms, readers_max: int, reload: Callable[[dict[str, Any]], None],
    ) -> None:  # fmt: skip
        self.allowed_names: tuple[str, ...] = ()
        self.is_drained = False
        self.subscribers: list[Subscriber] = []
        self._channel = channel
        self._block = block
        self._listeners = listeners
        self._greeting = greeting
        self._open_log = open_log
        self._durable_lsn = durable_lsn
        self._alarms = alarms
        self._readers_max = readers_max
        self._reload = reload
        self._logger = logging.getLogger("hdad.feed")
        self._watcher = Watcher((), channel.fileno())
        self._subscriber: Subscriber | None = None  # whose event is handled
        self._now_ns = 0
        block.set("state", State.READY)

    @property
    def is_orphaned(self) -> bool:
        """True: the supervisor is gone."""
        return self._channel.closed_by_peer

    def run_once(self, now_ns: int) -> bool:
        """One bounded round. True when anything was done."""
        self._now_ns = now_ns
        self._block.set("heartbeat_ns", now_ns)
        work = self._hear_supervisor()
        work |= self._accept(now_ns)
        durable_lsn = self._durable_lsn(now_ns) if self.subscribers else 0
        for subscriber in list(self.subscribers):
            work |= self._attend(subscriber, durable_lsn, now_ns)
        self._block.set("readers", len(self.subscribers))
        return work

    def wait(self, now_ns: int) -> None:
        """Sleep until a socket or the supervisor has something, or it is time to look for new frames."""
        due_ns = now_ns + WAIT_NS_MAX
        waits: list[Wait] = [(listener, True, False) for listener in self._listeners]
        for subscriber in self.subscribers:
            waits.append((subscriber.stream, True, subscriber.line.wants_write))
            due_ns = min(due_ns, subscriber.line.machine.due_ns)
            if subscriber.phase is Phase.SENDING and not subscriber.is_done and subscriber.line.machine.has_room:
                due_ns = min(due_ns, now_ns + LOOK_NS)
        self._watcher.wait(waits, max(0, due_ns - now_ns) / SECOND_NS)

    def _hear_supervisor(self) -> bool:
        messages = self._channel.receive()
        for message in messages:
            op = message.get("op")
            if op == "drain":
                self._drain()
            elif op == "reload":
                self._reload(message.get("config", {}))
            elif op == "log-level":
                logging.getLogger().setLevel(str(message.get("level", "info")).upper())
        return bool(messages)

    def _drain(self) -> None:
        """Readers resume elsewhere, or later: there is nothing to finish."""
        for subscriber in list(self.subscribers):
            self._part(subscriber, Reason.DONE, "the host is being stopped")
            self._drop(subscriber)
        self.is_drained = True

    # -- one reader -------------------------------------------------------------------------------------------------------------------

    def _accept(self, now_ns: int) -> bool:
        work = False
        for listener in self._listeners:
            for _ in range(ACCEPTS_PER_ROUND):
                stream = listener.accept()
                if stream is None:
                    break
                work = True
                machine = Connection(
                    self._greeting, (Role.READER,), is_caller=False, frame_bytes_max=FRAME_BYTES_MAX, now_ns=now_ns, is_patient=True
                )
                subscriber = Subscriber(stream, Line(stream, machine), now_ns)
                self.subscribers.append(subscriber)
                if len(self.subscribers) > 2 * self._readers_max:  # nobody waits for so many to be told
                    self._drop(subscriber)
        return work

    def _attend(self, subscriber: Subscriber, durable_lsn: int, now_ns: int) -> bool:
        self._subscriber = subscriber
        try:
            return self._go_on(subscriber, durable_lsn, now_ns)
        except StreamLost as lost:
            self._logger.debug("%s", lost)
            self._drop(subscriber)
        except Overdue as overdue:
            self._refuse(subscriber, overdue.reason, str(overdue))
        except WireError as error:
            self._refuse(subscriber, error.reason, str(error))
        except LappedError as error:
            self._block.add("lapped")
            subscriber.line.machine.send(Kind.LAPPED, 0, error.wanted_lsn, encode_number(error.oldest_lsn))
            self._part(subscriber, Reason.FAILED, str(error))
        except HdadError as error:
            self._logger.warning("%s: %s", subscriber.label, error)
            self._part(subscriber, Reason.FAILED, str(error))
        return True

    def _go_on(self, subscriber: Subscriber, durable_lsn: int, now_ns: int) -> bool:
        line = subscriber.line
        if subscriber.phase is Phase.SECURING:
            if not subscriber.stream.establish():
                line.machine.tick(now_ns)
                return False
            if subscriber.stream.is_secure and not is_peer_allowed(subscriber.stream.names, self.allowed_names):
                words = f"its certificate is for {', '.join(subscriber.stream.names)}, which feed.peers does not allow"
                raise WireError(words, Reason.REFUSED)
            subscriber.phase = Phase.GREETING
            if self.subscribers.index(subscriber) >= self._readers_max:
                raise WireError(f"{self._readers_max} readers are served at a time (feed.readers_max)", Reason.CROWDED)
        work = line.receive(now_ns, self._handle)
        if subscriber.phase is Phase.PARTING:
            return self._see_off(subscriber, now_ns) | work
        if subscriber.phase is Phase.SENDING:
            before = subscriber.frames
            work |= subscriber.advance(durable_lsn, now_ns)
            self._block.add("frames", subscriber.frames - before)
        line.machine.tick(now_ns)
        return self._flush(subscriber, now_ns) | work

    def _flush(self, subscriber: Subscriber, now_ns: int) -> bool:
        before = subscriber.line.machine.sent_bytes
        work = subscriber.line.flush(now_ns)
        self._block.add("bytes_out", subscriber.line.machine.sent_bytes - before)
        return work

    def _handle(self, event: Event) -> None:
        subscriber = self._subscriber
        assert subscriber is not None
        if isinstance(event, Greeted):
            subscriber.name = event.greeting.name
            subscriber.phase = Phase.ASKING
            subscriber.line.machine.welcome(self._greeting)
        elif isinstance(event, Told) and event.kind is Kind.SUBSCRIBE:
            wanted = decode_subscription(event.body)
            subscriber.subscribe(wanted, self._open_log)
            self._logger.info("%s reads from %s", subscriber.label, wanted.start.name.lower())
        elif isinstance(event, Ended):
            raise StreamLost(f"{subscriber.label}: has gone")

    # -- ends -------------------------------------------------------------------------------------------------------------------------

    def _refuse(self, subscriber: Subscriber, reason: Reason, words: str) -> None:
        self._block.add("refused")
        self._logger.warning("%s: %s: %s", subscriber.label, reason.name.lower(), words)
        self._part(subscriber, reason, words)

    def _part(self, subscriber: Subscriber, reason: Reason, words: str) -> None:
        """Say why, and give it time to read it."""
        if subscriber.phase is Phase.PARTING:
            self._drop(subscriber)
            return
        subscriber.phase, subscriber.parted_ns = Phase.PARTING, self._now_ns
        try:
            subscriber.line.machine.bye(reason, words)
            self._flush(subscriber, self._now_ns)
        except (StreamLost, WireError):
            self._drop(subscriber)
            return
        if subscriber.line.is_said:
            subscriber.stream.finish()

    def _see_off(self, subscriber: Subscriber, now_ns: int) -> bool:
        was_said = subscriber.line.is_said
        work = self._flush(subscriber, now_ns)
        if subscriber.line.is_said and not was_said:
            subscriber.stream.finish()
        is_slow = not subscriber.line.is_said and now_ns - subscriber.parted_ns < 4 * SILENCE_MS * 1_000_000
        if now_ns - subscriber.parted_ns > LINGER_NS and not is_slow:
            self._drop(subscriber)
        return work

    def _drop(self, subscriber: Subscriber) -> None:
        subscriber.close()
        if subscriber in self.subscribers:
            self.subscribers.remove(subscriber)

"""A connection and its socket together: bytes go in and out, bounded a round. Used by every loop that talks TCP."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hdad.exchange.link.machine import Connection, Event, State
from hdad.exchange.link.sockets import Stream
from hdad.exchange.link.wire import Reason

RECEIVE_BYTES_PER_ROUND: Final = 4 * 1024 * 1024  # LIMIT: taken from one peer before the others have their turn
RECEIVES_PER_ROUND: Final = 64


class Line:
    """``stream`` is established."""

    def __init__(self, stream: Stream, machine: Connection) -> None:
        self.stream = stream
        self.machine = machine

    def receive(self, now_ns: int, handle: Callable[[Event], None]) -> bool:
        """Take what is here, event by event. True: there was something. Raises StreamLost, WireError, and what ``handle`` raises."""
        machine = self.machine
        total = 0
        for _ in range(RECEIVES_PER_ROUND):
            size = self.stream.receive(machine.spaces())
            if not size:
                break
            total += size
            machine.received(size, now_ns)
            while (event := machine.next_event()) is not None:
                handle(event)
            if total >= RECEIVE_BYTES_PER_ROUND:
                break
        return bool(total)

    def flush(self, now_ns: int) -> bool:
        """Send what the kernel takes. True: it took something. Raises StreamLost."""
        machine = self.machine
        work = False
        while machine.out_bytes:
            size = self.stream.send(machine.outgoing())
            machine.sent(size, now_ns)
            if not size:
                break
            work = True
        return work

    @property
    def wants_write(self) -> bool:
        """For a selector."""
        return bool(self.machine.out_bytes) or self.stream.wants_write

    @property
    def is_said(self) -> bool:
        """True: the last word was said and is on its way."""
        return self.machine.state is State.ENDED and not self.machine.out_bytes

    def part(self, reason: Reason, words: str, now_ns: int) -> None:
        """Say BYE, as far as that is possible now."""
        self.machine.bye(reason, words)
        self.flush(now_ns)

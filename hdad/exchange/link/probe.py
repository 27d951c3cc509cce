"""A look at another host's link: connect, greet, say good-bye. For ``hdactl doctor``; blocks its caller for a moment."""

from __future__ import annotations

import os
import select
import socket
from typing import NamedTuple

from hdad.addresses import Address
from hdad.clock import monotonic_ns
from hdad.exchange.link.line import Line
from hdad.exchange.link.machine import Connection, Ended, Event, Greeted, Overdue
from hdad.exchange.link.sockets import SocketOptions, StreamLost, TcpNetwork
from hdad.exchange.link.trust import Trust
from hdad.exchange.link.wire import Greeting, Reason, Role, WireError

PROBE_MS = 2000


class Probe(NamedTuple):
    """``is_writer`` None: no answer. ``text``: what was found."""

    is_writer: bool | None
    text: str


def probe(address: Address, trust: Trust | None, frame_bytes_max: int) -> Probe:
    """Ask ``address`` whether the writer is there."""
    stream = TcpNetwork(lambda: trust, SocketOptions(PROBE_MS)).connect(address)
    began_ns = monotonic_ns()
    greeting = Greeting(Role.WORKERS, PROBE_MS, os.urandom(16), bytes(16), frame_bytes_max, 0, socket.gethostname())
    line: Line | None = None
    heard: list[Event] = []
    try:
        while not heard:
            now_ns = monotonic_ns()
            if now_ns - began_ns > PROBE_MS * 1_000_000:
                return Probe(None, f"no answer within {PROBE_MS} ms")
            if line is None and stream.establish():
                machine = Connection(greeting, (Role.WRITER,), is_caller=True, frame_bytes_max=frame_bytes_max, now_ns=now_ns)
                line = Line(stream, machine)
            if line is not None:
                line.flush(now_ns)
                line.receive(now_ns, heard.append)
            if not heard:
                _wait(stream.fileno(), stream.wants_write)
        assert line is not None
        line.part(Reason.DONE, "only looking", monotonic_ns())
    except (StreamLost, Overdue, WireError) as error:
        if not heard:
            return Probe(None, str(error))
    finally:
        stream.close()
    event = heard[0]
    took_ms = (monotonic_ns() - began_ns) / 1e6
    if isinstance(event, Greeted):
        peer = event.greeting
        if peer.frame_bytes_max < frame_bytes_max:
            return Probe(None, f"its log.frame_bytes_max is {peer.frame_bytes_max}, here it is {frame_bytes_max}: lower it here")
        return Probe(True, f"{peer.name} is the writer, {took_ms:.1f} ms to its greeting")
    assert isinstance(event, Ended)
    if event.reason is None:
        return Probe(False, f"not the writer{f', which is {event.words}' if event.words else ''}")
    return Probe(None, f"it refuses: {event.words}")


def _wait(fd: int, wants_write: bool) -> None:
    poller = select.poll()
    if fd >= 0:
        poller.register(fd, select.POLLIN | (select.POLLOUT if wants_write else 0))
    poller.poll(20)

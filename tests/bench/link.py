"""What a link costs, beside raw TCP and beside a worker of the writer's own host.

wire: frames of 1 MiB from ring to ring through two links over loopback, against raw TCP that moves as much between two processes (sendmsg
from memory, recv_into). Who fills and who empties the rings copies nothing, so that the link alone is measured.

worker: one worker drains the same streams into a log, once beside the writer, once through a link (two daemons, loopback); entries/s
between a tenth and nine tenths of all.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from harness import Daemon, RedisServer, wait_until
from proxy import free_port, make_authority, make_certificate

from hdad._core import Ring, encode_entry, pack_values, seal_frame
from hdad.config import Config
from hdad.errors import ExitStatus, FormatError
from hdad.exchange.backring import Message, MessageType, encode
from hdad.exchange.channel import Channel, create_pair
from hdad.exchange.link.child import run
from hdad.exchange.link.whois import Writer
from hdad.exchange.slots import create_remote_slots, create_slots, ring_bell
from hdad.limits import MIB
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind
from hdad.metrics.counters import Counters
from hdad.record import ORIGIN, Position

from .programs import BenchError

FRAME = MIB
STREAMS = 8
RING = 16 * MIB


def forked(body: Callable[[], object]) -> int:
    """A child that runs ``body`` and ends."""
    pid = os.fork()
    if pid == 0:
        try:
            body()
        finally:
            os._exit(0)
    return pid


def ended(*pids: int) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


# -- wire ----------------------------------------------------------------------------------------------------------------------------------


def raw_tcp(seconds: float) -> float:
    """GB/s of frames between two processes that do nothing else."""
    listener = socket.create_server(("127.0.0.1", 0))
    ring = Ring.create(RING)
    room = ring.claim(RING)
    assert room is not None

    def send() -> None:
        with socket.create_connection(listener.getsockname()) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while True:
                for at in range(0, RING, FRAME):
                    view = room[at : at + FRAME]
                    while view:
                        view = view[sock.send(view) :]

    pid = forked(send)
    sock, _ = listener.accept()
    total, began = 0, time.perf_counter()
    while (now := time.perf_counter()) - began < seconds:
        at = total % RING
        total += sock.recv_into(room[at : at + FRAME - at % FRAME])
    ended(pid)
    sock.close()
    listener.close()
    return total / (now - began) / 1e9


def frame_bytes() -> tuple[bytes, int]:
    """A payload of entries that fills a frame of 1 MiB, and how many they are."""
    body = encode_entry([(b"d", b"x" * 200)])
    out = bytearray(FRAME - FRAME_HEADER_SIZE)
    count, used = pack_values(out, [(1, 0, 0, body)] * 5000)
    return bytes(out[:used]), count


class Always:
    """The writer is here."""

    def look(self) -> Writer:
        return Writer(True)


def through_links(seconds: float, tls: dict[str, Any]) -> float:
    """GB/s of frames from a local ring here to a remote ring there. Raises BenchError if the links do not meet."""
    pids: list[int] = []
    try:
        return _through_links(seconds, tls, pids)
    finally:
        ended(*pids)


def _through_links(seconds: float, tls: dict[str, Any], pids: list[int]) -> float:
    scheme = "tls" if tls else "tcp"
    address = f"{scheme}://127.0.0.1:{free_port()}"
    local, there = create_slots(1, RING), create_slots(1, RING)
    remote = create_remote_slots(there, 1, RING)
    channels = []

    def start(link: dict[str, Any], *slots: Any) -> None:
        log = {"frame_bytes_max": FRAME, **({"device": "none"} if "listen" in link else {})}  # who may write waits for its own writer first
        config = {"workers": {"ring_bytes": RING}, "log": log, "link": {**link, **tls}}
        ours, theirs = create_pair()
        counters = Counters.create(2, 64)
        channels.append(ours)

        def body(channel: Channel = theirs) -> ExitStatus:
            whois = Always() if "listen" in link else None
            return run(slots[0], slots[1], 1, counters, channel, Config.model_validate(config), whois)

        pids.append(forked(body))

    start({"listen": [address]}, there, remote)
    start({"writers": [address]}, local, [])
    payload, count = frame_bytes()

    def fill() -> None:
        """The worker: says hello, then publishes the same sixteen frames again and again without touching them."""
        slot = local[0]
        while not len(slot.back.poll()):
            sleep_on(slot.back_bell)
        slot.back.release(len(slot.back.poll()))
        view = slot.data.claim(4096)
        assert view is not None
        hello = orjson.dumps({"worker": 0, "generation": 1, "is_first": True, "streams": {}})
        view[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + len(hello)] = hello
        slot.data.publish(seal_frame(view, 4096, FrameKind.HELLO, len(hello), (0, 0), ORIGIN, ORIGIN, 0, 0, 0, 0, 0, 0, 0))
        ring_bell(slot.data_bell)
        while not len(slot.back.poll()) or slot.data.head != slot.data.tail:
            sleep_on(slot.back_bell)  # until it is assigned
        number = 0
        while True:
            view = slot.data.claim(FRAME)
            if view is None:
                if not slot.data.producer_sleep(FRAME):
                    sleep_on(slot.back_bell)
                continue
            number += 1
            if number <= RING // FRAME:
                view[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + len(payload)] = payload
                assert seal_frame(
                    view, 4096, FrameKind.DATA, len(payload), (1, 1), ORIGIN, Position(1, 0), count, count, 0, 0, 0, 0, 1
                ) == FRAME
            if slot.data.publish(FRAME):
                ring_bell(slot.data_bell)

    pids.append(forked(fill))
    slot = remote[0]
    until_s = time.monotonic() + 20
    while slot.data.tail == 0:
        if time.monotonic() > until_s:
            raise BenchError("the links do not meet")
        sleep_on(slot.data_bell)
    for message in (Message(MessageType.WELCOME, extra=(1 << 32) + 1), Message(MessageType.ASSIGN, 1, 1, ORIGIN, 0, b"s")):
        data = encode(message)
        view = slot.back.claim(len(data))
        assert view is not None
        view[:] = data
        slot.back.publish(len(data))
    slot.data.release(slot.data.tail)
    ring_bell(slot.back_bell)
    total, began, now = 0, 0.0, 0.0
    warm_until = time.perf_counter() + 1.0
    while not began or now - began < seconds:
        now = time.perf_counter()
        if not began and now > warm_until:
            total, began = 0, now
        size = slot.data.tail - slot.data.head
        if not size:
            if not slot.data.consumer_sleep(slot.data.head):
                sleep_on(slot.data_bell)
            continue
        total += size
        if slot.data.release(size):
            ring_bell(slot.back_bell)
    return total / (now - began) / 1e9


def sleep_on(bell: int) -> None:
    """Until it is rung; a little at most."""
    poller = select.poll()
    poller.register(bell, select.POLLIN)
    if poller.poll(10):
        os.eventfd_read(bell)


# -- worker --------------------------------------------------------------------------------------------------------------------------------


def load(server: RedisServer, count: int) -> None:
    """Entries of about 200 bytes of JSON in 8 streams."""
    pipeline = server.client.pipeline(transaction=False)
    for index in range(count):
        pipeline.xadd(f"s:{index % STREAMS}", {b"d": b'{"id":%09d,"text":"%s"}' % (index, b"x" * 170)})
        if index % 10_000 == 9_999:
            pipeline.execute()
    pipeline.execute()


def rate(daemon: Daemon, count: int) -> float:
    """Entries/s between a tenth and nine tenths of ``count``, as they become durable."""
    assert daemon.process is not None
    counters = wait_until(lambda: _attached(daemon), "its counters are there")
    marks: list[tuple[float, int]] = []
    while not marks or marks[-1][1] < count:
        marks.append((time.perf_counter(), counters.writer.get("entries")))
        time.sleep(0.002)
    first = next(mark for mark in marks if mark[1] >= count * 0.1)
    last = next(mark for mark in marks if mark[1] >= count * 0.9)
    return (last[1] - first[1]) / (last[0] - first[0])


def _attached(daemon: Daemon) -> Counters | None:
    try:
        assert daemon.process is not None
        return Counters.attach_process(daemon.process.pid)
    except (OSError, FormatError):
        return None


def one_worker(folder: Path, server: RedisServer, count: int, tls: dict[str, Any], is_linked: bool) -> float:
    """Entries/s of one worker beside the writer, or on a host of its own. ``folder`` is new."""
    common = {"workers": {"count": 1, "ring_bytes": RING}, "log": {"frame_bytes_max": FRAME}}
    address = f"{'tls' if tls else 'tcp'}://127.0.0.1:{free_port()}"
    folder.mkdir()
    daemons = []
    if is_linked:
        far = {**common, "redis": {"streams": ["none"]}, "link": {"listen": [address], **tls}}
        daemons.append(Daemon(folder / "writer", server.url, far, start=False, size=1 << 30))
        near = {**common, "link": {"writers": [address], **tls}}
        daemons.append(Daemon(folder / "worker", server.url, near, start=False, has_log=False))
    else:
        daemons.append(Daemon(folder / "writer", server.url, common, start=False, size=1 << 30))
    try:
        for daemon in daemons:
            daemon.start(wait=False)
        return rate(daemons[0], count)
    finally:
        for daemon in reversed(daemons):
            daemon.kill()
        Path(daemons[0].device).unlink()


def certificate(folder: Path) -> dict[str, Any]:
    """Keys of hdad.toml's [link] for TLS on 127.0.0.1, with certificates made by openssl."""
    make_authority(folder / "tls", "ca")
    return make_certificate(folder / "tls", "ca", "a", "IP:127.0.0.1")

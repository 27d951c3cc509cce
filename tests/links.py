"""Two links over a network in memory, with rings in place of workers and the writer: what unit and property tests of the link drive."""

from __future__ import annotations

import logging
import random
from typing import Any

from crc32c import crc32c

from hdad._core import Ring, encode_entry, pack_values
from hdad.addresses import Address
from hdad.alarms import Alarms
from hdad.exchange.backring import BACK_RING_BYTES, Message, decode, encode
from hdad.exchange.link.forward import Forwarder
from hdad.exchange.link.inlet import Inlet, ring_size
from hdad.exchange.link.ledger import Ledger
from hdad.exchange.link.outlet import Outlet
from hdad.exchange.link.serve import Server
from hdad.exchange.link.whois import Writer
from hdad.exchange.link.wire import Greeting, Role
from hdad.exchange.slots import WorkerSlot, create_bell
from hdad.log.format import FRAME_HEADER_SIZE, FrameHeader, FrameKind, build_frame_header, decode_header
from hdad.metrics.counters import Counters
from hdad.record import Position
from hdad.worker.frames import FrameBuilder
from hdad.writer.intake import Intake
from tests.sim.network import SimNet

MS = 1_000_000
HERE = Address("tcp", "writer", 7411)
FRAME_BYTES_MAX = 64 * 1024


class Sent:
    """A channel to a supervisor that keeps what was said."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def send(self, message: dict[str, Any], /) -> bool:
        self.messages.append(message)
        return True


def slot(index: int, capacity: int = 256 * 1024) -> WorkerSlot:
    return WorkerSlot(index, Ring.create(capacity), Ring.create(BACK_RING_BYTES), create_bell(), create_bell())


def greeting(role: Role, **changes: Any) -> Greeting:
    return Greeting(role, 3000, random.randbytes(16), bytes(16), FRAME_BYTES_MAX, 4, role.name)._replace(**changes)


class Whois:
    """``writer`` is what it answers."""

    def __init__(self) -> None:
        self.writer = Writer(True, "", bytes(range(16)))

    def look(self) -> Writer:
        return self.writer


class Worker:
    """The worker's side of a local slot."""

    def __init__(self, own: WorkerSlot, generation: int = 1) -> None:
        self.slot = own
        self.generation = generation
        self.frames = FrameBuilder(own.data, own.index, FRAME_BYTES_MAX)

    def hello(self, **content: Any) -> None:
        assert self.frames.hello({"worker": self.slot.index, "generation": self.generation, **content})

    def data(self, lane_id: int, epoch: int, to: int, size: int = 100, count: int = 1) -> bool:
        """A frame of one lane, from ``to`` - 1 to ``to``; its payload has about ``size`` bytes."""
        frame = data_frame(lane_id, epoch, to, size, count)
        view = self.slot.data.claim(len(frame))
        if view is None:
            return False
        view[:] = frame
        self.slot.data.publish(len(frame))
        return True

    def heard(self) -> list[Message]:
        """Messages in its back ring."""
        view = self.slot.back.poll()
        found = decode(view)
        size = len(view)
        view.release()
        if size:
            self.slot.back.release(size)
        return found


def data_frame(lane_id: int, epoch: int, to: int, size: int = 100, count: int = 1) -> bytes:
    """As a worker builds it, padding and all."""
    body = encode_entry([(b"n", bytes(max(0, size // count - 48)))])
    out = bytearray(size + 200 * count)
    packed, used = pack_values(out, [(to, 0, 0, body)] * count)
    assert packed == count
    frame = bytearray(ring_size(FRAME_HEADER_SIZE + used))
    frame[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + used] = out[:used]
    build_frame_header(
        memoryview(frame), kind=FrameKind.DATA, lane_id=lane_id, lane_epoch=epoch, from_=Position(to - 1, 0), to=Position(to, 0),
        record_count=count, entry_count=count, stored_size=used, payload_crc=crc32c(memoryview(out)[:used]), label_ns=1, lost_count=0,
        filtered_count=0, dead_count=0, worker=0,
    )  # fmt: skip
    return bytes(frame)


class RingWriter:
    """The writer's side of a remote slot."""

    def __init__(self, own: WorkerSlot) -> None:
        self.slot = own
        self.intake = Intake(own)

    def frames(self) -> list[tuple[FrameHeader, bytes]]:
        """(header, frame) of what is in the ring and was not looked at."""
        found = []
        for frame in self.intake.frames():
            found.append((decode_header(frame.view), bytes(frame.view)))
            self.intake.taken(frame.size, 0)
        return found

    def release(self) -> None:
        """All that was looked at is durable."""
        self.intake.release(0)

    def say(self, *messages: Message) -> None:
        for message in messages:
            data = encode(message)
            view = self.slot.back.claim(len(data))
            assert view is not None
            view[:] = data
            self.slot.back.publish(len(data))


class Pair:
    """A worker host with ``workers`` workers, and the writer's host with ``rings`` rings."""

    def __init__(self, workers: int = 2, rings: int = 3, rng: random.Random | None = None, capacity: int = 256 * 1024) -> None:
        self.now_ns = 1_000 * MS
        self.rng = rng
        self.net = SimNet(lambda: self.now_ns, rng)
        self.counters = Counters.create(8, 64)
        self.far_counters = Counters.create(8, 64)
        self.supervisor, self.far_supervisor = Sent(), Sent()
        self.workers = [Worker(slot(index, capacity)) for index in range(workers)]
        self.remote = [slot(10 + index, capacity) for index in range(rings)]
        self.writers = [RingWriter(own) for own in self.remote]
        self.whois = Whois()
        self.link_generation = 0
        self.start_server()
        self.start_forwarder()

    def start_server(self, rings: list[WorkerSlot] | None = None) -> None:
        """A new process of the writer's host's link."""
        self.link_generation += 1
        self.server_net = self.net.host("writer")
        self.inlets = [Inlet(own, self.link_generation) for own in rings or self.remote]
        self.server = Server(
            self.inlets, [self.server_net.listen(HERE)], greeting(Role.WRITER, workers=0), self.whois,
            Alarms(self.far_supervisor, logging.getLogger("test")), self.far_counters.link, 4,
        )  # fmt: skip

    def start_forwarder(self, **changes: Any) -> None:
        """A new process of the worker host's link."""
        self.forwarder_net = self.net.host("workers")
        ledger = Ledger(self.counters.lanes, self.counters.writer)
        self.forwarder = Forwarder(
            [Outlet(worker.slot) for worker in self.workers], ledger, [HERE], greeting(Role.WORKERS, **changes), self.forwarder_net,
            Alarms(self.supervisor, logging.getLogger("test")), self.counters.link, lambda: 0.5, lambda: 1,
        )  # fmt: skip

    def run(self, rounds: int = 20, step_ns: int = MS) -> None:
        """Both links, in turns."""
        for _ in range(rounds):
            self.forwarder.run(self.now_ns)
            self.server.run(self.now_ns)
            self.now_ns += step_ns

    def introduce(self, index: int = 0) -> RingWriter:
        """Worker ``index`` greets and is welcomed. Returns the ring that it got."""
        self.run()
        worker = self.workers[index]
        worker.heard()
        worker.hello(is_first=True, streams={})
        self.run()
        ring = next(ring for ring in self.writers if any(header.kind == FrameKind.HELLO for header, _ in ring.frames()))
        return ring

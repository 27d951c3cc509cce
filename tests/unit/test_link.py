"""Two links over a network in memory: frames arrive as they were, credit and deaths are in order, and a peer that lies harms nobody."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from crc32c import crc32c
from links import FRAME_BYTES_MAX, HERE, MS, Pair, RingWriter, Sent, Worker, data_frame, greeting

from hdad.addresses import Address
from hdad.exchange.backring import Message, MessageType
from hdad.exchange.link.forward import Phase
from hdad.exchange.link.inlet import InletState
from hdad.exchange.link.line import Line
from hdad.exchange.link.machine import Connection, Ended, Event, Told
from hdad.exchange.link.outlet import ChannelState
from hdad.exchange.link.scrutiny import seal
from hdad.exchange.link.whois import Writer
from hdad.exchange.link.wire import GONE_CREDIT, Kind, Reason, Role
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind, build_frame_header, decode_header
from hdad.record import ORIGIN, Position

LANE = Message(MessageType.ASSIGN, 7, 3, Position(0, 0), 0, b"s:a")


def content(frame: bytes) -> dict[str, Any]:
    stored = decode_header(frame).stored_size
    found: dict[str, Any] = orjson.loads(frame[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + stored])
    return found


def body(frame: bytes) -> bytes:
    """What must arrive as it was: the header's own fields and all behind it, but not what links and writer fill in."""
    return frame[4:160] + frame[164:]


# -- the way of frames ---------------------------------------------------------------------------------------------------------------------


def test_frames_arrive_in_order_as_they_were_and_their_room_is_given_back_only_when_it_is_free_over_there() -> None:
    pair = Pair()
    ring = pair.introduce()
    worker = pair.workers[0]
    ring.say(Message(MessageType.WELCOME, extra=(1 << 32) + 1), LANE)
    pair.run()
    assert [message.type for message in worker.heard()] == [MessageType.WELCOME, MessageType.ASSIGN]
    wanted = [data_frame(7, 3, to, size) for to, size in ((1, 10), (2, 40_000), (3, 4000), (4, 1))]
    for to, size in ((1, 10), (2, 40_000), (3, 4000), (4, 1)):
        assert worker.data(7, 3, to, size)
    pair.run()
    found = ring.frames()
    assert [body(frame) for _, frame in found] == [body(frame) for frame in wanted]
    assert all(header.worker == ring.slot.index for header, _ in found)
    assert worker.slot.data.head < worker.slot.data.tail
    ring.release()
    pair.run()
    assert worker.slot.data.head == worker.slot.data.tail
    row = pair.counters.lanes.row(7)
    assert row is not None and (row.name, row.entries, row.frames, row.worker) == (b"s:a", 4, 4, 0)


def test_a_worker_hears_that_it_is_durable_only_after_its_ring_is_empty() -> None:
    pair = Pair()
    ring = pair.introduce()
    ring.say(LANE)
    pair.run()
    worker = pair.workers[0]
    worker.heard()
    worker.data(7, 3, 1)
    pair.run()
    ring.frames()
    ring.say(Message(MessageType.DURABLE, 7, 3, Position(1, 0), 1))
    ring.release()
    while not (heard := worker.heard()):
        pair.run(1)
    assert heard[0].type is MessageType.DURABLE and worker.slot.data.head == worker.slot.data.tail


def test_what_is_in_flight_never_exceeds_the_ring_over_there() -> None:
    pair = Pair(capacity=64 * 1024)
    ring = pair.introduce()
    ring.say(LANE)
    ring.release()
    pair.run()
    worker = pair.workers[0]
    for to in range(1, 12):
        assert worker.data(7, 3, to, 2000)
    pair.run(50)
    capacity = ring.slot.data.capacity
    assert ring.slot.data.tail - ring.slot.data.head <= capacity - GONE_CREDIT
    seen = 0
    for _ in range(40):
        seen += len(ring.frames())
        ring.release()
        pair.run(5)
    assert seen == 11


def test_a_big_frame_of_one_worker_does_not_hold_up_another() -> None:
    pair = Pair(capacity=4 << 20)
    for index in (0, 1):
        worker = pair.workers[index]
        pair.run()
        worker.heard()
        worker.hello(is_first=True, streams={})
    pair.run()
    rings = [ring for ring in pair.writers if ring.frames()]
    assert len(rings) == 2
    for ring in rings:
        ring.say(Message(MessageType.ASSIGN, 7 + ring.slot.index, 3, ORIGIN, 0, b"x"))
    pair.run()
    lanes = [next(message.lane_id for message in worker.heard() if message.type is MessageType.ASSIGN) for worker in pair.workers]
    for to in range(1, 20):
        assert pair.workers[0].data(lanes[0], 3, to, 60_000)
    assert pair.workers[1].data(lanes[1], 3, 1, 10)
    pair.run(2)
    assert any(header.lane_id == lanes[1] for ring in rings for header, _ in ring.frames())


# -- deaths and successors -----------------------------------------------------------------------------------------------------------------


def test_a_workers_death_comes_behind_all_its_frames_and_its_successor_has_another_generation() -> None:
    pair = Pair()
    ring = pair.introduce()
    ring.say(LANE)
    pair.run()
    worker = pair.workers[0]
    worker.data(7, 3, 1)
    pair.forwarder.outlets[0].died(1)
    pair.run()
    (first, _), (second, gone) = ring.frames()
    assert first.kind == FrameKind.DATA
    assert content(gone) == {"worker": ring.slot.index, "generation": (1 << 32) + 1, "is_gone": True}
    assert second.lane_epoch == (1 << 32) + 1
    successor = Worker(worker.slot, 2)
    successor.hello(is_first=True, streams={"a": [0, 0, 0]})
    pair.run()
    ((hello, _),) = ring.frames()
    assert hello.lane_epoch == (1 << 32) + 2


def test_a_successors_greeting_before_the_news_of_the_death_says_the_same() -> None:
    pair = Pair()
    ring = pair.introduce()
    worker = pair.workers[0]
    Worker(worker.slot, 2).hello(is_first=True, streams={})
    pair.run()
    pair.forwarder.outlets[0].died(1)
    pair.run()
    assert [header.lane_epoch for header, _ in ring.frames()] == [(1 << 32) + 2]


def test_a_welcome_is_for_the_worker_that_said_hello() -> None:
    pair = Pair()
    ring = pair.introduce()
    Worker(pair.workers[0].slot, 5).hello(is_first=True, streams={})
    pair.run()
    generations = [header.lane_epoch for header, _ in ring.frames()]
    ring.say(Message(MessageType.WELCOME, extra=(1 << 32) + 1), LANE)
    pair.run()
    ring.say(Message(MessageType.WELCOME, extra=generations[0]))
    pair.run()
    assert [message.extra for message in pair.workers[0].heard() if message.type is MessageType.WELCOME] == [1, 5]


def test_what_waits_before_a_welcome_was_for_the_worker_before() -> None:
    pair = Pair()
    pair.introduce()
    outlet, worker = pair.forwarder.outlets[0], pair.workers[0]
    worker.heard()
    for message in (Message(MessageType.WELCOME, extra=1), LANE, Message(MessageType.WELCOME, extra=2)):
        outlet.hear(message)
    outlet.flush()
    assert worker.heard() == [Message(MessageType.WELCOME, extra=2)]
    for message in (LANE, Message(MessageType.WHO)):
        outlet.hear(message)
    outlet.flush()
    assert worker.heard() == [Message(MessageType.WHO)]


def test_when_the_connection_breaks_the_writer_learns_of_each_workers_end_and_the_ring_is_free_when_empty() -> None:
    pair = Pair()
    ring = pair.introduce()
    pair.forwarder_net.die()
    pair.run(3)
    ((_, gone),) = ring.frames()
    assert content(gone)["is_gone"]
    inlet = next(inlet for inlet in pair.inlets if inlet.slot is ring.slot)
    assert inlet.state is InletState.CLOSING
    ring.release()
    pair.server.run(pair.now_ns)
    assert inlet.state is InletState.FREE


def test_after_a_break_the_ring_is_dropped_and_the_worker_is_asked_to_begin_anew() -> None:
    pair = Pair()
    ring = pair.introduce()
    ring.say(LANE)
    pair.run()
    worker = pair.workers[0]
    worker.heard()
    worker.data(7, 3, 1)
    pair.server_net.die()
    pair.run(2)
    assert pair.forwarder.phase is not Phase.SERVING
    worker.data(7, 3, 2)
    pair.start_server()
    pair.run(400)
    assert pair.forwarder.is_serving and worker.slot.data.head == worker.slot.data.tail
    assert [message.type for message in worker.heard()] == [MessageType.WHO]
    worker.data(7, 3, 3)  # before it hears WHO
    worker.hello(is_first=True, streams={})
    pair.run()
    found = [(header, content(frame)) for ring in pair.writers for header, frame in ring.frames() if header.lane_epoch >> 32 == 2]
    assert [told.get("is_first", False) for _, told in found] == [False, True], "what was published before belongs to what is over"


def test_a_new_link_declares_the_workers_of_its_predecessor_dead_behind_their_frames() -> None:
    pair = Pair()
    ring = pair.introduce()
    ring.say(LANE)
    pair.run()
    pair.workers[0].data(7, 3, 1)
    pair.run()
    pair.server_net.die()
    pair.start_server()
    pair.server.run(pair.now_ns)
    (data, _), (hello, gone) = ring.frames()
    assert data.kind == FrameKind.DATA and content(gone)["is_gone"] and hello.lane_epoch == 2 << 32
    assert not any(other.frames() for other in pair.writers if other is not ring), "rings that nobody used say nothing"


def test_a_frame_that_was_on_its_way_when_the_link_died_does_not_exist() -> None:
    pair = Pair()
    liar = Liar(pair)
    ring = liar.open()
    ring.say(LANE)
    liar.run()
    frame = bytearray(data_frame(7, 3, 1, 50_000))
    stored = decode_header(frame).stored_size
    seal(memoryview(frame))
    liar.line.machine.send_piece(Kind.FRAME, 0, memoryview(frame)[:30_000], FRAME_HEADER_SIZE + stored)
    liar.run()
    assert ring.slot.data.tail == 0, "the frame is half here"
    liar.stream.close()
    pair.run(2)
    assert [content(frame)["is_gone"] for _, frame in ring.frames()] == [True]
    assert ring.slot.data.tail == GONE_CREDIT


def standing(sent: Sent) -> set[str]:
    """Alarms that stand."""
    keys: set[str] = set()
    for message in sent.messages:
        if message["event"] in ("alarm", "clear"):
            (keys.add if message["event"] == "alarm" else keys.discard)(message["key"])
    return keys


def test_alarms_of_rings_that_lack_end_with_the_connection_that_wanted_them() -> None:
    """Nobody opens a ring afterwards: the host is gone for good."""
    pair = Pair(rings=1)
    pair.run()
    for worker in pair.workers:
        worker.hello(is_first=True, streams={})
    pair.run()
    assert standing(pair.far_supervisor) == {"link-rings"} and standing(pair.supervisor) == {"link-full:1"}
    pair.forwarder.let_go()
    pair.run()
    assert not standing(pair.far_supervisor) and not standing(pair.supervisor)


def test_a_channel_without_a_worker_is_given_back() -> None:
    pair = Pair(rings=1)
    ring = pair.introduce(0)
    pair.workers[1].heard()
    pair.workers[1].hello(is_first=True, streams={})
    pair.run(100)
    assert pair.forwarder.outlets[1].state is not ChannelState.OPEN
    assert any("no ring left for worker 1" in str(message) for message in pair.supervisor.messages)
    pair.forwarder.outlets[0].died(1)
    for _ in range(80):
        pair.run(10, 20 * MS)
        ring.frames()
        ring.release()
    assert pair.forwarder.outlets[0].state is ChannelState.CLOSED
    assert pair.forwarder.outlets[1].state is ChannelState.OPEN


# -- finding the writer --------------------------------------------------------------------------------------------------------------------


def test_a_host_that_is_not_the_writer_says_who_is_and_that_one_is_asked() -> None:
    pair = Pair()
    other = Address("tcp", "other", 7411)
    pair.whois.writer = Writer(False, str(other))
    pair.forwarder._candidates.append(other)
    errors = set()
    for _ in range(20):
        pair.run(1)
        errors.add(pair.forwarder.last_error)
    assert {f"{HERE}: not the writer, which is {other}", f"{other}: refused"} <= errors
    pair.whois.writer = Writer(True)
    pair.run(600)
    assert pair.forwarder.is_serving and pair.forwarder._address == HERE


def test_a_hint_to_an_address_that_shows_no_certificate_and_was_not_named_is_not_followed() -> None:
    pair = Pair()
    pair.whois.writer = Writer(False, "tcp://evil:7411")
    pair.run(300)
    assert pair.forwarder._address == HERE


def test_a_writer_that_moves_away_sends_its_workers_on() -> None:
    pair = Pair()
    ring = pair.introduce()
    pair.whois.writer = Writer(False, "")
    pair.run(3)
    assert not pair.forwarder.is_serving
    assert content(ring.frames()[-1][1])["is_gone"]


def test_frames_that_do_not_fit_over_there_are_told_in_words() -> None:
    pair = Pair()
    pair.start_forwarder(frame_bytes_max=FRAME_BYTES_MAX * 2)
    pair.run(5)
    assert "log.frame_bytes_max" in pair.forwarder.last_error
    pair.run(10, 200 * MS)
    assert any("no writer is reached" in str(message.get("text")) for message in pair.supervisor.messages)


def test_a_writer_that_never_answers_is_given_up_and_asked_again() -> None:
    pair = Pair()
    pair.net.cut.add(("writer", "workers"))
    pair.run(200, 20 * MS)
    assert "no connection within" in pair.forwarder.last_error
    pair.net.cut.clear()
    pair.run(100, 20 * MS)
    assert pair.forwarder.is_serving


def test_silence_is_noticed_by_both_within_the_limit_and_no_sooner() -> None:
    pair = Pair()
    pair.introduce()
    pair.run(100, 20 * MS)
    assert pair.forwarder.is_serving
    pair.net.cut |= {("writer", "workers"), ("workers", "writer")}
    pair.run(120, 20 * MS)
    assert pair.forwarder.is_serving and pair.server.guests
    pair.run(40, 20 * MS)
    assert not pair.forwarder.is_serving
    assert not any(guest.channels for guest in pair.server.guests)
    assert pair.server.ends["silent"] == 1


def test_a_link_that_stood_still_for_long_takes_what_came_before_it_calls_the_peer_silent() -> None:
    pair = Pair()
    pair.introduce()
    pair.now_ns += 600 * MS
    pair.forwarder.run(pair.now_ns)
    pair.now_ns += 4000 * MS
    pair.server.run(pair.now_ns)
    assert pair.server.guests and not pair.server.ends


# -- draining ------------------------------------------------------------------------------------------------------------------------------


def test_a_draining_writers_host_waits_until_all_that_came_is_durable_and_says_good_bye() -> None:
    pair = Pair()
    ring = pair.introduce()
    ring.say(LANE)
    pair.run()
    pair.workers[0].data(7, 3, 1)
    pair.run()
    pair.server.is_draining = True
    pair.workers[0].data(7, 3, 2)
    pair.run()
    assert not pair.server.is_drained and pair.forwarder.is_serving
    assert len(ring.frames()) == 1, "nothing more is taken"
    ring.release()
    pair.run(2)
    assert not pair.forwarder.is_serving and "stopped" in pair.forwarder.last_error
    ring.frames()
    ring.release()
    pair.run(2000)
    assert pair.server.is_drained


def test_a_draining_worker_host_ends_when_its_rings_are_empty() -> None:
    pair = Pair()
    ring = pair.introduce()
    pair.forwarder.is_draining = True
    pair.run()
    assert not pair.forwarder.is_drained
    ring.release()
    pair.run()
    assert pair.forwarder.is_drained
    assert pair.server.ends["done"] == 1


def test_let_go_leaves_the_rings_alone_and_resume_takes_them_again() -> None:
    pair = Pair()
    pair.introduce()
    pair.forwarder.let_go()
    worker = pair.workers[0]
    worker.hello(is_first=True, streams={})
    tail, head = worker.slot.data.tail, worker.slot.data.head
    pair.run(500)
    assert (worker.slot.data.tail, worker.slot.data.head) == (tail, head)
    pair.forwarder.resume()
    pair.run(500)
    assert pair.forwarder.is_serving and worker.slot.data.head == worker.slot.data.tail


# -- peers that break the rules ------------------------------------------------------------------------------------------------------------


class Liar:
    """A worker host that says what it likes."""

    def __init__(self, pair: Pair, *, greets: bool = True) -> None:
        self.pair = pair
        self.stream = pair.net.host("liar").connect(HERE)
        machine = Connection(greeting(Role.WORKERS), (Role.WRITER,), is_caller=greets, frame_bytes_max=FRAME_BYTES_MAX, now_ns=pair.now_ns)
        self.line = Line(self.stream, machine)
        self.told: list[Event] = []
        if greets:
            self.run()

    def run(self, rounds: int = 5) -> None:
        for _ in range(rounds):
            try:
                self.line.flush(self.pair.now_ns)
                self.line.receive(self.pair.now_ns, self.told.append)
            except Exception as lost:
                self.told.append(Ended(Reason.LOST, str(lost)))
            self.pair.run(1)

    def open(self) -> RingWriter:
        self.line.machine.send(Kind.OPEN, 0)
        self.run()
        opened = next(event for event in self.told if isinstance(event, Told) and event.kind is Kind.OPENED)
        assert opened.value
        guest: Any = next(guest for guest in self.pair.server.guests if guest.stream._out is self.stream._in)  # type: ignore[attr-defined]
        inlet = guest.channels[0]
        return next(ring for ring in self.pair.writers if ring.slot is inlet.slot)

    def frame(self, frame: bytes, *, whole: int | None = None, sealed: bool = True, channel: int = 0) -> None:
        stored = decode_header(frame).stored_size
        data = bytearray(frame[: FRAME_HEADER_SIZE + stored])
        if sealed:
            seal(memoryview(data))
        self.line.machine.send_piece(Kind.FRAME, channel, memoryview(data), len(data) if whole is None else whole)
        self.run()

    @property
    def reason(self) -> Reason | None:
        return next((event.reason for event in self.told if isinstance(event, Ended)), None)


def changed(frame: bytes, offset: int, value: bytes) -> bytes:
    return frame[:offset] + value + frame[offset + len(value) :]


def hello_frame(payload: bytes) -> bytes:
    frame = bytearray(FRAME_HEADER_SIZE) + payload
    build_frame_header(
        memoryview(frame), kind=FrameKind.HELLO, lane_id=0, lane_epoch=0, from_=ORIGIN, to=ORIGIN, record_count=0, entry_count=0,
        stored_size=len(payload), payload_crc=crc32c(payload), label_ns=0, lost_count=0, filtered_count=0, dead_count=0, worker=0,
    )  # fmt: skip
    return bytes(frame)


GOOD = data_frame(7, 3, 1)
LIES: dict[str, bytes] = {
    "a lane that is another's": data_frame(8, 3, 1),
    "an epoch that is not its own": data_frame(7, 4, 1),
    "fields of the writer": changed(GOOD, 40, b"\1"),
    "a kind of the device": changed(GOOD, 18, b"\2"),
    "more filtered than read": changed(GOOD, 152, b"\2"),
    "too many lost": changed(GOOD, 144, b"\xff" * 8),
    "a codec": changed(GOOD, 19, b"\1"),
    "another raw size": changed(GOOD, 132, b"\1\1"),
    "a hello without generation": hello_frame(b"{}"),
    "a hello that says it is dead": hello_frame(b'{"generation":1,"is_gone":true}'),
    "a hello with no capacity": hello_frame(b'{"generation":1,"is_first":true,"streams":{},"capacity":0}'),
    "a hello with too much capacity": hello_frame(b'{"generation":1,"is_first":true,"streams":{},"capacity":10001}'),
    "a hello with streams that are none": hello_frame(b'{"generation":1,"streams":{"a":[1,2]}}'),
    "a hello with a name that is too long": hello_frame(b'{"generation":1,"streams":{"' + b"a" * 400 + b'":[1,2,3]}}'),
    "a hello with a name of wide signs": hello_frame('{"generation":1,"streams":{"Ω":[1,2,3]}}'.encode()),
    "a hello with a halt of nothing": hello_frame(b'{"generation":1,"halt":[]}'),
    "a hello with a negative loss": hello_frame(b'{"generation":1,"lost":[7,3,-1,0,0]}'),
    "a hello with a loss that is too large": hello_frame(b'{"generation":1,"lost":[7,3,9999999999999999,0,0]}'),
    "records that are none": data_frame(7, 3, 1, 100)[:FRAME_HEADER_SIZE] + bytes(3904),
}
GARBAGE: dict[str, bytes] = {
    "a payload that was changed": changed(GOOD, FRAME_HEADER_SIZE + 30, b"?"),
    "a header of something else": changed(GOOD, 8, b"?"),
    "a hello that is no JSON": hello_frame(b"{"),
    "a hello that is no object": hello_frame(b"[]"),
}


@pytest.mark.parametrize(("what", "reason"), [*((what, Reason.LIES) for what in LIES), *((what, Reason.GARBAGE) for what in GARBAGE)])
def test_a_worker_host_that_breaks_the_rules_is_closed_with_a_reason_and_nothing_of_it_is_published(what: str, reason: Reason) -> None:
    pair = Pair()
    honest = pair.introduce()
    liar = Liar(pair)
    ring = liar.open()
    ring.say(LANE)
    liar.run()
    liar.frame(GOOD)
    assert [header.lane_id for header, _ in ring.frames()] == [7], "an honest frame is taken"
    frame = (LIES | GARBAGE)[what]
    if what == "records that are none":
        head = bytearray(frame)
        stored = decode_header(head).stored_size
        head[4:8] = crc32c(bytes(stored)).to_bytes(4, "little")
        frame = bytes(head)
    liar.frame(frame)
    found = ring.frames()
    assert liar.reason is reason
    assert [content(gone)["is_gone"] for _, gone in found] == [True]
    assert pair.server.ends[reason.name.lower()] == 1
    assert pair.far_counters.link.get(f"ends_{reason.name.lower()}") == 1
    assert any(reason.name.lower() in why for _, why in pair.server.news)
    pair.workers[0].hello(streams={"b": [0, 0, 0]})
    pair.run(50)
    assert [header.kind for header, _ in honest.frames()] == [FrameKind.HELLO], "the other one goes on"


def test_an_unsealed_header_is_garbage() -> None:
    pair = Pair()
    liar = Liar(pair)
    ring = liar.open()
    ring.say(LANE)
    liar.run()
    liar.frame(GOOD, sealed=False)
    assert liar.reason is Reason.GARBAGE


@pytest.mark.parametrize(
    ("say", "reason"),
    [
        (lambda m: m.send(Kind.GONE, 5), Reason.LIES),
        (lambda m: m.send(Kind.CLOSE, 5), Reason.LIES),
        (lambda m: m.send(Kind.OPEN, 0), Reason.LIES),
        (lambda m: m.send(Kind.OPENED, 0, 5), Reason.GARBAGE),
        (lambda m: m.send(Kind.SUBSCRIBE), Reason.GARBAGE),
        (lambda m: m._put(b"GET / HTTP/1.1\r\n\r\n" * 10), Reason.GARBAGE),
        (lambda m: m._put(bytes(24)), Reason.GARBAGE),
        (lambda m: [m.send(Kind.PING, 0, 1) for _ in range(4000)], Reason.FLOOD),
    ],
)
def test_messages_that_have_no_place_end_the_connection(say: Any, reason: Reason) -> None:
    pair = Pair()
    liar = Liar(pair)
    liar.open()
    say(liar.line.machine)
    liar.run(20)
    assert liar.reason is reason


def test_more_than_its_credit_ends_the_connection() -> None:
    pair = Pair(capacity=64 * 1024)
    liar = Liar(pair)
    ring = liar.open()
    ring.say(LANE)
    liar.run()
    for to in range(1, 20):
        if liar.reason is None:
            liar.frame(data_frame(7, 3, to, 3000))
    assert liar.reason is Reason.LIES
    assert ring.slot.data.tail - ring.slot.data.head <= ring.slot.data.capacity


def test_a_frame_begun_and_not_finished_is_stalled_although_something_comes() -> None:
    pair = Pair()
    liar = Liar(pair)
    ring = liar.open()
    ring.say(LANE)
    liar.run()
    data = bytearray(data_frame(7, 3, 1, 30_000))
    del data[FRAME_HEADER_SIZE + decode_header(data).stored_size :]
    seal(memoryview(data))
    liar.line.machine.send_piece(Kind.FRAME, 0, memoryview(data), len(data))
    queued = b"".join(bytes(part) for part in liar.line.machine.outgoing())
    for position in range(400):
        liar.stream.send([queued[position : position + 1]])
        pair.now_ns += 50 * MS
        pair.server.run(pair.now_ns)
    assert pair.server.ends["stalled"] == 1


def test_who_does_not_greet_is_closed() -> None:
    pair = Pair()
    Liar(pair, greets=False)
    pair.run(10, 100 * MS)
    assert len(pair.server.guests) == 2
    pair.run(50, 100 * MS)
    assert pair.server.ends["silent"] == 1 and len(pair.server.guests) == 1


def test_connections_are_limited() -> None:
    pair = Pair()
    pair.run()
    liars = [Liar(pair) for _ in range(5)]
    assert len(pair.server.guests) == 4
    assert pair.server.ends["crowded"] == 2
    assert sum(any(isinstance(event, Ended) for event in liar.told) for liar in liars) == 2


def test_a_host_that_comes_again_before_its_old_connection_is_given_up_replaces_it() -> None:
    pair = Pair()
    ring = pair.introduce()
    guest = pair.server.guests[0]
    again = Liar(pair, greets=False)
    again.line.machine = Connection(
        greeting(Role.WORKERS, node=guest.node), (Role.WRITER,), is_caller=True, frame_bytes_max=FRAME_BYTES_MAX, now_ns=pair.now_ns
    )
    again.run(2)
    assert content(ring.frames()[-1][1])["is_gone"]
    assert guest not in pair.server.guests


def test_a_writer_that_gives_credit_for_nothing_or_opens_what_nobody_asked_for_is_left() -> None:
    for kind, value in ((Kind.CREDIT, 1 << 40), (Kind.OPENED, 5)):
        pair = Pair()
        pair.introduce()
        pair.server.guests[0].line.machine.send(kind, 1, value)
        pair.run(2)
        assert not pair.forwarder.is_serving
        assert pair.server.ends["lies"] == 1

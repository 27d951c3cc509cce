"""One situation each, led step by step, of those that dice seldom throw: writer, worker and supervisor as they are, on simulated edges."""

from __future__ import annotations

import errno
import random
from collections import deque
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from hdad._core import Ring, encode_entry
from hdad.config import Config
from hdad.errors import DeviceError, SourceError
from hdad.exchange.backring import Message, MessageType, decode, encode
from hdad.exchange.slots import WorkerSlot
from hdad.log.appender import AppendResult, LogAppender
from hdad.log.create import lay_out
from hdad.log.geometry import SEGMENTS_OFFSET, UNIT, Geometry
from hdad.log.lanes import LaneRow
from hdad.log.superblock import Superblock, decode_superblock
from hdad.record import ORIGIN, Position, RecordKind
from hdad.worker.frames import FrameBuilder
from hdad.worker.lane import Lane
from hdad.worker.loop import WorkerLoop
from hdad.worker.port import Port
from hdad.writer.loop import WriterLoop
from hdad.writer.members import Assigned
from hdad.writer.writes import Writes
from tests.sim.device import OpenDisk, Threads
from tests.sim.disk import Disk
from tests.sim.life import EPOCH_NS, MS, WORKERS, Life
from tests.sim.log import UUID, Violation, recovered, small_segments
from tests.sim.machine import wake
from tests.sim.redis import Edge, Stream
from tests.sim.system import scripted

SEGMENT = 64 * 1024
GEOMETRY = Geometry(SEGMENTS_OFFSET + 3 * SEGMENT + 2 * UNIT, 512, SEGMENT, 3)


@pytest.fixture
def disk() -> Iterator[Disk]:
    with small_segments():
        made = Disk(GEOMETRY.size)
        lay_out(made, Superblock(UUID, 1, 0, GEOMETRY, 0))  # type: ignore[arg-type]
        yield made


@pytest.fixture
def life() -> Iterator[Life]:
    with scripted(3) as made:
        made.routes = []
        yield made


# -- the log -----------------------------------------------------------------------------------------------------------------------------


def test_each_writer_has_a_greater_epoch_and_says_so_in_all_four_copies_of_the_superblock(disk: Disk) -> None:
    epochs = [0]
    for _ in range(3):
        epochs.append(LogAppender.take_over(disk).epoch)  # type: ignore[arg-type]
        copies = [decode_superblock(disk.read(address, UNIT)) for address in GEOMETRY.copies]
        assert [copy and copy.writer_epoch for copy in copies] == [epochs[-1]] * 4
    assert epochs == sorted(set(epochs))


def test_a_writer_epoch_is_greater_than_any_in_the_log_also_when_superblocks_are_older(disk: Disk) -> None:
    before = {address: bytes(disk.read(address, UNIT)) for address in GEOMETRY.copies}
    epoch = LogAppender.take_over(disk).epoch  # type: ignore[arg-type]
    for address, copy in before.items():  # lost writes, all of them
        disk.image[address : address + UNIT] = copy
    assert LogAppender.take_over(disk).epoch > epoch  # type: ignore[arg-type]


def fill(log: LogAppender, segments: int) -> AppendResult:
    """Tables until ``segments`` more have begun, or the log is full."""
    wanted = log._sequence + segments
    rows = [LaneRow.new(1, b"x" * 300, ORIGIN, 0)]
    while log._sequence < wanted:
        if log.lanes_frame(rows) is AppendResult.FULL:
            return AppendResult.FULL
        while (gather := log.take()) is not None:
            log.device.write(gather.address, gather.buffers)
            log.completed(gather)
    return AppendResult.OK


@pytest.mark.parametrize(("on_full", "retain_s", "fits"), [("block", 0, False), ("block", 60, False), ("overwrite", 60, True)])
def test_the_oldest_segment_is_reused_only_as_retention_says(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, on_full: str, retain_s: int, fits: bool
) -> None:
    now_ns = [EPOCH_NS]
    monkeypatch.setattr("hdad.log.appender.wall_ns", lambda: now_ns[0])
    log = LogAppender.take_over(disk, on_full=on_full, retain_min_s=retain_s)  # type: ignore[arg-type]
    assert fill(log, GEOMETRY.segment_count - 1) is AppendResult.OK
    assert fill(log, 1) is (AppendResult.OK if fits else AppendResult.FULL)
    assert log.overwritten_young_count == fits
    now_ns[0] += retain_s * 1000 * MS + 1
    assert fill(log, 1) is (AppendResult.OK if retain_s else AppendResult.FULL)


def test_a_device_of_another_size_or_block_size_is_refused_by_a_writer(disk: Disk) -> None:
    for size in (disk.size + UNIT, disk.size - UNIT):
        image = bytearray(size)
        image[: min(size, disk.size)] = disk.image[: min(size, disk.size)]
        with pytest.raises(Exception, match="the log was made for"):
            LogAppender.take_over(Disk(size, image=image))  # type: ignore[arg-type]
    with pytest.raises(Exception, match="the log has blocks of 512 bytes, the device of 4096"):
        LogAppender.take_over(Disk(disk.size, block_size=4096, image=disk.image))  # type: ignore[arg-type]


# -- writes ------------------------------------------------------------------------------------------------------------------------------


class Block:
    """Counters nobody looks at."""

    def set(self, name: str, value: int) -> None: ...
    def add(self, name: str, value: int = 1) -> None: ...
    def histogram(self, name: str) -> Block:
        return self

    def observe(self, value: int) -> None: ...


@pytest.mark.parametrize("what", ["gather", "aside", "inline"])
def test_after_a_failed_write_nothing_more_is_acknowledged_and_the_descriptor_takes_nothing(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """I8."""
    number = [errno.EIO if what == "inline" else 0]
    device = OpenDisk(disk, lambda _: None, lambda: False, lambda: number[0])
    threads = Threads(device, lambda: False)
    monkeypatch.setattr("hdad.writer.writes.ThreadPoolExecutor", lambda *_: threads)
    monkeypatch.setattr("hdad.writer.writes.ring_bell", lambda _: None)
    log = LogAppender.take_over(disk)  # type: ignore[arg-type]
    writes = Writes(device, 4, -1, Block())  # type: ignore[arg-type]
    completed: list[Any] = []
    log.lanes_frame([])
    gather = log.take()
    assert gather is not None
    with pytest.raises(DeviceError, match="EIO"):
        if what == "inline":
            writes.inline(gather)
        elif what == "gather":
            writes.submit(gather)
        else:
            writes.aside(*log.next_lease())
        threads.return_one(random.Random(0), errno.EIO)
        writes.reap(completed.append)
    number[0] = 0
    with pytest.raises(DeviceError, match="not used again"):
        writes.inline(gather)
    assert not completed and (what == "aside" or disk.flights)
    if what == "aside":
        with pytest.raises(DeviceError, match="EIO"):
            writes.close()


# -- the writer --------------------------------------------------------------------------------------------------------------------------


class Writer:
    """The writer of a life's host, and worker 0 as far as its ring goes."""

    def __init__(self, life: Life) -> None:
        self.life = life
        life.supervise()
        self.begin()
        self.slot: WorkerSlot = life.machine.slots[0]
        self.frames = FrameBuilder(self.slot.data, 0, 8192)

    def begin(self) -> None:
        assert self.life.machine.round_of(WORKERS)
        loop = self.life.machine.writer
        assert loop is not None
        self.loop: WriterLoop = loop

    def hello(self, generation: int, *streams: str, is_first: bool = True) -> None:
        content: dict[str, Any] = {"worker": 0, "generation": generation, "streams": {name: [0, 0, 0] for name in streams}}
        self.frames.hello(content | ({"is_first": True} if is_first else {}))

    def rounds(self, count: int = 5) -> None:
        """Until all is written, and what was to settle has settled."""
        for _ in range(count):
            self.life.now_ns += 30 * MS
            wake(self.loop)
            self.loop.run_once(self.life.now_ns)
            threads = self.life.machine.threads
            while threads is not None and threads.return_one(self.life.rng):
                pass

    def tell(self, **message: Any) -> None:
        process = self.life.machine.processes[WORKERS]
        assert process is not None
        process.parents_end.send(message)

    def put(self, lane_id: int, epoch: int, from_: int, to: int) -> None:
        lane = Lane(lane_id, b"s:0", epoch, Position(from_, 0), Position(from_, 0))
        self.frames.values(lane, Position(to, 0), [(to, 0, RecordKind.ENTRY, encode_entry([(b"n", b"n")]))], 1, 0, 0)

    def position(self) -> int:
        return self.loop._log.lanes[1].position.ms


def assigned(writer: Writer) -> int:
    writer.hello(1, "s:0")
    writer.rounds()
    assert writer.loop._members.owners == {1: 0}
    return writer.loop._members.epochs[1]


def test_what_a_worker_had_published_before_it_died_is_in_the_log(life: Life) -> None:
    """I6: it is whole, and as good as any other frame."""
    writer = Writer(life)
    epoch = assigned(writer)
    writer.put(1, epoch, 0, 5)
    writer.tell(op="worker-dead", worker=0, generation=1)
    writer.rounds()
    assert writer.position() == 5


def test_a_frame_of_a_worker_whose_death_was_heard_is_stale(life: Life) -> None:
    """I4."""
    writer = Writer(life)
    epoch = assigned(writer)
    writer.tell(op="worker-dead", worker=0, generation=1)
    writer.rounds(1)
    writer.put(1, epoch, 0, 5)
    writer.rounds()
    assert writer.position() == 0 and life.machine.counters.writer.get("stale") == 1


def test_a_death_that_is_heard_after_the_successors_hello_takes_nothing_from_it(life: Life) -> None:
    writer = Writer(life)
    assigned(writer)
    writer.hello(2, "s:0")
    writer.rounds()
    epoch = writer.loop._members.epochs[1]
    writer.tell(op="worker-dead", worker=0, generation=1)
    writer.rounds()
    assert writer.loop._members.owners == {1: 0}
    writer.put(1, epoch, 0, 5)
    writer.rounds()
    assert writer.position() == 5


def test_a_lane_that_was_accepted_is_taken_from_the_worker_that_had_it(life: Life) -> None:
    """Another may read it next, and the first would go on showing Redis where it stood (system seed 4624)."""
    writer = Writer(life)
    epoch = assigned(writer)
    writer.frames.hello({"worker": 0, "generation": 1, "halt": [1, epoch]})
    writer.rounds()
    writer.slot.back.release(len(writer.slot.back.poll()))
    members = writer.loop._members
    assert members.accept("s:0", None, life.now_ns)
    members.flush()  # before it is assigned anew
    told = decode(writer.slot.back.poll())
    assert [message.type for message in told] == [MessageType.REVOKE] and told[0].lane_epoch == epoch


def test_a_count_that_came_after_the_last_frame_is_what_the_worker_is_told(life: Life) -> None:
    """Losses found later change the ordinal and not the position; a frame that becomes durable with them does not overtake them."""
    writer = Writer(life)
    epoch = assigned(writer)
    writer.slot.back.release(len(writer.slot.back.poll()))
    members = writer.loop._members
    lsn = writer.loop._log.next_lsn
    members._assigned += [Assigned(lsn, 1, epoch, Position(4, 0), 2), Assigned(lsn + 1, 1, epoch, Position(5, 0), 4)]
    members.tell_durable(1, epoch, Position(5, 0), 3)
    members.call_durable(lsn + 1)
    members.flush()
    assert [(message.position, message.extra) for message in decode(writer.slot.back.poll())] == [(Position(5, 0), 4)]


def test_a_new_writer_drops_what_the_rings_hold_and_asks_who_is_there(life: Life) -> None:
    writer = Writer(life)
    assigned(writer)
    writer.hello(1, "s:1")
    life.machine.kill(WORKERS)
    life.supervise()
    life.now_ns += 200 * MS
    life.supervise()
    writer.begin()
    assert writer.slot.data.head == writer.slot.data.tail
    writer.rounds()
    assert writer.loop._log.lane_by_name == {b"s:0": 1} and not writer.loop._members.owners


def test_room_in_a_ring_is_given_back_when_its_frames_are_durable_and_not_before(life: Life) -> None:
    life.stuck_until_ns = 10**18
    writer = Writer(life)
    life.stuck_until_ns = 0
    epoch = assigned(writer)
    head = writer.slot.data.head
    writer.put(1, epoch, 0, 5)
    writer.loop._policy = type(writer.loop._policy)(0)  # nothing is written for now
    writer.rounds()
    assert writer.position() == 5 and writer.slot.data.head == head
    writer.loop._policy = type(writer.loop._policy)(1)
    writer.rounds()
    assert writer.slot.data.head == writer.slot.data.tail


# -- the worker --------------------------------------------------------------------------------------------------------------------------


class Worker:
    """Worker 0 of a life's host, and the writer as far as the back ring goes. ``welcomed``: as if a writer had heard it."""

    def __init__(self, life: Life, welcomed: bool = True) -> None:
        self.life = life
        life.supervise()
        assert life.machine.round_of(0)
        process = life.machine.processes[0]
        assert process is not None and isinstance(process.loop, WorkerLoop)
        self.loop: WorkerLoop = process.loop
        self.back: Ring = life.machine.slots[0].back
        if welcomed:
            self.tell(Message(MessageType.WELCOME, extra=1))

    def tell(self, *messages: Message) -> None:
        for message in messages:
            data = encode(message)
            view = self.back.claim(len(data))
            assert view is not None
            view[: len(data)] = data
            self.back.publish(len(data))
        self.round()

    def round(self, count: int = 1) -> None:
        for _ in range(count):
            self.life.now_ns += MS
            wake(self.loop)
            self.loop.run_once(self.life.now_ns)
            ring = self.life.machine.slots[0].data
            ring.release(len(ring.poll()))  # the writer takes all

    def add(self, count: int, name: bytes = b"s:0") -> None:
        for number in range(count):
            self.life.server.stream(name).add((EPOCH_NS + self.life.now_ns) // MS, b"n%d:" % number)


def assign(epoch: int, position: Position = ORIGIN, ordinal: int = 0) -> Message:
    return Message(MessageType.ASSIGN, 1, epoch, position, ordinal, b"s:0")


def test_a_worker_obeys_nothing_that_was_meant_for_the_one_before_it(life: Life) -> None:
    worker = Worker(life, welcomed=False)
    worker.tell(assign(5))
    assert not worker.loop.lanes
    worker.tell(Message(MessageType.WELCOME, extra=99), assign(5))
    assert not worker.loop.lanes, "another generation's welcome"
    worker.tell(Message(MessageType.WELCOME, extra=1), assign(6))
    assert worker.loop.lanes[1].epoch == 6


def test_durable_of_an_older_epoch_is_not_believed(life: Life) -> None:
    """The lane may have gone back since; what is shown to Redis as durable must be (I1)."""
    worker = Worker(life)
    worker.tell(assign(6), Message(MessageType.DURABLE, 1, 5, Position(9, 0), 9))
    assert worker.loop.lanes[1].durable == ORIGIN
    worker.tell(Message(MessageType.DURABLE, 1, 6, Position(7, 0), 7))
    assert worker.loop.lanes[1].durable == Position(7, 0)


def test_a_reply_to_what_was_asked_before_a_lane_was_assigned_anew_is_left_out(life: Life) -> None:
    """I2: the new assignment may begin elsewhere."""
    worker = Worker(life)
    worker.add(3)
    first = life.server.streams[b"s:0"].entries[0][0]
    worker.tell(assign(6))
    port = worker.loop.ports[life.server.slot(b"s:0")]
    for _ in range(50):
        if port.request is not None:
            break
        worker.round()
    assert port.request is not None and not port.is_complete
    worker.tell(assign(7, first, 1))
    worker.round(50)
    frames = worker.loop.frames
    assert frames.records == 2, "the two entries after the new position, once"


def test_a_server_that_says_nothing_any_more_is_left_for_another_connection(life: Life) -> None:
    """A host that vanished sends no FIN; without a limit of its own the worker would wait for ever (system seed 6)."""
    worker = Worker(life)
    worker.add(1)
    worker.tell(assign(6))
    worker.round(20)
    life.server.fall_silent()
    worker.add(1)
    worker.round(20)
    assert worker.loop.frames.records == 1
    for _ in range(100):
        life.now_ns += 100 * MS
        worker.round(5)
    assert worker.loop.frames.records == 2


def test_a_lane_whose_entries_are_too_large_together_has_its_turn_before_reads_ask_for_much_again() -> None:
    """Among so many lanes its turn comes late: it was asked for much each time, cost the connection, and never got any further."""
    port = Port(0, 32 * 1024 * 1024, 100, 100, 1000)
    port._entry_bytes = 200.0  # learned from the others
    port.lanes += [Lane(number, b"s:%d" % number, 1, ORIGIN, ORIGIN) for number in range(1, 6000)]
    large = port.lanes[-1]
    too_much = 0
    while too_much < 5:
        port.hot = SimpleNamespace(send=lambda _: None, close=lambda: None)  # type: ignore[assignment]
        assert port.send(0) and port.request is not None
        if large.name not in port.request.lanes:
            port.discard()
            port.reconsider()  # as with each look: others bring entries, so no read waits for all
        elif port.request.count_max > 1:
            too_much += 1
            port.grow_cautious()
            port.close()
        else:
            return
    pytest.fail("it is asked for much, again and again")


def test_a_group_that_a_worker_which_had_lost_its_lane_set_back_is_shown_again(life: Life) -> None:
    """On another host, it stood still, and goes on before it hears that the lane was given away; no entry comes after that."""
    stream = life.server.stream(b"s:0")
    for number in range(10):
        stream.add(5 + number, b"n%d:" % number)
    life.settle()
    assert stream.group == (Position(14, 0), 10)
    stream.group = Position(7, 0), 3
    for _ in range(100):
        life.everybody()
    assert stream.group == (Position(14, 0), 10)


def settled(life: Life) -> Stream:
    """A stream whose first entry is durable and shown."""
    stream = life.server.stream(b"s:0")
    stream.add(5, b"n0:")
    life.settle()
    return stream


def rounds(life: Life, count: int = 10_000) -> None:
    for _ in range(count):
        life.everybody()


def scan_refused(*_: object) -> NoReturn:
    """A wrong password, or a right that the user has not."""
    raise SourceError("SCAN: NOPERM")


def test_what_redis_refuses_stands_as_an_alarm_while_nothing_else_needs_to_be_asked(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(life)
    with monkeypatch.context() as patch:
        patch.setattr(Edge, "scan", scan_refused)
        worker.round(200)
        for _ in range(1000):
            worker.round()
            assert worker.loop.alarms.raised.get("redis") == "SCAN: NOPERM; tried again by itself"
    worker.round(10_000)
    assert not worker.loop.alarms.raised


def test_what_redis_refuses_stands_as_an_alarm_while_it_answers_everything_else(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = settled(life)
    alarms = life.machine.supervisor.alarms
    with monkeypatch.context() as patch:
        patch.setattr(Edge, "scan", scan_refused)
        rounds(life, 2000)
        stream.add(6, b"n1:")
        for _ in range(20_000):
            life.everybody()
            assert any("SCAN: NOPERM" in text for text, _, _ in alarms.all().values())
        assert stream.group == (Position(6, 0), 2), "the position is shown all the same"
    life.settle()
    assert not alarms.all()


def test_of_two_questions_that_are_refused_one_that_is_answered_ends_neither_the_alarm_nor_the_pauses(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    def positions_refused(*_: object) -> NoReturn:
        raise SourceError("XGROUP: NOPERM")

    stream = settled(life)
    (worker,) = [each.loop for each in life.machine.processes[:WORKERS] if each is not None and each.loop.lanes]
    with monkeypatch.context() as patch:
        patch.setattr(Edge, "scan", scan_refused)
        with monkeypatch.context() as positions:
            positions.setattr(Edge, "set_groups", positions_refused)
            stream.add(6, b"n1:")
            rounds(life, 20_000)
        assert stream.group == (Position(5, 0), 1)
        for _ in range(20_000):
            life.everybody()
            assert "NOPERM" in worker.alarms.raised["redis"]
        assert stream.group == (Position(6, 0), 2)
    life.settle()
    assert not worker.alarms.raised


def test_a_position_that_redis_refused_is_told_again_though_nothing_comes_after_it(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Edge, group: bytes, lanes: Sequence[tuple[bytes, Position, int | None]]) -> dict[bytes, str]:
        return {name: "ERR no" for name, _, _ in lanes}

    monkeypatch.setattr(Edge, "group_positions", lambda *_: {})  # the look at what is shown would find it, too
    stream = settled(life)
    alarms = life.machine.supervisor.alarms
    with monkeypatch.context() as patch:
        patch.setattr(Edge, "set_groups", refused)
        stream.add(6, b"n1:")
        rounds(life)
        assert stream.group == (Position(5, 0), 1)
        assert any("the first b's:0': ERR no" in text for text, _, _ in alarms.all().values())
    rounds(life)
    assert stream.group == (Position(6, 0), 2)
    assert not alarms.all()


# -- what people see of lanes --------------------------------------------------------------------------------------------------------------


def test_a_lanes_row_follows_what_is_read(life: Life) -> None:
    stream = life.server.stream(b"s:0")
    for number in range(3):
        stream.add(5 + number, b"n%d:" % number)
        life.settle()
        rounds(life, 2000)
        (row,) = life.machine.counters.lanes.rows()
        assert row.read == row.position == Position(5 + number, 0)


# -- trimming ----------------------------------------------------------------------------------------------------------------------------


def trimming(life: Life, **redis: int) -> Life:
    config = life.config
    life.config = Config.model_validate(config.model_dump() | {"redis": config.redis.model_dump() | {"trim": "durable"} | redis})
    life.power()
    return life


def test_entries_that_hide_before_the_position_after_a_failover_are_not_trimmed_unread(life: Life) -> None:
    """An older copy takes over, whose clock is behind: new entries get IDs before the position, and by their number nobody can tell.

    Until the count of entries was right at some place, hdad does not know that it reads the stream that it had read, and trims nothing.
    Reads are small and looks are many, so that there are some before that place is reached.
    """
    trimming(life, count_max=1, scan_interval_ms=100)
    stream = life.server.stream(b"s:0")
    ms = (EPOCH_NS + life.now_ns) // MS
    for number in range(10):
        stream.add(ms, b"n%d:" % number)
    life.settle()
    for _ in range(1000):  # until the next round of trimming
        if not stream.entries:
            break
        life.everybody()
    assert not stream.entries, "all is durable and trimmed"
    stream.rewind(6)
    life.oracle.broken[b"s:0"] = 1
    for number in range(8):  # 5 of them lie before the position, which is (ms, 9)
        stream.add(ms, b"n%d:" % (20 + number))
    for _ in range(200):
        life.now_ns += MS
        stream.add((EPOCH_NS + life.now_ns) // MS, b"n30:")
    assert len([entry for entry in stream.entries if entry[0] <= Position(ms, 9)]) == 5
    life.server.restart()
    for _ in range(600):  # the oracle sees to each trim: what goes is in the log, entry by entry
        life.operate()
        life.everybody()


def test_the_oracle_sees_when_an_unread_entry_is_trimmed(life: Life) -> None:
    stream = life.server.stream(b"s:0")
    stream.add(1, b"n1:")
    life.supervise()
    with pytest.raises(Violation, match="I1"):
        life.oracle.trimmed(b"s:0", Position(2, 0))


def test_trimming_stops_where_another_group_has_not_acknowledged(life: Life) -> None:
    trimming(life)
    stream = life.server.stream(b"s:0")
    for number in range(10):
        stream.add(5 + number, b"n%d:" % number)
    stream.other, stream.pending = Position(12, 0), Position(9, 0)
    life.settle()
    assert [at.ms for at, _ in stream.entries] == list(range(9, 15))
    stream.pending = None
    for _ in range(100):
        life.everybody()
    assert [at.ms for at, _ in stream.entries] == list(range(13, 15)), "up to what the other group was given"


def test_notices_and_messages_have_no_more_room_than_they_need(life: Life) -> None:
    """I7's oracle is not blind."""
    Worker(life).loop.notices = deque({"lost": []} for _ in range(100))
    with pytest.raises(Violation, match="I7"):
        life.oracle.bounded()


def test_the_log_recovers_to_where_its_only_writer_was(disk: Disk) -> None:
    log = LogAppender.take_over(disk)  # type: ignore[arg-type]
    fill(log, 1)
    assert recovered(disk).next_lsn == log.next_lsn

"""Where the log ends: torn is absent, damaged is refused, whatever lies there. On logs made in memory, by the rules of the appender."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from crc32c import crc32c

from hdad._core import encode_entry, pack_values
from hdad.errors import CorruptionError
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind, build_frame_header, frame_size, stamp
from hdad.log.geometry import SEGMENTS_OFFSET, UNIT, Geometry
from hdad.log.lanes import LaneRow, encode_rows
from hdad.log.recovery import RecoveredLog, find_newest, recover
from hdad.log.superblock import Superblock
from hdad.record import ORIGIN, Position

UUID = b"u" * 16
BLOCK = 512
SEGMENT = 64 * 1024
GEOMETRY = Geometry(SEGMENTS_OFFSET + 15 * SEGMENT + 2 * UNIT, BLOCK, SEGMENT, 15)  # smaller than ``plan`` allows: quick to fill
SUPERBLOCK = Superblock(UUID, 1, 1, GEOMETRY, 0)


@dataclass
class Image:
    """A device in memory, and an appender that follows the rules."""

    data: bytearray = field(default_factory=lambda: bytearray(GEOMETRY.size))
    lsn: int = 1
    sequence: int = -1
    address: int = 0
    crc: int = 0
    epoch: int = 1
    durable: int = 0
    lanes: dict[int, LaneRow] = field(default_factory=dict)
    places: list[tuple[int, int, int]] = field(default_factory=list)  # lsn, address, size
    reads: int = 0

    def __post_init__(self) -> None:
        self.roll()

    def put(self, kind: FrameKind, payload: bytes, **fields: object) -> None:
        view = bytearray(frame_size(len(payload), BLOCK))
        view[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + len(payload)] = payload
        values = dict(lane_id=0, lane_epoch=0, from_=ORIGIN, to=ORIGIN, record_count=0, entry_count=0, raw_size=None)
        values.update(fields)  # type: ignore[arg-type]
        build_frame_header(
            memoryview(view), kind=kind, stored_size=len(payload), payload_crc=crc32c(payload), label_ns=self.lsn, lost_count=0,
            filtered_count=0, dead_count=0, worker=0, **values,  # type: ignore[arg-type]
        )  # fmt: skip
        self.crc = stamp(
            memoryview(view),
            uuid=UUID,
            lsn=self.lsn,
            durable_lsn=self.durable,
            address=self.address,
            writer_epoch=self.epoch,
            predecessor_crc=self.crc,
        )
        self.data[self.address : self.address + len(view)] = view
        raw = values["raw_size"]
        size = raw if isinstance(raw, int) else len(view)
        self.places.append((self.lsn, self.address, len(view)))
        self.lsn, self.address = self.lsn + 1, self.address + size

    def roll(self) -> None:
        if self.sequence >= 0 and self.address < GEOMETRY.segment_end(self.sequence):
            room = GEOMETRY.segment_end(self.sequence) - self.address
            self.put(FrameKind.PADDING, b"", raw_size=room)
        self.durable = self.lsn - 1  # the rule recovery relies on
        self.sequence += 1
        self.address = GEOMETRY.segment_address(self.sequence)
        rows = list(self.lanes.values())
        self.put(FrameKind.SEGMENT_HEAD, encode_rows(self.sequence, rows), lane_epoch=self.sequence, record_count=len(rows))

    def lane(self, lane_id: int = 1) -> None:
        row = LaneRow.new(lane_id, b"lane-%d" % lane_id, ORIGIN, 0)
        self.put(FrameKind.LANES, encode_rows(self.sequence, [row]), record_count=1)
        self.lanes[lane_id] = row

    def add(self, count: int = 1, size: int = 700, lane_id: int = 1) -> None:
        for _ in range(count):
            row = self.lanes[lane_id]
            to = Position(row.position.ms + 1, 0)
            body = encode_entry([(b"f", b"x" * size)])
            payload = bytearray(24 + len(body))
            pack_values(payload, [(to.ms, to.seq, 0, body)])
            if self.address + frame_size(len(payload), BLOCK) > GEOMETRY.segment_end(self.sequence):
                self.roll()
            self.put(
                FrameKind.DATA, bytes(payload), lane_id=lane_id, lane_epoch=1, from_=row.position, to=to, record_count=1, entry_count=1
            )
            self.lanes[lane_id] = LaneRow(lane_id, row.name, 1, to, row.entries + 1, row.committed + 1, 0, 0, 0, row.frames + 1, 0)

    def recover(self, evidence: int = 0, accept: bool = False) -> RecoveredLog:
        plan_ = recover(SUPERBLOCK, evidence, accept)
        self.reads = 0
        try:
            read = next(plan_)
            while True:
                assert not read.address % UNIT and not read.size % UNIT and read.address + read.size <= GEOMETRY.size
                self.reads += 1
                read = plan_.send(memoryview(bytes(self.data[read.address : read.address + read.size])))
        except StopIteration as stop:
            log: RecoveredLog = stop.value
            return log


def made(count: int = 10, size: int = 700) -> Image:
    image = Image()
    image.lane()
    image.add(count, size)
    return image


def test_a_whole_log_ends_behind_its_last_frame() -> None:
    for count in (0, 1, 10, 60, 100, 400, 2000):
        image = made(count)
        log = image.recover()
        assert (log.next_lsn, log.next_address, log.predecessor_crc, log.lanes) == (image.lsn, image.address, image.crc, image.lanes), count


def test_the_newest_segment_is_found_at_every_place_of_the_circle() -> None:
    image = made(0)
    for _ in range(3 * GEOMETRY.segment_count):
        image.add(20, 3000)
        log = image.recover()
        assert (log.sequence, log.next_lsn) == (image.sequence, image.lsn)


def test_reads_grow_with_the_logarithm_of_the_segments() -> None:
    image = made(0)
    image.add(600, 3000)
    image.recover()
    assert image.reads <= 2 + 2 * GEOMETRY.segment_count.bit_length() + 4, "each step of the bisection looks at one or two places"


def test_a_frame_torn_at_any_block_is_absent_when_nothing_calls_it_durable() -> None:
    rng = random.Random(1)
    image = made(20, 2000)
    whole = bytes(image.data)
    lsn, address, size = image.places[-1]
    for block in range(0, size, BLOCK):
        for junk in (bytes(BLOCK), rng.randbytes(BLOCK)):
            image.data[:] = whole
            image.data[address + block : address + block + BLOCK] = junk
            log = image.recover(evidence=lsn - 1)
            assert (log.next_lsn, log.next_address) == (lsn, address)


def test_a_damaged_frame_anywhere_in_the_durable_body_is_recognised() -> None:
    image = made(60, 1500)
    whole = bytes(image.data)
    newest = [place for place in image.places if place[1] >= GEOMETRY.segment_address(image.sequence)]
    assert len(newest) > 5
    for lsn, address, size in newest[1:]:
        for offset in (0, 4, 40, 100, FRAME_HEADER_SIZE, size - BLOCK):
            image.data[:] = whole
            image.data[address + offset] ^= 0x10
            if offset >= FRAME_HEADER_SIZE and not image.data[address + offset] ^ 0x10:
                continue  # padding of the last block is not covered, and need not be
            with pytest.raises(CorruptionError, match=f"LSN {lsn}, which a lease block calls durable"):
                image.recover(evidence=image.lsn - 1)


def test_a_later_frame_is_evidence_too() -> None:
    image = made(5)
    image.durable = image.lsn - 1
    image.add(3)
    victim = image.places[4]
    image.data[victim[1] + 200] ^= 1
    with pytest.raises(CorruptionError, match="a later frame calls durable"):
        image.recover(evidence=0)


def test_frames_behind_a_torn_one_that_were_not_durable_do_not_come_back() -> None:
    image = made(5)
    torn = image.places[-1]
    image.durable = image.lsn - 2
    image.add(3)
    image.data[torn[1] + 8] ^= 1
    log = image.recover(evidence=torn[0] - 1)
    assert log.next_lsn == torn[0]
    # The next writer's frame at this place has another epoch, so its CRC is another, and what lies behind it breaks rule 6.
    successor = Image(data=bytearray(image.data), lanes=dict(log.lanes))
    successor.data[:] = image.data
    successor.lsn, successor.address, successor.crc, successor.epoch = log.next_lsn, log.next_address, log.predecessor_crc, 2
    successor.sequence = log.sequence
    successor.add(1)
    again = successor.recover(evidence=log.next_lsn)
    assert again.next_lsn == log.next_lsn + 1


def test_accepted_damage_keeps_what_is_readable_and_gives_no_lsn_twice() -> None:
    image = made(6)
    image.durable = image.lsn - 1
    image.add(4)
    lsn, address, _ = image.places[4]
    image.data[address + 200] ^= 1
    log = image.recover(evidence=image.lsn - 1, accept=True)
    assert [damage.first_lsn for damage in log.damaged] == [lsn]
    assert log.next_lsn == image.lsn and log.next_address == GEOMETRY.segment_end(log.sequence)
    assert log.lanes[1].position == image.lanes[1].position


def test_a_segment_head_torn_behind_its_first_block_leaves_the_full_segment_before_it() -> None:
    image = made(0)
    for lane in range(2, 30):
        image.lane(lane)
    while image.sequence == 0:
        image.add(1, 3000)
    image.lsn -= 1  # the frame after the head was never written
    head = image.places[-2]
    data = image.places[-1]
    image.data[data[1] : data[1] + data[2]] = bytes(data[2])
    image.data[head[1] + BLOCK] ^= 1
    log = image.recover(evidence=head[0] - 1)
    assert (log.sequence, log.next_lsn, log.next_address) == (0, head[0], GEOMETRY.segment_end(0))


def test_a_log_without_any_head_is_damaged_and_not_to_be_formatted() -> None:
    """Formatting writes the first head before any superblock."""
    image = made(1)
    image.data[:] = bytes(len(image.data))
    with pytest.raises(CorruptionError, match="do not format"):
        image.recover()


def test_a_damaged_first_head_does_not_hide_a_newer_one() -> None:
    image = made(0)
    image.add(100, 3000)
    assert image.sequence > 2
    image.data[GEOMETRY.segment_address(0) + 8] ^= 1
    assert image.recover().next_lsn == image.lsn


def test_random_bytes_never_make_recovery_do_anything_but_decide_or_refuse() -> None:
    rng = random.Random(5)
    image = made(80, 1200)
    whole = bytes(image.data)
    for _ in range(150):
        image.data[:] = whole
        for _ in range(rng.randrange(1, 6)):
            start = rng.randrange(1 << 20, 1 << 20 | 0x40000)
            junk = rng.randbytes(rng.choice((1, 8, 512, 4096)))
            image.data[start : start + len(junk)] = junk
        try:
            log = image.recover(evidence=rng.choice((0, image.lsn - 1)), accept=rng.random() < 0.3)
        except CorruptionError:
            continue
        assert log.next_lsn <= image.lsn


def test_recovery_interrupted_at_any_read_and_begun_again_decides_the_same() -> None:
    image = made(50)
    expected = image.recover()
    for stop in range(1, 8):
        plan_ = recover(SUPERBLOCK, 0)
        read = next(plan_)
        for _ in range(stop):
            try:
                read = plan_.send(memoryview(bytes(image.data[read.address : read.address + read.size])))
            except StopIteration:
                break
        plan_.close()
        assert image.recover() == expected
    assert find_newest(SUPERBLOCK) is not None

"""Where the log ends: torn is absent, damaged is refused, whatever lies there. On logs made in memory, by the rules of the appender."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
from crc32c import crc32c

from hdad._core import encode_entry, pack_values
from hdad.errors import CorruptionError
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind, build_frame_header, frame_size, stamp
from hdad.log.geometry import SEGMENTS_OFFSET, UNIT, Geometry
from hdad.log.lanes import LaneRow, encode_rows
from hdad.log.recovery import LOOKS_MAX, Read, RecoveredLog, begin_sequence, being_reused, find_newest, recover, witness_behind
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

    def take_over(self, sequence: int) -> Superblock:
        """Another writer begins in this segment, and leaves out those before it. Returns what it wrote into the superblock."""
        left_out = sequence - self.sequence - 1
        self.epoch, self.durable, self.sequence = self.epoch + 1, self.lsn - 1, sequence
        self.address = GEOMETRY.segment_address(sequence)
        rows = encode_rows(sequence, list(self.lanes.values()))
        superblock = replace(SUPERBLOCK, writer_epoch=self.epoch, begin_sequence=sequence, begin_lsn=self.lsn)
        self.put(FrameKind.SEGMENT_HEAD, rows, lane_epoch=sequence, record_count=len(self.lanes), from_=Position(left_out, 0))
        return superblock

    def recover(self, evidence: int = 0, accept: bool = False, superblock: Superblock = SUPERBLOCK) -> RecoveredLog:
        plan_ = recover(superblock, evidence, accept)
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


def rolled(count: int, lanes: int = 2) -> Image:
    """``count`` segments, each with a few frames; ``lanes`` many enough make their heads longer than a block."""
    image = made(0)
    for lane in range(2, lanes):
        image.lane(lane)
    while image.sequence < count - 1:
        image.add(1, 3000)
    return image


def test_one_rotten_head_costs_no_scan_of_an_older_segment() -> None:
    """The bisection looks at the place behind it, too."""
    image = rolled(11)
    whole = bytes(image.data)
    for sequence in range(image.sequence):
        image.data[:] = whole
        image.data[GEOMETRY.segment_address(sequence) + 8] ^= 1
        assert image.recover(evidence=image.lsn - 1).next_lsn == image.lsn
        assert sequence == 0 or image.reads <= 2 + 2 * GEOMETRY.segment_count.bit_length() + 4


def test_two_rotten_heads_in_a_row_do_not_end_the_log() -> None:
    image = rolled(11)
    whole = bytes(image.data)
    for sequence in range(image.sequence - 1):
        image.data[:] = whole
        for rotten in (sequence, sequence + 1):
            image.data[GEOMETRY.segment_address(rotten) + 8] ^= 1
        assert image.recover(evidence=image.lsn - 1).next_lsn == image.lsn


def test_a_first_head_of_an_older_lap_does_not_hide_what_is_newer() -> None:
    """Its overwriting was lost (damage, seed 15)."""
    image = rolled(GEOMETRY.segment_count)
    first = GEOMETRY.segment_address(0)
    old = bytes(image.data[first : first + BLOCK])
    while image.sequence < GEOMETRY.segment_count + 1:
        image.add(1, 3000)
    image.data[first : first + BLOCK] = old
    assert image.recover(evidence=image.lsn - 1).next_lsn == image.lsn
    look = find_newest(SUPERBLOCK)  # readers have nothing but this
    read = next(look)
    with pytest.raises(StopIteration) as stop:
        while True:
            read = look.send(memoryview(bytes(image.data[read.address : read.address + read.size])))
    assert stop.value.value.sequence == image.sequence


def test_a_torn_head_is_evidence_that_all_before_it_was_durable() -> None:
    """It was begun only then; so what is not valid before it is damage, without any lease."""
    image = rolled(2, lanes=30)
    head = next(place for place in image.places if place[1] == GEOMETRY.segment_address(1))
    image.data[head[1] + BLOCK : GEOMETRY.segment_end(1)] = bytes(GEOMETRY.segment_end(1) - head[1] - BLOCK)  # its first block landed
    victim = image.places[image.places.index(head) - 2]
    image.data[victim[1] + 200] ^= 1
    for place in image.places[image.places.index(victim) + 1 : image.places.index(head)]:
        image.data[place[1]] ^= 1  # no frame behind it tells
    with pytest.raises(CorruptionError, match=f"LSN {victim[0]}, which a lease block calls durable"):
        image.recover(evidence=0)


def damaged(image: Image, lsn: int) -> None:
    address = next(place[1] for place in image.places if place[0] == lsn)
    image.data[address + 20] ^= 1


def test_what_lies_between_damage_and_the_last_frame_that_counts_counts_whenever_it_was_stamped() -> None:
    """Readers show it: were it not in the table, its entries would be read and written again (system seed 864)."""
    image = made(6)
    image.lane(2)
    broken = image.lsn
    image.durable = broken - 3  # the writer's word when it stamped the next two
    image.add(1)
    image.add(1, lane_id=2)
    image.durable = broken
    image.add(1)
    damaged(image, broken)
    log = image.recover(evidence=broken, accept=True)
    assert log.next_lsn == image.lsn and log.lanes[2] == image.lanes[2]


def test_a_lane_whose_name_is_lost_keeps_its_id_and_where_it_stood() -> None:
    """Else its id would go to another lane, whose name readers would give to its records."""
    image = made(3)
    image.lane(9)
    named = image.lsn - 1
    image.add(4, lane_id=9)
    damaged(image, named)
    log = image.recover(evidence=image.lsn - 1, accept=True)
    assert (log.lanes[9].name, log.lanes[9].position, log.lanes[9].entries) == (b"hdad:lost-lane:9", image.lanes[9].position, 4)
    assert log.lanes[1] == image.lanes[1]


def test_frames_behind_a_damaged_head_stay_when_that_is_accepted() -> None:
    """The next writer begins behind their segment, and does not overwrite it."""
    image = rolled(3)
    image.durable = image.lsn - 1
    image.add(3)
    image.data[GEOMETRY.segment_address(2) + 8] ^= 1
    with pytest.raises(CorruptionError, match="a later frame calls durable"):
        image.recover()
    log = image.recover(accept=True)
    assert (log.sequence, log.next_address, log.next_lsn) == (2, GEOMETRY.segment_end(2), image.lsn)
    assert log.lanes == image.lanes


def test_two_newest_heads_that_are_not_whole_leave_what_is_before_them() -> None:
    """A writer that was interrupted in its first write after accepted damage of a head (damage, seed 9)."""
    image = rolled(4, lanes=30)
    head, end = GEOMETRY.segment_address(3), GEOMETRY.segment_end(3)
    image.data[GEOMETRY.segment_address(2) + 8] ^= 1
    image.data[head + BLOCK : end] = bytes(end - head - BLOCK)  # only its first block landed
    with pytest.raises(CorruptionError, match="calls durable"):
        image.recover()
    log = image.recover(accept=True)
    assert (log.sequence, log.next_lsn) == (2, next(lsn for lsn, address, _ in image.places if address == head))


def test_the_only_head_torn_behind_its_first_block_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image()
    image.data[:] = bytes(len(image.data))
    image.lsn, image.sequence, image.address = 1, 0, GEOMETRY.segment_address(0)
    rows = [LaneRow.new(lane, b"lane-%d" % lane, ORIGIN, 0) for lane in range(1, 30)]
    image.put(FrameKind.SEGMENT_HEAD, encode_rows(0, rows), lane_epoch=0, record_count=len(rows))
    image.data[GEOMETRY.segment_address(0) + BLOCK] ^= 1
    for accept in (False, True):
        with pytest.raises(CorruptionError, match="a whole segment head"):
            image.recover(accept=accept)


def test_a_full_segment_behind_whose_padding_nothing_was_written_ends_there() -> None:
    image = made(3)
    room = GEOMETRY.segment_end(0) - image.address
    image.put(FrameKind.PADDING, b"", raw_size=room)
    log = image.recover(evidence=image.lsn - 1)
    assert (log.next_lsn, log.next_address, log.reason) == (image.lsn, GEOMETRY.segment_end(0), "full segment")
    assert being_reused(log, SUPERBLOCK) == range(1 - GEOMETRY.segment_count, 2 - GEOMETRY.segment_count)
    assert not being_reused(made(3).recover(), SUPERBLOCK)


@pytest.mark.parametrize("begin", [2, 6])
def test_segments_that_a_writer_left_out_are_passed_by_and_a_late_head_in_them_is_void(begin: int) -> None:
    image = made(3)
    image.put(FrameKind.PADDING, b"", raw_size=GEOMETRY.segment_end(0) - image.address)
    late = replace(image, data=bytearray(image.data), places=list(image.places), lanes=dict(image.lanes), sequence=0)
    place = slice(GEOMETRY.segment_address(1), GEOMETRY.segment_end(1))
    superblock = image.take_over(begin)
    image.data[place] = late.data[place]  # what the former writer's roll put there
    log = image.recover(superblock=superblock)
    assert (log.sequence, log.next_lsn, log.writer_epoch) == (begin, image.lsn, 2)
    assert not log.damaged and being_reused(log, superblock) == range(begin + 1 - 15, begin + 1 - 15)
    image.data[image.places[-1][1] + FRAME_HEADER_SIZE] ^= 1  # the new writer died in its first write
    log = image.recover(superblock=superblock)
    assert (log.sequence, log.next_lsn, log.next_address) == (0, image.lsn - 1, GEOMETRY.segment_end(0))
    assert being_reused(log, superblock) == range(1 - 15, begin + 1 - 15), "it may have been over all of them"


@pytest.mark.parametrize(
    ("is_cautious", "is_full", "begun", "expected"),
    [
        (False, False, 0, 5), (False, True, 5, 5), (False, False, 7, 7),
        (True, False, 0, 6), (True, True, 5, 7), (True, False, 7, 8), (True, True, 6, 7), (True, False, 5, 6),
    ],
)  # fmt: skip
def test_where_a_new_writer_begins(is_cautious: bool, is_full: bool, begun: int, expected: int) -> None:
    end = GEOMETRY.segment_end(5)
    log = RecoveredLog(5, 100, end if is_full else end - BLOCK, 0, 1, {}, "")
    assert begin_sequence(replace(SUPERBLOCK, begin_sequence=begun), log, is_cautious) == expected


def test_a_lane_table_under_a_right_checksum_that_no_writer_makes_is_damage() -> None:
    image = made(1)
    image.put(FrameKind.LANES, b"no table", record_count=1)
    with pytest.raises(CorruptionError, match=f"a lane table at LSN {image.lsn - 1}"):
        image.recover()


def test_whole_frames_behind_a_place_tell_what_had_been_durable() -> None:
    image = made(20)
    image.durable = image.lsn - 1
    image.add(1)
    lsn, address, _ = image.places[10]
    plan_ = witness_behind(SUPERBLOCK, image.sequence, lsn, address)
    read = next(plan_)
    with pytest.raises(StopIteration) as stop:
        while True:
            read = plan_.send(memoryview(bytes(image.data[read.address : read.address + read.size])))
    assert stop.value.value == image.lsn - 2


def test_a_data_frame_of_a_lane_that_there_is_not_is_refused() -> None:
    image = made(1)
    image.lanes[9] = LaneRow.new(9, b"nobody", ORIGIN, 0)
    image.add(1, lane_id=9)
    with pytest.raises(CorruptionError, match="a lane that there is, found lane 9"):
        image.recover()


def test_of_what_is_behind_damage_only_what_was_durable_or_known_to_be_contiguous_counts() -> None:
    """Accepted: a lane's older positions, frames of an older writer, and what no acknowledgement can have covered are left out."""
    image = made(3)
    image.durable = image.lsn - 1
    image.lane(2)
    damaged = image.lsn
    image.add(1)
    image.durable = damaged
    image.add(1, lane_id=2)
    row = image.lanes[1]
    image.put(FrameKind.DATA, b"", lane_id=1, lane_epoch=1, from_=ORIGIN, to=ORIGIN)  # goes nowhere
    image.put(FrameKind.DATA, b"", lane_id=77, lane_epoch=1, from_=ORIGIN, to=Position(1, 0))  # its lane is not known
    image.epoch = 0
    image.put(FrameKind.DATA, b"", lane_id=1, lane_epoch=1, from_=row.position, to=Position(99, 0))  # a writer before
    image.epoch, image.durable = 1, 0
    image.put(FrameKind.DATA, b"", lane_id=1, lane_epoch=1, from_=row.position, to=Position(98, 0))  # never called durable
    image.data[image.places[damaged - 1][1] + 200] ^= 1
    log = image.recover(accept=True)
    assert log.damaged[0].first_lsn == damaged
    assert log.lanes[2].position == image.lanes[2].position and log.lanes[1].position == Position(3, 0)


@pytest.mark.parametrize("place", ["a frame", "the newest head", "the first head"])
def test_wrong_bytes_that_a_device_gives_once_are_read_again(place: str) -> None:
    """ceph#23273: zeros under memory pressure, cured by a retry. Nothing is called torn for that, even if nothing else shows it."""
    image = rolled(4)
    image.add(2)
    heads = {"the newest head": GEOMETRY.segment_address(3), "the first head": GEOMETRY.segment_address(0)}
    address = heads.get(place, image.places[-1][1])
    for which in range(3):
        plan_, left = recover(SUPERBLOCK, 0), which
        read = next(plan_)
        try:
            while True:
                view = bytearray(image.data[read.address : read.address + read.size])
                offset = address - read.address
                if 0 <= offset < read.size:
                    if left == 0:
                        view[offset : offset + BLOCK] = bytes(BLOCK)
                    left -= 1
                read = plan_.send(memoryview(view))
        except StopIteration as stop:
            assert stop.value.next_lsn == image.lsn, which


def test_a_log_that_is_another_one_at_each_look_is_not_looked_at_for_ever() -> None:
    image = made(20)
    places = image.places[2:-2]
    plan_, heads = recover(SUPERBLOCK, image.lsn - 1), 0
    read = next(plan_)
    with pytest.raises(CorruptionError):
        while True:
            heads += read == Read(GEOMETRY.segment_address(0), UNIT)  # twice a look: for the newest, and to scan it
            view = bytearray(image.data[read.address : read.address + read.size])
            victim = places[(heads - 1) // 2 % len(places)][1] - read.address
            if 0 <= victim < len(view):
                view[victim] ^= 1
            read = plan_.send(memoryview(view))
    assert heads == 2 * (LOOKS_MAX + 1)

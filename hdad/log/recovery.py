"""Finding the end of the log: a pure plan of reads, and the decision.

``recover`` is a generator: it yields ``Read`` and is sent the bytes; its return value is the decision. It writes nothing, so it may be
interrupted anywhere and begun again. Rule of the writer that it relies on: a segment head is written only when everything before it
is durable, so the newest valid head proves all older segments, and only its own segment is scanned.

The decision at the first frame that is not valid (LSN n):
| lease ≥ n | later valid frame that knows n durable | decision | reason                                                             |
|-----------|----------------------------------------|----------|--------------------------------------------------------------------|
| no        | no                                     | TORN     | nothing shows that n was ever durable: the log ends before it      |
| yes       | any                                    | DAMAGED  | a writer had called n durable: acknowledged data is not as written |
| no        | yes                                    | DAMAGED  | the same, told by a frame                                          |
Frames behind a torn one cannot come back to life: each writer begins with a frame of its own, durable before any other (appender), so
what lies behind it breaks (5) or (6). Frames of an older writer that get to the device late are void by rule (7), which holds them against
the superblock: the writer that took over said there, before it wrote any frame, from which LSN on no older epoch counts.

A writer may leave segments out when it takes over (appender), so up to the superblock's ``begin_sequence`` heads may be missing.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from hdad.errors import CorruptionError, FormatError
from hdad.limits import MIB
from hdad.log.format import (
    FRAME_HEADER_SIZE,
    Expectation,
    FrameHeader,
    FrameKind,
    broken_rules,
    decode_header,
    is_of_log,
    is_payload_right,
    occupied,
)
from hdad.log.geometry import UNIT, Geometry
from hdad.log.lanes import LaneRow, decode_rows
from hdad.log.superblock import Superblock

CHUNK: Final = 4 * MIB
READS_MAX: Final = 3  # of bytes that are no frame, until that is believed
LOOKS_MAX: Final = 16  # LIMIT: of looks at a log that is another one each time


class Read(NamedTuple):
    """One step of the plan: bytes to read, both whole units."""

    address: int
    size: int


Plan = Generator[Read, memoryview, "RecoveredLog"]


class Damage(NamedTuple):
    """Frames that had been durable and are not valid."""

    first_lsn: int
    address: int
    reason: str


@dataclass(slots=True)
class RecoveredLog:
    """Where the log ends, and the lane table there. ``next_address`` is the end of the segment when it is full."""

    sequence: int
    next_lsn: int
    next_address: int
    predecessor_crc: int
    writer_epoch: int
    lanes: dict[int, LaneRow]
    reason: str
    damaged: list[Damage] = field(default_factory=list)


def being_reused(log: RecoveredLog, superblock: Superblock) -> range:
    """The sequences of old segments that a write in flight, or torn by a crash, may be overwriting: their heads may be the last to go.

    None of them: the newest segment has room yet, so all old segments are whole, or damaged.
    """
    geometry = superblock.geometry
    is_full = not log.damaged and log.next_address == geometry.segment_end(log.sequence)
    last = max(log.sequence + is_full, superblock.begin_sequence)
    return range(log.sequence + 1 - geometry.segment_count, last + 1 - geometry.segment_count)


def begin_sequence(superblock: Superblock, log: RecoveredLog, is_cautious: bool) -> int:
    """The segment where the new writer's frames begin; the recovered one if it goes on there.

    | cautious | newest segment | the writer before had begun      | begins in           | late writes may lie in              |
    |----------|----------------|----------------------------------|---------------------|-------------------------------------|
    | no       | any            | here or before                   | the newest          | none                                |
    | no       | any            | later, its head is not there     | the one of before   | those that that writer left room to |
    | yes      | has room       | here or before                   | newest + 1          | the rest of the newest              |
    | yes      | full           | here or before                   | newest + 2          | newest + 1                          |
    | yes      | any            | later (b), its head is not there | at least b + 1      | b, and what that writer left out    |
    """
    begun = superblock.begin_sequence
    if not is_cautious:
        return max(log.sequence, begun)
    is_full = log.next_address == superblock.geometry.segment_end(log.sequence)
    return max(log.sequence + 1 + is_full, begun + 1 if begun > log.sequence else 0)


class Head(NamedTuple):
    """A segment head as far as its header tells."""

    sequence: int
    header: FrameHeader

    @property
    def left_out(self) -> range:
        """Sequences of segments before it that its writer left out when it took over: whatever lies there is not part of the log."""
        return range(self.sequence - self.header.from_ms, self.sequence)


def head_at(view: memoryview, superblock: Superblock, index: int) -> Head | None:
    """The head of segment ``index`` in the circle, if the header there is one of this log, and not void."""
    header = is_of_log(view, superblock.uuid, superblock.geometry.segment_address(index))
    if header is None or header.kind != FrameKind.SEGMENT_HEAD or header.lane_epoch % superblock.geometry.segment_count != index:
        return None
    if header.writer_epoch < superblock.epoch_min(header.lsn):
        return None
    return Head(header.lane_epoch, header)


def find_newest(superblock: Superblock) -> Generator[Read, memoryview, Head | None]:
    """The newest segment head: by bisection over one lap; over all heads when the first one is not valid.

    A place without a head of this lap is either not written yet or rotten: the place behind it tells. The first head may be one of an
    older lap, its overwriting lost: then the second one is newer than anything of that lap. Where segments were left out bisection may end
    before them: then it ends before ``begin_sequence``, and all heads are looked at.
    """
    geometry = superblock.geometry
    first = head_at((yield Read(geometry.segment_address(0), UNIT)), superblock, 0)
    if first is None:
        return (yield from _find_newest_linearly(superblock))
    newest, low, high = first, 0, geometry.segment_count
    while high - low > 1:  # index ``low`` is of this lap, ``high`` is not
        middle = (low + high) // 2
        for index in range(middle, min(middle + 2, high)):
            head = head_at((yield Read(geometry.segment_address(index), UNIT)), superblock, index)
            if head is not None and head.sequence == first.sequence + index:
                newest, low = head, index
                break
        else:
            high = middle
    for index in {1, (low + 1) % geometry.segment_count}:
        behind = head_at((yield Read(geometry.segment_address(index), UNIT)), superblock, index)
        if behind is not None and behind.sequence > newest.sequence:
            return (yield from _find_newest_linearly(superblock))
    if newest.sequence < superblock.begin_sequence:
        return (yield from _find_newest_linearly(superblock))
    return newest


def _find_newest_linearly(superblock: Superblock) -> Generator[Read, memoryview, Head | None]:
    newest: Head | None = None
    for index in range(superblock.geometry.segment_count):
        head = head_at((yield Read(superblock.geometry.segment_address(index), UNIT)), superblock, index)
        if head is not None and (newest is None or head.sequence > newest.sequence):
            newest = head
    return newest


class Window:
    """The bytes of one segment, read in chunks as they are asked for."""

    def __init__(self, end: int) -> None:
        self._end = end
        self._address = 0
        self._view = memoryview(b"")

    def get(self, address: int, size: int) -> Generator[Read, memoryview, memoryview]:
        """``size`` bytes from ``address`` on; they end within the segment."""
        offset = address - self._address
        if offset < 0 or offset + size > len(self._view):
            wanted = min(max(CHUNK, -(-size // UNIT) * UNIT), self._end - address // UNIT * UNIT)
            start = address // UNIT * UNIT
            wanted = max(wanted, -(-(address + size - start) // UNIT) * UNIT)
            self._view = yield Read(start, min(wanted, self._end - start))
            self._address, offset = start, address - start
        return self._view[offset : offset + size]


def next_frame(window: Window, expected: Expectation) -> Generator[Read, memoryview, tuple[FrameHeader, memoryview] | list[int]]:
    """The frame that is expected, header and payload, or the numbers of the rules that what lies there breaks."""
    view = yield from window.get(expected.address, FRAME_HEADER_SIZE)
    header = decode_header(view)
    broken = broken_rules(view, header, expected)
    if broken:
        return broken
    payload = yield from window.get(expected.address, FRAME_HEADER_SIZE + header.stored_size)
    payload = payload[FRAME_HEADER_SIZE:]
    return (header, payload) if is_payload_right(header, payload) else [9]


def rows_of(header: FrameHeader, payload: memoryview) -> list[LaneRow]:
    """The rows of a segment head or LANES frame. Raises CorruptionError: its CRC is right, and it is no lane table (I9)."""
    try:
        return decode_rows(payload)[1]
    except FormatError as error:
        raise CorruptionError(header.address, f"a lane table at LSN {header.lsn}", str(error)) from error


def apply(lanes: dict[int, LaneRow], header: FrameHeader, payload: memoryview) -> None:
    """What a valid frame does to the lane table. Raises CorruptionError when it tells what no writer tells."""
    if header.kind == FrameKind.DATA:
        row = lanes.get(header.lane_id)
        if row is None:
            raise CorruptionError(header.address, f"LSN {header.lsn} of a lane that there is", f"lane {header.lane_id}")
        lanes[row.id] = row.after(header)
    elif header.kind in (FrameKind.LANES, FrameKind.SEGMENT_HEAD):
        rows = rows_of(header, payload)
        if header.kind == FrameKind.SEGMENT_HEAD:
            lanes.clear()
        lanes.update((row.id, row) for row in rows)


def no_head(superblock: Superblock) -> CorruptionError:
    """What to raise when no segment begins with its head: formatting writes the first one before any superblock, so one was there."""
    return CorruptionError(
        superblock.geometry.segment_address(0), "the head of a segment", "none in the whole log; its data may still be there: do not format"
    )


Survivors = Sequence[tuple[FrameHeader, memoryview]]


class Look(NamedTuple):
    """What one look at the log found. ``log``: None if there is no whole head; ``error``: None if all is well.

    ``survivors``: whole frames behind the damage.
    """

    log: RecoveredLog | None
    error: CorruptionError | None = None
    survivors: Survivors = ()

    @property
    def verdict(self) -> tuple[str, int]:
        """What two looks are compared by."""
        return str(self.error), self.log.next_lsn if self.log is not None else 0


def recover(superblock: Superblock, evidence_lsn: int, accept_damage: bool = False) -> Plan:
    """Decide where the log ends. ``evidence_lsn``: the highest durable LSN that lease blocks tell.

    Damage is believed when two looks in a row find the same: a device may give wrong bytes once (ceph#23273), and a log may be growing
    under who reads it beside its writer. Raises CorruptionError (DAMAGED, unless accepted; no segment head at all; a frame that no writer
    makes).
    """
    look, before = (yield from _look(superblock, evidence_lsn)), None
    for _ in range(LOOKS_MAX):
        if look.error is None or look.verdict == before:
            break
        before = look.verdict
        look = yield from _look(superblock, evidence_lsn)
    log = look.log
    if look.error is None and log is not None:
        return log
    assert look.error is not None
    if log is None or not accept_damage:
        raise look.error
    _go_on_behind(superblock, log, look.error, look.survivors, evidence_lsn)
    return log


def _look(superblock: Superblock, evidence_lsn: int) -> Generator[Read, memoryview, Look]:
    try:
        return (yield from _look_for_end(superblock, evidence_lsn))
    except CorruptionError as error:
        return Look(None, error)


def _look_for_end(superblock: Superblock, evidence_lsn: int) -> Generator[Read, memoryview, Look]:
    geometry = superblock.geometry
    evidence_lsn = max(evidence_lsn, superblock.begin_lsn - 1)  # what the last writer had recovered before it raised the epoch
    head = yield from find_newest(superblock)
    if head is None:
        raise no_head(superblock)
    evidence_lsn = max(evidence_lsn, head.header.lsn - 1)  # also of a head that is torn behind its first block
    log = yield from _scan(superblock, head)
    while log.next_address == geometry.segment_end(log.sequence):  # the head behind it may be rotten: is there a newer one?
        newest = yield from _find_newest_linearly(superblock)
        if newest is None or newest.sequence <= log.sequence:
            break
        further = yield from _scan(superblock, newest)
        if further.sequence == log.sequence:  # that head itself is torn
            break
        log = further
    return (yield from _judge_end(superblock, log, evidence_lsn))


def _scan(superblock: Superblock, head: Head) -> Plan:
    """Scan the newest segment; when its head turns out to be torn behind its first block, the newest before it that has one."""
    geometry = superblock.geometry
    for sequence in range(head.sequence, max(-1, head.sequence - geometry.segment_count), -1):
        if sequence in head.left_out:
            continue
        index = sequence % geometry.segment_count
        address, end = geometry.segment_address(sequence), geometry.segment_end(sequence)
        start = head_at((yield Read(address, UNIT)), superblock, index)
        if start is None or start.sequence != sequence:
            continue
        log = RecoveredLog(sequence, start.header.lsn, address, 0, start.header.writer_epoch, {}, "")
        expected = Expectation(superblock.uuid, address, start.header.lsn, None, start.header.writer_epoch, end, geometry.block_size)
        result = yield from _scan_segment(Window(end), expected, log, superblock)
        if log.next_address != address:
            log.reason = f"rule {result} broken" if result else "full segment"
            return log
    raise CorruptionError(geometry.segment_address(head.sequence), "a whole segment head", "one with a wrong payload CRC")


def _scan_segment(
    window: Window, expected: Expectation, log: RecoveredLog, superblock: Superblock
) -> Generator[Read, memoryview, list[int]]:
    """Apply frames until one is not valid, however often it is read (ceph#23273), or the segment is full."""
    reads = 1
    while expected.address < expected.end:
        found = yield from next_frame(window, expected)
        if isinstance(found, list):
            if reads == READS_MAX:
                return found
            window, reads = Window(expected.end), reads + 1
            continue
        reads = 1
        header, payload = found
        apply(log.lanes, header, payload)
        address = header.address + occupied(header, expected.block_size)
        log.next_lsn, log.next_address = header.lsn + 1, address
        log.predecessor_crc, log.writer_epoch = header.header_crc, header.writer_epoch
        expected = expected._replace(
            address=address, lsn=header.lsn + 1, predecessor_crc=header.header_crc,
            writer_epoch_min=max(header.writer_epoch, superblock.epoch_min(header.lsn + 1)),
        )  # fmt: skip
    return []


def _judge_end(superblock: Superblock, log: RecoveredLog, evidence_lsn: int) -> Generator[Read, memoryview, Look]:
    """TORN or DAMAGED, see the table."""
    survivors = yield from _later_frames(superblock, log)
    witness = max((header.durable_lsn for header, _ in survivors), default=0)
    if max(evidence_lsn, witness) < log.next_lsn:
        return Look(log)
    who = "a lease block" if evidence_lsn >= log.next_lsn else "a later frame"
    what = f"the frame with LSN {log.next_lsn}, which {who} calls durable"
    return Look(log, CorruptionError(log.next_address, what, f"bytes that are not that frame ({log.reason})"), survivors)


def lost_lane(header: FrameHeader) -> LaneRow:
    """A row for a lane whose name is lost with the frame that told it: its records stay readable, and its id is not given to another."""
    return LaneRow.new(header.lane_id, b"hdad:lost-lane:%d" % header.lane_id, header.from_, 0)


def _go_on_behind(superblock: Superblock, log: RecoveredLog, error: CorruptionError, survivors: Survivors, evidence_lsn: int) -> None:
    """Accepted damage: ``log`` goes on behind everything that is still readable."""
    torn_lsn = log.next_lsn
    log.damaged.append(Damage(torn_lsn, log.next_address, f"{error.expected}; {log.reason}"))
    durable_lsn = max([evidence_lsn, *(header.durable_lsn for header, _ in survivors)])
    # Acknowledged, or stamped when all before the damage was durable; leavings of a torn tail of an older writer are neither. What lies
    # between those is shown by readers, too, so it counts, whenever it was stamped.
    survivors = [(header, payload) for header, payload in survivors if header.writer_epoch >= log.writer_epoch]
    last = max((header.lsn for header, _ in survivors if header.lsn <= durable_lsn or header.durable_lsn + 1 >= torn_lsn), default=0)
    for header, payload in survivors:
        if not log.next_lsn <= header.lsn <= last:
            continue
        if header.kind == FrameKind.DATA and header.lane_id not in log.lanes:
            log.lanes[header.lane_id] = lost_lane(header)
        if header.kind == FrameKind.LANES or (header.kind == FrameKind.DATA and header.to > log.lanes[header.lane_id].position):
            apply(log.lanes, header, payload)
        log.next_lsn, log.writer_epoch = header.lsn + 1, max(log.writer_epoch, header.writer_epoch)
    if survivors and log.next_address == superblock.geometry.segment_end(log.sequence):
        log.sequence += 1  # the head that is damaged is that of the next segment, and what is behind it stays
    # FORMAT: LSNs that were lost are not given again; the next frame is the head of a new segment.
    log.next_lsn = max(log.next_lsn, evidence_lsn + 1)
    log.next_address = superblock.geometry.segment_end(log.sequence)


def witness_behind(superblock: Superblock, sequence: int, next_lsn: int, next_address: int) -> Generator[Read, memoryview, int]:
    """The highest durable LSN that whole frames behind a place tell, as recovery would find it were the log to end there; 0: none."""
    log = RecoveredLog(sequence, next_lsn, next_address, 0, 0, {}, "")
    survivors = yield from _later_frames(superblock, log)
    return max((header.durable_lsn for header, _ in survivors), default=0)


def _later_frames(superblock: Superblock, log: RecoveredLog) -> Generator[Read, memoryview, list[tuple[FrameHeader, memoryview]]]:
    """Whole frames behind the end, in the rest of its segment, or in the next one when it is full; payloads only of LANES frames (I7)."""
    geometry: Geometry = superblock.geometry
    address, end = log.next_address, geometry.segment_end(log.sequence)
    if address >= end:
        address, end = geometry.segment_address(log.sequence + 1), geometry.segment_end(log.sequence + 1)
    found: list[tuple[FrameHeader, memoryview]] = []
    window = Window(end)
    while address + geometry.block_size <= end:
        view = yield from window.get(address, FRAME_HEADER_SIZE)
        header = is_of_log(view, superblock.uuid, address)
        if header is not None and header.writer_epoch < superblock.epoch_min(header.lsn):
            header = None  # void
        size = occupied(header, geometry.block_size) if header is not None else 0
        if header is None or header.lsn <= log.next_lsn or header.stored_size > geometry.frame_size_max or address + size > end:
            address += geometry.block_size
            continue
        payload = (yield from window.get(address, FRAME_HEADER_SIZE + header.stored_size))[FRAME_HEADER_SIZE:]
        if is_payload_right(header, payload):
            found.append((header, payload if header.kind == FrameKind.LANES else payload[:0]))
        address += max(size, geometry.block_size)
    return found

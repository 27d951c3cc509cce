"""Reading the log, beside a running writer or alone: whole, durable frames, in order. Edge; part of the public API.

Never returns bytes that were torn (CRC, read again three times before it is believed), never a frame that is not known to be durable (a
lease block or a later frame says so), and never skips in silence: what was overwritten is a LappedError, damage a CorruptionError, or,
with ``on_damage="skip"``, an entry in ``damaged``. Before it says that the log ends, it looks at what lies behind the end, as recovery does
(not when following: there the writer's lease tells soon). Any attached host may read; nothing is written, not even a lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Final, Literal, Self

from hdad._core import RecordIterator, check_records
from hdad.clock import monotonic_ns
from hdad.errors import CorruptionError, LappedError
from hdad.limits import KIB, MIB
from hdad.log.device import Device
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
from hdad.log.geometry import UNIT
from hdad.log.horizon import Horizon
from hdad.log.lanes import LaneRow
from hdad.log.logrecord import Frame, LogRecord
from hdad.log.opening import carry_out, read_superblock
from hdad.log.recovery import LOOKS_MAX, Damage, Head, being_reused, find_newest, head_at, no_head, recover, rows_of, witness_behind
from hdad.log.superblock import Superblock
from hdad.record import Position, RecordKind

READ_AHEAD: Final = MIB
READ_AHEAD_MIN: Final = 64 * KIB
CRC_ATTEMPTS: Final = 3
POLL_S: Final = (0.0005, 0.01)  # a reader on another host has nothing but looking: so soon after something came, and at last so seldom


Start = int | datetime | Literal["end"] | None


class LogReader:
    """``start``: None (the oldest there is), an LSN, a time, or "end". ``lane``: only that stream; ``after``: and only after that position.

    A lane that the log does not have (yet) has no records. Raises ForeignDeviceError, DeviceError, LappedError.
    """

    def __init__(
        self, path: str, start: Start = None, *, lane: str | None = None, after: Position | None = None,
        on_damage: Literal["raise", "skip"] = "raise",
    ) -> None:  # fmt: skip
        self.device = Device.open(path)
        self.damaged: list[Damage] = []
        self.retried_count = 0
        self.lanes: dict[int, LaneRow] = {}
        self._on_damage = on_damage
        self._lane = lane.encode("utf-8", "surrogateescape") if lane is not None else None
        self._after = after
        self._from_label_ns = 0
        self._read_ahead = READ_AHEAD
        self._looked_behind_lsn = 0
        self._chunk_address = 0
        self._chunk = memoryview(b"")
        try:
            self.superblock: Superblock = read_superblock(self.device)
            self._geometry = self.superblock.geometry
            self._horizon = Horizon(self.device, self.superblock)
            self._seek(start)
        except BaseException:
            self.device.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the device go."""
        self.device.close()

    @property
    def next_lsn(self) -> int:
        """The LSN that comes next."""
        return self._expected.lsn

    @property
    def start_lsn(self) -> int:
        """Frames before this LSN were not asked for; 0: nothing is known of that."""
        return self._skip_below

    @property
    def oldest_lsn(self) -> int:
        """The LSN of the oldest segment head that is there now."""
        return self._oldest_head(self._newest_head()).header.lsn

    # -- finding the start -------------------------------------------------------------------------------------------------------------

    def _head(self, sequence: int) -> Head | None:
        """The head of the segment with this sequence, if it is still, or already, there."""
        index = sequence % self._geometry.segment_count
        head = head_at(self.device.read(self._geometry.segment_address(sequence), UNIT), self.superblock, index)
        return head if head is not None and head.sequence == sequence else None

    def _newest_head(self) -> Head:
        head = carry_out(self.device, find_newest(self.superblock))
        if head is None:
            raise no_head(self.superblock)
        return head

    def _oldest_head(self, newest: Head) -> Head:
        for sequence in range(max(0, newest.sequence - self._geometry.segment_count + 1), newest.sequence):
            head = self._head(sequence)
            if head is not None:
                return head
        return newest

    def _seek(self, start: Start) -> None:
        """Go to the segment where ``start`` is. What is before it in the segment is passed over while reading."""
        newest, oldest = self._ends(is_damage_told=start is None)
        chosen, self._skip_below = oldest, 0
        if start == "end":
            chosen = newest
        elif isinstance(start, datetime):
            self._from_label_ns = wanted_ns = int(start.timestamp() * 1_000_000_000)
            chosen = self._last_head(oldest, newest, lambda head: head.header.label_ns <= wanted_ns)
        elif isinstance(start, int):
            if start < oldest.header.lsn:
                raise LappedError(start, oldest.header.lsn)
            self._skip_below = start
            chosen = self._last_head(oldest, newest, lambda head: head.header.lsn <= start)
        elif self._after is not None and self._lane is not None:
            chosen = self._last_head(oldest, newest, self._is_before_after)
        self._begin_segment(chosen)
        if start == "end":
            for _ in self._frames_known():
                pass
            self._skip_below = self._expected.lsn

    def _is_before_after(self, head: Head) -> bool:
        """Whether the lane stands at or before ``after`` at this head."""
        assert self._after is not None
        return all(row.position <= self._after for row in self._table(head) if row.name == self._lane)

    def _table(self, head: Head) -> list[LaneRow]:
        """The lane table at ``head``; none when it is not whole."""
        size = FRAME_HEADER_SIZE + head.header.stored_size
        if size > self._geometry.segment_size:  # I9
            return []
        view = self.device.read(head.header.address, -(-size // UNIT) * UNIT)
        if not is_payload_right(head.header, view[FRAME_HEADER_SIZE:size]):
            return []
        try:
            return rows_of(head.header, view[FRAME_HEADER_SIZE:size])
        except CorruptionError:
            return []

    def _last_head(self, oldest: Head, newest: Head, fits: Callable[[Head], bool]) -> Head:
        """Bisection: the last head from ``oldest`` to ``newest`` that fits; ``oldest`` if none does."""
        low, high, best = oldest.sequence, newest.sequence, oldest
        while low <= high:
            middle = (low + high) // 2
            head = self._head(middle)
            if head is not None and fits(head):
                best, low = head, middle + 1
            elif head is None:
                low = middle + 1  # overwritten since we looked: what is wanted lies later, or is gone
            else:
                high = middle - 1
        return best

    def _begin_segment(self, head: Head) -> None:
        self._sequence = head.sequence
        self._expected = Expectation(
            self.superblock.uuid, self._geometry.segment_address(head.sequence), head.header.lsn, None, head.header.writer_epoch,
            self._geometry.segment_end(head.sequence), self._geometry.block_size,
        )  # fmt: skip

    # -- reading -----------------------------------------------------------------------------------------------------------------------

    def frames(self, *, follow: bool = False, timeout_s: float | None = None) -> Iterator[Frame]:
        """Data frames that are durable, in order. ``follow``: wait for more, for at most ``timeout_s`` without any (None: for ever)."""
        quiet_since_ns, pause_s = monotonic_ns(), POLL_S[0]
        while True:
            found = False
            for frame in self.look():
                found = True
                if frame is not None:
                    yield frame
            if found:
                quiet_since_ns, pause_s = monotonic_ns(), POLL_S[0]
            elif not follow:
                if not self._look_behind():
                    return
            elif timeout_s is not None and monotonic_ns() - quiet_since_ns > timeout_s * 1e9:
                return
            else:
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, POLL_S[1])

    def look(self) -> Iterator[Frame | None]:
        """What is known to be durable now, frame by frame; None for one that was not asked for, so that the caller may do something else
        between any two. May be begun anew at any time, and goes on where it stood."""
        for header, payload in self._frames_known():
            if header.kind == FrameKind.DATA and self._is_wanted(header):
                row = self.lanes.get(header.lane_id)
                yield Frame(header, payload, row.name.decode("utf-8", "surrogateescape") if row is not None else "")
            else:
                yield None

    def learn_durable(self, lsn: int) -> None:
        """The writer says so: everything up to ``lsn`` is durable. Spares the look at lease blocks; near the end less is read ahead."""
        self._horizon.learn(lsn)
        self._read_ahead = READ_AHEAD if lsn - self._expected.lsn > 16 else READ_AHEAD_MIN

    def lane_names(self) -> list[bytes]:
        """Names of the lanes that were met so far."""
        return [row.name for row in self.lanes.values()]

    def records(self, *, follow: bool = False, timeout_s: float | None = None) -> Iterator[LogRecord]:
        """Records of ``frames``, one by one."""
        after = self._after
        for frame in self.frames(follow=follow, timeout_s=timeout_s):
            header = frame.header
            try:
                check_records(frame.payload, header.record_count)
            except ValueError as error:  # I9: its CRC is right, its records are not
                self._tell(Damage(header.lsn, header.address, str(error)))
                continue
            for ms, seq, kind, body in RecordIterator(frame.payload):
                if after is None or (ms, seq) > after:
                    yield LogRecord(frame.lane, Position(ms, seq), RecordKind(kind), bytes(body), header.lsn, header.label_ns)

    def _is_wanted(self, header: FrameHeader) -> bool:
        if header.lsn < self._skip_below or header.label_ns < self._from_label_ns:
            return False
        if self._lane is not None:
            row = self.lanes.get(header.lane_id)
            if row is None or row.name != self._lane:
                return False
        return self._after is None or header.to > self._after

    def _frames_known(self) -> Iterator[tuple[FrameHeader, memoryview]]:
        """Frames of all kinds, up to the last that is known to be durable."""
        while True:
            expected = self._expected
            if expected.address >= expected.end:
                if not self._enter_next_segment():
                    return
                continue
            found = self._read_frame(expected)
            if found is None:
                if self._is_damaged(expected):
                    self._go_around(expected, self._sequence)
                    continue
                return
            header, payload = found
            if not self._is_durable(header):
                return
            self._advance(header)
            if header.kind in (FrameKind.SEGMENT_HEAD, FrameKind.LANES):
                try:
                    self.lanes.update((row.id, row) for row in rows_of(header, payload))
                except CorruptionError as error:
                    self._tell(Damage(header.lsn, header.address, error.found))
            yield header, payload

    def _advance(self, header: FrameHeader) -> None:
        self._expected = self._expected._replace(
            address=header.address + occupied(header, self._geometry.block_size), lsn=header.lsn + 1, predecessor_crc=header.header_crc,
            writer_epoch_min=header.writer_epoch,
        )  # fmt: skip

    def _enter_next_segment(self) -> bool:
        sequence = self._sequence + 1
        expected = self._expected._replace(address=self._geometry.segment_address(sequence), end=self._geometry.segment_end(sequence))
        found = self._read_frame(expected)
        if found is None or found[0].kind != FrameKind.SEGMENT_HEAD or not self._is_durable(found[0]):
            self._check_lapped(sequence)
            is_there = found is not None and found[0].kind == FrameKind.SEGMENT_HEAD
            if not is_there and self._horizon.lsn >= expected.lsn:
                self._go_around(expected, sequence)
                return True
            return False
        self._sequence, self._expected = sequence, expected
        return True

    def _is_durable(self, header: FrameHeader) -> bool:
        """Whether a lease block, or a frame behind this one, calls it durable."""
        horizon = self._horizon
        horizon.learn(header.durable_lsn)
        if header.lsn > horizon.lsn and horizon.scout(header, self._expected.end, self._probe):
            head = self._head(self._sequence + 1)  # of a full segment the next one's head tells
            horizon.learn(head.header.lsn - 1 if head is not None else 0)
        if header.lsn > horizon.lsn:
            horizon.look_at_leases()
        return header.lsn <= horizon.lsn

    def _probe(self, address: int, is_fresh: bool) -> memoryview:
        """The header bytes at ``address``: from the read-ahead, or one unit from the device, which leaves the read-ahead alone."""
        offset = address - self._chunk_address
        if not is_fresh and 0 <= offset <= len(self._chunk) - FRAME_HEADER_SIZE:
            return self._chunk[offset : offset + FRAME_HEADER_SIZE]
        return self.device.read(address // UNIT * UNIT, UNIT)[address % UNIT : address % UNIT + FRAME_HEADER_SIZE]

    def _read_frame(self, expected: Expectation) -> tuple[FrameHeader, memoryview] | None:
        """The frame that is expected, read again at most CRC_ATTEMPTS times (ceph#23273); None: it is not there."""
        for attempt in range(CRC_ATTEMPTS):
            view = self._bytes(expected.address, FRAME_HEADER_SIZE, fresh=attempt > 0, read_ahead=UNIT if attempt else 0)
            header = decode_header(view)
            if not broken_rules(view, header, expected):
                size = FRAME_HEADER_SIZE + header.stored_size
                payload = self._bytes(expected.address, size, fresh=attempt > 0)[FRAME_HEADER_SIZE:]
                if is_payload_right(header, payload):
                    self.retried_count += attempt > 1
                    return header, payload
        return None

    def _bytes(self, address: int, size: int, *, fresh: bool = False, read_ahead: int = 0) -> memoryview:
        """Bytes of the device, from the read-ahead if they are there and ``fresh`` is not asked for. ``read_ahead``: 0 is as usual."""
        offset = address - self._chunk_address
        if fresh or offset < 0 or offset + size > len(self._chunk):
            start = address // UNIT * UNIT
            wanted = max(read_ahead or self._read_ahead, -(-(address + size - start) // UNIT) * UNIT)
            wanted = min(wanted, self.device.size // UNIT * UNIT - start)
            self._chunk, self._chunk_address = self.device.read(start, wanted), start
            offset = address - start
        return self._chunk[offset : offset + size]

    # -- what went wrong ---------------------------------------------------------------------------------------------------------------

    def _check_lapped(self, sequence: int) -> None:
        index = sequence % self._geometry.segment_count
        head = head_at(self.device.read(self._geometry.segment_address(sequence), UNIT), self.superblock, index)
        if head is not None and head.sequence > sequence:
            raise LappedError(self._expected.lsn, self._oldest_head(self._newest_head()).header.lsn)

    def _is_damaged(self, expected: Expectation) -> bool:
        """A frame is not there: is it not written yet (False), overwritten (LappedError), or damaged?"""
        self._check_lapped(self._sequence)
        self._horizon.look_at_leases()
        following = self._head(self._sequence + 1)  # written only when everything before it is durable
        if expected.lsn > self._horizon.lsn and (following is None or following.header.lsn < expected.lsn):
            return False
        found = self._read_frame(expected)  # it may have become durable between the look at it and the look at the lease
        self._check_lapped(self._sequence)
        if found is None:
            self._check_being_lapped()
        return found is None

    def _check_being_lapped(self) -> None:
        """The writer may be in the middle of overwriting this segment, its old head being the last sector to go."""
        log = carry_out(self.device, recover(self.superblock, self._horizon.lsn, accept_damage=True))
        if being_reused(log, self._geometry) == self._sequence:
            following = self._head(self._sequence + 1)
            raise LappedError(self._expected.lsn, following.header.lsn if following is not None else log.next_lsn)

    def _ends(self, is_damage_told: bool) -> tuple[Head, Head]:
        """The newest and the oldest head, of one moment: a writer that goes on overwrites what had been the oldest."""
        newest = self._newest_head()
        for _ in range(LOOKS_MAX):
            oldest = self._oldest_head(newest)
            if oldest.sequence <= max(0, newest.sequence + 1 - self._geometry.segment_count):
                break
            before, newest = newest, self._newest_head()
            if newest.sequence == before.sequence:
                if is_damage_told:
                    self._check_oldest(newest, oldest)
                break
        return newest, oldest

    def _check_oldest(self, newest: Head, oldest: Head) -> None:
        """What should be the oldest segment has no head: is it being overwritten just now, or damaged?"""
        first = max(0, newest.sequence + 1 - self._geometry.segment_count)
        if oldest.sequence == first + 1 and newest.sequence + 1 >= self._geometry.segment_count:
            try:
                log = carry_out(self.device, recover(self.superblock, self._horizon.lsn, accept_damage=True))
            except CorruptionError:
                log = None
            if log is not None and (log.sequence != newest.sequence or being_reused(log, self._geometry) == first):
                return
        self._tell(Damage(0, self._geometry.segment_address(first), "the oldest segment's head is not valid"))

    def _look_behind(self) -> bool:
        """The log seems to end here. True: whole frames behind the end show that more had been durable."""
        expected = self._expected
        if self._looked_behind_lsn == expected.lsn:
            return False
        self._looked_behind_lsn = expected.lsn
        witness = carry_out(self.device, witness_behind(self.superblock, self._sequence, expected.lsn, expected.address))
        newest = self._newest_head()
        if newest.header.lsn > expected.lsn:  # written only when everything before it is durable
            witness = max(witness, newest.header.lsn - 1)
        self._horizon.learn(witness)
        return witness >= expected.lsn

    def _tell(self, damage: Damage) -> None:
        """Raise, or note, what is damaged."""
        if self._on_damage == "raise":
            raise CorruptionError(damage.address, f"what LSN {damage.first_lsn} had been", damage.reason)
        self.damaged.append(damage)

    def _learn_lanes(self) -> None:
        """After damage, names may be missing: a later lane table has them, since no id is given twice."""
        for sequence in range(self._sequence + 1, self._sequence + 1 + self._geometry.segment_count):
            head = self._head(sequence)
            if head is not None and (rows := self._table(head)):
                self.lanes = {row.id: row for row in rows} | self.lanes
                return

    def _go_around(self, expected: Expectation, sequence: int) -> None:
        """Damage in the segment with this sequence: raise, or note it and go on at the next frame that is whole."""
        following = self._head(sequence + 1)
        if following is not None and following.header.lsn == expected.lsn:
            self._begin_segment(following)  # nothing is missing: after accepted damage a writer leaves the rest of a segment empty
            return
        if self._on_damage == "raise":
            raise CorruptionError(expected.address, f"the frame with LSN {expected.lsn}, which had been durable", "other bytes")
        if self.damaged and self.damaged[-1].address == expected.address:
            raise CorruptionError(expected.address, "a whole frame behind the damage", "none")
        self.damaged.append(Damage(expected.lsn, expected.address, "not the frame that was durable here"))
        self._learn_lanes()
        head = self._head(sequence)
        if head is not None and head.header.lsn > expected.lsn and head.header.address == expected.address:
            self._begin_segment(head)  # LSNs that were lost with accepted damage are not given again
            return
        address = expected.address + self._geometry.block_size
        while address < expected.end:
            view = self._bytes(address, FRAME_HEADER_SIZE)
            header = is_of_log(view, self.superblock.uuid, address)
            if header is not None and header.lsn > expected.lsn:
                self._sequence, self._expected = sequence, expected._replace(address=address, lsn=header.lsn, predecessor_crc=None)
                return
            address += self._geometry.block_size
        newest = self._newest_head()
        for later in range(max(sequence, newest.sequence - self._geometry.segment_count) + 1, newest.sequence + 1):
            head = self._head(later)
            if head is not None and head.header.lsn > expected.lsn:
                self._begin_segment(head)
                return
        raise CorruptionError(expected.address, "a whole frame behind the damage", "none up to the end of the log")

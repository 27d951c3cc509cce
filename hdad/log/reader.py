"""Reading the log, beside a running writer or alone: whole, durable frames, in order. Edge; part of the public API.

Never returns bytes that were torn (CRC, read again three times before it is believed), never a frame that is not known to be durable (a
lease block or a later frame says so), and never skips in silence: what was overwritten is a LappedError, damage a CorruptionError, or,
with ``on_damage="skip"``, an entry in ``damaged``. Before it says that the log ends, it looks at what lies behind the end, as recovery does
(not when following: there the writer's lease tells soon). Any attached host may read; nothing is written, not even a lock.

When another host has taken the log over, its lease says so before it calls anything durable: then the superblock is read again, which tells
what of the former writer is void, and from where the log goes on if the rest of a segment was left to that writer's late writes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
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
from hdad.log.heads import Heads
from hdad.log.horizon import Horizon
from hdad.log.lanes import LaneRow
from hdad.log.logrecord import Frame, LogRecord
from hdad.log.opening import carry_out, read_superblock
from hdad.log.recovery import Damage, Head, being_reused, recover, rows_of, witness_behind
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
        self._sequence = -1
        self._following: Head | None = None
        try:
            self.superblock: Superblock = read_superblock(self.device)
            self._geometry = self.superblock.geometry
            self._heads = Heads(self.device, self.superblock)
            self._horizon = Horizon(self.device, self.superblock)
            self._look_at_leases()
            self._seek(start)
        except BaseException:  # whatever it is goes on its way; nobody else closes the device
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
        return self._heads.oldest(self._heads.newest()).header.lsn

    # -- finding the start -------------------------------------------------------------------------------------------------------------

    def _seek(self, start: Start) -> None:
        """Go to the segment where ``start`` is. What is before it in the segment is passed over while reading."""
        newest, oldest, missing = self._heads.ends()
        chosen, self._skip_below = oldest, 0
        if start is None and missing and not self._heads.are_being_overwritten(missing, newest, self._horizon.lsn):
            self._tell(Damage(0, self._geometry.segment_address(min(missing)), "the oldest segment's head is not valid"))
        if start == "end":
            chosen = newest
        elif isinstance(start, datetime):
            self._from_label_ns = wanted_ns = int(start.timestamp() * 1_000_000_000)
            chosen = self._heads.last(oldest, newest, lambda head: head.header.label_ns <= wanted_ns)
        elif isinstance(start, int):
            if start < oldest.header.lsn:
                raise LappedError(start, oldest.header.lsn)
            self._skip_below = start
            chosen = self._heads.last(oldest, newest, lambda head: head.header.lsn <= start)
        elif self._after is not None and self._lane is not None:
            chosen = self._heads.last(oldest, newest, self._is_before_after)
        self._begin_segment(chosen)
        if start == "end":
            for _ in self._frames_known():
                pass
            self._skip_below = self._expected.lsn

    def _is_before_after(self, head: Head) -> bool:
        """Whether the lane stands at or before ``after`` at this head."""
        assert self._after is not None
        return all(row.position <= self._after for row in self._heads.table(head) if row.name == self._lane)

    def _begin_segment(self, head: Head) -> None:
        """Go to the head of a segment; of the next one if a later writer left this one out."""
        self._enter(head.sequence)
        while self._following is not None and head.sequence in self._following.left_out:
            head = self._following
            self._enter(head.sequence)
        self._expected = Expectation(
            self.superblock.uuid, self._geometry.segment_address(head.sequence), head.header.lsn, None, head.header.writer_epoch,
            self._geometry.segment_end(head.sequence), self._geometry.block_size,
        )  # fmt: skip

    def _enter(self, sequence: int) -> None:
        self._sequence = sequence
        self._following = self._heads.following(self._sequence)

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
            superblock, expected = self.superblock, self._expected
            if self._following is not None and self._is_left(expected):
                self._begin_segment(self._following)  # which has to continue the chain
                epoch_min, crc = expected.writer_epoch_min, expected.predecessor_crc
                self._expected = self._expected._replace(predecessor_crc=crc, writer_epoch_min=epoch_min)
                continue
            is_at_end = expected.address >= expected.end
            place = self._next_segment(expected) if is_at_end else expected
            found = self._read_frame(place)
            if found is not None and is_at_end and found[0].kind != FrameKind.SEGMENT_HEAD:
                found = None
            is_known = found is not None and self._is_durable(found[0], place, self._sequence + is_at_end)
            if self.superblock is not superblock:
                continue  # another writer has begun: what was found may be void
            if found is not None and is_known:
                header, payload = found
                if is_at_end:
                    self._enter(self._sequence + 1)
                self._expected = place
                self._advance(header)
                if header.kind in (FrameKind.SEGMENT_HEAD, FrameKind.LANES):
                    try:
                        self.lanes.update((row.id, row) for row in rows_of(header, payload))
                    except CorruptionError as error:
                        self._tell(Damage(header.lsn, header.address, error.found))
                yield header, payload
            elif not self._go_on_without(place, is_at_end, found is None, superblock):
                return

    def _go_on_without(self, place: Expectation, is_at_end: bool, is_missing: bool, superblock: Superblock) -> bool:
        """There is no known frame at ``place``. True: the log goes on elsewhere, or it is worth another look; False: not yet."""
        is_damaged = False
        if is_at_end:
            self._check_lapped(self._sequence + 1)
            is_damaged = is_missing and self._horizon.lsn >= place.lsn
            if is_missing and not is_damaged:
                self._look_at_leases()
                if self._horizon.lsn >= place.lsn:
                    return True  # it has come meanwhile, or is damaged: the next look tells
        elif is_missing:
            is_damaged = self._is_damaged(place)
        if self.superblock is not superblock or self._is_left(self._expected):
            return True
        if is_damaged:
            self._go_around(place, self._sequence + is_at_end)
        return is_damaged

    def _is_left(self, expected: Expectation) -> bool:
        """Whether the log goes on from here in the following segment, the rest of this one, or segments between, left to late writes."""
        following = self._following
        if following is None or following.header.lsn != expected.lsn or following.left_out.start != self._sequence + 1:
            return False
        return expected.address < expected.end or len(following.left_out) > 0

    def _next_segment(self, expected: Expectation) -> Expectation:
        sequence = self._sequence + 1
        return expected._replace(address=self._geometry.segment_address(sequence), end=self._geometry.segment_end(sequence))

    def _advance(self, header: FrameHeader) -> None:
        self._expected = self._expected._replace(
            address=header.address + occupied(header, self._geometry.block_size), lsn=header.lsn + 1, predecessor_crc=header.header_crc,
            writer_epoch_min=header.writer_epoch,
        )  # fmt: skip

    def _is_durable(self, header: FrameHeader, place: Expectation, sequence: int) -> bool:
        """Whether a lease block, or a frame behind this one in segment ``sequence``, calls it durable."""
        horizon = self._horizon
        horizon.learn(header.durable_lsn)
        if header.lsn > horizon.lsn and horizon.scout(header, place.end, self._probe):
            head = self._heads.at(sequence + 1)  # of a full segment the next one's head tells
            horizon.learn(head.header.lsn - 1 if head is not None else 0)
        if header.lsn > horizon.lsn:
            self._look_at_leases()
        return header.lsn <= horizon.lsn

    def _probe(self, address: int, is_fresh: bool) -> memoryview:
        """The header bytes at ``address``: from the read-ahead, or one unit from the device, which leaves the read-ahead alone."""
        offset = address - self._chunk_address
        if not is_fresh and 0 <= offset <= len(self._chunk) - FRAME_HEADER_SIZE:
            return self._chunk[offset : offset + FRAME_HEADER_SIZE]
        return self.device.read(address // UNIT * UNIT, UNIT)[address % UNIT : address % UNIT + FRAME_HEADER_SIZE]

    def _look_at_leases(self) -> None:
        """What they call durable; and when one is of a newer epoch, the superblock again."""
        leases = self._horizon.look_at_leases()
        if any(lease is not None and lease.writer_epoch > self.superblock.writer_epoch for lease in leases):
            superblock = read_superblock(self.device)
            if superblock != self.superblock:
                self.superblock = self._heads.superblock = superblock
        if self._following is None and 0 <= self._sequence < self.superblock.begin_sequence:
            self._following = self._heads.following(self._sequence)

    def _read_frame(self, expected: Expectation) -> tuple[FrameHeader, memoryview] | None:
        """The frame that is expected, read again at most CRC_ATTEMPTS times (ceph#23273); None: it is not there."""
        if expected.lsn >= self.superblock.begin_lsn and expected.writer_epoch_min < self.superblock.writer_epoch:
            expected = expected._replace(writer_epoch_min=self.superblock.writer_epoch)
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
        head = self._heads.in_place_of(sequence)
        if head is not None and head.sequence > sequence:
            raise LappedError(self._expected.lsn, self.oldest_lsn)

    def _is_damaged(self, expected: Expectation) -> bool:
        """A frame is not there: is it not written yet (False), overwritten (LappedError), or damaged?"""
        self._check_lapped(self._sequence)
        self._look_at_leases()
        if self._is_left(expected):
            return False
        following = self._heads.at(self._sequence + 1)  # written only when everything before it is durable
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
        if self._sequence in being_reused(log, self.superblock):
            following = self._heads.at(self._sequence + 1)
            raise LappedError(self._expected.lsn, following.header.lsn if following is not None else log.next_lsn)

    def _look_behind(self) -> bool:
        """The log seems to end here. True: whole frames behind the end show that more had been durable."""
        expected = self._expected
        if self._looked_behind_lsn == expected.lsn:
            return False
        self._looked_behind_lsn = expected.lsn
        witness = carry_out(self.device, witness_behind(self.superblock, self._sequence, expected.lsn, expected.address))
        newest = self._heads.newest()
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
            head = self._heads.at(sequence)
            if head is not None and (rows := self._heads.table(head)):
                self.lanes = {row.id: row for row in rows} | self.lanes
                return

    def _is_void(self, header: FrameHeader, sequence: int) -> bool:
        """Whether a frame in segment ``sequence`` is a late write of a former writer, who did not know of the one that had begun."""
        following = self._following if sequence == self._sequence else None
        is_left = following is not None and sequence < following.sequence and header.lsn >= following.header.lsn
        return is_left or header.writer_epoch < self.superblock.epoch_min(header.lsn)

    def _go_around(self, expected: Expectation, sequence: int) -> None:
        """Damage in the segment with this sequence: raise, or note it and go on at the next frame that is whole."""
        following = self._heads.at(sequence + 1)
        if following is not None and following.header.lsn == expected.lsn:
            self._begin_segment(following)  # nothing is missing: after accepted damage a writer leaves the rest of a segment empty
            return
        if self._on_damage == "raise":
            raise CorruptionError(expected.address, f"the frame with LSN {expected.lsn}, which had been durable", "other bytes")
        if self.damaged and self.damaged[-1].address == expected.address:
            raise CorruptionError(expected.address, "a whole frame behind the damage", "none")
        self.damaged.append(Damage(expected.lsn, expected.address, "not the frame that was durable here"))
        self._learn_lanes()
        head = self._heads.at(sequence)
        if head is not None and head.header.lsn > expected.lsn and head.header.address == expected.address:
            self._begin_segment(head)  # LSNs that were lost with accepted damage are not given again
            return
        address = expected.address + self._geometry.block_size
        while address < expected.end:
            view = self._bytes(address, FRAME_HEADER_SIZE)
            header = is_of_log(view, self.superblock.uuid, address)
            if header is not None and header.lsn > expected.lsn and not self._is_void(header, sequence):
                self._enter(sequence)
                self._expected = expected._replace(address=address, lsn=header.lsn, predecessor_crc=None)
                return
            address += self._geometry.block_size
        newest = self._heads.newest()
        for later in range(max(sequence, newest.sequence - self._geometry.segment_count) + 1, newest.sequence + 1):
            head = self._heads.at(later)
            if head is not None and head.header.lsn > expected.lsn:
                self._begin_segment(head)
                return
        raise CorruptionError(expected.address, "a whole frame behind the damage", "none up to the end of the log")

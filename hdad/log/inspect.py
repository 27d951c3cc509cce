"""Proving a log offline: ``verify`` walks every frame and checks I2, I3, I5 and I10; ``inspect`` describes. Edge; reads only.

``verify`` sees what recovery would see: it does not need the writer's word to call a whole frame at the end part of the log.
"""

from __future__ import annotations

import uuid as uuid_module
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from hdad._core import check_records, unpack_records
from hdad.errors import CorruptionError, FormatError
from hdad.log.device import Device, has_volatile_cache
from hdad.log.format import Expectation, FrameHeader, FrameKind, occupied
from hdad.log.geometry import UNIT
from hdad.log.lanes import LaneRow, decode_rows
from hdad.log.opening import carry_out, durable_evidence, read_leases, read_superblock
from hdad.log.recovery import READS_MAX, Head, Window, apply, being_reused, find_newest, head_at, next_frame, no_head, recover
from hdad.log.superblock import Lease, Superblock
from hdad.record import RecordKind

VIOLATIONS_MAX: Final = 100  # LIMIT: told in a report
Progress = Callable[[int, int], None]


@dataclass(slots=True)
class VerifyReport:
    """What ``verify`` found. Counts are of the frames that are still in the log; ``lanes`` of all time, as the newest table has them.

    ``overwritten``: segments that a writer reused while they were being looked at.
    """

    path: str
    uuid: str = ""
    ok: bool = True
    first_lsn: int = 0
    last_lsn: int = 0
    segments: int = 0
    overwritten: int = 0
    frames: int = 0
    records: int = 0
    entries: int = 0
    committed: int = 0
    filtered: int = 0
    dead_lettered: int = 0
    lost: int = 0
    end: str = ""
    violations: list[str] = field(default_factory=list)
    lanes: list[dict[str, Any]] = field(default_factory=list)

    def blame(self, text: str) -> None:
        """One more violation."""
        self.ok = False
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(text)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def verify(path: str, on_progress: Progress | None = None) -> VerifyReport:
    """Walk the whole log. ``on_progress(done, total)`` in segments. Raises ForeignDeviceError, GeometryMismatchError, DeviceError."""
    with Device.open(path) as device:
        return verify_device(device, on_progress)


def verify_device(device: Device, on_progress: Progress | None = None) -> VerifyReport:
    """The same on a device that is open."""
    superblock = read_superblock(device)
    report = VerifyReport(device.path, uuid=str(uuid_module.UUID(bytes=superblock.uuid)))
    _Verifier(device, superblock, report).run(on_progress)
    return report


class _Verifier:
    """Tracks the lane table over all segments, and compares each head with it."""

    def __init__(self, device: Device, superblock: Superblock, report: VerifyReport) -> None:
        self._device = device
        self._superblock = superblock
        self._geometry = superblock.geometry
        self._report = report
        self._lanes: dict[int, LaneRow] | None = None
        self._predecessor: FrameHeader | None = None
        self._reused = range(0)  # what is not valid in these segments may be a write that had begun
        self._newest = 0  # when this began
        self._heads: dict[int, Head] = {}
        self._order: list[int] = []

    def run(self, on_progress: Progress | None) -> None:
        report = self._report
        newest = carry_out(self._device, find_newest(self._superblock))
        if newest is None:
            report.blame(f"I5: {no_head(self._superblock)}")
            return
        try:
            log = carry_out(self._device, recover(self._superblock, durable_evidence(read_leases(self._device, self._superblock.uuid))))
            self._reused = being_reused(log, self._superblock)
        except CorruptionError as error:
            report.blame(f"I5: {error}")
        self._newest = newest.sequence
        oldest = max(0, newest.sequence - self._geometry.segment_count + 1)
        for sequence in range(oldest, newest.sequence + 1):
            head = self._head(sequence)
            if head is not None:
                self._heads[sequence] = head
        for sequence in {number for head in self._heads.values() for number in head.left_out}:
            self._heads.pop(sequence, None)  # a late write of a former writer
        self._order = sorted(self._heads)
        for sequence in range(oldest, newest.sequence + 1):
            if on_progress is not None:
                on_progress(sequence - oldest, newest.sequence + 1 - oldest)
            self._segment(sequence, sequence == newest.sequence)
        if on_progress is not None:
            on_progress(1, 1)
        for row in sorted((self._lanes or {}).values(), key=lambda row: row.id):
            self._conserved(row)
            report.lanes.append(_row_dict(row))

    def _head(self, sequence: int) -> Head | None:
        for _ in range(READS_MAX):
            view = self._device.read(self._geometry.segment_address(sequence), UNIT)
            head = head_at(view, self._superblock, sequence % self._geometry.segment_count)
            if head is not None and head.sequence == sequence:
                return head
        return None

    def _is_reused(self, sequence: int) -> bool:
        """Whether a writer has begun to overwrite it: before it died, or since this began."""
        if sequence in self._reused:
            return True
        newest = carry_out(self._device, find_newest(self._superblock))
        is_moving = newest is not None and newest.sequence > self._newest
        if newest is None or not is_moving or sequence > newest.sequence + 1 - self._geometry.segment_count:
            return False
        self._report.overwritten += 1
        return True

    def _segment(self, sequence: int, is_last: bool) -> None:
        report = self._report
        head, following = self._heads.get(sequence), self._following(sequence)
        if head is None:
            if following is not None and sequence in following.left_out:
                return
            if self._is_reused(sequence):
                self._lanes, self._predecessor = None, None
            elif self._lanes is not None or not is_last:
                report.blame(f"segment {sequence}: its head is not valid")
                self._lanes, self._predecessor = None, None
            return
        report.segments += 1
        end = self._geometry.segment_end(sequence)
        before = self._predecessor
        expected = Expectation(
            self._superblock.uuid,
            self._geometry.segment_address(sequence),
            head.header.lsn if before is None else before.lsn + 1,
            before.header_crc if before is not None else None,
            before.writer_epoch if before is not None else 0,
            end,
            self._geometry.block_size,
        )
        window = Window(end)
        while expected.address < end:
            if following is not None and expected.lsn == following.header.lsn and following.left_out.start == sequence + 1:
                return  # the rest was left to late writes of a former writer
            expected = expected._replace(writer_epoch_min=max(expected.writer_epoch_min, self._superblock.epoch_min(expected.lsn)))
            found = carry_out(self._device, next_frame(window, expected))
            for _ in range(READS_MAX - 1):
                if isinstance(found, list):
                    window = Window(end)
                    found = carry_out(self._device, next_frame(window, expected))
            if isinstance(found, list):
                if self._is_reused(sequence):
                    self._lanes, self._predecessor = None, None
                    return
                if not is_last:
                    report.blame(f"LSN {expected.lsn} at byte {expected.address}: not valid, rules broken: {found}")
                    self._lanes, self._predecessor = None, None
                    return
                report.end = f"LSN {expected.lsn} at byte {expected.address}: no frame (rules {found}), the log ends before it"
                return
            header, payload = found
            self._frame(header, payload)
            self._predecessor = header
            expected = expected._replace(
                address=header.address + occupied(header, expected.block_size),
                lsn=header.lsn + 1,
                predecessor_crc=header.header_crc,
                writer_epoch_min=header.writer_epoch,
            )

    def _following(self, sequence: int) -> Head | None:
        """The next head that is there."""
        index = bisect_right(self._order, sequence)
        return self._heads[self._order[index]] if index < len(self._order) else None

    def _frame(self, header: FrameHeader, payload: memoryview) -> None:
        report = self._report
        report.first_lsn = report.first_lsn or header.lsn
        report.last_lsn = header.lsn
        report.frames += 1
        try:
            if header.kind == FrameKind.DATA:
                self._data(header, payload)
            elif header.kind == FrameKind.SEGMENT_HEAD:
                self._table(header, payload)
            elif header.kind == FrameKind.LANES:
                self._changed(header, payload)
        except (CorruptionError, FormatError, ValueError) as error:
            report.blame(f"LSN {header.lsn}: {error}")

    def _table(self, header: FrameHeader, payload: memoryview) -> None:
        before, self._lanes = self._lanes, None
        _, rows = decode_rows(payload)
        table = {row.id: row for row in rows}
        if before is not None and table != before:
            wrong = [row.name for row in rows if before.get(row.id) != row]
            self._report.blame(f"LSN {header.lsn}: I10: the lane table is not what the frames before it lead to (lanes {wrong[:5]!r})")
        self._lanes = table

    def _changed(self, header: FrameHeader, payload: memoryview) -> None:
        if self._lanes is None:
            return  # its segment's head is no lane table, and blamed
        _, rows = decode_rows(payload)
        for row in rows:
            old = self._lanes.get(row.id)
            if old is not None and (old._replace(lost=row.lost).counts != row.counts or row.lost < old.lost or old.name != row.name):
                self._report.blame(f"LSN {header.lsn}: I10: lane {row.name!r} changed its counters without data")
            self._report.lost += row.lost - (old.lost if old is not None else 0)
        apply(self._lanes, header, payload)

    def _data(self, header: FrameHeader, payload: memoryview) -> None:
        report, lanes = self._report, self._lanes
        if lanes is None:
            return  # its segment's head is no lane table, and blamed
        row = lanes.get(header.lane_id)
        if row is None:
            report.blame(f"LSN {header.lsn}: I2: lane {header.lane_id} is not in the table")
            return
        name = row.name
        if header.from_ != row.position:
            report.blame(f"LSN {header.lsn}: I2: lane {name!r} stands at {row.position}, the frame begins after {header.from_}")
        if header.to <= header.from_:
            report.blame(f"LSN {header.lsn}: I3: lane {name!r}: from {header.from_} to {header.to}")
        if header.lane_epoch < row.epoch:
            report.blame(f"LSN {header.lsn}: I4: lane {name!r}: epoch {header.lane_epoch} after {row.epoch}")
        lanes[row.id] = row.after(header)
        report.entries += header.entry_count
        report.committed += header.committed_count
        report.filtered += header.filtered_count
        report.dead_lettered += header.dead_count
        report.lost += header.lost_count
        report.records += header.record_count
        check_records(payload, header.record_count)
        records = unpack_records(payload)
        dead = sum(kind == RecordKind.DEAD_LETTER for _, _, kind, _ in records)
        positions = {(ms, seq) for ms, seq, _, _ in records}
        if records and not (header.from_ < (records[0][0], records[0][1]) and (records[-1][0], records[-1][1]) <= header.to):
            report.blame(f"LSN {header.lsn}: I3: lane {name!r}: records outside of {header.from_}..{header.to}")
        if dead != header.dead_count or len(positions) != header.committed_count + header.dead_count:
            report.blame(
                f"LSN {header.lsn}: I10: lane {name!r}: {len(positions)} entries and {dead} dead letters are here; "
                f"the header counts {header.committed_count} and {header.dead_count}"
            )

    def _conserved(self, row: LaneRow) -> None:
        if row.entries != row.committed + row.dead + row.filtered:
            self._report.blame(
                f"I10: lane {row.name!r}: {row.entries} entries read, {row.committed} committed + {row.dead} dead + {row.filtered} filtered"
            )


def _row_dict(row: LaneRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "name": row.name.decode("utf-8", "backslashreplace"),
        "position": str(row.position),
        "epoch": row.epoch,
        "entries": row.entries,
        "committed": row.committed,
        "dead_lettered": row.dead,
        "filtered": row.filtered,
        "lost": row.lost,
        "frames": row.frames,
        "halted": row.is_halted,
    }


def inspect(path: str) -> dict[str, Any]:
    """What a log is and where it ends. Raises ForeignDeviceError, GeometryMismatchError, DeviceError; damage is told, not raised."""
    with Device.open(path) as device:
        superblock = read_superblock(device)
        leases = read_leases(device, superblock.uuid)
        g = superblock.geometry
        result: dict[str, Any] = {
            "path": path,
            "uuid": str(uuid_module.UUID(bytes=superblock.uuid)),
            "label": superblock.label,
            "created_ns": superblock.created_ns,
            "size": g.size,
            "block_size": g.block_size,
            "segment_size": g.segment_size,
            "segment_count": g.segment_count,
            "writer_epoch": superblock.writer_epoch,
            "is_block_device": device.is_block,
            "volatile_cache": has_volatile_cache(path),
            "leases": [_lease_dict(lease) for lease in leases if lease is not None],
        }
        try:
            log = carry_out(device, recover(superblock, durable_evidence(leases)))
        except CorruptionError as error:
            return {**result, "damaged": str(error)}
        oldest = max(0, log.sequence - g.segment_count + 1)
        return {
            **result,
            "damaged": "",
            "segment_sequence": log.sequence,
            "oldest_segment_sequence": oldest,
            "next_lsn": log.next_lsn,
            "next_address": log.next_address,
            "end": log.reason,
            "lanes": [_row_dict(row) for row in log.lanes.values()],
        }


def _lease_dict(lease: Lease) -> dict[str, Any]:
    return {
        "slot": lease.slot,
        "node": str(uuid_module.UUID(bytes=lease.node_uuid)),
        "contact": lease.contact,
        "state": lease.state.name.lower(),
        "writer_epoch": lease.writer_epoch,
        "counter": lease.counter,
        "durable_lsn": lease.durable_lsn,
        "label_ns": lease.label_ns,
    }

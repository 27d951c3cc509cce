"""What must be true of a life in the whole-system simulation, at each moment and at its end."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from hdad.errors import CorruptionError, LappedError
from hdad.log.appender import LogAppender
from hdad.log.inspect import verify_device
from hdad.log.lanes import LaneRow
from hdad.log.logrecord import LogRecord
from hdad.record import ORIGIN, Position, RecordKind
from hdad.worker.loop import WorkerLoop
from tests.sim.disk import Disk
from tests.sim.log import Violation, reader_on, recovered
from tests.sim.redis import Entry, Stream
from tests.sim.traffic import expected

if TYPE_CHECKING:
    from tests.sim.life import Life

NOTICES_MAX: Final = 64
Found = tuple[Position, RecordKind, bytes]


class Oracle:
    """Keeps book of what happened to streams, and compares.

    ``dropped``: what Redis lost before hdad read it, or after. ``broken``: streams that went backwards or were deleted. ``accepted``: where
    operators let halted lanes go on.
    ``rotten``: a frame that is known to be durable is damaged, and recovery has not spoken of it yet. ``is_damaged``: it has, and the
    operator accepted the loss.
    """

    def __init__(self, life: Life) -> None:
        self._life = life
        self.rotten = False
        self.is_damaged = False
        self.dropped: dict[bytes, set[Position]] = {}
        self.broken: dict[bytes, int] = {}
        self.acknowledged: dict[bytes, Position] = {}
        self.accepted: dict[bytes, list[Position]] = {}
        self._before_damage: dict[bytes, Position] = {}  # what was durable; workers of other hosts may have heard so, and not shown it yet
        self._looked_at: tuple[Disk, int] | None = None  # when ``_rows`` were what a writer would find there
        self._rows: dict[bytes, Position] = {}

    # -- at each moment ---------------------------------------------------------------------------------------------------------------

    def shown(self, name: bytes, position: Position) -> None:
        """I1: what is settled on the disk alone must know it, whatever becomes of what is in flight."""
        known = max(self.acknowledged.get(name, ORIGIN), self._before_damage.get(name, ORIGIN))
        if name in self.broken or position <= known or self.rotten:
            return
        disk = self._life.disk
        if self._looked_at != (disk, disk.settled_count):
            self._rows = {row.name: row.position for row in recovered(disk.settled()).lanes.values()}
            self._looked_at = disk, disk.settled_count
        if self._rows.get(name, ORIGIN) < position:
            raise Violation(f"I1: {name.decode()} is shown as durable up to {position}; the disk has it up to {self._rows.get(name)}")
        self.acknowledged[name] = position

    def trimmed(self, name: bytes, below: Position) -> None:
        """I1: whatever hdad trims is in the log, entry by entry, also when the stream went backwards."""
        stream = self._life.server.streams[name]
        taken = [entry for entry in stream.entries if entry[0] < below]
        if not taken:
            return
        if stream.other is not None and not (taken[-1][0] <= stream.other and (stream.pending is None or below <= stream.pending)):
            raise Violation(f"{name.decode()} is trimmed below {below}; another group has had it up to {stream.other}, "
                            f"and has not acknowledged {stream.pending}")  # fmt: skip
        self.shown(name, taken[-1][0])
        if name in self.broken:
            disk = self._life.disk.copy()
            LogAppender.take_over(disk)  # type: ignore[arg-type]  # readers believe leases; this one says what is there
            with reader_on(disk) as reader:
                found = {_found(record) for record in reader.records() if record.lane.encode() == name}
            skipped = max(self.accepted.get(name, []), default=ORIGIN)  # up to there, by the operator's word
            unskipped = [entry for entry in taken if entry[0] > skipped]
            wrong = [entry for entry in unskipped if any((entry[0], *record) not in found for record in self._expected(name, entry))]
            if wrong and recovered(disk).sequence < self._life.geometry.segment_count:
                raise Violation(f"I1: {name.decode()}: {wrong[:3]} are trimmed, and are not in the log")

    def _expected(self, name: bytes, entry: Entry) -> list[tuple[RecordKind, bytes]]:
        return expected(name.decode(), entry, bool(self._life.routes))

    def rots(self, rows: Iterable[LaneRow]) -> None:
        """A durable frame of the log with these rows is damaged now."""
        self.rotten = True
        self._before_damage = {row.name: row.position for row in rows}

    def refused(self, error: CorruptionError) -> None:
        """I5: a writer that refuses to start has a reason."""
        if not self.rotten:
            raise Violation(f"I5: nothing is damaged, and the writer refuses to start: {error}")

    def recovered(self, is_accepted: bool) -> None:
        """I5: a writer that starts has not passed over damage without a word."""
        if is_accepted:
            self.is_damaged = True
            self.acknowledged.clear()
        elif self.rotten:
            raise Violation("I5: a frame that a lease called durable is damaged, and the writer starts as if nothing had happened")

    def bounded(self) -> None:
        """I7: whatever happens, no queue grows beyond its limit."""
        machine = self._life.machine
        writer = machine.writer
        if writer is not None:
            lanes = len(writer._log.lanes)
            queues = {"outbox": max(len(member.outbox) for member in writer._members.members), "assigned": len(writer._members._assigned)}
            for what, count in queues.items():
                if count > 2 * lanes * (1 if what == "outbox" else 64) + 2:
                    raise Violation(f"I7: {what} holds {count} messages of {lanes} lanes")
        for process in (process for machine in self._life.machines for process in machine.processes):
            if process is not None and isinstance(process.loop, WorkerLoop) and len(process.loop.notices) > NOTICES_MAX:
                raise Violation(f"I7: {len(process.loop.notices)} notices wait for room")

    def is_shown(self, name: bytes, stream: Stream, row: LaneRow) -> bool:
        """Redis' own tools show the truth: the group stands where the log does, and lags by nothing."""
        position, count = stream.group
        is_countable = name not in self.broken and not self.is_damaged and position == stream.last
        return position >= row.position and (not is_countable or count == len(stream.history))

    def standing_alarms(self) -> list[str]:
        """Of which nobody can see any more why: all but those of streams that are gone."""
        streams = self._life.server.streams
        alarms = [key for machine in self._life.present for key in machine.supervisor.alarms.all()]
        return [key for key in alarms if not (key.startswith("lane:") and key.removeprefix("lane:").encode() not in streams)]

    # -- at the end -------------------------------------------------------------------------------------------------------------------

    def judge(self) -> None:
        """The log holds what it should, and nothing else."""
        disk = self._life.disk
        report = verify_device(disk)  # type: ignore[arg-type]
        if not report.ok and not self.is_damaged:
            raise Violation(f"verify: {report.violations}")
        log = recovered(disk)
        rows = {row.name: row for row in log.lanes.values()}
        try:
            seen = self._read(disk, rows)
        except LappedError as lapped:  # whether the next segment to go is damaged, or going, nobody can tell
            if not self.is_damaged:
                raise
            seen = self._read(disk, rows, lapped.oldest_lsn)
        is_lapped = log.sequence >= self._life.geometry.segment_count
        for name, stream in self._life.server.streams.items():
            if self.is_damaged:
                self._judge_damaged(name, stream.history, seen[name])
            elif name in self.broken:
                self._judge_broken(name, stream, rows[name], seen[name], is_lapped)
            else:
                self._judge_counts(name, stream, rows[name])
                self._judge_records(name, stream.history, seen[name], is_lapped)

    def _read(self, disk: Disk, rows: Iterable[bytes], start: int | None = None) -> dict[bytes, list[Found]]:
        """What a reader is shown, by lane."""
        seen: dict[bytes, list[Found]] = {name: [] for name in rows}
        with reader_on(disk, "skip" if self.is_damaged else "raise", start) as reader:
            for record in reader.records():
                if record.lane or not self.is_damaged:  # the frame that named the lane may be what was damaged
                    seen[record.lane.encode()].append(_found(record))
        return seen

    def _judge_counts(self, name: bytes, stream: Stream, row: LaneRow) -> None:
        """I10: each entry ever added was before hdad's time, or read, or is counted as lost; nothing is counted that was not dropped."""
        dropped = self.dropped.get(name, set())
        sums = f"{row.before} before hdad came + {row.entries} read + {row.lost} lost, {len(stream.history)} added, {len(dropped)} dropped"
        is_exact = row.position == stream.last or not stream.entries
        if row.is_halted or row.before + row.lost > len(dropped) or (is_exact and row.ordinal != len(stream.history)):
            raise Violation(f"I10: {name.decode()} at {row.position} of {stream.last}: {sums}")

    def _judge_records(self, name: bytes, history: list[Entry], found: list[Found], is_lapped: bool) -> None:
        """I2, I3: the records of the entries that were read, in their order, once."""
        dropped = self.dropped.get(name, set())
        first = found[0][0] if found else ORIGIN
        present = {at for at, _, _ in found}
        wanted = [
            (entry[0], *record)
            for entry in history
            if entry[0] in present or entry[0] not in dropped
            for record in self._expected(name, entry)
            if not is_lapped or entry[0] >= first
        ]
        if is_lapped and not found:
            return
        if found != wanted:
            at = next((index for index, (one, two) in enumerate(zip(found, wanted, strict=False)) if one != two), -1)
            at = at if at >= 0 else min(len(found), len(wanted))
            sums = f"{len(found)} records, {len(wanted)} expected"
            raise Violation(f"{name.decode()}: {sums}; from {at} on: {_short(found[at:])}, not {_short(wanted[at:])}")

    def _judge_damaged(self, name: bytes, history: list[Entry], found: list[Found]) -> None:
        """After accepted damage: what is there is right, in order and once."""
        ever = {(entry[0], *record) for entry in history for record in self._expected(name, entry)}
        if strange := [record for record in found if record not in ever]:
            raise Violation(f"{name.decode()}: {_short(strange)} never were in the stream")
        for before, after in pairwise(found):
            if after[0] < before[0] or (after[0] == before[0] and after[1] is not RecordKind.VALUE):
                raise Violation(f"I2, I3: {name.decode()}: {_short([before, after])} follow each other")

    def _judge_broken(self, name: bytes, stream: Stream, row: LaneRow, found: list[Found], is_lapped: bool) -> None:
        """A stream that went backwards: each record is an entry that once was; order breaks only where an operator accepted; all that
        is left after the last place he named is in the log."""
        accepted = self.accepted.get(name, [])
        ever = {(entry[0], *record) for entry in stream.ever for record in self._expected(name, entry)}
        strange = [record for record in found if record not in ever]
        if strange:
            raise Violation(f"{name.decode()}: {_short(strange)} never were in the stream")
        breaks = sum(after[0] < before[0] for before, after in pairwise(found))
        if breaks > len(accepted):
            raise Violation(f"I3: {name.decode()}: order breaks {breaks} times, {len(accepted)} times an operator accepted")
        start = accepted[-1] if accepted else ORIGIN
        present = set(found)
        missing = [
            str(entry[0])
            for entry in stream.entries
            if entry[0] > start and any((entry[0], *record) not in present for record in self._expected(name, entry))
        ]
        if missing and not is_lapped:
            raise Violation(f"I2: {name.decode()}, accepted from {start}, at {row.position}: {missing[:5]} are missing")


def _found(record: LogRecord) -> Found:
    return record.position, record.kind, b"" if record.kind is RecordKind.DEAD_LETTER else record.body


def _short(records: list[Found]) -> str:
    return ", ".join(f"{at} {kind.name} {body[:12]!r}" for at, kind, body in records[:2]) or "nothing"

"""Every crash point of the log: small workloads on a simulated disk, stopped before each write returns, in each state the disk may be in.

    python -m tests.sim.crash [--points N] [--seed S] [--only] [--jobs J] [--json]

A workload is a seed: format, takeovers, new lanes, frames of all sizes, segment rolls, wrap-around, leases, halts, crashes in the middle,
with several writes in flight that return in any order; and takeovers by another host while the former writer's writes are still on their
way, each sector of which lands sooner or later, or never. A crash point is a moment and the subset of sectors in flight that landed. For
each: recovery by the real code, and the oracle:

- it ends neither damaged nor foreign (a crash is never taken for damage), at an LSN that is not before the acknowledged one;
- the last frame is the very frame that this lineage has at that LSN: header CRCs are a chain, so all before it are too. So nothing is
  missing, nothing is twice, there is no gap, the order is right, and nothing of an older epoch came back to life;
- every lane stands where the lineage says;
- now and then: verify finds nothing, and a new writer takes over, is itself interrupted at each of its writes, and goes on.

A violation prints the line that replays it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from crc32c import crc32c

import hdad.log.appender
from hdad._core import encode_entry, pack_values
from hdad.errors import ForeignDeviceError, GeometryMismatchError, HdadError, LappedError
from hdad.limits import KIB
from hdad.log.appender import AppendResult, Gather, LogAppender
from hdad.log.create import lay_out
from hdad.log.device import aligned_buffer
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind, build_frame_header, decode_header, frame_size, is_of_log
from hdad.log.geometry import SEGMENTS_OFFSET, UNIT, Geometry
from hdad.log.inspect import verify_device
from hdad.log.lanes import LaneRow
from hdad.log.recovery import RecoveredLog
from hdad.log.superblock import Superblock
from hdad.record import ORIGIN, Position
from tests.sim.disk import Disk, Flight
from tests.sim.log import UUID, Violation, read_all, reader_on, recovered, small_segments

INFLIGHT_MAX: Final = 3
NESTED_MAX: Final = 2


Standing = dict[int, tuple[Position, int, bool]]  # lane id: position, entries, halted


@dataclass
class Lineage:
    """What the log is, frame by frame, by the word of whoever drove the appender. Index 0 is LSN 1."""

    crcs: list[int] = field(default_factory=list)
    standings: list[Standing] = field(default_factory=list)
    acked_lsn: int = 0
    is_formatted: bool = False

    def copy(self) -> Lineage:
        return Lineage(list(self.crcs), list(self.standings), self.acked_lsn, self.is_formatted)


class Recording(LogAppender):
    """The real appender; notes the header CRC of each frame it adds."""

    lineage: Lineage
    is_taking_over = True

    def _add(self, view: memoryview, size: int, is_segment_start: bool = False, occupies: int = 0) -> None:
        super()._add(view, size, is_segment_start, occupies)
        self.lineage.crcs.append(self._predecessor_crc)
        if self.is_taking_over:  # frames of its own, that change no lane
            self.lineage.standings.append(self.lineage.standings[-1])


class Workload:
    """One seed's life. ``only``: the crash point to look at alone, for replay."""

    def __init__(self, seed: int, *, only: int | None = None) -> None:
        rng = random.Random(seed)
        self.seed, self.only = seed, only
        self.block_size = rng.choice((512, 512, 512, 4096))
        segment = rng.choice((8, 16)) * KIB if self.block_size == 512 else 64 * KIB
        self.geometry = Geometry(SEGMENTS_OFFSET + rng.choice((3, 4, 5)) * segment + 2 * UNIT, self.block_size, segment, 0)
        count = (self.geometry.size // UNIT * UNIT - SEGMENTS_OFFSET - 2 * UNIT) // segment
        self.geometry = Geometry(self.geometry.size, self.block_size, segment, count)
        self.on_full = rng.choice(("overwrite", "overwrite", "overwrite", "block"))
        self.retain_s = rng.choice((0, 0, 0.05))
        self.name_size = rng.choice((8, 8, 90, 250))  # of lanes: their table, and with it each head, takes a block or many
        self.now_ns = 1_700_000_000 * 1_000_000_000
        self.actions = rng.randint(100, 400)
        self.points = 0
        self.verified = 0
        self.nested = 0
        self.rng = rng
        self.events: dict[str, int] = {}

    def run(self) -> None:
        """All of it. Raises Violation."""
        disk = Disk(self.geometry.size, block_size=self.block_size)
        lineage = Lineage()
        life = Life(self, disk, lineage, depth=0)
        life.format()
        life.live(self.actions)

    def count(self, event: str) -> None:
        self.events[event] = self.events.get(event, 0) + 1

    def clock(self) -> int:
        """Wall clock: each look at it is a millisecond."""
        self.now_ns += 1_000_000
        return self.now_ns


class Life:
    """One disk and its lineage, from here on. ``depth``: how many crashes deep this is nested."""

    def __init__(self, workload: Workload, disk: Disk, lineage: Lineage, depth: int) -> None:
        self.workload, self.disk, self.lineage, self.depth = workload, disk, lineage, depth
        self.rng = random.Random(workload.rng.getrandbits(64))
        self.appender: Recording | None = None
        self.flights: list[tuple[Flight, Gather | None]] = []
        self.is_full = False
        self.matched = lineage
        self.formers: list[Lineage] = []  # while a writer takes over: what the log still may be
        self.late: list[tuple[int, bytes, int]] = []  # former writers' sectors on their way; their segment
        disk.on_crash_point = self.crash_point

    # -- crash points --------------------------------------------------------------------------------------------------------------------

    def crash_point(self) -> None:
        workload = self.workload
        self.land()
        deep = self.rng.random() < 0.2 and self.depth < NESTED_MAX
        chosen = self.rng.randrange(64)
        for number, state in enumerate(self.disk.crash_states(self.rng)):
            workload.points += 1
            verified = self.rng.random() < 0.002
            if workload.only is None or workload.points == workload.only:
                self.judge(state, verified)
            if deep and number == chosen and self.lineage.is_formatted:
                self.resume(state.copy())

    def judge(self, state: Disk, verified: bool) -> RecoveredLog | None:
        """The oracle. None: the log was not formatted yet, and is not taken for one."""
        try:
            log = recovered(state)
        except ForeignDeviceError as error:
            if not self.lineage.is_formatted:
                return None
            raise self.violation(f"a formatted log is not recognised: {error}") from error
        except HdadError as error:
            raise self.violation(f"a crash is taken for damage: {error}") from error
        lsn = log.next_lsn - 1
        if lsn < self.lineage.acked_lsn:
            raise self.violation(f"I1: LSN {self.lineage.acked_lsn} was acknowledged, recovery ends at {lsn}")
        for lineage in (self.lineage, *self.formers):
            if lsn <= len(lineage.crcs) and log.predecessor_crc == lineage.crcs[lsn - 1]:
                break
        else:
            raise self.violation(f"I4: LSN {lsn} is not a frame of this lineage, which ends at {len(self.lineage.crcs)}")
        standing = {row.id: (row.position, row.entries, row.is_halted) for row in log.lanes.values()}
        if standing != lineage.standings[lsn - 1]:
            raise self.violation(f"I2: at LSN {lsn} lanes stand at {standing}, they should at {lineage.standings[lsn - 1]}")
        self.matched = lineage
        if verified and lineage.is_formatted:
            self.workload.verified += 1
            report = verify_device(state)  # type: ignore[arg-type]
            if not report.ok or report.last_lsn != lsn:
                raise self.violation(f"verify: {report.violations} up to LSN {report.last_lsn}, recovery ends at {lsn}")
            self.read(state, lsn)
        return log

    def read(self, state: Disk, lsn: int) -> None:
        """A reader sees frames without a gap, none that is not in the log, and calls nothing damaged."""
        try:
            with reader_on(state) as reader:
                seen = [header.lsn for header, _ in read_all(reader)]
        except LappedError as error:
            if error.oldest_lsn > lsn + 1:
                raise self.violation(f"reader: lapped up to LSN {error.oldest_lsn}, the log ends at {lsn}") from error
            return
        except HdadError as error:
            raise self.violation(f"reader: {error}") from error
        if seen and (seen != list(range(seen[0], seen[-1] + 1)) or seen[-1] > lsn):
            raise self.violation(f"reader: LSNs {seen}, the log ends at {lsn}")

    def resume(self, disk: Disk) -> None:
        """Go on from a crash state on a disk of its own: take over, being interrupted at each write, and work a little."""
        self.workload.nested += 1
        life = Life(self.workload, disk, self.lineage.copy(), self.depth + 1)
        life.formers = list(self.formers)
        life.late = list(self.late)
        life.live(self.rng.randint(2, 8))

    def violation(self, text: str) -> Violation:
        return Violation(
            f"seed {self.workload.seed} point {self.workload.points}: {text}\n"
            f"replay: python -m tests.sim.crash --seed {self.workload.seed} --point {self.workload.points}"
        )

    # -- what happens --------------------------------------------------------------------------------------------------------------------

    def format(self) -> None:
        superblock = Superblock(UUID, 1, 0, self.workload.geometry, 0)
        probe = Disk(self.disk.size, block_size=self.disk.logical_block_size)
        lay_out(probe, superblock)  # type: ignore[arg-type]
        self.lineage.crcs = [int.from_bytes(probe.image[SEGMENTS_OFFSET : SEGMENTS_OFFSET + 4], "little")]
        self.lineage.standings = [{}]
        lay_out(self.disk, superblock)  # type: ignore[arg-type]
        self.lineage.is_formatted = True
        self.lineage.acked_lsn = 1

    def live(self, actions: int, is_quiet: bool = False) -> None:
        """A writer takes over, and things happen. ``is_quiet``: no crash among them, and the end stays open."""
        self.take_over()
        self.live_on(actions, is_quiet=is_quiet)
        if not is_quiet and self.rng.random() < 0.5:
            self.end_cleanly()

    def live_on(self, actions: int, is_quiet: bool = True) -> None:
        choices = (  # weights: several writes in flight most of the time
            [self.append] * 24 + [self.submit] * 12 + [self.settle] * 9 + [self.lease] * 2 + [self.new_lane, self.halt, self.wait]
        ) + ([] if is_quiet else [self.crash, self.fail_over])
        for _ in range(actions):
            self.rng.choice(choices)()

    def take_over(self, is_cautious: bool = False) -> None:
        """A writer opens the log: it recovers, and every write it makes is a crash point."""
        log = self.judge(self.disk, verified=False)
        assert log is not None
        lsn = log.next_lsn - 1
        self.formers = [self.lineage.copy(), *self.formers]
        lineage = self.lineage = self.matched.copy()
        del lineage.crcs[lsn:], lineage.standings[lsn:]  # what was behind is torn, and must never come back once this writer is there
        self._refuse_resized()
        kind = type("Recording", (Recording,), {"lineage": lineage})  # it adds frames before there is an instance to tell
        appender: Recording = kind.take_over(  # type: ignore[attr-defined]
            self.disk,  # type: ignore[arg-type]
            contact="sim", on_full=self.workload.on_full, retain_min_s=self.workload.retain_s,
            write_bytes_max=4 * self.workload.block_size, is_cautious=is_cautious,
        )  # fmt: skip
        appender.is_taking_over = False
        self.appender, self.flights, self.is_full = appender, [], False
        if appender.durable_lsn != len(lineage.crcs):
            raise self.violation(f"a new writer calls {appender.durable_lsn} durable, and has added up to {len(lineage.crcs)}")
        lineage.acked_lsn = appender.durable_lsn
        self.formers = []
        self.workload.count("takeover")

    def _refuse_resized(self) -> None:
        """A device that has become larger or smaller, or whose blocks have, is not written to."""
        image, block = self.disk.image, self.disk.logical_block_size
        for resized in (
            Disk(self.disk.size + UNIT, block_size=block, image=image + bytes(UNIT)),
            Disk(self.disk.size - UNIT, block_size=block, image=image[:-UNIT]),
            Disk(self.disk.size, block_size=8 * block, image=image),
        ):
            try:
                recovered(resized)
            except (GeometryMismatchError, ForeignDeviceError):
                continue
            raise self.violation(f"a device of {resized.size} bytes in blocks of {resized.logical_block_size} was not refused")

    def _note(self, standing: Standing) -> None:
        """Every frame that was added stands for the lanes before it, the last one for ``standing``."""
        lineage = self.lineage
        before = lineage.standings[-1]
        missing = len(lineage.crcs) - len(lineage.standings)
        if missing > 1:
            self.workload.count("roll")
        lineage.standings.extend([before] * (missing - 1) + [standing])

    def _rolled_in_vain(self) -> None:
        """FULL: nothing may have been added."""
        if len(self.lineage.crcs) != len(self.lineage.standings):
            raise self.violation("a full log took a frame")
        self.is_full = True
        self.workload.count("full")

    def append(self) -> None:
        appender = self.appender
        assert appender is not None
        standing = self.lineage.standings[-1]
        lanes = [lane for lane, (_, _, halted) in standing.items() if not halted]
        if not lanes or self.is_full:
            return
        lane = self.rng.choice(lanes)
        position, entries, halted = standing[lane]
        count = self.rng.randint(1, 3)
        text = b"x" * self.rng.choice((0, 10, 300, appender.frame_size_max // 3 - 200))
        first = position.ms + 1
        records = [(first + index, 0, 0, encode_entry([(b"t", text)])) for index in range(count)]
        size = sum(24 + len(body) for _, _, _, body in records)
        view = aligned_buffer(frame_size(size, appender.block_size))
        payload = view[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + size]
        pack_values(payload, records)
        to = Position(first + count - 1, 0)
        build_frame_header(
            view, kind=FrameKind.DATA, lane_id=lane, lane_epoch=1, from_=position, to=to, record_count=count, entry_count=count,
            stored_size=size, payload_crc=crc32c(payload), label_ns=1, lost_count=0, filtered_count=0, dead_count=0, worker=0,
        )  # fmt: skip
        if appender.append(view, len(view), decode_header(view)) is AppendResult.FULL:
            self._rolled_in_vain()
            return
        self._note({**standing, lane: (to, entries + count, halted)})

    def new_lane(self) -> None:
        standing = self.lineage.standings[-1]
        if len(standing) < 12:
            lane = max(standing, default=0) + 1
            row = LaneRow.new(lane, (b"lane-%d-" % lane).ljust(self.workload.name_size, b"x"), ORIGIN, 0)
            self._rows(row, {**standing, lane: (ORIGIN, 0, False)})
            self.workload.count("new lane")

    def halt(self) -> None:
        """An operator's or a worker's word about a lane, in a LANES frame."""
        assert self.appender is not None
        standing = self.lineage.standings[-1]
        if standing:
            lane = self.rng.choice(list(standing))
            old = self.appender.lanes[lane]
            position, entries, halted = standing[lane]
            row = LaneRow(
                lane, old.name, old.epoch, position, *old.counts, before=old.before, is_halted=not halted
            )
            self._rows(row, {**standing, lane: (position, entries, not halted)})

    def _rows(self, row: LaneRow, standing: Standing) -> None:
        assert self.appender is not None
        if self.is_full:
            return
        if not self.appender.has_room_for_lanes([row]):
            return
        if self.appender.lanes_frame([row]) is AppendResult.FULL:
            self._rolled_in_vain()
            return
        self._note(standing)

    def submit(self) -> None:
        assert self.appender is not None
        if len(self.flights) < INFLIGHT_MAX and (gather := self.appender.take()) is not None:
            self.flights.append((self.disk.begin(gather.address, gather.buffers), gather))

    def lease(self) -> None:
        assert self.appender is not None
        if all(gather is not None for _, gather in self.flights):
            address, buffer = self.appender.next_lease()
            self.flights.append((self.disk.begin(address, [bytes(buffer)]), None))

    def settle(self) -> None:
        """Any write in flight returns; with it, LSNs become durable, and are acknowledged."""
        assert self.appender is not None
        if self.flights:
            flight, gather = self.flights.pop(self.rng.randrange(len(self.flights)))
            self.disk.settle(flight)
            if gather is not None:
                self.appender.completed(gather)
                self.lineage.acked_lsn = self.appender.durable_lsn

    def crash(self) -> None:
        """Power fails for good: one state of the disk stays, and the next writer comes."""
        survivor = self.disk.crash(self.rng)
        survivor.on_crash_point = self.crash_point
        self.disk = survivor
        self.take_over()
        self.workload.count("crash")

    def fail_over(self) -> None:
        """Another host takes over, and the former writer's writes are still on their way."""
        for flight, gather in self.flights:
            self.disk.flights.remove(flight)
            if gather is not None:
                self.late += ((sector, content, self._sequence_at(sector)) for sector, content in flight.sectors.items())
        self.rng.shuffle(self.late)
        self.land()
        self.take_over(is_cautious=True)
        self.workload.count("failover")

    def land(self) -> None:
        """Some of what is late gets there, or never will."""
        if self.late and self.rng.random() < 0.2:
            for _ in range(self.rng.randint(1, len(self.late))):
                sector, content, sequence = self.late.pop()
                if self.rng.random() < 0.8 and self._sequence_at(sector) <= sequence:  # the promise ends when the circle has come around
                    self.disk.image[sector : sector + len(content)] = content
                    self.workload.count("late sector")

    def _sequence_at(self, sector: int) -> int:
        """Of the segment head that is there now, before ``sector``; -1: none is."""
        geometry = self.workload.geometry
        index = (sector - SEGMENTS_OFFSET) // geometry.segment_size
        address = geometry.segment_address(index)
        header = is_of_log(self.disk.read(address, FRAME_HEADER_SIZE), UUID, address)
        return header.lane_epoch if header is not None and header.kind == FrameKind.SEGMENT_HEAD else -1

    def wait(self) -> None:
        """Time passes; a full log whose oldest segment may be reused after a while takes frames again."""
        self.workload.now_ns += int(self.workload.retain_s * 2e9)
        self.is_full &= not self.workload.retain_s

    def write_all(self) -> None:
        """Whatever was added is submitted and returns."""
        while True:
            self.submit()
            if not self.flights:
                return
            self.settle()

    def end_cleanly(self) -> None:
        """Everything is written; reopening changes nothing."""
        self.write_all()
        if self.lineage.acked_lsn != len(self.lineage.crcs):
            raise self.violation(f"all is written, and LSN {self.lineage.acked_lsn} of {len(self.lineage.crcs)} is durable")
        self.lease()
        self.settle()
        self.judge(self.disk, verified=True)
        before = recovered(self.disk)
        self.take_over()
        after = recovered(self.disk)
        if before.lanes != after.lanes or after.next_lsn - before.next_lsn > 3:
            raise self.violation("reopening changed the log")


# -- many of them ------------------------------------------------------------------------------------------------------------------------


@dataclass
class Total:
    """Sums over workloads."""

    points: int = 0
    seeds: int = 0
    verified: int = 0
    nested: int = 0
    events: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def add(self, workload: Workload, violation: str | None) -> None:
        self.points += workload.points
        self.seeds += 1
        self.verified += workload.verified
        self.nested += workload.nested
        for event, count in workload.events.items():
            self.events[event] = self.events.get(event, 0) + count
        if violation is not None:
            self.violations.append(violation)


def run_seed(seed: int, only: int | None = None) -> tuple[Workload, str | None]:
    """One workload; the violation's text, or None."""
    workload = Workload(seed, only=only)
    with small_segments(), clocked(workload):
        try:
            workload.run()
        except Violation as violation:
            return workload, str(violation)
    return workload, None


@contextmanager
def clocked(workload: Workload) -> Iterator[None]:
    """The appender looks at the workload's clock, so that a seed is repeated to the last byte."""
    before = hdad.log.appender.wall_ns
    hdad.log.appender.wall_ns = workload.clock
    try:
        yield
    finally:
        hdad.log.appender.wall_ns = before


def run(points: int, first_seed: int = 0, jobs: int | None = None) -> Total:
    """Workloads by ascending seed until ``points`` crash points were looked at, or one violates."""
    total = Total()
    jobs = jobs or os.cpu_count() or 1
    if jobs == 1:
        seed = first_seed
        while total.points < points and not total.violations:
            total.add(*run_seed(seed))
            seed += 1
        return total
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for workload, violation in pool.imap_unordered(_run_seed_alone, range(first_seed, first_seed + points)):
            total.add(workload, violation)
            if total.points >= points or total.violations:
                break
        pool.terminate()
    return total


def _run_seed_alone(seed: int) -> tuple[Workload, str | None]:
    workload, violation = run_seed(seed)
    workload.rng = random.Random()  # small on its way back
    return workload, violation


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, help="this workload alone")
    parser.add_argument("--point", type=int, help="with --seed: this crash point alone")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    began = time.monotonic()
    if options.seed is not None:
        total = Total()
        total.add(*run_seed(options.seed, options.point))
    else:
        total = run(options.points, options.first, options.jobs)
    seconds = time.monotonic() - began
    for violation in total.violations:
        print(violation, file=sys.stderr)
    if options.json:
        sums = {"crash_points": total.points, **total.__dict__, "violations": len(total.violations), "seconds": round(seconds, 1)}
        print(json.dumps({key: value for key, value in sums.items() if key != "points"}))
    else:
        events = ", ".join(f"{count:,} {event}s" for event, count in sorted(total.events.items()))
        print(
            f"crash points: {total.points:,} of {total.seeds:,} workloads ({events}), {total.nested:,} gone on from, "
            f"{total.verified:,} verified; {len(total.violations)} violations; {seconds:.0f} s"
        )
    return 1 if total.violations else 0


if __name__ == "__main__":
    sys.exit(main())

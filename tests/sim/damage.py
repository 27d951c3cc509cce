"""Every sector of a finished log, damaged in every way: I5's other side. Nothing acknowledged goes in silence.

    python -m tests.sim.damage [--seeds N] [--first S] [--seed S] [--jobs J] [--json]

For each sector in use and each fault (a bit flipped, zeros, another sector's content as after a misdirected write, what was there before as
after a lost write, unreadable, wrong bytes once), and for each frame whole (misdirected, lost): what recovery, verify and a reader say of
it, against the table in tests/sim/disk.py. Where the writer refuses, the operator accepts: a writer takes over, is interrupted at its
writes, and goes on, and all that was readable still is.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from hdad.errors import CorruptionError, DeviceError, HdadError
from hdad.log.appender import LogAppender
from hdad.log.format import FRAME_HEADER_SIZE, FrameHeader, FrameKind, is_of_log, occupied
from hdad.log.geometry import LEASE_COUNT, LEASES_OFFSET, UNIT
from hdad.log.inspect import verify_device
from hdad.log.opening import carry_out, durable_evidence, read_leases, read_superblock
from hdad.log.recovery import RecoveredLog, being_reused, recover
from hdad.log.superblock import SUPERBLOCK_SIZE
from tests.sim.crash import Life, Lineage, Workload, clocked
from tests.sim.disk import Disk
from tests.sim.log import UUID, Violation, read_all, reader_on, recovered, small_segments

WHOLE: Final = ("misdirected whole", "lost whole")  # all sectors of a frame, and not one of them
INTERRUPTED: Final = 0.05  # of the takeovers after accepted damage
FAULTS: Final = ("flip", "zero", "misdirected", "lost", "unreadable", "once", *WHOLE)


@dataclass
class Frame:
    """Where a frame of the finished log lies. ``size``: bytes that a CRC covers."""

    header: FrameHeader
    address: int
    size: int


@dataclass
class Verdicts:
    """What was said, by fault and zone."""

    faults: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


class Finished:
    """A log that was worked on, all of it durable; ``has_lease``: and a lease says so."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        workload = Workload(seed)
        self.geometry = workload.geometry
        with clocked(workload):
            life = self._lived(workload)
        self.disk = life.disk
        self.log = recovered(self.disk)
        superblock = read_superblock(self.disk)  # type: ignore[arg-type]
        self.lease_lsn = durable_evidence(read_leases(self.disk, superblock.uuid))  # type: ignore[arg-type]
        self.frames = list(self._frames())
        self.reused = {  # their damage and a torn write over them look the same
            self.geometry.segment_address(sequence) for sequence in being_reused(self.log, superblock) if sequence >= 0
        }
        self.read_lsns = self._read()

    def _lived(self, workload: Workload) -> Life:
        """A log that was worked on; what was there some time before its end is ``former``."""
        life = Life(workload, Disk(workload.geometry.size, block_size=workload.block_size), Lineage(), depth=0)
        life.disk.on_crash_point = None
        life.format()
        life.live(self.rng.randint(20, 300), is_quiet=True)
        while life.flights:
            life.settle()
        self.former = bytes(life.disk.image)
        life.live_on(self.rng.randint(10, 60))
        life.write_all()
        self.has_lease = self.rng.random() < 0.7
        if self.has_lease:
            life.lease()
            life.settle()
        return life

    def _frames(self) -> Iterator[Frame]:
        """All frames that are still in the log."""
        lsn = self.log.next_lsn
        for index in range(self.geometry.segment_count):
            address = self.geometry.segment_address(index)
            head = is_of_log(self.disk.read(address, FRAME_HEADER_SIZE), UUID, address)
            if head is None or head.kind != FrameKind.SEGMENT_HEAD:
                continue
            end, expected = address + self.geometry.segment_size, head.lsn
            while address < end:
                header = is_of_log(self.disk.read(address, FRAME_HEADER_SIZE), UUID, address)
                if header is None or header.lsn != expected or expected >= lsn:
                    break
                yield Frame(header, address, FRAME_HEADER_SIZE + header.stored_size)
                address += occupied(header, self.geometry.block_size)
                expected += 1

    def _read(self) -> list[int]:
        with reader_on(self.disk) as reader:
            return [header.lsn for header, _ in read_all(reader)]

    def evidence_behind(self, lsn: int) -> int:
        """The highest LSN that anything but frame ``lsn`` and those before it calls durable."""
        end = self.geometry.segment_end(self.log.sequence)
        start = self.geometry.segment_address(self.log.sequence)
        witnesses = [
            frame.header.durable_lsn for frame in self.frames if frame.header.lsn > lsn and start <= frame.address < end
        ]
        return max([self.lease_lsn, *witnesses])

    def sectors(self) -> Iterator[int]:
        """Every sector of superblock copies, leases and frames."""
        step = self.disk.atomic
        yield from self.geometry.copies
        for slot in range(LEASE_COUNT):
            yield LEASES_OFFSET + slot * UNIT
        for frame in self.frames:
            yield from range(frame.address, frame.address + frame.size, step)


def damaged(finished: Finished, sector: int, fault: str) -> Disk | None:
    """The disk with one fault; None when that changes nothing."""
    disk = finished.disk.copy()
    size = disk.atomic
    frame = _frame_at(finished, sector)
    rng = finished.rng
    if fault == "unreadable":
        disk.unreadable.add(sector)
        return disk
    if fault == "once":
        disk.once[sector] = bytes(size)
        return disk
    if fault in WHOLE:
        if frame is None or frame.address != sector:
            return None
        other = rng.choice(finished.frames)
        size = min(frame.size, other.size) if fault == "misdirected whole" else frame.size
        content = bytes(disk.image[other.address : other.address + size])
        if fault == "lost whole":
            content = finished.former[sector : sector + size]
    elif fault == "flip":
        covered = SUPERBLOCK_SIZE if frame is None else min(size, frame.address + frame.size - sector)
        changed = bytearray(disk.image[sector : sector + size])
        bit = rng.randrange(covered * 8)
        changed[bit // 8] ^= 1 << bit % 8
        content = bytes(changed)
    elif fault == "zero":
        content = bytes(size)
    elif fault == "misdirected":
        other = rng.choice(finished.frames)
        content = bytes(disk.image[other.address : other.address + size])
    else:
        content = finished.former[sector : sector + size]
    covered = len(content) if frame is None else min(len(content), frame.address + frame.size - sector)
    if content[:covered] == bytes(disk.image[sector : sector + covered]):
        return None
    disk.image[sector : sector + len(content)] = content
    return disk


def _frame_at(finished: Finished, sector: int) -> Frame | None:
    for frame in finished.frames:
        if frame.address <= sector < frame.address + frame.size:
            return frame
    return None


def judge(finished: Finished, sector: int, fault: str, disk: Disk, verdicts: Verdicts) -> None:
    """The oracle. Raises Violation."""
    verdicts.faults += 1
    truth = finished.log
    where = f"seed {finished.seed}, {fault} at byte {sector}"
    if fault == "once":
        _judge_once(finished, disk, where)
        verdicts.count("wrong bytes once: read again")
        return
    frame = _frame_at(finished, sector)
    zone = "superblock or lease" if frame is None else "newest segment" if _is_newest(finished, sector) else "older segment"
    try:
        log = recovered(disk)
    except (CorruptionError, DeviceError) as error:
        if frame is None and (fault != "unreadable" or sector in finished.geometry.copies):
            raise Violation(f"{where}: one rotten copy or lease stops the writer: {error}") from error
        if zone == "older segment" and fault != "unreadable":
            raise Violation(f"{where}: recovery looks at a segment that it need not, and refuses: {error}") from error
        verdicts.count(f"{zone}: writer refuses")
        if fault != "unreadable" and finished.has_lease:
            is_accepted = _accept(finished, frame, disk, where) and _go_on(finished, frame, disk, where)
            verdicts.count("accepted by the operator" if is_accepted else "the only head there is: cannot be accepted")
    else:
        if (log.next_lsn, log.predecessor_crc, log.lanes) != (truth.next_lsn, truth.predecessor_crc, truth.lanes):
            lost = log.next_lsn
            if lost >= truth.next_lsn:
                raise Violation(f"{where}: the log became longer or another one: {lost} instead of {truth.next_lsn}")
            if finished.evidence_behind(lost) >= lost:
                raise Violation(f"{where}: LSN {lost} was durable by all that is known, and its loss passes for a torn tail")
            verdicts.count(f"{zone}: as if torn, behind all evidence")
        elif frame is not None:
            _told(finished, frame, disk, where)
            verdicts.count(f"{zone}: readers and verify tell")
        else:
            verdicts.count(f"{zone}: made up for")


def _is_newest(finished: Finished, sector: int) -> bool:
    return finished.geometry.segment_address(finished.log.sequence) <= sector < finished.geometry.segment_end(finished.log.sequence)


def _accept(finished: Finished, frame: Frame | None, disk: Disk, where: str) -> bool:
    """After accepted damage everything else is still there: no LSN is given again, and other lanes stand where they stood."""
    superblock = read_superblock(disk)  # type: ignore[arg-type]
    evidence = durable_evidence(read_leases(disk, superblock.uuid))  # type: ignore[arg-type]
    try:
        log: RecoveredLog = carry_out(disk, recover(superblock, evidence, True))  # type: ignore[arg-type]
    except CorruptionError:
        if finished.log.sequence > 0 or frame is None or frame.header.kind != FrameKind.SEGMENT_HEAD:
            raise
        return False
    if log.next_lsn < finished.log.next_lsn:
        raise Violation(f"{where}: accepted, LSN {log.next_lsn} would be given again; the log ended before {finished.log.next_lsn}")
    if frame is not None and frame.header.kind == FrameKind.DATA:
        for lane, row in finished.log.lanes.items():
            found = log.lanes.get(lane)
            if lane != frame.header.lane_id and (found is None or found.position != row.position):
                raise Violation(f"{where}: accepted, lane {lane} stands at {found and found.position}; it stood at {row.position}")
    return True


def _segment_of(finished: Finished, frame: Frame) -> int:
    g = finished.geometry
    return g.segment_address((frame.address - g.segment_address(0)) // g.segment_size)


def _judge_once(finished: Finished, disk: Disk, where: str) -> None:
    """A device gave wrong bytes, and right ones when it was asked again (ceph#23273): nobody takes that for damage, or for a torn tail."""
    truth, once = finished.log, dict(disk.once)
    log = recovered(disk)
    if (log.next_lsn, log.predecessor_crc, log.lanes) != (truth.next_lsn, truth.predecessor_crc, truth.lanes):
        raise Violation(f"{where}: recovery ends at LSN {log.next_lsn} instead of {truth.next_lsn}")
    disk.once = dict(once)
    report = verify_device(disk)  # type: ignore[arg-type]
    if not report.ok or report.last_lsn != truth.next_lsn - 1:
        raise Violation(f"{where}: verify says {report.violations}, and ends at {report.last_lsn}")
    disk.once = once
    with reader_on(disk) as reader:
        seen = [header.lsn for header, _ in read_all(reader)]
    if seen[-len(finished.read_lsns) :] != finished.read_lsns:
        raise Violation(f"{where}: a reader sees {seen}")


def _go_on(finished: Finished, frame: Frame | None, disk: Disk, where: str) -> bool:
    """After accepted damage a writer works on; it may be interrupted at any of its first writes; nothing readable is lost by that."""
    states: list[Disk] = []
    live = disk.copy()
    if finished.rng.random() < INTERRUPTED:
        live.on_crash_point = lambda: states.extend(state.copy() for state in live.crash_states(finished.rng))
    appender = LogAppender.take_over(live, accept_damage=True)  # type: ignore[arg-type]
    live.on_crash_point = None
    for state in states:
        superblock = read_superblock(state)  # type: ignore[arg-type]
        evidence = durable_evidence(read_leases(state, superblock.uuid))  # type: ignore[arg-type]
        log: RecoveredLog = carry_out(state, recover(superblock, evidence, True))  # type: ignore[arg-type]
        if log.next_lsn < finished.log.next_lsn:
            raise Violation(f"{where}: accepted, interrupted, and LSN {log.next_lsn} would be given again")
    first = appender.next_lsn
    for _ in range(3):
        appender.lanes_frame([])
        while (gather := appender.take()) is not None:
            live.write(gather.address, gather.buffers)
            appender.completed(gather)
    appender.tick_lease()
    if recovered(live).next_lsn != first + 3:
        raise Violation(f"{where}: accepted, and the log ends at {recovered(live).next_lsn}, not at {first + 3}")
    with reader_on(live, "skip") as reader:
        seen = [header.lsn for header, _ in read_all(reader)]
    geometry = finished.geometry
    sequence = (appender.segment_index, (appender.segment_index + 1) % geometry.segment_count)  # overwritten, or may be
    gone = {
        old.header.lsn
        for old in finished.frames
        if (old.address - geometry.segment_address(0)) // geometry.segment_size in sequence
    }
    wanted = [lsn for lsn in finished.read_lsns if lsn not in gone and (frame is None or lsn != frame.header.lsn)]
    if seen != sorted(set(seen)) or not set(wanted) <= set(seen) or seen[-3:] != [first, first + 1, first + 2]:
        raise Violation(f"{where}: accepted, and a reader sees {seen}, not {wanted} and {first} to {first + 2}")
    return True


def _told(finished: Finished, frame: Frame, disk: Disk, where: str) -> None:
    """Recovery does not look there: then verify blames, and a reader does not pass the damage without a word."""
    try:
        report = verify_device(disk)  # type: ignore[arg-type]
        is_told = not report.ok
    except HdadError:
        is_told = True
    if not is_told and frame.header.lsn in finished.read_lsns and _segment_of(finished, frame) not in finished.reused:
        raise Violation(f"{where}: LSN {frame.header.lsn} is damaged, and verify finds nothing")
    try:
        with reader_on(disk) as reader:
            seen = [header.lsn for header, _ in read_all(reader)]
    except HdadError:
        return
    if frame.header.lsn in seen:
        raise Violation(f"{where}: LSN {frame.header.lsn} is damaged, and a reader shows it")
    if frame.header.lsn in finished.read_lsns and seen and seen[0] < frame.header.lsn:
        raise Violation(f"{where}: LSN {frame.header.lsn} is damaged, and a reader passes over it: {seen}")


def run_seed(seed: int) -> Verdicts:
    """All sectors, all faults, of one finished log."""
    verdicts = Verdicts()
    logging.disable(logging.CRITICAL)  # a writer tells of each damage that it accepts
    with small_segments():
        finished = Finished(seed)
        for sector in finished.sectors():
            for fault in FAULTS:
                disk = damaged(finished, sector, fault)
                if disk is not None:
                    try:
                        judge(finished, sector, fault, disk, verdicts)
                    except (Violation, HdadError) as violation:
                        verdicts.violations.append(f"seed {seed}, {fault} at byte {sector}: {violation}")
                        return verdicts
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this log alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    began = time.monotonic()
    total = Verdicts()
    seeds = range(options.first, options.first + options.seeds) if options.seed is None else range(options.seed, options.seed + 1)
    with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
        for verdicts in pool.imap_unordered(run_seed, seeds):
            total.faults += verdicts.faults
            total.violations += verdicts.violations
            for what, count in verdicts.counts.items():
                total.counts[what] = total.counts.get(what, 0) + count
            if total.violations:
                break
        pool.terminate()
    for violation in total.violations:
        print(violation, file=sys.stderr)
    seconds = round(time.monotonic() - began, 1)
    if options.json:
        print(json.dumps({"faults": total.faults, "violations": len(total.violations), "counts": total.counts, "seconds": seconds}))
    else:
        print(f"faults: {total.faults:,} on {len(seeds):,} logs, {len(total.violations)} violations; {seconds} s")
        for what, count in sorted(total.counts.items()):
            print(f"  {count:>9,}  {what}")
    return 1 if total.violations else 0


if __name__ == "__main__":
    sys.exit(main())

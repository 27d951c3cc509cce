"""hdad's log on a simulated disk: what all simulations need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Final, Literal

import hdad.log.geometry
import hdad.log.reader
from hdad.limits import KIB
from hdad.log.format import FrameHeader
from hdad.log.opening import carry_out, durable_evidence, read_leases, read_superblock
from hdad.log.reader import LogReader
from hdad.log.recovery import RecoveredLog, recover
from tests.sim.disk import Disk

UUID: Final = bytes(range(16))


@contextmanager
def small_segments() -> Iterator[None]:
    """Segments of a few KiB: a log that goes around within a hundred frames."""
    before = hdad.log.geometry.SEGMENT_BYTES_MIN
    hdad.log.geometry.SEGMENT_BYTES_MIN = 4 * KIB  # type: ignore[misc]
    try:
        yield
    finally:
        hdad.log.geometry.SEGMENT_BYTES_MIN = before  # type: ignore[misc]


@contextmanager
def reader_on(disk: Disk, on_damage: Literal["raise", "skip"] = "raise", start: int | None = None) -> Iterator[LogReader]:
    """A reader of a simulated disk."""
    opener = SimpleNamespace(open=lambda path: disk)
    before = hdad.log.reader.Device
    hdad.log.reader.Device = opener  # type: ignore[misc, assignment]
    try:
        with LogReader("simulated", start, on_damage=on_damage) as reader:
            yield reader
    finally:
        hdad.log.reader.Device = before  # type: ignore[misc]


class Violation(AssertionError):
    """The oracle's no."""


def recovered(disk: Disk) -> RecoveredLog:
    """What a writer finds on ``disk``; it has not written anything yet."""
    superblock = read_superblock(disk)  # type: ignore[arg-type]
    evidence = durable_evidence(read_leases(disk, superblock.uuid))  # type: ignore[arg-type]
    return carry_out(disk, recover(superblock, evidence))  # type: ignore[arg-type]


def read_all(reader: LogReader) -> Iterator[tuple[FrameHeader, memoryview]]:
    """Frames of all kinds, as ``LogReader.frames`` reads them: until the log ends, a look at what lies behind the end included."""
    while True:
        yield from reader._frames_known()
        if not reader._look_behind():
            return


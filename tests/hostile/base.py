"""Whole logs of every shape, to be damaged: real files, made by the real appender, the same bytes for the same number.

Shapes: freshly formatted, within one segment, several segments, gone around; one to three writers; ended by draining, by a kill before the
lease said what was durable, in the middle of a write, or exactly with a segment. Lanes have plain, binary and long names, entries, values,
dead letters, filtered entries and losses.
"""

from __future__ import annotations

import itertools
import os
import random
import struct
import tempfile
import uuid as uuid_module
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson

import hdad.log.appender
import hdad.log.lease
from hdad._core import encode_entry
from hdad.errors import DeviceError
from hdad.limits import MIB
from hdad.log.appender import AppendResult
from hdad.log.create import lay_out
from hdad.log.device import Device
from hdad.log.format import FRAME_HEADER_SIZE, FrameHeader, FrameKind, frame_size, is_of_log, is_payload_right, occupied
from hdad.log.geometry import LEASE_COUNT, LEASES_OFFSET, SEGMENTS_OFFSET, UNIT, Geometry, plan
from hdad.log.superblock import Lease, Superblock, decode_lease
from hdad.record import RecordKind
from tests.logs import RECORD_HEAD_SIZE, Writing

SHAPES: Final = ("formatted", "one segment", "several segments", "gone around", "gone around twice")
ENDINGS: Final = ("drained", "killed", "torn", "full segment")
NAMES: Final = ("s:plain", "s:\udcff\x00binary\n", "s:" + "long" * 90, "{tag}:x", "s:ünïcode\x1b[31m")
TEXTS: Final = (b"", b"x" * 20, "ä".encode() * 150, b"y" * 3000)
BEGAN_NS: Final = 1_790_000_000_000_000_000
Record = tuple[int, int, int, bytes]


@dataclass(frozen=True)
class Frame:
    """A frame that is in the log. ``size``: bytes that its CRCs cover."""

    header: FrameHeader
    address: int
    size: int


@dataclass(frozen=True)
class BaseLog:
    """A whole log. ``former``: the same device before its last writer came, as a lost write would leave it."""

    number: int
    shape: str
    ending: str
    image: bytes
    former: bytes
    superblock: Superblock
    frames: tuple[Frame, ...]
    leases: tuple[Lease, ...]

    @property
    def geometry(self) -> Geometry:
        """Where things lie."""
        return self.superblock.geometry


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for a log: in memory where that takes direct I/O (tmpfs does since Linux 6.6), for a busy disk would set the pace."""
    for place in ("/dev/shm", None):
        folder = tempfile.TemporaryDirectory(prefix="hdad-hostile-", dir=place if place and os.path.isdir(place) else None)
        probe = Path(folder.name) / "probe"
        probe.write_bytes(bytes(UNIT))
        try:
            Device.open(str(probe), write=True).close()
        except DeviceError:
            folder.cleanup()
            continue
        probe.unlink()
        return folder
    raise AssertionError("neither /dev/shm nor the folder of temporary files takes direct I/O")


@contextmanager
def _fixed_clock(rng: random.Random) -> Iterator[None]:
    """The same labels and the same host in each run, so that a log's bytes depend on its number alone."""
    ticks = itertools.count(BEGAN_NS, 1_000_000)
    node = rng.randbytes(16)
    fakes = {"wall_ns": lambda: next(ticks), "node_uuid": lambda: node, "boot_uuid": lambda: bytes(16)}
    places = [(module, name) for module in (hdad.log.appender, hdad.log.lease) for name in fakes if hasattr(module, name)]
    before = [getattr(module, name) for module, name in places]
    for module, name in places:
        setattr(module, name, fakes[name])
    try:
        yield
    finally:
        for (module, name), value in zip(places, before, strict=True):
            setattr(module, name, value)


def make_base(number: int) -> BaseLog:
    """Base log ``number``. Shape, ending and block size go round with it; everything else is drawn from it."""
    rng = random.Random(f"base {number}")
    shape, ending = SHAPES[number % len(SHAPES)], ENDINGS[number // len(SHAPES) % len(ENDINGS)]
    block_size = (512, 4096)[number // (len(SHAPES) * len(ENDINGS)) % 2]
    segment_count = rng.choice((3, 4, 6))
    size = SEGMENTS_OFFSET + segment_count * MIB + 2 * UNIT + rng.choice((0, UNIT, MIB // 2, 512))
    superblock = Superblock(rng.randbytes(16), 1, 0, plan(size, block_size, MIB), BEGAN_NS, "hostile \x1b[1m")
    with scratch() as folder, _fixed_clock(rng):
        path = Path(folder) / "log"
        with path.open("wb") as file:
            file.truncate(size)
        with Device.open(str(path), write=True) as device:
            lay_out(device, superblock)
        former = path.read_bytes()
        if shape != "formatted":
            laps = {"gone around": 1.4, "gone around twice": 2.5}
            segments = {"one segment": 0.6, "several segments": 1.7}.get(shape, laps.get(shape, 0) * segment_count)
            lives = rng.randint(1, 3)
            for life in range(lives):
                former = path.read_bytes()
                _live(str(path), rng, segments * MIB / lives, ending if life == lives - 1 else rng.choice(ENDINGS))
        image = path.read_bytes()
    return _survey(number, shape, ending, image, former, superblock)


def _live(path: str, rng: random.Random, bytes_wanted: float, ending: str) -> None:
    """One writer's life: frames until so many bytes are written, then its end."""
    writing = Writing(path, write_bytes_max=rng.choice((64 << 10, 256 << 10)))
    appender = writing.appender
    written = 0
    while written < bytes_wanted:
        before = appender.open_bytes
        assert _append(writing, rng) is AppendResult.OK
        written += max(0, appender.open_bytes - before)
        if rng.random() < 0.3:
            writing.flush()
            if rng.random() < 0.1:
                appender.tick_lease()
    writing.flush()
    if ending == "full segment":
        _fill_segment(writing)
        writing.flush()
    if ending in ("drained", "full segment"):
        appender.tick_lease()
        appender.close()
        return
    if ending == "torn":
        for _ in range(rng.randint(2, 6)):
            _append(writing, rng)
        gather = appender.take()
        assert gather is not None
        content = b"".join(gather.buffers)
        some = range(0, len(content), 512)
        for offset in rng.sample(some, rng.randrange(len(some))):  # the sectors that landed, in no order
            with open(path, "r+b") as file:
                file.seek(gather.address + offset)
                file.write(content[offset : offset + 512])
    appender.device.close()


def _append(writing: Writing, rng: random.Random) -> AppendResult:
    """A frame of a kind that a pipeline makes, or a change of the lane table."""
    name = rng.choice(NAMES)
    lane_id = writing.lane(name)
    row = writing.appender.lanes[lane_id]
    first = row.position.ms + 1
    what = rng.random()
    if what < 0.05:
        return writing.appender.lanes_frame([row._replace(lost=row.lost + rng.randint(0, 9), is_halted=rng.random() < 0.5)])
    if what < 0.1:
        entries = rng.randint(1, 50)
        return writing.frame(name, [], entries, filtered=entries)
    entries = rng.randint(1, 30)
    records: list[Record] = []
    for index in range(entries):
        body = encode_entry([(b"n", str(first + index).encode()), (rng.randbytes(3), rng.choice(TEXTS) + rng.randbytes(3))])
        kind = RecordKind.ENTRY
        if what > 0.8:
            kind = RecordKind.VALUE
            body = orjson.dumps({"n": first + index}) if rng.random() < 0.7 else rng.randbytes(40)
        if what > 0.9 and rng.random() < 0.3:
            kind = RecordKind.DEAD_LETTER
            detail = orjson.dumps({"reason": "raised", "stage": "x:y", "error": "no", "traceback": "", "stream": "s"})
            body = struct.pack("<I", len(detail)) + detail + encode_entry([(b"n", b"1")])
        records.append((first + index, 0, kind, body))
    return writing.frame(name, records, entries, lost=rng.choice((0, 0, 0, 7)))


def _fill_segment(writing: Writing) -> None:
    """Frames until the segment has no block left: the next one begins with the next segment's head."""
    appender = writing.appender
    while (room := appender._end - appender._address) > 0:
        size = min(room, appender._frame_size_max)
        first = appender.lanes[writing.lane(NAMES[0])].position.ms + 1
        overhead = RECORD_HEAD_SIZE + len(encode_entry([(b"n", b"")]))
        body = encode_entry([(b"n", bytes(size - FRAME_HEADER_SIZE - overhead))])
        assert frame_size(RECORD_HEAD_SIZE + len(body), appender.block_size) == size
        assert writing.frame(NAMES[0], [(first, 0, RecordKind.ENTRY, body)], 1) is AppendResult.OK


def _survey(number: int, shape: str, ending: str, image: bytes, former: bytes, superblock: Superblock) -> BaseLog:
    """Find the frames that recovery would keep: contiguous LSNs from each segment's head."""
    geometry = superblock.geometry
    view = memoryview(image)
    frames: list[Frame] = []
    before: FrameHeader | None
    for index in range(geometry.segment_count):
        address, before = geometry.segment_address(index), None
        end = address + geometry.segment_size
        while address < end:
            header = is_of_log(view[address : address + FRAME_HEADER_SIZE], superblock.uuid, address)
            if header is None or not is_payload_right(header, view[address + FRAME_HEADER_SIZE :][: header.stored_size]):
                break
            if before is None and header.kind != FrameKind.SEGMENT_HEAD:
                break
            if before is not None and (header.lsn, header.predecessor_crc) != (before.lsn + 1, before.header_crc):
                break
            frames.append(Frame(header, address, FRAME_HEADER_SIZE + header.stored_size))
            address += occupied(header, geometry.block_size)
            before = header
    frames.sort(key=lambda frame: frame.header.lsn)
    slots = [view[LEASES_OFFSET + slot * UNIT : LEASES_OFFSET + (slot + 1) * UNIT] for slot in range(LEASE_COUNT)]
    leases = tuple(lease for slot in slots if (lease := decode_lease(slot, superblock.uuid)) is not None)
    return BaseLog(number, shape, ending, image, former, superblock, tuple(frames), leases)


def uuid_text(base: BaseLog) -> str:
    """As hdactl prints it."""
    return str(uuid_module.UUID(bytes=base.superblock.uuid))

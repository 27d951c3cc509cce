"""How long a log's recovery takes, and how many reads, against its size. Sparse files; every segment written once, the newest one full.

A segment but the newest holds its head and its padding, both made by the log's own appender; recovery looks at heads only, so what would
lie between is not needed. The newest is filled with data frames of FRAME_BYTES, all of which recovery reads and checks. Start-up is the
time from starting the daemon until it answers on its socket, on the same log.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Final

from crc32c import crc32c

from hdad.log.appender import AppendResult, LogAppender
from hdad.log.create import format_log
from hdad.log.device import Device, aligned_buffer
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind, build_frame_header, decode_header
from hdad.log.geometry import UNIT
from hdad.log.lanes import LaneRow
from hdad.record import ORIGIN, Position

from .daemon import Daemon, Log, Setup
from .figures import column, spread

GB: Final = 1_000_000_000
FRAME_BYTES: Final = {"64k": 64 << 10, "4k": 4 << 10}  # 4k: what a trickle of single entries leaves behind
TURNS: Final = 32


class CountingDevice(Device):
    """Counts what is read."""

    reads = 0
    read_bytes = 0

    def read(self, address: int, size: int) -> memoryview:
        self.reads += 1
        self.read_bytes += size
        return super().read(address, size)


def _frame(size: int, position: int) -> memoryview:
    view = aligned_buffer(size)
    stored = size - FRAME_HEADER_SIZE
    view[FRAME_HEADER_SIZE:] = bytes(stored)
    build_frame_header(
        view, kind=FrameKind.DATA, lane_id=1, lane_epoch=1, from_=Position(position, 0), to=Position(position + 1, 0), record_count=0,
        entry_count=1, stored_size=stored, payload_crc=crc32c(view[FRAME_HEADER_SIZE:]), label_ns=1, lost_count=0, filtered_count=1,
        dead_count=0, worker=0,
    )  # fmt: skip
    return view


def _flush(log: LogAppender) -> None:
    while (gather := log.take()) is not None:
        log.device.write(gather.address, gather.buffers, durable=False)
        log.completed(gather)


def make_log(path: Path, size: int, frame_bytes: int) -> int:
    """A log of ``size`` bytes of address space, all segments used once. Returns how many there are."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    geometry = format_log(str(path), prefill=False).geometry
    log = LogAppender.open(str(path))
    log.lanes_frame([LaneRow.new(1, b"bench", ORIGIN, 0)])
    while log.segments_used < geometry.segment_count:
        assert log._roll()  # padding and the next head: a segment of which only the ends are written
        _flush(log)
    position, room = 0, TURNS * UNIT + frame_bytes  # each time the log is opened it gets a frame more: it shall fit this segment
    while geometry.segment_end(geometry.segment_count - 1) - log._address >= room:
        view = _frame(frame_bytes, position)
        assert log.append(view, frame_bytes, decode_header(view)) is AppendResult.OK
        position += 1
        if not position % 64:
            _flush(log)
    _flush(log)
    log.device.flush()
    log.tick_lease()
    log.close()
    return geometry.segment_count


def recover_once(path: Path) -> dict[str, float]:
    """Open the log as a writer does: recovery, epoch, lease, first frame."""
    device = CountingDevice.open(str(path), write=True)
    started = time.perf_counter()
    log = LogAppender.take_over(device)
    elapsed = time.perf_counter() - started
    log.close()
    return {"seconds": elapsed, "reads": device.reads, "read_mb": device.read_bytes / 1e6}


def measure(folder: Path, size: int, frame: str, runs: int, url: str) -> dict[str, Any]:
    """Recovery of a log of ``size`` bytes, and start-up of a daemon on it."""
    log = Log(folder, size, "recovery.log")
    path = Path(log.path)
    segments = make_log(path, size, FRAME_BYTES[frame])
    try:
        rows = [recover_once(path) for _ in range(runs)]
        starts = []
        for _ in range(runs):
            daemon = Daemon(folder, log, Setup(url, "none:"), anew=False)
            try:
                starts.append(daemon.ready_s)
                daemon.stop()
            finally:
                daemon.kill()
        written = os.stat(path).st_blocks * 512
    finally:
        log.remove()
    return {
        "recovery_s": spread(column(rows, "seconds")), "reads": rows[0]["reads"], "read_mb": rows[0]["read_mb"],
        "start_to_ready_s": spread(starts), "segments": segments, "sparse_file_mb": written / 1e6,
    }  # fmt: skip

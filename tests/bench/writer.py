"""hdad's writer alone: its appender and its writes, fed with ready frames of 1 MiB, no Redis and no workers; beside fio on the same file.

A program (programs.Peer). Arguments: log, bytes, writes in flight, bytes of a gathered write at most. What it does per frame is what the
writer does for one that came through a ring: decode its header, compare the payload's CRC, stamp, gather, write with DSYNC, call durable.
"""

from __future__ import annotations

import json
import select
import sys
import time
from collections import deque
from typing import Final

from crc32c import crc32c

from hdad._core import scan_frames
from hdad.exchange.slots import RING_BLOCK, create_bell
from hdad.log.appender import AppendResult, LogAppender
from hdad.log.device import aligned_buffer
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind, build_frame_header
from hdad.log.lanes import LaneRow
from hdad.metrics.counters import Counters
from hdad.record import ORIGIN, Position
from hdad.writer.commit import CommitPolicy, Submit
from hdad.writer.writes import Writes

from .ring import hush

FRAME_BYTES: Final = 1 << 20


def frame() -> memoryview:
    """One whole data frame as a worker would have built it, FRAME_BYTES long."""
    view = aligned_buffer(FRAME_BYTES)
    stored = FRAME_BYTES - FRAME_HEADER_SIZE
    view[FRAME_HEADER_SIZE:] = (b"0123456789abcdef" * (stored // 16 + 1))[:stored]
    build_frame_header(
        view, kind=FrameKind.DATA, lane_id=1, lane_epoch=1, from_=ORIGIN, to=Position(1, 0), record_count=1, entry_count=1,
        stored_size=stored, payload_crc=crc32c(view[FRAME_HEADER_SIZE:]), label_ns=1, lost_count=0, filtered_count=0, dead_count=0,
        worker=0,
    )  # fmt: skip
    return view


class Feed:
    """Appends frames and writes them until ``total`` bytes are durable."""

    def __init__(self, path: str, total: int, inflight_max: int, write_bytes_max: int) -> None:
        self.log = LogAppender.open(path, write_bytes_max=write_bytes_max)
        self.log.lanes_frame([LaneRow.new(1, b"bench", ORIGIN, 0)])
        self.bell = create_bell()
        self.writes = Writes(self.log.device, inflight_max, self.bell, Counters.create(1, 8).writer)
        self.policy = CommitPolicy(inflight_max)
        self.left = total // FRAME_BYTES
        self.free = deque(frame() for _ in range(2 * inflight_max * max(1, write_bytes_max // FRAME_BYTES)))
        self.busy: deque[tuple[int, memoryview]] = deque()

    def run(self) -> None:
        """Everything is durable on return."""
        log, writes = self.log, self.writes
        while self.left or self.busy:
            work = False
            while self.left and self.free:
                self._append(self.free.popleft())
                work = True
            while self.policy.decide(log.open_bytes, writes.inflight_count) is Submit.THREAD and (gather := log.take()) is not None:
                writes.submit(gather)
                work = True
            if writes.reap(log.completed):
                work = True
                while self.busy and self.busy[0][0] <= log.durable_lsn:
                    self.free.append(self.busy.popleft()[1])
            if not work:
                poller = select.poll()
                poller.register(self.bell, select.POLLIN)
                poller.poll(1000)
                hush(self.bell)

    def _append(self, view: memoryview) -> None:
        (frame,) = scan_frames(view, RING_BLOCK, 1)
        assert self.log.append(frame.view, frame.size, frame) is AppendResult.OK
        self.busy.append((self.log.next_lsn - 1, view))
        self.left -= 1


def main() -> None:
    """See the module."""
    path, total, inflight_max, write_bytes_max = sys.argv[1], *map(int, sys.argv[2:])
    feed = Feed(path, total, inflight_max, write_bytes_max)
    print("READY", flush=True)
    sys.stdin.readline()
    started, cpu = time.perf_counter(), time.process_time()
    feed.run()
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    feed.writes.close()
    print(json.dumps({"bytes_per_s": total / elapsed, "seconds": elapsed, "cpu_s": cpu}))


if __name__ == "__main__":
    main()

"""Counters and histograms in shared memory: one block per process, each word written by one process only, read by anybody.

Made by the supervisor before it forks; a successor of a dead process goes on with its block. Words are aligned u64 and are written
without locks: a reader may see two counters of different instants, never half of one. One table (METRICS) names every counter.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple, Self

from hdad.errors import FormatError
from hdad.metrics.lanes import LaneTable

MAGIC: Final = b"HDADCNT2"
_HEADER: Final = struct.Struct("<8sII")
HEADER_SIZE: Final = 4096
WORDS: Final = 64  # LIMIT: counters of one block
_BUCKETS: Final = 8 + 8 * 41  # values below 8, then 8 buckets per power of two up to 2**44
_HISTOGRAM_WORDS: Final = _BUCKETS + 3  # count, sum, max
BLOCK_WORDS: Final = WORDS + 4 * _HISTOGRAM_WORDS
TRACE_COUNT: Final = 32_768  # LIMIT: moves of the durable LSN that are remembered
TRACE_SIZE: Final = 16 + TRACE_COUNT * 16
BLOCK_SIZE: Final = -(-BLOCK_WORDS * 8 // 4096) * 4096

_ROLES: Final = 4  # blocks before the workers': supervisor, writer, link, feed

_U64_MAX: Final = 2**64 - 1


class State(IntEnum):
    """What a role is doing."""

    NONE = 0
    STARTING = 1
    RECOVERING = 2
    READY = 3
    DRAINING = 4
    PAUSED = 5
    WAITING = 6  # for Redis
    STOPPED = 7
    STANDBY = 8
    TAKING_OVER = 9


class Metric(NamedTuple):
    """One counter. ``kind``: counter, gauge, or internal (not exposed)."""

    role: str
    name: str
    kind: str
    unit: str
    meaning: str


LINK_ENDS: Final = (
    ("done", "drained"), ("garbage", "bytes that are not the protocol"), ("lies", "about lanes, credit or channels"),
    ("silent", "nothing heard"), ("stalled", "a message not finished, or nothing read"), ("version", "of another version"),
    ("refused", "not among the peers, or frames too large"), ("crowded", "too many"), ("lost", "broken"), ("failed", "by their own fault"),
    ("flood", "too many control messages"),
)  # fmt: skip
METRICS: Final = (
    Metric("worker", "heartbeat_ns", "internal", "ns", "monotonic time of the last round"),
    Metric("worker", "state", "gauge", "", "0 none 1 starting 3 ready 4 draining 5 paused 6 waiting for Redis 7 stopped"),
    Metric("worker", "frames", "counter", "frames", "Frames put into the ring"),
    Metric("worker", "records", "counter", "records", "Records put into the ring"),
    Metric("worker", "entries_read", "counter", "entries", "Entries taken from Redis; repeats after a reconnect included"),
    Metric("worker", "bytes_read", "counter", "bytes", "Bytes received from Redis"),
    Metric("worker", "reads", "counter", "replies", "Replies to XREAD"),
    Metric("worker", "redirects", "counter", "redirects", "Slots that were read elsewhere from then on: MOVED and ASK"),
    Metric("worker", "read_errors", "counter", "errors", "Reads and chores that failed"),
    Metric("worker", "ring_full", "counter", "times", "Times the ring had no room for a frame"),
    Metric("worker", "stage_ns", "counter", "ns", "Time spent in pipeline stages"),
    Metric("worker", "busy_since_ns", "internal", "ns", "monotonic time when the running batch began, 0: none runs"),
    Metric("worker", "dead", "counter", "entries", "Entries dead-lettered"),
    Metric("worker", "filtered", "counter", "entries", "Entries filtered"),
    Metric("worker", "lost", "counter", "entries", "Entries found trimmed or deleted before they were read"),
    Metric("writer", "heartbeat_ns", "internal", "ns", "monotonic time of the last round"),
    Metric("writer", "state", "gauge", "", "0 none 1 starting 2 recovering 3 ready 4 draining 7 stopped 8 standby 9 taking over"),
    Metric("writer", "frames", "counter", "frames", "Frames made durable"),
    Metric("writer", "entries", "counter", "entries", "Entries whose frames are durable"),
    Metric("writer", "records", "counter", "records", "Records made durable"),
    Metric("writer", "writes", "counter", "writes", "Gathered writes completed"),
    Metric("writer", "write_errors", "counter", "errors", "Writes that failed"),
    Metric("writer", "device_bytes", "counter", "bytes", "Bytes written to the device"),
    Metric("writer", "inflight", "gauge", "writes", "Writes in flight"),
    Metric("writer", "oldest_write_ns", "internal", "ns", "monotonic time when the oldest write in flight began, 0: none"),
    Metric("writer", "durable_lsn", "gauge", "LSN", "Everything up to it is durable"),
    Metric("writer", "next_lsn", "gauge", "LSN", "LSN of the next frame"),
    Metric("writer", "segment", "gauge", "index", "Segment being filled"),
    Metric("writer", "segments_used", "gauge", "segments", "Segments that hold something"),
    Metric("writer", "oldest_label_ns", "gauge", "ns", "Wall clock of the oldest segment that is kept: how far back readers can go"),
    Metric("writer", "refused", "counter", "frames", "Frames refused for a gap"),
    Metric("writer", "repeats", "counter", "frames", "Frames dropped as repeats"),
    Metric("writer", "stale", "counter", "frames", "Frames dropped as stale"),
    Metric("writer", "recovery_ms", "gauge", "ms", "Duration of the last recovery"),
    Metric("link", "heartbeat_ns", "internal", "ns", "monotonic time of the last round"),
    Metric("link", "state", "gauge", "", "0 none 1 starting 3 ready 4 draining 7 stopped"),
    Metric("link", "peers", "gauge", "hosts", "Worker hosts connected; on a worker host 1: frames go to a writer"),
    Metric("link", "bytes_in", "counter", "bytes", "Bytes received from other hosts"),
    Metric("link", "bytes_out", "counter", "bytes", "Bytes sent to other hosts"),
    Metric("link", "frames_in", "counter", "frames", "Frames of remote workers put into rings"),
    Metric("link", "frames_out", "counter", "frames", "Frames of local workers sent to the writer's host"),
    Metric("link", "connects", "counter", "connections", "Connections that were welcomed"),
    Metric("link", "losses", "counter", "connections", "Connections to the writer's host that were lost"),
    Metric("link", "not_writer", "counter", "answers", "Candidates that were not the writer"),
    *(Metric("link", f"ends_{name}", "counter", "connections", f"Worker hosts' connections ended: {text}") for name, text in LINK_ENDS),
    Metric("feed", "heartbeat_ns", "internal", "ns", "monotonic time of the last round"),
    Metric("feed", "state", "gauge", "", "0 none 1 starting 3 ready 4 draining 7 stopped"),
    Metric("feed", "readers", "gauge", "readers", "Subscribers connected"),
    Metric("feed", "frames", "counter", "frames", "Frames sent to subscribers"),
    Metric("feed", "bytes_out", "counter", "bytes", "Bytes sent to subscribers"),
    Metric("feed", "refused", "counter", "connections", "Connections refused, or ended for a broken rule"),
    Metric("feed", "lapped", "counter", "readers", "Subscribers whose place was overwritten before they read it"),
    Metric("supervisor", "heartbeat_ns", "internal", "ns", "monotonic time of the last round"),
    Metric("supervisor", "restarts", "counter", "processes", "Children started again after they died"),
    Metric("supervisor", "stage_kills", "counter", "processes", "Workers killed for a batch that took too long"),
    Metric("supervisor", "alarms", "gauge", "alarms", "Alarms standing"),
)
HISTOGRAMS: Final = (
    Metric("writer", "write_us", "histogram", "us", "Duration of one gathered write"),
    Metric("writer", "batch_bytes", "histogram", "bytes", "Size of one gathered write"),
    Metric("writer", "entry_to_durable_us", "histogram", "us", "Newest entry's ID (ms) to durable, per frame; wall clocks"),
)


def _indexes(role: str) -> dict[str, int]:
    names = [metric.name for metric in METRICS if metric.role == role]
    assert len(names) == len(set(names)) <= WORDS, "one word per counter"
    return {name: index for index, name in enumerate(names)}


_INDEXES: Final = {role: _indexes(role) for role in ("worker", "writer", "supervisor", "link", "feed")}
_HISTOGRAM_INDEXES: Final = {metric.name: index for index, metric in enumerate(HISTOGRAMS)}
assert len(HISTOGRAMS) <= 4, "the block has room for four"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A histogram at one instant. ``buckets``: (upper bound, count), only those that are not empty."""

    count: int
    total: int
    maximum: int
    buckets: list[tuple[int, int]]

    def percentile(self, percent: float) -> int:
        """The upper bound of the bucket in which it lies (at most 12.5 % too much); 0 when nothing was observed."""
        wanted = percent / 100 * self.count
        seen = 0
        for bound, count in self.buckets:
            seen += count
            if seen >= wanted:
                return min(bound, self.maximum)
        return self.maximum

    def since(self, earlier: Snapshot) -> Snapshot:
        """What was observed since ``earlier``. The maximum is the upper bound of the highest bucket."""
        before = dict(earlier.buckets)
        buckets = [(bound, count - before.get(bound, 0)) for bound, count in self.buckets if count > before.get(bound, 0)]
        return Snapshot(self.count - earlier.count, self.total - earlier.total, buckets[-1][0] if buckets else 0, buckets)


class Histogram:
    """Eight buckets per power of two. One process observes."""

    __slots__ = ("_words",)

    def __init__(self, words: memoryview) -> None:
        self._words = words

    def observe(self, value: int) -> None:
        """Count one value; negative ones as 0."""
        words = self._words
        value = min(max(0, value), _U64_MAX)
        if value < 8:
            index = value
        else:
            exponent = value.bit_length() - 4
            index = min(8 + 8 * exponent + (value >> exponent) - 8, _BUCKETS - 1)
        words[index] += 1
        words[_BUCKETS] += 1
        words[_BUCKETS + 1] = (words[_BUCKETS + 1] + value) & _U64_MAX  # a counter that wraps is still a counter
        words[_BUCKETS + 2] = max(words[_BUCKETS + 2], value)

    def snapshot(self) -> Snapshot:
        """What was observed so far."""
        words = self._words.tolist()
        buckets = [(_upper_bound(index), count) for index, count in enumerate(words[:_BUCKETS]) if count]
        return Snapshot(sum(count for _, count in buckets), words[_BUCKETS + 1], words[_BUCKETS + 2], buckets)


def _upper_bound(index: int) -> int:
    if index < 8:
        return index
    exponent, part = divmod(index - 8, 8)
    return ((9 + part) << exponent) - 1


class RoleBlock:
    """The counters of one process, by name. KeyError for a name that is not in METRICS: a bug."""

    __slots__ = ("_indexes", "_view", "role")

    def __init__(self, view: memoryview, role: str) -> None:
        self.role = role
        self._view = view
        self._indexes: Mapping[str, int] = _INDEXES[role]

    def set(self, name: str, value: int) -> None:
        """Overwrite."""
        self._view[self._indexes[name]] = value

    def add(self, name: str, value: int = 1) -> None:
        """Increase. Only the block's own process may."""
        self._view[self._indexes[name]] += value

    def get(self, name: str) -> int:
        """Read."""
        value: int = self._view[self._indexes[name]]
        return value

    def histogram(self, name: str) -> Histogram:
        """One of HISTOGRAMS."""
        start = WORDS + _HISTOGRAM_INDEXES[name] * _HISTOGRAM_WORDS
        return Histogram(self._view[start : start + _HISTOGRAM_WORDS])

    def snapshot(self) -> dict[str, int]:
        """All counters."""
        return {name: self._view[index] for name, index in self._indexes.items()}


class DurableTrace:
    """When the durable LSN moved: the last TRACE_COUNT times, (monotonic ns, LSN). The writer writes; anybody reads, for measuring."""

    def __init__(self, words: memoryview) -> None:
        self._words = words

    def add(self, at_ns: int, lsn: int) -> None:
        """One more."""
        words = self._words
        count = words[0]
        index = 2 + count % TRACE_COUNT * 2
        words[index], words[index + 1] = at_ns, lsn
        words[0] = count + 1

    def pairs(self) -> list[tuple[int, int]]:
        """In order of time."""
        words = self._words.tolist()
        found = zip(words[2::2], words[3::2], strict=True)
        return sorted(pair for pair in found if pair[0])


class Counters:
    """All blocks and the lane table. ``fd`` and ``lanes.fd`` are memfds: another process attaches through /proc/PID/fd."""

    def __init__(self, fd: int, workers_max: int, lanes: LaneTable, *, read_only: bool = False) -> None:
        self.fd = fd
        self.lanes = lanes
        self.workers_max = workers_max
        protection = mmap.PROT_READ if read_only else mmap.PROT_READ | mmap.PROT_WRITE
        self._view = memoryview(mmap.mmap(fd, _size(workers_max), flags=mmap.MAP_SHARED, prot=protection))
        self.supervisor = self._block(0, "supervisor")
        self.writer = self._block(1, "writer")
        self.trace = DurableTrace(self._view[_size(workers_max) - TRACE_SIZE :].cast("Q"))
        self.link = self._block(2, "link")
        self.feed = self._block(3, "feed")
        self._workers = [self._block(_ROLES + index, "worker") for index in range(workers_max)]

    @classmethod
    def create(cls, workers_max: int, lanes_max: int) -> Self:
        """New ones, all zero. Raises OSError."""
        fd = os.memfd_create("hdad-counters", os.MFD_CLOEXEC)
        os.ftruncate(fd, _size(workers_max))
        os.pwrite(fd, _HEADER.pack(MAGIC, workers_max, lanes_max), 0)
        return cls(fd, workers_max, LaneTable.create(lanes_max))

    @classmethod
    def attach(cls, path: str, lanes_path: str) -> Self:
        """Those of another process, read only. Raises OSError, FormatError."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        header = os.pread(fd, _HEADER.size, 0)
        if len(header) < _HEADER.size:
            os.close(fd)
            raise FormatError(f"{path}: no counters")
        magic, workers_max, lanes_max = _HEADER.unpack(header)
        if magic != MAGIC or os.fstat(fd).st_size != _size(workers_max):
            os.close(fd)
            raise FormatError(f"{path}: no counters of this version")
        try:
            return cls(fd, workers_max, LaneTable.attach(lanes_path, lanes_max), read_only=True)
        except (OSError, FormatError):
            os.close(fd)
            raise

    @classmethod
    def attach_process(cls, pid: int) -> Self:
        """Those of a running daemon. Raises OSError (no such process, not ours to look at), FormatError (it is no daemon)."""
        found: dict[str, str] = {}
        directory = f"/proc/{pid}/fd"
        for name in os.listdir(directory):
            try:
                found[os.readlink(f"{directory}/{name}").partition(" ")[0]] = f"{directory}/{name}"
            except FileNotFoundError:  # closed in this instant: not one of ours, which stay
                continue
        try:
            return cls.attach(found["/memfd:hdad-counters"], found["/memfd:hdad-lanes"])
        except KeyError as error:
            raise FormatError(f"process {pid} has no counters of hdad") from error

    def _block(self, index: int, role: str) -> RoleBlock:
        start = HEADER_SIZE + index * BLOCK_SIZE
        return RoleBlock(self._view[start : start + BLOCK_WORDS * 8].cast("Q"), role)

    def worker(self, index: int) -> RoleBlock:
        """The block of a worker slot."""
        return self._workers[index]


def _size(workers_max: int) -> int:
    return HEADER_SIZE + (_ROLES + workers_max) * BLOCK_SIZE + TRACE_SIZE

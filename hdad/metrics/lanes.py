"""The lane table in shared memory: what each lane's writer and worker say of it, a row each. Sparse: rows nobody touched take no memory.

The writer owns the columns up to ``frames`` and the name, the lane's worker owns the rest. A reader may see columns of different
instants. The trial columns outlive a worker that died over a batch (worker/trial).
"""

from __future__ import annotations

import mmap
import os
import struct
from enum import IntEnum
from itertools import islice
from typing import Any, Final, NamedTuple, Self

from hdad.errors import FormatError
from hdad.limits import LANE_NAME_BYTES_MAX, LANES_MAX
from hdad.record import Position

ROW_WORDS: Final = 72
ROW_SIZE: Final = ROW_WORDS * 8
_WRITERS: Final = struct.Struct("@10Q")  # the writer's columns from the first word on; "@" stores each word at once
_NAME_WORD: Final = 24  # the name's bytes begin here
_READ: Final = 12  # first column of the worker
_SUMMED: Final = (5, 6, 7, 8, 9, 14)  # columns in the order of LaneTotals
_TRIAL: Final = 17
_DURABLE_AT: Final = 23
assert (ROW_WORDS - _NAME_WORD) * 8 >= LANE_NAME_BYTES_MAX


class LaneState(IntEnum):
    """Why a lane is read, or is not."""

    IDLE = 0
    READING = 1
    HALTED_REWOUND = 2
    WRONG_TYPE = 3
    GONE = 4
    TOO_LARGE = 5
    PAUSED = 6


class LaneView(NamedTuple):
    """One row. ``worker`` -1: nobody reads it. ``position``: durable."""

    lane_id: int
    name: bytes
    worker: int
    epoch: int
    position: Position
    entries: int
    committed: int
    dead: int
    filtered: int
    lost: int
    frames: int
    read: Position
    lag: int
    state: LaneState
    state_since_ns: int
    durable_at_ns: int  # monotonic time at which ``position`` became durable; 0: before this writer


class LaneTotals(NamedTuple):
    """Sums over all lanes; ``lanes``: how many there are."""

    lanes: int
    entries: int
    committed: int
    dead: int
    filtered: int
    lost: int
    lag: int


class LaneTable:
    """``count`` is the highest lane id in use; row 0 holds it."""

    def __init__(self, fd: int, lanes_max: int, *, read_only: bool = False) -> None:
        self.fd = fd
        self.lanes_max = lanes_max
        protection = mmap.PROT_READ if read_only else mmap.PROT_READ | mmap.PROT_WRITE
        self._bytes = memoryview(mmap.mmap(fd, lanes_max * ROW_SIZE, flags=mmap.MAP_SHARED, prot=protection))
        self._words = self._bytes.cast("Q")

    @classmethod
    def create(cls, lanes_max: int) -> Self:
        """A new table, all zero. Raises OSError."""
        fd = os.memfd_create("hdad-lanes", os.MFD_CLOEXEC)
        os.ftruncate(fd, lanes_max * ROW_SIZE)
        return cls(fd, lanes_max)

    @classmethod
    def attach(cls, path: str, lanes_max: int) -> Self:
        """Another process' table, read only. Raises OSError, FormatError."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if os.fstat(fd).st_size != lanes_max * ROW_SIZE:
            os.close(fd)
            raise FormatError(f"{path}: no table of {lanes_max} lanes")
        return cls(fd, lanes_max, read_only=True)

    @property
    def count(self) -> int:
        """The highest lane id in use."""
        value: int = self._words[0]
        return value

    def write_row(self, lane_id: int, *, name: bytes, worker: int, epoch: int, position: Position, entries: int, committed: int, dead: int,
                  filtered: int, lost: int, frames: int, durable_at_ns: int = 0) -> None:  # fmt: skip
        """The writer's columns."""
        words, start = self._words, lane_id * ROW_WORDS
        if words[start] != lane_id:
            at = (start + _NAME_WORD) * 8
            self._bytes[at : at + len(name)] = name
            words[start + 11] = len(name)
            words[start] = lane_id
            words[0] = max(words[0], lane_id)
        ms, seq = position
        _WRITERS.pack_into(self._bytes, start * 8 + 8, worker + 1, epoch, ms, seq, entries, committed, dead, filtered, lost, frames)
        words[start + _DURABLE_AT] = durable_at_ns

    def write_read(self, lane_id: int, *, position: Position, lag: int, state: LaneState, state_since_ns: int) -> None:
        """The worker's columns, if they have changed. ``state_since_ns`` counts only when the state has."""
        words, start = self._words, lane_id * ROW_WORDS + _READ
        (ms, seq), lag = position, min(lag, 2**63)
        if words[start : start + 4].tolist() == [ms, seq, lag, state] and words[start + 4]:
            return  # most lanes, most times: thousands of them are shown every second
        words[start], words[start + 1], words[start + 2] = ms, seq, lag
        if words[start + 3] != state or not words[start + 4]:
            words[start + 3] = state
            words[start + 4] = state_since_ns

    def write_trial(self, lane_id: int, first: Position, last: Position, count: int, attempts: int) -> None:
        """What a stage is about to see; ``attempts`` 0: it has come back."""
        words, start = self._words, lane_id * ROW_WORDS + _TRIAL
        words[start + 5] = 0  # a kill in the middle leaves no trial, not half of one
        words[start], words[start + 1], words[start + 2], words[start + 3], words[start + 4] = *first, *last, count
        words[start + 5] = attempts

    def read_trial(self, lane_id: int) -> tuple[Position, Position, int, int]:
        """(first, last, count, attempts)."""
        start = lane_id * ROW_WORDS + _TRIAL
        a, b, c, d, count, attempts = self._words[start : start + 6].tolist()
        return Position(a, b), Position(c, d), count, attempts

    def row(self, lane_id: int) -> LaneView | None:
        """One row; None if there is no such lane."""
        if not 0 < lane_id < self.lanes_max:
            return None
        start = lane_id * ROW_WORDS
        words: list[Any] = self._words[start : start + _NAME_WORD].tolist()
        if words[0] != lane_id:
            return None
        name = bytes(self._bytes[(start + _NAME_WORD) * 8 : (start + _NAME_WORD) * 8 + min(words[11], LANE_NAME_BYTES_MAX)])
        return LaneView(
            lane_id, name, words[1] - 1, words[2], Position(words[3], words[4]),
            words[5], words[6], words[7], words[8], words[9], words[10],
            read=Position(words[12], words[13]), lag=words[14], state=LaneState(words[15]), state_since_ns=words[16],
            durable_at_ns=words[_DURABLE_AT],
        )  # fmt: skip

    def rows(self, lanes_max: int = LANES_MAX) -> list[LaneView]:
        """Lanes by id, at most so many."""
        found = (self.row(lane_id) for lane_id in range(1, self.count + 1))
        return list(islice((row for row in found if row is not None), lanes_max))

    def totals(self) -> LaneTotals:
        """Without a row for each lane: the supervisor asks every second."""
        end = (self.count + 1) * ROW_WORDS
        columns = (self._words[ROW_WORDS + column : end : ROW_WORDS].tolist() for column in (0, *_SUMMED))
        ids, *sums = columns
        return LaneTotals(sum(map(bool, ids)), *map(sum, sums))

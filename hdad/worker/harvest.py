"""From one reply of Redis to frames in the ring: natively for a raw archive, through the pipeline for lanes with stages.

Runs in a worker. A harvest can stop at any frame for want of room in the ring, and goes on there. Lanes that were revoked or assigned
anew since the reply was asked for are left out; the new reader starts from the log's position (I2).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from hdad._core import XReadReply, count_fitting, detach_records, measure_records
from hdad.clock import monotonic_ns
from hdad.metrics.counters import RoleBlock
from hdad.record import ORIGIN, Position, RecordKind
from hdad.worker.batch import Batch, Record
from hdad.worker.frames import RECORD_HEADER_SIZE, FrameBuilder, ValueRecord
from hdad.worker.lane import Lane
from hdad.worker.stage import DeadLetter, Outcome, describe, run_stages, shortened
from hdad.worker.trial import Trials

DEAD_BODY_BYTES_MAX: Final = 64 * 1024  # LIMIT: of an entry kept with its dead letter
_U32: Final = struct.Struct("<I")


class Part(NamedTuple):
    """One frame to be: records up to ``to``, from ``entry_count`` entries."""

    to: Position
    records: Sequence[Record | ValueRecord]
    entry_count: int
    filtered: int
    dead: int


class Item:
    """What one reply holds of one lane."""

    __slots__ = ("bytes_bound", "count", "lane", "parts", "records", "skip", "stream")

    def __init__(self, lane: Lane, stream: int, count: int, bytes_bound: int) -> None:
        self.lane, self.stream, self.count, self.bytes_bound = lane, stream, count, bytes_bound
        self.skip = 0
        self.records: list[Record] | None = None
        self.parts: deque[Part] = deque()


def dead_letter_record(letter: DeadLetter, body: bytes, payload_bytes_max: int) -> ValueRecord:
    """The record that stands in the log for an entry that failed. ``body`` is cut to DEAD_BODY_BYTES_MAX, and to what a frame holds."""
    room = payload_bytes_max - RECORD_HEADER_SIZE - _U32.size
    detail = shortened(letter.detail, room // 2)
    content = _U32.pack(len(detail)) + detail + body[: min(DEAD_BODY_BYTES_MAX, room - len(detail))]
    return letter.position.ms, letter.position.seq, RecordKind.DEAD_LETTER, content


class Harvester:
    """Turns replies into frames. One per worker."""

    def __init__(
        self, frames: FrameBuilder, block: RoleBlock, trials: Trials, entry_bytes_max: int, is_current: Callable[[Lane], bool]
    ) -> None:
        self._frames = frames
        self._block = block
        self._trials = trials
        self._entry_bytes_max = entry_bytes_max
        self._is_current = is_current

    def step(self, reply: XReadReply, items: deque[Item]) -> bool:
        """Go on with ``items``. True when all are done; False when the ring has no room."""
        while items:
            item = items[0]
            if self._is_current(item.lane) and not self._one(reply, item):
                return False
            if item.records is not None:
                detach_records(item.records)  # what a stage has kept must not keep the whole reply, though the lane was taken away
            items.popleft()
        return True

    def _one(self, reply: XReadReply, item: Item) -> bool:
        return self._staged(reply, item) if item.lane.stages else self._raw(reply, item)

    def _raw(self, reply: XReadReply, item: Item) -> bool:
        while item.skip < item.count:
            if item.parts and not self._publish_parts(item):
                return False
            packed = self._frames.entries(item.lane, reply, item.stream, item.skip, item.bytes_bound, self._entry_bytes_max)
            if packed is None:
                return False
            if packed:
                item.skip += packed
                continue
            record = self._records(reply, item)[item.skip]
            item.parts.append(self._too_large(item.lane, record, reply.entry_size(item.stream, item.skip)))
            item.skip += 1
        return self._publish_parts(item)

    def _records(self, reply: XReadReply, item: Item) -> list[Record]:
        if item.records is None:
            item.records = reply.records(item.stream, item.lane.stream)
        return item.records

    def _too_large(self, lane: Lane, record: Record, size: int) -> Part:
        error = f"the entry takes {size} bytes; redis.entry_bytes_max is {self._entry_bytes_max}"
        letter = DeadLetter(record.position, describe("too large", "", lane.stream, error))
        return Part(record.position, [dead_letter_record(letter, record.body, self._frames.payload_bytes_max)], 1, 0, 1)

    def _publish_parts(self, item: Item) -> bool:
        while item.parts:
            part = item.parts[0]
            if self._frames.values(item.lane, part.to, part.records, part.entry_count, part.filtered, part.dead) is None:
                return False
            item.parts.popleft()
            self._block.add("filtered", part.filtered)
            self._block.add("dead", part.dead)
        return True

    def _staged(self, reply: XReadReply, item: Item) -> bool:
        records = self._records(reply, item)
        while True:
            if not self._publish_parts(item):
                return False
            if item.skip >= item.count:
                return True
            item.skip += self._stage_next(item, records)

    def _stage_next(self, item: Item, records: list[Record]) -> int:
        batch = self._next_batch(item.lane, records, item.skip)
        item.parts.extend(self._run(item.lane, batch))
        return len(batch)

    def _next_batch(self, lane: Lane, records: list[Record], start: int) -> list[Record]:
        """Entries from ``start`` on that together are about a frame; a suspect makes a frame of its own, so that its verdict stays."""
        batch = records[start : start + count_fitting(records, start, self._frames.payload_bytes_max)]
        suspect = lane.suspect
        if suspect is not None:
            suspects = [index for index, record in enumerate(batch) if suspect.first <= record.position <= suspect.last]
            if suspects:
                return batch[: suspects[0] or 1]
        return batch

    def _run(self, lane: Lane, records: list[Record]) -> list[Part]:
        stream = lane.stream
        started_ns = monotonic_ns()
        self._block.set("busy_since_ns", started_ns)
        outcome = self._trials.run(lane, records, lambda some: run_stages(lane.stages, Batch(stream, some)))
        self._block.set("busy_since_ns", 0)
        self._block.add("stage_ns", monotonic_ns() - started_ns)
        return split(lane, records, outcome, self._frames.payload_bytes_max)


def split(lane: Lane, entries: list[Record], outcome: Outcome, payload_bytes_max: int) -> list[Part]:
    """Frames for what became of ``entries``: an entry's records stay in one frame; records in position order.

    An entry whose records do not fit a frame together becomes a dead letter.
    """
    if not outcome.dead:
        size, kept = measure_records(outcome.records)
        if size <= payload_bytes_max:
            return [Part(entries[-1].position, outcome.records, len(entries), len(entries) - kept, 0)]
    letters = {letter.position: letter for letter in outcome.dead}
    records = outcome.records
    index, total = 0, len(records)
    parts: list[Part] = []
    chosen: list[ValueRecord] = []
    used = count = filtered = dead = 0
    last = ORIGIN
    for entry in entries:
        ms, seq = position = entry.position
        own: list[ValueRecord] = []
        while index < total and records[index].origin is entry:
            record = records[index]
            own.append((ms, seq, record.kind, record.body))
            index += 1
        letter = letters.get(position) if letters else None
        size = sum(RECORD_HEADER_SIZE + len(content) for _, _, _, content in own)
        if size > payload_bytes_max:
            error = f"its {len(own)} records take {size} bytes; a frame holds {payload_bytes_max}"
            letter = DeadLetter(position, describe("output too large", "", lane.stream, error))
        if letter is not None:
            own = [dead_letter_record(letter, entry.body, payload_bytes_max)]
            size = RECORD_HEADER_SIZE + len(own[0][3])
        if used + size > payload_bytes_max:
            parts.append(Part(last, chosen, count, filtered, dead))
            chosen, used, count, filtered, dead = [], 0, 0, 0, 0
        chosen += own
        used += size
        count += 1
        dead += letter is not None
        filtered += not own
        last = position
    assert index == total, "records come back in stream order, each at an entry of its batch"
    if count:
        parts.append(Part(last, chosen, count, filtered, dead))
    return parts

"""Logs made without a daemon: an appender driven as the writer drives it, on a real device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Self

from crc32c import crc32c

from hdad._core import encode_entry, pack_values
from hdad.log.appender import AppendResult, LogAppender
from hdad.log.device import aligned_buffer
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind, build_frame_header, decode_header, frame_size
from hdad.log.lanes import LaneRow
from hdad.record import ORIGIN, Position, RecordKind

RECORD_HEAD_SIZE: Final = 24


class Writing:
    """One writer's life. Entries of a lane have IDs 1-0, 2-0, … and one field n."""

    def __init__(self, path: str, **options: object) -> None:
        self.appender = LogAppender.open(path, **options)  # type: ignore[arg-type]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()
        self.appender.tick_lease()
        self.appender.close()

    def lane(self, name: str) -> int:
        """The lane's id; a new lane has its row in the log first."""
        raw = name.encode("utf-8", "surrogateescape")
        known = self.appender.lane_by_name.get(raw)
        if known is not None:
            return known
        lane_id = max(self.appender.lanes, default=0) + 1
        assert self.appender.lanes_frame([LaneRow.new(lane_id, raw, ORIGIN, 0)]) is AppendResult.OK
        return lane_id

    def add(self, name: str, count: int = 1, entries: int = 1, text: str = "") -> AppendResult:
        """``count`` frames of ``entries`` entries each, appended and not flushed."""
        for _ in range(count):
            first = self.appender.lanes[self.lane(name)].position.ms + 1
            records = [
                (first + index, 0, RecordKind.ENTRY, encode_entry([(b"n", str(first + index).encode()), (b"t", text.encode())]))
                for index in range(entries)
            ]
            result = self.frame(name, records, entries)
            if result is not AppendResult.OK:
                return result
        return AppendResult.OK

    def frame(
        self, name: str, records: Sequence[tuple[int, int, int, bytes]], entries: int, *, filtered: int = 0, lost: int = 0
    ) -> AppendResult:
        """One frame of any records, made of ``entries`` entries; the lane goes on by as many milliseconds as entries and losses."""
        lane_id = self.lane(name)
        row = self.appender.lanes[lane_id]
        first = row.position.ms + 1
        size = sum(RECORD_HEAD_SIZE + len(body) for _, _, _, body in records)
        view = aligned_buffer(frame_size(size, self.appender.block_size))
        payload = view[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + size]
        pack_values(payload, records)
        build_frame_header(
            view, kind=FrameKind.DATA, lane_id=lane_id, lane_epoch=1, from_=row.position, to=Position(first + entries + lost - 1, 0),
            record_count=len(records), entry_count=entries, stored_size=size, payload_crc=crc32c(payload),
            label_ns=first * 1_000_000_000, lost_count=lost, filtered_count=filtered,
            dead_count=sum(kind == RecordKind.DEAD_LETTER for _, _, kind, _ in records), worker=0,
        )  # fmt: skip
        return self.appender.append(view, len(view), decode_header(view))

    def flush(self) -> None:
        """Everything appended is durable on return."""
        while (gather := self.appender.take()) is not None:
            self.appender.device.write(gather.address, gather.buffers)
            self.appender.completed(gather)

"""Logs made without a daemon: an appender driven as the writer drives it, on a real device."""

from __future__ import annotations

from typing import Self

from crc32c import crc32c

from hdad._core import encode_entry, pack_values
from hdad.log.appender import AppendResult, LogAppender
from hdad.log.device import aligned_buffer
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind, build_frame_header, decode_header, frame_size
from hdad.log.lanes import LaneRow
from hdad.record import ORIGIN, Position


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
        known = self.appender.lane_by_name.get(name.encode())
        if known is not None:
            return known
        lane_id = max(self.appender.lanes, default=0) + 1
        assert self.appender.lanes_frame([LaneRow.new(lane_id, name.encode(), ORIGIN, 0)]) is AppendResult.OK
        return lane_id

    def add(self, name: str, count: int = 1, entries: int = 1, text: str = "") -> AppendResult:
        """``count`` frames of ``entries`` entries each, appended and not flushed."""
        lane_id = self.lane(name)
        for _ in range(count):
            row = self.appender.lanes[lane_id]
            first = row.position.ms + 1
            records = [
                (first + index, 0, 0, encode_entry([(b"n", str(first + index).encode()), (b"t", text.encode())]))
                for index in range(entries)
            ]
            size = sum(24 + len(body) for _, _, _, body in records)
            view = aligned_buffer(frame_size(size, self.appender.block_size))
            payload = view[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + size]
            pack_values(payload, records)
            build_frame_header(
                view, kind=FrameKind.DATA, lane_id=lane_id, lane_epoch=1, from_=row.position, to=Position(first + entries - 1, 0),
                record_count=entries, entry_count=entries, stored_size=size, payload_crc=crc32c(payload),
                label_ns=first * 1_000_000_000, lost_count=0, filtered_count=0, dead_count=0, worker=0,
            )  # fmt: skip
            result = self.appender.append(view, len(view), decode_header(view))
            if result is not AppendResult.OK:
                return result
        return AppendResult.OK

    def flush(self) -> None:
        """Everything appended is durable on return."""
        while (gather := self.appender.take()) is not None:
            self.appender.device.write(gather.address, gather.buffers)
            self.appender.completed(gather)

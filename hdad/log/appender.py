"""The end of the log: stamping frames, filling segments, the contiguous durable prefix, the lease. Runs in the writer only.

Owns next LSN and address, the lane table, and what was appended but not completed. Never writes data itself: it hands out gathers, and
whoever writes them says when they are durable. Invariants: a gather lies within one segment; a segment head is handed out only when all
before it is durable (recovery relies on it); ``durable_lsn`` is the end of the contiguous prefix (I1).

A takeover is *cautious* when writes of the former writer may still be on their way to the device: it died or froze on another host, and no
reservation stopped them. All of them lie in one segment (a segment head is written only when all before it is durable): in what is left of
the newest one, or, when that is full, in the next. The new writer leaves that room to them and begins in the segment after it, so that a
late write destroys nothing of its own; and the superblock makes what comes late void (superblock.begin_lsn).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final, Self

from crc32c import crc32c

from hdad.clock import wall_ns
from hdad.errors import DeviceError, FencedError, LocalProtocolError
from hdad.log.device import BlockDevice, Device, aligned_buffer
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind, build_frame_header, frame_size, stamp
from hdad.log.geometry import UNIT
from hdad.log.lanes import DataFrame, LaneRow, encode_rows, rows_size
from hdad.log.lease import LeaseBlock, Renewal, lone_claim
from hdad.log.opening import carry_out, durable_evidence, read_leases, read_superblock
from hdad.log.recovery import Head, RecoveredLog, begin_sequence, head_at, recover
from hdad.log.superblock import NOBODY, Lease, LeaseState, Superblock, encode_superblock
from hdad.record import ORIGIN, Position

_ORIGIN: Final = ORIGIN
SECOND_NS: Final = 1_000_000_000
LEFT_OUT_MAX: Final = 16  # LIMIT: heads looked at for one that is there; takeovers that failed one after the other leave out one each


class AppendResult(IntEnum):
    """Flow control."""

    OK = 0
    FULL = 1  # the next segment may not be reused yet


@dataclass(slots=True)
class Gather:
    """Frames that lie one after the other: one write."""

    address: int
    first_lsn: int
    last_lsn: int
    size: int = 0
    buffers: list[memoryview] = field(default_factory=list)
    is_segment_start: bool = False


class LogAppender:
    """See the module. Made by ``open``."""

    def __init__(
        self,
        device: BlockDevice,
        superblock: Superblock,
        log: RecoveredLog,
        lease: LeaseBlock,
        *,
        on_full: str,
        retain_min_s: float,
        write_bytes_max: int,
    ) -> None:
        self.device = device
        self.superblock = superblock
        self.lanes = log.lanes
        self.lane_by_name = {row.name: row.id for row in log.lanes.values()}
        self.block_size = superblock.geometry.block_size
        self.epoch = superblock.writer_epoch
        self.next_lsn = log.next_lsn
        self.durable_lsn = log.next_lsn - 1
        self.damaged = log.damaged
        self._geometry = superblock.geometry
        self._uuid = superblock.uuid
        self._frame_size_max = superblock.geometry.frame_size_max
        self._sequence = log.sequence
        self._end = self._geometry.segment_end(log.sequence)
        goes_on_here = superblock.begin_sequence == log.sequence
        self._address = log.next_address if goes_on_here else self._end
        self._predecessor_crc = log.predecessor_crc
        self._on_full = on_full
        self._retain_ns = int(retain_min_s * SECOND_NS)
        self._write_bytes_max = write_bytes_max
        self._open: deque[Gather] = deque()
        self._completed: dict[int, int] = {}
        self.open_bytes = 0
        self.head_bytes = rows_size(self.lanes.values())
        self.lease = lease
        self.oldest_label_ns = self._find_oldest_label()
        self.overwritten_young_count = 0  # segments reused although younger than retain_min_s (on_full = "overwrite")

    @classmethod
    def open(
        cls,
        path: str,
        *,
        contact: str = "",
        accept_damage: bool = False,
        on_full: str = "overwrite",
        retain_min_s: float = 0,
        write_bytes_max: int = 4 * 1024 * 1024,
    ) -> Self:
        """Claim the device at ``path`` and take it over. Raises as ``take_over`` does."""
        device = Device.open(path, write=True)
        try:
            return cls.take_over(
                device,
                contact=contact,
                accept_damage=accept_damage,
                on_full=on_full,
                retain_min_s=retain_min_s,
                write_bytes_max=write_bytes_max,
            )
        except BaseException:  # whatever it is goes on its way; nobody else closes the device
            device.close()
            raise

    @classmethod
    def take_over(
        cls,
        device: BlockDevice,
        *,
        contact: str = "",
        claim: Lease | None = None,
        is_cautious: bool = False,
        accept_damage: bool = False,
        on_full: str = "overwrite",
        retain_min_s: float = 0,
        write_bytes_max: int = 4 * 1024 * 1024,
    ) -> Self:
        """Recover, raise the writer epoch, say so in the lease. DURABLE: all that recovery found.

        ``claim``: this host's lease block as the election left it, kept alive meanwhile; None: nobody else can be there, as ``contact``.
        ``is_cautious``: see the module. Raises DeviceError, FencedError (another host was faster), FormatError, CorruptionError (damaged,
        and not ``accept_damage``).
        """
        device.flush()  # DURABLE: what a killed writer had written, before recovery may call it durable
        superblock = read_superblock(device)
        leases = read_leases(device, superblock.uuid)
        lease = LeaseBlock(device, claim if claim is not None else lone_claim(superblock, leases, contact))
        log = carry_out(device, recover(superblock, durable_evidence(leases), accept_damage), Renewal(lease) if claim else lambda: None)
        for damage in log.damaged:
            logging.getLogger("hdad.log").error("damaged and accepted: LSN %d at byte %d: %s", *damage)
        superblock = replace(
            superblock,
            sequence=superblock.sequence + 1,
            writer_epoch=max(superblock.writer_epoch + 1, log.writer_epoch + 1, lease.lease.writer_epoch),
            begin_sequence=begin_sequence(superblock, log, is_cautious),
            begin_lsn=log.next_lsn,
            writer_node=lease.lease.node_uuid,
        )
        for address in superblock.geometry.copies:
            device.write(address, [_unit(encode_superblock(superblock))])
        if read_superblock(device) != superblock:
            raise FencedError(f"{device.path}: another host took the log over at the same time")
        appender = cls(device, superblock, log, lease, on_full=on_full, retain_min_s=retain_min_s, write_bytes_max=write_bytes_max)
        lease.write(log.next_lsn - 1, state=LeaseState.ACTIVE, writer_epoch=superblock.writer_epoch, since_ns=wall_ns())
        appender._cut_off(bool(log.damaged))
        return appender

    def _cut_off(self, is_damaged: bool) -> None:
        """DURABLE: a first frame of this writer, so that no frame of an older one behind it can ever be valid again (I4, I5).

        Without it, a torn frame whose header had landed would come to life when this writer's frame at the same place carried the same
        records and was torn the other way round. Its header is one sector, which is old or new. A full log has its turn with its next
        segment. Accepted damage stays behind a new segment head, and is not asked about again; so does the room that a cautious takeover
        leaves.
        """
        if is_damaged or self.superblock.begin_sequence > self._sequence:
            self._roll()
        else:
            self.lanes_frame([])
        while (gather := self.take()) is not None:
            self.device.write(gather.address, gather.buffers)
            self.completed(gather)

    # -- where we are ------------------------------------------------------------------------------------------------------------------

    @property
    def segment_index(self) -> int:
        """Index of the segment being filled, in the circle."""
        return self._sequence % self._geometry.segment_count

    def _find_oldest_label(self) -> int:
        """Wall clock of the oldest segment that is kept: how far back readers can go. 0: its head cannot be read."""
        head = self._first_head(max(0, self._sequence - self._geometry.segment_count + 1))
        return head.header.label_ns if head is not None else 0

    def _first_head(self, sequence: int) -> Head | None:
        """The head of segment ``sequence``, or of the next one that there is: some are left out. None: there is none for a while."""
        for number in range(sequence, min(sequence + LEFT_OUT_MAX, self._sequence + 1)):
            view = self.device.read(self._geometry.segment_address(number), UNIT)
            head = head_at(view, self.superblock, number % self._geometry.segment_count)
            if head is not None and head.sequence == number:
                return head
        return None

    @property
    def segments_used(self) -> int:
        """Segments that hold something of the log."""
        return min(self._sequence + 1, self._geometry.segment_count)

    @property
    def frame_size_max(self) -> int:
        """The largest frame that ``append`` takes."""
        return self._frame_size_max

    # -- appending ---------------------------------------------------------------------------------------------------------------------

    def append(self, view: memoryview, size: int, frame: DataFrame) -> AppendResult:
        """Stamp the data frame in ``view`` (``size``: whole blocks; ``frame``: what its worker says of it) and add it.

        ``view`` must stay until its LSN is durable.
        """
        if size > self._frame_size_max:
            raise LocalProtocolError(f"a frame of {size} bytes; segments of {self._geometry.segment_size} bytes take {self.frame_size_max}")
        if self._address + size > self._end and not self._roll():
            return AppendResult.FULL
        self._add(view, size)
        self.lanes[frame.lane_id] = self.lanes[frame.lane_id].after(frame)
        return AppendResult.OK

    def lanes_frame(self, rows: Sequence[LaneRow]) -> AppendResult:
        """New or changed rows of the lane table."""
        frame = self._table_frame(FrameKind.LANES, rows)
        if self._address + len(frame) > self._end and not self._roll():
            return AppendResult.FULL
        self._add(frame, len(frame))
        for row in rows:
            if row.id not in self.lanes:
                self.head_bytes += rows_size([row])
            self.lanes[row.id] = row
            self.lane_by_name[row.name] = row.id
        return AppendResult.OK

    def has_room_for_lanes(self, rows: Sequence[LaneRow]) -> bool:
        """Whether a segment head with these new rows is still small against a segment."""
        return frame_size(self.head_bytes + rows_size(rows), self.block_size) <= self.frame_size_max

    def _table_frame(self, kind: FrameKind, rows: Sequence[LaneRow], left_out: int = 0) -> memoryview:
        payload = encode_rows(self._sequence, rows)
        view = aligned_buffer(frame_size(len(payload), self.block_size))
        view[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + len(payload)] = payload
        self._header(view, kind, len(rows), len(payload), len(payload), crc32c(payload), left_out)
        return view

    def _header(self, view: memoryview, kind: FrameKind, rows: int, stored: int, raw: int, crc: int, left_out: int = 0) -> None:
        sequence = self._sequence if kind is FrameKind.SEGMENT_HEAD else 0
        build_frame_header(
            view,
            kind=kind,
            lane_id=0,
            lane_epoch=sequence,
            from_=Position(left_out, 0),
            to=_ORIGIN,
            record_count=rows,
            entry_count=0,
            stored_size=stored,
            payload_crc=crc,
            label_ns=wall_ns(),
            lost_count=0,
            filtered_count=0,
            dead_count=0,
            worker=0,
            raw_size=raw,
        )

    def _add(self, view: memoryview, size: int, is_segment_start: bool = False, occupies: int = 0) -> None:
        self._predecessor_crc = stamp(
            view,
            uuid=self._uuid,
            lsn=self.next_lsn,
            durable_lsn=self.durable_lsn,
            address=self._address,
            writer_epoch=self.epoch,
            predecessor_crc=self._predecessor_crc,
        )
        last = self._open[-1] if self._open else None
        if last is None or is_segment_start or last.size + size > self._write_bytes_max:
            last = Gather(self._address, self.next_lsn, self.next_lsn, is_segment_start=is_segment_start)
            self._open.append(last)
        last.buffers.append(view)
        last.size += size
        last.last_lsn = self.next_lsn
        self.open_bytes += size
        self.next_lsn += 1
        self._address += occupies or size

    def _roll(self) -> bool:
        """Begin the next segment. False: it may not be reused yet."""
        following = max(self._sequence + 1, self.superblock.begin_sequence)
        if not self._may_reuse(following):
            return False
        left_out = following - self._sequence - 1
        room = self._end - self._address
        if room:
            padding = aligned_buffer(self.block_size)
            self._header(padding, FrameKind.PADDING, 0, 0, room, 0)
            self._add(padding, self.block_size, occupies=room)
        self._sequence = following
        self._address = self._geometry.segment_address(self._sequence)
        self._end = self._geometry.segment_end(self._sequence)
        head = self._table_frame(FrameKind.SEGMENT_HEAD, list(self.lanes.values()), left_out)
        self._add(head, len(head), is_segment_start=True)
        if self._sequence >= self._geometry.segment_count:
            self.oldest_label_ns = self._find_oldest_label()
        return True

    def _may_reuse(self, sequence: int) -> bool:
        """Retention. "overwrite": always. "block": when all in the old segment is older than ``retain_min_s``; 0: never."""
        old = sequence - self._geometry.segment_count
        if old < 0 or (self._on_full == "overwrite" and not self._retain_ns):
            return True
        if self._on_full == "block" and not self._retain_ns:
            return False
        head = self._first_head(old + 1)  # the head after the old segment is younger than all that is in it
        is_old = head is None or wall_ns() - head.header.label_ns >= self._retain_ns
        if self._on_full == "overwrite":
            self.overwritten_young_count += not is_old
            return True
        return is_old

    # -- durability --------------------------------------------------------------------------------------------------------------------

    def take(self) -> Gather | None:
        """The next write. None: nothing is open, or it begins a segment and something before it is not durable yet."""
        if not self._open:
            return None
        gather = self._open[0]
        if gather.is_segment_start and self.durable_lsn < gather.first_lsn - 1:
            return None
        self._open.popleft()
        self.open_bytes -= gather.size
        return gather

    def completed(self, gather: Gather) -> None:
        """The gather is on the device (DURABLE). In any order."""
        self._completed[gather.first_lsn] = gather.last_lsn
        while (last := self._completed.pop(self.durable_lsn + 1, None)) is not None:
            self.durable_lsn = last

    def next_lease(self) -> tuple[int, memoryview]:
        """The next lease block: its address and bytes. They are written before the next is asked for."""
        return self.lease.next(self.durable_lsn)

    def tick_lease(self) -> None:
        """Write the lease here and now: alive, and what is durable. Raises DeviceError."""
        self.lease.write(self.durable_lsn)

    def release_lease(self, successor: bytes = NOBODY) -> None:
        """Say that this writer has stopped, so that ``successor`` (NOBODY: any host) may take over without waiting. Raises DeviceError."""
        if self._open or self._completed:
            raise DeviceError("released with frames that are not durable")
        self.lease.write(self.durable_lsn, state=LeaseState.RELEASED, successor=successor)

    def close(self) -> None:
        """Let the device go. Raises DeviceError if something is still open."""
        if self._open or self._completed:
            raise DeviceError("closed with frames that are not durable")
        self.device.close()


def _unit(content: bytes) -> memoryview:
    view = aligned_buffer(len(content))
    view[:] = content
    return view

"""The writer's loop: frames from the rings are admitted in order, gathered, written, and called durable.

Runs in the writer's process; the only one that writes to the log. Owns where each ring was read up to and what waits for durability.
Ring room is given back only when its frames are durable, since the device reads from it. A new writer drops what the rings hold: the
positions in the log are the truth, and workers read again from there.
"""

from __future__ import annotations

import logging
import select
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import orjson
from crc32c import crc32c

from hdad.alarms import Alarms
from hdad.clock import monotonic_ns, wall_ns
from hdad.errors import LocalProtocolError
from hdad.exchange.channel import Channel
from hdad.exchange.slots import WorkerSlot, hush_bell, ring_bell
from hdad.log.appender import AppendResult, LogAppender
from hdad.log.format import FRAME_HEADER_SIZE, FrameHeader, FrameKind, decode_ring_header, frame_size
from hdad.log.lanes import LaneRow
from hdad.metrics.counters import Counters, State
from hdad.record import Position
from hdad.writer.admission import Verdict, judge
from hdad.writer.commit import CommitPolicy, Submit
from hdad.writer.members import Members
from hdad.writer.writes import Writes

if TYPE_CHECKING:
    from hdad.config import Config

RING_BLOCK: Final = 4096
_DATA: Final = int(FrameKind.DATA)
WAIT_NS_MAX: Final = 500_000_000
AGE_US_MAX: Final = 86_400_000_000  # IDs that are no times, and backlogs of days, say nothing about latency
FULL_RETRY_NS: Final = 100_000_000
BYTES_PER_ROUND: Final = 8 * 1024 * 1024  # LIMIT: admitted from one ring before the others have their turn


class Admitted(NamedTuple):
    """A frame in the log that is not durable yet. ``row``: its lane after it."""

    lsn: int
    row: LaneRow
    epoch: int
    entries: int
    records: int


class Intake:
    """One ring: read up to ``scanned``; ``held`` are the ends of frames and the LSN each waits for."""

    __slots__ = ("held", "scanned", "slot")

    def __init__(self, slot: WorkerSlot) -> None:
        self.slot = slot
        self.scanned = slot.data.head
        self.held: deque[tuple[int, int]] = deque()

    def drop_all(self) -> None:
        """Give back everything that is in the ring."""
        size = slot_size = len(self.slot.data.poll())
        if slot_size:
            self.slot.data.release(size)
        self.scanned = self.slot.data.head

    def release(self, durable_lsn: int) -> bool:
        """Give back what is durable. True: the worker waits for room."""
        end = 0
        while self.held and self.held[0][1] <= durable_lsn:
            end = self.held.popleft()[0]
        return bool(end) and self.slot.data.release(end - self.slot.data.head)


class WriterLoop:
    """See the module."""

    def __init__(self, slots: list[WorkerSlot], counters: Counters, channel: Channel, config: Config, log: LogAppender) -> None:
        self._slots = slots
        self._block = counters.writer
        self._channel = channel
        self._log = log
        self._bell = slots[0].data_bell
        self._logger = logging.getLogger("hdad.writer")
        self._alarms = Alarms(channel, self._logger)
        self._intakes = [Intake(slot) for slot in slots]
        self._members = Members(slots, log, counters, self._alarms)
        self._writes = Writes(log.device, config.log.inflight_max, self._bell, self._block)
        self._policy = CommitPolicy(config.log.inflight_max)
        self._waiting: deque[Admitted] = deque()
        self._latency = self._block.histogram("entry_to_durable_us")
        self._trace = counters.trace
        self._lease_ns = config.log.lease_interval_ms * 1_000_000
        self._lease_due_ns = 0
        self._lease_lsn = -1
        self._full_until_ns = 0
        self.is_draining = False
        for intake in self._intakes:
            intake.drop_all()
        self._members.ask_all()
        self._show_log()

    @property
    def is_orphaned(self) -> bool:
        """True: the supervisor is gone."""
        return self._channel.closed_by_peer

    @property
    def is_drained(self) -> bool:
        """True: nothing is in the rings, open, or in flight."""
        return (
            self.is_draining
            and not self._writes.inflight_count
            and not self._log.open_bytes
            and all(intake.scanned == intake.slot.data.tail for intake in self._intakes)
        )

    def run_once(self, now_ns: int) -> bool:
        """One bounded round. True when anything was done. Raises DeviceError (I8) and LocalProtocolError."""
        self._block.set("heartbeat_ns", now_ns)
        work = self._hear_supervisor(now_ns)
        if now_ns >= self._full_until_ns:
            for intake in self._intakes:
                work |= self._admit(intake, now_ns)
        work |= self._members.reassign(now_ns)
        work |= self._submit()
        work |= self._reap()
        self._tick(now_ns)
        self._members.flush()
        return work

    def wait(self, now_ns: int) -> None:
        """Sleep until a worker, a write or the supervisor has something, or a tick is due."""
        due_ns = min(now_ns + WAIT_NS_MAX, self._lease_due_ns)
        if self._members.due_ns:
            due_ns = min(due_ns, self._members.due_ns)
        is_full = now_ns < self._full_until_ns
        if is_full:
            due_ns = min(due_ns, self._full_until_ns)
        sleeping = []
        is_fresh = False
        for intake in self._intakes:
            if not is_full:
                sleeping.append(intake)
                if intake.slot.data.consumer_sleep(intake.scanned):
                    is_fresh = True
                    break
        if not is_fresh:
            poller = select.poll()
            poller.register(self._bell, select.POLLIN)
            poller.register(self._channel.fileno(), select.POLLIN)
            poller.poll(max(0, -(-(due_ns - now_ns) // 1_000_000)))
            hush_bell(self._bell)
        for intake in sleeping:
            intake.slot.data.consumer_awake()

    # -- supervisor -------------------------------------------------------------------------------------------------------------------

    def _hear_supervisor(self, now_ns: int) -> bool:
        messages = self._channel.receive()
        for message in messages:
            op = message.get("op")
            if op == "drain":
                self.is_draining = True
                self._block.set("state", State.DRAINING)
            elif op == "worker-dead":
                self._worker_dead(int(message["worker"]), int(message["generation"]), now_ns)
            elif op == "accept":
                self._accept(message, now_ns)
            elif op == "log-level":
                logging.getLogger().setLevel(str(message.get("level", "info")).upper())
        return bool(messages)

    def _worker_dead(self, index: int, generation: int, now_ns: int) -> None:
        self._admit(self._intakes[index], now_ns)  # what it had published is whole (I6), and as good as any other frame
        self._members.dead(index, generation, now_ns)

    def _accept(self, message: dict[str, Any], now_ns: int) -> None:
        position = Position(int(message["ms"]), int(message["seq"])) if "ms" in message else None
        self._members.accept(str(message["lane"]), position, now_ns)

    # -- admission --------------------------------------------------------------------------------------------------------------------

    def _admit(self, intake: Intake, now_ns: int) -> bool:
        """Take the frames that are new in one ring, up to BYTES_PER_ROUND."""
        ring = intake.slot.data
        tail = ring.tail
        limit = min(tail, intake.scanned + BYTES_PER_ROUND)
        before = intake.scanned
        while intake.scanned < limit:
            available = tail - intake.scanned
            if available < RING_BLOCK:
                raise LocalProtocolError(f"ring {intake.slot.index}: {available} bytes at {intake.scanned} are less than a frame")
            header = decode_ring_header(ring.view(intake.scanned, min(available, RING_BLOCK)))
            size = -(-(FRAME_HEADER_SIZE + header.stored_size) // RING_BLOCK) * RING_BLOCK
            if size > available:
                raise LocalProtocolError(f"ring {intake.slot.index}: frame of {size} bytes at {intake.scanned}, {available} are there")
            lsn = self._take(intake, header, ring.view(intake.scanned, size), now_ns)
            if lsn is None:
                self._full(now_ns)
                break
            intake.scanned += size
            intake.held.append((intake.scanned, lsn))
        if intake.scanned == before:
            return False
        if intake.release(self._log.durable_lsn):
            ring_bell(intake.slot.back_bell)
        return True

    def _take(self, intake: Intake, header: FrameHeader, view: memoryview, now_ns: int) -> int | None:
        """Admit, drop or refuse one frame. Returns the LSN that its ring room waits for (0: none); None: the log is full."""
        kind = header.kind
        if kind != _DATA:
            if kind == FrameKind.HELLO:
                return self._take_hello(intake, header, view, now_ns)
            raise LocalProtocolError(f"ring {intake.slot.index}: frame of kind {kind}")
        row = self._log.lanes.get(header.lane_id)
        if row is None and header.lane_epoch >> 32 < self._log.epoch:  # assigned by a writer that died before the lane was durable
            self._block.add("stale")
            return 0
        if row is None:
            raise LocalProtocolError(f"ring {intake.slot.index}: frame of lane {header.lane_id}, which there is not")
        verdict = judge(row.position, self._members.epochs[row.id], header.lane_epoch, header.from_, header.to)
        if verdict is Verdict.ADMIT:
            return self._append(header, view)
        if verdict is Verdict.GAP or verdict is Verdict.MALFORMED:
            self._logger.warning("lane %r: refused %s..%s, it stands at %s", row.name, header.from_, header.to, row.position)
            self._block.add("refused")
            self._members.refuse(row.id)
        else:
            self._block.add("repeats" if verdict is Verdict.REPEAT else "stale")
        return 0

    def _append(self, header: FrameHeader, view: memoryview) -> int | None:
        if crc32c(view[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + header.stored_size]) != header.payload_crc:
            raise LocalProtocolError(f"lane {header.lane_id}: the payload of {header.from_}..{header.to} is not what its worker packed")
        log = self._log
        size = frame_size(header.stored_size, log.block_size)
        if log.append(view if size == len(view) else view[:size], size, header) is not AppendResult.OK:
            return None
        self._waiting.append(
            Admitted(log.next_lsn - 1, log.lanes[header.lane_id], header.lane_epoch, header.entry_count, header.record_count)
        )
        return log.next_lsn - 1

    def _take_hello(self, intake: Intake, header: FrameHeader, view: memoryview, now_ns: int) -> int | None:
        payload = view[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + header.stored_size]
        if crc32c(payload) != header.payload_crc:
            raise LocalProtocolError(f"ring {intake.slot.index}: HELLO is not what its worker packed")
        content = orjson.loads(payload)
        return 0 if self._members.hello(intake.slot.index, content, now_ns) else None

    def _full(self, now_ns: int) -> None:
        """Flow control: nothing is admitted for a while; workers and Redis hold what comes."""
        self._full_until_ns = now_ns + FULL_RETRY_NS
        self._alarms.set(
            "full", "the log is full: the next segment may not be reused yet (log.on_full, log.retain_min_s); entries wait in Redis"
        )

    # -- durability -------------------------------------------------------------------------------------------------------------------

    def _submit(self) -> bool:
        work = False
        while True:
            action = self._policy.decide(self._log.open_bytes, self._writes.inflight_count)
            if action is Submit.WAIT:
                return work
            gather = self._log.take()
            if gather is None:
                return work
            work = True
            if action is Submit.INLINE and not self._log.open_bytes:
                self._writes.inline(gather)
                return work
            self._writes.submit(gather)

    def _reap(self) -> bool:
        before = self._log.durable_lsn
        if not self._writes.reap(self._log.completed):
            return False
        if self._log.durable_lsn != before:
            if self._lease_lsn == before:
                self._hasten_lease()
            self._call_durable(self._log.durable_lsn)
            self._alarms.clear("full", "the log has room again")
        return True

    def _call_durable(self, durable_lsn: int) -> None:
        """DURABLE: everything up to ``durable_lsn`` is on the device; rings, workers and counters may know (I1)."""
        newest: dict[int, Admitted] = {}
        now_ns, wall_us = monotonic_ns(), wall_ns() // 1000
        self._trace.add(now_ns, durable_lsn)
        frames = entries = records = 0
        waiting, observe = self._waiting, self._latency.observe
        for intake in self._intakes:
            if intake.held and intake.release(durable_lsn):
                ring_bell(intake.slot.back_bell)
        while waiting and waiting[0].lsn <= durable_lsn:
            admitted = waiting.popleft()
            newest[admitted.row.id] = admitted
            frames += 1
            entries += admitted.entries
            records += admitted.records
            age_us = wall_us - admitted.row.position[0] * 1000
            if 0 <= age_us < AGE_US_MAX:
                observe(age_us)
        for admitted in newest.values():
            row = admitted.row
            self._members.tell_durable(row.id, admitted.epoch, row.position, row.ordinal)
        self._members.call_durable(durable_lsn)  # after the frames: a count that came later at the same position is the truth
        self._members.flush()  # workers read on while the rest is written down here
        for admitted in newest.values():
            self._members.show(admitted.row, now_ns)
        self._block.add("frames", frames)
        self._block.add("entries", entries)
        self._block.add("records", records)
        self._show_log()

    def _show_log(self) -> None:
        self._block.set("durable_lsn", max(0, self._log.durable_lsn))
        self._block.set("next_lsn", self._log.next_lsn)
        self._block.set("segment", self._log.segment_index)
        self._block.set("segments_used", self._log.segments_used)
        self._block.set("oldest_label_ns", self._log.oldest_label_ns)

    def _tick(self, now_ns: int) -> None:
        """The lease: readers and standbys learn the durable LSN from it. Written aside: no entry waits for it."""
        if now_ns < self._lease_due_ns or self._writes.is_aside_busy:
            return
        self._writes.aside(*self._log.next_lease())
        is_moving = self._log.durable_lsn != self._lease_lsn
        self._lease_lsn = self._log.durable_lsn
        self._lease_due_ns = now_ns + (self._lease_ns if is_moving else max(self._lease_ns, 1_000_000_000))

    def _hasten_lease(self) -> None:
        """After a pause, the first durable frame is shown within one interval, not one idle tick."""
        self._lease_due_ns = min(self._lease_due_ns, monotonic_ns() + self._lease_ns)

    def close(self) -> None:
        """After draining: the last lease tick, and the device is let go."""
        self._writes.close()
        self._log.tick_lease()
        self._log.close()

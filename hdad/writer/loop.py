"""The writer's loop: frames from the rings are admitted in order, gathered, written, and called durable.

Runs in the writer's process; the only one that writes to the log. Owns where each ring was read up to and what waits for durability.
Ring room is given back only when its frames are durable, since the device reads from it. A new writer drops what the rings hold: the
positions in the log are the truth, and workers read again from there.
"""

from __future__ import annotations

import logging
import os
import select
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import orjson

from hdad._core import RingFrame
from hdad.alarms import Alarms
from hdad.clock import monotonic_ns, wall_ns
from hdad.errors import FencedError, LocalProtocolError
from hdad.exchange.channel import Channel
from hdad.exchange.slots import WorkerSlot, ring_bell
from hdad.log.appender import AppendResult, LogAppender
from hdad.log.format import FrameKind, frame_size
from hdad.log.lanes import LaneRow
from hdad.log.opening import read_leases
from hdad.log.superblock import NOBODY
from hdad.metrics.counters import Counters, State
from hdad.record import Position
from hdad.writer.admission import Verdict, judge
from hdad.writer.commit import CommitPolicy, Submit
from hdad.writer.election import asking, superseded
from hdad.writer.intake import Intake
from hdad.writer.keys import Keys
from hdad.writer.members import Members
from hdad.writer.writes import Writes

if TYPE_CHECKING:
    from hdad.config import Config

_DATA: Final = int(FrameKind.DATA)
SECOND_NS: Final = 1_000_000_000
WAIT_NS_MAX: Final = 500_000_000
AGE_US_MAX: Final = 86_400_000_000  # IDs that are no times, and backlogs of days, say nothing about latency
FULL_RETRY_NS: Final = 100_000_000
SHOW_NS: Final = 10_000_000  # counters and lane table are for people: written so often, not with every frame
ANNOUNCED_LOOKS: Final = 60  # LIMIT: about 80 us; a worker needs 20 to 60 us from a reply to its frames
HEAR_NS: Final = 1_000_000  # under load, the supervisor is listened to so often


class WriterLoop:
    """See the module."""

    def __init__(
        self, slots: list[WorkerSlot], counters: Counters, channel: Channel, config: Config, log: LogAppender, keys: Keys | None = None
    ) -> None:
        self._slots = slots
        self._keys = keys
        self._are_keys_missing = False
        self._block = counters.writer
        self._channel = channel
        self._log = log
        self._bell = slots[0].data_bell
        self._logger = logging.getLogger("hdad.writer")
        self._alarms = Alarms(channel, self._logger)
        self._intakes = [Intake(slot) for slot in slots]
        self._active: list[Intake] = []  # those in which something has ever been
        self._is_rung = True  # True: look into all of them
        self._members = Members(slots, log, counters, self._alarms)
        self._writes = Writes(log.device, config.log.inflight_max, self._bell, self._block)
        self._policy = CommitPolicy(config.log.inflight_max)
        self._waiting: deque[tuple[int, LaneRow, int, int]] = deque()  # not durable yet: LSN, its lane after it, entries, records
        self._latency = self._block.histogram("entry_to_durable_us")
        self._trace = counters.trace
        self._lease_ns = config.log.lease_interval_ms * 1_000_000
        self._renew_ns = config.log.timing.renew_ms * 1_000_000
        self._lease_due_ns = 0
        self._lease_lsn = -1
        self._look_around = self._see_who_asks if config.log.fence != "none" else lambda: None
        self._asked_by = NOBODY
        self._successor = NOBODY
        self._full_until_ns = 0
        self._unshown: dict[int, tuple[LaneRow, int]] = {}  # lanes whose row in the shared table is old: the row, when it became durable
        self._show_due_ns = 0
        self._is_spoken_to = True
        self._hear_due_ns = 0
        self._poll: select.epoll | None = None
        self.is_draining = False
        self.is_stepping_down = False
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
            and not any(intake.has_news for intake in self._intakes)
        )

    @property
    def has_stepped_down(self) -> bool:
        """True: nothing is open or in flight, and nothing is admitted any more."""
        return self.is_stepping_down and not self._writes.inflight_count and not self._log.open_bytes

    def step_down(self, successor: bytes = NOBODY) -> None:
        """Admit nothing more, make what is in flight durable, and be no writer any more: ``has_stepped_down``, then ``close``.

        What is still in the rings is read again by whoever is the writer then (I2).
        """
        self.is_stepping_down, self._successor = True, successor
        self._full_until_ns = sys.maxsize
        self._members.revoke_all()
        self._channel.send({"event": "role", "what": "releases"})

    def run_once(self, now_ns: int) -> bool:
        """One bounded round. True when anything was done. Raises DeviceError (I8) and LocalProtocolError."""
        self._block.set("heartbeat_ns", now_ns)
        work = False
        if self._is_spoken_to or now_ns >= self._hear_due_ns:
            work = self._hear_supervisor(now_ns)
        if self._is_rung:
            self._is_rung = False
            self._active += [intake for intake in self._intakes if intake.has_news and intake not in self._active]
        if now_ns >= self._full_until_ns:
            work |= self._admit_all(now_ns)
        if self._members.due_ns and not self.is_stepping_down:
            work |= self._members.reassign(now_ns)
        work |= self._submit(now_ns)
        work |= self._reap()
        self._tick(now_ns)
        self._members.flush()
        return work

    def wait(self, now_ns: int) -> None:
        """Sleep until a worker, a write or the supervisor has something, or a tick is due."""
        due_ns = min(now_ns + WAIT_NS_MAX, self._lease_due_ns)
        if self._members.due_ns:
            due_ns = min(due_ns, self._members.due_ns)
        if self._unshown:
            due_ns = min(due_ns, self._show_due_ns)
        if now_ns < self._full_until_ns:
            due_ns = min(due_ns, self._full_until_ns)
        elif any([intake.watch() for intake in self._intakes if not intake.is_watched or intake in self._active]):
            self._is_rung = True
            return
        if self._poll is None:
            self._poll = select.epoll()
            self._poll.register(self._bell, select.EPOLLIN | select.EPOLLET)  # an edge for each ring: the counter is never read
            self._poll.register(self._channel.fileno(), select.EPOLLIN)
        ready = self._poll.poll(max(0, due_ns - now_ns) / SECOND_NS)
        self._is_spoken_to = any(fd != self._bell for fd, _ in ready)
        self._is_rung = True
        self._await_announced()

    def _await_announced(self) -> None:
        """A worker that has a reply says so before it has built the frames. A short look-out for them costs less than another sleep, or
        than a write that could have been this one."""
        looks = ANNOUNCED_LOOKS
        for intake in self._active:
            while looks and intake.slot.data.is_announced:
                looks -= 1
                os.sched_yield()

    # -- supervisor -------------------------------------------------------------------------------------------------------------------

    def _hear_supervisor(self, now_ns: int) -> bool:
        self._is_spoken_to, self._hear_due_ns = False, now_ns + HEAR_NS
        self._is_rung = True
        messages = self._channel.receive()
        for message in messages:
            op = message.get("op")
            if op == "drain":
                self.is_draining = True
                self._block.set("state", State.DRAINING)
            elif op == "demote" and not self.is_stepping_down:
                self.step_down()
            elif op == "worker-dead":
                self._worker_dead(int(message["worker"]), int(message["generation"]), now_ns)
            elif op == "accept":
                self._accept(message, now_ns)
            elif op == "log-level":
                logging.getLogger().setLevel(str(message.get("level", "info")).upper())
        return bool(messages)

    def _worker_dead(self, index: int, generation: int, now_ns: int) -> None:
        if self._intakes[index].has_news and not self.is_stepping_down:
            self._admit(self._intakes[index], now_ns)  # what it had published is whole (I6), and as good as any other frame
        self._members.dead(index, generation, now_ns)

    def _accept(self, message: dict[str, Any], now_ns: int) -> None:
        position = Position(int(message["ms"]), int(message["seq"])) if "ms" in message else None
        self._members.accept(str(message["lane"]), position, now_ns)

    # -- admission --------------------------------------------------------------------------------------------------------------------

    def _admit_all(self, now_ns: int) -> bool:
        work = False
        for intake in self._active:
            if intake.has_news:
                work |= self._admit(intake, now_ns)
        return work

    def _admit(self, intake: Intake, now_ns: int) -> bool:
        """Take the frames that are new in one ring."""
        for frame in intake.frames():
            lsn = self._take(intake, frame, now_ns)
            if lsn is None:
                self._full(now_ns)
                break
            intake.taken(frame.size, lsn)
        if intake.release(self._log.durable_lsn):
            ring_bell(intake.slot.back_bell)
        return True

    def _take(self, intake: Intake, frame: RingFrame, now_ns: int) -> int | None:
        """Admit, drop or refuse one frame. Returns the LSN that its ring room waits for (0: none); None: the log is full."""
        if frame.kind != _DATA:
            if frame.kind == FrameKind.HELLO:
                return 0 if self._members.hello(intake.slot.index, _hello_of(frame), now_ns) else None
            raise LocalProtocolError(f"ring {intake.slot.index}: frame of kind {frame.kind}")
        row = self._log.lanes.get(frame.lane_id)
        if row is None and frame.lane_epoch >> 32 < self._log.epoch:  # assigned by a writer that died before the lane was durable
            self._block.add("stale")
            return 0
        if row is None:
            raise LocalProtocolError(f"ring {intake.slot.index}: frame of lane {frame.lane_id}, which there is not")
        verdict = judge(row.position, self._members.epochs[row.id], frame.lane_epoch, frame.from_, frame.to)
        if verdict is Verdict.ADMIT:
            return self._append(frame)
        if verdict is Verdict.GAP or verdict is Verdict.MALFORMED:
            self._logger.warning("lane %r: refused %s..%s, it stands at %s", row.name, frame.from_, frame.to, row.position)
            self._block.add("refused")
            self._members.refuse(row.id)
        else:
            self._block.add("repeats" if verdict is Verdict.REPEAT else "stale")
        return 0

    def _append(self, frame: RingFrame) -> int | None:
        log = self._log
        size = frame_size(frame.stored_size, log.block_size)
        if log.append(frame.view if size == frame.size else frame.view[:size], size, frame) is not AppendResult.OK:
            return None
        lsn = log.next_lsn - 1
        self._waiting.append((lsn, log.lanes[frame.lane_id], frame.entry_count, frame.record_count))
        return lsn

    def _full(self, now_ns: int) -> None:
        """Flow control: nothing is admitted for a while; workers and Redis hold what comes."""
        self._full_until_ns = now_ns + FULL_RETRY_NS
        self._alarms.set(
            "full", "the log is full: the next segment may not be reused yet (log.on_full, log.retain_min_s); entries wait in Redis"
        )

    # -- durability -------------------------------------------------------------------------------------------------------------------

    def _submit(self, now_ns: int) -> bool:
        work = False
        if self._are_keys_missing and not self._register_keys():
            return work
        if self._log.open_bytes and not self._writes.inflight_count and now_ns >= self._full_until_ns:
            self._await_announced()
            self._admit_all(now_ns)
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

    def _register_keys(self) -> bool:
        """Once nothing is on its way (writer/keys); False: something is. Raises FencedError, DeviceError."""
        if self._writes.inflight_count or self._writes.is_aside_busy:
            return False
        assert self._keys is not None
        self._keys.register()
        self._are_keys_missing = False
        return True

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
        newest: dict[int, LaneRow] = {}
        now_ns, wall_us = monotonic_ns(), wall_ns() // 1000
        self._trace.add(now_ns, durable_lsn)
        frames = entries = records = 0
        waiting = self._waiting
        while waiting and waiting[0][0] <= durable_lsn:
            _, row, entry_count, record_count = waiting.popleft()
            newest[row.id] = row
            frames += 1
            entries += entry_count
            records += record_count
        for intake in self._active:
            if intake.held and intake.release(durable_lsn):
                ring_bell(intake.slot.back_bell)
        for row in newest.values():
            self._members.tell_durable(row.id, row.epoch, row.position, row.ordinal)
        self._members.call_durable(durable_lsn)  # after the frames: a count that came later at the same position is the truth
        self._members.flush()  # workers read on while the rest is written down here
        for row in newest.values():
            self._unshown[row.id] = row, now_ns
            age_us = wall_us - row.position[0] * 1000
            if 0 <= age_us < AGE_US_MAX:
                self._latency.observe(age_us)
        self._block.add("frames", frames)
        self._block.add("entries", entries)
        self._block.add("records", records)

    def _show(self, now_ns: int) -> None:
        """What people see of lanes and log, brought up to date."""
        self._show_due_ns = now_ns + SHOW_NS
        for row, at_ns in self._unshown.values():
            self._members.show(row, at_ns)
        self._unshown.clear()
        self._show_log()

    def _show_log(self) -> None:
        self._block.set("durable_lsn", max(0, self._log.durable_lsn))
        self._block.set("next_lsn", self._log.next_lsn)
        self._block.set("segment", self._log.segment_index)
        self._block.set("segments_used", self._log.segments_used)
        self._block.set("oldest_label_ns", self._log.oldest_label_ns)

    def _tick(self, now_ns: int) -> None:
        """The lease: readers and standbys learn the durable LSN from it. Written aside: no entry waits for it."""
        if self._unshown and now_ns >= self._show_due_ns:
            self._show(now_ns)
        if now_ns < self._lease_due_ns or self._writes.is_aside_busy or self._are_keys_missing:
            return
        if self._asked_by != NOBODY and not self.is_stepping_down:
            self._logger.info("host %s asks for the log: it is released", self._asked_by.hex())
            self.step_down(self._asked_by)
        self._writes.aside(*self._log.next_lease(), self._look_around)
        is_moving = self._log.durable_lsn != self._lease_lsn
        self._lease_lsn = self._log.durable_lsn
        self._lease_due_ns = now_ns + (self._lease_ns if is_moving else self._renew_ns)

    def _see_who_asks(self) -> None:
        """Runs in the thread that has just written the lease. Raises DeviceError, FencedError (this host has a successor already)."""
        log = self._log
        leases, node = tuple(read_leases(log.device, log.superblock.uuid)), log.superblock.writer_node
        successor = superseded(leases, node, log.epoch)
        if successor is not None:
            text = f"{successor.contact} has taken the log over, writer epoch {successor.writer_epoch}"
            raise FencedError(f"{text}; has this host stood still, and its clock with it?")
        self._asked_by = asking(leases, node, log.epoch)
        if self._keys is not None and self._keys.are_missing():
            self._are_keys_missing = True

    def _hasten_lease(self) -> None:
        """After a pause, the first durable frame is shown within one interval, not one idle tick."""
        self._lease_due_ns = min(self._lease_due_ns, monotonic_ns() + self._lease_ns)

    def close(self) -> None:
        """After draining or stepping down: the lease says so, and the device is let go."""
        self._show(monotonic_ns())
        self._writes.close()
        self._log.release_lease(self._successor)
        self._log.close()


def _hello_of(frame: RingFrame) -> dict[str, Any]:
    """What a worker says. If it is another host's, its link wrote into the header which generation it is in this ring."""
    content: dict[str, Any] = orjson.loads(frame.payload)
    return {**content, "generation": frame.lane_epoch} if frame.lane_epoch else content

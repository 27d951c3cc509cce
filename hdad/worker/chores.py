"""What a worker does from time to time: finds streams, looks for losses, shows its positions to Redis and sees to it that they stay, trims
what is durable.

Runs in a worker, between reads. Every chore is bounded a round and has its time; after a failure all of
them leave Redis alone for a while (worker/backoff).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from hdad.errors import SourceError
from hdad.metrics.counters import State
from hdad.metrics.lanes import LaneState
from hdad.record import ORIGIN, Position
from hdad.source.cursor import UNKNOWN_ORDINAL, StreamInfo
from hdad.worker.backoff import Backoff
from hdad.worker.discovery import Discovery
from hdad.worker.inspection import LANES_PER_LOOK, Inspector
from hdad.worker.lane import Lane

if TYPE_CHECKING:
    from hdad.config import Config
    from hdad.worker.loop import WorkerLoop
    from hdad.worker.port import Port

GROUPS_PER_ROUND: Final = 256  # LIMIT: XGROUP SETID in one exchange
GROUPS_PER_LOOK: Final = 64  # LIMIT: streams whose group is looked at with each scan, in turns
TRIMS_PER_ROUND: Final = 64  # LIMIT: streams trimmed in one round
MS: Final = 1_000_000


class Chores:
    """One per worker loop."""

    def __init__(self, loop: WorkerLoop, config: Config) -> None:
        redis = config.redis
        self._loop = loop
        self._group = redis.group.encode()
        self._trim = redis.trim
        self._capacity = config.workers.capacity
        self._scan_ns = redis.scan_interval_ms * MS
        self._group_ns = redis.group_interval_ms * MS
        at_end = redis.start == "$" and loop.generation == 1
        self.discovery = Discovery(loop.edge, loop.alarms, redis.streams, at_end, redis.read_from == "replica")
        self._inspector = Inspector(loop.edge, loop.alarms, loop.block, self._halted, self._rebased, self._lost)
        self._paused_names: set[str] = set()
        self._introduced = False
        self.has_news = False  # True: some lane's durable position may not be shown in its group yet
        self._group_turn: Iterator[Lane] = iter(())
        self._scan_due_ns = 0
        self._group_due_ns = 0
        self._trim_due_ns = 0
        self._backoff = Backoff()
        self._failing: set[Callable[[], int]] = set()

    @property
    def due_ns(self) -> int:
        """When the next chore is due."""
        if self.discovery.has_unsent and self._introduced and len(self._loop.notices) < 2:
            return 0
        due_ns = min(self._scan_due_ns, self._group_due_ns) if self.has_news and self._group else self._scan_due_ns
        return max(due_ns, self._backoff.due_ns)

    def run(self, now_ns: int) -> bool:
        """Do what is due. True when something changed."""
        work = False
        may_ask = now_ns >= self._backoff.due_ns
        if may_ask and now_ns >= self._scan_due_ns:
            self._scan_due_ns = now_ns + self._scan_ns
            work |= bool(self._guarded(self.discovery.look, now_ns))
            if self._group and self._guarded(self._confirm_groups, now_ns):
                self.has_news = True
            for lane in self._loop.lanes.values():
                self._loop.show_lane(lane, now_ns)
        if self.discovery.has_unsent and self._introduced and len(self._loop.notices) < 2:
            streams = self.discovery.next_hello()
            self._loop.notices.append({"streams": streams})
            self.discovery.sent(len(streams))
            work = True
        if may_ask and now_ns >= self._group_due_ns and self.has_news and self._group:
            self._group_due_ns = now_ns + self._group_ns
            self._guarded(self._show_groups, now_ns)
        if may_ask and self._trim == "durable" and now_ns >= self._trim_due_ns:
            self._trim_due_ns = now_ns + self._scan_ns
            self._guarded(self._trim_durable, now_ns)
        return work

    @property
    def is_fine(self) -> bool:
        """True: each chore that asked Redis got an answer the last time."""
        return not self._failing

    def _guarded(self, chore: Callable[[], int], now_ns: int) -> int:
        loop = self._loop
        try:
            count = chore()
        except SourceError as error:
            loop.edge.close()
            loop.block.add("read_errors", 1)
            self._backoff.failed(now_ns, random.random())
            self._failing.add(chore)
            if loop.is_source_fine:  # otherwise the reads have said it
                loop.alarms.set("redis", f"{error}; tried again by itself")
            return 0
        self._recovered(chore)
        return count

    def _recovered(self, chore: Callable[[], int]) -> None:
        """It got its answer, or had nothing to ask: which says nothing of the others."""
        if chore not in self._failing:
            return
        self._failing.remove(chore)
        if not self._failing:
            self._backoff.succeeded()
            if self._loop.is_source_fine:
                self._loop.alarms.clear("redis", "Redis answers again")

    def introduce(self) -> None:
        """The writer asks who is here."""
        self._introduced = True
        if not (self._loop.is_paused or self._loop.is_draining or self._loop.lanes):
            self._loop.set_state(State.READY)
        self._loop.notices.clear()
        self._loop.notices.append({"is_first": True, "streams": {}, "capacity": self._capacity})
        self.discovery.restart()

    def reload(self, changes: Mapping[str, Any]) -> None:
        """Keys that may change while running."""
        if "redis.streams" in changes:
            self.discovery.set_streams(list(changes["redis.streams"]))
            self._scan_due_ns = 0
        self._trim = changes.get("redis.trim", self._trim)
        if self._trim == "off":
            self._recovered(self._trim_durable)

    def pause_lanes(self, pause: bool, names: list[str] | None) -> None:
        """Stop or go on reading some lanes; None: all of them."""
        if names is None:
            self._paused_names.clear()
        elif pause:
            self._paused_names.update(names)
        else:
            self._paused_names.difference_update(names)
        for lane in self._loop.lanes.values():
            self._apply_pause(lane)
        for port in self._loop.ports.values():
            port.reconsider()

    def _apply_pause(self, lane: Lane) -> None:
        if lane.stream in self._paused_names:
            if not lane.halted:
                lane.state = LaneState.PAUSED
        elif lane.state == LaneState.PAUSED:
            lane.state = LaneState.IDLE
            for port in self._loop.ports.values():
                port.unchecked += [lane] if lane in port.lanes else []

    # -- looks ------------------------------------------------------------------------------------------------------------------------

    def check(self, port: Port, now_ns: int) -> None:
        """Look at lanes that were not looked at yet, and at some of the others in turns. Raises SourceError."""
        loop = self._loop
        lanes = port.unchecked
        port.unchecked = []
        is_routine = not lanes
        if is_routine:
            port.check_due_ns = now_ns + self._scan_ns
            start = port.check_turn if port.check_turn < len(port.lanes) else 0
            lanes = port.lanes[start : start + LANES_PER_LOOK]
            port.check_turn = start + LANES_PER_LOOK
        halted = [lane.halted for lane in lanes]
        try:
            for start in range(0, len(lanes), LANES_PER_LOOK):
                some = [lane for lane in lanes[start : start + LANES_PER_LOOK] if loop.lanes.get(lane.lane_id) is lane]
                for lane in self._inspector.look(some, port.hot if port.is_copy else None):
                    loop.declare(lane)
                for lane in some:
                    self._apply_pause(lane)
                    loop.show_lane(lane, now_ns)
        except SourceError:
            if port.is_copy and is_routine:
                return  # the master is away, its replica is not: what was looked at before is read on
            port.unchecked = list(port.lanes)
            raise
        finally:
            if not is_routine or [lane.halted for lane in lanes] != halted:
                port.reconsider()

    @property
    def is_copy_behind(self) -> bool:
        """In the last look, a replica had nothing for a lane whose master has something."""
        return self._inspector.is_copy_behind

    def _halted(self, lane: Lane) -> None:
        self._loop.notices.append({"halt": [lane.lane_id, lane.epoch]})

    def _rebased(self, lane: Lane) -> None:
        self._loop.notices.append({"rebase": [lane.lane_id, lane.epoch, lane.ordinal, *lane.read]})

    def _lost(self, lane: Lane, count: int) -> None:
        self._loop.notices.append({"lost": [lane.lane_id, lane.epoch, count, *lane.read]})

    # -- what Redis is told -----------------------------------------------------------------------------------------------------------

    def _show_groups(self) -> int:
        news = [lane for lane in self._loop.lanes.values() if lane.has_news]
        news.sort(key=lambda lane: lane.is_refused)  # those that were refused are tried again, after the others
        moved = news[:GROUPS_PER_ROUND]
        wanted = [(lane, lane.durable, lane.durable_ordinal) for lane in moved]
        refused = self._loop.edge.set_groups(
            self._group, [(lane.name, position, None if ordinal == UNKNOWN_ORDINAL else ordinal) for lane, position, ordinal in wanted]
        )
        for lane, position, ordinal in wanted:
            lane.is_refused = lane.name in refused
            if not lane.is_refused:
                lane.shown = position, ordinal
        self.has_news = len(news) > len(moved) or bool(refused)
        if refused:
            name, text = next(iter(refused.items()))
            self._loop.alarms.set("group", f"Redis refused to show the position of {len(refused)} lanes, the first {name!r}: {text}")
        elif not any(lane.is_refused for lane in self._loop.lanes.values()):
            self._loop.alarms.clear("group")
        return len(moved)

    def _confirm_groups(self) -> int:
        """Look, in turns, whether Redis still shows what it was told: a worker of another host that stood still, and goes on before it
        hears that its lanes were given away, shows once more where it stood. Returns how many lanes are to be shown again."""
        some = list(islice(self._group_turn, GROUPS_PER_LOOK))
        if not some:
            self._group_turn = iter(list(self._loop.lanes.values()))
        lanes = [lane for lane in some if not (lane.is_dropped or lane.halted or lane.has_news) and lane.durable > ORIGIN]
        found = self._loop.edge.group_positions(self._group, [lane.name for lane in lanes]) if lanes else {}
        behind = [lane for lane in lanes if found.get(lane.name, lane.durable) < lane.durable]
        for lane in behind:
            lane.shown = ORIGIN, UNKNOWN_ORDINAL
        return len(behind)

    def _trim_durable(self) -> int:
        lanes = (lane for lane in self._loop.lanes.values() if lane.durable > lane.trimmed and lane.is_proven and not lane.halted)
        moved = list(islice(lanes, TRIMS_PER_ROUND))
        infos = self._loop.edge.stream_infos([lane.name for lane in moved]) if moved else []
        for lane, info in zip(moved, infos, strict=True):
            durable = lane.durable
            if not isinstance(info, StreamInfo) or info.last < durable or info.entries_added < lane.durable_ordinal % UNKNOWN_ORDINAL:
                lane.doubt()  # this connection leads elsewhere, or the stream went backwards: the look that comes tells
                continue
            below = _after(durable)
            for group in self._loop.edge.other_groups(lane.name, self._group):
                below = min(below, _after(group.delivered))
                if group.pending_first is not None:
                    below = min(below, group.pending_first)
            if below > ORIGIN:
                self._loop.edge.trim(lane.name, below)
            lane.trimmed = durable if below == _after(durable) else lane.trimmed
        return len(moved)


def _after(position: Position) -> Position:
    """The smallest position after ``position``."""
    return Position(position.ms, position.seq + 1) if position.seq < 2**64 - 1 else Position(position.ms + 1, 0)

"""What a host without the writer knows of its lanes: from the writer's messages and from the frames that are done. Fills the writer's
columns.

Runs in the link of a host without the writer. Positions are the log's; counts (without what was on its way when a connection was lost)
are this host's own since its daemon started, as far as frames went out from here, since the log's are on another host.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hdad._core import RingFrame
from hdad.exchange.backring import Message, MessageType
from hdad.metrics.counters import RoleBlock
from hdad.metrics.lanes import LaneTable
from hdad.record import ORIGIN, Position

SHOW_NS: Final = 50_000_000  # rows are written at most so often
AGE_US_MAX: Final = 86_400_000_000


@dataclass(slots=True)
class Tally:
    """One lane. ``worker`` -1: nobody here reads it."""

    name: bytes = b""
    worker: int = -1
    epoch: int = 0
    begun: Position = ORIGIN  # where the assignment under ``epoch`` began
    durable: Position = ORIGIN
    entries: int = 0
    committed: int = 0
    dead: int = 0
    filtered: int = 0
    lost: int = 0
    frames: int = 0
    durable_at_ns: int = 0


class Ledger:
    """``block``: the writer's counters, which nobody else fills on this host."""

    def __init__(self, table: LaneTable, block: RoleBlock) -> None:
        self._table = table
        self._block = block
        self._latency = block.histogram("entry_to_durable_us")
        self._tallies: dict[int, Tally] = {}  # LIMIT: lanes of the log
        self._changed: set[int] = set()
        self._show_due_ns = 0

    def _tally(self, lane_id: int) -> Tally:
        found = self._tallies.get(lane_id)
        if found is None:
            found = self._tallies[lane_id] = Tally()
            row = self._table.row(lane_id)  # of the link before this one
            if row is not None:
                found.name, found.durable = row.name, row.position
                found.entries, found.committed, found.dead = row.entries, row.committed, row.dead
                found.filtered, found.lost, found.frames = row.filtered, row.lost, row.frames
        return found

    def told(self, worker: int, message: Message, now_ns: int) -> None:
        """A message of the writer to a worker here."""
        kind = message.type
        if kind is MessageType.WHO or kind is MessageType.WELCOME or not 0 < message.lane_id < self._table.lanes_max:
            return
        tally = self._tally(message.lane_id)
        if kind is MessageType.DURABLE:
            tally.durable, tally.durable_at_ns = message.position, now_ns
        elif kind is MessageType.REVOKE:
            if tally.worker == worker:
                tally.worker = -1
        else:
            tally.name, tally.worker, tally.epoch, tally.begun = message.name, worker, message.lane_epoch, message.position
        self._changed.add(message.lane_id)

    def forget_owners(self) -> None:
        """The connection is over: nobody here reads anything until told anew."""
        for lane_id, tally in self._tallies.items():
            if tally.worker >= 0:
                tally.worker = -1
                self._changed.add(lane_id)

    def done(self, found: Iterable[RingFrame], wall_us: int) -> None:
        """Frames that the writer has done with. Of an older assignment, those count that lie before the present one: others were dropped.

        A lane that went to another host may have left frames that were dropped there, which nobody tells: they count here and there.
        """
        frames = entries = records = 0
        for frame in found:
            tally = self._tally(frame.lane_id)
            if frame.lane_epoch != tally.epoch and frame.to > tally.begun:
                continue
            tally.entries += frame.entry_count
            tally.committed += frame.committed_count
            tally.dead += frame.dead_count
            tally.filtered += frame.filtered_count
            tally.lost += frame.lost_count
            tally.frames += 1
            self._changed.add(frame.lane_id)
            frames += 1
            entries += frame.entry_count
            records += frame.record_count
            age_us = wall_us - frame.to[0] * 1000
            if 0 <= age_us < AGE_US_MAX:
                self._latency.observe(age_us)
        if frames:
            self._block.add("frames", frames)
            self._block.add("entries", entries)
            self._block.add("records", records)

    def show(self, now_ns: int) -> None:
        """Write the rows that changed, if it is time."""
        if not self._changed or now_ns < self._show_due_ns:
            return
        self._show_due_ns = now_ns + SHOW_NS
        for lane_id in self._changed:
            tally = self._tallies[lane_id]
            self._table.write_row(
                lane_id, name=tally.name, worker=tally.worker, epoch=tally.epoch, position=tally.durable, entries=tally.entries,
                committed=tally.committed, dead=tally.dead, filtered=tally.filtered, lost=tally.lost, frames=tally.frames,
                durable_at_ns=tally.durable_at_ns,
            )  # fmt: skip
        self._changed.clear()

    @property
    def due_ns(self) -> int:
        """When ``show`` has something to do; 0: nothing."""
        return self._show_due_ns if self._changed else 0

"""Who reads which lane: HELLOs of workers, new lanes, assignment with growing epochs, messages back.

Runs in the writer. Owns the lane epochs of this writer and each worker's outbox; who reads what is writer/assignment's to say, by how
much each lane brings (writer/rates), which is looked at in turns. A lane that is not owned is assigned as soon as somebody sees it; a
halted lane is nobody's until the operator accepts it.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, NamedTuple

from hdad.alarms import Alarms
from hdad.exchange.backring import Message, MessageType, Outbox, decode, encode_durable
from hdad.exchange.slots import WorkerSlot, ring_bell
from hdad.limits import LANES_MAX
from hdad.log.appender import AppendResult, LogAppender
from hdad.log.lanes import BEFORE_UNKNOWN, LaneRow
from hdad.metrics.counters import Counters
from hdad.record import Position
from hdad.writer.assignment import CAPACITY, Assignment, sight_of
from hdad.writer.rates import Rates

SETTLE_NS: Final = 20_000_000  # HELLOs come in crowds: assign once after them
RATE_LOOK_NS: Final = 100_000_000
LANES_PER_RATE_LOOK: Final = 512  # LIMIT: so that 65,536 lanes are looked at in 13 s, at 0.2 ms a look
BALANCE_NS: Final = 5_000_000_000
_U64: Final = 2**64
UNKNOWN_ORDINAL: Final = _U64 - 1  # as source/cursor has it


@dataclass(slots=True)
class Member:
    """One worker slot as the writer sees it."""

    slot: WorkerSlot
    generation: int = 0
    is_alive: bool = False
    outbox: Outbox = field(default_factory=Outbox)


class Assigned(NamedTuple):
    """A lane was assigned, or counted anew, at a position that is durable once ``lsn`` is."""

    lsn: int
    lane_id: int
    epoch: int
    position: Position
    ordinal: int


class Members:
    """All workers of this host and the lanes they read."""

    def __init__(self, slots: list[WorkerSlot], log: LogAppender, counters: Counters, alarms: Alarms) -> None:
        self.members = [Member(slot) for slot in slots]
        self._log = log
        self._table = counters.lanes
        self._alarms = alarms
        self._logger = logging.getLogger("hdad.writer")
        self._epoch_count = 0
        self._assignment = Assignment()
        self.owners: Mapping[int, int] = self._assignment.owners
        self._rates = Rates()
        self._rate_turn: Iterator[int] = iter(())  # lanes whose rate is still to be looked at in this turn
        self._rate_due_ns = 0
        self._balance_due_ns = 0
        self.epochs: dict[int, int] = dict.fromkeys(log.lanes, 0)
        self._assign_due_ns = 0
        self._assigned: deque[Assigned] = deque()  # LIMIT: one per assignment while a write is in flight
        for row in log.lanes.values():
            self.show(row)
            if row.is_halted:
                self._assignment.hold(row.id)
                self._tell_halted(row)

    def ask_all(self) -> None:
        """A new writer: whoever is there shall say so."""
        for member in self.members:
            member.outbox.put(Message(MessageType.WHO))

    def next_epoch(self) -> int:
        """A lane epoch greater than all before (I4)."""
        self._epoch_count += 1
        return self._log.epoch << 32 | self._epoch_count

    # -- HELLO ------------------------------------------------------------------------------------------------------------------------

    def hello(self, index: int, content: Mapping[str, Any], now_ns: int) -> bool:
        """A worker's word. False: the log has no room for the new lanes it names; try the same again later."""
        member = self.members[index]
        if content.get("is_gone"):  # said by the link, behind all that a worker of another host had sent
            self.dead(index, content["generation"], now_ns)
            return True
        if not content.get("is_first") and content["generation"] != member.generation:
            return True  # said to the writer before this one; asked WHO, the worker tells everything again
        streams: dict[str, list[int]] = content.get("streams", {})
        if not self._create_lanes(streams):
            return False
        if content.get("is_first"):
            self._forget(member)
            member.outbox.who = False
            member.generation, member.is_alive = content["generation"], True
            self._assignment.join(index, content.get("capacity", CAPACITY))
            member.outbox.put(Message(MessageType.WELCOME, extra=member.generation))
            self._assign_due_ns = self._assign_due_ns or now_ns + SETTLE_NS
        if streams and member.is_alive:
            known = (self._log.lane_by_name.get(name.encode("latin-1")) for name in streams)
            self._assignment.see(index, sight_of(lane for lane in known if lane is not None))
            self._assign_due_ns = self._assign_due_ns or now_ns + SETTLE_NS
        if "halt" in content:
            return self._halt(*content["halt"])
        if "rebase" in content:
            return self._rebase(*content["rebase"])
        if "lost" in content:
            return self._lost(*content["lost"])
        return True

    def _create_lanes(self, streams: Mapping[str, list[int]]) -> bool:
        rows: list[LaneRow] = []
        next_id = max(self._log.lanes, default=0) + 1
        for text, (ms, seq, before) in streams.items():
            name = text.encode("latin-1")
            if name in self._log.lane_by_name:
                continue
            if next_id + len(rows) >= LANES_MAX:
                self._alarms.set("lanes", f"the log holds {LANES_MAX - 1} lanes, no more fit; stream {text} is not read")
                break
            rows.append(LaneRow.new(next_id + len(rows), name, Position(ms, seq), before))
        if not rows:
            return True
        if not self._log.has_room_for_lanes(rows):
            self._alarms.set("lanes", f"the lane table would be larger than a quarter of a segment; {len(rows)} new streams are not read")
            return True
        if not self._append_rows(rows):
            return False
        self._logger.info("%d new lanes, the first %r from %s", len(rows), rows[0].name, rows[0].position)
        return True

    def _append_rows(self, rows: list[LaneRow]) -> bool:
        if self._log.lanes_frame(rows) is not AppendResult.OK:
            return False
        for row in rows:
            self.epochs.setdefault(row.id, 0)
            self.show(self._log.lanes[row.id])
        return True

    def _halt(self, lane_id: int, epoch: int) -> bool:
        row = self._log.lanes.get(lane_id)
        if row is None or self.epochs.get(lane_id) != epoch or row.is_halted:
            return True
        halted = row._replace(is_halted=True)
        if not self._append_rows([halted]):
            return False
        self._assignment.hold(lane_id)
        self._tell_halted(halted)
        return True

    def _tell_halted(self, row: LaneRow) -> None:
        name = row.name.decode("utf-8", "replace")
        self._alarms.set(
            f"halted:{name}", f"lane {name} is halted at {row.position}: its stream went backwards. See: hdactl lane accept --help"
        )

    def _rebase(self, lane_id: int, epoch: int, ordinal: int, ms: int, seq: int) -> bool:
        row = self._log.lanes.get(lane_id)
        if row is None or self.epochs.get(lane_id) != epoch or row.position != Position(ms, seq):
            return True
        before = BEFORE_UNKNOWN if ordinal == UNKNOWN_ORDINAL else (ordinal - row.entries - row.lost) % _U64
        return self._append_counted(row._replace(before=before))

    def _lost(self, lane_id: int, epoch: int, count: int, ms: int, seq: int) -> bool:
        """Entries before the lane's position that nobody had read are gone, and no frame is there to carry their number."""
        row = self._log.lanes.get(lane_id)
        if row is None or self.epochs.get(lane_id) != epoch or row.position != Position(ms, seq):
            return True
        return self._append_counted(row._replace(lost=row.lost + count))

    def _append_counted(self, row: LaneRow) -> bool:
        """A row whose ordinal has changed, and not its position: its owner shall show the count, once it is durable."""
        if not self._append_rows([row]):
            return False
        self._assigned.append(Assigned(self._log.next_lsn - 1, row.id, self.epochs[row.id], row.position, row.ordinal))
        return True

    def accept(self, name: str, position: Position | None, now_ns: int) -> bool:
        """The operator's word: a halted lane goes on at ``position`` (None: where it stands). False: no halt, or no room in the log."""
        lane_id = self._log.lane_by_name.get(name.encode("utf-8", "surrogateescape"))
        row = self._log.lanes.get(lane_id) if lane_id is not None else None
        if row is None:
            self._alarms.tell(f"lane accept: there is no lane {name}")
            return False
        if not row.is_halted:  # an accepted position may repeat entries: only ever by an operator's word on a halt
            self._alarms.tell(f"lane accept: lane {name} is not halted; nothing was changed")
            return False
        new = row._replace(position=row.position if position is None else position, before=BEFORE_UNKNOWN, is_halted=False)
        if not self._append_rows([new]):
            return False
        self._alarms.clear(f"halted:{name}", f"lane {name} accepted, it goes on from {new.position}")
        owner = self.owners.get(row.id)
        if owner is not None:  # another worker may have the lane next, and this one would go on showing where it stood
            self.members[owner].outbox.put(Message(MessageType.REVOKE, row.id, self.epochs[row.id]))
        self._assignment.release(row.id)
        self.epochs[row.id] = self.next_epoch()  # whatever is still on its way belongs to the old assignment
        self._assign_due_ns = now_ns
        return True

    # -- assignment -------------------------------------------------------------------------------------------------------------------

    def dead(self, index: int, generation: int, now_ns: int) -> None:
        """A worker's process has ended. Its successor may have said HELLO before this writer came to hear of it."""
        if self.members[index].generation > generation:
            return
        self._forget(self.members[index])
        self._assign_due_ns = now_ns

    def _forget(self, member: Member) -> None:
        member.is_alive = False
        member.outbox.clear()
        for lane_id in self._assignment.leave(member.slot.index):
            self.epochs[lane_id] = self.next_epoch()
            self.show(self._log.lanes[lane_id])

    @property
    def due_ns(self) -> int:
        """When lanes are to be assigned; 0: nothing to do."""
        return self._assign_due_ns

    def reassign(self, now_ns: int) -> bool:
        """Look at rates and assign what should be, if it is time. True if lanes moved."""
        if now_ns >= self._rate_due_ns:
            self._look_at_rates(now_ns)
        if not self._assign_due_ns or now_ns < self._assign_due_ns:
            return False
        self._assign_due_ns = 0
        self._balance_due_ns = now_ns + BALANCE_NS
        moves = self._assignment.plan()
        for lane_id, worker, before in moves:
            if before is not None:
                self.members[before].outbox.put(Message(MessageType.REVOKE, lane_id, self.epochs[lane_id]))
            if worker is not None:
                self._assign(lane_id)
            else:
                self.epochs[lane_id] = self.next_epoch()
            self.show(self._log.lanes[lane_id])
        if moves:
            self._assign_due_ns = now_ns + SETTLE_NS  # moves are bounded a round: see whether more are called for
        return bool(moves)

    def _look_at_rates(self, now_ns: int) -> None:
        """What some of the lanes bring; and from time to time, whether lanes should move for it."""
        self._rate_due_ns = now_ns + RATE_LOOK_NS
        looked_at = 0
        for lane_id in islice(self._rate_turn, LANES_PER_RATE_LOOK):
            looked_at += 1
            rate = self._rates.observe(lane_id, self._log.lanes[lane_id].entries, now_ns)
            if rate is not None:
                self._assignment.weigh(lane_id, rate)
        if not looked_at:
            self._rate_turn = iter(list(self._log.lanes))
        if now_ns >= self._balance_due_ns:
            self._balance_due_ns = now_ns + BALANCE_NS
            self._assign_due_ns = self._assign_due_ns or now_ns

    def _assign(self, lane_id: int, kind: MessageType = MessageType.ASSIGN) -> None:
        row = self._log.lanes[lane_id]
        epoch = self.epochs[lane_id] = self.next_epoch()
        self.members[self.owners[lane_id]].outbox.put(Message(kind, lane_id, epoch, row.position, row.ordinal, row.name))
        self._assigned.append(Assigned(self._log.next_lsn - 1, lane_id, epoch, row.position, row.ordinal))
        self.call_durable(self._log.durable_lsn)

    def revoke_all(self) -> None:
        """This host stops being the writer: its workers have no lanes any more."""
        self._assign_due_ns = 0
        for lane_id, owner in self.owners.items():
            self.members[owner].outbox.put(Message(MessageType.REVOKE, lane_id, self.epochs[lane_id]))
        for index in set(self.owners.values()):
            for lane_id in self._assignment.leave(index):
                self.show(self._log.lanes[lane_id])
        self.flush()

    def refuse(self, lane_id: int) -> None:
        """The owner left a gap: it shall go on where the lane stands, under a new epoch, so that what follows the gap is stale."""
        if lane_id in self.owners:
            self._assign(lane_id, MessageType.REFUSED)

    def call_durable(self, durable_lsn: int) -> None:
        """Lanes are assigned where they stand, which may be before that is durable: the worker learns of it when it is (I1)."""
        while self._assigned and self._assigned[0].lsn <= durable_lsn:
            _, lane_id, epoch, position, ordinal = self._assigned.popleft()
            if not self._is_overtaken(lane_id, epoch, position):
                self.tell_durable(lane_id, epoch, position, ordinal)

    def _is_overtaken(self, lane_id: int, epoch: int, position: Position) -> bool:
        """A frame that came later is durable, too, and what waits to be sent tells so."""
        waiting = self.members[self.owners[lane_id]].outbox.durable.get(lane_id) if lane_id in self.owners else None
        return waiting is not None and any(told.lane_epoch == epoch and told.position > position for told in decode(waiting))

    def tell_durable(self, lane_id: int, epoch: int, position: Position, ordinal: int) -> None:
        """Everything of the lane up to ``position`` is durable."""
        owner = self.owners.get(lane_id)
        if owner is not None and self.epochs[lane_id] == epoch:
            self.members[owner].outbox.durable[lane_id] = encode_durable(lane_id, epoch, position, ordinal)

    def flush(self) -> None:
        """Send what fits."""
        for member in self.members:
            if member.outbox and member.outbox.flush(member.slot.back):
                ring_bell(member.slot.back_bell)

    def show(self, row: LaneRow, durable_at_ns: int = 0) -> None:
        """The writer's columns of the lane table."""
        self._table.write_row(
            row.id,
            name=row.name,
            worker=self.owners.get(row.id, -1),
            epoch=self.epochs.get(row.id, row.epoch),
            position=row.position,
            entries=row.entries,
            committed=row.committed,
            dead=row.dead,
            filtered=row.filtered,
            lost=row.lost,
            frames=row.frames,
            durable_at_ns=durable_at_ns,
        )

"""Entries on which a stage hangs or kills its worker: found by halving the company they run in, then dead-lettered.

Before a stage sees entries, the worker writes their range into the shared lane table; after, it wipes it. A worker that dies in between
leaves the range to its successor, which runs those entries one by one. An entry that was alone when a worker died, ATTEMPTS_MAX deaths
after the first sight of it, is dead-lettered without being run. So one bad entry stops its lane for a few time limits, not for ever; and
since each suspect makes a frame of its own, what is known of one is not lost when the next kills the worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from hdad.record import Position
from hdad.worker.batch import Record
from hdad.worker.lane import Lane, Suspect
from hdad.worker.stage import DeadLetter, Outcome, describe

ATTEMPTS_MAX: Final = 3


class TrialTable(Protocol):
    """The columns of the lane table that outlive a worker."""

    def write_trial(self, lane_id: int, first: Position, last: Position, count: int, attempts: int) -> None: ...
    def read_trial(self, lane_id: int) -> tuple[Position, Position, int, int]: ...


class Trials:
    """The worker's hand on the trial columns."""

    def __init__(self, table: TrialTable) -> None:
        self._table = table

    def recall(self, lane: Lane) -> None:
        """At assignment: what an earlier worker left behind."""
        first, last, count, attempts = self._table.read_trial(lane.lane_id)
        lane.suspect = Suspect(first, last, count, attempts) if attempts else None

    def run(self, lane: Lane, records: Sequence[Record], call: Callable[[Sequence[Record]], Outcome]) -> Outcome:
        """Run ``call`` over ``records``, one by one where they are suspect."""
        suspect = lane.suspect
        if suspect is None or suspect.last < records[0].position or suspect.first > records[-1].position:
            return self._watched(lane, records, call, 1)
        kept: list[Record] = []
        dead: list[DeadLetter] = []
        for record in records:
            inside = suspect.first <= record.position <= suspect.last
            if inside and suspect.count == 1 and suspect.attempts >= ATTEMPTS_MAX:
                error = f"{suspect.attempts} workers died or were killed for its time limit while a stage had it"
                dead.append(
                    DeadLetter(record.position, describe("stage hung or killed its worker", lane.stages[0].name, lane.stream, error))
                )
                continue
            outcome = self._watched(lane, [record], call, suspect.attempts + 1 if inside else 1)
            kept += outcome.records
            dead += outcome.dead
        if suspect.last <= records[-1].position:
            lane.suspect = None
        return Outcome(kept, dead)

    def _watched(self, lane: Lane, records: Sequence[Record], call: Callable[[Sequence[Record]], Outcome], attempts: int) -> Outcome:
        first, last = records[0].position, records[-1].position
        self._table.write_trial(lane.lane_id, first, last, len(records), attempts)
        outcome = call(records)
        self._table.write_trial(lane.lane_id, first, last, 0, 0)
        return outcome

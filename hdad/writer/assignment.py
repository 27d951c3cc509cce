"""Which worker reads which lane: sticky, balanced, with a bounded number of moves a round. Pure.

A function of the members (which lanes each sees) and of the present owners; two calls with the same input give the same answer,
whatever the order of the mappings.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Final, NamedTuple

MOVES_MAX: Final = 64  # LIMIT: lanes taken from a living worker in one round; a lane without an owner is always given


class Move(NamedTuple):
    """Lane ``lane_id`` goes to ``worker`` (None: nobody sees it any more)."""

    lane_id: int
    worker: int | None


def assign(members: Mapping[int, Set[int]], owners: Mapping[int, int], moves_max: int = MOVES_MAX) -> list[Move]:
    """The moves that bring ``owners`` (lane → worker) to what ``members`` (worker → lanes it sees) call for.

    First, a lane whose owner is gone or no longer sees it goes to the least loaded worker that sees it. Then the most loaded worker
    gives lanes, highest id first, to the least loaded one, until they differ by one at most or ``moves_max`` lanes have moved.
    """
    kept = {lane: worker for lane, worker in owners.items() if lane in members.get(worker, ())}
    held: dict[int, set[int]] = {worker: set() for worker in members}
    for lane, worker in kept.items():
        held[worker].add(lane)
    moves: list[Move] = []
    seen = set().union(*members.values()) if members else set()
    for lane in sorted(seen - kept.keys()):
        worker = min((w for w in members if lane in members[w]), key=lambda w: (len(held[w]), w))
        held[worker].add(lane)
        moves.append(Move(lane, worker))
    moves.extend(Move(lane, None) for lane in sorted(owners.keys() - seen))
    moves.extend(_balance(members, held, moves_max))
    return _last_of_each(moves)


def _balance(members: Mapping[int, Set[int]], held: dict[int, set[int]], moves_max: int) -> list[Move]:
    moves: list[Move] = []
    while len(moves) < moves_max and len(held) > 1:
        by_load = sorted(held, key=lambda w: (len(held[w]), w))
        pairs = (
            (giver, taker)
            for giver in reversed(by_load)
            for taker in by_load
            if len(held[giver]) - len(held[taker]) > 1 and not held[giver].isdisjoint(members[taker])
        )
        giver, taker = next(pairs, (None, None))
        if giver is None or taker is None:
            break
        lane = max(held[giver] & members[taker])
        held[giver].discard(lane)
        held[taker].add(lane)
        moves.append(Move(lane, taker))
    return moves


def _last_of_each(moves: list[Move]) -> list[Move]:
    final = {move.lane_id: move for move in moves}
    return list(final.values())

"""Which worker reads which lane: sticky, balanced by measured rate, with a bounded number of moves a round. Pure.

A machine that hears of members, of what each of them sees, and of how much each lane brings, and says on request which lanes should
move. What it answers depends on what it was told and on the present owners, never on the order of mappings. A worker's death costs
the lanes it had, a HELLO the lanes it names, a round the lanes without an owner and the members, each with a logarithm: nothing is lanes
times workers. What a member sees is a bit set (one int, bit = lane id), so that thousands of members that see the same share it.

    weight of a lane   entries a second, plus IDLE_WEIGHT: a stream named in a read costs the server even when it has nothing
    load of a member   the weights of its lanes over its capacity
    slack              load differences not worth a move: SLACK_PERCENT of the mean of what is measured, and of what the giver has;
                       0 while nothing is measured, so that idle lanes are spread evenly
"""

from __future__ import annotations

import heapq
from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Final, NamedTuple

MOVES_MAX: Final = 64  # LIMIT: lanes taken from a living worker in one round; a lane without an owner is always given
CAPACITY: Final = 100  # of a worker that says nothing: the unit
IDLE_WEIGHT: Final = 100  # an idle stream costs the server 0.2 us a read (measured), as much as an entry; some 100 reads a second
SLACK_PERCENT: Final = 15
GROUPS_PER_LANE: Final = 4  # on average; where lanes are seen by more, the least loaded of each group are tried in turn
_SCALE: Final = 1 << 20  # loads are whole numbers: sums in any order are the same


class Move(NamedTuple):
    """Lane ``lane_id`` goes to ``worker`` (None: nobody may read it, or nobody sees it any more) from ``before`` (None: nobody)."""

    lane_id: int
    worker: int | None
    before: int | None = None


def sight_of(lanes: Iterable[int]) -> int:
    """The bit set of ``lanes``."""
    marks = bytearray()
    for lane in lanes:
        if lane >> 3 >= len(marks):
            marks.extend(bytes((lane >> 3) + 1 - len(marks)))
        marks[lane >> 3] |= 1 << (lane & 7)
    return int.from_bytes(marks, "little")


def lanes_in(sight: int) -> Iterator[int]:
    """The lanes of a bit set, ascending."""
    text = bin(sight)[:1:-1]  # the digits from the lowest on: searching them is one C loop
    lane = text.find("1")
    while lane >= 0:
        yield lane
        lane = text.find("1", lane + 1)


@dataclass(slots=True, eq=False)
class _Group:
    """Members with just this sight."""

    sight: int
    members: dict[int, _Member] = field(default_factory=dict)
    marks: bytes = b""  # the sight, made to be looked up in

    def sees(self, lane: int) -> bool:
        marks = self.marks
        if not marks:
            marks = self.marks = self.sight.to_bytes((self.sight.bit_length() >> 3) + 1, "little")
        return lane >> 3 < len(marks) and bool(marks[lane >> 3] >> (lane & 7) & 1)


@dataclass(slots=True, eq=False)
class _Member:
    index: int
    capacity: int
    group: _Group
    weight: int = 0
    load: int = 0
    lanes: set[int] = field(default_factory=set)

    def add(self, weight: int) -> None:
        self.weight += weight
        self.load = self.weight * _SCALE // self.capacity


class _Order:
    """Members by load, lowest first, in each group and over all groups. A change of load is told by ``update``; heap entries that are no
    longer true are passed over."""

    def __init__(self, groups: Iterable[_Group]) -> None:
        self._crowds: dict[int, list[tuple[int, int, _Member]]] = {}
        self._lowest: list[tuple[int, int, _Member]] = []  # of each group
        for group in groups:
            crowd = [(member.load, member.index, member) for member in group.members.values()]
            heapq.heapify(crowd)
            self._crowds[id(group)] = crowd
            self._lowest.append(crowd[0])
        heapq.heapify(self._lowest)

    def lowest_in(self, group: _Group) -> _Member:
        crowd = self._crowds[id(group)]
        while crowd[0][0] != crowd[0][2].load:
            heapq.heappop(crowd)
        return crowd[0][2]

    def ascending(self) -> Iterator[_Member]:
        """The least loaded of each group, lowest first. To be used up, or closed, before the next ``update``."""
        passed: list[tuple[int, int, _Member]] = []
        try:
            while self._lowest:
                load, _, member = heapq.heappop(self._lowest)
                if load != member.load or self.lowest_in(member.group) is not member:
                    continue
                if passed and passed[-1][2] is member:
                    continue
                passed.append((load, member.index, member))
                yield member
        finally:
            for entry in passed:
                heapq.heappush(self._lowest, entry)

    def update(self, member: _Member) -> None:
        heapq.heappush(self._crowds[id(member.group)], (member.load, member.index, member))
        lowest = self.lowest_in(member.group)
        heapq.heappush(self._lowest, (lowest.load, lowest.index, lowest))

    def lowest_that_sees(self, lane: int) -> _Member:
        heap = self._lowest
        while heap[0][0] != (member := heap[0][2]).load or self.lowest_in(member.group) is not member:
            heapq.heappop(heap)
        if member.group.sees(lane):  # as nearly always: without the turn of a generator
            return member
        members = self.ascending()
        member = next(member for member in members if member.group.sees(lane))
        members.close()  # type: ignore[attr-defined]
        return member


class Assignment:
    """See the module. ``owners``: lane → worker; changed by moves only."""

    def __init__(self) -> None:
        self.owners: dict[int, int] = {}
        self._members: dict[int, _Member] = {}
        self._groups: dict[int, _Group] = {}  # by sight
        self._weights: dict[int, int] = {}  # of lanes that are not idle
        self._loose: set[int] = set()  # seen by somebody, read by nobody
        self._held: set[int] = set()
        self._to_take: set[int] = set()  # owned, and held since
        self._known = 0  # every lane that was ever seen
        self._unseen = 0  # those that nobody sees now, and nobody reads
        self._measured = 0  # sum of all weights beyond IDLE_WEIGHT

    # -- what it is told --------------------------------------------------------------------------------------------------------------

    def join(self, worker: int, capacity: int = CAPACITY) -> None:
        """A new member; it sees nothing yet."""
        assert worker not in self._members, "a member leaves before it joins again"
        group = self._group(0)
        self._members[worker] = group.members[worker] = _Member(worker, max(1, capacity), group)

    def leave(self, worker: int) -> list[int]:
        """A member is gone. Returns its lanes, ascending; they have no owner any more."""
        member = self._members.pop(worker, None)
        if member is None:
            return []
        self._quit(member)
        for lane in member.lanes:
            del self.owners[lane]
        self._loose |= member.lanes - self._held
        self._to_take -= member.lanes
        return sorted(member.lanes)

    def see(self, worker: int, sight: int) -> None:
        """A member sees these lanes, and all it saw before."""
        member = self._members[worker]
        if sight & ~member.group.sight:
            self._quit(member)
            member.group = self._group(member.group.sight | sight)
            member.group.members[worker] = member
        fresh = sight & (~self._known | self._unseen)
        self._loose.update(lane for lane in lanes_in(fresh) if lane not in self._held)
        self._known |= sight
        self._unseen &= ~sight

    def _group(self, sight: int) -> _Group:
        group = self._groups.get(sight)
        if group is None:
            group = self._groups[sight] = _Group(sight)
        return group

    def _quit(self, member: _Member) -> None:
        del member.group.members[member.index]
        if not member.group.members:
            del self._groups[member.group.sight]

    def adopt(self, lane: int, worker: int) -> None:
        """``worker`` has this lane already."""
        self._loose.discard(lane)
        self._give(lane, self._members[worker])

    def hold(self, lane: int) -> None:
        """Nobody may read this lane: its owner loses it in the next round."""
        self._held.add(lane)
        self._loose.discard(lane)
        if lane in self.owners:
            self._to_take.add(lane)

    def release(self, lane: int) -> None:
        """A lane that was held may be given again. Whoever had it has it no more."""
        self._held.discard(lane)
        self._to_take.discard(lane)
        self._drop(lane)
        if self._known >> lane & 1:
            self._loose.add(lane)

    def weigh(self, lane: int, rate: int) -> None:
        """The lane brings ``rate`` entries a second."""
        before, now = self._weight(lane), IDLE_WEIGHT + rate
        if rate:
            self._weights[lane] = now
        else:
            self._weights.pop(lane, None)
        self._measured += now - before
        owner = self.owners.get(lane)
        if owner is not None:
            self._members[owner].add(now - before)

    def _weight(self, lane: int) -> int:
        return self._weights.get(lane, IDLE_WEIGHT)

    # -- what it says -----------------------------------------------------------------------------------------------------------------

    def plan(self, moves_max: int = MOVES_MAX) -> list[Move]:
        """The moves of this round, one a lane. They count as done.

        First, each lane without an owner, the busiest first, goes to the least loaded member that sees it. Then the most loaded
        members give lanes to the least loaded ones, until what is left is not worth a move or ``moves_max`` lanes have moved.
        """
        moves = [Move(lane, None, self._drop(lane)) for lane in sorted(self._to_take)]
        self._to_take.clear()
        if self._loose:
            moves += self._place()
        if len(self._members) > 1:
            moves += self._balance(moves_max)
        merged: dict[int, Move] = {}
        for move in moves:
            first = merged.get(move.lane_id)
            merged[move.lane_id] = move if first is None else move._replace(before=first.before)
        return [move for move in merged.values() if move.worker != move.before]

    def _drop(self, lane: int) -> int | None:
        owner = self.owners.pop(lane, None)
        if owner is not None:
            member = self._members[owner]
            member.lanes.discard(lane)
            member.add(-self._weight(lane))
        return owner

    def _give(self, lane: int, member: _Member) -> Move:
        before = self._drop(lane)
        self.owners[lane] = member.index
        member.lanes.add(lane)
        member.add(self._weight(lane))
        return Move(lane, member.index, before)

    def _place(self) -> list[Move]:
        rest = sight_of(self._loose)
        for sight in self._groups:
            if not rest:
                break
            rest &= ~sight
        self._unseen |= rest
        self._loose.difference_update(lanes_in(rest))
        order = _Order(self._groups.values())
        seen_by = self._groups_by_lane()
        moves: list[Move] = []
        for lane in sorted(self._loose, key=lambda lane: (-self._weight(lane), lane)):
            if seen_by is None:
                member = order.lowest_that_sees(lane)
            else:
                member = min((order.lowest_in(group) for group in seen_by[lane]), key=lambda member: (member.load, member.index))
            moves.append(self._give(lane, member))
            order.update(member)
        self._loose.clear()
        return moves

    def _groups_by_lane(self) -> dict[int, list[_Group]] | None:
        """Where there are many groups and each sees little, it is cheaper to write down who sees what than to try; else None."""
        wanted = sight_of(self._loose)
        groups = self._groups.values()
        if len(groups) < 2 or sum((group.sight & wanted).bit_count() for group in groups) > GROUPS_PER_LANE * len(self._loose):
            return None
        seen_by: dict[int, list[_Group]] = {}
        for group in groups:
            for lane in lanes_in(group.sight & wanted):
                seen_by.setdefault(lane, []).append(group)
        return seen_by

    def _balance(self, moves_max: int) -> list[Move]:
        capacity = sum(member.capacity for member in self._members.values())
        slack = self._measured * _SCALE * SLACK_PERCENT // (100 * capacity)
        lowest = min(member.load for member in self._members.values())
        order = _Order(self._groups.values())
        givers = [(-member.load, -member.index, member) for member in self._members.values()]
        heapq.heapify(givers)
        by_weight: dict[int, list[tuple[int, int]]] = {}
        moves: list[Move] = []
        while givers and len(moves) < moves_max:
            load, _, giver = heapq.heappop(givers)
            if -load != giver.load:
                continue
            if giver.load - lowest <= slack:
                break  # and those that have less cannot give, either
            lanes = by_weight.get(giver.index)
            if lanes is None:
                lanes = by_weight[giver.index] = sorted((self._weight(lane), lane) for lane in giver.lanes)
            takers = order.ascending()
            found = _choose(giver, lanes, takers, slack)
            takers.close()  # type: ignore[attr-defined]
            if found is None:
                continue  # what it has is too heavy for anybody, or not worth it: it keeps it
            place, taker = found
            weight, lane = lanes.pop(place)
            moves.append(self._give(lane, taker))
            if taker.index in by_weight:
                insort(by_weight[taker.index], (weight, lane))
            for member in (giver, taker):
                order.update(member)
                heapq.heappush(givers, (-member.load, -member.index, member))
        return moves


def _slack_of(giver: _Member) -> int:
    """Of a member with very much to do, a little is not worth a move, either."""
    return (giver.weight - IDLE_WEIGHT * len(giver.lanes)) * _SCALE * SLACK_PERCENT // (100 * giver.capacity)


def _choose(giver: _Member, lanes: list[tuple[int, int]], takers: Iterator[_Member], slack: int) -> tuple[int, _Member] | None:
    """The place in ``lanes`` of the lane whose move lowers the higher of the two loads most, and who takes it; None: nothing helps."""
    slack = max(slack, _slack_of(giver))
    for taker in takers:
        gap = giver.load - taker.load
        if gap <= slack or _is_one_lane(giver, lanes[-1][0], taker, slack):
            return None
        if not giver.group.sight & taker.group.sight:
            continue
        even = gap * giver.capacity * taker.capacity // (_SCALE * (giver.capacity + taker.capacity))
        middle = bisect_right(lanes, (even, 1 << 62))
        best: tuple[int, int] | None = None
        for places in (range(middle - 1, -1, -1), range(middle, len(lanes))):
            place = next((place for place in places if taker.group.sees(lanes[place][1])), None)
            if place is None:
                continue
            weight = lanes[place][0]
            giver_after = (giver.weight - weight) * _SCALE // giver.capacity
            taker_after = (taker.weight + weight) * _SCALE // taker.capacity
            higher = max(giver_after, taker_after)
            if place < middle or higher < giver.load - slack:
                best = min(best, (higher, place)) if best is not None else (higher, place)
        if best is not None and best[0] < giver.load:
            return best[1], taker
    return None


def _is_one_lane(giver: _Member, heaviest: int, taker: _Member, slack: int) -> bool:
    """True: nearly all of its load is one lane, which would be as much elsewhere; giving the rest away changes little."""
    rest = giver.load - heaviest * _SCALE // giver.capacity
    return rest <= slack and taker.load + heaviest * _SCALE // taker.capacity >= giver.load - slack


def assign(
    members: Mapping[int, Set[int]], owners: Mapping[int, int], moves_max: int = MOVES_MAX, rates: Mapping[int, int] | None = None,
    capacities: Mapping[int, int] | None = None,
) -> list[Move]:  # fmt: skip
    """One round as a function: the moves that bring ``owners`` (lane → worker) to what ``members`` (worker → lanes it sees) call for."""
    assignment = Assignment()
    for lane, rate in (rates or {}).items():
        assignment.weigh(lane, rate)
    for worker, lanes in members.items():
        assignment.join(worker, (capacities or {}).get(worker, CAPACITY))
        assignment.see(worker, sight_of(lanes))
    for lane, worker in owners.items():
        if lane in members.get(worker, ()):
            assignment.adopt(lane, worker)
    moves = assignment.plan(moves_max)
    moves += [Move(lane, None) for lane in sorted(owners) if lane not in assignment.owners]
    return [move._replace(before=owners.get(move.lane_id)) for move in moves]

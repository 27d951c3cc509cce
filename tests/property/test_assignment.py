"""Assignment, whatever happens: bounded, within sight, the same for the same input, and it settles."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hdad.writer.assignment import IDLE_WEIGHT, Assignment, assign, sight_of

lane_ids = st.integers(0, 40)
sights = st.dictionaries(st.integers(0, 6), st.sets(lane_ids), max_size=6)
weighed = st.dictionaries(lane_ids, st.integers(0, 100_000))
shares = st.dictionaries(st.integers(0, 6), st.integers(1, 1000))


@given(sights, st.dictionaries(lane_ids, st.integers(0, 8)), weighed, shares, st.randoms())
def test_assignment_is_the_same_whatever_the_order_and_bounded_and_within_sight(
    members: dict[int, set[int]], owners: dict[int, int], rates: dict[int, int], capacities: dict[int, int], rng: random.Random
) -> None:
    def shuffled(table: dict[int, Any]) -> dict[int, Any]:
        items = list(table.items())
        rng.shuffle(items)
        return dict(items)

    moves = assign(members, owners, 3, rates, capacities)
    assert moves == assign(shuffled(members), shuffled(owners), 3, shuffled(rates), shuffled(capacities))
    assert len({move.lane_id for move in moves}) == len(moves) and all(move.before != move.worker for move in moves)
    assert all(move.lane_id in members[move.worker] for move in moves if move.worker is not None)
    kept = {lane for lane, worker in owners.items() if lane in members.get(worker, ())}
    assert sum(move.lane_id in kept for move in moves) <= 3
    assert all(move.before == owners.get(move.lane_id) for move in moves)


@given(sights, weighed, st.integers(1, 8))
def test_balancing_by_rate_settles_and_never_raises_the_highest_load(
    members: dict[int, set[int]], rates: dict[int, int], moves_max: int
) -> None:
    owners: dict[int, int] = {lane: min(w for w in members if lane in members[w]) for lane in set().union(*members.values())}

    def highest() -> int:
        found: dict[int, int] = {}
        for lane, worker in owners.items():
            found[worker] = found.get(worker, 0) + rates.get(lane, 0) + IDLE_WEIGHT
        return max(found.values(), default=0)

    before = highest()
    for _ in range(500):
        moves = assign(members, owners, moves_max, rates)
        if not moves:
            return
        for lane, worker, _ in moves:
            assert worker is not None
            owners[lane] = worker
        assert highest() <= before
        before = highest()
    raise AssertionError("lanes move for ever")


events = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(0, 4), st.sets(lane_ids)),
        st.tuples(st.just("see"), st.integers(0, 4), st.sets(lane_ids)),
        st.tuples(st.just("leave"), st.integers(0, 4), st.just(set())),
        st.tuples(st.just("hold"), lane_ids, st.just(set())),
        st.tuples(st.just("release"), lane_ids, st.just(set())),
        st.tuples(st.just("plan"), st.integers(0, 5), st.just(set())),
    ),
    max_size=40,
)


@given(events)
def test_whatever_happens_each_lane_that_is_seen_and_not_held_has_one_owner_that_sees_it(happened: list[tuple[str, int, set[int]]]) -> None:
    assignment, members, held, owners = Assignment(), dict[int, set[int]](), set[int](), dict[int, int]()
    for what, number, lanes in [*happened, ("plan", 5, set())]:
        if what == "join" and number not in members:
            members[number] = set(lanes)
            assignment.join(number)
            assignment.see(number, sight_of(lanes))
        elif what == "see" and number in members:
            members[number] |= lanes
            assignment.see(number, sight_of(lanes))
        elif what == "leave":
            members.pop(number, None)
            gone = {lane for lane, worker in owners.items() if worker == number}
            assert set(assignment.leave(number)) == gone
            owners = {lane: worker for lane, worker in owners.items() if lane not in gone}
        elif what == "hold":
            held.add(number)
            assignment.hold(number)
        elif what == "release" and number in held:
            held.discard(number)
            owners.pop(number, None)
            assignment.release(number)
        elif what == "plan":
            for lane, worker, before in assignment.plan(number):
                assert owners.get(lane) == before
                if worker is None:
                    del owners[lane]
                else:
                    owners[lane] = worker
            assert owners == assignment.owners
            assert set(owners) == set().union(*members.values()) - held
            assert all(lane in members[worker] for lane, worker in owners.items())


@given(st.dictionaries(st.integers(0, 5), st.sets(st.integers(0, 15)), max_size=5), st.dictionaries(st.integers(0, 15), st.integers(0, 7)))
def test_assignment_settles_and_then_moves_nothing(members: dict[int, set[int]], owners: dict[int, int]) -> None:
    for _ in range(20):
        moves = assign(members, owners, moves_max=4)
        if not moves:
            break
        for lane, worker, _ in moves:
            if worker is None:
                owners.pop(lane, None)
            else:
                owners[lane] = worker
    assert assign(members, owners, moves_max=4) == []
    assert set(owners) == (set().union(*members.values()) if members else set())

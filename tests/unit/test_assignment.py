"""Who reads which lane: where the least loaded does not see it, and weights of lanes that are read already."""

from __future__ import annotations

from hdad.writer.assignment import IDLE_WEIGHT, Assignment, Move, sight_of


def test_a_lane_goes_to_the_least_loaded_that_sees_it_not_to_the_least_loaded() -> None:
    assignment = Assignment()
    for worker, lanes in enumerate(([0, 1, 2, 3, 4], [5], [0, 1, 2, 3, 4, 5, 9])):
        assignment.join(worker)
        assignment.see(worker, sight_of(lanes))
    assignment.plan()
    assert assignment.owners[9] == 2 and assignment.owners[5] in (1, 2)
    assert all(assignment.owners[lane] in (0, 2) for lane in range(5))


def test_where_many_see_nearly_everything_a_lane_goes_to_one_that_sees_it() -> None:
    assignment = Assignment()
    lanes = set(range(40))
    for worker in range(12):  # each is blind to one lane of its own
        assignment.join(worker)
        assignment.see(worker, sight_of(lanes - {worker}))
    assignment.plan(10_000)
    assert assignment.owners.keys() == lanes
    assert all(worker != lane for lane, worker in assignment.owners.items())
    counts = [list(assignment.owners.values()).count(worker) for worker in range(12)]
    assert max(counts) - min(counts) <= 1


def test_lanes_that_appear_later_are_seen_by_some_only() -> None:
    assignment = Assignment()
    for worker in range(3):
        assignment.join(worker)
        assignment.see(worker, sight_of(range(6)))
    assignment.plan()
    assignment.see(1, sight_of(range(100, 120)))
    moves = assignment.plan()
    assert {assignment.owners[lane] for lane in range(100, 120)} == {1}
    assert {move.lane_id for move in moves} >= set(range(100, 120))


def test_a_lane_that_is_read_weighs_on_its_reader_at_once() -> None:
    assignment = Assignment()
    for worker in range(2):
        assignment.join(worker)
        assignment.see(worker, sight_of(range(8)))
    assignment.plan()
    busy = [lane for lane, worker in assignment.owners.items() if worker == 0]
    for lane in busy:
        assignment.weigh(lane, 10 * IDLE_WEIGHT)
    moves = assignment.plan()
    assert moves and all(move.before == 0 and move.worker == 1 for move in moves[:1])
    held = [sum(10 if lane in busy else 1 for lane, owner in assignment.owners.items() if owner == worker) for worker in range(2)]
    assert abs(held[0] - held[1]) <= 12, "the load is even to a lane's weight"


def test_a_lane_that_nobody_ever_saw_may_be_released() -> None:
    assignment = Assignment()
    assignment.join(0)
    assignment.see(0, sight_of([1]))
    assignment.hold(7)
    assignment.release(7)
    assert assignment.plan() == [Move(1, 0)] and 7 not in assignment.owners


def test_seeing_again_changes_nothing_and_a_lane_that_is_idle_again_weighs_what_idle_ones_do() -> None:
    assignment = Assignment()
    for worker in range(2):
        assignment.join(worker)
        assignment.see(worker, sight_of(range(4)))
    assignment.plan()
    before = dict(assignment.owners)
    assignment.see(0, sight_of(range(4)))
    for lane in range(4):
        assignment.weigh(lane, 1000)
        assignment.weigh(lane, 0)
    assert assignment.plan() == [] and assignment.owners == before


def test_a_difference_that_is_little_of_the_load_is_not_worth_a_move() -> None:
    assignment = Assignment()
    for worker in range(2):
        assignment.join(worker)
        assignment.see(worker, sight_of(range(8)))
        for lane in range(4 * worker, 4 * worker + 4):
            assignment.adopt(lane, worker)
            assignment.weigh(lane, 10_000)
    assignment.weigh(0, 10_500)
    assignment.weigh(1, 500)
    assignment.weigh(4, 500)  # 30,500 and 30,500: lane 1 or 4 could even out what comes next
    assignment.weigh(2, 12_000)
    assert assignment.plan() == [] and {assignment.owners[lane] for lane in range(4)} == {0}


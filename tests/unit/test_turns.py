"""Which lanes a read names: those that have more, some of those that were read to their end, and all of them in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from hdad.metrics.lanes import LaneState
from hdad.record import ORIGIN
from hdad.worker.lane import Lane
from hdad.worker.turns import LANES_IN_TURN_MIN, LANES_PER_READ, LANES_WARM_MAX, Turns

COUNT = 10


def lanes_of(count: int) -> list[Lane]:
    return [Lane(number, b"s%d" % number, 1, ORIGIN, ORIGIN) for number in range(count)]


def read(turns: Turns, has: Callable[[Lane], int]) -> Sequence[Lane]:
    """One read and its reply at once: ``has`` says how many entries a lane has."""
    lanes, may_wait = turns.next()
    assert len(set(lanes)) == len(lanes)
    assert not may_wait and len(lanes) <= LANES_PER_READ
    turns.asked(lanes)
    for lane in lanes:
        if has(lane):
            turns.had(lane, min(COUNT, has(lane)), COUNT)
            turns.ask_all_again()
    return lanes


def test_few_lanes_are_all_named_in_a_read_that_waits() -> None:
    lanes = lanes_of(LANES_PER_READ)
    turns = Turns(lanes)
    turns.had(lanes[0], COUNT, COUNT)
    assert turns.next() == (lanes, True)


def test_many_lanes_are_asked_in_turns_before_a_read_waits_for_all() -> None:
    lanes = lanes_of(1000)
    turns = Turns(lanes)
    asked: set[Lane] = set()
    for _ in range(-(-1000 // LANES_PER_READ)):
        asked |= set(read(turns, lambda lane: 0))
    assert asked == set(lanes)
    assert turns.next() == (lanes, True)
    turns.ask_all_again()
    assert turns.next()[1] is False


def test_after_a_change_all_lanes_are_asked_before_a_read_waits_for_all() -> None:
    """In a read that names thousands of lanes, each may have an entry or two: frames that cost more than they hold."""
    lanes = lanes_of(300)
    turns = Turns(lanes)
    read(turns, lambda lane: 0)
    read(turns, lambda lane: 0)
    assert turns.next()[1] is True
    lanes += lanes_of(1)
    turns.reconsider()
    assert lanes[-1] in {lane for _ in range(2) for lane in read(turns, lambda lane: 0)}


def test_lanes_that_have_more_come_first_and_leave_room_for_all_others() -> None:
    lanes = lanes_of(1000)
    turns, full = Turns(lanes), set(lanes[:500])
    reads = [read(turns, lambda lane: COUNT if lane in full else 0) for _ in range(40)]
    assert {lane for named in reads for lane in named} == set(lanes), "nobody waits for ever"
    assert all(len(full & set(named)) >= LANES_PER_READ - LANES_IN_TURN_MIN for named in reads[8:])
    rounds = [sum(lane in named for named in reads[8:]) for lane in full]
    assert max(rounds) <= 3 * min(rounds), "those that have more have their turns, too"


def test_a_backlog_of_many_short_lanes_is_read_with_few_lanes_named_in_vain() -> None:
    """Each lane's reply is all it had: to name it again at once is a waste."""
    lanes = lanes_of(2000)
    turns, left = Turns(lanes), set(lanes)
    reads = 0
    while left:
        left.difference_update(read(turns, lambda lane: int(lane in left)))
        reads += 1
    assert reads <= -(-2000 // (LANES_PER_READ - LANES_WARM_MAX))


def test_a_few_lanes_in_use_among_many_are_named_nearly_each_time() -> None:
    lanes = lanes_of(5000)
    turns, used = Turns(lanes), set(lanes[::100])
    for _ in range(-(-5000 // LANES_PER_READ) + 1):
        read(turns, lambda lane: int(lane in used))
    for _ in range(50):
        assert used <= set(read(turns, lambda lane: int(lane in used)))


def test_reads_are_well_filled_when_all_lanes_are_in_use() -> None:
    turns = Turns(lanes_of(1000))
    assert all(len(read(turns, lambda lane: 1)) >= LANES_PER_READ - LANES_WARM_MAX for _ in range(30))


def test_a_lane_that_had_something_is_busy_until_it_is_asked_in_vain() -> None:
    lanes = lanes_of(2)
    turns = Turns(lanes)
    turns.asked(lanes)
    turns.had(lanes[0], 1, COUNT)
    assert [lane.busy for lane in lanes] == [True, False]
    turns.asked(lanes)
    assert not lanes[0].busy


@pytest.mark.parametrize("count", [COUNT, 1])
def test_lanes_that_are_halted_or_gone_are_left_out(count: int) -> None:
    lanes = lanes_of(LANES_PER_READ + 3)
    turns = Turns(lanes)
    for lane in lanes[:3]:
        turns.had(lane, count, COUNT)
    halted, gone, stays = lanes[0], lanes.pop(1), lanes[1]
    halted.state = LaneState.PAUSED
    turns.reconsider()
    named = [set(turns.next()[0]) for _ in range(3)]
    assert all(stays in some for some in named)
    assert not any({halted, gone} & some for some in named)


def test_each_lane_is_named_within_so_many_reads_whatever_the_others_have() -> None:
    lanes = lanes_of(1000)
    turns = Turns(lanes)
    for lane in lanes[:500]:
        turns.had(lane, COUNT, COUNT)
    named = {lane for _ in range(turns.reads_until_all + 1) for lane in read(turns, lambda lane: COUNT if lane.lane_id < 500 else 0)}
    assert named == set(lanes)


def test_alone_lanes_have_their_turns() -> None:
    lanes = lanes_of(3)
    turns = Turns(lanes)
    assert {turns.one()[0] for _ in range(3)} == set(lanes)

"""What the supervisor makes of events, deaths and silences."""

from __future__ import annotations

import itertools

import pytest

from hdad.supervise.cpus import _parse_cpus, plan_cpus
from hdad.supervise.states import SECOND_NS, TRANSITIONS, ChildEvent, ChildState, Deaths, judge_worker, judge_writer, next_state

S, E = ChildState, ChildEvent


def test_every_state_is_reached_and_left_and_what_cannot_happen_is_an_error() -> None:
    assert {state for state, _ in TRANSITIONS} == set(ChildState) == set(TRANSITIONS.values())
    impossible = [pair for pair in itertools.product(ChildState, ChildEvent) if pair not in TRANSITIONS]
    for state, event in impossible:
        with pytest.raises(KeyError):
            next_state(state, event)
    assert (S.STOPPED, E.DIED) in impossible and (S.READY, E.FORKED) in impossible


@pytest.mark.parametrize("order", [(E.TOLD_TO_DRAIN, E.SAID_READY), (E.SAID_READY, E.TOLD_TO_DRAIN)])
def test_a_child_told_to_drain_while_it_starts_ends_stopped_whichever_word_comes_first(order: tuple[ChildEvent, ChildEvent]) -> None:
    state = S.STARTING
    for event in (*order, E.DIED):
        state = next_state(state, event)
    assert state is S.STOPPED


def test_the_first_death_is_answered_at_once_and_later_ones_with_doubled_pauses_up_to_the_cap() -> None:
    deaths = Deaths()
    pauses = []
    for index in range(6):
        deaths.add(index, SECOND_NS)
        pauses.append(deaths.backoff_ns(100, 1000) // 1_000_000)
    assert pauses == [0, 100, 200, 400, 800, 1000]
    assert deaths.add(10 * SECOND_NS, SECOND_NS) == 1
    assert deaths.backoff_ns(100, 1000) == 0


@pytest.mark.parametrize(
    ("heartbeat_age_s", "batch_age_s", "killed"), [(0, 0, None), (0, 5, None), (60, 5, None), (0, 31, True), (11, 0, True), (9, 0, None)]
)
def test_a_worker_is_killed_for_a_batch_that_is_too_long_or_for_silence(
    heartbeat_age_s: int, batch_age_s: int, killed: bool | None
) -> None:
    now = 1000 * SECOND_NS
    busy = now - batch_age_s * SECOND_NS if batch_age_s else 0
    stall = judge_worker(now, now - heartbeat_age_s * SECOND_NS, busy, 30 * SECOND_NS, 10 * SECOND_NS)
    assert (stall.kill if stall is not None else None) == killed


def test_a_worker_that_has_never_beaten_is_starting() -> None:
    assert judge_worker(1000 * SECOND_NS, 0, 0, SECOND_NS, SECOND_NS) is None


@pytest.mark.parametrize(
    ("heartbeat_age_s", "write_age_s", "is_recovering", "expected"),
    [(0, 0, False, None), (60, 5, False, None), (60, 11, False, False), (60, 0, False, True), (60, 0, True, None), (5, 0, False, None)],
)
def test_a_writer_that_waits_for_the_device_is_told_of_but_not_killed(
    heartbeat_age_s: int, write_age_s: int, is_recovering: bool, expected: bool | None
) -> None:
    now = 1000 * SECOND_NS
    write = now - write_age_s * SECOND_NS if write_age_s else 0
    stall = judge_writer(now, now - heartbeat_age_s * SECOND_NS, write, is_recovering, 10 * SECOND_NS, 10 * SECOND_NS)
    assert (stall.kill if stall is not None else None) == expected


# -- CPUs --------------------------------------------------------------------------------------------------------------------------------


def test_workers_and_writer_get_cpus_of_their_own_when_there_are_enough() -> None:
    plan = plan_cpus(set(range(8)), [], -1, set(), 4, 4)
    assert [cpus[0] for cpus in plan.workers] == [cpu for cpu in range(8) if cpu != plan.writer[0]][:4]
    assert not plan.notes


def test_the_writer_is_near_the_device() -> None:
    assert plan_cpus(set(range(8)), [], -1, {6, 7}, 2, 2).writer == [6]


def test_nothing_is_pinned_when_workers_are_as_many_as_cpus_and_it_is_said() -> None:
    plan = plan_cpus({0, 1}, [], -1, set(), 2, 2)
    assert plan.workers == [[0, 1], [0, 1]] and plan.writer == [0, 1] and "not pinned" in plan.notes[0]


def test_cpus_outside_of_the_cpuset_are_left_out_and_it_is_said() -> None:
    plan = plan_cpus({2, 3, 4, 5}, [3, 9], 12, set(), 1, 1)
    assert plan.workers == [[3]] and len(plan.notes) == 2
    none = plan_cpus({2, 3}, [8, 9], -1, set(), 1, 1)
    assert set(sum(none.workers, none.writer)) <= {2, 3} and any("none is in the cpuset" in note for note in none.notes)


def test_named_cpus_are_shared_when_they_are_too_few() -> None:
    plan = plan_cpus(set(range(8)), [4, 5], 0, set(), 4, 4)
    assert plan.workers == [[4], [5], [4], [5]] and plan.writer == [0] and plan.notes == ["4 workers share 2 CPUs"]


def test_kernel_cpu_lists() -> None:
    assert _parse_cpus("0-3,8\n") == {0, 1, 2, 3, 8} and _parse_cpus("\n") == set()

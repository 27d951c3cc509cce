"""The pure rules of the data path: every row of their tables."""

from __future__ import annotations

import random

import pytest

from hdad.record import ORIGIN, Position
from hdad.source.cursor import UNKNOWN_ORDINAL, Examination, Finding, StreamInfo, examine, examine_copy
from hdad.source.redirect import Redirect, parse_redirect
from hdad.worker.backoff import Backoff
from hdad.worker.pace import SMALL_BYTES, Pace
from hdad.writer.admission import Verdict, judge
from hdad.writer.assignment import Assignment, Move, assign, lanes_in, sight_of
from hdad.writer.commit import GROUP_BYTES_MIN, INLINE_BYTES_MAX, READY_BYTES_MIN, READY_MAX, CommitPolicy, Submit
from hdad.writer.rates import Rates

P = Position


@pytest.mark.parametrize(
    ("frame_epoch", "from_", "to", "verdict"),
    [
        (6, P(5, 0), P(9, 0), Verdict.STALE),
        (8, P(5, 0), P(9, 0), Verdict.STALE),
        (7, P(5, 0), P(5, 0), Verdict.MALFORMED),
        (7, P(5, 0), P(4, 0), Verdict.MALFORMED),
        (7, P(5, 0), P(5, 1), Verdict.ADMIT),
        (7, P(3, 0), P(5, 0), Verdict.REPEAT),
        (7, P(3, 0), P(4, 0), Verdict.REPEAT),
        (7, P(3, 0), P(6, 0), Verdict.GAP),
        (7, P(6, 0), P(8, 0), Verdict.GAP),
    ],
)
def test_admission_of_a_frame_for_a_lane_at_5_under_epoch_7(frame_epoch: int, from_: Position, to: Position, verdict: Verdict) -> None:
    assert judge(P(5, 0), 7, frame_epoch, from_, to) is verdict


def info(length: int, added: int, last: Position, first: Position | None) -> StreamInfo:
    return StreamInfo(length, added, last, first)


@pytest.mark.parametrize(
    ("case", "position", "ordinal", "stream", "anchor", "expected"),
    [
        ("all read", P(9, 0), 9, info(9, 9, P(9, 0), P(1, 0)), None, (Finding.FINE, 0, 9, True)),
        ("some wait", P(5, 0), 5, info(9, 9, P(9, 0), P(1, 0)), None, (Finding.FINE, 0, 5, False)),
        ("trimmed what was read", P(5, 0), 5, info(4, 9, P(9, 0), P(6, 0)), None, (Finding.FINE, 0, 5, True)),
        ("two trimmed unread", P(5, 0), 5, info(2, 9, P(9, 0), P(8, 0)), None, (Finding.LOST, 2, 7, True)),
        ("all trimmed unread", P(5, 0), 5, info(0, 9, P(9, 0), None), None, (Finding.LOST, 4, 9, True)),
        ("deleted between, none left after", P(9, 0), 7, info(7, 9, P(9, 0), P(1, 0)), None, (Finding.LOST, 2, 9, True)),
        ("older copy", P(9, 0), 9, info(5, 5, P(5, 0), P(1, 0)), None, (Finding.REWOUND, 0, 9, False)),
        ("older copy, as many entries", P(9, 0), 5, info(5, 5, P(5, 0), P(1, 0)), None, (Finding.REWOUND, 0, 5, False)),
        ("older copy went on past us", P(9, 0), 9, info(8, 8, P(12, 0), P(1, 0)), None, (Finding.REWOUND, 0, 9, False)),
        ("begun anew after the anchor", P(9, 0), 9, info(3, 3, P(12, 0), P(10, 0)), P(9, 0), (Finding.RESTARTED, 0, 0, True)),
        ("begun anew, but trimmed since", P(9, 0), 9, info(2, 3, P(12, 0), P(11, 0)), P(9, 0), (Finding.REWOUND, 0, 9, False)),
        ("begun anew, empty", P(9, 0), 9, info(0, 0, P(9, 0), None), P(9, 0), (Finding.RESTARTED, 0, 0, True)),
        ("unknown, all read", P(9, 0), UNKNOWN_ORDINAL, info(9, 9, P(9, 0), P(1, 0)), None, (Finding.FINE, 0, 9, True)),
        ("unknown, some wait", P(5, 0), UNKNOWN_ORDINAL, info(9, 9, P(9, 0), P(1, 0)), None, (Finding.FINE, 0, UNKNOWN_ORDINAL, False)),
        ("nothing was ever there", ORIGIN, 0, info(0, 0, ORIGIN, None), None, (Finding.FINE, 0, 0, True)),
    ],
)
def test_a_look_at_a_stream(
    case: str, position: Position, ordinal: int, stream: StreamInfo, anchor: Position | None, expected: tuple[Finding, int, int, bool]
) -> None:
    assert tuple(examine(position, ordinal, stream, anchor)) == expected, case


AT = Position(10, 0)
SAME = StreamInfo(10, 10, Position(10, 0), Position(1, 0))  # ten entries, all read
TRIMMED = StreamInfo(2, 12, Position(12, 0), Position(11, 0))  # two more, and nothing up to the position is left
LOSSY = StreamInfo(1, 13, Position(13, 0), Position(13, 0))  # the two after the position are gone, too
OLDER = StreamInfo(9, 9, Position(9, 0), Position(1, 0))
ANEW = StreamInfo(1, 1, Position(20, 0), Position(20, 0))
LONGER = StreamInfo(12, 12, Position(12, 0), Position(1, 0))


@pytest.mark.parametrize(
    ("primary", "copy", "expected"),
    [
        (OLDER, SAME, Examination(Finding.REWOUND, 0, 10)),
        (None, SAME, None),
        (ANEW, ANEW, Examination(Finding.RESTARTED, 0, 0, False)),
        (ANEW, SAME, None),
        (ANEW, None, None),
        (SAME, None, None),
        (SAME, OLDER, None),
        (SAME, ANEW, None),
        (LOSSY, LOSSY, Examination(Finding.LOST, 2, 12, False)),
        (SAME, SAME, Examination(Finding.FINE, 0, 10, True)),
        (TRIMMED, LONGER, Examination(Finding.FINE, 0, 10, True)),
        (LOSSY, SAME, Examination(Finding.FINE, 0, 10, False)),
    ],
)
def test_a_look_at_a_replica_and_its_master(primary: StreamInfo | None, copy: StreamInfo | None, expected: Examination | None) -> None:
    """The table of examine_copy."""
    assert examine_copy(AT, 10, copy, primary, AT) == expected


def test_a_master_tells_the_count_that_a_lagging_replica_cannot() -> None:
    """After an accepted position nobody knows it; then what the master has is the truth."""
    found = examine_copy(AT, UNKNOWN_ORDINAL, LONGER, SAME, AT)
    assert found is not None and (found.finding, found.ordinal) == (Finding.FINE, 10)


@pytest.mark.parametrize(
    ("open_bytes", "inflight", "expected"),
    [
        (0, 0, Submit.WAIT),
        (0, 2, Submit.WAIT),
        (1, 0, Submit.INLINE),
        (INLINE_BYTES_MAX, 0, Submit.INLINE),
        (INLINE_BYTES_MAX + 1, 0, Submit.THREAD),
        (GROUP_BYTES_MIN - 1, 1, Submit.WAIT),
        (GROUP_BYTES_MIN, 1, Submit.THREAD),
        (GROUP_BYTES_MIN, 3, Submit.THREAD),
        (READY_BYTES_MIN - 1, 4, Submit.WAIT),
        (READY_BYTES_MIN, 4, Submit.THREAD),
        (1 << 30, 4 + READY_MAX, Submit.WAIT),
    ],
)
def test_group_commit(open_bytes: int, inflight: int, expected: Submit) -> None:
    assert CommitPolicy(4).decide(open_bytes, inflight) is expected


def test_pace_lets_one_small_batch_be_on_its_way_and_much_when_there_is_a_backlog() -> None:
    pace = Pace()
    assert pace.may_read(0, 0)
    pace.published(4096)
    assert not pace.may_read(0, 4096)
    assert pace.may_read(4096, 4096)
    pace.published(4096 + SMALL_BYTES)
    assert pace.may_read(4096, 4096 + SMALL_BYTES)


def test_pace_counts_a_batch_once_that_is_told_twice() -> None:
    pace = Pace()
    pace.published(4096)
    pace.published(4096)
    assert not pace.may_read(0, 4096) and pace.may_read(4096, 4096)


def test_backoff_doubles_with_jitter_up_to_a_cap_and_begins_anew_after_a_success() -> None:
    backoff = Backoff()
    pauses = [backoff.failed(0, 0) // 1_000_000 for _ in range(10)]
    assert pauses == [100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000, 5000]
    assert backoff.failed(0, 1) // 1_000_000 == 2500
    backoff.succeeded()
    assert backoff.due_ns == 0 and backoff.failed(7, 0) == 100_000_007


# -- assignment --------------------------------------------------------------------------------------------------------------------------


def carried_out(owners: dict[int, int], moves: list[Move]) -> dict[int, int]:
    result = dict(owners)
    for lane, worker, _ in moves:
        if worker is None:
            result.pop(lane, None)
        else:
            result[lane] = worker
    return result


def test_assignment_gives_every_seen_lane_to_one_worker_that_sees_it_evenly() -> None:
    members = {0: set(range(10)), 1: set(range(10)), 2: set(range(10))}
    owners = carried_out({}, assign(members, {}))
    assert set(owners) == set(range(10))
    loads = sorted(list(owners.values()).count(worker) for worker in members)
    assert loads == [3, 3, 4]


def test_assignment_is_sticky_and_a_second_call_moves_nothing() -> None:
    members = {0: set(range(9)), 1: set(range(9))}
    owners = carried_out({}, assign(members, {}))
    assert assign(members, owners) == []


def test_lanes_of_a_worker_that_is_gone_go_to_others_and_the_rest_stay() -> None:
    members = {worker: set(range(12)) for worker in range(3)}
    owners = carried_out({}, assign(members, {}))
    del members[1]
    after = carried_out(owners, assign(members, owners))
    assert set(after.values()) == {0, 2}
    assert all(after[lane] == worker for lane, worker in owners.items() if worker != 1)


def test_a_lane_that_nobody_sees_any_more_is_taken_away() -> None:
    assert assign({0: {1}}, {1: 0, 2: 0}) == [Move(2, None, 0)]
    assert assign({}, {1: 0}) == [Move(1, None, 0)]


def test_moves_of_a_round_are_bounded() -> None:
    owners = {lane: 0 for lane in range(100)}
    members = {0: set(range(100)), 1: set(range(100))}
    assert len(assign(members, owners, moves_max=5)) == 5
    while moves := assign(members, owners, moves_max=5):
        owners = carried_out(owners, moves)
    assert list(owners.values()).count(0) == 50


def test_assignment_with_partial_sight_never_gives_a_lane_to_a_worker_that_does_not_see_it() -> None:
    rng = random.Random(7)
    for _ in range(200):
        members = {worker: {lane for lane in range(20) if rng.random() < 0.5} for worker in range(rng.randrange(1, 5))}
        owners = {lane: rng.randrange(6) for lane in range(20) if rng.random() < 0.7}
        after = carried_out(owners, assign(members, owners))
        assert set(after) == set().union(*members.values())
        assert all(lane in members[worker] for lane, worker in after.items())
        shuffled = dict(reversed(list(members.items())))
        assert carried_out(owners, assign(shuffled, owners)) == after


def loads(owners: dict[int, int], rates: dict[int, int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for lane, worker in owners.items():
        found[worker] = found.get(worker, 0) + rates.get(lane, 0)
    return found


def settled(members: dict[int, set[int]], owners: dict[int, int], **more: dict[int, int]) -> dict[int, int]:
    for _ in range(1000):
        moves = assign(members, owners, **more)  # type: ignore[arg-type]
        if not moves:
            return owners
        owners = carried_out(owners, moves)
    raise AssertionError("lanes move for ever")


def test_lanes_are_balanced_by_what_they_bring_not_by_their_number() -> None:
    members = {0: set(range(13)), 1: set(range(13))}
    rates = {0: 60_000} | {lane: 5_000 for lane in range(1, 13)}
    owners = settled(members, {lane: 0 for lane in range(13)}, rates=rates)
    assert max(loads(owners, rates).values()) <= 70_000  # of 120,000: one lane on the one, twelve on the other worker, or nearly so


def test_a_lane_that_is_nearly_all_of_the_load_stays_where_it_is() -> None:
    members = {0: set(range(3)), 1: set(range(3))}
    assert assign(members, {0: 0, 1: 1, 2: 1}, rates={0: 900_000, 1: 10_000, 2: 10_000}) == []


def test_a_small_difference_of_rates_moves_nothing_and_a_large_one_does() -> None:
    members = {0: set(range(8)), 1: set(range(8))}
    owners = {lane: lane % 2 for lane in range(8)}
    assert assign(members, owners, rates={lane: 10_000 + 500 * (lane % 2) for lane in range(8)}) == []
    moves = assign(members, owners, rates={lane: 10_000 + 10_000 * (lane % 2) for lane in range(8)})
    assert len(moves) == 1 and moves[0].before == 1 and moves[0].worker == 0


def test_a_member_of_twice_the_capacity_reads_twice_as_much() -> None:
    members = {0: set(range(90)), 1: set(range(90))}
    owners = settled(members, {}, rates=dict.fromkeys(range(90), 1000), capacities={0: 200, 1: 100})
    share = list(owners.values()).count(0)
    assert 56 <= share <= 64, share


def test_a_held_lane_is_taken_away_given_to_nobody_and_given_again_when_released() -> None:
    assignment = Assignment()
    assignment.join(0)
    assignment.see(0, sight_of([1, 2]))
    assert assignment.plan() == [Move(1, 0), Move(2, 0)]
    assignment.hold(1)
    assert assignment.plan() == [Move(1, None, 0)]
    assignment.join(1)
    assignment.see(1, sight_of([1, 2]))
    assert 1 not in carried_out({}, assignment.plan())
    assignment.release(1)
    assert assignment.plan() == [Move(1, 1)]


def test_lanes_of_the_last_member_wait_for_the_next_one() -> None:
    assignment = Assignment()
    assignment.join(0)
    assignment.see(0, sight_of([5]))
    assignment.plan()
    assert assignment.leave(0) == [5] and assignment.leave(0) == [] and assignment.plan() == []
    assignment.join(3)
    assert assignment.plan() == []
    assignment.see(3, sight_of([5, 6]))
    assert assignment.plan() == [Move(5, 3), Move(6, 3)]


def test_sights_are_sets() -> None:
    lanes = {0, 1, 7, 8, 63, 64, 65_535}
    assert list(lanes_in(sight_of(lanes))) == sorted(lanes)
    assert sight_of([]) == 0 and list(lanes_in(0)) == []


def test_the_rate_of_a_lane_is_smoothed_and_forgets() -> None:
    rates, now_ns, second = Rates(), 0, 1_000_000_000
    assert rates.observe(1, 500, now_ns) is None  # what it had before says nothing about now
    assert rates.observe(1, 600, second // 10) is None  # too soon
    entries, found = 500, 0
    for _ in range(60):
        now_ns, entries = now_ns + second, entries + 1000
        found = rates.observe(1, entries, now_ns) or 0
    assert 980 <= found <= 1000
    assert 350 < (rates.observe(1, entries, now_ns + 10 * second) or 0) < 380  # 1/e of it
    assert (rates.observe(1, entries - 5, now_ns + 100 * second) or 0) == 0


# -- redirects ---------------------------------------------------------------------------------------------------------------------------


def test_redirects_are_read_and_what_makes_no_sense_is_none() -> None:
    assert parse_redirect("MOVED 3999 127.0.0.1:6381") == Redirect(False, 3999, ("127.0.0.1", 6381))
    assert parse_redirect("ASK 16383 :7000") == Redirect(True, 16_383, ("", 7000))
    assert parse_redirect("MOVED 0 fd00::7:6379") == Redirect(False, 0, ("fd00::7", 6379))
    assert parse_redirect("ASK 1 [fd00::7]:6379") == Redirect(True, 1, ("fd00::7", 6379))
    for text in ("", "MOVED", "MOVED 1", "MOVED x h:1", "MOVED 16384 h:1", "MOVED 1 h:0", "MOVED 1 h:65536", "MOVED 1 h", "ERR 1 h:1",
                 "MOVED -1 h:1", "MOVED 1 h:1 more"):  # fmt: skip
        assert parse_redirect(text) is None, text


# -- positions ---------------------------------------------------------------------------------------------------------------------------


def test_positions_read_and_write_alike_and_refuse_what_is_none() -> None:
    assert Position.parse("17-3") == P(17, 3) and Position.parse(b"17") == P(17, 0) and str(P(17, 3)) == "17-3"
    assert (P(3, 4).predecessor(), P(3, 0).predecessor(), P(0, 0).predecessor()) == (P(3, 3), P(2, 2**64 - 1), P(0, 0))
    assert P(1, 2) < P(1, 3) < P(2, 0)
    for text in ("", "-", "1-", "a-1", "1-b", "-1-1", "1-2-3", "18446744073709551616-0", "1-18446744073709551616", "１-1"):
        with pytest.raises(ValueError):
            Position.parse(text)

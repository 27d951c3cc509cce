"""Counters of another process: all of them, or a clear refusal. Who looks while they are being made sees none, never half of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from hdad.errors import FormatError
from hdad.metrics.counters import Counters
from hdad.metrics.lanes import ROW_SIZE, LaneState, LaneTotals
from hdad.record import Position

WORKERS, LANES = 2, 5


def path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def open_now() -> set[int]:
    """Descriptors, without that of the look itself."""
    return {fd for fd in map(int, os.listdir("/proc/self/fd")) if os.path.lexists(path(fd))}


@pytest.fixture
def counters() -> Iterator[Counters]:
    made = Counters.create(WORKERS, LANES)
    yield made
    os.close(made.fd)
    os.close(made.lanes.fd)


def test_attached_counters_show_what_their_owner_writes(counters: Counters) -> None:
    seen = Counters.attach(path(counters.fd), path(counters.lanes.fd))
    counters.writer.add("entries", 7)
    assert (seen.workers_max, seen.lanes.lanes_max, seen.writer.get("entries")) == (WORKERS, LANES, 7)
    with pytest.raises(TypeError):  # read only
        seen.writer.add("entries", 1)


def test_totals_are_sums_over_all_lanes(counters: Counters) -> None:
    lanes, counts = counters.lanes, {"entries": 10, "committed": 5, "dead": 2, "filtered": 3, "lost": 1}
    assert lanes.totals() == (0,) * 7 and lanes.rows() == []
    for lane_id in (1, 2, 4):
        some = {name: lane_id * count for name, count in counts.items()}
        lanes.write_row(lane_id, name=b"s%d" % lane_id, worker=0, epoch=1, position=Position(3, 4), frames=1, **some)
    lanes.write_read(4, position=Position(3, 4), lag=9, state=LaneState.READING, state_since_ns=1)
    assert lanes.totals() == LaneTotals(lanes=3, entries=70, committed=35, dead=14, filtered=21, lost=7, lag=9)
    assert [row.name for row in lanes.rows(2)] == [b"s1", b"s2"]
    row = lanes.row(4)
    assert row is not None and row.worker == 0
    assert (row.entries, row.committed, row.dead, row.filtered, row.lost, row.frames) == (40, 20, 8, 12, 4, 1)


def test_a_worker_shows_what_has_changed_and_since_when(counters: Counters) -> None:
    lanes = counters.lanes
    lanes.write_row(1, name=b"s", worker=0, epoch=1, position=Position(3, 4), entries=0, committed=0, dead=0, filtered=0, lost=0, frames=0)

    def shown(ms: int, lag: int, state: LaneState, at_ns: int) -> tuple[int, int, LaneState, int]:
        lanes.write_read(1, position=Position(ms, 1), lag=lag, state=state, state_since_ns=at_ns)
        row = lanes.row(1)
        assert row is not None
        return row.read.ms, row.lag, row.state, row.state_since_ns

    assert shown(0, 0, LaneState.IDLE, 10) == (0, 0, LaneState.IDLE, 10)
    assert shown(0, 0, LaneState.IDLE, 11) == (0, 0, LaneState.IDLE, 10)
    assert shown(5, 0, LaneState.IDLE, 12) == (5, 0, LaneState.IDLE, 10)
    assert shown(5, 2, LaneState.IDLE, 13) == (5, 2, LaneState.IDLE, 10)
    assert shown(5, 2, LaneState.GONE, 14) == (5, 2, LaneState.GONE, 14)
    assert shown(5, 2**64, LaneState.GONE, 15) == (5, 2**63, LaneState.GONE, 14)


@pytest.mark.parametrize("size", [0, 1, LANES * ROW_SIZE - 1, (LANES + 1) * ROW_SIZE])
def test_counters_whose_lanes_are_not_all_there_are_refused_and_nothing_stays_open(counters: Counters, size: int) -> None:
    os.ftruncate(counters.lanes.fd, size)
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FormatError, match="no table of 5 lanes"):
        Counters.attach(path(counters.fd), path(counters.lanes.fd))
    assert os.listdir("/proc/self/fd") == before


def test_who_looks_while_counters_are_made_sees_none_or_all_of_them() -> None:
    before = open_now()
    seen: list[bool] = []

    def look() -> None:
        made = {fd: os.readlink(path(fd)) for fd in open_now() - before}
        found = {link.partition(" ")[0].rpartition("-")[2]: path(fd) for fd, link in made.items() if "memfd:hdad-" in link}
        try:
            Counters.attach(found["counters"], found["lanes"])
        except (KeyError, FormatError):
            seen.append(False)
        else:
            seen.append(True)

    sys.setprofile(lambda frame, event, called: look() if event == "c_return" and frame.f_code.co_name == "create" else None)
    try:
        made = Counters.create(WORKERS, LANES)
    finally:
        sys.setprofile(None)
    look()
    assert seen[0] is False and seen[-1] is True and seen == sorted(seen) and len(seen) > 4
    os.close(made.fd)
    os.close(made.lanes.fd)

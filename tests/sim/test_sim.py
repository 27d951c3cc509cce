"""A short run of the simulations, and replay; the long ones are `scripts/check crash`, `sim`, `fence` and `damage`."""

from __future__ import annotations

import os
import re

import pytest

from tests.sim import crash, damage, fence, system


@pytest.mark.parametrize("seed", [0, 1, 2, 4, 5, 7, 8, 10])
def test_every_crash_point_of_a_small_log_recovers(seed: int) -> None:
    """I1–I5: nothing acknowledged missing, nothing twice, order, nothing of an older epoch."""
    workload, violation = crash.run_seed(seed)
    assert workload.points > 100 and violation is None, violation


def test_a_crash_point_is_replayed_by_its_seed_and_number() -> None:
    runs = [crash.run_seed(3, only=1129) for _ in range(2)]
    assert [(workload.points, workload.events, violation) for workload, violation in runs] == [
        (runs[0][0].points, runs[0][0].events, None)
    ] * 2


@pytest.mark.parametrize("seed", [1, 10, 48, 63, 69, 124, 200])
def test_no_damage_of_a_durable_frame_goes_in_silence(seed: int) -> None:
    """I5's other side, every sector in use; seeds that once found something among them."""
    verdicts = damage.run_seed(seed)
    assert verdicts.faults > 0 and not verdicts.violations, verdicts.violations


@pytest.mark.parametrize("seed", [40, 71, 114, 132, 365, 684, 3538, *range(20)])
def test_a_life_under_faults_breaks_no_invariant_and_comes_to_rest(seed: int) -> None:
    """I1-I3, I8, I10 and liveness; seeds that once found something among them."""
    facts = system.run_seed(seed)
    assert facts.steps and not facts.violation, facts.violation


def test_a_life_is_repeated_exactly_by_its_seed() -> None:
    assert system.run_seed(5) == system.run_seed(5)


@pytest.mark.parametrize("seed", [106, *range(15)])
def test_hosts_that_take_the_log_over_from_each_other_break_no_invariant(seed: int) -> None:
    """I1-I5 and liveness; seeds that once found something among them."""
    facts = fence.run_seed(seed)
    assert facts.takeovers and not facts.violation, facts.violation


def test_a_life_of_several_hosts_is_repeated_exactly_by_its_seed() -> None:
    assert fence.run_seed(9) == fence.run_seed(9)


def test_a_life_leaves_no_descriptor_behind() -> None:
    """Ten thousand of them in one process went beyond its limit."""
    system.run_seed(0)
    before = len(os.listdir("/proc/self/fd"))
    for seed in range(3):
        system.run_seed(seed)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_goes_wrong_before_the_host_is_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptors(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("tests.sim.machine.create_slots", no_descriptors)
    assert re.match(r"seed 0, step 0: OSError: \[Errno 24\] Too many open files at .*machine.py", system.run_seed(0).violation)

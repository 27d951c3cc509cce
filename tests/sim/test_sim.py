"""A short run of the simulations, and replay; the long ones are `scripts/check crash`, `sim`, `links`, `fence` and `damage`."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from types import ModuleType

import pytest

from tests.sim import command, crash, damage, fence, hosts, system
from tests.sim.life import Facts


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


@pytest.mark.parametrize("seed", range(25))
def test_hosts_and_links_under_partitions_break_no_invariant_and_come_to_rest(seed: int) -> None:
    """I1-I4 and liveness."""
    facts = hosts.run_seed(seed)
    assert facts.steps and not facts.violation, facts.violation


def test_a_life_of_hosts_and_links_is_repeated_exactly_by_its_seed() -> None:
    for seed in (3, 4):
        assert hosts.run_seed(seed) == hosts.run_seed(seed)


@pytest.mark.parametrize("simulation", [system, hosts])
def test_a_life_leaves_no_descriptor_behind(simulation: ModuleType) -> None:
    """Ten thousand of them in one process went beyond its limit."""
    simulation.run_seed(0)
    before = len(os.listdir("/proc/self/fd"))
    for seed in range(3):
        simulation.run_seed(seed)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_life_that_fails_is_shrunk_to_the_fault_and_the_steps_that_it_takes() -> None:
    def run_seed(seed: int, steps: int | None = None, without: Collection[str] = ()) -> Facts:
        is_wrong = "cut" not in without and (steps is None or steps >= 17)
        faults = {what: 1 for what in ("kill", "cut", "power") if what not in without}
        return Facts(steps=steps or 90, events={**faults, "killed at poll": 1}, violation=f"seed {seed}, step 9: wrong" if is_wrong else "")

    simulation = command.Simulation("tests.sim.hosts", "", run_seed, lambda _: ("kill", "cut", "power", "heal"), 100, "at rest")
    facts, line = command.shrunk(simulation, 5)
    assert facts.violation and line == "python -m tests.sim.hosts --seed 5 --steps 17 --without 'kill,power'"


def test_what_goes_wrong_before_the_host_is_up_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptors(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("tests.sim.machine.create_slots", no_descriptors)
    assert re.match(r"seed 0, step 0: OSError: \[Errno 24\] Too many open files at .*machine.py", system.run_seed(0).violation)

"""The command line of a simulation whose lives are told by their seeds: many of them on all CPUs, or one again; sums, and what to repeat.

    [--seeds N | --minutes M] [--first S] [--jobs J] [--json]
    --seed S [--steps K] [--without FAULT,…]

The first life that violates ends the run: it is shrunk to the fewest kinds of faults and the fewest steps, and printed with the line that
repeats it.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from tests.sim.log import Violation


class Facts(Protocol):
    """What a life did: a dataclass; its whole numbers are summed up. ``violation``: what was wrong, "" if nothing was."""

    events: dict[str, int]
    settle_ms: int
    violation: str
    trace: list[str]


class Simulation(NamedTuple):
    """``run_seed(seed, steps, without)``: one life. ``faults(seed)``: their names. ``at_rest``: what is so at the end, in words."""

    module: str
    page: str
    run_seed: Callable[..., Any]
    faults: Callable[[int], Collection[str]]
    steps_max: int
    at_rest: str


@dataclass
class Total:
    """Sums over lives."""

    lives: int = 0
    sums: dict[str, int] = field(default_factory=dict)
    settle_ms_max: int = 0
    events: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def add(self, facts: Any) -> None:
        """One more."""
        self.lives += 1
        for name in [found.name for found in fields(facts) if isinstance(getattr(facts, found.name), int)]:
            if name != "settle_ms":
                self.sums[name] = self.sums.get(name, 0) + getattr(facts, name)
        self.settle_ms_max = max(self.settle_ms_max, facts.settle_ms)
        for what, times in facts.events.items():
            self.events[what] = self.events.get(what, 0) + times
        if facts.violation:
            self.violations.append(facts.violation)


def place(wrong: Exception) -> str:
    """Where something was raised that is not the oracle's word."""
    if isinstance(wrong, Violation):
        return ""
    return " at " + " < ".join(f"{Path(at.filename).name}:{at.lineno}" for at in reversed(traceback.extract_tb(wrong.__traceback__)[-4:]))


def kind(facts: Facts) -> str:
    """What is wrong, without what differs from life to life."""
    return re.sub(r"\W*\d.*", "", facts.violation.partition(": ")[2], flags=re.DOTALL)


def shrunk(simulation: Simulation, seed: int) -> tuple[Any, str]:
    """The fewest kinds of faults and the fewest steps with which this seed still fails, what happens then, and how to repeat it.

    A fault that is left out changes all dice after it, so it is another life; each that still fails is as good, and shorter.
    """
    run_seed = simulation.run_seed
    best, steps, without = run_seed(seed), None, set[str]()
    what, names = kind(best), simulation.faults(seed)
    for name in sorted(best.events):
        if name in names and kind(facts := run_seed(seed, steps, without | {name})) == what:
            best, without = facts, without | {name}
    low, high = 0, simulation.steps_max
    while high - low > 1:
        middle = (low + high) // 2
        facts = run_seed(seed, middle, without)
        if kind(facts) == what:
            best, high, steps = facts, middle, middle
        else:
            low = middle
    options = f" --steps {steps}" if steps is not None else ""
    options += f" --without {','.join(sorted(without))!r}" if without else ""
    return best, f"python -m {simulation.module} --seed {seed}{options}"


def _run_alone(run_seed: Callable[..., Any], seed: int) -> Any:
    facts = run_seed(seed)
    facts.trace.clear()  # small on its way back
    return facts


def run(simulation: Simulation, first: int, seeds: int | None, minutes: float, jobs: int) -> Total:
    """Lives from seed ``first`` on: ``seeds`` of them (None: for ``minutes``), until one violates."""
    total = Total()
    ends = time.monotonic() + 60 * minutes
    alone = partial(_run_alone, simulation.run_seed)
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for facts in pool.imap_unordered(alone, range(first, first + seeds) if seeds is not None else count(first), 8):
            total.add(facts)
            if facts.violation or (seeds is None and time.monotonic() > ends):
                break
        pool.terminate()
    return total


def main(simulation: Simulation) -> int:
    """The command. Returns its exit status."""
    parser = argparse.ArgumentParser(description=simulation.page, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--minutes", type=float, help="instead of --seeds: for so long (nightly)")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this life alone, with all its faults told")
    parser.add_argument("--steps", type=int, help="with --seed: so many steps before faults stop")
    parser.add_argument("--without", default="", help="with --seed: faults that are left out, by commas")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    began = time.monotonic()
    gc.freeze()  # modules stay; what is collected after each life is a life's
    if options.seed is not None:
        total = Total()
        facts = simulation.run_seed(options.seed, options.steps, set(filter(None, options.without.split(","))))
        total.add(facts)
        print("\n".join(facts.trace), file=sys.stderr)
    else:
        total = run(simulation, options.first, options.seeds if options.minutes is None else None, options.minutes or 0, options.jobs)
    for violation in total.violations:
        print(violation, file=sys.stderr)
        if options.seed is None and not options.json:
            facts, line = shrunk(simulation, int(violation.split()[1].rstrip(",")))
            print("shrunk:", *facts.trace, facts.violation, f"replay: {line}", sep="\n", file=sys.stderr)
    _tell(simulation, total, round(time.monotonic() - began, 1), options.json)
    return 1 if total.violations else 0


def _tell(simulation: Simulation, total: Total, seconds: float, is_json: bool) -> None:
    count_of = len(total.violations)
    if is_json:
        sums = {"lives": total.lives, **total.sums, "settle_ms_max": total.settle_ms_max, "violations": count_of, "seconds": seconds}
        print(json.dumps({**sums, "events": total.events}))
        return
    sums_told = ", ".join(f"{name}: {value:,}" for name, value in total.sums.items())
    print(
        f"lives: {total.lives:,}, {sums_told}; {count_of} violations; {simulation.at_rest} at most {total.settle_ms_max:,} virtual ms "
        f"after the last fault; {seconds} s"
    )
    print("  " + ", ".join(f"{times:,} {what}" for what, times in sorted(total.events.items())))

"""The whole of hdad on one host under a seeded scheduler and a virtual clock.

    python -m tests.sim.system [--seeds N] [--first S] [--seed S [--steps K]] [--jobs J] [--json]

Real are the supervisor, workers, rings and the writer; simulated are Redis, the disk and time. Nothing runs by itself: each step lets the
supervisor, a worker or the writer make one round, a write in flight return, Redis get entries, or time pass. Faults: a process is killed
at any touch of shared memory, disk or Redis, hangs in a stage, or stands still for long; Redis restarts, is away, drops or deletes entries,
goes back to an older copy; a write fails; power is lost, and each sector in flight lands or not; an operator pauses, changes the number of
workers, restarts the daemon. One seed is one life, exactly repeated.

The oracle (oracle.py): what hdad shows to Redis or trims there is durable at that moment (I1); each record of the log is what an entry
asked for, in order, once (I2, I3); none is missing that Redis did not drop, and those are counted (I10); a writer whose write failed
writes nothing more (I8); nothing ends but by a fault; and once faults stop, all that was added is durable within bounded virtual time, and
the daemon drains.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import multiprocessing
import os
import re
import sys
import time
import traceback
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hdad.supervise.family
import hdad.supervise.loop
import hdad.supervise.progress
import hdad.worker.chores
import hdad.worker.loop
import hdad.writer.writes
from tests.sim.life import EPOCH_NS, STEPS_MAX, Facts, Life
from tests.sim.log import Violation, small_segments
from tests.sim.machine import SELECTORS, kill, reap
from tests.sim.redis import Edge


@contextmanager
def patched(fakes: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """(module, name, value) each, for as long as this lasts."""
    before = [(module, name, getattr(module, name)) for module, name, _ in fakes]
    for module, name, fake in fakes:
        setattr(module, name, fake)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


@contextmanager
def simulated(life_of: list[Life]) -> Iterator[None]:
    """hdad's modules get the virtual clock, the seed's randomness, Redis and threads of the life in ``life_of``."""
    clock = {"monotonic_ns": lambda: life_of[0].now_ns, "wall_ns": lambda: EPOCH_NS + life_of[0].now_ns}
    fakes: list[tuple[Any, str, Any]] = [
        (module, name, fake)
        for path, module in list(sys.modules.items())
        if path.startswith("hdad.")
        for name, fake in clock.items()
        if hasattr(module, name)
    ]
    dice = SimpleNamespace(random=lambda: life_of[0].rng.random())  # noqa: PLW0108 (the life comes later)
    fakes += [(hdad.worker.loop, "random", dice), (hdad.worker.chores, "random", dice)]
    fakes += [(hdad.worker.loop, "RedisEdge", lambda _: Edge(life_of[0].server))]
    fakes += [(hdad.writer.writes, "ThreadPoolExecutor", lambda *_: life_of[0].machine.threads)]
    family, loop = hdad.supervise.family, hdad.supervise.loop
    fakes += [(family, "reap", reap(lambda: life_of[0].machine)), (family, "kill", kill(lambda: life_of[0].machine))]
    fakes += [(loop, "selectors", SELECTORS)]
    fakes += [(module, "kernel_state", lambda _: "is simulated") for module in (loop, hdad.supervise.progress)]
    fakes += [(os, "sched_yield", lambda: None)]  # the writer's look-out for a worker that builds frames: here nobody runs beside it
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with patched(fakes), small_segments():
            yield
    finally:
        logging.disable(level)


def run_seed(seed: int, steps: int | None = None, without: Collection[str] = ()) -> Facts:
    """One life, and what was wrong with it."""
    life_of: list[Life] = []
    with simulated(life_of):
        life = Life(seed, steps, without)
        life_of.append(life)
        knobs = [(sys.modules[module], name, value) for (module, name), value in life.knobs.items()]
        try:
            with patched(knobs):
                life.run()
        except Exception as wrong:  # whatever it is, it is this seed's finding
            life.facts.violation = f"seed {seed}, step {life.facts.steps}: {type(wrong).__name__}: {wrong}{_place(wrong)}"
        finally:
            life.close()
    facts = life.facts
    del life
    life_of.clear()
    gc.collect()  # a life is full of cycles, and of rings: left to chance, their descriptors would go beyond the limit of a process (1024)
    return facts


@contextmanager
def scripted(seed: int) -> Iterator[Life]:
    """A life that a test leads step by step; its host is up."""
    life_of: list[Life] = []
    with simulated(life_of):
        life = Life(seed)
        life_of.append(life)
        try:
            life.start()
            yield life
        finally:
            life.close()


def _place(wrong: Exception) -> str:
    """Where something was raised that is not the oracle's word."""
    if isinstance(wrong, Violation):
        return ""
    return " at " + " < ".join(f"{Path(at.filename).name}:{at.lineno}" for at in reversed(traceback.extract_tb(wrong.__traceback__)[-4:]))


def _kind(facts: Facts) -> str:
    """What is wrong, without what differs from life to life."""
    return re.sub(r"\W*\d.*", "", facts.violation.partition(": ")[2])


def shrunk(seed: int) -> tuple[Facts, str]:
    """The fewest kinds of faults and the fewest steps with which this seed still fails, what happens then, and how to repeat it.

    A fault that is left out changes all dice after it, so it is another life; each that still fails is as good, and shorter.
    """
    best, steps, without = run_seed(seed), None, set[str]()
    kind, names = _kind(best), Life(seed).faults.table
    for name in sorted(best.events):
        if name in names and _kind(facts := run_seed(seed, steps, without | {name})) == kind:
            best, without = facts, without | {name}
    low, high = 0, min(best.steps, STEPS_MAX)
    while high - low > 1:
        middle = (low + high) // 2
        facts = run_seed(seed, middle, without)
        if _kind(facts) == kind:
            best, high, steps = facts, middle, middle
        else:
            low = middle
    options = f" --steps {steps}" if steps is not None else ""
    options += f" --without {','.join(sorted(without))!r}" if without else ""
    return best, f"python -m tests.sim.system --seed {seed}{options}"


@dataclass
class Total:
    """Sums over lives."""

    seeds: int = 0
    steps: int = 0
    entries: int = 0
    settle_ms_max: int = 0
    events: dict[str, int] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def add(self, facts: Facts) -> None:
        self.seeds += 1
        self.steps += facts.steps
        self.entries += facts.entries
        self.settle_ms_max = max(self.settle_ms_max, facts.settle_ms)
        for what, times in facts.events.items():
            self.events[what] = self.events.get(what, 0) + times
        if facts.violation:
            self.violations.append(facts.violation)


def run(first: int, seeds: int | None, minutes: float, jobs: int) -> Total:
    """Lives from seed ``first`` on: ``seeds`` of them (None: for ``minutes``), until one violates."""
    total = Total()
    ends = time.monotonic() + 60 * minutes
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for facts in pool.imap_unordered(_run_seed_alone, range(first, first + seeds) if seeds is not None else count(first), 8):
            total.add(facts)
            if facts.violation or (seeds is None and time.monotonic() > ends):
                break
        pool.terminate()
    return total


def _run_seed_alone(seed: int) -> Facts:
    facts = run_seed(seed)
    facts.trace.clear()  # small on its way back
    return facts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        facts = run_seed(options.seed, options.steps, set(filter(None, options.without.split(","))))
        total.add(facts)
        print("\n".join(facts.trace), file=sys.stderr)
    else:
        total = run(options.first, options.seeds if options.minutes is None else None, options.minutes or 0, options.jobs)
    for violation in total.violations:
        print(violation, file=sys.stderr)
        if options.seed is None and not options.json:
            facts, line = shrunk(int(violation.split()[1].rstrip(",")))
            print("shrunk:", *facts.trace, facts.violation, f"replay: {line}", sep="\n", file=sys.stderr)
    seconds = round(time.monotonic() - began, 1)
    if options.json:
        print(json.dumps({**total.__dict__, "violations": len(total.violations), "seconds": seconds}))
    else:
        print(
            f"lives: {total.seeds:,}, steps: {total.steps:,}, entries: {total.entries:,}; {len(total.violations)} violations; all durable "
            f"at most {total.settle_ms_max:,} virtual ms after the last fault; {seconds} s"
        )
        print("  " + ", ".join(f"{times:,} {what}" for what, times in sorted(total.events.items())))
    return 1 if total.violations else 0


if __name__ == "__main__":
    sys.exit(main())

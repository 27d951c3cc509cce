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
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hdad.supervise.family
import hdad.supervise.loop
import hdad.worker.chores
import hdad.worker.loop
import hdad.writer.loop
from tests.sim.life import EPOCH_NS, STEPS_MAX, Facts, Life
from tests.sim.log import Violation, small_segments
from tests.sim.machine import SELECTORS, kill, reap
from tests.sim.process import SimWrites
from tests.sim.redis import Edge


@contextmanager
def simulated(life_of: list[Life]) -> Iterator[None]:
    """hdad's modules get the virtual clock, the seed's randomness, Redis and writes of the life in ``life_of``."""
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
    fakes += [(hdad.worker.loop, "RedisEdge", lambda _: Edge(life_of[0].server)), (hdad.writer.loop, "Writes", _writes_of(life_of))]
    family = hdad.supervise.family
    fakes += [(family, "reap", reap(lambda: life_of[0].machine)), (family, "kill", kill(lambda: life_of[0].machine))]
    fakes += [(hdad.supervise.loop, "selectors", SELECTORS)]
    before = [(module, name, getattr(module, name)) for module, name, _ in fakes]
    for module, name, fake in fakes:
        setattr(module, name, fake)
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with small_segments():
            yield
    finally:
        logging.disable(level)
        for module, name, value in before:
            setattr(module, name, value)


def _writes_of(life_of: list[Life]) -> Any:
    def make(device: Any, *_: Any) -> SimWrites:
        life_of[0].machine.writes = SimWrites(device, life_of[0].trip)
        return life_of[0].machine.writes

    return make


def run_seed(seed: int, steps: int | None = None) -> Facts:
    """One life, and what was wrong with it."""
    life_of: list[Life] = []
    with simulated(life_of):
        life = Life(seed, steps)
        life_of.append(life)
        try:
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


def _place(wrong: Exception) -> str:
    """Where something was raised that is not the oracle's word."""
    if isinstance(wrong, Violation):
        return ""
    return " at " + " < ".join(f"{Path(at.filename).name}:{at.lineno}" for at in reversed(traceback.extract_tb(wrong.__traceback__)[-4:]))


def shrunk(seed: int) -> str:
    """The fewest steps with faults after which this seed still fails, and what it says then."""
    whole = run_seed(seed)
    low, high, text = 0, min(whole.steps, STEPS_MAX), whole.violation
    while high - low > 1:
        middle = (low + high) // 2
        facts = run_seed(seed, middle)
        if facts.violation:
            high, text = middle, facts.violation
        else:
            low = middle
    return f"{text}\nreplay: python -m tests.sim.system --seed {seed} --steps {high}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this life alone")
    parser.add_argument("--steps", type=int, help="with --seed: so many steps before faults stop")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    began = time.monotonic()
    gc.freeze()  # modules stay; what is collected after each life is a life's
    lives: list[Facts] = []
    if options.seed is not None:
        lives.append(run_seed(options.seed, options.steps))
    else:
        with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
            for facts in pool.imap_unordered(run_seed, range(options.first, options.first + options.seeds), 8):
                lives.append(facts)
                if facts.violation:
                    break
            pool.terminate()
    events: dict[str, int] = {}
    for facts in lives:
        for what, count in facts.events.items():
            events[what] = events.get(what, 0) + count
    violations = [facts.violation for facts in lives if facts.violation]
    for violation in violations:
        print(violation, file=sys.stderr)
        if options.seed is None and not options.json:
            print(shrunk(int(violation.split()[1].rstrip(","))), file=sys.stderr)
    sums = {
        "lives": len(lives),
        "steps": sum(facts.steps for facts in lives),
        "entries": sum(facts.entries for facts in lives),
        "settle_ms_max": max(facts.settle_ms for facts in lives),
        "violations": violations,
        "seconds": round(time.monotonic() - began, 1),
    }
    if options.json:
        print(json.dumps({**sums, "events": events}))
    else:
        print(
            f"lives: {sums['lives']:,}, steps: {sums['steps']:,}, entries: {sums['entries']:,}; {len(violations)} violations; all durable "
            f"at most {sums['settle_ms_max']:,} virtual ms after the last fault; {sums['seconds']} s"
        )
        print("  " + ", ".join(f"{count:,} {what}" for what, count in sorted(events.items())))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())

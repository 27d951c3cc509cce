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

import gc
import logging
import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Final

import hdad.supervise.family
import hdad.supervise.loop
import hdad.supervise.progress
import hdad.worker.chores
import hdad.worker.loop
import hdad.writer.writes
from tests.sim.command import Simulation, main, place
from tests.sim.life import STEPS_MAX, Facts, Life
from tests.sim.log import small_segments
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
    clock = {"monotonic_ns": lambda: life_of[0].now_ns, "wall_ns": lambda: life_of[0].wall_ns}
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
    fakes += [(family, "reap", reap(lambda: life_of[0])), (family, "kill", kill(lambda: life_of[0]))]
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


def lived(made: Callable[[], Life]) -> Facts:
    """One life, and what was wrong with it."""
    life_of: list[Life] = []
    with simulated(life_of):
        life = made()
        life_of.append(life)
        knobs = [(sys.modules[module], name, value) for (module, name), value in life.knobs.items()]
        try:
            with patched(knobs):
                life.run()
        except Exception as wrong:  # whatever it is, it is this seed's finding
            life.facts.violation = f"seed {life.seed}, step {life.facts.steps}: {type(wrong).__name__}: {wrong}{place(wrong)}"
        finally:
            life.close()
    facts = life.facts
    del life
    life_of.clear()
    gc.collect()  # a life is full of cycles, and of rings: left to chance, their descriptors would go beyond the limit of a process (1024)
    return facts


def run_seed(seed: int, steps: int | None = None, without: Collection[str] = ()) -> Facts:
    """One life, and what was wrong with it."""
    return lived(lambda: Life(seed, steps, without))


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


SIMULATION: Final = Simulation(
    "tests.sim.system", __doc__, run_seed, lambda seed: Life(seed).faults.table, STEPS_MAX, "all durable"
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(SIMULATION))

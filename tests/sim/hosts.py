"""Several hosts under a seeded scheduler and a virtual clock: a writer's host, hosts with workers only, links over a modelled network.

    python -m tests.sim.hosts [--seeds N] [--first S] [--seed S [--steps K]] [--jobs J] [--json]

Real are supervisors, workers, rings, links (machine, forwarder, server) and the writer; simulated are the network (network.py), Redis, the
disk and time. Faults are those of tests/sim/system, each on any host: a process is killed at any touch of shared memory, disk, Redis or the
network; it, or its whole host, stands still for shorter or longer than every limit. Besides: paths between hosts are cut, one way or both;
connections break; delays, and connections that overtake each other; a host loses power, stays down and comes back, the writer's too; a
daemon is killed or restarted in order; clocks on the wall jump (rifts.py). One seed is one life, exactly repeated.

The oracle is that of tests/sim/system, over all hosts: whatever is shown to Redis as durable is (I1); the log holds what entries ask for,
in order, once (I2, I3), whichever host read them; along the log the epochs of a lane only grow, and each is one worker's (I4); no honest
host is ever called a liar or garbage; and once faults stop, all that was added is durable within bounded virtual time, with every host
serving.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Final

from tests.sim.command import Simulation, main
from tests.sim.fleet import STEPS_MAX, Fleet
from tests.sim.life import Facts
from tests.sim.system import lived


def run_seed(seed: int, steps: int | None = None, without: Collection[str] = ()) -> Facts:
    """One life, and what was wrong with it."""
    return lived(lambda: Fleet(seed, steps, without))


SIMULATION: Final = Simulation(
    "tests.sim.hosts", __doc__, run_seed, lambda seed: Fleet(seed).faults.table, STEPS_MAX, "all durable"
)  # fmt: skip

if __name__ == "__main__":
    sys.exit(main(SIMULATION))

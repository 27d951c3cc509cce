"""A log that is read while its writer goes on: recovery's plan, verify and readers, with writes landing between their reads.

    python -m tests.sim.live [--seeds N] [--first S] [--seed S] [--jobs J] [--json]

Each seed is one log of the crash-point simulation. Between two reads the writer does some of its work: frames, rolls, leases, wrap-around.
The oracle: nothing that goes on is called damaged, whoever looks; what is read is part of the log.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sys
import time

from hdad.errors import LappedError
from hdad.log.inspect import verify_device
from tests.sim.crash import Life, Lineage, Workload, clocked
from tests.sim.disk import Disk
from tests.sim.log import Violation, read_all, reader_on, recovered, small_segments


class Growing:
    """The disk as another process sees it: between its reads, the writer works."""

    is_block = True

    def __init__(self, life: Life, actions_max: int) -> None:
        self._life = life
        self._actions_max = actions_max
        self.path, self.size, self.logical_block_size = "simulated", life.disk.size, life.disk.logical_block_size

    def read(self, address: int, size: int) -> memoryview:
        self._life.live_on(self._life.rng.randint(0, self._actions_max))
        return memoryview(bytes(self._life.disk.read(address, size)))

    def close(self) -> None:
        pass


def run_seed(seed: int) -> str:
    """What was wrong; "" if nothing."""
    rng = random.Random(seed)
    workload = Workload(seed)
    workload.on_full = "overwrite"
    with small_segments(), clocked(workload):
        life = Life(workload, Disk(workload.geometry.size, block_size=workload.block_size), Lineage(), depth=0)
        life.disk.on_crash_point = None
        life.format()
        life.live(rng.randint(5, 200), is_quiet=True)
        try:
            for _ in range(6):
                growing = Growing(life, rng.choice((1, 3, 8)))
                acked = life.lineage.acked_lsn
                log = recovered(growing)  # type: ignore[arg-type]
                if not acked <= log.next_lsn - 1 <= len(life.lineage.crcs):
                    raise Violation(f"recovery ends at {log.next_lsn - 1}, not between {acked} and {len(life.lineage.crcs)}")
                report = verify_device(growing)  # type: ignore[arg-type]
                if not report.ok:
                    raise Violation(f"verify: {report.violations[:3]}")
                try:
                    with reader_on(growing) as reader:  # type: ignore[arg-type]
                        seen = [(header.lsn, header.header_crc) for header, _ in read_all(reader)]
                except LappedError:
                    continue
                if any(life.lineage.crcs[lsn - 1] != crc for lsn, crc in seen):
                    raise Violation("a reader sees frames that the log never had")
        except Exception as wrong:  # whatever it is, it is this seed's finding
            return f"seed {seed}: {type(wrong).__name__}: {wrong}"
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=400)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this log alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    began, violations = time.monotonic(), []
    seeds = range(options.first, options.first + options.seeds) if options.seed is None else range(options.seed, options.seed + 1)
    with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
        for violation in pool.imap_unordered(run_seed, seeds, 4):
            if violation:
                violations.append(violation)
                break
        pool.terminate()
    print(*violations, sep="\n", end="\n" if violations else "", file=sys.stderr)
    seconds = round(time.monotonic() - began, 1)
    if options.json:
        print(json.dumps({"seeds": len(seeds), "violations": len(violations), "seconds": seconds}))
    else:
        print(f"logs read while they grow: {len(seeds):,}, {len(violations)} violations; {seconds} s")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())

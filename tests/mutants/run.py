"""Plants each deliberate bug in a copy of the project, one by one, and runs checks until one of them fails.

    python -m tests.mutants.run [--only TEXT] [--jobs J] [--json]

The check that is known to catch a bug runs first, from the seed that is known to; then all short checks, then the long ones. Prints for
each bug what caught it and after how long, and at the end caught/total. First of all the short checks must pass on the copy as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Final, NamedTuple

from tests.mutants.bugs import BUGS, Bug

ROOT: Final = Path(__file__).parents[2]
PARTS: Final = ("hdad", "tests", "etc", "systemd", "scripts", "pyproject.toml", "README.md", "DESIGN.md", "CHANGELOG.md", "setup.py")
PYTEST: Final = ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist")
CHECK_S_MAX: Final = 900  # a check that has not ended by then never does; the longest takes a fifth of it on an idle machine


class Check(NamedTuple):
    """``argv`` for the interpreter; ``amount``: its option for how much to do, short and long; ``has_seeds``: it takes ``--first``."""

    argv: tuple[str, ...]
    amount: tuple[str, int, int] | None = None
    has_seeds: bool = False

    def command(self, is_long: bool, seed: int) -> list[str]:
        command = [sys.executable, *self.argv]
        if self.amount is not None:
            option, short, long = self.amount
            command += [option, str(long if is_long else short), "--jobs", "1", "--json"]
        return command + (["--first", str(seed)] if self.has_seeds and not is_long else [])


CHECKS: Final = {  # by what they cost
    "unit": Check((*PYTEST, "tests/unit", "tests/golden")),
    "directed": Check((*PYTEST, "tests/sim/test_directed.py")),
    "live": Check(("-m", "tests.sim.live"), ("--seeds", 20, 200), True),
    "crash": Check(("-m", "tests.sim.crash"), ("--points", 30_000, 200_000), True),
    "damage": Check(("-m", "tests.sim.damage"), ("--seeds", 6, 60), True),
    "sim": Check(("-m", "tests.sim.system"), ("--seeds", 150, 2500), True),
    "links": Check(("-m", "tests.sim.hosts"), ("--seeds", 120, 1500), True),
    "fence": Check(("-m", "tests.sim.fence"), ("--seeds", 150, 1200), True),
}


def make_copy(folder: Path) -> Path:
    """The project as it stands, built."""
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part)  # bytecode too: that of a file with a bug in it is older, and does not count
        elif source.exists():
            shutil.copy(source, folder / part)
    return folder


def runs(bug: Bug) -> Iterator[tuple[str, bool, int]]:
    """(check, is long, first seed) in the order in which they are tried."""
    yield bug.first, False, bug.seed
    yield from ((name, False, 0) for name in CHECKS if name != bug.first or bug.seed)
    yield from ((name, True, 0) for name, check in CHECKS.items() if check.amount is not None)


def fails(copy: Path, check: str, is_long: bool = False, seed: int = 0) -> bool:
    """Whether ``check`` finds something in ``copy``; a check that never ends has."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = CHECKS[check].command(is_long, seed)
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=CHECK_S_MAX, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def planted(copy: Path, bug: Bug) -> str:
    """Plant ``bug``. Returns the file's text as it was. Raises ValueError if its line is not there once."""
    path = copy / bug.file
    text = path.read_text()
    if text.count(bug.old) != 1:
        raise ValueError(f"{bug.name}: {bug.file} has its line {text.count(bug.old)} times; it must be there once: {bug.old!r}")
    path.write_text(text.replace(bug.old, bug.new))
    return text


def caught_by(copy: Path, bug: Bug) -> str:
    """The check that failed; "" if none did."""
    before = planted(copy, bug)
    try:
        return next((f"{check}, long" if is_long else check for check, is_long, seed in runs(bug) if fails(copy, check, is_long, seed)), "")
    finally:
        (copy / bug.file).write_text(before)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="bugs with this text in their names")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    bugs = [bug for bug in BUGS if options.only in bug.name]
    began = time.monotonic()
    results: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="hdad-mutants-") as folder, ThreadPoolExecutor(options.jobs) as threads:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.jobs):
            copies.put(make_copy(Path(folder) / str(number)))

        def with_copy(bug: Bug | str) -> tuple[str, float]:
            copy, started = copies.get(), time.monotonic()
            try:
                found = caught_by(copy, bug) if isinstance(bug, Bug) else bug * fails(copy, bug)
                return found, time.monotonic() - started
            finally:
                copies.put(copy)

        broken = [check for check, _ in threads.map(with_copy, CHECKS) if check]
        if broken:
            print(f"without any bug these checks fail: {', '.join(broken)}", file=sys.stderr)
            return 2
        for bug, (check, took) in zip(bugs, threads.map(with_copy, bugs), strict=True):
            results[bug.name] = check
            print(f"{'caught by ' + check if check else 'NOT CAUGHT':24} {took:6.1f} s  {bug.name}", file=sys.stderr, flush=True)
    missed = [name for name, check in results.items() if not check]
    seconds = round(time.monotonic() - began, 1)
    if options.json:
        print(json.dumps({"caught": len(results) - len(missed), "total": len(results), "missed": missed, "seconds": seconds}))
    else:
        print(f"deliberate bugs caught: {len(results) - len(missed)}/{len(results)}; {seconds} s")
    return 1 if missed or not results else 0


if __name__ == "__main__":
    sys.exit(main())

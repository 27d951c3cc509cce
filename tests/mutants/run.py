"""Plants each deliberate bug in a copy of the project, one by one, and runs checks until one of them fails.

    python -m tests.mutants.run [--only TEXT] [--jobs J] [--json]

Prints for each bug what caught it, and at the end caught/total. First of all the checks must pass on the copy as it is.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Final

from tests.mutants.bugs import BUGS, Bug

ROOT: Final = Path(__file__).parents[2]
PARTS: Final = ("hdad", "tests", "etc", "systemd", "scripts", "pyproject.toml", "README.md", "DESIGN.md", "CHANGELOG.md", "setup.py")
CHECKS: Final = {
    "unit": ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "tests/unit", "tests/golden"],
    "crash": ["-m", "tests.sim.crash", "--points", "200000", "--jobs", "1", "--json"],
    "damage": ["-m", "tests.sim.damage", "--seeds", "60", "--jobs", "1", "--json"],
    "sim": ["-m", "tests.sim.system", "--seeds", "2500", "--jobs", "1", "--json"],
    "fence": ["-m", "tests.sim.fence", "--seeds", "1200", "--jobs", "1", "--json"],
}
CHECK_S_MAX: Final = 400


def make_copy(folder: Path) -> Path:
    """The project as it stands, built."""
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / part)
    return folder


def fails(copy: Path, check: str) -> bool:
    """Whether ``check`` finds something in ``copy``; a check that never ends has."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, *CHECKS[check]], cwd=copy, env=environment, capture_output=True, timeout=CHECK_S_MAX, check=False
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
        return next((check for check in (bug.first, *(name for name in CHECKS if name != bug.first)) if fails(copy, check)), "")
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

        def with_copy(bug: Bug | str) -> str:
            copy = copies.get()
            try:
                return caught_by(copy, bug) if isinstance(bug, Bug) else bug * fails(copy, bug)
            finally:
                copies.put(copy)

        broken = [check for check in threads.map(with_copy, CHECKS) if check]
        if broken:
            print(f"without any bug these checks fail: {', '.join(broken)}", file=sys.stderr)
            return 2
        for bug, check in zip(bugs, threads.map(with_copy, bugs), strict=True):
            results[bug.name] = check
            if not options.json:
                print(f"{'caught by ' + check if check else 'NOT CAUGHT':18} {bug.name}", flush=True)
    missed = [name for name, check in results.items() if not check]
    seconds = round(time.monotonic() - began, 1)
    if options.json:
        print(json.dumps({"caught": len(results) - len(missed), "total": len(results), "missed": missed, "seconds": seconds}))
    else:
        print(f"deliberate bugs caught: {len(results) - len(missed)}/{len(results)}; {seconds} s")
    return 1 if missed or not results else 0


if __name__ == "__main__":
    sys.exit(main())

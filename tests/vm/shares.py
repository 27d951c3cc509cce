"""``scripts/vm test``: the files of tests in two runs side by side, each with VMs of its own.

An emulated VM keeps one core busy, so two of them take half the time on two cores. Files are dealt out by what they took when measured
(``SECONDS``); a file is never divided, since its tests share a VM. Each line of output begins with the number of its run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.vm.summary import merged

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
RUNS: Final = 2
# Measured, two runs side by side on two idle cores; a file that is not here counts as an average one.
SECONDS: Final = {
    "test_fc.py": 110, "test_fc_fence.py": 60, "test_flakey.py": 120, "test_lives.py": 160, "test_luns.py": 190, "test_nvme.py": 40,
    "test_paths.py": 100, "test_reservations.py": 215, "test_self.py": 1,
}  # fmt: skip
NOTHING_COLLECTED: Final = 5  # pytest's exit status
LIMIT_S: Final = 2400.0  # of a run, all its tests together; each test has a limit of its own besides
END_S: Final = 20.0


def deal(files: Sequence[str], runs: int = RUNS) -> list[list[str]]:
    """The longest first, each to the run that has the least to do so far; no empty runs. Files of one subject (test_fc, test_fc_fence)
    go together: they share a VM."""
    average = sum(SECONDS.values()) // len(SECONDS)
    subjects: dict[str, list[str]] = {}
    for file in sorted(files):
        subjects.setdefault(Path(file).stem.split("_")[1], []).append(file)

    def seconds(some: Sequence[str]) -> int:
        return sum(SECONDS.get(Path(file).name, average) for file in some)

    shares: list[list[str]] = [[] for _ in range(runs)]
    for some in sorted(subjects.values(), key=lambda some: (-seconds(some), some)):
        min(shares, key=seconds).extend(some)
    return [share for share in shares if share]


def choose(arguments: Sequence[str], runs: int = RUNS) -> list[list[str]]:
    """pytest's arguments for each run. What is chosen closer than by files is one run."""
    chosen = [word for word in arguments if word.startswith("tests/")]
    options = [word for word in arguments if word not in chosen]
    if not chosen or chosen in (["tests/vm"], ["tests/vm/"]):
        chosen = sorted(str(path.relative_to(ROOT)) for path in HERE.glob("test_*.py"))
    if not all(word.endswith(".py") for word in chosen):
        return [[*chosen, *options]]
    return [[*share, *options] for share in deal(chosen, runs)]


def run(arguments: Sequence[str], folder: Path, runs: int = RUNS, limit_s: float = LIMIT_S) -> tuple[int, dict[str, Any]]:
    """What ``arguments`` choose, in so many runs side by side. Exit status of all, and what they found (see summary).

    A run that comes to no end within ``limit_s``, or leaves nothing, is a failure of its own. Output goes to stdout.
    """
    return run_shares(choose(arguments, runs), folder, limit_s)


def run_shares(shares: Sequence[Sequence[str]], folder: Path, limit_s: float) -> tuple[int, dict[str, Any]]:
    """pytest with the arguments of each share, all at the same time. See ``run``."""
    printing = threading.Lock()
    all_runs = [_Run(share, folder / f"facts-{index}.json", f"{index + 1}| " if len(shares) > 1 else "", printing)
                for index, share in enumerate(shares)]  # fmt: skip
    deadline = time.monotonic() + limit_s
    for one in all_runs:
        one.join(deadline)
    statuses = [one.status for one in all_runs if one.status != NOTHING_COLLECTED]
    facts = merged([one.facts for one in all_runs if one.facts is not None])
    facts["outcomes"]["failed"] += sum(one.is_late or one.facts is None for one in all_runs)
    return next((status for status in statuses if status), 0) if statuses else NOTHING_COLLECTED, facts


class _Run:
    """One pytest, its output shown line by line as it comes."""

    def __init__(self, share: Sequence[str], path: Path, prefix: str, printing: threading.Lock) -> None:
        self._path, self._prefix, self._printing = path, prefix, printing
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", f"--vm-summary={path}", *share]
        environment = {**os.environ, "COLUMNS": "150"}
        self._process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._thread = threading.Thread(target=self._show)
        self._thread.start()
        self.status = 0
        self.is_late = False
        self.facts: dict[str, Any] | None = None

    def _show(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._print(line)

    def _print(self, line: str) -> None:
        with self._printing:
            sys.stdout.write(self._prefix + line)
            sys.stdout.flush()

    def join(self, deadline: float) -> None:
        """Until it has ended, by itself or at ``deadline``: by SIGINT, so that it tells what it has; then by SIGKILL, its VM with it."""
        try:
            self._thread.join(max(0.0, deadline - time.monotonic()))
        except KeyboardInterrupt:  # the run has got it too, and ends its VM
            self._thread.join(END_S)
        self.is_late = self._thread.is_alive()
        if self.is_late:
            self._print("hdad: out of time\n")
            self._process.send_signal(signal.SIGINT)
            self._thread.join(END_S)
            self._process.kill()
        self._thread.join()
        self.status = self._process.wait()
        if self._path.exists():
            self.facts = json.loads(self._path.read_text())

"""``scripts/vm test``: the files of tests in two runs side by side, each with VMs of its own.

An emulated VM keeps one core busy, so two of them take half the time on two cores. Files are dealt out by what they took when measured
(``SECONDS``); a file is never divided, since its tests share a VM. Each line of output begins with the number of its run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
RUNS: Final = 2
# Measured, two runs side by side on two idle cores; a file that is not here counts as an average one.
SECONDS: Final = {
    "test_fc.py": 210, "test_fc_fence.py": 110, "test_flakey.py": 170, "test_lives.py": 280, "test_luns.py": 400, "test_nvme.py": 90,
    "test_paths.py": 140, "test_reservations.py": 290, "test_self.py": 1,
}  # fmt: skip
NOTHING_COLLECTED: Final = 5  # pytest's exit status
SUMS: Final = ("passed", "failed", "skipped", "lost", "fenced")


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


def merge(summaries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One line out of those of several runs at the same time."""
    first = summaries[0]
    return {
        name: sum(summary[name] for summary in summaries) if name in SUMS else max(summary[name] for summary in summaries) for name in first
    }


def choose(arguments: Sequence[str]) -> list[list[str]]:
    """pytest's arguments for each run. What is chosen closer than by files is one run."""
    chosen = [word for word in arguments if word.startswith("tests/")]
    options = [word for word in arguments if word not in chosen]
    if not chosen or chosen in (["tests/vm"], ["tests/vm/"]):
        chosen = sorted(str(path.relative_to(ROOT)) for path in HERE.glob("test_*.py"))
    if not all(word.endswith(".py") for word in chosen):
        return [[*chosen, *options]]
    return [[*share, *options] for share in deal(chosen)]


def run(arguments: Sequence[str], folder: Path) -> tuple[int, dict[str, Any] | None]:
    """Run what ``arguments`` choose. Exit status of all, and their summary, if any run came to one. Output goes to stdout."""
    shares = choose(arguments)
    summaries = [folder / f"summary-{index}.json" for index in range(len(shares))]
    processes, threads = [], []
    lock = threading.Lock()
    for index, share in enumerate(shares):
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", f"--vm-summary={summaries[index]}", *share]
        environment = {**os.environ, "COLUMNS": "150"}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        prefix = f"{index + 1}| " if len(shares) > 1 else ""
        thread = threading.Thread(target=_show, args=(process, prefix, lock))
        thread.start()
        processes.append(process)
        threads.append(thread)
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:  # the runs have got it too, and end their VMs
        for thread in threads:
            thread.join()
    statuses = [process.wait() for process in processes]
    if any(status != NOTHING_COLLECTED for status in statuses):
        statuses = [status for status in statuses if status != NOTHING_COLLECTED]
    found = [json.loads(path.read_text()) for path in summaries if path.exists()]
    summary = merge(found) if found else None
    if summary is not None:
        summary["failed"] += len(shares) - len(found)  # a run that came to no end is a failure of its own
    return next((status for status in statuses if status), 0), summary


def _show(process: subprocess.Popen[str], prefix: str, lock: threading.Lock) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        with lock:
            sys.stdout.write(prefix + line)
            sys.stdout.flush()

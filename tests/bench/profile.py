"""Where the time goes, by role: py-spy beside hdad while it drains, or keeps up with a steady rate. Edge.

Percentages are of a role's samples in which it ran. ``own``: the innermost function; ``with_callees``: anywhere on the stack.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

from .daemon import Daemon
from .programs import BenchError, spawn

SAMPLES_PER_S: Final = 400
TOP: Final = 15
WAY_IN: Final = ("supervise", "cli", "daemon", "worker/child", "writer/child")


class Profiler:
    """Samples each process of a daemon, from ``start`` on for ``seconds``."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds
        beside = Path(sys.executable).parent / "py-spy"
        program = str(beside) if beside.exists() else shutil.which("py-spy")
        if program is None:
            raise BenchError("py-spy is not installed: pip install py-spy")
        self._program = program
        self._running: dict[str, tuple[Path, Any]] = {}

    def start(self, daemon: Daemon) -> None:
        """Attach to all roles but the supervisor."""
        for role, pid in daemon.roles().items():
            if pid == daemon.pid:
                continue
            path = self._folder / f"profile-{role}.txt"
            words = [self._program, "record", "-f", "raw", "-o", str(path), "-p", str(pid)]
            words += ["-d", str(self._seconds), "-r", str(SAMPLES_PER_S)]
            self._running[role] = (path, spawn(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    def result(self) -> dict[str, Any]:
        """By role: how many samples, and the functions they were in, percent."""
        found: dict[str, Any] = {}
        for role, (path, process) in self._running.items():
            process.wait()
            found[role] = _top(path.read_text(encoding="utf-8")) if path.exists() else "ended before it was sampled"
        return found


def _top(text: str) -> dict[str, Any]:
    """Collapsed stacks, "a;b;c 12" a line, to shares."""
    own: Counter[str] = Counter()
    callees: Counter[str] = Counter()
    total = 0
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [frame.replace("hdad/", "") for frame in stack.split(";")]
        total += int(count)
        own[frames[-1]] += int(count)
        callees.update({frame.partition(" (")[0]: int(count) for frame in stack.split(";") if _is_telling(frame)})
    return {"samples": total, "own": _shares(own, total), "with_callees": _shares(callees, total)}


def _is_telling(frame: str) -> bool:
    """Functions of hdad, without those that only lead to the loop."""
    return "(hdad/" in frame and not any(f"(hdad/{part}" in frame for part in WAY_IN)


def _shares(counts: Counter[str], total: int) -> dict[str, float]:
    return {name: round(100 * count / max(1, total), 1) for name, count in counts.most_common(TOP)}

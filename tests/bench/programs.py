"""Programs that run beside hdad: compiled once a run, started ready, told to go. Edge.

Each peer is a process of its own that prints READY when it has connected and prepared what may be prepared, waits for a line, does its
work, and prints one JSON object. So what is measured is the work, and never an interpreter's start.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).parent
STRICT: Final = ("-O2", "-std=c11", "-Wall", "-Wextra", "-Werror")
CLOCKS: Final = 2  # CPUCLOCK_SCHED: clock_getcpuclockid(3) makes a process' CPU clock from its id
_LIBC: Final = ctypes.CDLL(None)
_PR_SET_PDEATHSIG: Final = 1


class BenchError(Exception):
    """The bench cannot measure what it was asked to; the text says why."""


def compile_programs(folder: Path) -> None:
    """The C programs, into ``folder``. Raises BenchError with what the compiler says."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise BenchError("there is no C compiler: apt-get install gcc libc6-dev")
    for source in sorted((HERE / "native").glob("*.c")):
        words = [compiler, *STRICT, str(source), "-o", str(folder / source.stem), "-pthread"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BenchError(f"{source.name} does not compile:\n{done.stderr}")


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def spawn(words: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
    """A child that does not outlive this process, whatever ends it."""
    return subprocess.Popen(words, preexec_fn=_die_with_parent, **options)  # noqa: PLW1509 - the bench has no threads


def until(condition: Any, seconds: float, what: str, pause_s: float = 0.002) -> None:
    """Wait for ``condition``. Raises BenchError."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchError(f"waited {seconds:g} s for {what}, which did not happen")
        time.sleep(pause_s)


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process, also of those that have ended, ns. OSError when it is gone."""
    return time.clock_gettime_ns((~pid << 3) | CLOCKS)


class Peer:
    """One program. ``pid`` while it runs."""

    def __init__(self, *words: object) -> None:
        self._words = [str(word) for word in words]
        self._process = spawn(self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        if self._out.readline() != "READY\n":
            raise BenchError(f"{' '.join(self._words)}: ended with status {self._process.wait()}")

    def go(self) -> None:
        """Let it work."""
        self._in.write("go\n")
        self._in.flush()

    def result(self) -> dict[str, Any]:
        """Wait for its end. Raises BenchError if it failed."""
        output = self._out.read()
        status = self._process.wait()
        self._in.close()
        self._out.close()
        if status:
            raise BenchError(f"{' '.join(self._words)}: status {status}")
        found: dict[str, Any] = json.loads(output)
        return found

    def run(self) -> dict[str, Any]:
        """``go`` and ``result``."""
        self.go()
        return self.result()


def python_peer(module: str, *words: object) -> Peer:
    """A program that is a module of this package."""
    return Peer(sys.executable, "-P", "-m", f"{__package__}.{module}", *words)


def environment() -> dict[str, str]:
    """For children that are to import what this process imports."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def write_through(path: Path, size: int) -> None:
    """A file of ``size`` bytes that was written before."""
    chunk = bytes(4 << 20)
    with path.open("wb", buffering=0) as file:
        for _ in range(0, size, len(chunk)):
            file.write(chunk)
        os.fsync(file.fileno())

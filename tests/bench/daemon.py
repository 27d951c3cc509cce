"""hdad under test: a log, a daemon on it, and what its counters say. Edge.

The hdad of this process is the one that is measured (HDAD_TREE, see scripts/bench). The daemon is told to pause while streams are put in
its way and its lanes are assigned, so that a drain is measured from the command to go on until the last entry is durable.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from hdad.control.client import call
from hdad.errors import ControlError
from hdad.log.create import format_log
from hdad.log.inspect import verify
from hdad.metrics.counters import Counters

from .programs import BenchError, cpu_ns, die_with_parent, environment, until

STAGE: Final = """
from hdad import Batch, Record

def project(batch):
    for record in batch:
        data = record.data
        if data["level"] != "debug":
            yield record.with_value({"id": data["id"], "host": data["host"], "value": data["value"]})
"""
DRAIN_SECONDS: Final = 300


@dataclass
class Setup:
    """How hdad is run. ``overrides``: dotted keys of hdad.toml and their values as TOML."""

    url: str
    streams: str
    stage: bool = False
    workers: int = 2
    log_bytes: int = 1 << 30
    overrides: dict[str, str] = field(default_factory=dict)

    def toml(self, folder: Path, log: str, socket: str) -> str:
        """The configuration."""
        keys = {
            "redis.url": f'"{self.url}"', "redis.streams": f'["{self.streams}*"]',
            "pipeline.stages": '["bench_stage:project"]' if self.stage else "[]", "workers.count": str(self.workers),
            "log.device": f'"{log}"', "supervisor.state_directory": f'"{folder}"', "control.socket": f'"{socket}"',
            "metrics.listen": '"off"', "logging.level": '"warning"', **self.overrides,
        }  # fmt: skip
        return "".join(f"{key} = {value}\n" for key, value in keys.items())


class Log:
    """A file-backed log, written through once and formatted anew for each daemon: always the same extents."""

    def __init__(self, folder: Path, size: int) -> None:
        self.path = str(folder / "bench.log")
        self.size = size
        self._uuid = ""

    def format(self) -> None:
        """A new, empty log."""
        if not self._uuid:
            made = format_log(self.path, size=self.size)
        else:
            made = format_log(self.path, force_uuid=self._uuid, prefill=False)
        self._uuid = _uuid_text(made.uuid)

    def remove(self) -> None:
        """Give its room back."""
        Path(self.path).unlink(missing_ok=True)
        self._uuid = ""


def _uuid_text(raw: bytes) -> str:
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


class Daemon:
    """A running hdad."""

    def __init__(self, folder: Path, log: Log, setup: Setup) -> None:
        log.format()
        self.log = log.path
        (folder / "bench_stage.py").write_text(STAGE, encoding="utf-8")
        self.socket = str(folder / "control.sock")
        config = folder / "hdad.toml"
        config.write_text(setup.toml(folder, self.log, self.socket), encoding="utf-8")
        began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from hdad.cli.daemon import main; main()", "run", "-c", str(config)],
            env={**environment(), "PYTHONPATH": os.pathsep.join([str(folder), environment()["PYTHONPATH"]])},
            preexec_fn=die_with_parent,
        )  # fmt: skip
        self.pid = self._process.pid
        until(self._is_up, 30, "hdad to start")
        self.start_s = time.monotonic() - began
        self.counters = Counters.attach_process(self.pid)
        self.writer = self.counters.writer

    def _is_up(self) -> bool:
        if self._process.poll() is not None:
            raise BenchError(f"hdad ended with status {self._process.returncode} before it was up")
        try:
            call(self.socket, "status")
        except ControlError:
            return False
        return True

    def pids(self) -> list[int]:
        """All its processes."""
        own = psutil.Process(self.pid)
        return [own.pid, *(child.pid for child in own.children(recursive=True))]

    def cpu_ns(self) -> int:
        """CPU time of all its processes so far."""
        return sum(map(cpu_ns, self.pids()))

    def roles(self) -> dict[str, int]:
        """Process ids by role: the supervisor, the writer, the workers; for profilers."""
        names: dict[str, int] = {"supervisor": self.pid}
        status: Any = call(self.socket, "status")
        for child in status.get("processes", ()):
            names[child["role"]] = child["pid"]
        return names

    def memory_bytes(self) -> int:
        """PSS of all its processes: shared pages counted once."""
        return sum(psutil.Process(pid).memory_full_info().pss for pid in self.pids())

    def call(self, method: str, **params: Any) -> Any:
        """A command on the control socket. Raises ControlError."""
        return call(self.socket, method, params)

    def await_lanes(self, count: int) -> None:
        """Until so many lanes are assigned."""
        lanes = self.counters.lanes
        until(lambda: lanes.count >= count and all(row.worker >= 0 for row in lanes.rows()), 120, f"{count} lanes to be assigned", 0.02)

    def await_entries(self, entries: int, seconds: float = DRAIN_SECONDS) -> int:
        """Until so many entries are durable. Returns the monotonic time at which the last of them was, ns."""
        until(lambda: self.writer.get("entries") >= entries, seconds, f"{entries} entries to be durable", 0.004)
        last: int = self.counters.trace.pairs()[-1][0]
        return last

    def stop(self) -> None:
        """SIGTERM, and its end. Raises BenchError unless it drained."""
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(90)
        if status:
            raise BenchError(f"hdad ended with status {status}")

    def kill(self) -> None:
        """At once; for the way out when something failed."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def check_log(path: str, entries: int) -> None:
    """Raises BenchError unless the log holds so many entries and all is right with it."""
    report = verify(path)
    if not report.ok or report.entries != entries:
        raise BenchError(f"the log holds {report.entries} entries instead of {entries}; {report.violations}")


__all__ = ["STAGE", "Daemon", "Log", "Setup", "check_log"]

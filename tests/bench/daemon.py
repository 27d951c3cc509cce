"""hdad under test: a log, a daemon on it, and what its counters say. Edge.

The hdad of this process is the one that is measured (HDAD_TREE, see scripts/bench). The daemon is told to pause while streams are put in
its way and its lanes are assigned, so that a drain is measured from the command to go on until the last entry is durable.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from hdad.control.client import call
from hdad.errors import ControlError
from hdad.log.create import format_log
from hdad.log.geometry import UNIT
from hdad.log.inspect import verify
from hdad.log.signatures import PROBE_BYTES
from hdad.metrics.counters import Counters, State

from .programs import BenchError, cpu_ns, environment, spawn, until

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

    def __init__(self, folder: Path, size: int, name: str = "bench.log") -> None:
        self.path = str(folder / name)
        self.size = size
        self._uuid = ""
        self._is_written = False

    def format(self) -> None:
        """A new, empty log."""
        made = format_log(self.path, size=self.size, force_uuid=self._uuid or None, prefill=not self._is_written)
        self._uuid, self._is_written = str(uuid.UUID(bytes=made.uuid)), True

    def blank(self) -> None:
        """After somebody else has written over the file: no trace of the log, so that ``format`` takes it."""
        with Path(self.path).open("r+b") as file:
            file.write(bytes(PROBE_BYTES))
            file.seek(-4 * UNIT, os.SEEK_END)
            file.write(bytes(4 * UNIT))
            os.fsync(file.fileno())
        self._uuid, self._is_written = "", True

    def remove(self) -> None:
        """Give its room back."""
        Path(self.path).unlink(missing_ok=True)
        self._uuid, self._is_written = "", False


class Daemon:
    """A running hdad, on an empty log unless ``anew`` is False. ``ready_s``: from its start until the writer had recovered the log."""

    def __init__(self, folder: Path, log: Log, setup: Setup, *, anew: bool = True) -> None:
        if anew:
            log.format()
        self.log = log.path
        (folder / "bench_stage.py").write_text(STAGE, encoding="utf-8")
        self.socket = str(folder / "control.sock")
        config = folder / "hdad.toml"
        config.write_text(setup.toml(folder, self.log, self.socket), encoding="utf-8")
        began = time.monotonic()
        self._process = spawn(
            [sys.executable, "-P", "-c", "from hdad.cli.daemon import main; main()", "run", "-c", str(config)],
            env={**environment(), "PYTHONPATH": os.pathsep.join([str(folder), environment()["PYTHONPATH"]])},
        )  # fmt: skip
        self.pid = self._process.pid
        until(self._is_up, 30, "hdad to start")
        self.counters = Counters.attach_process(self.pid)
        self.writer = self.counters.writer
        until(lambda: self.writer.get("state") == State.READY, 60, "hdad's writer to be ready")
        self.ready_s = time.monotonic() - began

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
        """Process ids by the names that hdad gives its processes, such as hdad-writer and hdad-worker-0."""
        return {psutil.Process(pid).name(): pid for pid in self.pids()}

    def cpu_by_role_ns(self) -> dict[str, int]:
        """CPU time so far: "writer" and, all together, "workers"."""
        found = {"writer": 0, "workers": 0}
        for name, pid in self.roles().items():
            for role in found:
                if role.removesuffix("s") in name:
                    found[role] += cpu_ns(pid)
        return found

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

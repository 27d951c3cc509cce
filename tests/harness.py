"""What integration tests drive: a real Redis-compatible server and a real daemon, and waiting for conditions with a deadline."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self

import redis

from hdad.control.client import call
from hdad.errors import ControlError
from hdad.log.create import format_log
from hdad.log.device import Device
from hdad.log.inspect import VerifyReport, verify
from hdad.log.logrecord import LogRecord
from hdad.log.opening import durable_evidence, read_leases, read_superblock
from hdad.log.reader import LogReader
from hdad.source.embedded import find_server

DEADLINE_S = float(os.environ.get("HDAD_DEADLINE_S", "60"))  # more in a machine that is emulated
PAUSE_S = float(os.environ.get("HDAD_PAUSE_S", "0.01"))  # there a look may cost as much as what it waits for


def wait_until(condition: Callable[[], Any], what: str | Callable[[], str], seconds: float = DEADLINE_S) -> Any:
    """The first true value of ``condition``. Fails with ``what`` at the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(PAUSE_S)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class RedisServer:
    """A private server on a Unix socket; appends every write at once, so that a kill loses nothing it acknowledged."""

    def __init__(self, folder: Path, executable: str = "", name: str = "r", options: Iterable[str] = ()) -> None:
        self.folder = folder
        self.path = str(folder / f"{name}.sock")
        self.url = f"unix://{self.path}"
        data = folder / f"{name}-data"
        data.mkdir(exist_ok=True)
        self.argv = [
            executable or find_server(), "--port", "0", "--unixsocket", self.path, "--dir", str(data), "--save", "", "--appendonly", "yes",
            "--appendfsync", "always", "--loglevel", "warning", *options,
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(unix_socket_path=self.path)

    def start(self) -> None:
        self.process = subprocess.Popen(self.argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=_die_with_parent)  # noqa: PLW1509
        wait_until(self._is_up, "the Redis server answers")

    def _is_up(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.kill()

    def add(self, stream: str, count: int, start: int = 0, **fields: str) -> None:
        """XADD ``count`` entries with field n = start, start + 1, …"""
        for begin in range(start, start + count, 1000):
            pipeline = self.client.pipeline(transaction=False)
            for index in range(begin, min(begin + 1000, start + count)):
                pipeline.xadd(stream, {"n": str(index), **fields})
            pipeline.execute()

    def entries(self, stream: str) -> list[tuple[str, list[tuple[bytes, bytes]]]]:
        """All entries: (ID, pairs)."""
        found = self.client.execute_command("XRANGE", stream, "-", "+")
        return [(entry_id.decode(), list(fields.items())) for entry_id, fields in found]


class Daemon:
    """A daemon on a file-backed log. ``config``: sections merged into the test's defaults."""

    def __init__(self, folder: Path, url: str, config: dict[str, dict[str, Any]] | None = None, *, start: bool = True, size: int = 64 << 20,
                 device: str = "", block_size: int = 0, segment_size: int = 0, format_device: bool = True,
                 has_log: bool = True) -> None:  # fmt: skip
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.device = device or str(folder / "test.log")
        self.socket = str(folder / "c.sock")
        self.config_path = folder / "hdad.toml"
        self.sections: dict[str, dict[str, Any]] = {
            "redis": {"url": url, "streams": ["s:*"], "scan_interval_ms": 100, "group_interval_ms": 20},
            "workers": {"count": 2, "count_max": 4, "ring_bytes": 4 << 20},
            "log": {"device": self.device, "frame_bytes_max": 1 << 20},
            "supervisor": {"state_directory": str(folder), "restart_backoff_ms": 10, "drain_timeout_s": 20, "crash_loop_limit": 50},
            "control": {"socket": self.socket},
            "metrics": {"listen": "off"},
            "logging": {"level": "info"},
        }
        if not has_log:
            del self.sections["log"]["device"]
        self.configure(config or {})
        if has_log and format_device and (not Path(self.device).exists() or Path(self.device).is_block_device()):
            format_log(
                self.device, size=None if Path(self.device).is_block_device() else size, segment_size=segment_size, block_size=block_size
            )
        self.process: subprocess.Popen[str] | None = None
        self.prefix: list[str] = []  # of the command: what enters another namespace
        self.log_path = folder / "daemon.log"
        if start:
            self.start()

    def configure(self, sections: dict[str, dict[str, Any]]) -> None:
        """Merge and write the file."""
        for name, keys in sections.items():
            self.sections.setdefault(name, {}).update(keys)
        lines = []
        for name, keys in self.sections.items():
            lines.append(f"[{name}]")
            lines += [f"{key} = {_toml(value)}" for key, value in keys.items()]
        self.config_path.write_text("\n".join(lines) + "\n")

    def start(self, wait: bool = True) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(self.folder), str(Path(__file__).parents[1])])}
        with self.log_path.open("a") as log:
            self.process = subprocess.Popen(
                [*self.prefix, sys.executable, "-c", "from hdad.cli.daemon import main; main()", "run", "-c", str(self.config_path)],
                stderr=log, stdout=log, env=environment, preexec_fn=_die_with_parent, text=True,  # noqa: PLW1509
            )  # fmt: skip
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        wait_until(self._is_ready, lambda: f"the daemon is ready; its log:\n{self.log()[-3000:]}")

    def _is_ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the daemon ended with {self.process.returncode}:\n{self.log()[-3000:]}"
        status = self.try_status()
        return status is not None and all(role["state"] in ("ready", "waiting", "paused", "standby") for role in status["roles"])

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""

    def call(self, method: str, **params: Any) -> Any:
        return call(self.socket, method, params)

    def try_status(self) -> dict[str, Any] | None:
        try:
            status: dict[str, Any] = call(self.socket, "status")
        except ControlError:
            return None
        return status

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = call(self.socket, "status")
        return status

    def lane(self, name: str) -> dict[str, Any] | None:
        """The lane's row."""
        status = self.try_status()
        return next((lane for lane in status["lanes"] if lane["name"] == name), None) if status else None

    def role_pid(self, role: str) -> int:
        """The pid of a running role, waiting for it."""
        pid: int = wait_until(
            lambda: next((row["pid"] for row in (self.try_status() or {"roles": []})["roles"] if row["role"] == role), 0), f"{role} runs"
        )
        return pid

    def kill_role(self, role: str) -> int:
        pid = self.role_pid(role)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return pid

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def role(self) -> str:
        """writer, standby, …; "gone" without an answer."""
        status = self.try_status() if self.is_running else None
        return str(status["node"]["role"]) if status is not None else "gone"

    def pids(self) -> list[int]:
        """All its processes, the supervisor first."""
        assert self.process is not None
        return [self.process.pid, *map(int, self._children())]

    def freeze(self) -> None:
        """The whole host stands still."""
        for pid in self.pids():
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """And goes on, knowing nothing of it."""
        for pid in reversed(self.pids()):
            os.kill(pid, signal.SIGCONT)

    def wait_entries(self, count: int, seconds: float = DEADLINE_S) -> None:
        """Until so many entries are durable, all lanes together, and readers of the device know it by the lease."""
        wait_until(
            lambda: (self.try_status() or {"totals": {"entries": -1}})["totals"]["entries"] >= count,
            lambda: f"{count} entries are durable; {self.try_status()}; log:\n{self.log()[-2000:]}", seconds,
        )  # fmt: skip
        if self.sections["log"].get("device"):
            wait_until(self._is_known_to_readers, "a lease that says what is durable", seconds)

    def _is_known_to_readers(self) -> bool:
        status = self.try_status()
        if status is None or not status["writer"]:
            return False
        with Device.open(self.device) as device:
            return durable_evidence(read_leases(device, read_superblock(device).uuid)) >= status["writer"]["durable_lsn"]

    def stop(self, expected: int = 0) -> int:
        """SIGTERM, and wait for the end."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.wait_end(expected)

    def wait_end(self, expected: int | None = 0, seconds: float = DEADLINE_S) -> int:
        assert self.process is not None
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired as late:
            raise AssertionError(f"the daemon did not end within {seconds:g} s; log:\n{self.log()[-3000:]}") from late
        assert expected is None or status == expected, f"status {status}, expected {expected}; log:\n{self.log()[-3000:]}"
        return status

    def kill(self) -> None:
        """SIGKILL to the supervisor; the kernel takes the children along."""
        if self.process is not None and self.process.poll() is None:
            children = [int(pid) for pid in self._children()]
            self.process.kill()
            self.process.wait()
            wait_until(lambda: not any(_is_alive(pid) for pid in children), "the children died with the supervisor", 10)

    def _children(self) -> list[str]:
        assert self.process is not None
        with contextlib.suppress(FileNotFoundError):
            return Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return []

    def verify(self) -> VerifyReport:
        """Verify the log offline; it has no violation."""
        report = verify(self.device)
        assert report.ok, report.violations
        return report

    def records(self) -> list[LogRecord]:
        with LogReader(self.device) as reader:
            return list(reader.records())


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else str(value)


def assert_same(daemon: Daemon, server: RedisServer, streams: Iterable[str]) -> None:
    """Every entry of the streams is in the log once, in order, byte-identical."""
    found: dict[str, list[tuple[str, list[tuple[bytes, bytes]]]]] = {}
    for record in daemon.records():
        found.setdefault(record.lane, []).append((str(record.position), record.fields))
    for stream in streams:
        assert found.get(stream, []) == server.entries(stream), f"stream {stream}"

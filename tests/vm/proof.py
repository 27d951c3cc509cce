"""A daemon with its own server on a device in the VM, load on it, and after the fault the proof that nothing was lost or doubled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import redis
from harness import Daemon

from tests.vm.load import Load, close_quietly, lost_of

WRITE_STUCK_S: Final = 1
CONFIG: Final[dict[str, dict[str, Any]]] = {
    "redis": {"url": "embedded"},
    "workers": {"count": 2, "ring_bytes": 8 << 20},
    "supervisor": {"write_stuck_s": WRITE_STUCK_S, "restart_backoff_max_ms": 1000},
}


class Bench:
    """``record``: takes a row for the table of faults. A context: leaving it kills what still runs."""

    def __init__(self, folder: Path, record: Callable[[dict[str, Any]], None]) -> None:
        self.folder = folder
        self.record = record
        self._daemons: list[Daemon] = []
        self._clients: list[redis.Redis] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            close_quietly(client)
        for daemon in self._daemons:
            daemon.kill()

    def daemon(self, device: str, *, is_new: bool = True, **sections: dict[str, Any]) -> Daemon:
        """A running daemon on a new log on ``device``, or on the one it holds. ``sections``: of its configuration, over CONFIG."""
        merged = {name: {**CONFIG.get(name, {}), **sections.get(name, {})} for name in {*CONFIG, *sections}}
        daemon = Daemon(self.folder, "embedded", merged, device=device, start=False, format_device=is_new)
        self._daemons.append(daemon)
        daemon.start()
        return daemon

    def load(self, daemon: Daemon, **options: Any) -> Load:
        """Load on the daemon's own server."""
        return Load(daemon, self.client(), **options)

    def client(self) -> redis.Redis:
        """A connection to the daemon's own server."""
        client = redis.Redis(unix_socket_path=str(self.folder / "redis" / "redis.sock"))
        self._clients.append(client)
        return client

    def prove(self, load: Load, fault: str, *, running: bool = True, **more: Any) -> None:
        """All that was added is in the log, once and in order, by two oracles; status answered throughout; a row for the table."""
        if running:
            load.daemon.stop()
        report = load.daemon.verify()
        assert report.entries == report.committed == load.added and report.lost == 0, report
        lost = lost_of(load.daemon.device, load.counts)
        load.assert_answered()
        self.record({"fault": fault, "lost": lost, **load.measured(), **more})

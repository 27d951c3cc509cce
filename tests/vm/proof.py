"""A daemon with its own server on a device in the VM, load on it, and after the fault the proof that nothing was lost or doubled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

import redis
from harness import Daemon
from redis.backoff import NoBackoff
from redis.retry import Retry

from hdad.source.embedded import find_server
from tests.vm.load import Load, Oracle, close_quietly

WRITE_STUCK_S: Final = 1
HEALED_S: Final = 30.0
CONFIG: Final[dict[str, dict[str, Any]]] = {
    "redis": {"url": "embedded", "scan_interval_ms": 500, "group_interval_ms": 200},  # what costs an emulated machine more than it shows
    "embedded": {"executable": find_server()},  # asked once: the package that has it takes a second to import where machines are emulated
    "workers": {"count": 2, "ring_bytes": 8 << 20},
    "supervisor": {"write_stuck_s": WRITE_STUCK_S, "restart_backoff_max_ms": 1000},
}


def patient_client(path: str) -> redis.Redis:
    """Never sends anything again by itself: a batch that was slow and is repeated would be in the stream twice, by our own doing."""
    return redis.Redis(unix_socket_path=path, socket_timeout=None, retry=Retry(NoBackoff(), 0))


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
        client = patient_client(str(self.folder / "redis" / "redis.sock"))
        self._clients.append(client)
        return client

    @contextmanager
    def fault(self, load: Load, oracle: Oracle, name: str, **more: Any) -> Iterator[None]:
        """What happens inside is a row of the table. Afterwards all that was added is durable and in the log, once and in order."""
        load.mark()
        yield
        counts = load.settle()
        oracle.assert_holds(counts)
        load.wait_status(lambda status: not status["alarms"], "every alarm is over", HEALED_S)
        load.assert_answered()
        self.record({"fault": name, "lost": oracle.lost(counts), **load.measured(), **more})

    def prove(self, load: Load, oracle: Oracle) -> None:
        """At the end: two oracles, the reader that followed and ``verify``, agree with what was added. Ends the daemon."""
        load.finish()
        load.daemon.stop()
        report = load.daemon.verify()
        assert report.entries == report.committed == load.added and report.lost == 0, report
        oracle.assert_holds(load.counts)
        assert oracle.seen == load.counts

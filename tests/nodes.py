"""Redis servers in numbers, on loopback: a Cluster of masters with a replica each, and producers that know what was acknowledged.

Started by tests and by scripts; everything is ended by pid. "Acknowledged" means that the master and a replica have it (WAIT).
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import redis
from harness import _die_with_parent, wait_until
from traffic import Background

from hdad.source.embedded import find_server

MASTERS = 3


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program() -> str:
    """The server to test with."""
    return shutil.which("redis-server") or shutil.which("valkey-server") or find_server()


class Node:
    """One server."""

    def __init__(self, folder: Path, name: str, options: Sequence[str] = ()) -> None:
        self.port = free_port()
        self.folder = folder / name
        self.folder.mkdir()
        self.log = folder / f"{name}.out"
        self.argv = [program(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "", *options]
        self.client = redis.Redis(port=self.port, socket_timeout=5)
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self.argv, stdout=log, stderr=log, preexec_fn=_die_with_parent)  # noqa: PLW1509
        wait_until(self.answers, lambda: f"the server on port {self.port} answers: {self.log.read_text()[-1500:]}", 20)

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    @property
    def role(self) -> str:
        """master or slave; "" when it does not answer."""
        try:
            return str(self.client.info("replication")["role"])
        except redis.RedisError:
            return ""

    def leave_master(self) -> None:
        """A replica's data stays, and nothing more comes; REPLICAOF would also close the connections of who waits in a read."""
        self.client.config_set("masterauth", "refused")
        self.client.client_kill_filter(_type="master")
        wait_until(lambda: self.client.info("replication")["master_link_status"] == "down", "the replica is cut off", 20)

    def follow_master(self) -> None:
        self.client.config_set("masterauth", "")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.client.close()
        self.kill()


class Cluster:
    """Three masters and a replica of each."""

    def __init__(self, folder: Path, node_timeout_ms: int = 1500) -> None:
        self.nodes: list[Node] = []
        try:
            for index in range(2 * MASTERS):
                options = ["--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf",
                           "--cluster-node-timeout", str(node_timeout_ms), "--cluster-port", str(free_port()),
                           "--cluster-replica-validity-factor", "0", "--repl-diskless-sync-delay", "0",
                           "--appendonly", "yes", "--appendfsync", "always"]  # fmt: skip
                self.nodes.append(Node(folder, f"node{index}", options))
            self._join()
        except BaseException:
            self.close()
            raise
        self.client = redis.RedisCluster(host="127.0.0.1", port=self.nodes[0].port)

    def _join(self) -> None:
        step = 16_384 // MASTERS
        for index, node in enumerate(self.nodes):
            if index < MASTERS:
                last = 16_383 if index == MASTERS - 1 else (index + 1) * step - 1
                node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", index * step, last)
            bus = int(node.argv[node.argv.index("--cluster-port") + 1])
            self.nodes[0].client.execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        wait_until(lambda: all(len(self.known_by(node)) == 2 * MASTERS for node in self.nodes), "all nodes know each other", 60)
        for index in range(MASTERS):
            self.nodes[MASTERS + index].client.execute_command("CLUSTER", "REPLICATE", self.id_of(self.nodes[index]))
        wait_until(self.is_whole, "the cluster is whole", 60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        return "cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def id_of(self, node: Node) -> str:
        found = node.client.execute_command("CLUSTER", "MYID")
        return found.decode() if isinstance(found, bytes) else str(found)

    def known_by(self, node: Node) -> dict[str, object]:
        return dict(node.client.cluster("NODES"))

    def is_whole(self) -> bool:
        """Every node that runs serves, and every replica is in step."""
        for node in self.nodes:
            if node.process is None:
                continue
            try:
                info = node.client.cluster("INFO")
                replication = node.client.info("replication")
            except redis.RedisError:
                return False
            if info["cluster_state"] != "ok" or (replication["role"] == "slave" and replication["master_link_status"] != "up"):
                return False
        return True

    def master_of(self, key: str) -> Node:
        """Who serves the key, as those who run see it."""
        slot = self.slot_of(key)
        for node in self.nodes:
            if node.process is not None and node.role == "master" and any(low <= slot <= high for low, high in self._slots(node)):
                return node
        raise AssertionError(f"nobody serves {key}")

    def _slots(self, node: Node) -> list[tuple[int, int]]:
        ranges = []
        for text, row in node.client.cluster("NODES").items():
            if text.endswith(f":{node.port}"):
                ranges += [(int(item[0]), int(item[-1])) for item in row["slots"]]
        return ranges

    def slot_of(self, key: str) -> int:
        return int(self.client.keyslot(key))

    def move_slot(self, slot: int, half_way: Callable[[], None] = lambda: None) -> tuple[Node, Node]:
        """To the next master, its keys one by one. ``half_way`` is called after each key but the last."""
        masters = [node for node in self.nodes if node.process is not None and node.role == "master"]
        source = next(node for node in masters if any(low <= slot <= high for low, high in self._slots(node)))
        target = masters[(masters.index(source) + 1) % len(masters)]
        target.client.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.client.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))
        while keys := source.client.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.client.execute_command("MIGRATE", "127.0.0.1", target.port, keys[0], 0, 5000)
            half_way()
        for node in (target, source):
            node.client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))
        return source, target

    def close(self) -> None:
        if hasattr(self, "client"):
            self.client.close()
        for node in self.nodes:
            node.close()


class Producer(Background):
    """Adds entries n = 0, 1, 2, … to each of some streams from a thread of its own, and knows which were acknowledged.

    ``connect`` makes a client; after an error another one is made, and the numbers that were on their way are *unsure*: they are not
    tried again, since they may have arrived.
    """

    def __init__(self, connect: Callable[[], redis.Redis], streams: Sequence[str], batch: int = 20, pause_s: float = 0.002) -> None:
        super().__init__()
        self._connect = connect
        self.streams = list(streams)
        self._batch, self._pause_s = batch, pause_s
        self.acknowledged: dict[str, set[int]] = {stream: set() for stream in streams}
        self.next: dict[str, int] = dict.fromkeys(streams, 0)
        self.errors = 0
        self.last_error = ""

    @property
    def count(self) -> int:
        """Entries acknowledged."""
        return sum(len(numbers) for numbers in self.acknowledged.values())

    def wait_for_more(self, count: int, seconds: float = 60) -> None:
        """Until so many more are acknowledged in each stream."""
        goals = {stream: len(numbers) + count for stream, numbers in self.acknowledged.items()}
        wait_until(
            lambda: all(len(self.acknowledged[stream]) >= goal for stream, goal in goals.items()),
            lambda: f"{count} more entries in each stream; {self.errors} errors, the last: {self.last_error}", seconds,
        )  # fmt: skip

    def _run(self) -> None:
        client: redis.Redis | None = None
        while not self._stopped.is_set():
            for stream in self.streams:
                first = self.next[stream]
                numbers = range(first, first + self._batch)
                self.next[stream] = numbers.stop
                try:
                    client = client or self._connect()
                    self._add(client, stream, numbers)
                    self.acknowledged[stream].update(numbers)
                except (redis.RedisError, OSError) as error:
                    self.errors += 1
                    self.last_error = f"{type(error).__name__}: {error}"
                    with contextlib.suppress(redis.RedisError, OSError):
                        if client is not None:
                            client.close()
                    client = None
                    time.sleep(0.05)
            time.sleep(self._pause_s)
        if client is not None:
            client.close()

    def _add(self, client: redis.Redis, stream: str, numbers: range) -> None:
        target = client
        if isinstance(client, redis.RedisCluster):
            target = client.get_redis_connection(client.get_node_from_key(stream))  # WAIT means what its own connection wrote
        for number in numbers:  # one by one through the client, which follows redirections
            client.xadd(stream, {"n": number, "text": "x" * 100})
        if not target.execute_command("WAIT", 1, 1000):
            raise redis.ConnectionError("no replica has it")

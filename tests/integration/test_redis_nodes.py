"""Redis beyond one server, under load: slots that move, masters that are killed, replicas that are read and stand still.

Six servers of a Cluster, or a master with two replicas and Sentinels, all on loopback and started here.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from harness import Daemon, _die_with_parent, wait_until
from nodes import Cluster, Node, Producer, free_port, program

pytestmark = [pytest.mark.integration, pytest.mark.slow]
STREAMS = ["s:{one}:a", "s:{one}:b", "s:{one}:c", "s:{two}:a", "s:three", "s:four", "s:five", "s:six"]
Run = Callable[..., Daemon]


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    with Cluster(folder) as running:
        yield running


@pytest.fixture
def run_daemon(folder: Path) -> Iterator[Run]:
    daemons: list[Daemon] = []

    def make(url: str, **redis_options: object) -> Daemon:
        options = {"socket_timeout_ms": 2000, "block_ms": 500, **redis_options}
        daemons.append(Daemon(folder, url, {"redis": options}, size=256 << 20))
        return daemons[-1]

    yield make
    for daemon in daemons:
        daemon.kill()


def accept_halted(daemon: Daemon) -> int:
    """What an operator does after a failover took back what the log has: go on when the stream is past it. Returns how many lanes."""
    status = daemon.try_status()
    halted = [alarm["key"].removeprefix("halted:") for alarm in status["alarms"] if alarm["key"].startswith("halted:")] if status else []
    for lane in halted:
        daemon.call("lane-accept", lane=lane)
    return len(halted)


def wait_for_all(daemon: Daemon, producer: Producer, client: redis.Redis) -> int:
    """Until the log stands at the newest entry of each stream. Returns how often a lane had to be accepted."""
    accepted = 0

    def is_done() -> bool:
        nonlocal accepted
        accepted += accept_halted(daemon)
        lanes = {lane["name"]: lane["position"] for lane in (daemon.try_status() or {"lanes": []})["lanes"]}
        ends = {name: client.xrevrange(name, count=1) for name in producer.streams}
        return all(end and lanes.get(name) == end[0][0].decode() for name, end in ends.items())

    wait_until(is_done, lambda: f"all is durable; {daemon.try_status()}; {daemon.log()[-3000:]}", 90)
    return accepted


def judge(daemon: Daemon, producer: Producer, client: redis.Redis) -> int:
    """Nothing acknowledged is missing, nothing is twice or out of order. Returns how many entries the log has that Redis lost."""
    found: dict[str, list[tuple[str, int]]] = {}
    for record in daemon.records():
        found.setdefault(record.lane, []).append((str(record.position), int(dict(record.fields)[b"n"])))
    lost_by_redis = 0
    for stream in producer.streams:
        rows = found[stream]
        numbers = [number for _, number in rows]
        assert all(before < after for before, after in itertools.pairwise(numbers)), f"{stream}: twice, or out of order"
        missing = producer.acknowledged[stream] - set(numbers)
        assert not missing, f"{stream}: acknowledged, and not in the log: {sorted(missing)[:10]}"
        left = {entry_id.decode(): int(fields[b"n"]) for entry_id, fields in client.xrange(stream)}
        assert left.items() <= dict(rows).items(), f"{stream}: in Redis, and not in the log"
        gone = {number for entry_id, number in rows if entry_id not in left}
        assert not gone & producer.acknowledged[stream], f"{stream}: acknowledged by Redis, and lost by it"
        lost_by_redis += len(gone)
    daemon.verify()
    return lost_by_redis


def connect(cluster: Cluster) -> redis.RedisCluster:
    alive = next(node for node in cluster.nodes if node.process is not None)
    return redis.RedisCluster(host="127.0.0.1", port=alive.port, socket_timeout=2)


def test_lanes_follow_their_slots_while_they_move_under_load(cluster: Cluster, run_daemon: Run) -> None:
    daemon = run_daemon(cluster.url)
    with Producer(lambda: connect(cluster), STREAMS) as producer:
        producer.wait_for_more(100)

        def some_arrive_half_way() -> None:
            producer.wait_for_more(20)
            goal = producer.count
            daemon.wait_entries(goal)  # streams on either side of the move are read

        for slot in [cluster.slot_of(name) for name in ("s:{one}:a", "s:three", "s:{one}:a", "s:four")]:
            cluster.move_slot(slot, some_arrive_half_way)
            producer.wait_for_more(50)
    assert wait_for_all(daemon, producer, cluster.client) == 0
    redirects = [role["redirects"] for role in daemon.status()["roles"] if "redirects" in role]
    assert sum(redirects) >= 4
    daemon.stop()
    assert judge(daemon, producer, cluster.client) == 0
    assert "halted" not in daemon.log()


def test_a_slot_that_stays_half_moved_is_read_on_both_sides(cluster: Cluster, run_daemon: Run) -> None:
    """A reshard that was broken off: hours may pass before somebody mends it."""
    streams = STREAMS[:3]
    for name in streams:
        cluster.client.xadd(name, {"n": -1})
    daemon = run_daemon(cluster.url)
    daemon.wait_entries(3)
    seconds: list[float] = []

    def half_way() -> None:
        for turn in range(3):
            total = daemon.status()["totals"]["entries"]
            began = time.monotonic()
            for name in streams:
                cluster.client.xadd(name, {"n": turn})
            daemon.wait_entries(total + 3)
            seconds.append(time.monotonic() - began)

    cluster.move_slot(cluster.slot_of(streams[0]), half_way)
    assert len(seconds) == 9 and sorted(seconds)[4] < 3, seconds
    assert not daemon.status()["alarms"], daemon.status()["alarms"]
    daemon.stop()
    assert daemon.verify().committed == 3 + 27


@pytest.mark.parametrize("read_from", ["master", "replica"])
def test_a_master_is_killed_under_load_and_its_replica_promoted(cluster: Cluster, run_daemon: Run, read_from: str) -> None:
    daemon = run_daemon(cluster.url, read_from=read_from)
    with Producer(lambda: connect(cluster), STREAMS) as producer:
        producer.wait_for_more(100)
        for stream in ("s:three", "s:{one}:a"):
            master = cluster.master_of(stream)
            master.kill()
            wait_until(lambda: _is_served(cluster, stream), "the replica is promoted", 60)  # noqa: B023
            accept_halted(daemon)
            master.start()
            wait_until(cluster.is_whole, "the former master is a replica", 60)
            producer.wait_for_more(50, 120)
    accepted = wait_for_all(daemon, producer, cluster.client)
    daemon.stop()
    lost = judge(daemon, producer, cluster.client)
    print(f"{read_from}: {producer.count} acknowledged, {producer.errors} errors, {accepted} lanes accepted, {lost} lost by Redis")
    if read_from == "replica":
        assert accepted == 0 and lost == 0, "what only the master had was not read"


def _is_served(cluster: Cluster, stream: str) -> bool:
    try:
        return cluster.master_of(stream).process is not None
    except (AssertionError, redis.RedisError):
        return False


# -- Sentinel ------------------------------------------------------------------------------------------------------------------------------


class Watched:
    """A master, two replicas, and three Sentinels."""

    def __init__(self, folder: Path) -> None:
        options = ("--repl-diskless-sync-delay", "0", "--appendonly", "yes", "--appendfsync", "always")
        self.nodes = [Node(folder, "first", options)]
        for name in ("second", "third"):
            self.nodes.append(Node(folder, name, (*options, "--replicaof", f"127.0.0.1 {self.nodes[0].port}")))
        self.ports = [free_port() for _ in range(3)]
        self.sentinels = []
        for index, port in enumerate(self.ports):
            path = folder / f"sentinel{index}.conf"
            path.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor main 127.0.0.1 {self.nodes[0].port} 2\n"
                "sentinel down-after-milliseconds main 1000\nsentinel failover-timeout main 4000\n"
            )
            argv = [program(), str(path), "--sentinel", "--logfile", str(folder / f"sentinel{index}.log")]
            self.sentinels.append(subprocess.Popen(argv, preexec_fn=_die_with_parent))  # noqa: PLW1509
        wait_until(self.is_whole, "master, replicas and Sentinels know each other", 60)

    @property
    def url(self) -> str:
        return "sentinel://" + ",".join(f"127.0.0.1:{port}" for port in self.ports) + "/main"

    def sentinel(self) -> redis.sentinel.Sentinel:
        return redis.sentinel.Sentinel([("127.0.0.1", port) for port in self.ports], socket_timeout=2)

    def client(self) -> redis.Redis:
        return self.sentinel().master_for("main", socket_timeout=2)

    def is_whole(self) -> bool:
        try:
            states = [redis.Redis(port=port).sentinel_masters()["main"] for port in self.ports]
            links = [node.client.info("replication") for node in self.nodes if node.process is not None]
        except redis.RedisError:
            return False
        knows = all(state["num-slaves"] >= 2 and state["num-other-sentinels"] == 2 for state in states)
        return knows and all(link["role"] == "master" or link["master_link_status"] == "up" for link in links)

    def master(self) -> Node | None:
        return next((node for node in self.nodes if node.process is not None and node.role == "master"), None)

    def close(self) -> None:
        for sentinel in self.sentinels:
            sentinel.kill()
            sentinel.wait()
        for node in self.nodes:
            node.close()


@pytest.fixture
def watched(folder: Path) -> Iterator[Watched]:
    running = Watched(folder)
    yield running
    running.close()


@pytest.mark.parametrize("read_from", ["master", "replica"])
def test_sentinel_fails_over_under_load(watched: Watched, run_daemon: Run, read_from: str) -> None:
    daemon = run_daemon(watched.url, read_from=read_from, trim="durable" if read_from == "master" else "off")
    with Producer(watched.client, ["s:a", "s:b", "s:c"]) as producer:
        producer.wait_for_more(200)
        first = watched.master()
        assert first is not None
        first.kill()
        wait_until(watched.master, "a replica is promoted", 60)
        accept_halted(daemon)
        producer.wait_for_more(100, 120)
        first.start()
        wait_until(watched.is_whole, "the former master is a replica", 60)
        producer.wait_for_more(100)
    client = watched.client()
    accepted = wait_for_all(daemon, producer, client) if read_from == "replica" else _wait_for_acknowledged(daemon, producer)
    daemon.stop()
    found: dict[str, list[int]] = {}
    for record in daemon.records():
        found.setdefault(record.lane, []).append(int(dict(record.fields)[b"n"]))
    for stream, numbers in found.items():
        assert numbers == sorted(set(numbers)), f"{stream}: twice, or out of order"
        assert producer.acknowledged[stream] <= set(numbers), f"{stream}: acknowledged entries are missing"
    report = daemon.verify()
    print(f"{read_from}: {producer.count} acknowledged, {producer.errors} errors, {accepted} accepted, {report.lost} counted as lost")
    client.close()


def _wait_for_acknowledged(daemon: Daemon, producer: Producer) -> int:
    accepted = 0

    def is_done() -> bool:
        nonlocal accepted
        accepted += accept_halted(daemon)
        status = daemon.try_status()
        return status is not None and status["totals"]["entries"] >= producer.count and status["totals"]["lag"] == 0

    wait_until(is_done, lambda: f"all is durable; {daemon.try_status()}; {daemon.log()[-3000:]}", 90)
    return accepted


def _is_read(node: Node) -> bool:
    return any(client["name"] == "hdad" and client["cmd"] == "xread" for client in node.client.client_list())


def test_a_replica_that_stands_still_is_left_and_its_lag_halts_nothing(watched: Watched, run_daemon: Run) -> None:
    daemon = run_daemon(watched.url, read_from="replica")
    with Producer(watched.client, ["s:a", "s:b", "s:c", "s:d"]) as producer:
        producer.wait_for_more(100)
        for node in watched.nodes[1:]:  # one after the other: whichever was read is left
            daemon.wait_entries(producer.count)
            node.leave_master()
            producer.wait_for_more(50)
            wait_until(lambda: not _is_read(node), lambda: f"nobody reads it any more; {daemon.log()[-3000:]}", 60)  # noqa: B023
            node.follow_master()
            wait_until(watched.is_whole, "the replica follows again", 60)
    assert "stands still" in daemon.log()
    client = watched.client()
    assert wait_for_all(daemon, producer, client) == 0
    daemon.stop()
    assert judge(daemon, producer, client) == 0
    client.close()


def test_a_stopped_replica_is_left_for_another(watched: Watched, run_daemon: Run) -> None:
    daemon = run_daemon(watched.url, read_from="replica")
    with Producer(watched.client, ["s:a", "s:b"]) as producer:
        producer.wait_for_more(50)
        os.kill(watched.nodes[1].pid, signal.SIGSTOP)
        try:
            producer.wait_for_more(100, 60)
            daemon.wait_entries(producer.count)
        finally:
            os.kill(watched.nodes[1].pid, signal.SIGCONT)
    client = watched.client()
    assert wait_for_all(daemon, producer, client) == 0
    daemon.stop()
    assert judge(daemon, producer, client) == 0
    client.close()

"""Other ways to Redis: TLS with a client certificate and ACL, Sentinel with a failover, Cluster. On loopback, with servers of our own."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from harness import Daemon, _die_with_parent, wait_until

from hdad.source.embedded import find_server

pytestmark = pytest.mark.integration
Start = Callable[..., redis.Redis]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program() -> str:
    return shutil.which("redis-server") or shutil.which("valkey-server") or find_server()


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Start a server: (port, options) → a client of it that answers."""
    processes: list[subprocess.Popen[bytes]] = []
    clients: list[redis.Redis] = []

    def run(port: int, *options: str, **client: object) -> redis.Redis:
        data = folder / f"d{len(processes)}"
        data.mkdir()
        argv = [program(), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(data), "--save", "", *options]
        with (folder / f"server-{len(processes)}.log").open("w") as log:
            processes.append(subprocess.Popen(argv, stdout=log, stderr=log, preexec_fn=_die_with_parent))  # noqa: PLW1509
        found = redis.Redis(host="127.0.0.1", port=port, **client)  # type: ignore[call-overload]
        clients.append(found)

        def answers() -> bool:
            assert processes[-1].poll() is None, (folder / f"server-{len(processes) - 1}.log").read_text()[-1500:]
            try:
                return bool(found.ping())
            except redis.RedisError:
                return False

        wait_until(answers, f"the server on port {port} answers", 20)
        return found

    run.processes, run.clients = processes, clients  # type: ignore[attr-defined]
    yield run
    for client in clients:
        client.close()
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def run_daemon(folder: Path) -> Iterator[Callable[..., Daemon]]:
    daemons: list[Daemon] = []

    def make(url: str, **options: object) -> Daemon:
        daemons.append(Daemon(folder, url, **options))  # type: ignore[arg-type]
        return daemons[-1]

    yield make
    for daemon in daemons:
        daemon.kill()


def _certificates(folder: Path) -> None:
    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test ca", "-keyout", "ca.key", "-out", "ca.crt")
    for name in ("server", "client"):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        (folder / "ext").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        openssl("x509", "-req", "-days", "2", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial",
                "-extfile", "ext", "-out", f"{name}.crt")  # fmt: skip


def test_tls_with_a_client_certificate_and_an_acl_user(folder: Path, start: Start, run_daemon: Callable[..., Daemon]) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("SKIPPED: openssl is not installed")
    _certificates(folder)
    tls_port = free_port()
    files = [str(folder / name) for name in ("server.crt", "server.key", "ca.crt")]
    try:
        client = start(
            free_port(),
            "--tls-port",
            str(tls_port),
            "--tls-cert-file",
            files[0],
            "--tls-key-file",
            files[1],
            "--tls-ca-cert-file",
            files[2],
        )
    except AssertionError as error:
        pytest.skip(f"SKIPPED: {program()} has no TLS: {str(error)[-200:]}")
    client.execute_command("ACL", "SETUSER", "drain", "on", ">s3cret", "~*", "&*", "+@all")
    (folder / "password").write_text("s3cret\n")
    config = {"redis": {
        "username": "drain", "password_file": str(folder / "password"), "tls_ca_file": files[2],
        "tls_cert_file": str(folder / "client.crt"), "tls_key_file": str(folder / "client.key"),
    }}  # fmt: skip
    daemon = run_daemon(f"rediss://localhost:{tls_port}/0", config=config)
    for start_ in range(0, 20_000, 1000):
        pipeline = client.pipeline(transaction=False)
        for n in range(start_, start_ + 1000):
            pipeline.xadd("s:a", {"n": n, "text": "x" * 300})
        pipeline.execute()
    daemon.wait_entries(20_000)
    daemon.stop()
    assert [int(dict(record.fields)[b"n"]) for record in daemon.records()] == list(range(20_000))
    assert "s3cret" not in daemon.log()


def test_sentinel_and_a_failover_to_the_replica(folder: Path, start: Start, run_daemon: Callable[..., Daemon]) -> None:
    first, second, watcher = free_port(), free_port(), free_port()
    primary = start(first)
    replica = start(second, "--replicaof", f"127.0.0.1 {first}")
    wait_until(lambda: replica.info("replication")["master_link_status"] == "up", "the replica is in step")
    path = folder / "sentinel.conf"
    path.write_text(
        f"port {watcher}\nbind 127.0.0.1\ndir {folder}\nsentinel monitor main 127.0.0.1 {first} 1\n"
        "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n"
    )
    argv = [program(), str(path), "--sentinel", "--logfile", str(folder / "sentinel.log")]
    sentinel = subprocess.Popen(argv, preexec_fn=_die_with_parent)  # noqa: PLW1509
    try:
        asked = redis.Redis(port=watcher)
        start.clients.append(asked)  # type: ignore[attr-defined]

        def knows_the_replica() -> bool:
            try:
                return bool(asked.execute_command("SENTINEL", "REPLICAS", "main"))
            except redis.RedisError:
                return False

        wait_until(knows_the_replica, "Sentinel knows the replica", 30)
        daemon = run_daemon(f"sentinel://127.0.0.1:{watcher}/main")
        for n in range(1000):
            primary.xadd("s:a", {"n": n})
        daemon.wait_entries(1000)
        wait_until(lambda: replica.xlen("s:a") == 1000, "the replica has all of it")
        start.processes[0].kill()  # type: ignore[attr-defined]

        def is_promoted() -> bool:
            return bool(replica.info("replication")["role"] == "master")

        wait_until(is_promoted, "the replica is promoted", 60)
        for n in range(1000, 1500):
            replica.xadd("s:a", {"n": n})
        daemon.wait_entries(1500)
        daemon.stop()
    finally:
        sentinel.kill()
        sentinel.wait()
    assert [int(dict(record.fields)[b"n"]) for record in daemon.records()] == list(range(1500))
    daemon.verify()


def test_a_cluster_of_three(folder: Path, start: Start, run_daemon: Callable[..., Daemon]) -> None:
    ports = [free_port() for _ in range(3)]
    nodes = []
    for index, port in enumerate(ports):
        bus = free_port()
        nodes.append(start(port, "--cluster-enabled", "yes", "--cluster-config-file", f"nodes-{index}.conf", "--cluster-port", str(bus)))
        nodes[-1].execute_command("CLUSTER", "ADDSLOTSRANGE", index * 5461, 16383 if index == 2 else index * 5461 + 5460)
        if index:
            own = next(line for line in str(nodes[-1].execute_command("CLUSTER", "MYID")).splitlines())
            assert own
            nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port, bus)

    def is_whole() -> bool:
        return all(b"cluster_state:ok" in _bytes(node) and b"cluster_known_nodes:3" in _bytes(node) for node in nodes)

    wait_until(is_whole, "the cluster is whole", 60)
    cluster = redis.RedisCluster(host="127.0.0.1", port=ports[0])
    streams = [f"s:{index}" for index in range(12)]
    for n in range(200):
        for stream in streams[:8]:
            cluster.xadd(stream, {"n": n})
    daemon = run_daemon(f"cluster://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}", config={"redis": {"trim": "durable"}})
    for n in range(200, 400):
        for stream in streams:
            cluster.xadd(stream, {"n": n})
    daemon.wait_entries(8 * 200 + 12 * 200)
    wait_until(lambda: sum(cluster.xlen(stream) for stream in streams) == 0, "what is durable is trimmed on every node")
    daemon.stop()
    found: dict[str, list[int]] = {}
    for record in daemon.records():
        found.setdefault(record.lane, []).append(int(dict(record.fields)[b"n"]))
    assert found == {stream: list(range(0 if index < 8 else 200, 400)) for index, stream in enumerate(streams)}
    daemon.verify()
    cluster.close()


def _bytes(node: redis.Redis) -> bytes:
    answer = node.execute_command("CLUSTER", "INFO")
    return answer if isinstance(answer, bytes) else "\n".join(f"{key}:{value}" for key, value in answer.items()).encode()

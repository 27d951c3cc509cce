"""Several hosts on loopback addresses: workers without the device, links between, kills, stops and cuts; every entry lands exactly once."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from harness import Daemon, RedisServer, assert_same, wait_until
from proxy import Proxy, free_port, make_authority, make_certificate, need_openssl

from hdad.errors import ExitStatus

pytestmark = pytest.mark.integration
ROUNDS = int(os.environ.get("HDAD_CHAOS_ROUNDS", "3"))
STREAMS = ["s:a", "s:b", "s:c", "s:d"]


Hosts = Callable[..., tuple[Daemon, Daemon]]


@pytest.fixture
def hosts(folder: Path, server: RedisServer) -> Iterator[Hosts]:
    """(the writer's host, a worker host). ``via``: the port that the worker host connects to, if it is another."""
    running: list[Daemon] = []

    def make(
        *, host: str = "127.0.0.1", scheme: str = "tcp", via: int = 0, local: bool = False, link: dict[str, Any] | None = None,
        worker: dict[str, dict[str, Any]] | None = None, writer: dict[str, dict[str, Any]] | None = None, **options: Any,
    ) -> tuple[Daemon, Daemon]:  # fmt: skip
        port = free_port(host)
        shown = f"[{host}]" if ":" in host else host
        common = {"silence_ms": 1000, **(link or {})}
        streams = ["s:*"] if local else ["none:*"]
        first = Daemon(
            folder / "w", server.url,
            {"redis": {"streams": streams}, "workers": {"count": 1}, "link": {"listen": [f"{scheme}://{shown}:{port}"], **common},
             **(writer or {})}, **options,
        )  # fmt: skip
        running.append(first)
        callees = {"writers": [f"{scheme}://{shown}:{via or port}"], **common}
        second = Daemon(folder / "v", server.url, {"link": callees, **(worker or {})}, has_log=False)
        running.append(second)
        return first, second

    yield make
    for daemon in running:
        daemon.kill()


def wait_all(server: RedisServer, writer: Daemon, why: str = "", seconds: float = 60) -> None:
    """Until as many entries are durable as the streams have."""
    expected = sum(server.client.xlen(stream) for stream in STREAMS)
    wait_until(
        lambda: (writer.try_status() or {"totals": {"entries": -1}})["totals"]["entries"] == expected,
        lambda: f"{why}: {expected} entries; {writer.try_status()}\n{writer.log()[-3000:]}", seconds,
    )  # fmt: skip


def wait_serving(worker: Daemon) -> None:
    wait_until(
        lambda: (worker.status()["link"].get("writer") or {}).get("phase") == "serving", lambda: f"frames go out: {worker.log()[-2000:]}"
    )


def finish(server: RedisServer, writer: Daemon, worker: Daemon) -> None:
    """Drain both; the log holds every entry once, in order, byte-identical."""
    worker.stop()
    writer.stop()
    report = writer.verify()
    assert report.lost == 0 and report.entries == sum(server.client.xlen(stream) for stream in STREAMS)
    assert_same(writer, server, STREAMS)


# -- the way of entries --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.77", "::1"])
def test_entries_of_a_host_without_the_device_land_once_in_order_identical(server: RedisServer, hosts: Hosts, host: str) -> None:
    for stream in STREAMS:
        server.add(stream, 2000, text="x" * 100)
    writer, worker = hosts(host=host)
    wait_all(server, writer)
    for stream in STREAMS:
        server.add(stream, 1000, start=2000, text="y" * 3000)
    wait_all(server, writer)
    last = server.entries("s:a")[-1][0]
    wait_until(lambda: (worker.lane("s:a") or {}).get("position") == last, lambda: f"the worker host knows it: {worker.status()}")
    lane, link = worker.lane("s:a"), worker.status()["link"]["counters"]
    assert lane is not None and lane["lag"] == 0
    assert lane["committed"] == 3000 or link["losses"], "what was on its way when a link was lost, this host cannot know of"
    wait_until(lambda: (writer.status()["link"].get("peers") or [{}])[0].get("workers"), "the writer's host shows its peer")
    assert writer.status()["link"]["insecure"]
    finish(server, writer, worker)


def test_local_and_remote_workers_share_the_lanes(server: RedisServer, hosts: Hosts) -> None:
    writer, worker = hosts(local=True)
    wait_serving(worker)
    for stream in STREAMS:
        server.add(stream, 3000)
    wait_all(server, writer)
    owners = {lane["worker"] for lane in writer.status()["lanes"]}
    assert len(owners) == 3, "one local worker, two remote ones"
    finish(server, writer, worker)


def test_hdactl_shows_the_cluster_from_either_host(server: RedisServer, hosts: Hosts) -> None:
    writer, worker = hosts(local=True)
    wait_serving(worker)
    for stream in STREAMS:
        server.add(stream, 500)
    wait_all(server, writer)

    def seen_by(daemon: Daemon, *args: str) -> Any:
        argv = [sys.executable, "-c", "from hdad.cli.hdactl import main; main()", "-s", daemon.socket, *args]
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
        return orjson.loads(done.stdout) if "--json" in args else done.stdout

    def is_spread() -> Any:
        found = seen_by(writer, "--json", "cluster", "--interval", "0.1")
        remote = [host for host in found["hosts"] if host["role"] == "worker"]
        return found if remote and remote[0]["lanes"] and remote[0]["workers"] else None

    found = wait_until(is_spread, "the writer's host shows what its peer reads")
    here, peer = found["hosts"]
    assert here["role"] == "writer" and found["writer"]["name"] == "this host" and here["lanes"] + peer["lanes"] == len(STREAMS)
    assert peer["state"] == "open" and peer["rtt_us"] >= 0 and peer["credit_bytes"] > 0 and found["insecure"]
    assert sorted(name for names in found["lanes"].values() for name in names) == sorted(STREAMS)
    far = seen_by(worker, "--json", "cluster", "--interval", "0.1")
    assert [host["role"] for host in far["hosts"]] == ["worker", "writer"] and far["writer"]["since_s"] > 0
    page = seen_by(writer, "cluster", "--interval", "0.1")
    assert peer["name"] in page and "lanes of this host" in page and "CREDIT" in page
    assert "1 linked hosts" in seen_by(writer, "top", "--once", "--interval", "0.1")
    assert "link to" in seen_by(worker, "top", "--once", "--interval", "0.1")
    finish(server, writer, worker)


def test_stages_run_on_the_worker_host_and_dead_letters_come_home(server: RedisServer, hosts: Hosts) -> None:
    for index in range(300):
        server.client.xadd("s:a", {"n": str(index), "d": "{" if index % 10 == 0 else "{}"})
    writer, worker = hosts(worker={"pipeline": {"stages": [{"use": "decode", "field": "d"}]}})
    writer.wait_entries(300)
    wait_until(lambda: worker.status()["totals"]["dead_lettered"] == 30, "the worker host counts its dead letters")
    worker.stop()
    writer.stop()
    report = writer.verify()
    assert (report.committed, report.dead_lettered) == (270, 30)


def test_a_worker_host_waits_for_its_writer_with_an_alarm_and_drains_with_the_truth(server: RedisServer, hosts: Hosts) -> None:
    writer, worker = hosts()
    server.add("s:a", 100)
    wait_all(server, writer)
    writer.stop()
    server.add("s:a", 500, start=100)
    wait_until(lambda: any(alarm["key"] == "link" for alarm in worker.status()["alarms"]), "it says that no writer is there")
    writer.start()
    wait_all(server, writer)
    wait_until(lambda: not worker.status()["alarms"], "the alarm is over")
    finish(server, writer, worker)


def test_accepting_a_halted_lane_is_done_at_the_writer(server: RedisServer, hosts: Hosts) -> None:
    from hdad.errors import ControlError

    server.add("s:a", 50)
    writer, worker = hosts()
    wait_all(server, writer)
    wait_until(lambda: worker.lane("s:a") is not None, "the lane is known")
    with pytest.raises(ControlError, match="this host has no writer"):
        worker.call("lane-accept", lane="s:a")


def test_a_host_that_has_the_device_and_names_other_writers_leaves_its_rings_to_its_own(server: RedisServer, hosts: Hosts) -> None:
    server.add("s:a", 500)
    nowhere = {"writers": [f"tcp://127.0.0.1:{free_port()}"]}
    writer, worker = hosts(local=True, writer={})
    writer.kill()
    writer.configure({"link": nowhere})
    writer.start()
    wait_serving(worker)
    assert writer.status()["link"]["writer"]["phase"] == "stopped"
    server.add("s:b", 500)
    wait_all(server, writer)
    finish(server, writer, worker)


def test_status_and_doctor_tell_of_links_in_words(server: RedisServer, hosts: Hosts) -> None:
    from rich.console import Console

    from hdad.cli.doctor import examine
    from hdad.cli.status import page

    server.add("s:a", 100)
    writer, worker = hosts(writer={"feed": {"listen": [f"tcp://127.0.0.1:{free_port()}"]}})
    wait_all(server, writer)
    wait_serving(worker)
    wait_until(lambda: writer.status()["link"]["peers"], "reported")

    def text(daemon: Daemon) -> str:
        console = Console(width=250, record=True, file=io.StringIO())
        console.print(page(daemon.status()))
        return console.export_text()

    assert "frames go to tcp://127.0.0.1:" in text(worker) and "INSECURE" in text(worker)
    shown = text(writer)
    assert "1 worker hosts" in shown and "feed     tcp://127.0.0.1:" in shown
    assert f"{socket.gethostname()}/" in shown, "the lanes' readers are named by host"
    found = {finding.text: finding.level for finding in examine(str(worker.config_path), worker.socket) if finding.subject == "link"}
    assert any("is the writer" in words and level == "ok" for words, level in found.items()), found
    writer.stop()
    found = {finding.text: finding.level for finding in examine(str(worker.config_path), worker.socket) if finding.subject == "link"}
    assert found["none of link.writers is the writer"] == "error"


# -- deaths --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "victim"), [("writer", "link"), ("worker", "link"), ("worker", "worker-0"), ("writer", "writer"), ("worker", "daemon")]
)
@pytest.mark.chaos
def test_a_kill_under_load_loses_and_repeats_nothing(server: RedisServer, hosts: Hosts, side: str, victim: str) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    writer, worker = hosts(size=256 << 20)
    daemon = writer if side == "writer" else worker
    for round_ in range(ROUNDS):
        for stream in STREAMS:
            server.add(stream, rng.randrange(500, 3000), text="x" * rng.randrange(400))
        time.sleep(rng.random() * 0.1)  # not a wait: the moment of the kill is what is random
        if victim == "daemon":
            daemon.kill()
            daemon.start()
        else:
            pid = daemon.kill_role(victim)
            wait_until(lambda pid=pid: daemon.role_pid(victim) not in (0, pid), "its successor runs")
        wait_all(server, writer, f"round {round_}, seed {seed}")
    finish(server, writer, worker)


@pytest.mark.parametrize("side", ["writer", "worker"])
@pytest.mark.chaos
def test_a_link_that_stands_still_longer_than_every_limit_loses_and_repeats_nothing(server: RedisServer, hosts: Hosts, side: str) -> None:
    writer, worker = hosts(link={"silence_ms": 500}, local=True)
    wait_serving(worker)
    for stream in STREAMS:
        server.add(stream, 2000)
    daemon = writer if side == "writer" else worker
    pid = daemon.role_pid("link")
    os.kill(pid, signal.SIGSTOP)
    try:
        for stream in STREAMS:
            server.add(stream, 2000, start=2000)
        if side == "worker":  # its lanes move to the local worker of the writer's host
            wait_all(server, writer, "the lanes of the silent host move")
        wait_until(
            lambda: (worker if side == "writer" else writer).status()["link"]["counters"]["losses" if side == "writer" else "ends_silent"],
            "the other end has given it up",
        )
    finally:
        os.kill(pid, signal.SIGCONT)
    for stream in STREAMS:
        server.add(stream, 1000, start=4000)
    wait_all(server, writer)
    wait_serving(worker)
    finish(server, writer, worker)


# -- cuts ----------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    found = Proxy(0)
    yield found
    found.close()


@pytest.mark.chaos
def test_connections_cut_under_load_lose_and_repeat_nothing(server: RedisServer, hosts: Hosts, proxy: Proxy) -> None:
    writer, worker = hosts(via=proxy.port, link={"silence_ms": 500})
    proxy.target = int(writer.sections["link"]["listen"][0].rpartition(":")[2])
    wait_serving(worker)
    cuts = 0
    for round_ in range(2 * ROUNDS):
        for stream in STREAMS:
            server.add(stream, 1500, text="x" * 200)
        if round_ % 2:
            proxy.is_deaf = True
            wait_until(lambda: worker.status()["link"]["writer"]["phase"] != "serving", "silence is noticed")
            proxy.is_deaf = False
        cuts += proxy.cut()
        wait_all(server, writer, f"round {round_}")
        wait_serving(worker)
    assert cuts
    assert worker.status()["link"]["counters"]["losses"] >= ROUNDS
    finish(server, writer, worker)


# -- peers that are none -------------------------------------------------------------------------------------------------------------------


def test_garbage_floods_and_idle_connections_harm_nobody_and_are_counted(server: RedisServer, hosts: Hosts) -> None:
    writer, worker = hosts(link={"connections_max": 20, "silence_ms": 1000})
    port = int(writer.sections["link"]["listen"][0].rpartition(":")[2])
    wait_serving(worker)
    rng = random.Random(7)
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
    for garbage in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20, rng.randbytes(100_000), bytes(1000), b"\x16\x03\x01" + rng.randbytes(300)):
        server.add("s:a", 300)
        with socket.create_connection(("127.0.0.1", port)) as sock:
            with contextlib.suppress(OSError):
                sock.sendall(garbage)
            sock.settimeout(10)
            with contextlib.suppress(OSError):  # a reset is as good as an end
                while sock.recv(65536):
                    pass
    crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(30)]
    server.add("s:a", 300)
    wait_all(server, writer)
    wait_until(lambda: writer.status()["link"]["counters"]["ends_garbage"] == 4, lambda: f"counted: {writer.status()['link']}")
    wait_until(lambda: writer.status()["link"]["counters"]["ends_silent"] >= 5, "who says nothing is closed")
    assert writer.status()["link"]["counters"]["ends_crowded"] > 0
    assert any("garbage" in text for text in writer.status()["link"]["news"])
    for sock in idle + crowd:
        sock.close()
    finish(server, writer, worker)


# -- trust ---------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def certificates(folder: Path) -> Path:
    need_openssl()
    make_authority(folder / "tls", "ca")
    return folder / "tls"


def test_over_tls_entries_land_once_and_new_certificates_are_taken_without_dropping(
    server: RedisServer, hosts: Hosts, certificates: Path
) -> None:
    tls = make_certificate(certificates, "ca", "a", "IP:127.0.0.1,DNS:a.example")
    for stream in STREAMS:
        server.add(stream, 2000, text="x" * 1000)
    writer, worker = hosts(scheme="tls", link={**tls, "peers": ["a.example"]})
    wait_all(server, writer)
    link = worker.status()["link"]
    assert not link["insecure"] and not writer.status()["link"]["insecure"]
    wait_until(lambda: worker.status()["link"]["writer"].get("secure"), "shown as secure")
    make_authority(certificates, "other")
    Path(tls["tls_ca_file"]).write_text((certificates / "other.crt").read_text())
    make_certificate(certificates, "other", "a", "IP:127.0.0.1,DNS:a.example")
    for daemon in (writer, worker):
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        wait_until(lambda daemon=daemon: "reload: nothing has changed" in daemon.log(), "reloaded")
    server.add("s:a", 1000)
    wait_all(server, writer)
    assert worker.status()["link"]["counters"]["losses"] == 0, "the connection stands"
    worker.kill_role("link")
    server.add("s:a", 1000)
    wait_all(server, writer, "the new certificates are good for a new connection")
    Path(tls["tls_cert_file"]).write_text("no certificate")
    writer.call("reload")
    wait_until(lambda: any(alarm["key"] == "link-tls" for alarm in writer.status()["alarms"]), "a broken file is told, and not taken")
    finish(server, writer, worker)


def test_a_peer_of_another_authority_or_name_or_without_tls_is_refused(
    server: RedisServer, folder: Path, hosts: Hosts, certificates: Path
) -> None:
    good = make_certificate(certificates, "ca", "a", "IP:127.0.0.1,DNS:a.example")
    named = make_certificate(certificates, "ca", "b", "DNS:b.example,IP:127.0.0.1")
    make_authority(certificates, "mallory")
    foreign = make_certificate(certificates, "mallory", "m", "DNS:a.example,IP:127.0.0.1")
    writer, worker = hosts(scheme="tls", link=good, writer={"link": {**good, "silence_ms": 1000, "peers": ["a.example"]}})
    address = worker.sections["link"]["writers"][0]
    # hosts() gave the writer's host its listen address in the same table
    writer.configure({"link": {"listen": [address]}})
    writer.kill()
    writer.start()
    wait_serving(worker)
    port = int(address.rpartition(":")[2])
    for name, keys, words in (("x", named, "does not allow"), ("y", {**foreign, "tls_ca_file": good["tls_ca_file"]}, "")):
        other = Daemon(folder / name, server.url, {"link": {"writers": [address], "silence_ms": 1000, **keys}}, has_log=False)
        try:
            before = writer.status()["link"]["counters"]
            wait_until(lambda other=other: other.status()["link"]["writer"]["last_error"], "it is told why")
            wait_until(
                lambda before=before: (now := writer.status()["link"]["counters"])["ends_refused"] > before["ends_refused"]
                or now["ends_lost"] > before["ends_lost"], "it is counted",
            )  # fmt: skip
            assert words in str(writer.status()["link"]["news"])
            assert not any(lane["worker"] > 1 + 1 for lane in writer.status()["lanes"])
        finally:
            other.kill()
    with socket.create_connection(("127.0.0.1", port)) as plain:
        plain.settimeout(10)
        plain.sendall(b"hello, in plain words, to somebody who speaks TLS only")
        with contextlib.suppress(OSError):
            while plain.recv(1000):
                pass
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(good["tls_ca_file"])
    with socket.create_connection(("127.0.0.1", port)) as raw, context.wrap_socket(raw, server_hostname="127.0.0.1") as nameless:
        nameless.settimeout(10)
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate"):
            nameless.recv(1)
    server.add("s:a", 500)
    wait_all(server, writer)
    finish(server, writer, worker)


def test_a_link_that_could_let_anybody_in_is_refused_before_anything_starts(folder: Path, server: RedisServer) -> None:
    daemon = Daemon(folder / "x", server.url, {"link": {"listen": ["tcp://0.0.0.0:7411"]}}, start=False)
    daemon.start(wait=False)
    daemon.wait_end(ExitStatus.CONFIG)
    assert "link.insecure = true" in daemon.log()

"""Reading the log from a host that has it: the same records as from the device, through breaks, slowness and overtaking."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from harness import Daemon, RedisServer, wait_until
from proxy import Proxy, free_port, make_authority, make_certificate, need_openssl

import hdad
from hdad.errors import ExitStatus, LappedError, LinkError
from hdad.log.logrecord import LogRecord
from hdad.log.reader import LogReader

Make = Callable[..., Daemon]
pytestmark = pytest.mark.integration
ROUNDS = int(os.environ.get("HDAD_CHAOS_ROUNDS", "3"))


@pytest.fixture
def feed(make_daemon: Make) -> Callable[..., tuple[Daemon, str]]:
    """(a daemon that serves its log, where)."""

    def make(**options: Any) -> tuple[Daemon, str]:
        address = f"tcp://127.0.0.1:{free_port()}"
        config = options.pop("config", {})
        return make_daemon(config={"feed": {"listen": [address]}, **config}, **options), address

    return make


Feed = Callable[..., tuple[Daemon, str]]


class Follower:
    """Reads in a thread, as a consumer would."""

    def __init__(self, address: str, **options: Any) -> None:
        self.reader = hdad.connect(address, **options)
        self.records: list[LogRecord] = []
        self.error: BaseException | None = None
        self._stop = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop:
                self.records.extend(self.reader.records(follow=True, timeout_s=0.05))
        except BaseException as error:
            self.error = error

    def wait(self, count: int) -> None:
        wait_until(lambda: self.error or len(self.records) >= count, lambda: f"{count} records, there are {len(self.records)}")
        assert self.error is None, self.error

    def close(self) -> None:
        self._stop = True
        self._thread.join(20)
        self.reader.close()


def test_records_are_those_of_the_device_from_wherever_one_begins(server: RedisServer, feed: Feed) -> None:
    server.add("s:a", 3000, text="x" * 50)
    server.add("s:b", 10)
    daemon, address = feed()
    daemon.wait_entries(3010)
    moment = datetime.now(UTC)
    wait_until(lambda: datetime.now(UTC) > moment, "time goes on")
    server.add("s:a", 500, start=3000)
    daemon.wait_entries(3510)
    wait_until(lambda: len(daemon.records()) == 3510, "the lease says that all is durable")
    everything = daemon.records()
    middle = everything[2000]
    starts: list[dict[str, Any]] = [
        {}, {"start": middle.lsn}, {"start": moment}, {"lane": "s:a"}, {"lane": "s:b"}, {"lane": "s:a", "after": middle.position},
        {"start": middle.lsn, "lane": "s:a"}, {"lane": "nobody"}, {"start": "end"},
    ]  # fmt: skip
    for options in starts:
        with LogReader(daemon.device, options.get("start"), lane=options.get("lane"), after=options.get("after")) as direct:
            wanted = list(direct.records())
        with hdad.connect(address, **options) as reader:
            assert list(reader.records()) == wanted, options
            assert list(reader.records()) == [], "asked again, it goes on where it stood"
    server.add("s:a", 5, start=3500)
    daemon.wait_entries(3515)
    daemon.stop()


@pytest.mark.chaos
def test_a_follower_goes_on_through_breaks_kills_and_changed_bytes_without_loss_or_repeat(
    server: RedisServer, feed: Feed, proxy: Proxy
) -> None:
    daemon, address = feed()
    proxy.target = int(address.rpartition(":")[2])
    follower = Follower(f"tcp://127.0.0.1:{proxy.port}")
    rng = random.Random(3)
    total = 0
    for round_ in range(3 * ROUNDS):
        count = rng.randrange(200, 3000)
        server.add("s:a", count, start=total, text="x" * rng.randrange(200))
        total += count
        if round_ % 3 == 0:
            proxy.cut()
        elif round_ % 3 == 1:
            daemon.kill_role(rng.choice(("feed", "writer")))
        else:
            proxy.flips = 1  # one byte, somewhere
        follower.wait(total)
    follower.close()
    assert follower.reader.breaks
    daemon.wait_entries(total)
    assert follower.records == daemon.records()
    daemon.stop()


def test_a_reader_of_the_end_and_of_one_lane_resumes_although_nothing_came(server: RedisServer, feed: Feed, proxy: Proxy) -> None:
    server.add("s:a", 100)
    daemon, address = feed()
    proxy.target = int(address.rpartition(":")[2])
    daemon.wait_entries(100)
    follower = Follower(f"tcp://127.0.0.1:{proxy.port}", start="end", lane="s:b")
    wait_until(lambda: follower.reader.next_lsn, "it knows where the end was")
    proxy.cut()
    server.add("s:a", 100)
    server.add("s:b", 7)
    follower.wait(7)
    follower.close()
    assert [record.fields for record in follower.records] == [pairs for _, pairs in server.entries("s:b")]
    daemon.stop()


def test_a_reader_that_does_not_read_slows_nobody_and_is_told_when_it_was_overtaken(server: RedisServer, feed: Feed) -> None:
    small = {"redis": {"entry_bytes_max": 64 << 10}, "log": {"frame_bytes_max": 128 << 10}}
    daemon, address = feed(size=6 << 20, segment_size=1 << 20, config=small)
    server.add("s:a", 1000, text="x" * 1000)
    daemon.wait_entries(1000)
    reader = hdad.connect(address)
    stream = reader.records(follow=True)
    first = next(stream)
    for round_ in range(1, 24):  # more than the log and all buffers on the way hold
        server.add("s:a", 1000, start=1000 * round_, text="x" * 1000)
    daemon.wait_entries(24 * 1000)
    status = daemon.status()
    assert status["roles"] and not status["alarms"]
    seen = [first]
    with pytest.raises(LappedError) as caught:
        for record in stream:
            seen.append(record)
    assert [record.fields for record in seen] == [pairs for _, pairs in server.entries("s:a")[: len(seen)]], "what came before is whole"
    assert caught.value.oldest_lsn > caught.value.wanted_lsn
    with hdad.connect(address) as again:  # the oldest by now: what was the oldest when it was told may be gone
        rest = list(again.records())
    entries = server.entries("s:a")
    assert [str(record.position) for record in rest] == [entry_id for entry_id, _ in entries[len(entries) - len(rest) :]]
    reader.close()
    daemon.stop()


def hdactl(*arguments: str, expect: int = 0) -> str:
    environment = {**os.environ, "HDAD_CONFIG": "/nonexistent"}
    code = "from hdad.cli.hdactl import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == expect, (done.returncode, done.stdout, done.stderr)
    return done.stdout + done.stderr


def test_hdactl_reads_and_tails_from_a_host(server: RedisServer, feed: Feed, folder: Path) -> None:
    server.add("s:a", 50)
    daemon, address = feed()
    daemon.wait_entries(50)
    local = hdactl("log", "read", daemon.device)
    assert hdactl("log", "read", "--from-host", address) == local
    assert hdactl("log", "read", "--from-host", address, "--lane", "s:a", "--limit", "3").count("\n") == 3
    assert "not in this log" in hdactl("log", "read", "--from-host", address, "--lane", "nobody", expect=ExitStatus.USAGE)
    assert "TLS needs" in hdactl("log", "read", "--from-host", "127.0.0.1:1", expect=ExitStatus.USAGE)
    assert "name a DEVICE" in hdactl("log", "read", expect=ExitStatus.USAGE)
    tail = subprocess.Popen(
        [sys.executable, "-c", "from hdad.cli.hdactl import main; main()", "log", "tail", "--from-host", address, "--from", "1"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert tail.stdout is not None
    lines = [orjson.loads(tail.stdout.readline()) for _ in range(50)]
    server.add("s:a", 1, start=50)
    assert orjson.loads(tail.stdout.readline())["fields"]["n"] == "50"
    assert [line["fields"]["n"] for line in lines] == [str(index) for index in range(50)]
    tail.send_signal(signal.SIGINT)
    assert tail.wait(20) == 0
    tail.stdout.close()
    daemon.stop()


def test_nobody_there_is_told_after_some_patience_in_words() -> None:
    reader = hdad.exchange.feed.client.RemoteReader(  # type: ignore[attr-defined]
        [hdad.addresses.Address.parse(f"tcp://127.0.0.1:{free_port()}")], patience_s=0.3  # type: ignore[attr-defined]
    )  # fmt: skip
    with pytest.raises(LinkError, match="refused"):
        list(reader.records())


def test_readers_are_limited_and_garbage_harms_no_other(server: RedisServer, feed: Feed) -> None:
    daemon, address = feed(config={"feed": {"listen": [f"tcp://127.0.0.1:{(port := free_port())}"], "readers_max": 3}})
    address = f"tcp://127.0.0.1:{port}"
    follower = Follower(address)
    server.add("s:a", 10)
    follower.wait(10)
    for garbage in (b"GET / HTTP/1.0\r\n\r\n" * 10, random.Random(5).randbytes(50_000), bytes(500)):
        with socket.create_connection(("127.0.0.1", port)) as sock, contextlib.suppress(OSError):
            sock.settimeout(10)
            sock.sendall(garbage)
            while sock.recv(1000):
                pass
    idle = [socket.create_connection(("127.0.0.1", port)) for _ in range(2)]
    with contextlib.suppress(LinkError), hdad.connect(address) as third:
        list(third.records())
    for sock in idle:
        sock.close()
    server.add("s:a", 10, start=10)
    follower.wait(20)
    follower.close()
    pid = daemon.role_pid("feed")
    assert pid
    daemon.stop()


def test_over_tls_with_names(server: RedisServer, folder: Path, make_daemon: Make) -> None:
    need_openssl()
    make_authority(folder / "tls", "ca")
    keys = make_certificate(folder / "tls", "ca", "a", "IP:127.0.0.1,DNS:a.example")
    other = make_certificate(folder / "tls", "ca", "b", "DNS:b.example")
    address = f"tls://127.0.0.1:{free_port()}"
    daemon = make_daemon(config={"link": keys, "feed": {"listen": [address], "peers": ["a.example"]}})
    server.add("s:a", 3000, text="x" * 500)
    daemon.wait_entries(3000)
    with hdad.connect(address, **keys) as reader:
        assert list(reader.records()) == daemon.records()
    with hdad.connect(address, **other) as reader, pytest.raises(LinkError, match="does not allow"):
        list(reader.records())
    with pytest.raises(ValueError, match="TLS needs"):
        hdad.connect(address)
    daemon.stop()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    found = Proxy(0)
    yield found
    found.close()

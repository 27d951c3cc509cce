"""SIGKILL and SIGSTOP of every role at any moment, on real devices, with trimming by the durable position: what is acknowledged is gone
from Redis, so nothing that the log loses can be made up for in silence. A reader tails the log throughout."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness import Daemon, RedisServer, wait_until
from storage import Storage, why_not
from traffic import Producer, Tail, assert_everything_once

from hdad.control.client import call
from hdad.errors import ControlError, ExitStatus
from hdad.limits import MIB
from hdad.log.create import format_log

Make = Callable[..., Daemon]
pytestmark = [pytest.mark.integration, pytest.mark.device]
ROUNDS = int(os.environ.get("HDAD_CHAOS_ROUNDS", "5"))
STREAMS = ("s:a", "s:b", "s:c")
ROLES = ("worker-0", "worker-1", "writer", "supervisor", "redis")
LONG_S = 18.0  # longer than the 15 s after which the supervisor takes a silent process for hanging
CONFIG = {"redis": {"trim": "durable", "socket_timeout_ms": 1500, "block_ms": 200}}

if reason := why_not():
    pytest.skip(f"SKIPPED: {reason}", allow_module_level=True)


@pytest.fixture
def storage(folder: Path) -> Iterator[Storage]:
    with Storage(folder) as made:
        yield made


def place(storage: Storage, folder: Path, kind: str) -> str:
    """A device of 512 or 4096 bytes a block, or a file."""
    filesystem = storage.filesystem(400 * MIB)
    if kind != "file":
        return storage.loop(384 * MIB, int(kind), filesystem.folder).path
    path = str(filesystem.folder / "log")
    format_log(path, size=256 * MIB)
    return path


class Victims:
    """The processes of a daemon and its server, by role."""

    def __init__(self, daemon: Daemon, server: RedisServer) -> None:
        self._daemon, self._server = daemon, server

    def pid(self, role: str) -> int:
        """Of a running process; 0: none runs just now."""
        assert self._daemon.process is not None and self._server.process is not None
        if role in ("supervisor", "redis"):
            return self._daemon.process.pid if role == "supervisor" else self._server.process.pid
        status = self._daemon.try_status()
        return next((int(row["pid"]) for row in status["roles"] if row["role"] == role), 0) if status else 0

    def kill(self, role: str) -> None:
        """SIGKILL; what nobody here starts again is started again."""
        if role == "redis":
            self._server.kill()
            self._server.start()
        elif role == "supervisor":
            self._daemon.kill()
            self._daemon.start()
        else:
            self.send(role, signal.SIGKILL)

    def send(self, role: str, number: int) -> int:
        """A signal, if it runs. Returns its pid."""
        pid = self.pid(role)
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return pid


def proceed(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def finish(daemon: Daemon, server: RedisServer, producer: Producer, tail: Tail) -> None:
    """Everything is durable once and in order, gone from Redis, and where the reader was shown it."""
    producer.stop()
    daemon.wait_entries(producer.total)
    wait_until(lambda: not any(server.client.xlen(stream) for stream in STREAMS), "all of it is trimmed")
    wait_until(lambda: tail.next_n == producer.added, lambda: f"the reader was shown all: {tail.next_n} of {producer.added}")
    daemon.stop()
    tail.stop()
    report = daemon.verify()
    assert (report.entries, report.committed, report.lost) == (producer.total, producer.total, 0)
    assert_everything_once(daemon.device, producer, tail)
    assert "Traceback" not in daemon.log()


def test_every_process_is_stopped_for_a_while_and_goes_on_without_loss_or_repeat(
    folder: Path, server: RedisServer, make_daemon: Make, storage: Storage
) -> None:
    device = place(storage, folder, "4096")
    daemon = make_daemon(device=device, config=CONFIG)
    victims = Victims(daemon, server)
    with Producer(server.path, STREAMS, 1500) as producer, Tail(device) as tail:
        for role in ROLES:
            wait_until(lambda: daemon.status()["totals"]["entries"] >= producer.total - 500 and producer.total, "it keeps up")
            pid = victims.send(role, signal.SIGSTOP)
            before = producer.total
            deadline = time.monotonic() + 0.7
            wait_until(lambda deadline=deadline: time.monotonic() > deadline, "time passes")
            proceed(pid)
            wait_until(lambda before=before: daemon.status()["totals"]["entries"] >= before, f"after {role} went on, all goes on")
        assert all(row["restarts"] == 0 for row in daemon.status()["roles"])
        finish(daemon, server, producer, tail)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["512", "4096", "file"])
def test_kills_and_stops_of_any_roles_at_any_moment_lose_and_repeat_nothing(
    folder: Path, server: RedisServer, make_daemon: Make, storage: Storage, kind: str
) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    device = place(storage, folder, kind)
    daemon = make_daemon(device=device, config=CONFIG)
    victims = Victims(daemon, server)
    with Producer(server.path, STREAMS, 1500) as producer, Tail(device) as tail:
        for round_ in range(ROUNDS):
            producer.rate = rng.choice((200, 1500, 4000))
            time.sleep(rng.random() * 0.4)  # not a wait: the moment of the fault is what is random
            chosen = rng.sample(ROLES, rng.choice((1, 1, 2)))
            stopped = [victims.send(role, signal.SIGSTOP) for role in chosen if rng.random() < 0.4]
            if stopped:
                time.sleep(rng.random() * 1.5)  # nor is this
            for pid in stopped:
                proceed(pid)
            for role in chosen[len(stopped) :]:
                victims.kill(role)
            goal = producer.total
            wait_until(
                lambda goal=goal: (daemon.try_status() or {"totals": {"entries": -1}})["totals"]["entries"] >= goal,
                lambda round_=round_, chosen=chosen: f"seed {seed}, round {round_}, {chosen}: it goes on; {daemon.log()[-3000:]}",
            )
        finish(daemon, server, producer, tail)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [*ROLES[1:], "everything"])
def test_a_process_stopped_for_longer_than_all_patience_and_then_going_on_harms_nothing(
    folder: Path, server: RedisServer, make_daemon: Make, storage: Storage, victim: str
) -> None:
    """A worker that is silent is replaced, and must not come back; what only its supervisor missed, or the whole host, goes on as it is."""
    device = place(storage, folder, "512")
    daemon = make_daemon(device=device, config=CONFIG)
    victims = Victims(daemon, server)
    with Producer(server.path, STREAMS, 500) as producer, Tail(device) as tail:
        daemon.wait_entries(300)
        if victim == "everything":
            pids = [victims.pid(role) for role in ("writer", "worker-0", "worker-1", "redis", "supervisor")]
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
        else:
            pids = [victims.send(victim, signal.SIGSTOP)]
        until = time.monotonic() + LONG_S
        seen = len(tail.seen)
        if victim == "supervisor":
            with pytest.raises(ControlError) as caught:
                call(daemon.socket, "status", timeout_s=0.5)
            assert caught.value.status is ExitStatus.UNREACHABLE
            wait_until(lambda: len(tail.seen) > seen + 1000, "the data path needs no supervisor")
        wait_until(lambda: time.monotonic() > until, "the patience of all is over", LONG_S + 5)
        for pid in pids:
            proceed(pid)
        goal = producer.total
        wait_until(lambda: (daemon.try_status() or {"totals": {"entries": -1}})["totals"]["entries"] >= goal, "it goes on")
        restarts = {row["role"]: row["restarts"] for row in daemon.status()["roles"]}
        if victim == "worker-1":
            assert restarts["worker-1"] >= 1, "a worker that gives no sign of life is replaced"
        elif victim != "writer":  # stopped in the middle of a write it waits for the device, by all that is known; else it is replaced
            assert not any(restarts.values()), restarts
        finish(daemon, server, producer, tail)

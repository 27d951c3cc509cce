"""Processes die, hang, are stopped, added and removed; the daemon drains, reloads and ends with the truth."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from harness import Daemon, RedisServer, assert_same, wait_until

from hdad.control.client import call
from hdad.errors import ControlError, ExitStatus
from hdad.record import RecordKind

Make = Callable[..., Daemon]
pytestmark = pytest.mark.integration
ROUNDS = int(os.environ.get("HDAD_CHAOS_ROUNDS", "5"))


@pytest.mark.parametrize("victim", ["worker-0", "writer", "supervisor", "redis"])
@pytest.mark.chaos
def test_a_kill_at_a_random_moment_under_load_loses_and_repeats_nothing(server: RedisServer, make_daemon: Make, victim: str) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    streams = ["s:a", "s:b", "s:staged"]
    stages = [{"streams": ["s:staged"], "stages": [{"use": "select", "fields": ["n"]}]}]
    daemon = make_daemon(start=False, size=256 << 20)
    text = '[[pipeline.route]]\nstreams = ["s:staged"]\nstages = [{use = "select", fields = ["n"]}]\n'
    assert stages
    daemon.config_path.write_text(daemon.config_path.read_text() + text)
    daemon.start()
    total = 0
    for round_ in range(ROUNDS):
        counts = [rng.randrange(500, 3000) for _ in streams]
        for stream, count in zip(streams, counts, strict=True):
            server.add(stream, count, start=total, text="x" * rng.randrange(200))
        time.sleep(rng.random() * 0.1)  # not a wait: the moment of the kill is what is random
        if victim == "redis":
            server.kill()
            server.start()
        elif victim == "supervisor":
            daemon.kill()
            daemon.start()
        else:
            pid = daemon.kill_role(victim)
            wait_until(lambda pid=pid: daemon.role_pid(victim) not in (0, pid), "its successor runs")
        total += max(counts)
        expected = sum(server.client.xlen(stream) for stream in streams)
        wait_until(
            lambda expected=expected: (daemon.try_status() or {"totals": {"entries": -1}})["totals"]["entries"] == expected,
            lambda round_=round_, expected=expected: (
                f"round {round_}, seed {seed}: {expected} entries; {daemon.try_status()}; {daemon.log()[-3000:]}"
            ),
        )
    daemon.stop()
    report = daemon.verify()
    assert report.entries == report.committed == expected, f"seed {seed}"
    assert report.lost == 0
    assert_same(daemon, server, ["s:a", "s:b"])
    values = [(str(record.position), orjson.loads(record.body)["n"]) for record in daemon.records() if record.lane == "s:staged"]
    assert values == [(entry_id, dict(pairs)[b"n"].decode()) for entry_id, pairs in server.entries("s:staged")]


def test_a_stopped_worker_that_wakes_up_after_its_lanes_moved_is_refused_by_epoch(
    folder: Path, server: RedisServer, make_daemon: Make
) -> None:
    """I4: what it was about to publish comes with the epochs it knows. A stage that takes its time is where a stop falls most likely."""
    (folder / "slow_stage.py").write_text("import time\ndef run(batch):\n    time.sleep(0.02)\n    yield from batch\n")
    streams = [f"s:{index}" for index in range(8)]
    daemon = make_daemon(config={"redis": {"count_max": 50}, "pipeline": {"stages": ["slow_stage:run"]}})
    total, workers, stale = 0, 2, 0
    for _ in range(20):
        for stream in streams:
            server.add(stream, 400, start=total)
        total += 400
        floor = 8 * (total - 400) + 100
        wait_until(lambda floor=floor: daemon.status()["totals"]["entries"] > floor, "entries flow")
        pid = daemon.role_pid("worker-0")
        os.kill(pid, signal.SIGSTOP)
        workers = 6 - workers  # 2 and 4: lanes move to workers that come, and from those that go
        daemon.call("workers", count=workers)
        others = set(range(1, workers))
        wait_until(lambda others=others: {row["worker"] for row in daemon.status()["lanes"]} >= others, "the others have lanes", 30)
        os.kill(pid, signal.SIGCONT)
        daemon.wait_entries(8 * total)
        stale = daemon.status()["writer"]["stale"]
        if stale:
            break
    assert stale, "no frame of an older epoch came"
    daemon.stop()
    assert daemon.verify().committed == 8 * total
    found: dict[str, list[str]] = {}
    for record in daemon.records():
        found.setdefault(record.lane, []).append(str(record.position))
    assert found == {stream: [entry_id for entry_id, _ in server.entries(stream)] for stream in streams}


@pytest.mark.slow
def test_a_stopped_worker_is_killed_and_its_lanes_move(server: RedisServer, make_daemon: Make) -> None:
    daemon = make_daemon(config={"redis": {"block_ms": 100, "socket_timeout_ms": 1000}})
    for stream in ("s:a", "s:b"):
        server.add(stream, 100)
    daemon.wait_entries(200)
    pid = daemon.role_pid("worker-0")
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    for stream in ("s:a", "s:b"):
        server.add(stream, 100, start=100)
    daemon.wait_entries(400)
    assert time.monotonic() - began > 10, "killed after 15 s without a sign of life"
    assert daemon.role_pid("worker-0") != pid
    daemon.stop()
    assert daemon.verify().committed == 400


def test_a_worker_that_dies_again_and_again_ends_the_daemon_with_crash_loop(server: RedisServer, make_daemon: Make) -> None:
    daemon = make_daemon(config={"supervisor": {"crash_loop_limit": 3}})
    for _ in range(4):
        status = daemon.try_status()
        if status is None:
            break
        pid = daemon.kill_role("worker-0")
        wait_until(
            lambda pid=pid: (s := daemon.try_status()) is None or all(row["pid"] not in (pid, 0) for row in s["roles"]), "it is replaced"
        )
    daemon.wait_end(ExitStatus.CRASH_LOOP)


def test_a_stage_that_kills_its_worker_ends_as_a_dead_letter(folder: Path, server: RedisServer, make_daemon: Make) -> None:
    (folder / "bad_stage.py").write_text(
        "import os\ndef run(batch):\n"
        "    for record in batch:\n        if record.fields[b'n'] == b'7':\n            os._exit(9)\n        yield record\n"
    )
    server.add("s:a", 50)
    daemon = make_daemon(config={"pipeline": {"stages": ["bad_stage:run"]}})
    daemon.wait_entries(50)
    daemon.stop()
    report = daemon.verify()
    assert (report.committed, report.dead_lettered) == (49, 1)
    letter = next(record for record in daemon.records() if record.kind is RecordKind.DEAD_LETTER)
    assert letter.dead_letter is not None and letter.dead_letter[1] == [(b"n", b"7")]


def test_a_stage_that_hangs_is_killed_named_and_its_entry_dead_lettered(folder: Path, server: RedisServer, make_daemon: Make) -> None:
    (folder / "slow_stage.py").write_text(
        "import time\ndef run(batch):\n"
        "    for record in batch:\n        if record.fields[b'n'] == b'3':\n            time.sleep(3600)\n        yield record\n"
    )
    server.add("s:a", 20)
    daemon = make_daemon(config={"pipeline": {"stages": ["slow_stage:run"], "batch_timeout_ms": 200}})
    daemon.wait_entries(20)
    errors = " ".join(error["text"] for error in daemon.status()["errors"])
    assert "batch" in errors and "s:a" in errors
    daemon.stop()
    report = daemon.verify()
    assert (report.committed, report.dead_lettered) == (19, 1)


def test_a_stage_that_cannot_be_imported_ends_the_daemon_with_config(server: RedisServer, make_daemon: Make) -> None:
    daemon = make_daemon(start=False, config={"pipeline": {"stages": ["no_such_module:run"]}})
    daemon.start(wait=False)
    daemon.wait_end(ExitStatus.CONFIG)
    assert "no_such_module" in daemon.log()


def test_sigterm_during_start_and_twice_ends_cleanly(server: RedisServer, make_daemon: Make) -> None:
    daemon = make_daemon(start=False)
    daemon.start(wait=False)
    wait_until(lambda: "writer started" in daemon.log(), "the daemon starts its children")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_end(0)


def test_a_writer_that_cannot_finish_makes_the_exit_status_tell_it(server: RedisServer, make_daemon: Make) -> None:
    daemon = make_daemon(config={"supervisor": {"drain_timeout_s": 1}})
    server.add("s:a", 100)
    daemon.wait_entries(100)
    os.kill(daemon.role_pid("writer"), signal.SIGSTOP)
    daemon.stop(ExitStatus.DRAIN_INCOMPLETE)
    daemon.verify()


def test_a_stopped_supervisor_is_reported_as_hanging(server: RedisServer, make_daemon: Make) -> None:
    daemon = make_daemon()
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(ControlError, match="hangs") as caught:
            call(daemon.socket, "status", timeout_s=0.3)
        assert caught.value.status is ExitStatus.UNREACHABLE
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    daemon.stop()


def test_workers_are_added_and_removed_while_running(server: RedisServer, make_daemon: Make) -> None:
    streams = [f"s:{index}" for index in range(8)]
    for stream in streams:
        server.add(stream, 500)
    daemon = make_daemon()
    for count in (4, 1, 3):
        daemon.call("workers", count=count)
        wait_until(
            lambda count=count: sum(row["role"].startswith("worker") for row in daemon.status()["roles"]) == count, f"{count} workers"
        )
        for stream in streams:
            server.add(stream, 500, start=500 * count)
    daemon.wait_entries(8 * 2000)
    owners = {lane["worker"] for lane in daemon.status()["lanes"]}
    assert owners <= {0, 1, 2}
    daemon.stop()
    daemon.verify()
    assert_same(daemon, server, streams)


def test_reload_tells_key_by_key_and_refuses_what_is_wrong(server: RedisServer, make_daemon: Make) -> None:
    server.add("t:a", 10)
    daemon = make_daemon()
    assert daemon.call("reload") == {"keys": {}}
    daemon.configure({"redis": {"streams": ["s:*", "t:*"]}, "log": {"inflight_max": 2}})
    assert daemon.call("reload") == {"keys": {"redis.streams": "applied", "log.inflight_max": "needs a restart"}}
    daemon.wait_entries(10)
    daemon.configure({"redis": {"block_ms": -1, "streems": []}})
    with pytest.raises(ControlError, match=r"(?s)redis\.block_ms = -1.*did you mean redis\.streams") as caught:
        daemon.call("reload")
    assert caught.value.status is ExitStatus.CONFIG
    server.add("t:a", 10, start=10)
    daemon.wait_entries(20)
    daemon.stop()


def test_pause_stops_reading_and_resume_goes_on(server: RedisServer, make_daemon: Make) -> None:
    server.add("s:a", 10)
    daemon = make_daemon()
    daemon.wait_entries(10)
    daemon.call("pause")
    wait_until(lambda: all(row["state"] == "paused" for row in daemon.status()["roles"] if row["role"] != "writer"), "the workers pause")
    server.add("s:a", 10, start=10)
    daemon.kill_role("worker-0")  # a worker that starts meanwhile pauses too
    wait_until(lambda: daemon.status()["roles"][1]["restarts"] == 1 and daemon.status()["roles"][1]["state"] == "paused", "it pauses")
    assert daemon.status()["totals"]["entries"] == 10
    daemon.call("resume")
    daemon.wait_entries(20)
    daemon.stop()


def test_a_second_daemon_on_the_same_socket_or_device_is_refused(folder: Path, server: RedisServer, make_daemon: Make) -> None:
    first = make_daemon()
    second = make_daemon(start=False)
    second.start(wait=False)
    second.wait_end(ExitStatus.BUSY)
    second.configure({"control": {"socket": str(folder / "d.sock")}})
    second.start(wait=False)
    second.wait_end(ExitStatus.BUSY)
    assert "another hdad writes to it" in second.log()
    first.stop()


def test_the_embedded_server_runs_is_restarted_and_ends_with_the_daemon(folder: Path, make_daemon: Make) -> None:
    import redis

    daemon = make_daemon(config={"redis": {"url": "embedded"}})
    client = redis.Redis(unix_socket_path=str(folder / "redis" / "redis.sock"))
    for index in range(100):
        client.xadd("s:a", {"n": str(index)})
    daemon.wait_entries(100)
    daemon.kill_role("redis")
    wait_until(lambda: daemon.status()["roles"][0]["restarts"] == 1, "it is started again")

    def add() -> bool:
        try:
            return bool(client.xadd("s:a", {"n": "100"}))
        except redis.RedisError:
            return False

    wait_until(add, "it takes entries again")
    daemon.wait_entries(101)
    daemon.stop()
    assert daemon.verify().entries == 101

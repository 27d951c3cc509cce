"""Devices, filesystems and servers that fail under the running daemon: I8, a clear word, the right exit status, and after the repair
everything once and in order. Loop devices over files, and small filesystems of their own (tests/storage.py)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import Daemon, RedisServer, wait_until
from storage import Loop, Storage, run, why_not
from traffic import Producer, Tail, assert_everything_once

from hdad.errors import DeviceFullError, ExitStatus
from hdad.limits import MIB
from hdad.log.create import format_log
from hdad.log.inspect import inspect, verify

Make = Callable[..., Daemon]
pytestmark = [pytest.mark.integration, pytest.mark.device]
STREAMS = ("s:a", "s:b")
SUPERVISOR = {"crash_loop_limit": 3, "restart_backoff_max_ms": 100, "write_stuck_s": 1, "drain_timeout_s": 2}

if reason := why_not():
    pytest.skip(f"SKIPPED: {reason}", allow_module_level=True)


@pytest.fixture
def storage(folder: Path) -> Iterator[Storage]:
    with Storage(folder) as made:
        yield made


class Scene:
    """A daemon at work on a device, with a producer and a reader beside it."""

    def __init__(self, daemon: Daemon, producer: Producer, tail: Tail) -> None:
        self.daemon, self.producer, self.tail = daemon, producer, tail

    def wait_flow(self, entries: int = 300) -> None:
        """Until so many more entries are durable, and the reader has been shown some."""
        goal = self.durable() + entries
        wait_until(lambda: self.durable() >= goal and self.tail.seen, lambda: f"entries flow; {self.daemon.log()[-2000:]}")

    def durable(self) -> int:
        """Entries that the daemon calls durable; 0 while it does not answer."""
        status = self.daemon.try_status()
        return int(status["totals"]["entries"]) if status else 0

    def ended(self, expected: ExitStatus, *words: str) -> None:
        """The daemon ends by itself, says why, and shows no traceback."""
        self.daemon.wait_end(expected)
        log = self.daemon.log()
        assert all(word in log for word in words), (words, log[-2000:])
        assert "Traceback" not in log

    def alarmed(self, *words: str) -> None:
        """The device fails: the writer ends at each error, the daemon stays, says what is wrong, and tries again; no traceback."""
        alarm = wait_until(lambda: self.alarm("device-failed"), lambda: f"an alarm tells of the device; {self.daemon.log()[-2000:]}")
        assert self.daemon.device in alarm and "tried again" in alarm, alarm
        wait_until(lambda: all(word in self.daemon.log() for word in words), lambda: f"{words}; {self.daemon.log()[-2000:]}")
        assert "Traceback" not in self.daemon.log()
        assert "ended with status 4 (DEVICE)" in self.daemon.log(), "after an error the writer ends (I8)"

    def alarm(self, key: str) -> str:
        """The text of an alarm; "" if there is none."""
        status = self.daemon.try_status()
        return next((str(alarm["text"]) for alarm in status["alarms"] if alarm["key"] == key), "") if status else ""

    def refuses(self, expected: ExitStatus, *words: str) -> None:
        """Started before the repair, it does not run."""
        self.daemon.start(wait=False)
        self.ended(expected, *words)

    def finish(self) -> None:
        """After the repair: everything is durable once and in order, and what a reader was shown is where it was."""
        assert self.daemon.process is not None
        if self.daemon.process.poll() is not None:
            self.daemon.start()
        self.producer.stop()
        self.daemon.wait_entries(self.producer.total)
        self.daemon.stop()
        self.tail.stop()
        self.daemon.verify()
        assert_everything_once(self.daemon.device, self.producer, self.tail)


@contextmanager
def scene(make_daemon: Make, server: RedisServer, device: str, rate: float = 1500, **options: object) -> Iterator[Scene]:
    daemon = make_daemon(device=device, segment_size=4 * MIB, config={"supervisor": SUPERVISOR}, **options)
    with Producer(server.path, STREAMS, rate, 300) as producer, Tail(device) as tail:
        made = Scene(daemon, producer, tail)
        made.wait_flow()
        yield made


# -- no room -----------------------------------------------------------------------------------------------------------------------------


def test_a_full_filesystem_behind_the_device_is_told_and_nothing_acknowledged_is_lost(
    server: RedisServer, make_daemon: Make, storage: Storage
) -> None:
    filesystem = storage.filesystem(64 * MIB)
    loop = storage.loop(96 * MIB, 4096, filesystem.folder)
    with scene(make_daemon, server, loop.path) as at:
        fill = filesystem.fill()
        at.alarmed("no room (ENOSPC)")
        fill.unlink()
        at.wait_flow()
        at.finish()


def test_a_daemon_started_on_a_full_filesystem_ends_with_device(server: RedisServer, make_daemon: Make, storage: Storage) -> None:
    """Nothing has been ready yet: there is nothing to hold out for, and systemd starts it again."""
    filesystem = storage.filesystem(64 * MIB)
    loop = storage.loop(96 * MIB, 4096, filesystem.folder)  # with smaller blocks the first writes fit beside older ones
    with scene(make_daemon, server, loop.path) as at:
        at.daemon.kill()
        fill = filesystem.fill()
        at.refuses(ExitStatus.DEVICE, "no room (ENOSPC)", "writer died 4 times within 60 s; stopping")
        fill.unlink()
        at.finish()


def test_a_sparse_log_file_on_a_full_filesystem_is_told_and_nothing_acknowledged_is_lost(
    server: RedisServer, make_daemon: Make, storage: Storage
) -> None:
    """A log that was copied without its zeros has lost its preallocation."""
    filesystem = storage.filesystem(96 * MIB)
    path = str(filesystem.folder / "log")
    format_log(path, size=64 * MIB, segment_size=4 * MIB)
    run("fallocate", "--dig-holes", path)
    with scene(make_daemon, server, path) as at:
        fill = filesystem.fill()
        at.alarmed("no room (ENOSPC)")
        fill.unlink()
        at.wait_flow()
        at.finish()


def test_a_log_file_is_not_hurt_by_a_full_filesystem_and_none_is_made_there(
    server: RedisServer, make_daemon: Make, storage: Storage
) -> None:
    filesystem = storage.filesystem(96 * MIB)
    path = str(filesystem.folder / "log")
    format_log(path, size=64 * MIB, segment_size=4 * MIB)
    with scene(make_daemon, server, path) as at:
        filesystem.fill()
        with pytest.raises(DeviceFullError, match="preallocate"):
            format_log(str(filesystem.folder / "another"), size=64 * MIB)
        assert not (filesystem.folder / "another").exists()
        at.wait_flow(3000)
        assert not at.daemon.status()["alarms"]
        at.finish()


def test_entries_become_durable_while_redis_cannot_write_because_its_disk_is_full(
    folder: Path, make_daemon: Make, storage: Storage
) -> None:
    filesystem = storage.filesystem(24 * MIB)
    with RedisServer(filesystem.folder, options=["--appendfsync", "everysec"]) as full:
        daemon = make_daemon(config={"redis": {"url": full.url, "trim": "durable"}})
        with Producer(full.path, STREAMS, 1000) as producer:
            daemon.wait_entries(500)
            daemon.call("pause")
            filler = filesystem.fill()
            wait_until(lambda: producer.retried, "Redis refuses to write")
            daemon.call("resume")
            daemon.wait_entries(producer.total)
            assert "Traceback" not in daemon.log()
            filler.unlink()
            before = producer.total
            wait_until(lambda: producer.total > before + 500, "Redis writes again")
            producer.stop()
            daemon.wait_entries(producer.total)
        wait_until(lambda: not any(full.client.xlen(stream) for stream in STREAMS), "it trims again")
        daemon.stop()
        daemon.verify()
        assert_everything_once(daemon.device, producer)


# -- devices that change or fail ---------------------------------------------------------------------------------------------------------


def test_a_device_that_shrinks_under_the_daemon_ends_it_and_is_refused_until_it_has_its_size_again(
    server: RedisServer, make_daemon: Make, storage: Storage
) -> None:
    loop = storage.loop(64 * MIB)
    with scene(make_daemon, server, loop.path) as at:
        _quiet(at)
        kept = loop.backing.read_bytes()
        loop.resize(MIB)
        at.daemon.call("resume")
        at.ended(ExitStatus.FOREIGN, "the log was made for 67108864 bytes, the device has 1048576")
        at.refuses(ExitStatus.FOREIGN)
        loop.backing.write_bytes(kept)
        run("losetup", "-c", loop.path)
        at.finish()


def _quiet(at: Scene) -> int:
    """Pause until all that was read is durable. Returns the address where the log ends."""
    at.daemon.call("pause")
    wait_until(lambda: all(row["state"] == "paused" for row in at.daemon.status()["roles"] if row["role"] != "writer"), "workers pause")
    wait_until(lambda: at.daemon.status()["writer"]["next_lsn"] == at.daemon.status()["writer"]["durable_lsn"] + 1, "all is durable")
    address: int = inspect(at.daemon.device)["next_address"]
    return address


def test_a_backing_file_cut_off_under_the_daemon_is_told_and_comes_back_with_a_restore(
    server: RedisServer, make_daemon: Make, storage: Storage
) -> None:
    """New writes are taken as if nothing was: nobody can notice before the data is read. Then reads fail; made as long as it was, the file
    has zeros where acknowledged data had been."""
    loop = storage.loop(64 * MIB)
    with scene(make_daemon, server, loop.path) as at:
        end = _quiet(at)
        cut = (MIB + end) // 2 // 4096 * 4096
        gone = _cut_off(loop.backing, cut, end)
        at.daemon.call("resume")
        at.wait_flow()
        at.daemon.kill_role("writer")
        at.alarmed(f"{loop.path}: read of")
        os.truncate(loop.backing, 64 * MIB)
        at.ended(ExitStatus.DAMAGED, "damaged at byte", "durable")
        report = verify(loop.path)
        assert not report.ok and report.violations
        at.refuses(ExitStatus.DAMAGED)
        _restore(loop, cut, gone)
        at.finish()


def test_a_log_file_cut_off_under_the_daemon_is_refused_by_its_size_and_comes_back_with_a_restore(
    server: RedisServer, make_daemon: Make, storage: Storage
) -> None:
    filesystem = storage.filesystem(96 * MIB)
    path = filesystem.folder / "log"
    format_log(str(path), size=64 * MIB, segment_size=4 * MIB)
    with scene(make_daemon, server, str(path)) as at:
        end = _quiet(at)
        gone = _cut_off(path, end, path.stat().st_size)
        at.daemon.call("resume")
        at.wait_flow()
        at.daemon.kill()
        at.refuses(ExitStatus.FOREIGN, "the log was made for 67108864 bytes, the device has")
        written = path.stat().st_size
        with path.open("r+b") as file:  # what was cut off, but for what has been written there since
            file.seek(written)
            file.write(gone[written - end :])
        at.finish()


def _cut_off(path: Path, cut: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(cut)
        gone = file.read(end - cut)
    os.truncate(path, cut)
    return gone


def _restore(loop: Loop, cut: int, gone: bytes) -> None:
    fd = os.open(loop.path, os.O_WRONLY)
    try:
        os.pwrite(fd, gone, cut)
        os.fsync(fd)
    finally:
        os.close(fd)


def test_a_filesystem_that_fails_altogether_is_told_and_what_was_acknowledged_has_reached_it(
    server: RedisServer, make_daemon: Make, storage: Storage
) -> None:
    """Nothing in memory of the filesystem survives: what was called durable had better been flushed."""
    filesystem = storage.filesystem(96 * MIB)
    loop = storage.loop(64 * MIB, 512, filesystem.folder)
    with scene(make_daemon, server, loop.path) as at:
        filesystem.shut_down()
        at.alarmed("(EIO)")
        at.daemon.stop(ExitStatus.DRAIN_INCOMPLETE)
        at.refuses(ExitStatus.DEVICE, "(EIO)")
        loop.close()
        filesystem.umount()
        filesystem.mount()
        loop.reattach()
        at.finish()


def test_one_rotten_sector_of_acknowledged_data_ends_the_daemon_with_damaged_until_it_is_restored(
    server: RedisServer, make_daemon: Make, storage: Storage
) -> None:
    loop = storage.loop(64 * MIB)
    with scene(make_daemon, server, loop.path) as at:
        end = _quiet(at)
        sector = (MIB + end) // 2 // 512 * 512
        good = loop.backing.read_bytes()[sector : sector + 512]
        _restore(loop, sector, bytes(512) if any(good) else b"x" * 512)
        at.daemon.kill_role("writer")
        at.ended(ExitStatus.DAMAGED, "damaged at byte")
        _restore(loop, sector, good)
        at.finish()


# -- devices that do not answer ----------------------------------------------------------------------------------------------------------


def test_a_device_that_hangs_is_told_nothing_is_restarted_and_all_goes_on_when_it_answers(
    server: RedisServer, make_daemon: Make, storage: Storage
) -> None:
    filesystem = storage.filesystem(96 * MIB)
    loop = storage.loop(64 * MIB, 512, filesystem.folder)
    with scene(make_daemon, server, loop.path) as at:
        filesystem.freeze()
        alarm = wait_until(lambda: next((a["text"] for a in at.daemon.status()["alarms"] if a["key"] == "device"), ""), "an alarm tells it")
        assert loop.path in alarm and "oldest write" in alarm and "D state" in alarm
        began = time.monotonic()
        at.daemon.status()
        assert time.monotonic() - began < 2, "status does not wait for the device"
        filesystem.thaw()
        at.wait_flow(2000)
        assert not at.daemon.status()["alarms"] and all(row["restarts"] == 0 for row in at.daemon.status()["roles"])
        at.finish()


def test_a_drain_ends_in_time_and_says_incomplete_although_the_device_hangs(
    server: RedisServer, make_daemon: Make, storage: Storage
) -> None:
    """A process that sleeps in the device cannot be killed: the daemon must not wait for its end."""
    filesystem = storage.filesystem(96 * MIB)
    loop = storage.loop(64 * MIB, 512, filesystem.folder)
    with scene(make_daemon, server, loop.path) as at:
        writer = at.daemon.role_pid("writer")
        filesystem.freeze()
        wait_until(lambda: at.daemon.status()["alarms"], "the device hangs")
        assert at.daemon.process is not None
        at.daemon.process.send_signal(signal.SIGTERM)
        at.daemon.wait_end(ExitStatus.DRAIN_INCOMPLETE, SUPERVISOR["drain_timeout_s"] + 10)
        assert "it holds the device until that answers" in at.daemon.log()
        filesystem.thaw()
        wait_until(lambda: not Path(f"/proc/{writer}").exists(), "the old writer ends")
        at.finish()

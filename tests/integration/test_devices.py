"""Real block devices: loop devices with blocks of 512 and 4096 bytes, their errors, and what must never be formatted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness import Daemon, RedisServer, assert_same, wait_until
from logs import Writing

from hdad.errors import DeviceBusyError, DeviceError, ForeignDeviceError, GeometryMismatchError
from hdad.log.create import format_log
from hdad.log.device import has_volatile_cache
from hdad.log.inspect import inspect, verify

Make = Callable[..., Daemon]
pytestmark = [pytest.mark.integration, pytest.mark.device]


def _why_not() -> str:
    if os.geteuid() != 0:
        return "loop devices need root"
    found = subprocess.run(["losetup", "-f"], capture_output=True, text=True, check=False)
    return "" if found.returncode == 0 else f"no loop device here: {found.stderr.strip()}"


if reason := _why_not():
    pytest.skip(f"SKIPPED: {reason}", allow_module_level=True)


@pytest.fixture
def loops(folder: Path) -> Iterator[Callable[..., str]]:
    """Make loop devices: (bytes, block size, further options of losetup) → path."""
    made: list[str] = []

    def make(size: int = 64 << 20, block: int = 512, *options: str) -> str:
        backing = folder / f"backing-{len(made)}"
        with backing.open("wb") as file:
            file.truncate(size)
        found = subprocess.run(
            ["losetup", "-f", "--show", "--direct-io=on", "--sector-size", str(block), *options, str(backing)],
            capture_output=True,
            text=True,
            check=True,
        )
        made.append(found.stdout.strip())
        subprocess.run(["blockdev", "--setrw", made[-1]], check=True)  # a device may remember what an earlier test made it
        return made[-1]

    yield make
    for path in made:
        subprocess.run(["losetup", "-d", path], check=False)


@pytest.mark.parametrize("block", [512, 4096])
def test_the_daemon_on_a_loop_device_wraps_around_is_killed_and_stays_right(
    server: RedisServer, make_daemon: Make, loops: Callable[..., str], block: int
) -> None:
    device = loops(40 << 20, block)
    server.add("s:a", 2000, text="x" * 200)
    daemon = make_daemon(device=device, segment_size=4 << 20)
    daemon.wait_entries(2000)
    assert inspect(device)["block_size"] == block and inspect(device)["is_block_device"]
    daemon.kill_role("writer")
    server.add("s:b", 3000, text="y" * 200)
    daemon.wait_entries(5000)
    daemon.kill()
    daemon.start()
    for start in range(0, 120_000, 5000):
        server.add("s:c", 5000, start=start, text="z" * 400)
    daemon.wait_entries(125_000)
    daemon.stop()
    report = daemon.verify()
    assert report.first_lsn > 1, "the log has wrapped around"
    numbers = [int(dict(record.fields)[b"n"]) for record in daemon.records() if record.lane == "s:c"]
    assert numbers == list(range(numbers[0], 120_000))


def test_a_small_log_on_a_loop_device_is_identical_to_redis(server: RedisServer, make_daemon: Make, loops: Callable[..., str]) -> None:
    daemon = make_daemon(device=loops(64 << 20, 4096))
    for stream in ("s:a", "s:b"):
        server.add(stream, 3000, text="t" * 100)
    daemon.wait_entries(6000)
    daemon.stop()
    daemon.verify()
    assert_same(daemon, server, ["s:a", "s:b"])


def test_a_write_error_ends_the_writer_at_once_and_what_was_acknowledged_stays(
    folder: Path, server: RedisServer, make_daemon: Make, loops: Callable[..., str]
) -> None:
    """The backing file is cut off under the device, so writes beyond its end fail (I8). A device that is away is no crash loop."""
    device = loops(64 << 20, 512)
    daemon = make_daemon(device=device, segment_size=4 << 20, config={"supervisor": {"crash_loop_limit": 3}})
    server.add("s:a", 1000, text="x" * 200)
    daemon.wait_entries(1000)
    whole = os.path.getsize(folder / "backing-0")
    pid = daemon.role_pid("writer")
    subprocess.run(["losetup", "--direct-io=off", device], check=False)
    os.truncate(folder / "backing-0", 3 << 20)
    # A hole beyond the end of the backing file is filled again by a write, so the device is made read-only as well.
    subprocess.run(["blockdev", "--setro", device], check=True)
    server.add("s:a", 20_000, start=1000, text="x" * 200)
    wait_until(lambda: daemon.log().count("writer ended with status 4 (DEVICE)") > 5, lambda: f"it is tried again: {daemon.log()[-2000:]}")
    alarms = {alarm["key"]: alarm["text"] for alarm in daemon.status()["alarms"]}
    assert device in alarms["device-failed"] and "entries wait in Redis" in alarms["device-failed"]
    assert daemon.status()["totals"]["entries"] == 1000, "nothing is called durable any more"
    assert pid and ("write" in daemon.log() or "open" in daemon.log()) and "Traceback" not in daemon.log()
    assert whole == 64 << 20


def test_a_device_that_goes_read_only_under_the_writer_stops_it_and_loses_nothing(
    server: RedisServer, make_daemon: Make, loops: Callable[..., str]
) -> None:
    device = loops(64 << 20, 512)
    daemon = make_daemon(device=device, config={"supervisor": {"crash_loop_limit": 1000, "restart_backoff_max_ms": 100}})
    server.add("s:a", 500)
    daemon.wait_entries(500)
    subprocess.run(["blockdev", "--setro", device], check=True)
    server.add("s:a", 500, start=500)
    pid = daemon.role_pid("writer")
    with suppress(ProcessLookupError):  # its own write has failed before
        os.kill(pid, 9)  # recovery cannot write the superblock now
    wait_until(lambda: (daemon.try_status() or {"errors": []})["errors"], "the error is told")
    subprocess.run(["blockdev", "--setrw", device], check=True)
    daemon.wait_entries(1000)
    daemon.stop()
    daemon.verify()
    assert_same(daemon, server, ["s:a"])


# -- formatting --------------------------------------------------------------------------------------------------------------------------


def test_a_mounted_device_is_refused_before_anything_is_written(folder: Path, loops: Callable[..., str]) -> None:
    device = loops(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", device], check=True)
    with pytest.raises(ForeignDeviceError, match="ext2/3/4"):
        format_log(device)
    mount = folder / "m"
    mount.mkdir()
    if subprocess.run(["mount", device, str(mount)], check=False, capture_output=True).returncode != 0:
        pytest.skip("SKIPPED: this machine may not mount")
    try:
        (mount / "file").write_text("mine")
        with pytest.raises((DeviceBusyError, ForeignDeviceError), match=r"mounted|holds it"):
            format_log(device)
        assert (mount / "file").read_text() == "mine"
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_device_with_partitions_or_with_junk_behind_a_signature_is_refused(folder: Path, loops: Callable[..., str]) -> None:
    device = loops(64 << 20)
    backing = folder / "backing-0"
    with backing.open("r+b") as file:
        file.seek(510)
        file.write(b"\x55\xaa")
    with pytest.raises(ForeignDeviceError, match="MBR"):
        format_log(device)


def test_a_device_that_is_open_elsewhere_exclusively_is_refused(loops: Callable[..., str]) -> None:
    device = loops()
    holder = os.open(device, os.O_RDWR | os.O_EXCL)
    try:
        with pytest.raises(DeviceBusyError):
            format_log(device)
    finally:
        os.close(holder)
    format_log(device)
    with Writing(device), pytest.raises(DeviceBusyError):
        Writing(device)


def test_a_log_of_512_byte_blocks_on_a_device_of_4096_is_refused(folder: Path, loops: Callable[..., str]) -> None:
    device = loops(64 << 20, 512)
    format_log(device)
    backing = folder / "backing-0"
    subprocess.run(["losetup", "-d", device], check=True)
    found = subprocess.run(["losetup", "-f", "--show", "--sector-size", "4096", str(backing)], capture_output=True, text=True, check=True)
    other = found.stdout.strip()
    try:
        with pytest.raises(GeometryMismatchError, match="blocks of 512"):
            Writing(other)
    finally:
        subprocess.run(["losetup", "-d", other], check=True)
        subprocess.run(["losetup", device, str(backing)], check=False)  # for the fixture's end


def test_a_device_of_another_size_is_refused(folder: Path, loops: Callable[..., str]) -> None:
    device = loops(64 << 20, 512)
    format_log(device)
    os.truncate(folder / "backing-0", 80 << 20)
    subprocess.run(["losetup", "-c", device], check=True)
    with pytest.raises((GeometryMismatchError, ForeignDeviceError)):
        Writing(device)


def test_a_read_only_device_is_refused_for_writing_in_words(loops: Callable[..., str]) -> None:
    device = loops(64 << 20, 512)
    format_log(device)
    subprocess.run(["blockdev", "--setro", device], check=True)
    with pytest.raises(DeviceError, match=device):
        Writing(device)
    assert verify(device).ok


def test_the_kernel_tells_whether_the_cache_is_volatile(loops: Callable[..., str]) -> None:
    assert has_volatile_cache(loops()) in (True, False)

"""What ends the writer, or changes the LUN under it, each with a daemon of its own: no path left, medium errors, other sizes.

I1–I3: everything added is in the log, once and in order. I8: a failed write ends the writer. Status answers throughout, and says what is
wrong.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Daemon

from hdad.errors import DeviceError, ExitStatus
from hdad.log.reader import LogReader
from tests.vm.kernel import SLACK, put, until
from tests.vm.load import Oracle, alarm, is_waiting_for_device
from tests.vm.multipath import Map, Multipathd, ScsiDebug
from tests.vm.proof import WRITE_STUCK_S, Bench

pytestmark = pytest.mark.guest


@pytest.fixture
def lun() -> Iterator[ScsiDebug]:
    with ScsiDebug() as made:
        yield made


def test_all_paths_lost_without_queueing_end_the_writer_until_they_return(bench: Bench, lun: ScsiDebug) -> None:
    with Map("hdad", lun.disks) as device:
        daemon = bench.daemon(device.path, supervisor={"crash_loop_limit": 3})
        with bench.load(daemon) as load, Oracle(device.path) as oracle:
            with bench.fault(load, oracle, "all paths lost, no queueing"):
                lun.offline()
                load.wait_status(lambda status: status["errors"], "status tells the failed write", 5.0)
                until(lambda: "ended with status 4 (DEVICE)" in daemon.log(), "the writer has ended (I8)")
                before = load.durable
                # More often than is a crash loop: a device that is away is tried until it is back.
                found = load.wait_status(lambda status: status["roles"][1]["restarts"] >= 5, "it is tried again", 60.0)
                assert load.durable == before, "nothing is called durable meanwhile (I1)"
                assert device.path in alarm(found.status, "device-failed")
                lun.online()
                device.reinstate()
                load.wait_more(2_000)
            bench.prove(load, oracle)


def test_medium_errors_are_told_with_their_place_and_hide_nothing(bench: Bench, lun: ScsiDebug) -> None:
    with Map("hdad", lun.disks) as device:
        daemon = bench.daemon(device.path)
        with bench.load(daemon) as load, Oracle(device.path) as oracle:
            with bench.fault(load, oracle, "medium error in the log, cured"):
                lun.set("medium_error_start", 300)  # in segment 0, which begins behind a MiB
                lun.set("medium_error_count", 500)
                lun.set("opts", 2)
                load.wait_more(1_000)  # who only writes does not read
                with pytest.raises(DeviceError, match="medium error"), LogReader(device.path) as reader:
                    list(reader.frames())
                pid = daemon.kill_role("writer")
                until(lambda: "medium error" in daemon.log(), lambda: f"recovery tells it: {daemon.log()[-2000:]}")
                assert daemon.role_pid("writer") != pid
                lun.set("opts", 0)
                load.wait_more(1_000)
            bench.prove(load, oracle)


def test_a_grown_lun_is_used_as_it_was_and_refused_at_the_next_start(bench: Bench, lun: ScsiDebug) -> None:
    with Map("hdad", lun.disks) as device:
        daemon = bench.daemon(device.path)
        with bench.load(daemon) as load, Oracle(device.path) as oracle:
            with bench.fault(load, oracle, "LUN grown under it"):
                _resize(lun, device, virtual_gb=1, sectors=1 << 21)
                load.wait_more(3_000)
            load.finish()
            daemon.stop()
            daemon.start(wait=False)
            daemon.wait_end(ExitStatus.FOREIGN)
            assert f"the log was made for {192 << 20} bytes, the device has {1 << 30}" in daemon.log(), daemon.log()[-500:]
            _resize(lun, device, virtual_gb=0, sectors=device.sectors)
            daemon.start()
            bench.prove(load, oracle)


def test_a_shrunk_lun_ends_the_writer_and_what_was_acknowledged_is_there_when_it_is_whole_again(bench: Bench, lun: ScsiDebug) -> None:
    with Map("hdad", lun.disks) as device:
        daemon = bench.daemon(device.path, redis={"trim": "off"})
        with bench.load(daemon) as load, Oracle(device.path) as oracle:
            with bench.fault(load, oracle, "LUN shrunk under it, whole again"):
                load.wait_status(lambda status: status["writer"]["device_bytes"] > 2 << 20, "the writer is well into the log", 120.0)
                load.finish_adding()
                device.resize(4096)  # 2 MiB: behind the leases, before where the writer is
                bench.client().xadd("s:more", {"n": "0", "text": "a" * 150})
                daemon.wait_end(ExitStatus.FOREIGN)
                device.resize(device.sectors)
                daemon.start()
                load.forget()  # between its end and its start there was no daemon
                load.counts["s:more"] = 1
            bench.prove(load, oracle)


def _resize(lun: ScsiDebug, device: Map, *, virtual_gb: int, sectors: int) -> None:
    lun.set("virtual_gb", virtual_gb)
    for disk in lun.disks:
        put(f"/sys/block/{disk}/device/rescan", 1)
    until(lambda: all(int(Path(f"/sys/block/{disk}/size").read_text()) == sectors for disk in lun.disks), "the kernel knows the new size")
    device.resize(sectors)


def test_a_drain_while_every_write_is_queued_ends_in_time_and_tells_it(bench: Bench, lun: ScsiDebug) -> None:
    with Map("hdad", lun.disks, queueing=True) as device:
        daemon = bench.daemon(device.path, supervisor={"drain_timeout_s": 2})
        with bench.load(daemon) as load, Oracle(device.path) as oracle:
            with bench.fault(load, oracle, "drained while all paths were lost"):
                lun.offline()
                load.wait_status(is_waiting_for_device, "a write is queued", 5.0)
                load.finish_adding()
                began = time.monotonic()
                daemon.stop(ExitStatus.DRAIN_INCOMPLETE)  # the writer sleeps in the kernel and cannot be killed
                assert time.monotonic() - began < 15.0 * SLACK
                assert "it holds the device until that answers" in daemon.log()
                lun.online()
                device.reinstate()
                until(lambda: _can_start(daemon), "the device is free again")
                load.forget()  # between its end and its start there was no daemon
            bench.prove(load, oracle)


def _can_start(daemon: Daemon) -> bool:
    daemon.start(wait=False)
    try:
        daemon.wait_ready()
    except AssertionError:
        assert daemon.process is not None and daemon.process.returncode == ExitStatus.BUSY, daemon.log()[-2000:]
        return False
    return True


# -- the real multipathd ------------------------------------------------------------------------------------------------------------------


def test_under_multipathd_paths_come_back_by_themselves_and_queueing_has_an_end(bench: Bench, lun: ScsiDebug) -> None:
    with Multipathd(bench.folder, no_path_retry="8") as multipathd:
        daemon = bench.daemon(multipathd.path)
        with bench.load(daemon) as load, Oracle(multipathd.path) as oracle:
            with bench.fault(load, oracle, "multipathd: path failed, then offline"):
                assert multipathd.show("fail", "path", lun.disks[0]).endswith("ok")
                load.wait_more(1_000)
                multipathd.show("reinstate", "path", lun.disks[0])  # "fail" stops its checker too: it never comes back by itself
                multipathd.wait_ready(2)
                lun.offline(0)
                multipathd.wait_ready(1)
                load.wait_more(1_000)
                lun.online(0)
                multipathd.wait_ready(2)
            with bench.fault(load, oracle, "multipathd: all paths lost, queueing"):
                lun.offline()
                load.wait_status(lambda status: alarm(status, "device"), "the alarm names the device", WRITE_STUCK_S + 2.0)
                lun.online()
                multipathd.wait_ready(2)
                load.wait_more(1_000)
            assert daemon.log().count("writer started") == 1, "the writer saw nothing of it"
            with bench.fault(load, oracle, "multipathd: all paths lost past no_path_retry"):
                lun.offline()
                load.wait_status(is_waiting_for_device, "first it queues", 5.0)
                until(lambda: "ended with status 4 (DEVICE)" in daemon.log(), "then the write fails (I8)")
                lun.online()
                multipathd.wait_ready(2)
                load.wait_more(1_000)
            bench.prove(load, oracle)

"""Paths of one LUN fail under full load: scsi_debug behind two hosts, dm-multipath by dmsetup and by the real multipathd.

I1–I3: everything added is in the log, once and in order. I8: a failed write ends the writer. Status answers throughout, and says what is
wrong. What the writer is not to see is done to one daemon, fault after fault; what ends it, each to a daemon of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import Daemon

from hdad.errors import DeviceError, ExitStatus
from hdad.log.reader import LogReader
from tests.vm.kernel import SLACK, put, until
from tests.vm.load import Load, Oracle, alarm, is_waiting_for_device
from tests.vm.multipath import Map, Multipathd, ScsiDebug
from tests.vm.proof import WRITE_STUCK_S, Bench

pytestmark = pytest.mark.guest
SURVEYED_S = 5.0  # paths are surveyed once a second


class Ride(NamedTuple):
    """A daemon under load on a map of two paths, for one fault after the other."""

    bench: Bench
    lun: ScsiDebug
    device: Map
    daemon: Daemon
    load: Load
    oracle: Oracle

    def heal(self) -> None:
        """What a test that failed may have left."""
        self.lun.set("opts", 0)
        self.lun.set("every_nth", 0)
        self.lun.online()
        self.device.reinstate()

    def fault(self, name: str) -> Any:
        return self.bench.fault(self.load, self.oracle, name)


# -- what the writer does not see ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def riding(make_bench: Any) -> Iterator[Ride]:
    with make_bench() as bench, ScsiDebug(256) as lun, Map("hdad", lun.disks, queueing=True) as device:
        daemon = bench.daemon(device.path)
        with bench.load(daemon) as load, Oracle(device.path) as oracle:
            yield Ride(bench, lun, device, daemon, load, oracle)
        assert daemon.log().count("writer started") == 1, "no fault of these reaches the writer"


@pytest.fixture
def ride(riding: Ride, record_fault: Any) -> Ride:
    riding.bench.record = record_fault
    riding.heal()
    return riding


def test_one_path_goes_offline_and_returns(ride: Ride) -> None:
    with ride.fault("one path offline, returns"):
        ride.lun.offline(0)
        until(lambda: ride.device.states() == [False, True], "the kernel has given the path up")
        ride.load.wait_status(lambda status: alarm(status, "paths:last-path"), "status tells that one path is left", SURVEYED_S)
        expected = {ride.lun.disks[0]: "offline", ride.lun.disks[1]: "active"}  # at first "failed", if the look began before it was offline
        ride.load.wait_status(lambda status: status["paths"]["conditions"] == expected, "status tells why", SURVEYED_S)
        ride.load.wait_more(5_000)
        ride.lun.online(0)
        ride.device.reinstate(0)
        ride.load.wait_more(2_000)
        assert ride.device.states() == [True, True]


def test_all_paths_lost_with_queueing_stall_and_go_on(ride: Ride) -> None:
    load = ride.load
    with ride.fault("all paths lost 4 s, queueing"):
        ride.lun.offline()
        load.wait_status(is_waiting_for_device, "status shows the age of the write at once", 2.0)
        found = load.wait_status(lambda status: alarm(status, "device"), "and there is an alarm", WRITE_STUCK_S + 2.0)
        text = alarm(found.status, "device")
        assert ride.device.path in text and "in flight" in text and "Entries wait in Redis" in text
        found = load.wait_status(lambda status: alarm(status, "paths:all-paths-down"), "and it names the paths", SURVEYED_S)
        assert "none of 2 paths is active; writes wait" in alarm(found.status, "paths:all-paths-down")
        before = load.durable
        load.wait_status(lambda status: status["writer"]["oldest_write_ms"] > 4000, "the write waits", 10.0)
        assert load.durable == before, "nothing is called durable meanwhile (I1)"
        ride.lun.online()
        ride.device.reinstate()
        load.wait_more(2_000)


def test_flapping_paths(ride: Ride) -> None:
    with ride.fault("paths flap 12 times"):
        for round_ in range(12):
            bad = round_ % 2
            ride.lun.offline(bad)
            until(lambda bad=bad: not ride.device.states()[bad], "the kernel has given the path up")
            ride.load.wait_more(300)
            ride.lun.online(bad)
            ride.device.reinstate(bad)
            if round_ % 4 == 3:  # both at once, for an instant
                ride.lun.offline()
                ride.lun.online()
                ride.device.reinstate()


def test_aborted_commands_are_retried_below(ride: Ride) -> None:
    with ride.fault("every 20th command aborted"):
        ride.lun.set("every_nth", 20)
        ride.lun.set("opts", 16)
        ride.load.wait_more(5_000)
        ride.lun.set("opts", 0)
        ride.lun.set("every_nth", 0)
        assert ride.device.states() == [True, True]


def test_commands_without_an_answer_cost_their_timeout_and_no_more(ride: Ride) -> None:
    ride.lun.timeout(2)
    with ride.fault("commands without an answer, timeout 2 s"):
        ride.lun.set("every_nth", 300)
        ride.lun.set("opts", 4)
        ride.load.wait_status(lambda status: status["writer"]["oldest_write_ms"] > 1000, "a command is lost", 60.0)
        ride.lun.set("opts", 0)
        ride.lun.set("every_nth", 0)
        ride.load.wait_more(2_000)
    ride.lun.timeout(30)


def test_a_slow_lun_is_slow_and_nothing_else(ride: Ride) -> None:
    with ride.fault("every command takes 100 ms"):
        with ride.device.suspended():  # it may not change under a command
            ride.lun.set("ndelay", 100_000_000)
        ride.load.wait_more(2_000)
        found = ride.load.wait_status(lambda status: status["latency"]["write_p50_us"] > 90_000, "status shows slow writes", 30.0)
        assert not found.status["alarms"], "slow is no alarm: nothing is stuck"
        with ride.device.suspended():
            ride.lun.set("ndelay", 0)
        ride.load.wait_more(2_000)


def test_after_all_of_this_the_log_is_what_was_added(ride: Ride) -> None:
    ride.bench.prove(ride.load, ride.oracle)


# -- what ends the writer, or changes the LUN ----------------------------------------------------------------------------------------------


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
                load.finish_adding()
                device.resize(8192)  # 4 MiB: behind the leases, before where the writer is
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

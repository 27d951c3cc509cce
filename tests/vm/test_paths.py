"""Paths of one LUN fail under full load: scsi_debug behind two hosts, dm-multipath by dmsetup.

I1–I3: everything added is in the log, once and in order. I8: a failed write ends the writer. Status answers throughout, and says what is
wrong. The writer is not to see any of it: all is done to one daemon, fault after fault. What ends it: test_luns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from harness import Daemon

from tests.vm.kernel import until
from tests.vm.load import Load, Oracle, alarm, is_waiting_for_device
from tests.vm.multipath import Map, ScsiDebug
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

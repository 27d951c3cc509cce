"""Paths of one LUN fail under full load: scsi_debug behind two hosts, dm-multipath by dmsetup and by the real multipathd.

I1–I3: everything added is in the log, once and in order. I8: a failed write ends the writer. Status answers throughout, and says what is
wrong.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import wait_until

from hdad.errors import DeviceError, ExitStatus
from hdad.log.reader import LogReader
from tests.vm.kernel import put
from tests.vm.load import alarm, is_waiting_for_device
from tests.vm.multipath import Map, Multipathd, ScsiDebug
from tests.vm.proof import WRITE_STUCK_S, Bench

pytestmark = pytest.mark.guest


@pytest.fixture
def lun() -> Iterator[ScsiDebug]:
    with ScsiDebug() as made:
        yield made


def test_one_path_goes_offline_and_returns(bench: Bench, lun: ScsiDebug) -> None:
    with Map("hdad", lun.disks) as device:
        daemon = bench.daemon(device.path)
        with bench.load(daemon) as load:
            load.mark()
            lun.offline(0)
            wait_until(lambda: device.states() == [False, True], "the kernel has given the path up")
            load.wait_more(10_000)
            lun.online(0)
            device.reinstate(0)
            load.wait_more(5_000)
            assert device.states() == [True, True] and not daemon.status()["alarms"]
            load.finish()
        bench.prove(load, "one path offline, returns")
        assert daemon.log().count("writer started") == 1, "the writer saw nothing of it"


def test_all_paths_lost_with_queueing_stall_and_go_on(bench: Bench, lun: ScsiDebug) -> None:
    with Map("hdad", lun.disks, queueing=True) as device:
        daemon = bench.daemon(device.path)
        with bench.load(daemon) as load:
            load.mark()
            lun.offline()
            load.wait_status(is_waiting_for_device, "status shows the age of the write at once", 1.0)
            found = load.wait_status(lambda status: alarm(status, "device"), "and there is an alarm", WRITE_STUCK_S + 1.0)
            text = alarm(found.status, "device")
            assert device.path in text and "in flight" in text and "Entries wait in Redis" in text
            before = load.durable
            load.wait_status(lambda status: status["writer"]["oldest_write_ms"] > 4000, "the write waits", 10.0)
            assert load.durable == before, "nothing is called durable meanwhile (I1)"
            lun.online()
            device.reinstate()
            load.wait_more(5_000)
            load.wait_status(lambda status: not status["alarms"], "the alarm is over", 5.0)
            load.finish()
        bench.prove(load, "all paths lost 4 s, queueing")
        assert daemon.log().count("writer started") == 1, "queueing hides it from the writer"


def test_all_paths_lost_without_queueing_end_the_writer_until_they_return(bench: Bench, lun: ScsiDebug) -> None:
    with Map("hdad", lun.disks) as device:
        daemon = bench.daemon(device.path)
        with bench.load(daemon) as load:
            load.mark()
            lun.offline()
            load.wait_status(lambda status: status["errors"], "status tells the failed write", 2.0)
            wait_until(lambda: "ended with status 4 (DEVICE)" in daemon.log(), "the writer has ended (I8)")
            before = load.durable
            load.wait_status(lambda status: status["roles"][1]["restarts"] >= 3, "it is tried again", 20.0)
            assert load.durable == before, "nothing is called durable meanwhile (I1)"
            assert any(device.path in error["text"] for error in daemon.status()["errors"])
            lun.online()
            device.reinstate()
            load.wait_more(5_000)
            load.finish()
        bench.prove(load, "all paths lost, no queueing")


def test_flapping_paths(bench: Bench, lun: ScsiDebug) -> None:
    with Map("hdad", lun.disks, queueing=True) as device:
        daemon = bench.daemon(device.path)
        with bench.load(daemon) as load:
            load.mark()
            for round_ in range(12):
                bad = round_ % 2
                lun.offline(bad)
                wait_until(lambda bad=bad: not device.states()[bad], "the kernel has given the path up")
                load.wait_more(500)
                lun.online(bad)
                device.reinstate(bad)
                if round_ % 4 == 3:  # both at once, for an instant
                    lun.offline()
                    lun.online()
                    device.reinstate()
            load.wait_more(2_000)
            load.finish()
        bench.prove(load, "paths flap 12 times")
        assert daemon.log().count("writer started") == 1


def test_aborted_commands_are_retried_below_and_never_seen(bench: Bench, lun: ScsiDebug) -> None:
    with Map("hdad", lun.disks) as device:
        daemon = bench.daemon(device.path)
        with bench.load(daemon) as load:
            load.mark()
            lun.set("every_nth", 20)
            lun.set("opts", 16)
            load.wait_more(10_000)
            lun.set("opts", 0)
            lun.set("every_nth", 0)
            load.finish()
        bench.prove(load, "every 20th command aborted")
        assert daemon.log().count("writer started") == 1 and device.states() == [True, True]


def test_commands_without_an_answer_cost_their_timeout_and_no_more(bench: Bench, lun: ScsiDebug) -> None:
    with Map("hdad", lun.disks, queueing=True) as device:
        daemon = bench.daemon(device.path)
        lun.timeout(2)
        with bench.load(daemon) as load:
            load.mark()
            lun.set("every_nth", 300)
            lun.set("opts", 4)
            load.wait_status(lambda status: status["writer"]["oldest_write_ms"] > 1000, "a command is lost", 60.0)
            lun.set("opts", 0)
            lun.set("every_nth", 0)
            load.wait_more(5_000)
            load.finish()
        bench.prove(load, "a command without an answer, timeout 2 s")


def test_a_slow_lun_is_slow_and_nothing_else(bench: Bench, lun: ScsiDebug) -> None:
    with Map("hdad", lun.disks) as device:
        daemon = bench.daemon(device.path)
        with bench.load(daemon) as load:
            with device.suspended():  # it may not change under a command
                lun.set("ndelay", 100_000_000)
            load.mark()
            load.wait_more(4_000)
            found = load.wait_status(lambda status: status["latency"]["write_p99_us"] > 90_000, "status shows slow writes", 20.0)
            assert not found.status["alarms"], "slow is no alarm: nothing is stuck"
            with device.suspended():
                lun.set("ndelay", 0)
            load.wait_more(5_000)
            load.finish()
        bench.prove(load, "every command takes 100 ms")


def test_medium_errors_are_told_with_their_place_and_hide_nothing(bench: Bench, lun: ScsiDebug) -> None:
    with Map("hdad", lun.disks) as device:
        daemon = bench.daemon(device.path)
        with bench.load(daemon) as load:
            load.mark()
            head = 64  # the first MiB holds superblock and leases; LBA 64 × 4096 lies among them or in segment 0
            lun.set("medium_error_start", head)
            lun.set("medium_error_count", 2000)
            lun.set("opts", 2)
            load.wait_more(2_000)  # who only writes does not read
            with pytest.raises(DeviceError, match="medium error"), LogReader(device.path) as reader:
                list(reader.frames())
            pid = daemon.kill_role("writer")
            wait_until(lambda: "medium error" in daemon.log(), "recovery tells it")
            assert daemon.role_pid("writer") != pid
            lun.set("opts", 0)
            load.wait_more(2_000)
            load.finish()
        bench.prove(load, "medium error in the log, cured")


def test_a_grown_lun_is_used_as_it_was_and_refused_at_the_next_start(bench: Bench, lun: ScsiDebug) -> None:
    with Map("hdad", lun.disks) as device:
        daemon = bench.daemon(device.path)
        with bench.load(daemon) as load:
            load.mark()
            _resize(lun, device, virtual_gb=1, sectors=1 << 21)
            load.wait_more(5_000)
            load.finish()
        daemon.stop()
        daemon.start(wait=False)
        daemon.wait_end(ExitStatus.FOREIGN)
        assert "bytes" in daemon.log().splitlines()[-1] or "size" in daemon.log(), daemon.log()[-500:]
        _resize(lun, device, virtual_gb=0, sectors=device.sectors)
        daemon.start()
        bench.prove(load, "LUN grown under it")


def test_a_shrunk_lun_ends_the_writer_and_what_was_acknowledged_is_there_when_it_is_whole_again(bench: Bench, lun: ScsiDebug) -> None:
    with Map("hdad", lun.disks) as device:
        daemon = bench.daemon(device.path)
        with bench.load(daemon) as load:
            load.mark()
            device.resize(8192)  # 4 MiB: behind the leases, before where the writer is
            daemon.wait_end(ExitStatus.FOREIGN)
            acknowledged = load.durable
            device.resize(device.sectors)
            daemon.start()
            assert daemon.status()["totals"]["entries"] >= acknowledged
            load.wait_more(2_000)
            load.finish()
            load.unanswered.clear()  # between its end and its start there was no daemon
        bench.prove(load, "LUN shrunk under it, whole again")


def _resize(lun: ScsiDebug, device: Map, *, virtual_gb: int, sectors: int) -> None:
    lun.set("virtual_gb", virtual_gb)
    for disk in lun.disks:
        put(f"/sys/block/{disk}/device/rescan", 1)
    wait_until(
        lambda: all(int(Path(f"/sys/block/{disk}/size").read_text()) == sectors for disk in lun.disks), "the kernel knows the new size"
    )
    device.resize(sectors)


def test_a_drain_while_every_write_is_queued_ends_in_time_and_tells_it(bench: Bench, lun: ScsiDebug) -> None:
    with Map("hdad", lun.disks, queueing=True) as device:
        daemon = bench.daemon(device.path, supervisor={"drain_timeout_s": 2})
        with bench.load(daemon) as load:
            load.mark()
            lun.offline()
            load.wait_status(is_waiting_for_device, "a write is queued", 5.0)
            began = time.monotonic()
            daemon.stop(ExitStatus.DRAIN_INCOMPLETE)  # the writer sleeps in the kernel and cannot be killed
            assert time.monotonic() - began < 10.0
            lun.online()
            device.reinstate()
            wait_until(lambda: _can_start(daemon), "the device is free again")
            load.wait_more(2_000)
            load.finish()
            load.unanswered.clear()  # between its end and its start there was no daemon
        bench.prove(load, "drained while all paths were lost")


def _can_start(daemon) -> bool:  # type: ignore[no-untyped-def]
    daemon.start(wait=False)
    try:
        daemon.wait_ready()
    except AssertionError:
        assert daemon.process.returncode == ExitStatus.BUSY, daemon.log()[-2000:]
        return False
    return True


# -- the real multipathd ------------------------------------------------------------------------------------------------------------------


def test_under_multipathd_failed_and_offline_paths_come_back_by_themselves(bench: Bench, lun: ScsiDebug) -> None:
    with Multipathd(bench.folder) as multipathd:
        daemon = bench.daemon(multipathd.path)
        with bench.load(daemon) as load:
            load.mark()
            assert multipathd.show("fail", "path", lun.disks[0]).endswith("ok")
            load.wait_more(3_000)
            multipathd.show("reinstate", "path", lun.disks[0])  # "fail" stops its checker too: it never comes back by itself
            multipathd.wait_ready(2)
            lun.offline(0)
            multipathd.wait_ready(1)
            load.wait_more(3_000)
            lun.online(0)
            multipathd.wait_ready(2)
            load.wait_more(3_000)
            load.finish()
        bench.prove(load, "multipathd: path failed, then offline")
        assert daemon.log().count("writer started") == 1


def test_under_multipathd_all_paths_queue_until_they_return(bench: Bench, lun: ScsiDebug) -> None:
    with Multipathd(bench.folder) as multipathd:
        daemon = bench.daemon(multipathd.path)
        with bench.load(daemon) as load:
            load.mark()
            lun.offline()
            load.wait_status(lambda status: alarm(status, "device"), "the alarm names the device", WRITE_STUCK_S + 2.0)
            multipathd.wait_ready(0)
            lun.online()
            multipathd.wait_ready(2)
            load.wait_more(3_000)
            load.finish()
        bench.prove(load, "multipathd: all paths lost, queueing")
        assert daemon.log().count("writer started") == 1


def test_under_multipathd_queueing_with_an_end_turns_into_errors_and_back(bench: Bench, lun: ScsiDebug) -> None:
    with Multipathd(bench.folder, no_path_retry="3") as multipathd:
        daemon = bench.daemon(multipathd.path)
        with bench.load(daemon) as load:
            load.mark()
            lun.offline()
            load.wait_status(is_waiting_for_device, "first it queues", 5.0)
            wait_until(lambda: "ended with status 4 (DEVICE)" in daemon.log(), "then the write fails (I8)")
            lun.online()
            multipathd.wait_ready(2)
            load.wait_more(3_000)
            load.finish()
        bench.prove(load, "multipathd: all paths lost past no_path_retry")

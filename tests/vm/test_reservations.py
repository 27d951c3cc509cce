"""Fencing by SCSI-3 persistent reservations, on a LUN that has them (LIO): two hosts, each with two paths under device-mapper."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Daemon, RedisServer

from hdad.errors import ExitStatus
from hdad.log.ownership import reservation_key
from tests.vm.forward import IN_VM
from tests.vm.kernel import load as load_modules
from tests.vm.kernel import sh, until
from tests.vm.lio import Array
from tests.vm.load import Load, Oracle
from tests.vm.multipath import Map, ScsiDebug
from tests.vm.nodes import MORE, RATE, Node, fence
from tests.vm.proof import patient_client

pytestmark = pytest.mark.guest("lio")
ROOT = Path(__file__).parents[2]
FREEZES = 2  # a's and b's


class Hosts:
    """The LUN as hosts a and b see it, by two paths each, and as a third initiator without a key does."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.array = Array(size_mib=128)
        self.disks = self.array.hosts(5)
        self.maps = [Map("hostA", self.disks[:2], groups=False), Map("hostB", self.disks[2:4], groups=False)]
        self.reader = f"/dev/{self.disks[4]}"
        self.nodes: list[Node] = []

    def node(self, index: int, **log: Any) -> Node:
        made = Node(self.folder, "ab"[index], self.url, self.maps[index].path, is_first=not self.nodes, **log)
        self.nodes.append(made)
        made.start()
        return made

    def keys(self) -> list[int]:
        return self.array.keys(self.disks[4])

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        for made in self.maps:
            made.__exit__()
        self.array.__exit__()


def key_of(node: Node) -> int:
    return reservation_key(bytes.fromhex(node.sections["supervisor"]["node_id"]))


@pytest.fixture
def hosts(folder: Path, server: RedisServer) -> Iterator[Hosts]:
    made = Hosts(folder, server.url)
    yield made
    made.close()


def test_a_real_lun_does_what_hdad_relies_on(hosts: Hosts) -> None:
    """The contract that the simulations' model keeps, on LIO through dm-multipath; unit attentions and all."""
    environment = {**os.environ, "HDAD_PR_HOSTS": ",".join(made.path for made in hosts.maps)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:xdist",
               str(ROOT / "tests/contract/test_reservation.py"), "-k", "kernel"]  # fmt: skip
    environment.pop(IN_VM)
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=ROOT)
    assert found.returncode == 0 and "passed" in found.stdout and "skipped" not in found.stdout, found.stdout[-4000:]


def test_a_frozen_writer_is_fenced_each_time_it_thaws_and_not_a_block_of_it_is_written(
    hosts: Hosts, server: RedisServer, record_fault: Callable[[dict[str, Any]], None]
) -> None:
    """Frozen for longer than the takeover takes, then thawed: a and b in turn."""
    writer = hosts.node(0)
    writer.become("writer")
    standby = hosts.node(1)
    standby.become("standby")
    assert hosts.keys() == [key_of(writer)] * 2, "the writer's key, on each of its paths; the standby has none"
    with Load(writer, patient_client(server.url.removeprefix("unix://")), rate=RATE) as load, Oracle(hosts.reader) as oracle:
        for round_ in range(FREEZES):
            record_fault(fence(writer, standby, load, oracle))  # the oracle's reader has no key, and reads on
            assert hosts.keys() == [key_of(standby)] * 2
            if round_ + 1 < FREEZES:
                writer.start()
                writer.become("standby")
                writer, standby = standby, writer
        load.finish()
    standby.verify()
    with Oracle(hosts.reader) as again:
        again.assert_holds(load.counts)


def test_planned_moves_take_the_key_along_and_only_the_last_writers_stays(
    hosts: Hosts, server: RedisServer, record_fault: Callable[[dict[str, Any]], None]
) -> None:
    a = hosts.node(0)
    a.become("writer")
    b = hosts.node(1)
    b.become("standby")
    with Load(a, patient_client(server.url.removeprefix("unix://")), rate=RATE) as load:
        load.mark()
        for one, other, asked, method in ((a, b, a, "demote"), (b, a, a, "promote")):  # there and back, each asked of a
            load.daemon = other
            asked.call(method)
            other.become("writer")
            one.become("standby")
            until(lambda: hosts.keys() == [key_of(other)] * 2, lambda: f"only the writer has a key: {hosts.keys()}")  # noqa: B023
            load.wait_more(MORE)
        load.finish()
    b.stop()  # first: it would take over from a writer that stops
    a.stop()
    assert hosts.keys() == [key_of(a)] * 2, "a reservation once held is only taken: the last writer's stays, and nobody else's key does"
    with Oracle(hosts.reader) as oracle:
        oracle.assert_holds(load.counts)
    record_fault({"fault": "planned moves between two hosts, there and back", "lost": oracle.lost(load.counts), **load.measured()})


def test_a_path_that_is_added_later_gets_the_key(hosts: Hosts, server: RedisServer, record_fault: Callable[[dict[str, Any]], None]) -> None:
    hosts.maps[0].use(hosts.disks[:1])
    a = hosts.node(0)
    a.become("writer")
    assert hosts.keys() == [key_of(a)]
    with Load(a, patient_client(server.url.removeprefix("unix://")), rate=RATE) as load:
        load.mark()
        hosts.maps[0].use(hosts.disks[:2])  # round robin: every other write goes by the new path
        until(lambda: hosts.keys() == [key_of(a)] * 2, lambda: f"the key is on both paths: {hosts.keys()}\n{a.log()[-2000:]}")
        load.wait_more(3 * MORE)
        load.finish()
        load.assert_answered()
    assert a.stop() == 0
    with Oracle(hosts.reader) as oracle:
        oracle.assert_holds(load.counts)
    record_fault({"fault": "path added under a reservation", "lost": oracle.lost(load.counts), **load.measured()})


@pytest.mark.parametrize("what", ["scsi_debug", "ramdisk"])
def test_a_device_without_reservations_is_refused_with_the_reason(folder: Path, server: RedisServer, what: str) -> None:
    with ScsiDebug(64) as lun:
        if what == "ramdisk":
            load_modules("brd")
        device = "/dev/ram0" if what == "ramdisk" else f"/dev/{lun.disks[0]}"
        daemon: Daemon = Node(folder, "a", server.url, device, is_first=True)
        daemon.start(wait=False)
        daemon.wait_end(ExitStatus.CONFIG)
        assert "persistent reservations" in daemon.log() and device in daemon.log(), daemon.log()[-1000:]
    if what == "ramdisk":
        sh("modprobe", "-r", "brd")

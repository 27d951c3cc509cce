"""Fencing over real Fibre Channel: two ports as two hosts, each its own initiator to the array, one LUN."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import RedisServer

from hdad.log.create import format_log
from hdad.log.geometry import UNIT
from hdad.log.signatures import PROBE_BYTES
from tests.vm.fcoe import CABLES, Fabric
from tests.vm.load import Load, Oracle
from tests.vm.nodes import RATE, Node, fence
from tests.vm.proof import patient_client

pytestmark = pytest.mark.guest("fc")


@pytest.fixture
def pair(folder: Path, server: RedisServer, fabric: Fabric) -> Iterator[list[Node]]:
    """Host a on the port of cable a, host b on that of cable b."""
    disks = [f"/dev/{fabric.disks[cable]}" for cable in CABLES]
    with open(disks[0], "r+b") as lun:  # other tests of this VM may have left their log
        lun.write(bytes(PROBE_BYTES))
        lun.seek(-4 * UNIT, os.SEEK_END)
        lun.write(bytes(4 * UNIT))
    format_log(disks[0])
    nodes = [Node(folder, name, server.url, disk) for name, disk in zip("ab", disks, strict=True)]
    yield nodes
    for node in nodes:
        node.close()


def test_a_frozen_writer_is_fenced_over_fibre_channel(
    pair: list[Node], server: RedisServer, fabric: Fabric, record_fault: Callable[[dict[str, Any]], None]
) -> None:
    a, b = pair
    a.start()
    a.become("writer")
    b.start()
    b.become("standby")
    # The log is followed from its first entry on by the second initiator, b's port.
    with Load(a, patient_client(server.url.removeprefix("unix://")), rate=RATE) as load, Oracle(b.device) as oracle:
        row = fence(a, b, load, oracle)
        load.finish()
    b.verify()
    record_fault({**row, "fault": f"Fibre Channel: {row['fault']}", "fc_hosts_online": fabric.online()})

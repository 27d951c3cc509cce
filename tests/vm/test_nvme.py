"""NVMe over Fabrics: a log on a namespace with two paths over TCP, one of which is lost under full load; and no reservations there.

Debian's kernel has no reservations in its NVMe target (they came with Linux 6.13), so what can be shown here is that hdad says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import RedisServer

from hdad.errors import ExitStatus
from tests.vm.kernel import until
from tests.vm.load import Oracle, alarm
from tests.vm.nodes import Node
from tests.vm.nvme import Namespace
from tests.vm.proof import Bench

pytestmark = pytest.mark.guest("lio")
TOLD_S = 10.0


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace() as made:
        yield made


def test_a_path_over_tcp_is_lost_under_full_load_and_comes_back(bench: Bench, namespace: Namespace) -> None:
    daemon = bench.daemon(namespace.path)
    with bench.load(daemon) as load, Oracle(namespace.path) as oracle:
        for index in (0, 1):
            with bench.fault(load, oracle, f"NVMe over TCP: path {index + 1} of 2 lost, comes back"):
                namespace.pull(index)
                load.wait_status(lambda status: alarm(status, "paths:last-path"), "status tells that one path is left", TOLD_S)
                load.wait_more(2_000)
                namespace.put_back(index)
                until(lambda: namespace.states() == ["live", "live"], lambda: f"both paths are live: {namespace.states()}")
                load.wait_more(1_000)
        assert daemon.log().count("writer started") == 1, "no lost path reaches the writer"
        bench.prove(load, oracle)


def test_a_namespace_without_reservations_is_refused_with_the_reason(folder: Path, server: RedisServer, namespace: Namespace) -> None:
    daemon = Node(folder, "a", server.url, namespace.path, is_first=True)
    daemon.start(wait=False)
    daemon.wait_end(ExitStatus.CONFIG)
    assert "persistent reservations" in daemon.log() and namespace.path in daemon.log(), daemon.log()[-1000:]

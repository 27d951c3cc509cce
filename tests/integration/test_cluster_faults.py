"""Three hosts and more, one log, under load: hosts killed and frozen for longer than every timeout, links cut, Redis restarted, the log
moved, at random and on top of each other. At the end everything is there once, in order, and the log is sound.

    HDAD_CLUSTER_FAULTS=200 pytest tests/integration/test_cluster_faults.py -k random     # so many faults (a few by default)
    HDAD_CLUSTER_SEED=7                                                                     # which ones
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hdad.errors import ExitStatus
from tests.cluster_demo import proof
from tests.harness import wait_until
from tests.hosts import TAKEOVER_MS, Cluster, Host, why_no_namespaces
from tests.traffic import Producer

pytestmark = [pytest.mark.integration, pytest.mark.device, pytest.mark.slow, pytest.mark.chaos]
FAULTS = int(os.environ.get("HDAD_CLUSTER_FAULTS", "12"))
SEED = int(os.environ.get("HDAD_CLUSTER_SEED", "1"))
STREAMS = [f"s:{number}" for number in range(8)]
FROZEN_S = 2.5 * TAKEOVER_MS / 1000  # longer than takeover, silence and every other timeout here

if reason := why_no_namespaces():
    pytest.skip(f"SKIPPED: {reason}", allow_module_level=True)


@pytest.fixture
def cluster(folder: Path) -> Iterator[Cluster]:
    """Three hosts with the device, one without."""
    with Cluster(folder, "abc", "d", size=768 << 20) as made:
        for host in made.hosts.values():
            host.start(wait=False)
        made.writer()
        yield made


class Faults:
    """What happens to the cluster, and how it ends."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self._cluster, self._rng = cluster, rng
        self.counts: dict[str, int] = {}
        self._frozen: list[tuple[float, Host]] = []
        self._cut: list[tuple[float, Host]] = []

    def one(self) -> None:
        kinds: list[Callable[[], str]] = [self.kill, self.kill, self.freeze, self.freeze, self.cut, self.restart_redis, self.move]
        what = self._rng.choice(kinds)()
        self.counts[what] = self.counts.get(what, 0) + 1

    def _victim(self) -> Host:
        """The writer's host more often than not."""
        writers = [host for host in self._cluster.attached if host.role == "writer"]
        if writers and self._rng.random() < 0.6:
            return writers[0]
        return self._rng.choice(list(self._cluster.hosts.values()))

    def kill(self) -> str:
        host = self._victim()
        self._thaw(host)
        host.kill()
        host.start(wait=False)
        return "killed"

    def freeze(self) -> str:
        host = self._victim()
        if any(frozen is host for _, frozen in self._frozen) or not host.is_running:
            return "nothing"
        host.freeze()
        self._frozen.append((time.monotonic() + self._rng.choice((0.3, 1.0, FROZEN_S)), host))
        return "frozen"

    def cut(self) -> str:
        host = self._victim()
        self._cluster.network.cut(host.name)
        self._cut.append((time.monotonic() + self._rng.uniform(0.2, FROZEN_S), host))
        return "cut off"

    def restart_redis(self) -> str:
        self._cluster.network.server.kill()
        self._cluster.network.server.start()
        return "Redis restarted"

    def move(self) -> str:
        host = self._rng.choice(self._cluster.attached)
        if host.is_running and host.role == "standby":
            host.call("promote")
            return "moved"
        return "nothing"

    def mend(self, *, everything: bool = False) -> None:
        """Thaw and mend what is due, and start what has ended."""
        now = time.monotonic()
        for due, host in list(self._frozen):
            if everything or due <= now:
                self._thaw(host)
        for due, host in list(self._cut):
            if everything or due <= now:
                self._cut.remove((due, host))
                if not any(other is host for _, other in self._cut):
                    self._cluster.network.mend(host.name)
        for host in self._cluster.hosts.values():
            if not host.is_running:
                assert host.process is not None
                assert host.process.returncode in (ExitStatus.FENCED, -9), f"{host.name}: {host.process.returncode}:\n{host.log()[-3000:]}"
                self.counts["fenced"] = self.counts.get("fenced", 0) + (host.process.returncode == ExitStatus.FENCED)
                host.start(wait=False)

    def _thaw(self, host: Host) -> None:
        self._frozen = [(due, frozen) for due, frozen in self._frozen if frozen is not host]
        if host.is_running:
            host.thaw()


def durable(cluster: Cluster) -> int:
    """Entries that the writer calls durable; 0 while there is none."""
    for host in cluster.attached:
        status = host.try_status() if host.role == "writer" else None
        if status is not None:
            return int(status["totals"]["entries"])
    return 0


def test_after_random_faults_everything_is_there_once_and_in_order(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(SEED)
    faults = Faults(cluster, rng)
    with Producer(cluster.network.server.path, STREAMS, 1000) as producer:
        wait_until(lambda: durable(cluster) > 0, "entries flow")
        for _ in range(FAULTS):
            faults.one()
            until = time.monotonic() + rng.choice((0.1, 0.5, 1.5, 4.0))
            while time.monotonic() < until:
                faults.mend()
                time.sleep(0.05)  # not a wait: so long the faults last, and so often what may be mended is looked at
        faults.mend(everything=True)
        producer.stop()
        wait_until(
            lambda: faults.mend() or durable(cluster) >= producer.total,
            lambda: f"everything is durable: {durable(cluster)} of {producer.total}; {[(h.name, h.role) for h in cluster.hosts.values()]}",
            120,
        )
        writer = cluster.writer()
        writer.wait_entries(producer.total)
    device = writer.device
    for host in (*cluster.remote, *(host for host in cluster.attached if host is not writer), writer):
        host.kill()
    result = proof(device, producer.added)
    with capsys.disabled():
        print(f"\nseed {SEED}, {FAULTS} faults: {faults.counts}; {result}")
    assert result["verified"] and result["committed"] == result["added"]
    assert not (result["lost"] or result["duplicates"] or result["out_of_order"]), result

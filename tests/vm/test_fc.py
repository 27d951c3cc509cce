"""Real Fibre Channel: two ports, two fabrics, one LUN under multipathd. Cables are pulled under full load, and put back.

They are pulled between two commands: device-mapper holds hdad's writes back for that instant (see fcoe).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner
from harness import Daemon

from hdad.cli.hdactl import cli
from tests.vm.fcoe import CABLES, DEV_LOSS_S, FAST_FAIL_S, Fabric
from tests.vm.forward import are_pages_wanted, keep_page
from tests.vm.kernel import sh, until
from tests.vm.load import Load, Oracle, alarm
from tests.vm.multipath import Multipathd
from tests.vm.proof import Bench

pytestmark = pytest.mark.guest("fc")
TIMEOUTS = f"fast_io_fail_tmo {FAST_FAIL_S}\n    dev_loss_tmo {DEV_LOSS_S}"
TOLD_S = 30.0


class Ride(NamedTuple):
    """A daemon under load on the map of both paths."""

    bench: Bench
    fabric: Fabric
    multipathd: Multipathd
    daemon: Daemon
    load: Load
    oracle: Oracle

    def fault(self, name: str) -> Any:
        return self.bench.fault(self.load, self.oracle, name, fc_hosts_online=self.fabric.online())

    def pull(self, *cables: str) -> None:
        sh("dmsetup", "suspend", "--nolockfs", self.multipathd.name)
        try:
            for cable in cables:
                self.fabric.pull(cable)
            until(lambda: not any(map(self.fabric.is_linked, cables)), "the ports notice")
        finally:
            sh("dmsetup", "resume", self.multipathd.name)

    def put_back(self, *cables: str) -> None:
        for cable in cables:
            self.fabric.put_back(cable)
        until(lambda: all(map(self.fabric.is_up, cables)), "the ports are online and their disks run")
        self.multipathd.wait_ready(2)

    def hdactl(self, *words: str) -> str:
        """A page of hdactl's, as an operator sees it. In this process: another Python takes long to start in an emulated machine."""
        return CliRunner(env={"COLUMNS": "190"}).invoke(cli, ["--socket", self.daemon.socket, *words]).output

    def paths(self, name: str) -> str:
        page = self.hdactl("paths", self.multipathd.path)
        keep_page(name, page)
        return page


@pytest.fixture(scope="module")
def riding(make_bench: Any, fabric: Fabric) -> Iterator[Ride]:
    with make_bench() as bench, Multipathd(bench.folder, no_path_retry="600", more=TIMEOUTS) as multipathd:
        daemon = bench.daemon(multipathd.path)
        with bench.load(daemon) as load, Oracle(multipathd.path) as oracle:
            yield Ride(bench, fabric, multipathd, daemon, load, oracle)
        assert daemon.log().count("writer started") == 1, "no cut reaches the writer"


@pytest.fixture
def ride(riding: Ride, record_fault: Any) -> Ride:
    riding.bench.record = record_fault
    return riding


def test_a_log_on_fibre_channel_takes_full_load_and_paths_shows_the_fabric(ride: Ride) -> None:
    assert ride.fabric.online() == 2
    with ride.fault("Fibre Channel, no fault"):
        ride.load.wait_more(5_000)
        page = ride.paths("paths-good")
        for cable in CABLES:
            assert ride.fabric.disks[cable] in page
        assert page.count("Online") >= 2 and "fcoe" in page, page


@pytest.mark.parametrize("cable", CABLES)
def test_a_link_cut_under_full_load_fails_over_and_comes_back(ride: Ride, cable: str) -> None:
    with ride.fault(f"Fibre Channel: cable {cable} pulled, put back"):
        ride.pull(cable)
        found = ride.load.wait_status(lambda status: alarm(status, "paths:last-path"), "status tells that one path is left", TOLD_S)
        assert found.status["paths"]["conditions"][ride.fabric.disks[cable]] != "active"
        ride.load.wait_more(2_000)
        page = ride.paths(f"paths-cut-{cable}")
        if cable == CABLES[0] and are_pages_wanted():  # it reads the log, which takes two minutes here
            keep_page("doctor-cut", ride.hdactl("doctor", "-c", str(ride.daemon.config_path)))
        assert "Linkdown" in page, page
        ride.put_back(cable)
        ride.load.wait_more(2_000)


def test_both_links_cut_stall_and_nothing_else(ride: Ride) -> None:
    with ride.fault("Fibre Channel: both cables pulled, put back"):
        ride.pull(*CABLES)
        ride.load.wait_status(lambda status: alarm(status, "paths:all-paths-down"), "status tells that no path is left", TOLD_S)
        ride.load.wait_status(lambda status: alarm(status, "device"), "and since when a write waits", TOLD_S)
        ride.paths("paths-all-down")
        keep_page("status-all-down", ride.hdactl("status"))
        ride.put_back(*CABLES)
        ride.load.wait_more(2_000)


def test_after_all_of_this_the_log_is_what_was_added(ride: Ride) -> None:
    ride.bench.prove(ride.load, ride.oracle)

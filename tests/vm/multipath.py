"""LUNs with several paths in the VM: scsi_debug's, and dm-multipath over any, by plain dmsetup or by the real multipathd."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from tests.vm.kernel import get, load, put, sh, until

SETTLE_S: Final = 60.0
DRIVER: Final = Path("/sys/bus/pseudo/drivers/scsi_debug")
PARAMETERS: Final = Path("/sys/module/scsi_debug/parameters")
# "overrides": over what multipath-tools know of a product, too; for LIO they would fail writes after 12 checks without a path.
MULTIPATH_CONF: Final = """
defaults {{
    find_multipaths no
    user_friendly_names yes
    polling_interval 1
    max_polling_interval 1
    path_checker tur
    path_grouping_policy failover
    failback immediate
}}
overrides {{
    no_path_retry {no_path_retry}
    {more}
}}
"""


class ScsiDebug:
    """A ramdisk behind two SCSI hosts: one LUN, two paths, named in ``disks``. ``size_mib``; blocks of ``block`` bytes."""

    def __init__(self, size_mib: int = 192, block: int = 4096, **options: object) -> None:
        load("sd_mod")
        words = {
            "dev_size_mb": size_mib, "sector_size": block, "add_host": 2, "num_tgts": 1, "max_luns": 1, "vpd_use_hostno": 0, "delay": 0,
            **options,
        }  # fmt: skip
        before = {path.name for path in Path("/sys/block").glob("sd*")}
        sh("modprobe", "scsi_debug", *(f"{name}={value}" for name, value in words.items()))
        self.disks: list[str] = until(lambda: self._appeared(before), "two paths of one LUN appear")

    def _appeared(self, before: set[str]) -> list[str] | None:
        found = sorted({path.name for path in Path("/sys/block").glob("sd*")} - before)
        if len(found) < 2 or not all(Path("/dev", name).exists() for name in found):  # disks are probed aside
            return None
        assert len({get(f"/sys/block/{name}/device/wwid") for name in found}) == 1, "both are the same LUN"
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(AssertionError):  # not where another test has failed with the device still in use
            until(lambda: "FATAL" not in sh("modprobe", "-r", "scsi_debug", check=False), "scsi_debug is unloaded", 20)

    def offline(self, *indexes: int) -> None:
        """Cut these paths: what is sent fails at once."""
        for index in indexes or range(len(self.disks)):
            put(f"/sys/block/{self.disks[index]}/device/state", "offline")

    def online(self, *indexes: int) -> None:
        """Join them again."""
        for index in indexes or range(len(self.disks)):
            put(f"/sys/block/{self.disks[index]}/device/state", "running")

    def set(self, name: str, value: object) -> None:
        """A setting of the driver while it runs: opts, every_nth, ndelay, virtual_gb …"""
        put(DRIVER / name if (DRIVER / name).exists() else PARAMETERS / name, value)

    def timeout(self, seconds: int) -> None:
        """After how long the kernel gives a command up, on each path."""
        for name in self.disks:
            put(f"/sys/block/{name}/device/timeout", seconds)


class Map:
    """A multipath map made by dmsetup, one priority group per path. No daemon brings paths back: ``reinstate`` does."""

    def __init__(self, name: str, disks: Sequence[str], *, queueing: bool = False, groups: bool = True) -> None:
        load("dm_multipath", "dm_round_robin")
        os.environ["DM_DISABLE_UDEV"] = "1"  # without udevd, dmsetup makes the nodes itself
        self.name = name
        self.path = f"/dev/mapper/{name}"
        self.numbers = [get(f"/sys/block/{disk}/dev") for disk in disks]
        self._queueing, self._groups = queueing, groups
        self.sectors = int(get(f"/sys/block/{disks[0]}/size"))
        uuid = f"mpath-{get(f'/sys/block/{disks[0]}/device/wwid')}-{name}"  # as multipathd does: by this a map is known as multipath
        sh("dmsetup", "create", name, "--uuid", uuid, "--table", self.table(self.sectors))
        number = sh("dmsetup", "info", "-c", "--noheadings", "-o", "devno", name)
        put(f"/sys/dev/block/{number}/queue/scheduler", "none")  # mq-deadline warns when such a map goes (kernel 6.1)

    def table(self, sectors: int) -> str:
        """The map's line for a LUN of so many sectors of 512 bytes."""
        features = "1 queue_if_no_path" if self._queueing else "0"
        if self._groups:
            paths = " ".join(f"round-robin 0 1 1 {number} 1" for number in self.numbers)
            return f"0 {sectors} multipath {features} 0 {len(self.numbers)} 1 {paths}"
        paths = " ".join(f"{number} 1" for number in self.numbers)
        return f"0 {sectors} multipath {features} 0 1 1 round-robin 0 {len(self.numbers)} 1 {paths}"

    @contextmanager
    def suspended(self, *, flush: bool = True) -> Iterator[None]:
        """Meanwhile nothing goes to the paths; with ``flush`` what was on its way has ended."""
        sh("dmsetup", "suspend", "--nolockfs", *([] if flush else ["--noflush"]), self.name)
        try:
            yield
        finally:
            sh("dmsetup", "resume", self.name)

    def resize(self, sectors: int) -> None:
        """What an administrator does after the LUN has another size."""
        with self.suspended(flush=False):
            sh("dmsetup", "load", self.name, "--table", self.table(sectors))

    def use(self, disks: Sequence[str]) -> None:
        """These paths from now on, as multipathd does when one appears or goes."""
        self.numbers = [get(f"/sys/block/{disk}/dev") for disk in disks]
        self.resize(self.sectors)

    def message(self, text: str) -> None:
        """Tell the kernel's multipath target."""
        sh("dmsetup", "message", self.name, "0", *text.split())

    def reinstate(self, *indexes: int) -> None:
        """Use these paths again."""
        for index in indexes or range(len(self.numbers)):
            self.message(f"reinstate_path {self.numbers[index]}")

    def fail(self, *indexes: int) -> None:
        """Stop using these paths."""
        for index in indexes or range(len(self.numbers)):
            self.message(f"fail_path {self.numbers[index]}")

    def states(self) -> list[bool]:
        """Of each path, whether the kernel uses it."""
        words = sh("dmsetup", "status", self.name).split()
        return [words[words.index(number) + 1] == "A" for number in self.numbers]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(AssertionError):  # held by what a failed test left
            self.message("fail_if_no_path")
            until(lambda: "busy" not in sh("dmsetup", "remove", self.name, check=False), f"map {self.name} is removed", 20)


class Multipathd:
    """udevd and multipathd, as on a host with a SAN. ``path`` is the map of the one LUN that is there."""

    def __init__(self, folder: Path, paths: int = 2, no_path_retry: str = "queue", more: str = "") -> None:
        os.environ.pop("DM_DISABLE_UDEV", None)
        load("dm_multipath", "dm_round_robin", "dm_service_time")
        Path("/etc/multipath").mkdir(exist_ok=True)
        Path("/etc/multipath.conf").write_text(MULTIPATH_CONF.format(no_path_retry=no_path_retry, more=more))
        self._log = folder / "multipathd.log"
        udevd = next(path for path in ("/lib/systemd/systemd-udevd", "/usr/bin/udevadm") if Path(path).exists())
        with self._log.open("w") as log:
            self._udevd = subprocess.Popen([udevd], stdout=log, stderr=log)
            until(lambda: Path("/run/udev/control").exists(), "udevd is up")
            sh("udevadm", "trigger", "--subsystem-match=block", "--action=add")
            sh("udevadm", "settle", "-t", "30")
            self._multipathd = subprocess.Popen(["multipathd", "-d", "-s"], stdout=log, stderr=log)
        self.name = "mpatha"
        self.path = f"/dev/mapper/{self.name}"
        until(lambda: Path(self.path).exists(), self._said, SETTLE_S)
        self.wait_ready(paths)

    def _said(self) -> str:
        return f"multipathd: {self._log.read_text()[-2000:]}"

    def show(self, *words: str) -> str:
        """One question to multipathd."""
        return sh("multipathd", *words, check=False)

    def ready(self) -> int:
        """How many paths are used and found good by its checker."""
        return self.show("show", "paths", "format", "%d %t %T").count("active ready")

    def wait_ready(self, count: int) -> None:
        """Until so many paths are."""
        until(lambda: self.ready() == count, lambda: f"{count} paths are ready: {self.show('show', 'topology')}", SETTLE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # multipathd's words, not dmsetup's: it undoes what it did not do itself.
        self.show("disablequeueing", "map", self.name)
        with suppress(AssertionError):
            until(lambda: self.show("del", "map", self.name).endswith("ok"), self._said, 20)  # udev may still be probing it
        self._multipathd.terminate()
        self._multipathd.wait(20)
        self._udevd.terminate()
        self._udevd.wait(20)

"""A disk array inside the kernel (LIO) in the VM: one LUN, offered to SCSI hosts of the same kernel (tcm_loop) or over Fibre Channel."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from tests.vm.kernel import get, load, mount_configfs, put, sh, until

SERIAL: Final = "hdad-vm-lun-1"


class Array:
    """One LUN in memory. It has persistent reservations, as an array has."""

    def __init__(self, size_mib: int = 192, block: int = 512) -> None:
        # PR_REGISTER asks for "through power loss"; without this folder, made before the module is loaded, LIO refuses it.
        for folder in ("/var/target/pr", "/etc/target/pr"):
            Path(folder).mkdir(parents=True, exist_ok=True)
        load("sd_mod", "sg", "target_core_mod")
        self.root = mount_configfs() / "target"
        self.lun = self.root / "core/rd_mcp_0/lun0"
        self.lun.mkdir(parents=True)
        put(self.lun / "control", f"rd_pages={size_mib << 8}")
        put(self.lun / "enable", 1)
        put(self.lun / "wwn/vpd_unit_serial", SERIAL)
        put(self.lun / "attrib/block_size", block)
        self._made: list[Path] = []

    def offer(self, portal_group: Path) -> None:
        """The LUN through this portal group."""
        (portal_group / "lun/lun_0").mkdir(parents=True)
        (portal_group / "lun/lun_0/array").symlink_to(self.lun)

    def hosts(self, count: int) -> list[str]:
        """Names of disks: the LUN seen by so many SCSI hosts of this kernel, each an initiator of its own."""
        load("tcm_loop")
        addresses = []
        first = len(self._made) + 1
        for index in range(first, first + count):
            target = self.root / f"loopback/naa.50014050000000{index:02x}"
            group = target / "tpgt_1"
            group.mkdir(parents=True)
            put(group / "nexus", f"naa.50014050000001{index:02x}")
            self.offer(group)
            addresses.append(get(group / "address"))
            self._made.append(target)
        found: list[str] = until(lambda: _disks_at(addresses), f"disks at {addresses} appear")
        return found

    def keys(self, disk: str) -> list[int]:
        """All registered keys, one per path and host, as sg_persist reads them."""
        lines = sh("sg_persist", "-n", "-i", "-k", f"/dev/{disk}", check=False).splitlines()
        return sorted(int(line, 16) for line in map(str.strip, lines) if line.startswith("0x"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # in use by what a failed test left
            for target in self._made:
                group = target / "tpgt_1"
                (group / "lun/lun_0/array").unlink()
                (group / "lun/lun_0").rmdir()
                put(group / "nexus", "NULL")
                group.rmdir()
                target.rmdir()
            self.lun.rmdir()


def _disks_at(addresses: Sequence[str]) -> list[str] | None:
    found = []
    for address in addresses:
        blocks = Path(f"/sys/bus/scsi/devices/{address}:0/block")
        names = os.listdir(blocks) if blocks.exists() else []
        if not names or not Path("/dev", names[0]).exists():
            return None
        found.append(names[0])
    return found

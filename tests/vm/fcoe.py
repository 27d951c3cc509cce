"""Real Fibre Channel without hardware, in the VM: Linux' libfc over Ethernet (FCoE, VN2VN: two ports face to face), LIO's tcm_fc as target.

Two cables (veth pairs), a and b, are the two fabrics of a SAN; this host has the ports ia and ib, the array ta and tb. Both live in one
kernel, so a cable is pulled between two commands (``test_fc``): a write whose data are on their way when the link goes never ends in tcm_fc
(kernel 6.1), and the initiator hangs with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.vm.kernel import get, load, put, sh, until
from tests.vm.lio import Array

CREATE: Final = "/sys/module/libfcoe/parameters/create_vn2vn"
HOSTS: Final = Path("/sys/class/fc_host")
CABLES: Final = ("a", "b")
APPEARS_S: Final = 120.0
DEV_LOSS_S: Final = 600
FAST_FAIL_S: Final = 1  # as multipath.conf has it: a lost link is an error within about a second


def _mac(end: str) -> str:
    return f"02:00:00:00:0{end[1]}:0{'it'.index(end[0]) + 1}"


def port_name(end: str) -> str:
    """WWPN of ``ia``, ``ib``, ``ta`` or ``tb``, with colons: software FCoE makes it of the interface's address."""
    return f"20:00:{_mac(end)}"


class Fabric:
    """Both cables, the array's LUN on both of its ports, and this host's ports. ``disks``: cable → sdX, once both are there."""

    def __init__(self) -> None:
        load("veth", "sd_mod", "sg", "fcoe", "target_core_mod", "tcm_fc")
        self.array = Array(size_mib=256)
        ends = [f"{side}{cable}" for cable in CABLES for side in "ti"]
        for cable in CABLES:
            sh("ip", "link", "add", f"i{cable}", "type", "veth", "peer", "name", f"t{cable}")
            self._export(cable)
        for end in ends:
            sh("ip", "link", "set", end, "address", _mac(end), "mtu", "2500")  # a frame takes 2148 bytes
        # All ports first, then the links: a frame that reaches a half-made port is a null pointer in the kernel (6.1).
        for end in ends:
            put(CREATE, end, end="")
        for end in ends:
            sh("ip", "link", "set", end, "up")
        self.disks: dict[str, str] = until(self._disks, self._said, APPEARS_S)
        for port in Path("/sys/class/fc_remote_ports").iterdir():  # the array's side too: what it forgets, it does not always let in again
            put(port / "dev_loss_tmo", DEV_LOSS_S)
            put(port / "fast_io_fail_tmo", FAST_FAIL_S)

    def _export(self, cable: str) -> None:
        group = self.array.root / f"fc/{port_name(f't{cable}')}/tpgt_1"
        self.array.offer(group)
        rights = group / "acls" / port_name(f"i{cable}")  # tcm_fc serves nobody who is not named
        (rights / "lun_0").mkdir(parents=True)
        (rights / "lun_0/lun").symlink_to(group / "lun/lun_0")

    def host(self, cable: str) -> Path:
        """Folder of this host's port in /sys/class/fc_host."""
        return next(host for host in HOSTS.iterdir() if get(host / "symbolic_name").split()[-1] == f"i{cable}")

    def _disks(self) -> dict[str, str] | None:
        found = {}
        for cable in CABLES:
            paths = list((self.host(cable) / "device").glob("rport-*/target*/*/block/sd*"))
            if not paths or not Path("/dev", paths[0].name).exists():
                return None
            found[cable] = paths[0].name
        return found

    def _said(self) -> str:
        return f"a disk on each port; {[get(host / 'port_state') for host in HOSTS.iterdir()]}\n{sh('dmesg')[-2000:]}"

    def online(self) -> int:
        """How many of this host's ports are online."""
        return sum(self.is_linked(cable) for cable in CABLES)

    def is_linked(self, cable: str) -> bool:
        """The port is online."""
        return get(self.host(cable) / "port_state") == "Online"

    def is_up(self, cable: str) -> bool:
        """So it is, and its disk takes commands."""
        return self.is_linked(cable) and get(f"/sys/block/{self.disks[cable]}/device/state") == "running"

    def pull(self, cable: str) -> None:
        """The array's end goes down, and with it the link at ours."""
        sh("ip", "link", "set", f"t{cable}", "down")

    def put_back(self, cable: str) -> None:
        """The link is there again."""
        sh("ip", "link", "set", f"t{cable}", "up")

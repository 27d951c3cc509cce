"""NVMe over Fabrics in the VM: a subsystem of the kernel's own target (nvmet) on a ramdisk, reached over TCP on loopback by two ports.

The host side is the kernel's native multipath: one namespace, a path for each port. Runs in the VM.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Self

from tests.vm.kernel import get, load, mount_configfs, put, sh, until

NQN: Final = "nqn.2026-01.example:hdad"
FIRST_PORT: Final = 4420
RECONNECT_S: Final = 1
GIVE_UP_S: Final = 600


class Namespace:
    """One namespace behind two ports. ``path``: its device. A context: leaving it takes all of it away."""

    def __init__(self, size_mib: int = 256) -> None:
        sh("modprobe", "brd", "rd_nr=1", f"rd_size={size_mib << 10}")
        load("nvmet", "nvmet-tcp", "nvme-fabrics", "nvme-tcp")
        self._root = mount_configfs() / "nvmet"
        self._subsystem = self._root / "subsystems" / NQN
        self._subsystem.mkdir()
        put(self._subsystem / "attr_allow_any_host", 1)
        space = self._subsystem / "namespaces/1"
        space.mkdir()
        put(space / "device_path", "/dev/ram0", end="")
        put(space / "enable", 1)
        self._ports = [self._root / "ports" / str(number) for number in (1, 2)]
        for index, port in enumerate(self._ports):
            port.mkdir()
            for name, value in (("trtype", "tcp"), ("adrfam", "ipv4"), ("traddr", "127.0.0.1"), ("trsvcid", FIRST_PORT + index)):
                put(port / f"addr_{name}", value, end="")
            self.put_back(index)
            put("/dev/nvme-fabrics", ",".join((
                f"transport=tcp,nqn={NQN},traddr=127.0.0.1,trsvcid={FIRST_PORT + index}",
                f"reconnect_delay={RECONNECT_S},ctrl_loss_tmo={GIVE_UP_S},nr_io_queues=2",
            )), end="")  # fmt: skip
        self.path: str = until(self._appeared, lambda: f"a namespace with two live paths; {self.states()}\n{sh('dmesg')[-2000:]}")

    def _controllers(self) -> list[Path]:
        return sorted(path for path in Path("/sys/class/nvme").glob("nvme*") if get(path / "subsysnqn") == NQN)

    def _appeared(self) -> str:
        heads = [path.name for path in Path("/sys/block").glob("nvme*") if re.fullmatch(r"nvme\d+n\d+", path.name)]
        return f"/dev/{heads[0]}" if heads and Path("/dev", heads[0]).exists() and self.states() == ["live", "live"] else ""

    def states(self) -> list[str]:
        """Of each controller, by port."""
        return [get(path / "state") for path in self._controllers()]

    def pull(self, index: int) -> None:
        """This port serves no more: its controller loses its connection, and is refused until it is put back."""
        (self._ports[index] / "subsystems" / NQN).unlink()

    def put_back(self, index: int) -> None:
        """The port serves; the host comes back by itself."""
        (self._ports[index] / "subsystems" / NQN).symlink_to(self._subsystem)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for controller in self._controllers():
            put(controller / "delete_controller", 1)
        for port in self._ports:
            (port / "subsystems" / NQN).unlink(missing_ok=True)
            port.rmdir()
        put(self._subsystem / "namespaces/1/enable", 0)
        (self._subsystem / "namespaces/1").rmdir()
        self._subsystem.rmdir()
        sh("modprobe", "-r", "brd")

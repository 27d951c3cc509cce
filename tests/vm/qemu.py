"""One VM: a QEMU process on the host's own root, with a command to run in it, its disks, its network cards, and its power switch.

Runs on the host. The guest sees the host's files read-only under a tmpfs; what it writes is gone with it, except under ``/mnt/out``, which
is ``Machine.out`` on the host, and on its disks. There is no network but the cards given.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from tests.vm.packages import CannotBootError, Parts, prepare

BOOT_S: Final = 180.0  # measured: 3 s emulated on an idle machine, 12 s beside two busy neighbours
STOP_S: Final = 10.0
CPUS: Final = 1  # measured, emulated: two take more of the host for the same work, and longer beside another VM
EMULATED_CPU: Final = "Nehalem"  # measured: of newer ones the kernel copies memory by an instruction that is emulated byte for byte
EXIT_PORT: Final = "isa-debug-exit,iobase=0xf4,iosize=1"
SPEED: Final = "speed=10000,duplex=full"  # what the guest's port is told; Fibre Channel shows it as its own
START: Final = r"""export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=${{TERM:-dumb}}
ip link set lo up
ulimit -c 0
echo "VM: started at $(cut -d' ' -f1 /proc/uptime)"
: >/mnt/out/started
cd {directory}
{environment}{command}
status=$?
echo "VM: status $status at $(cut -d' ' -f1 /proc/uptime)"
echo $status >/mnt/out/status
printf x | dd of=/dev/port bs=1 seek=244 2>/dev/null # QEMU ends here (isa-debug-exit)
echo o >/proc/sysrq-trigger
sleep 10
"""


class Disk(NamedTuple):
    """A virtio disk, /dev/vda and so on. ``cache``: QEMU's word: none, writeback, unsafe …"""

    image: Path
    cache: str = "none"
    block_size: int = 512


class Nic(NamedTuple):
    """A virtio network card on a Unix socket that joins two VMs. ``name`` is for ``Machine.plug``. One end of two listens."""

    name: str
    path: Path
    mac: str
    listens: bool = False
    mtu: int = 2500


def usable_kvm() -> bool:
    """Whether KVM may work. /dev/kvm alone proves nothing: a guest of another hypervisor may have it and no vmx or svm."""
    with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        flags = re.search(r"^flags\s*:(.*)", file.read(), re.MULTILINE)
    return bool(flags and {"vmx", "svm"} & set(flags[1].split())) and os.access("/dev/kvm", os.R_OK | os.W_OK)


class Machine:
    """A VM that is going to run ``command`` in this process' working directory. Use as a context: leaving it ends the VM.

    ``out`` is emptied and holds: console, status, and what the command leaves in /mnt/out. Raises CannotBootError.
    """

    broken_kvm = False  # KVM was tried by this process and does not boot

    def __init__(
        self, out: Path, command: Sequence[str], *, environment: Mapping[str, str] | None = None, memory_mib: int = 2048, cpus: int = CPUS,
        disks: Sequence[Disk] = (), nics: Sequence[Nic] = (), interactive: bool = False, parts: Parts | None = None,
    ) -> None:  # fmt: skip
        self.parts = parts or prepare()
        self.out = out
        self.command = list(command)
        self.environment = dict(environment or {})
        self.memory_mib, self.cpus = memory_mib, cpus
        self.disks, self.nics = list(disks), list(nics)
        self.interactive = interactive
        self.process: subprocess.Popen[bytes] | None = None
        self.accelerator = ""

    # -- starting ----------------------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cut_power()

    def start(self) -> None:
        """Boot, and return when the command has been started. A VM that never got there is tried once more, without KVM."""
        words = ["kvm"] if usable_kvm() and not Machine.broken_kvm else []
        why = ""
        for word in [*words, "tcg", "tcg"]:
            self.accelerator = word
            self._launch()
            deadline = time.monotonic() + (BOOT_S if word == "tcg" else BOOT_S / 3)
            while time.monotonic() < deadline and self.is_running and not (self.out / "started").exists():
                time.sleep(0.02)
            if (self.out / "started").exists():
                return
            why = f"with {word}: {'no sign of life' if self.is_running else 'QEMU ended'}: {self.console()[-500:].strip()!r}"
            Machine.broken_kvm |= word == "kvm"
            self.cut_power()
        raise CannotBootError(f"the VM does not boot {why}")

    def _launch(self) -> None:
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir(parents=True)
        environment = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in self.environment.items())
        command = shlex.join(self.command)
        if self.interactive:
            command = f"setsid -c sh -c {shlex.quote(f'exec {command} </dev/ttyS0 >/dev/ttyS0 2>&1')}"
        (self.out / "start").write_text(START.format(directory=shlex.quote(os.getcwd()), environment=environment, command=command))
        console = None if self.interactive else (self.out / "console").open("wb")
        # setpriv: no VM outlives who started it.
        self.process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", self.parts.qemu, *self._words()],
            stdin=None if self.interactive else subprocess.DEVNULL, stdout=console, stderr=console and subprocess.STDOUT,
            env={**os.environ, "LD_LIBRARY_PATH": self.parts.library_path},
        )  # fmt: skip
        if console is not None:
            console.close()

    def _words(self) -> list[str]:
        accelerator = "kvm" if self.accelerator == "kvm" else "tcg,tb-size=512"
        layer = self.parts.layer
        words = [
            *("-L", f"{layer}/usr/share/qemu", "-L", f"{layer}/usr/share/seabios", "-L", "/usr/share/qemu"),
            # q35, not microvm, which was seen to hang at boot.
            *("-M", "q35", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-accel", accelerator),
            *("-cpu", "host" if self.accelerator == "kvm" else EMULATED_CPU),
            *("-smp", str(self.cpus), "-m", str(self.memory_mib), "-device", EXIT_PORT),
            *("-serial", "mon:stdio" if self.interactive else "stdio", "-qmp", f"unix:{self.out}/qmp,server=on,wait=off"),
            *("-kernel", str(self.parts.kernel), "-initrd", str(self.parts.initrd)),
            *("-append", "console=ttyS0 panic=-1 oops=panic mitigations=off quiet loglevel=4"),
            *_share("root", Path("/"), True), *_share("layer", layer, True), *_share("out", self.out, False),
        ]  # fmt: skip
        for index, disk in enumerate(self.disks):
            words += ["-drive", f"if=none,id=disk{index},format=raw,file={disk.image},cache={disk.cache}"]
            words += ["-device", f"virtio-blk-pci,drive=disk{index},logical_block_size={disk.block_size},physical_block_size=4096"]
        for nic in self.nics:
            words += ["-netdev", f"stream,id={nic.name},server={'on' if nic.listens else 'off'},addr.type=unix,addr.path={nic.path}"]
            words += ["-device", f"virtio-net-pci,id=card-{nic.name},netdev={nic.name},mac={nic.mac},host_mtu={nic.mtu},{SPEED}"]
        return words

    # -- while it runs -----------------------------------------------------------------------------------------------------------------

    @property
    def is_running(self) -> bool:
        """True: QEMU runs."""
        return self.process is not None and self.process.poll() is None

    def console(self) -> str:
        """What the guest's console has shown."""
        path = self.out / "console"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait(self, seconds: float | None = None) -> int | None:
        """The command's exit status; None: it has none (power cut, kernel panic, or not within ``seconds``)."""
        assert self.process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        path = self.out / "status"
        return int(path.read_text()) if path.exists() and path.read_text().strip() else None

    def cut_power(self) -> None:
        """SIGKILL to QEMU: what its disks have not got they will never get."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def monitor(self, command: str, **arguments: Any) -> Any:
        """One command of QMP, QEMU's machine protocol. Its answer."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(STOP_S)
            sock.connect(str(self.out / "qmp"))
            file = sock.makefile("rw", encoding="utf-8")
            file.readline()  # its greeting
            for line in ({"execute": "qmp_capabilities"}, {"execute": command, "arguments": arguments}):
                file.write(json.dumps(line) + "\n")
                file.flush()
                answer = json.loads(file.readline())
                while "event" in answer:
                    answer = json.loads(file.readline())
                if "error" in answer:
                    raise RuntimeError(f"QEMU: {command}: {answer['error']}")
        return answer["return"]

    def plug(self, name: str, is_in: bool) -> None:
        """Pull a network card's cable, or put it back."""
        self.monitor("set_link", name=f"card-{name}", up=is_in)


def _share(tag: str, path: Path, is_read_only: bool) -> list[str]:
    options = ",readonly=on,multidevs=remap" if is_read_only else ""
    return ["-fsdev", f"local,id={tag},path={path},security_model=none{options}", "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]


def run_in_vm(argv: Sequence[str], *, seconds: float | None, memory_mib: int, interactive: bool, out: Path) -> int:
    """For people: run ``argv`` in a VM of its own, console shown. Its exit status; 200 if the VM gave none."""
    machine = Machine(out, argv, memory_mib=memory_mib, interactive=interactive)
    with machine:
        shown = 0
        deadline = time.monotonic() + seconds if seconds else None
        while machine.is_running and (deadline is None or time.monotonic() < deadline):
            if not interactive:
                shown += _show(machine, shown)
            time.sleep(0.05)
        status = machine.wait(0.1)
        if not interactive:
            _show(machine, shown)
    return 200 if status is None else status


def _show(machine: Machine, start: int) -> int:
    path = machine.out / "console"
    with path.open("rb") as file:
        file.seek(start)
        content = file.read()
    sys.stdout.buffer.write(content)
    sys.stdout.flush()
    return len(content)

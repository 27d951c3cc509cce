"""Talking to the guest's kernel: sysfs, modules, programs. Runs in the VM."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

PROGRAM_S: Final = 120.0  # a program that is longer hangs
UNTIL_S: Final = 180.0
PAUSE_S: Final = 0.2  # a look may cost a program, and programs are slow where machines are emulated
DEADLINE_S: Final = 180  # of tests/harness, in the VM
SLACK_MAX: Final = 5.0


def _slack() -> float:
    """On a host that is busy with other things time limits are so much longer. The VM is told ($HDAD_VM_SLACK)."""
    told = os.environ.get("HDAD_VM_SLACK")
    return float(told) if told else min(SLACK_MAX, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))


SLACK: Final = _slack()


def guest_environment() -> dict[str, str]:
    """What programs in the VM are to know."""
    times = {"HDAD_VM_SLACK": f"{SLACK:.2f}", "HDAD_DEADLINE_S": f"{DEADLINE_S * SLACK:g}", "HDAD_PAUSE_S": f"{PAUSE_S:g}"}
    return {**times, "PYTHONDONTWRITEBYTECODE": "1"}


def until(condition: Callable[[], Any], what: str | Callable[[], str], seconds: float = UNTIL_S) -> Any:
    """The first true value of ``condition``. Fails with ``what`` at the deadline."""
    deadline = time.monotonic() + seconds * SLACK
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds * SLACK:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(PAUSE_S)


def sh(*argv: str, check: bool = True, seconds: float = PROGRAM_S) -> str:
    """What a program says, both streams, stripped. Fails with it."""
    found = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=seconds, check=False)
    assert not check or found.returncode == 0, f"{' '.join(argv)}: status {found.returncode}: {found.stdout}"
    return found.stdout.strip()


def put(path: str | Path, value: object, end: str = "\n") -> None:
    """Write to sysfs or configfs. The end matters: a SCSI device's state wants a newline, a module's parameter may want none."""
    with open(path, "w", encoding="ascii") as file:
        file.write(f"{value}{end}")


def get(path: str | Path) -> str:
    """Read from sysfs or configfs."""
    return Path(path).read_text(encoding="ascii", errors="replace").strip()


def load(*modules: str) -> None:
    """Load modules that take no options."""
    sh("modprobe", "-a", *modules)


def mount_configfs() -> Path:
    """Where LIO and nvmet are configured."""
    root = Path("/sys/kernel/config")
    if not os.path.ismount(root):
        sh("mount", "-t", "configfs", "configfs", str(root))
    return root

"""Talking to the guest's kernel: sysfs, modules, programs. Runs in the VM."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

PROGRAM_S = 60.0  # a program that is longer hangs


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

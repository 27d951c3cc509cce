"""The way into the VM itself: what holds in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest


def test_the_vm_has_another_kernel_than_the_host_and_the_hosts_files() -> None:
    assert os.getpid() < 10_000 and "console=ttyS0" in Path("/proc/cmdline").read_text()
    assert Path(__file__).exists()

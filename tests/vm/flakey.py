"""A ramdisk under dm-flakey in the VM: a device that fails or lies about its writes while it is told to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, Self

from tests.vm.kernel import load, sh, until

ALWAYS_S: Final = 3600


class Flakey:
    """``path`` is right until ``failing`` says how it is not."""

    def __init__(self, size_mib: int = 128, name: str = "flakey") -> None:
        load("dm_flakey")
        sh("modprobe", "brd", "rd_nr=1", f"rd_size={size_mib << 10}")
        os.environ["DM_DISABLE_UDEV"] = "1"
        self.name, self.path = name, f"/dev/mapper/{name}"
        self.sectors = size_mib << 11
        sh("dmsetup", "create", name, "--table", self._table(""))

    def _table(self, features: str) -> str:
        up, down = (0, ALWAYS_S) if features else (ALWAYS_S, 0)
        words = features.split()
        return f"0 {self.sectors} flakey /dev/ram0 0 {up} {down} {len(words)} {features}".strip()

    def _become(self, features: str) -> None:
        sh("dmsetup", "suspend", "--noflush", "--nolockfs", self.name)
        sh("dmsetup", "load", self.name, "--table", self._table(features))
        sh("dmsetup", "resume", self.name)

    @contextmanager
    def failing(self, features: str) -> Iterator[None]:
        """Meanwhile: ``drop_writes``, ``error_writes``, ``corrupt_bio_byte N w VALUE FLAGS`` (dm-flakey.rst)."""
        self._become(features)
        try:
            yield
        finally:
            self._become("")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(AssertionError):  # held by what a failed test left
            until(lambda: "busy" not in sh("dmsetup", "remove", self.name, check=False), "the map is removed", 20)
            sh("modprobe", "-r", "brd")

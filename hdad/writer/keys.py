"""The writer's key on every path, while it serves. Edge: asks the array and sysfs; the writer's loop decides when.

A path that appears after the claim (a port that comes back, a cable plugged in) knows no key, and a write that goes its way is refused. So
the writer looks now and then whether a path lacks the key, and registers it there, path by path: REGISTER through device-mapper fails as a
whole when one path is offline, and then takes the key away from all the others.

To register is to be let in again. A host whose key was taken away (I4) must not do so by mistake and then write: ``register`` is called
only while nothing of this writer is on its way, and asks who holds the reservation before and after. If it is not this host any more, the
keys are taken away again before anything was written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from hdad.clock import monotonic_ns
from hdad.errors import DeviceError, FencedError
from hdad.fabric.reservation import KernelReservation, Reservation
from hdad.fabric.sysfs import read_device
from hdad.fabric.tree import Tree

LOOK_NS: Final = 2_000_000_000
WORKING: Final = ("", "running")


class Keys:
    """``reservation``: of the device; ``paths`` names those that work now; ``open_path`` gives the reservation through one of them."""

    def __init__(
        self, reservation: Reservation, key: int, paths: Callable[[], list[str]], open_path: Callable[[str], Reservation]
    ) -> None:
        self._reservation, self._key = reservation, key
        self._paths, self._open_path = paths, open_path
        self._known = frozenset(paths())
        self._due_ns = 0
        self._logger = logging.getLogger("hdad.keys")

    def are_missing(self) -> bool:
        """Whether it is time to look, and a path that works lacks the key. May run in a thread of the writer's."""
        now_ns = monotonic_ns()
        if now_ns < self._due_ns:
            return False
        self._due_ns = now_ns + LOOK_NS
        paths = self._paths()
        try:
            keys = self._reservation.read_keys()
        except DeviceError as error:  # writes tell soon enough whether the device is gone
            self._logger.warning("the keys cannot be read now: %s", error)
            return False
        return not self._known.issuperset(paths) or (keys is not None and keys.count(self._key) < len(paths))

    def register(self) -> None:
        """Register on every path that works. Nothing of this writer is on its way. Raises FencedError, DeviceError (who holds the
        reservation could not be asked)."""
        self._check_holder()
        done: set[str] = set()
        for path in self._paths():
            try:
                with closing(self._open_path(path)) as one:
                    if one.register(self._key):
                        done.add(path)
            except DeviceError as error:  # it has just failed: the next look finds it, or does not need it
                self._logger.warning("no key on %s: %s", path, error)
        try:
            self._check_holder()
        except FencedError:
            self._take_back(done)
            raise
        self._logger.info("the reservation key is registered on %s", ", ".join(sorted(done)) or "no path")
        self._known = self._known.intersection(self._paths()) | done

    def _check_holder(self) -> None:
        held = self._reservation.read_reservation()
        is_ours = held.key == self._key if held is not None else self._reservation.reserve(self._key)
        if not is_ours:
            raise FencedError("the reservation is not this writer's any more")

    def _take_back(self, paths: set[str]) -> None:
        for path in paths:
            try:
                with closing(self._open_path(path)) as one:
                    one.unregister()
            except DeviceError as error:  # what is not on its way cannot be refused; this process ends and writes nothing more
                self._logger.warning("the key stays on %s: %s", path, error)


def of_device(device: str, reservation: Reservation, key: int) -> Keys:
    """Of a device of this machine."""
    return Keys(reservation, key, lambda: working_paths(device), lambda path: KernelReservation.open(f"/dev/{path}"))


def working_paths(device: str, root: str = "/sys") -> list[str]:
    """Disks under a multipath map that work now; none for anything else: there the device is its own only path."""
    facts = read_device(Tree(root), device)
    if facts.kind != "multipath":
        return []
    return [path.name for path in facts.paths if path.in_map and path.device_state in WORKING and Path(root, "block", path.name).exists()]

"""A LUN's persistent reservation in memory, by the rules of SPC-4 as far as hdad uses them; stands in for ``KernelReservation``.

A host has one I_T nexus per path; device-mapper registers on all of them or none, and tries one after the other for the rest.
tests/contract holds model and kernel to the same behaviour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hdad.errors import DeviceError
from hdad.fabric.reservation import WRITE_EXCLUSIVE_REGISTRANTS_ONLY, Held

Nexus = tuple[str, int]


@dataclass
class Lun:
    """What the array knows. ``keys``: of each nexus that registered; ``holder``: the nexus that holds the reservation.

    ``on_abort`` is called with the hosts whose commands PREEMPT AND ABORT aborts.
    """

    keys: dict[Nexus, int] = field(default_factory=dict)
    holder: Nexus | None = None
    offline: set[Nexus] = field(default_factory=set)
    on_abort: Callable[[set[str]], None] = lambda hosts: None

    def may_write(self, host: str, path: int | None = None) -> bool:
        """Whether a write of ``host`` is taken, by this path, or by any of its paths."""
        if path is not None:
            return self.holder is None or (host, path) in self.keys
        return self.holder is None or any(nexus[0] == host for nexus in self.keys)

    def remove(self, nexuses: list[Nexus]) -> None:
        for nexus in nexuses:
            del self.keys[nexus]
        if self.holder not in self.keys:
            self.holder = None


class ModelReservation:
    """``host`` sees ``lun`` by so many paths, or by those. ``on_command`` is called before each command: a place to stop."""

    def __init__(
        self,
        lun: Lun,
        host: str,
        paths: int | Sequence[int] = 2,
        *,
        is_readable: bool = True,
        on_command: Callable[[str], None] | None = None,
    ) -> None:
        self.path = f"{host}:simulated"
        self._lun = lun
        self._nexuses = [(host, index) for index in (range(paths) if isinstance(paths, int) else paths)]
        self._is_readable = is_readable
        self._on_command = on_command or (lambda what: None)

    def _online(self, what: str) -> list[Nexus]:
        self._on_command(what)
        online = [nexus for nexus in self._nexuses if nexus not in self._lun.offline]
        if not online:
            raise DeviceError(f"{self.path}: {what}: no path")
        return online

    def _registered(self, what: str, key: int) -> list[Nexus]:
        return [nexus for nexus in self._online(what) if self._lun.keys.get(nexus) == key]

    def register(self, key: int) -> bool:
        if len(self._online("register")) < len(self._nexuses):
            raise DeviceError(f"{self.path}: register: a path failed")
        self._lun.keys.update(dict.fromkeys(self._nexuses, key))
        return True

    def unregister(self) -> bool:
        self._lun.remove([nexus for nexus in self._online("unregister") if nexus in self._lun.keys])
        return True

    def reserve(self, key: int) -> bool:
        mine = self._registered("reserve", key)
        if not mine or (self._lun.holder is not None and self._lun.holder not in mine):
            return False
        self._lun.holder = self._lun.holder or mine[0]
        return True

    def preempt_and_abort(self, key: int, victim: int) -> bool:
        mine = self._registered("preempt", key)
        victims = [nexus for nexus, other in self._lun.keys.items() if other == victim and nexus != (mine or [None])[0]]
        if not mine or not victims:
            return False
        takes_over = self._lun.holder in victims
        self._lun.on_abort({nexus[0] for nexus in victims})
        self._lun.remove(victims)
        if takes_over:
            self._lun.holder = mine[0]
        return True

    def read_keys(self) -> list[int] | None:
        self._online("read keys")
        return list(self._lun.keys.values()) if self._is_readable else None

    def read_reservation(self) -> Held | None:
        self._online("read reservation")
        if not self._is_readable:
            return None
        holder = self._lun.holder
        return Held(self._lun.keys[holder], WRITE_EXCLUSIVE_REGISTRANTS_ONLY) if holder is not None else Held(0, 0)

    def close(self) -> None:
        pass

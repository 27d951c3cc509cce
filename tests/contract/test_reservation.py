"""What hdad relies on in a persistent reservation: the model that simulations use, and a real LUN, do the same.

The real one runs where HDAD_PR_HOSTS names a LUN as two hosts see it: two block devices (multipath maps, disks) that reach the same LUN by
different initiators, ``HDAD_PR_HOSTS=/dev/mapper/mpathA,/dev/mapper/mpathB``. ITS FIRST 64 KiB ARE OVERWRITTEN and its keys cleared.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import pytest

from hdad.errors import FencedError, ReservationLackingError
from hdad.fabric.reservation import WRITE_EXCLUSIVE_REGISTRANTS_ONLY, Held, KernelReservation, Reservation
from hdad.log.device import Device, aligned_buffer
from tests.sim.reservation import Lun, ModelReservation

REAL = [path for path in os.environ.get("HDAD_PR_HOSTS", "").split(",") if path]
A, B, C = 0x4844_0000_0000_00A1, 0x4844_0000_0000_00B2, 0x4844_0000_0000_00C3


class Disk(Protocol):
    def write(self) -> None: ...
    def read(self) -> None: ...


class Host(NamedTuple):
    """One initiator: its access to the reservation, and to the data. ``paths``: how often a key of it is listed."""

    reservation: Reservation
    disk: Disk

    def may_write(self) -> bool:
        try:
            self.disk.write()
        except FencedError:
            return False
        return True


class ModelDisk:
    def __init__(self, lun: Lun, host: str) -> None:
        self._lun, self._host = lun, host

    def write(self) -> None:
        if not self._lun.may_write(self._host):
            raise FencedError("simulated")

    def read(self) -> None:
        pass


class RealDisk:
    """A fresh descriptor for each write: after a failed one it is not used again (I8)."""

    def __init__(self, path: str) -> None:
        self._path = path

    def write(self) -> None:
        with Device.open(self._path, write=True) as device:
            for index in range(8):  # round robin: by every path
                device.write(index * 8192, [aligned_buffer(8192)])

    def read(self) -> None:
        with Device.open(self._path) as device:
            for index in range(8):
                device.read(index * 8192, 8192)


@pytest.fixture(params=["model", *(["kernel"] if REAL else [])])
def hosts(request: pytest.FixtureRequest) -> Iterator[tuple[Host, Host]]:
    """Two hosts; nothing is registered."""
    if request.param == "model":
        lun = Lun()
        yield Host(ModelReservation(lun, "a"), ModelDisk(lun, "a")), Host(ModelReservation(lun, "b"), ModelDisk(lun, "b"))
        return
    found = [Host(KernelReservation.open(path), RealDisk(path)) for path in REAL[:2]]
    _clear(found[0])
    yield found[0], found[1]
    _clear(found[0])
    for host in found:
        host.reservation.close()


def _clear(host: Host) -> None:
    """Whatever a test left behind: nobody's key, no reservation."""
    assert host.reservation.register(C)
    for key in keys(host) - {C}:
        assert host.reservation.preempt_and_abort(C, key)
    assert host.reservation.unregister()


def keys(host: Host) -> set[int]:
    found = host.reservation.read_keys()
    assert found is not None
    return set(found)


def holder(host: Host) -> Held:
    found = host.reservation.read_reservation()
    assert found is not None
    return found


def test_without_a_reservation_everybody_writes_and_nobody_holds_it(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    assert holder(a) == holder(b) == Held(0, 0) and keys(a) == set()
    assert a.may_write() and b.may_write()


def test_one_host_holds_the_reservation_and_whoever_has_no_key_only_reads(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    assert a.reservation.register(A) and a.reservation.reserve(A)
    assert holder(b) == Held(A, WRITE_EXCLUSIVE_REGISTRANTS_ONLY) and keys(b) == {A}
    assert a.may_write() and not b.may_write()
    b.disk.read()
    assert b.reservation.register(B) and not b.reservation.reserve(B), "it is held"
    assert b.may_write(), "a registered host writes"
    assert keys(a) == {A, B}


def test_of_two_hosts_that_reserve_one_gets_it(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    assert a.reservation.register(A) and b.reservation.register(B)
    assert b.reservation.reserve(B) and not a.reservation.reserve(A)
    assert b.reservation.reserve(B), "once more is no conflict"
    assert holder(a).key == B


def test_a_host_without_a_key_changes_nothing(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    assert not b.reservation.reserve(B)
    assert a.reservation.register(A) and a.reservation.reserve(A)
    assert not b.reservation.preempt_and_abort(B, A)
    assert b.reservation.unregister(), "it has none: nothing to take away"
    assert holder(a).key == A and a.may_write()


def test_a_preempted_holder_is_fenced_and_the_other_holds_the_reservation(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    assert a.reservation.register(A) and a.reservation.reserve(A) and b.reservation.register(B)
    assert b.reservation.preempt_and_abort(B, A)
    assert not a.may_write() and b.may_write()
    a.disk.read()
    assert holder(a).key == B and keys(a) == {B}
    assert not a.reservation.preempt_and_abort(A, B), "what is fenced cannot fence"
    assert not a.reservation.reserve(A)


def test_of_two_hosts_that_preempt_the_same_victim_one_wins(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    assert a.reservation.register(C) and a.reservation.reserve(C)  # host a in its former life
    assert b.reservation.register(B) and b.reservation.preempt_and_abort(B, C)
    assert a.reservation.register(A), "registering is always possible"
    assert not a.reservation.preempt_and_abort(A, C), "the victim is gone: somebody was faster"
    assert holder(a).key == B


def test_a_registered_host_that_does_not_hold_it_can_be_preempted_too(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    assert a.reservation.register(A) and a.reservation.reserve(A) and b.reservation.register(B)
    assert a.reservation.preempt_and_abort(A, B)
    assert holder(a).key == A and keys(a) == {A} and not b.may_write()


def test_a_key_is_registered_anew_whatever_was_there_before(hosts: tuple[Host, Host]) -> None:
    a, _ = hosts
    assert a.reservation.register(B) and a.reservation.register(A) and a.reservation.register(A)
    assert keys(a) == {A}


def test_unregistering_takes_the_reservation_along(hosts: tuple[Host, Host]) -> None:
    a, b = hosts
    assert a.reservation.register(A) and a.reservation.reserve(A) and not b.may_write()
    assert a.reservation.unregister()
    assert holder(b) == Held(0, 0) and keys(b) == set() and b.may_write()
    assert a.reservation.unregister(), "once more is no conflict"


def test_a_device_that_has_no_reservations_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("pr") / "file"
    path.write_bytes(bytes(4096))
    reservation = KernelReservation.open(str(path))
    try:
        with pytest.raises(ReservationLackingError):
            reservation.register(A)
        assert reservation.read_keys() is None and reservation.read_reservation() is None
    finally:
        reservation.close()

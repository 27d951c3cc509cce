"""What the reservation edge makes of the kernel's answers: statuses, errors, and bytes as arrays send them."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hdad.fabric.reservation
from hdad.errors import DeviceError, DeviceLostError, ReservationLackingError
from hdad.fabric.reservation import _SG_HEADER, _SG_IO, ATTEMPTS, Held, KernelReservation

READ_KEYS, READ_RESERVATION, PREEMPT_ABORT = 0xC01070CE, 0x801070CF, 0x401870CC
Answer = Callable[[int, bytearray], int]


@pytest.fixture
def reservation(tmp_path: Path) -> Iterator[KernelReservation]:
    path = tmp_path / "lun"
    path.touch()
    found = KernelReservation.open(str(path))
    yield found
    found.close()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], list[tuple[int, bytes]]]:
    """Answer ioctls; the list holds what was asked."""

    def answering(answer: Answer) -> list[tuple[int, bytes]]:
        asked: list[tuple[int, bytes]] = []

        def ioctl(_fd: int, request: int, argument: bytearray, mutate: bool) -> int:
            assert mutate, "without it a positive status is lost"
            asked.append((request, bytes(argument)))
            return answer(request, argument)

        monkeypatch.setattr(hdad.fabric.reservation.fcntl, "ioctl", ioctl)
        return asked

    return answering


def failing(number: int) -> Answer:
    def answer(_request: int, _argument: bytearray) -> int:
        raise OSError(number, os.strerror(number))

    return answer


def in_turn(*statuses: int) -> Answer:
    left = list(statuses)
    return lambda _request, _argument: left.pop(0)


def test_ioctl_numbers_are_those_of_linux_pr_h() -> None:
    module: Any = hdad.fabric.reservation
    assert (module._READ_KEYS, module._READ_RESERVATION, module._PREEMPT_ABORT) == (READ_KEYS, READ_RESERVATION, PREEMPT_ABORT)


def test_preempt_names_my_key_first_and_the_victims_second(reservation: KernelReservation, kernel: Any) -> None:
    asked = kernel(in_turn(0))
    assert reservation.preempt_and_abort(7, 9)
    assert asked == [(PREEMPT_ABORT, struct.pack("QQII", 7, 9, 3, 0))]


@pytest.mark.parametrize("status", [0x18, 0x118, 0x4083])
def test_a_conflict_is_a_value(reservation: KernelReservation, kernel: Any, status: int) -> None:
    kernel(in_turn(status))
    assert not reservation.reserve(7)


def test_a_unit_attention_is_asked_again_and_not_for_ever(reservation: KernelReservation, kernel: Any) -> None:
    kernel(in_turn(0x02, 0x102, 0))
    assert reservation.register(7)
    asked = kernel(in_turn(*[0x02] * 10))
    with pytest.raises(DeviceError, match="CHECK CONDITION"):
        reservation.register(7)
    assert [request for request, _ in asked].count(asked[0][0]) == ATTEMPTS


def unless_scsi(status: int, scsi: Answer) -> Answer:
    """``status`` for PERSISTENT RESERVE OUT; reading goes by SG_IO."""

    def answer(request: int, argument: bytearray) -> int:
        if request in (READ_KEYS, READ_RESERVATION):
            raise OSError(errno.ENOTTY, "")
        return scsi(request, argument) if request == _SG_IO else status

    return answer


def test_check_condition_of_a_command_without_its_key_is_a_conflict_and_with_it_an_error(
    reservation: KernelReservation, kernel: Any
) -> None:
    kernel(unless_scsi(0x02, by_scsi(struct.pack(">IIQ", 5, 8, 9))))
    assert not reservation.reserve(7)
    assert not reservation.preempt_and_abort(7, 9)
    with pytest.raises(DeviceError, match="CHECK CONDITION"):
        reservation.reserve(9)


def test_check_condition_of_a_device_that_does_not_know_reservations_is_told_as_such(
    reservation: KernelReservation, kernel: Any
) -> None:
    kernel(unless_scsi(0x02, by_scsi(b"", status=2, sense=bytes([0x70, 0, 5]))))
    with pytest.raises(ReservationLackingError, match="the device has no persistent reservations"):
        reservation.register(7)


@pytest.mark.parametrize("status", [0xE0000, 0xF0000, 0x10000, 0x28])
def test_a_path_that_fails_is_an_error_and_no_conflict(reservation: KernelReservation, kernel: Any, status: int) -> None:
    kernel(in_turn(status))
    with pytest.raises(DeviceError, match=r"path|status 0x28"):
        reservation.register(7)


@pytest.mark.parametrize("number", [errno.ENOTTY, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EINVAL])
def test_what_is_not_there_or_not_allowed_is_told_as_such(reservation: KernelReservation, kernel: Any, number: int) -> None:
    kernel(failing(number))
    with pytest.raises(ReservationLackingError):
        reservation.register(7)
    assert reservation.read_keys() is None and reservation.read_reservation() is None and reservation.lacks() == ""


def test_a_lost_device_is_an_error_and_ebade_a_conflict(reservation: KernelReservation, kernel: Any) -> None:
    kernel(failing(errno.ENODEV))
    with pytest.raises(DeviceLostError):
        reservation.reserve(7)
    with pytest.raises(DeviceLostError):
        reservation.read_keys()
    kernel(failing(errno.EBADE))
    assert not reservation.reserve(7)


def test_keys_and_holder_by_the_kernels_own_ioctls(reservation: KernelReservation, kernel: Any) -> None:
    def answer(request: int, argument: bytearray) -> int:
        if request == READ_KEYS:
            _, room, address = struct.unpack("IIQ", argument)
            assert room >= 2
            ctypes.memmove(address, struct.pack("QQ", 7, 9), 16)
            argument[:] = struct.pack("IIQ", 5, 2, address)
        else:
            argument[:] = struct.pack("QII", 9, 5, 3)
        return 0

    kernel(answer)
    assert reservation.read_keys() == [7, 9] and reservation.read_reservation() == Held(9, 3)
    kernel(in_turn(*[0x28] * 3))
    with pytest.raises(DeviceError):
        reservation.read_keys()


def by_scsi(data: bytes, *, status: int = 0, sense: bytes = b"", host: int = 0) -> Answer:
    """An older kernel: no IOC_PR_READ_*, but SG_IO."""

    def answer(request: int, argument: bytearray) -> int:
        if request != _SG_IO:
            raise OSError(errno.ENOTTY, "no such ioctl")
        fields = list(_SG_HEADER.unpack(argument))
        assert ctypes.string_at(fields[7], 1) == b"\x5e" and fields[6] and fields[5] >= len(data)
        ctypes.memmove(fields[6], data, len(data))
        ctypes.memmove(fields[8], sense, len(sense))
        fields[13], fields[17], fields[19] = status, host, fields[5] - len(data)
        argument[:] = _SG_HEADER.pack(*fields)
        return 0

    return answer


def test_keys_and_holder_by_scsi(reservation: KernelReservation, kernel: Any) -> None:
    kernel(by_scsi(struct.pack(">IIQQ", 5, 16, 7, 9)))
    assert reservation.read_keys() == [7, 9]
    kernel(by_scsi(struct.pack(">IIQIBBH", 5, 16, 9, 0, 0, 5, 0)))
    assert reservation.read_reservation() == Held(9, 3)
    kernel(by_scsi(struct.pack(">IIQIBBH", 5, 16, 9, 0, 0, 8, 0)))
    assert reservation.read_reservation() == Held(9, 6)
    kernel(by_scsi(struct.pack(">II", 5, 0)))
    assert reservation.read_keys() == [] and reservation.read_reservation() == Held(0, 0)


def test_an_answer_that_is_shorter_than_it_says_is_read_as_far_as_it_goes(reservation: KernelReservation, kernel: Any) -> None:
    kernel(by_scsi(struct.pack(">IIQ", 5, 4096, 7)))
    assert reservation.read_keys() == [7]
    kernel(by_scsi(b""))
    assert reservation.read_keys() == [] and reservation.read_reservation() == Held(0, 0)


def test_what_the_array_does_not_know_and_what_fails_are_told_apart(reservation: KernelReservation, kernel: Any) -> None:
    kernel(by_scsi(b"", status=2, sense=bytes([0x70, 0, 5])))
    assert reservation.read_keys() is None
    kernel(by_scsi(b"", status=2, sense=bytes([0x72, 5])))
    assert reservation.read_keys() is None
    asked = kernel(by_scsi(b"", status=2, sense=bytes([0x70, 0, 6])))
    with pytest.raises(DeviceError, match="status 0x2"):
        reservation.read_keys()
    assert len(asked) == ATTEMPTS, "a unit attention is asked again"
    kernel(by_scsi(b"", host=1))
    with pytest.raises(DeviceError, match="host 0x1"):
        reservation.read_reservation()


@pytest.mark.parametrize(("capabilities", "lacks"), [
    (bytes([0, 8, 0, 0x80, 0xEA, 1, 0, 0]), False), (bytes([0, 8, 0, 0x80, 0x0A, 0, 0, 0]), True), (bytes([0, 8, 0, 0, 0, 0, 0, 0]), False),
])  # fmt: skip
def test_an_array_without_our_type_is_recognised_by_its_own_word(
    reservation: KernelReservation, kernel: Any, capabilities: bytes, lacks: bool
) -> None:
    kernel(by_scsi(capabilities))
    assert bool(reservation.lacks()) == lacks


def test_a_namespace_that_knows_no_reservations_is_told_as_such(reservation: KernelReservation, kernel: Any) -> None:
    kernel(in_turn(0x4001))
    with pytest.raises(ReservationLackingError, match="no persistent reservations"):
        reservation.register(7)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="reservations"):
        KernelReservation.open(str(tmp_path / "none"))

"""SCSI-3 persistent reservations of one block device: the fence. Edge: one operation a method; no policy but the retry of UNIT ATTENTION.

The only type used is *Write Exclusive – Registrants Only*: whoever has a key registered may write, everybody may read. A host registers
its key on every path at once (device-mapper does that), one host holds the reservation, and PREEMPT AND ABORT takes a host's key away: on
return nothing of that host is on its way any more and nothing of it is taken any more; its writes fail with EBADE (``FencedError``).

Keys and reservation live in the array, not in this process: nothing here is undone by closing.

Learned on real kernels (linux/pr.h, drivers/scsi/sd.c, drivers/md/dm.c):
- A positive value of the ioctl is a SCSI status in its low byte (0x18 conflict, 0x02 CHECK CONDITION) or, since 6.4, one of enum pr_status;
  of an NVMe namespace an NVMe status until then (0x83 conflict, 0x01 unknown, with bits of its own above);
  Python loses it unless the argument is a mutable buffer.
- CHECK CONDITION is nearly always a UNIT ATTENTION that tells of another host's PERSISTENT RESERVE OUT: the command was not done, so again.
- ``IOC_PR_PREEMPT*``: ``old_key`` is *my* key, ``new_key`` the *victim's*.
- REGISTER through device-mapper fails as a whole, and is rolled back, when one path is offline.
- Registering needs CAP_SYS_ADMIN before Linux 6.5, later a descriptor that is open for writing.
- Keys are read by IOC_PR_READ_KEYS (Linux 7.0), else by SG_IO PERSISTENT RESERVE IN, which needs CAP_SYS_RAWIO and goes through
  dm-multipath by one path; that is enough, since keys belong to the LUN.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from typing import Final, NamedTuple, Protocol, Self

from hdad.errors import DeviceError, ReservationLackingError
from hdad.fabric import facts
from hdad.log.device import device_error

WRITE_EXCLUSIVE_REGISTRANTS_ONLY: Final = 3  # enum pr_type in linux/pr.h
_LINUX_TYPES: Final = {1: 1, 3: 2, 5: 3, 6: 4, 7: 5, 8: 6}  # by the type in PERSISTENT RESERVE IN data (SPC-4, 6.15)
_KINDS: Final = {WRITE_EXCLUSIVE_REGISTRANTS_ONLY: "write exclusive – registrants only"}
_SCSI_TYPE_BIT: Final = 1 << 5  # WR_EX_RO in byte 4 of REPORT CAPABILITIES
_IGNORE_KEY: Final = 1
ATTEMPTS: Final = 5  # LIMIT: of one command; each UNIT ATTENTION is told once per path and initiator
KEYS_MAX: Final = 1024  # LIMIT: keys read; an array keeps fewer
_GOOD: Final = 0
_CHECK_CONDITION: Final = 0x02
_CONFLICT: Final = 0x18
_NVME_CONFLICT: Final = 0x83
_NVME_UNKNOWN: Final = 0x01  # invalid opcode
_SG_IO: Final = 0x2285
_SG_HEADER: Final = struct.Struct("@iiBBHIQQQIIiQBBBBHHiII")
_SG_TIMEOUT_MS: Final = 10_000
_ILLEGAL_REQUEST: Final = 5


def _ioc(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | ord("p") << 8 | number


_REGISTER: Final = _ioc(1, 200, 24)
_RESERVE: Final = _ioc(1, 201, 16)
_PREEMPT_ABORT: Final = _ioc(1, 204, 24)
_READ_KEYS: Final = _ioc(3, 206, 16)
_READ_RESERVATION: Final = _ioc(2, 207, 16)
_NAMES: Final = {
    _REGISTER: "register", _RESERVE: "reserve", _PREEMPT_ABORT: "preempt and abort", _READ_KEYS: "read keys",
    _READ_RESERVATION: "read reservation",
}  # fmt: skip


class Held(NamedTuple):
    """The reservation as it is. ``type``: as in linux/pr.h; anything but WRITE_EXCLUSIVE_REGISTRANTS_ONLY is not hdad's."""

    key: int
    type: int


class Reservation(Protocol):
    """One host's access to the reservation of one LUN. Keys are not zero. False means RESERVATION CONFLICT: the array said no.

    All raise DeviceError: no path, or what the device says; ReservationLackingError: it, or the kernel, has no reservations for us.
    """

    def register(self, key: int) -> bool:
        """This host's key on every path, whatever was registered before. From now on this host may write."""

    def unregister(self) -> bool:
        """Take this host's key away from every path, whichever it is; with it goes the reservation, if this host holds it. True too if
        there was none: what counts is that none is left."""

    def reserve(self, key: int) -> bool:
        """Take the reservation that nobody holds. True too if this host holds it already."""

    def preempt_and_abort(self, key: int, victim: int) -> bool:
        """Take ``victim``'s registrations away, abort what is on its way, and take over its reservation if it holds one.

        False: ``victim`` is not registered (somebody else was faster), or ``key`` is not.
        """

    def read_keys(self) -> list[int] | None:
        """All keys, one entry for each path of each host. None: this kernel or this process cannot read them."""

    def read_reservation(self) -> Held | None:
        """Who holds it; ``Held(0, 0)``: nobody. None: it cannot be read here."""

    def close(self) -> None:
        """Let the descriptor go; keys and reservation stay."""


class KernelReservation:
    """``Reservation`` of a block device: a SCSI disk, a dm-multipath map, an NVMe namespace."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._is_unknown_command = False  # True: the device itself said so of PERSISTENT RESERVE IN
        self._has_ioctl = True  # IOC_PR_READ_*; False once the kernel said that it does not know them

    @classmethod
    def open(cls, path: str) -> Self:
        """Open for writing (the kernel asks for it), not exclusively, and without writing anything. Raises DeviceError."""
        try:
            return cls(path, os.open(path, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise device_error(path, "open for reservations", error) from error

    def register(self, key: int) -> bool:
        return self._out(_REGISTER, struct.pack("QQII", 0, key, _IGNORE_KEY, 0))

    def unregister(self) -> bool:
        # The first path's end raises a UNIT ATTENTION on the next one; asked again by key, the first path would then conflict.
        return self._out(_REGISTER, struct.pack("QQII", 0, 0, _IGNORE_KEY, 0))

    def reserve(self, key: int) -> bool:
        return self._out(_RESERVE, struct.pack("QII", key, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 0), key)

    def preempt_and_abort(self, key: int, victim: int) -> bool:
        return self._out(_PREEMPT_ABORT, struct.pack("QQII", key, victim, WRITE_EXCLUSIVE_REGISTRANTS_ONLY, 0), key)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    # -- commands ----------------------------------------------------------------------------------------------------------------------

    def _out(self, request: int, argument: bytes, key: int | None = None) -> bool:
        """True: done. False: conflict. ``key``: what this host must have registered for this command."""
        status = self._ioctl(request, bytearray(argument))
        if status is None:
            raise ReservationLackingError(f"{self.path}: {_NAMES[request]}: neither the device nor this kernel has persistent reservations")
        if status == _GOOD:
            return True
        if status & 0xFF in (_CONFLICT, _NVME_CONFLICT):
            return False
        if status & 0xFF == _NVME_UNKNOWN:
            raise ReservationLackingError(f"{self.path}: {_NAMES[request]}: the device has no persistent reservations")
        if status & 0xFF == _CHECK_CONDITION and key is not None and self._is_unknown(key):
            return False  # an array says conflict to a host without a key (SPC-4, 5.13); Linux' LIO ends with CHECK CONDITION
        if status & 0xFF == _CHECK_CONDITION and self._scsi_in(0, 24) is None and self._is_unknown_command:
            raise ReservationLackingError(f"{self.path}: {_NAMES[request]}: the device has no persistent reservations")
        raise DeviceError(f"{self.path}: {_NAMES[request]}: {_in_words(status)}")

    def _is_unknown(self, key: int) -> bool:
        """True: the array says that nobody has registered ``key``."""
        keys = self.read_keys()
        return keys is not None and key not in keys

    def _ioctl(self, request: int, argument: bytearray) -> int | None:
        """The status, CHECK CONDITION asked again. None: not known here."""
        status = _CHECK_CONDITION
        for _ in range(ATTEMPTS):
            try:
                status = fcntl.ioctl(self._fd, request, argument, True)
            except OSError as error:
                if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
                    return None
                if error.errno == errno.EBADE:  # as drivers say it that know no SCSI
                    return _CONFLICT
                raise self._refused(request, error) from error
            if status & 0xFF != _CHECK_CONDITION:
                break
        return status

    def _refused(self, request: int, error: OSError) -> DeviceError:
        what = _NAMES[request]
        if error.errno in (errno.EPERM, errno.EACCES):
            return ReservationLackingError(
                f"{self.path}: {what}: not permitted: it needs CAP_SYS_ADMIN before Linux 6.5 (AmbientCapabilities=), write access since"
            )
        if error.errno == errno.EINVAL:
            return ReservationLackingError(f"{self.path}: {what}: the device does not know this command, or not this type of reservation")
        return device_error(self.path, what, error)

    # -- reading -----------------------------------------------------------------------------------------------------------------------

    def read_keys(self) -> list[int] | None:
        if self._has_ioctl:
            keys = (ctypes.c_uint64 * KEYS_MAX)()
            argument = bytearray(struct.pack("IIQ", 0, KEYS_MAX, ctypes.addressof(keys)))
            if self._asked(_READ_KEYS, argument):
                count = struct.unpack("IIQ", argument)[1]
                return list(keys[: min(count, KEYS_MAX)])
        found = self._scsi_in(0, 8 + 8 * KEYS_MAX)
        return None if found is None else list(struct.unpack_from(f">{_entries(found)}Q", found, 8))

    def read_reservation(self) -> Held | None:
        if self._has_ioctl:
            argument = bytearray(16)
            if self._asked(_READ_RESERVATION, argument):
                key, _, kind = struct.unpack("QII", argument)
                return Held(key, kind)
        found = self._scsi_in(1, 24)
        if found is None:
            return None
        if _entries(found) < 2:
            return Held(0, 0)
        return Held(struct.unpack_from(">Q", found, 8)[0], _LINUX_TYPES.get(found[21] & 0x0F, 0))

    def lacks(self) -> str:
        """What the device itself says it lacks for us: "" nothing, or nothing is known."""
        found = self._scsi_in(2, 8)
        if found is None or not found[3] & 0x80 or found[4] & _SCSI_TYPE_BIT:  # TMV: the mask of types is valid
            return ""
        return "the device has no reservations of the type Write Exclusive – Registrants Only"

    def _asked(self, request: int, argument: bytearray) -> bool:
        """Ask the kernel by ioctl. False: it does not know how, or not for us; SG_IO may."""
        try:
            status = self._ioctl(request, argument)
        except ReservationLackingError:
            status = None
        if status is None:
            self._has_ioctl = False
            return False
        if status != _GOOD:
            raise DeviceError(f"{self.path}: {_NAMES[request]}: {_in_words(status)}")
        return True

    def _scsi_in(self, action: int, size: int) -> bytes | None:
        """PERSISTENT RESERVE IN by SG_IO. None: it cannot be asked here."""
        data, sense = ctypes.create_string_buffer(size), ctypes.create_string_buffer(64)
        command = ctypes.create_string_buffer(struct.pack(">BB5xHx", 0x5E, action, size), 10)
        for _ in range(ATTEMPTS):
            header = bytearray(
                _SG_HEADER.pack(
                    ord("S"), -3, 10, 64, 0, size, ctypes.addressof(data), ctypes.addressof(command), ctypes.addressof(sense),
                    _SG_TIMEOUT_MS, *[0] * 12,
                )
            )  # fmt: skip
            try:
                fcntl.ioctl(self._fd, _SG_IO, header, True)
            except OSError as error:
                if error.errno in (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EACCES):
                    return None
                raise device_error(self.path, "persistent reserve in", error) from error
            fields = _SG_HEADER.unpack(header)
            status, host, driver, missing = fields[13], fields[17], fields[18], fields[19]
            if status == _GOOD and not host and not driver & 0x07:
                return data.raw[: size - max(0, missing)].ljust(8, b"\0")
            key = sense.raw[1] & 0x0F if sense.raw[0] & 0x7F >= 0x72 else sense.raw[2] & 0x0F
            if status == _CHECK_CONDITION and key == _ILLEGAL_REQUEST:
                self._is_unknown_command = True
                return None
        raise DeviceError(f"{self.path}: persistent reserve in: status {status:#x}, host {host:#x}")


def told(path: str, key: int) -> facts.Reservation | None:
    """What the array says, for a survey. ``key``: this host's. None: it cannot be read here. Raises DeviceError."""
    reservation = KernelReservation.open(path)
    try:
        keys, held = reservation.read_keys(), reservation.read_reservation()
    finally:
        reservation.close()
    if keys is None or held is None:
        return None
    kind = _KINDS.get(held.type, f"type {held.type}") if held.key else ""
    return facts.Reservation(
        kind, f"{held.key:#x}" if held.key else "", tuple(f"{one:#x}" for one in keys), f"{key:#x}" if key in keys else ""
    )


def _entries(found: bytes) -> int:
    """Words of eight bytes that follow the head, as the answer says and as are there (I9)."""
    return int(min(struct.unpack_from(">I", found, 4)[0], len(found) - 8) // 8)


def _in_words(status: int) -> str:
    if status & 0xFF == _CHECK_CONDITION:
        return f"CHECK CONDITION, {ATTEMPTS} times"
    words = {0xE0000: "a path failed, for now", 0xF0000: "a path failed", 0x10000: "a path is gone"}
    return words.get(status, f"status {status:#x}")

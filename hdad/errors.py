"""Every exception hdad raises on purpose, and the exit status of every process.

Owned by all layers; imports nothing. A bug is an ``assert``; what the environment does is one of these; flow control is a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit statuses of the daemon, its children and the command line tools.

    The systemd unit lists those after which a restart would repeat the failure (``RestartPreventExitStatus``).
    """

    OK = 0
    FAILURE = 1  # anything unforeseen; restarting may help
    USAGE = 2  # wrong words on the command line
    CONFIG = 3  # the configuration is not valid; not restarted
    DEVICE = 4  # the device failed or is gone; recovery on restart decides
    DAMAGED = 5  # acknowledged data is damaged; an operator must decide; not restarted
    FOREIGN = 6  # not an hdad log, or not the one expected; not restarted
    FENCED = 7  # another writer owns the log; not restarted
    BUSY = 8  # another process holds the device or the control socket
    CRASH_LOOP = 9  # a child died too often; not restarted
    DRAIN_INCOMPLETE = 10  # stopped before everything in flight was durable
    SOURCE = 11  # Redis refused (authentication, wrong server); restarting may help
    UNREACHABLE = 12  # hdactl: no daemon answers
    FINDINGS = 13  # verify or doctor found something wrong
    PERMISSION = 14  # the caller may not do this
    LAPPED = 15  # the reader's position was overwritten


class HdadError(Exception):
    """Root of all errors that hdad raises on purpose."""

    status = ExitStatus.FAILURE


class ConfigError(HdadError):
    """One wrong thing in a configuration file."""

    status = ExitStatus.CONFIG

    def __init__(self, file: str, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{file}: {key} = {value!r}: {allowed}")
        self.file, self.key, self.value, self.allowed = file, key, value, allowed


class ConfigErrors(HdadError):
    """All that is wrong in a configuration, at once."""

    status = ExitStatus.CONFIG

    def __init__(self, errors: Sequence[ConfigError]) -> None:
        super().__init__("\n".join(str(error) for error in errors))
        self.errors = tuple(errors)


class ProtocolError(HdadError):
    """Bytes or calls that the protocol does not allow."""


class LocalProtocolError(ProtocolError):
    """Our own side broke the protocol: a bug here."""


class PeerProtocolError(ProtocolError):
    """The other side broke the protocol: close it."""


class FormatError(HdadError):
    """Bytes that are not what this format says."""

    status = ExitStatus.FOREIGN


class UnknownVersionError(FormatError):
    """Right magic, but a version that this program does not know."""


class ForeignDeviceError(FormatError):
    """Not an hdad log, another log than expected, or a device that holds somebody else's data."""


class GeometryMismatchError(FormatError):
    """The superblock tells another size or block size than the device has."""


class CorruptionError(HdadError):
    """Bytes that had been durable are not what was written."""

    status = ExitStatus.DAMAGED

    def __init__(self, address: int, expected: str, found: str) -> None:
        super().__init__(f"damaged at byte {address}: expected {expected}, found {found}")
        self.address, self.expected, self.found = address, expected, found


class LappedError(HdadError):
    """The position asked for was overwritten by newer data."""

    status = ExitStatus.LAPPED

    def __init__(self, wanted_lsn: int, oldest_lsn: int) -> None:
        super().__init__(f"LSN {wanted_lsn} was overwritten; the oldest LSN still in the log is {oldest_lsn}")
        self.wanted_lsn, self.oldest_lsn = wanted_lsn, oldest_lsn


class DeviceError(HdadError):
    """The device said no."""

    status = ExitStatus.DEVICE


class DeviceLostError(DeviceError):
    """The device is gone (ENODEV, ENXIO, all paths failed)."""


class DeviceTimeoutError(DeviceError):
    """The device did not answer in time."""


class DeviceFullError(DeviceError):
    """No room (ENOSPC, or a log that may not be overwritten)."""


class DeviceBusyError(DeviceError):
    """Somebody else holds the device."""

    status = ExitStatus.BUSY


class FencedError(DeviceError):
    """Another writer owns the log now."""

    status = ExitStatus.FENCED


class ReservationLackingError(DeviceError):
    """``log.fence = "reservation"``, and the device, the kernel or this process' rights have none; a restart would not help."""

    status = ExitStatus.CONFIG


class SourceError(HdadError):
    """Redis is not reachable, or refused."""

    status = ExitStatus.SOURCE


class LinkError(HdadError):
    """Another host is not reachable, or refuses."""

    status = ExitStatus.UNREACHABLE


class StageError(HdadError):
    """A pipeline stage cannot be imported or built."""

    status = ExitStatus.CONFIG


class ControlError(HdadError):
    """An error that crosses the control socket, with what to do about it."""

    def __init__(self, message: str, hint: str = "", status: ExitStatus = ExitStatus.FAILURE) -> None:
        super().__init__(message)
        self.hint = hint
        self.status = status

"""The device: the only opener of O_DIRECT. Edge: one operation a method, no policy, no retry.

A method either has done what it says when it returns, or raises; after a failed write the file descriptor must not be used again (I8),
and refuses to be. Works on block devices and on regular files of a filesystem that has O_DIRECT.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol, Self

from hdad.errors import DeviceBusyError, DeviceError, DeviceFullError, DeviceLostError, DeviceTimeoutError, FencedError

_BLKSSZGET: Final = 0x1268
_BLKGETSIZE64: Final = 0x80081272
IOV_MAX: Final = 1024  # LIMIT: buffers of one pwritev, writev(2)
_ERRORS: Final[dict[int, tuple[type[DeviceError], str]]] = {
    errno.ENODEV: (DeviceLostError, "the device is gone"),
    errno.ENXIO: (DeviceLostError, "the device is gone"),
    errno.ENOSPC: (DeviceFullError, "no room"),
    errno.EDQUOT: (DeviceFullError, "quota reached"),
    errno.ETIMEDOUT: (DeviceTimeoutError, "the device did not answer in time"),
    errno.EBUSY: (DeviceBusyError, "somebody else holds it (mounted, mapped, or another hdad)"),
    errno.ENODATA: (DeviceError, "medium error: the device cannot read what lies there"),
    errno.EBADE: (FencedError, "reservation conflict: another writer owns the log"),
}


Buffer = memoryview | bytes | mmap.mmap


class BlockDevice(Protocol):
    """What logs are kept on; ``Device`` says what its methods do."""

    path: str
    size: int
    logical_block_size: int
    is_block: bool

    def read(self, address: int, size: int) -> memoryview: ...
    def write(self, address: int, buffers: Sequence[Buffer], durable: bool = True) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def aligned_buffer(size: int) -> memoryview:
    """``size`` zero bytes, page-aligned, freed with the last view of them."""
    return memoryview(mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))[:size]


def device_error(path: str, what: str, error: OSError) -> DeviceError:
    """The typed error for what the kernel said."""
    kind, text = _ERRORS.get(error.errno or 0, (DeviceError, error.strerror or str(error)))
    return kind(f"{path}: {what}: {text} ({errno.errorcode.get(error.errno or 0, '?')})")


class Device:
    """An open device. ``size`` and ``logical_block_size`` in bytes; ``is_block``: a block device."""

    def __init__(self, path: str, fd: int, size: int, logical_block_size: int, is_block: bool) -> None:
        self.path, self.size, self.logical_block_size, self.is_block = path, size, logical_block_size, is_block
        self._fd = fd
        self._failure: DeviceError | None = None  # of a write

    @classmethod
    def open(cls, path: str, *, write: bool = False) -> Self:
        """Open with O_DIRECT; for writing also exclusively (O_EXCL on devices, flock). Raises DeviceError."""
        flags = os.O_DIRECT | os.O_CLOEXEC | (os.O_RDWR if write else os.O_RDONLY)
        try:
            mode = os.stat(path).st_mode
            is_block = stat.S_ISBLK(mode)
            if not is_block and not stat.S_ISREG(mode):
                raise DeviceError(f"{path}: neither a block device nor a regular file")
            if write and is_block:
                flags |= os.O_EXCL
            fd = os.open(path, flags)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise DeviceError(
                    f"{path}: its filesystem has no direct I/O (tmpfs?); put the log on a device or on ext4, xfs or btrfs"
                ) from error
            raise device_error(path, "open", error) from error
        try:
            if write:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size, logical = _sizes(fd, is_block)
        except OSError as error:
            os.close(fd)
            if error.errno == errno.EWOULDBLOCK:
                raise DeviceBusyError(f"{path}: another hdad writes to it (flock)") from error
            raise device_error(path, "open", error) from error
        return cls(path, fd, size, logical, is_block)

    def read(self, address: int, size: int) -> memoryview:
        """``size`` bytes from ``address``, both whole blocks, in a new buffer. Raises DeviceError, also at the end of the device."""
        buffer = aligned_buffer(size)
        done = 0
        try:
            while done < size:
                count = os.preadv(self._fd, [buffer[done:]], address + done)
                if not count:
                    raise DeviceError(f"{self.path}: read of {size} bytes at {address} ends after {done}")
                done += count
        except OSError as error:
            raise device_error(self.path, f"read of {size} bytes at {address}", error) from error
        return buffer

    def write(self, address: int, buffers: Sequence[Buffer], durable: bool = True) -> None:
        """Write ``buffers`` one after the other. DURABLE: on return, if ``durable`` (RWF_DSYNC: FUA where the cache is volatile).

        Raises DeviceError; after that, every further write raises too (I8), the same kind of error: of two writes on their way the second
        may be the one that is told first, and a writer that was fenced must know.
        """
        if self._failure is not None:
            raise type(self._failure)(f"{self._failure}; this descriptor is not used again")
        flags = os.RWF_DSYNC if durable else 0
        try:
            for start in range(0, len(buffers), IOV_MAX):
                some = list(buffers[start : start + IOV_MAX])
                size = sum(map(len, some))
                done = os.pwritev(self._fd, some, address, flags)
                while done < size:  # short: a signal or a limit of the kernel; the rest begins at a whole block
                    rest = _rest(some, done)
                    count = os.pwritev(self._fd, rest, address + done, flags)
                    if not count:
                        raise DeviceFullError(f"{self.path}: write at {address + done} took no bytes")
                    done += count
                address += size
        except OSError as error:
            self._failure = device_error(self.path, f"write at {address}", error)
            raise self._failure from error
        except DeviceError as error:
            self._failure = error
            raise

    def flush(self) -> None:
        """DURABLE: everything that any process has written. Raises DeviceError."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            self._failure = device_error(self.path, "flush", error)
            raise self._failure from error

    def close(self) -> None:
        """Close. Errors do not matter any more: what had to be durable is."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _rest(buffers: Sequence[Buffer], done: int) -> list[memoryview]:
    rest = []
    for buffer in buffers:
        size = len(buffer)
        if done >= size:
            done -= size
            continue
        rest.append(memoryview(buffer)[done:])
        done = 0
    return rest


def _sizes(fd: int, is_block: bool) -> tuple[int, int]:
    if not is_block:
        return os.fstat(fd).st_size, 512
    size = struct.unpack("<Q", fcntl.ioctl(fd, _BLKGETSIZE64, bytes(8)))[0]
    logical = struct.unpack("<i", fcntl.ioctl(fd, _BLKSSZGET, bytes(4)))[0]
    return size, logical


def sysfs_directory(path: str) -> Path | None:
    """The block device's folder in sysfs; of a regular file, that of the device its filesystem is on. None: there is none."""
    status = os.stat(path)
    number = status.st_rdev if stat.S_ISBLK(status.st_mode) else status.st_dev
    directory = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    return directory.resolve() if directory.exists() else None


def has_volatile_cache(path: str) -> bool | None:
    """True: the device keeps writes in a cache that loses power. None: the kernel does not tell."""
    directory = sysfs_directory(path)
    if directory is None:
        return None
    for folder in (directory, directory.parent):
        setting = folder / "queue" / "write_cache"
        if setting.exists():
            return setting.read_text().strip() == "write back"
    return None

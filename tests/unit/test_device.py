"""What the kernel may do to a read or a write: move less than was asked for, nothing, or fail. On a kernel made of a bytearray."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from hdad.errors import DeviceBusyError, DeviceError, DeviceFullError, DeviceLostError, DeviceTimeoutError, ExitStatus, FencedError
from hdad.log.device import IOV_MAX, Device, device_error

BLOCK = 512


class Kernel:
    """``short``: how many bytes of so many it moves in one call; ``fails``: the error number of a call, 0: none."""

    def __init__(self, size: int = 1 << 20) -> None:
        self.content = bytearray(size)
        self.short: Callable[[int], int] = lambda size: size
        self.fails: Callable[[], int] = lambda: 0
        self.flags: list[int] = []
        self.buffers_max = 0

    def _count(self, size: int) -> int:
        if number := self.fails():
            raise OSError(number, os.strerror(number))
        return self.short(size)

    def pwritev(self, _fd: int, buffers: Sequence[memoryview], address: int, flags: int) -> int:
        data = b"".join(buffers)
        count = self._count(len(data))
        self.content[address : address + count] = data[:count]
        self.flags.append(flags)
        self.buffers_max = max(self.buffers_max, len(buffers))
        return count

    def preadv(self, _fd: int, buffers: Sequence[memoryview], address: int) -> int:
        (buffer,) = buffers
        count = min(self._count(len(buffer)), len(self.content) - address)
        buffer[:count] = self.content[address : address + count]
        return count

    def fsync(self, _fd: int) -> None:
        self._count(0)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    fake = SimpleNamespace(pwritev=made.pwritev, preadv=made.preadv, fsync=made.fsync, close=lambda _: None, RWF_DSYNC=os.RWF_DSYNC)
    monkeypatch.setattr("hdad.log.device.os", fake)
    return made


def device() -> Device:
    return Device("fake", 99, 1 << 20, BLOCK, True)


@pytest.mark.parametrize("seed", range(20))
def test_short_reads_and_writes_are_gone_on_with_until_all_is_there(kernel: Kernel, seed: int) -> None:
    rng = random.Random(seed)
    kernel.short = lambda size: min(size, rng.randint(1, 5) * BLOCK)
    buffers = [memoryview(rng.randbytes(rng.randint(1, 4) * BLOCK)) for _ in range(rng.randint(1, 9))]
    whole = b"".join(buffers)
    device().write(8 * BLOCK, buffers)
    assert kernel.content[8 * BLOCK : 8 * BLOCK + len(whole)] == whole
    assert not any(kernel.content[8 * BLOCK + len(whole) :])
    assert bytes(device().read(8 * BLOCK, len(whole))) == whole
    assert set(kernel.flags) == {os.RWF_DSYNC}, "each part is durable"


def test_more_buffers_than_one_call_takes_are_written_in_several(kernel: Kernel) -> None:
    buffers = [memoryview(bytes([index % 251]) * BLOCK) for index in range(IOV_MAX + 3)]
    device().write(0, buffers, durable=False)
    assert kernel.content[: len(buffers) * BLOCK] == b"".join(buffers)
    assert kernel.buffers_max == IOV_MAX and set(kernel.flags) == {0}


def test_a_read_beyond_the_end_is_an_error_and_no_zeros(kernel: Kernel) -> None:
    with pytest.raises(DeviceError, match="ends after 1024"):
        device().read(len(kernel.content) - 1024, 4096)


@pytest.mark.parametrize(
    ("number", "kind", "status"),
    [
        (errno.EIO, DeviceError, ExitStatus.DEVICE),
        (errno.ENOSPC, DeviceFullError, ExitStatus.DEVICE),
        (errno.EDQUOT, DeviceFullError, ExitStatus.DEVICE),
        (errno.ENODEV, DeviceLostError, ExitStatus.DEVICE),
        (errno.ENXIO, DeviceLostError, ExitStatus.DEVICE),
        (errno.ETIMEDOUT, DeviceTimeoutError, ExitStatus.DEVICE),
        (errno.EBUSY, DeviceBusyError, ExitStatus.BUSY),
        (errno.EBADE, FencedError, ExitStatus.FENCED),
    ],
)
def test_after_an_error_of_the_kernel_the_descriptor_takes_no_more_writes(
    kernel: Kernel, number: int, kind: type[DeviceError], status: ExitStatus
) -> None:
    """I8: at any part of a write, a second one would only seem to succeed."""
    for calls in (1, 3):
        left = [calls]

        def fails(left: list[int] = left) -> int:
            left[0] -= 1
            return number if not left[0] else 0

        kernel.fails, kernel.short = fails, lambda size: min(size, BLOCK)
        opened = device()
        with pytest.raises(kind, match=errno.errorcode[number]) as raised:
            opened.write(0, [memoryview(bytes(4 * BLOCK))])
        assert type(raised.value) is kind and raised.value.status is status
        kernel.fails = lambda: 0
        before = len(kernel.flags)
        with pytest.raises(kind, match="not used again") as raised:
            opened.write(0, [memoryview(bytes(BLOCK))])
        assert type(raised.value) is kind, "a fenced writer is fenced, whichever of its writes is told first"
        assert len(kernel.flags) == before
        with pytest.raises(kind):
            kernel.fails = lambda: number
            opened.read(0, BLOCK)


def test_a_write_that_takes_no_bytes_is_a_full_device(kernel: Kernel) -> None:
    kernel.short = lambda size: BLOCK if size == 2 * BLOCK else 0
    opened = device()
    with pytest.raises(DeviceFullError, match="took no bytes"):
        opened.write(0, [memoryview(bytes(2 * BLOCK))])
    with pytest.raises(DeviceError, match="not used again"):
        opened.write(0, [memoryview(bytes(BLOCK))])


def test_a_flush_that_failed_is_not_followed_by_a_write(kernel: Kernel) -> None:
    """fsyncgate: the second flush says that all is well."""
    opened = device()
    opened.flush()
    kernel.fails = lambda: errno.EIO
    with pytest.raises(DeviceError, match="flush"):
        opened.flush()
    kernel.fails = lambda: 0
    with pytest.raises(DeviceError, match="not used again"):
        opened.write(0, [memoryview(bytes(BLOCK))])


def test_an_error_that_nobody_knows_is_told_as_it_is() -> None:
    assert str(device_error("path", "open", OSError(None, "strange"))) == "path: open: strange (?)"

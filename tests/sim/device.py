"""A writer's open device in the whole-system simulation, and the threads its writes are made by.

The medium is a ``Disk``, which outlives its writers; an ``OpenDisk`` is one writer's descriptor of it, with the contract of the real one:
after a failed write it takes no more (I8). Every call is a place to die. ``Threads`` stands in for the pool of ``hdad.writer.writes``: a
write is on its way from ``submit`` until the scheduler lets it return, in any order, well or with an error of the kernel; the memory it
comes from is read when it lands, as DMA does, so that a ring whose room is given back too early shows.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from hdad.errors import DeviceError
from hdad.log.appender import Gather
from hdad.log.device import device_error
from tests.sim.disk import Disk, Flight

WRITE_ERRORS: Final = (errno.EIO, errno.ENOSPC, errno.ENODEV, errno.ETIMEDOUT)
Trip = Callable[[str], None]


def failure(what: str, number: int) -> DeviceError:
    """What the real device makes of an error of the kernel."""
    return device_error("simulated", what, OSError(number, "simulated"))


class OpenDisk:
    """``read_fails`` says whether the next read does; ``write_fails`` the error number of a write made in place, or 0."""

    path = "simulated"
    is_block = True

    def __init__(self, disk: Disk, trip: Trip, read_fails: Callable[[], bool], write_fails: Callable[[], int]) -> None:
        self._disk = disk
        self._trip = trip
        self._read_fails = read_fails
        self._write_fails = write_fails
        self._returning: tuple[Flight | None, int] | None = None
        self.has_failed = False
        self.size, self.logical_block_size = disk.size, disk.logical_block_size

    def read(self, address: int, size: int) -> memoryview:
        self._trip("read")
        if self._read_fails():
            raise failure(f"read of {size} bytes at {address}", errno.EIO)
        return self._disk.read(address, size)

    def write(self, address: int, buffers: Sequence[memoryview | bytes], durable: bool = True) -> None:
        if self.has_failed:
            raise DeviceError("simulated: an earlier write failed; this descriptor is not used again")
        if self._returning is not None:
            flight, number = self._returning
        else:
            flight, number = self.begin(address, buffers, durable), self._write_fails()
        if number:
            self.has_failed = True
            raise failure(f"write at {address}", number)
        if durable and flight is not None:
            self._disk.settle(flight)

    def flush(self) -> None:
        self._trip("flush")
        self._disk.flush()

    def close(self) -> None:
        pass

    def begin(self, address: int, buffers: Sequence[memoryview | bytes], durable: bool = True) -> Flight:
        """The kernel has the write; each of its sectors may land from now on."""
        self._trip("write")
        flight = self._disk.begin(address, buffers, durable)
        flight.source = buffers
        self._trip("write")
        return flight

    def returning(self, flight: Flight | None, number: int, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Run ``call``, whose write is ``flight`` and ends now, with an error if ``number`` is not 0."""
        self._returning = flight, number
        try:
            call(*arguments)
        finally:
            self._returning = None


class Threads:
    """Stands in for ``ThreadPoolExecutor``. ``is_stuck``: the device lets nothing return."""

    def __init__(self, device: OpenDisk, is_stuck: Callable[[], bool]) -> None:
        self._device = device
        self._is_stuck = is_stuck
        self._calls: list[tuple[Flight | None, Callable[..., Any], tuple[Any, ...]]] = []

    @property
    def count(self) -> int:
        """Writes on their way."""
        return len(self._calls)

    def submit(self, call: Callable[..., Any], *arguments: Any) -> None:
        first = arguments[0]
        address, buffers = (first.address, first.buffers) if isinstance(first, Gather) else (first, [arguments[1]])
        flight = None if self._device.has_failed else self._device.begin(address, buffers)  # of a failed descriptor nothing gets out
        self._calls.append((flight, call, arguments))

    def return_one(self, rng: random.Random, number: int = 0) -> bool:
        """Some write ends, with an error if ``number`` is not 0. False: none can."""
        if not self._calls or self._is_stuck():
            return False
        flight, call, arguments = self._calls.pop(rng.randrange(len(self._calls)))
        self._device.returning(flight, number, call, arguments)
        return True

    def shutdown(self, wait: bool = True) -> None:
        """What is on its way returns first."""
        while self._calls:
            flight, call, arguments = self._calls.pop()
            self._device.returning(flight, 0, call, arguments)

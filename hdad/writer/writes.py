"""Writes in flight: handed to threads or made in place, collected when they have ended.

Runs in the writer. The only threads of hdad's data path live here, and all they do is one ``Device.write``. After a failed write nothing
more is submitted, and ``reap`` raises what the device said (I8): the process exits, recovery decides. Owns the age of the oldest write.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from hdad.clock import monotonic_ns
from hdad.exchange.slots import ring_bell
from hdad.log.appender import Gather
from hdad.log.device import BlockDevice
from hdad.metrics.counters import RoleBlock


class Completed(Protocol):
    """What is called with each gather that is durable, in the order of completion."""

    def __call__(self, gather: Gather, /) -> object: ...


class Writes:
    """``bell`` is rung when a thread's write has ended. Never more than ``inflight_max`` are with the device; what was submitted beyond
    waits for the next thread that is free, which takes it without a word from the loop."""

    def __init__(self, device: BlockDevice, inflight_max: int, bell: int, block: RoleBlock) -> None:
        self._device = device
        self._inflight_max = inflight_max
        self._bell = bell
        self._block = block
        self._threads = ThreadPoolExecutor(inflight_max, "hdad-write")
        self._aside_thread = ThreadPoolExecutor(1, "hdad-lease")
        self._started_ns: dict[int, int] = {}
        self._ended: deque[tuple[Gather, int, int, BaseException | None]] = deque()  # with its begin and end at the device
        self._aside_busy = False
        self._aside_since_ns = 0  # a lease that hangs is a device that hangs
        self._aside_error: BaseException | None = None
        self._write_us = block.histogram("write_us")
        self._batch_bytes = block.histogram("batch_bytes")

    @property
    def inflight_count(self) -> int:
        """Writes submitted and not reaped yet."""
        return len(self._started_ns)

    def _begin(self, gather: Gather) -> None:
        self._started_ns[gather.first_lsn] = monotonic_ns()
        self._show()

    def _show(self) -> None:
        started = self._started_ns
        self._block.set("inflight", min(len(started), self._inflight_max))
        oldest_ns = min(started.values()) if started else 0
        if self._aside_since_ns and (not oldest_ns or self._aside_since_ns < oldest_ns):
            oldest_ns = self._aside_since_ns
        self._block.set("oldest_write_ns", oldest_ns)

    def inline(self, gather: Gather) -> None:
        """Write here and now; durable on return, to be reaped. Raises DeviceError."""
        self._begin(gather)
        started_ns = self._started_ns[gather.first_lsn]
        self._device.write(gather.address, gather.buffers, durable=True)
        self._ended.append((gather, started_ns, monotonic_ns(), None))

    def submit(self, gather: Gather) -> None:
        """Hand the write to a thread."""
        self._begin(gather)
        self._threads.submit(self._in_thread, gather)

    def _in_thread(self, gather: Gather) -> None:
        started_ns = monotonic_ns()
        error: BaseException | None = None
        try:
            self._device.write(gather.address, gather.buffers, durable=True)
        except BaseException as caught:  # root of the thread: reap raises it in the loop
            error = caught
        self._ended.append((gather, started_ns, monotonic_ns(), error))
        ring_bell(self._bell)

    @property
    def is_aside_busy(self) -> bool:
        """True: the last write aside is still on its way."""
        return self._aside_busy

    def aside(self, address: int, buffer: memoryview, then: Callable[[], object] = lambda: None) -> None:
        """Hand a write that nothing waits for (the lease) to a thread, and what is to be done after it; one at a time."""
        assert not self._aside_busy
        self._aside_busy = True
        self._aside_since_ns = monotonic_ns()
        self._show()
        self._aside_thread.submit(self._aside_in_thread, address, buffer, then)

    def _aside_in_thread(self, address: int, buffer: memoryview, then: Callable[[], object]) -> None:
        try:
            self._device.write(address, [buffer], durable=True)
            then()
        except BaseException as caught:  # root of the thread: reap raises it in the loop
            self._aside_error = caught
        self._aside_busy = False
        ring_bell(self._bell)

    def close(self) -> None:
        """Wait for what is on its way aside. Raises what it raised."""
        self._threads.shutdown(wait=True)
        self._aside_thread.shutdown(wait=True)
        if self._aside_error is not None:
            raise self._aside_error

    def reap(self, completed: Completed) -> int:
        """Report what has ended. Returns how many writes. Raises the first error of a write."""
        if self._aside_error is not None:
            self._block.add("write_errors", 1)
            raise self._aside_error
        if self._aside_since_ns and not self._aside_busy:
            self._aside_since_ns = 0
            self._show()
        count = 0
        while self._ended:
            gather, started_ns, ended_ns, error = self._ended.popleft()
            del self._started_ns[gather.first_lsn]
            self._show()
            if error is not None:
                self._block.add("write_errors", 1)
                raise error
            count += 1
            self._write_us.observe((ended_ns - started_ns) // 1000)
            self._batch_bytes.observe(gather.size)
            self._block.add("writes", 1)
            self._block.add("device_bytes", gather.size)
            completed(gather)
        return count

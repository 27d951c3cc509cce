"""Several hosts on one LUN in virtual time: their clocks, their writes on the way, the array's reservation. For tests/sim/fence.

Each process is a greenlet that gives way at every touch of device, array and clock; the world lets whoever is due go on. A host that
stands still has no greenlet running, but what it had submitted goes on to land. A write is on its way for a while: part of its sectors
land at one moment, the rest at another; the array looks at the reservation at both. PREEMPT AND ABORT ends what is on its way. A host's
clock runs up to half a percent fast or slow; its wall clock jumps.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from greenlet import GreenletExit, getcurrent, greenlet

from hdad.errors import DeviceBusyError, DeviceError, FencedError
from tests.sim.reservation import Lun, ModelReservation

MS: Final = 1_000_000
SECTOR: Final = 512
EPOCH_NS: Final = 1_700_000_000 * 10**9


@dataclass(eq=False)
class Flight:
    """A write on its way. ``waiter``: None when its process is gone."""

    host: Host
    path: int
    early: list[tuple[int, bytes]]
    late: list[tuple[int, bytes]]
    waiter: greenlet | None
    error: DeviceError | None = None
    is_over: bool = False


@dataclass(eq=False)
class Host:
    """One machine. ``still_until_ns``: it stands still; ``slow``: factor of its device's latency; ``has_path`` False: its device fails;
    ``paths``: how many it has, each with a key of its own; writes go by the first ``used_paths``."""

    name: str
    node: bytes
    offset_ns: int
    rate: float
    boot: bytes = b""
    wall_ns: int = 0
    still_until_ns: int = 0
    slow: int = 1
    has_path: bool = True
    paths: int = 2
    used_paths: int = 2
    is_open: bool = False
    starts: int = 0
    greenlets: list[greenlet] = field(default_factory=list)
    flights: list[Flight] = field(default_factory=list)


class World:
    """The LUN (``image``), the array (``lun``), and what is due when."""

    def __init__(self, rng: random.Random, size: int) -> None:
        self.rng = rng
        self.now_ns = 1_000_000 * MS
        self.image = bytearray(size)
        self.lun = Lun(on_abort=self._abort)
        self.hosts: list[Host] = []
        self.current: Host | None = None
        self._due: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self.trouble = ""  # a finding: nothing more happens
        self._count = 0
        self._home = getcurrent()

    # -- time ---------------------------------------------------------------------------------------------------------------------------

    def at(self, at_ns: int, call: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._due, (at_ns, self._count, call, arguments))

    def run_until(self, until_ns: int) -> None:
        """Let everything that is due happen, unless there is trouble."""
        due = self._due
        while due and due[0][0] <= until_ns:
            at_ns, _, call, arguments = heapq.heappop(due)
            self.now_ns = max(self.now_ns, at_ns)
            call(*arguments)
            if self.trouble:
                return
        self.now_ns = until_ns

    def clock_ns(self) -> int:
        """Of the host that runs; monotonic."""
        host = self.current
        return self.now_ns if host is None else host.offset_ns + int(self.now_ns * host.rate)

    def wall_ns(self) -> int:
        return EPOCH_NS + self.now_ns + (self.current.wall_ns if self.current is not None else 0)

    # -- processes ----------------------------------------------------------------------------------------------------------------------

    def start(self, host: Host, body: Callable[[], None]) -> greenlet:
        """A process of ``host``, or a thread of it."""
        process = greenlet(body, self._home)
        host.greenlets.append(process)
        self.wake(host, process, self.now_ns)
        return process

    def wake(self, host: Host, process: greenlet, at_ns: int) -> None:
        self.at(at_ns, self._go_on, host, process)

    def _go_on(self, host: Host, process: greenlet) -> None:
        if process not in host.greenlets:
            return
        if host.still_until_ns > self.now_ns:
            self.at(host.still_until_ns, self._go_on, host, process)
            return
        self.current = host
        process.switch()
        self.current = None
        if process.dead and process in host.greenlets:
            host.greenlets.remove(process)

    def sleep(self, local_ns: int) -> None:
        """The process that runs waits, by its host's clock."""
        host = self.current
        assert host is not None
        self.at(self.now_ns + int(local_ns / host.rate) + 1, self._go_on, host, getcurrent())
        self._home.switch()

    def give_way(self, most_ms: float = 0.2) -> None:
        """Anything may happen now."""
        self.sleep(int(self.rng.random() * most_ms * MS))

    def kill(self, host: Host) -> None:
        """All processes of ``host`` are gone at once; what is on its way is on its way."""
        doomed, host.greenlets = host.greenlets, []
        for flight in host.flights:
            flight.waiter = None
        for process in doomed:
            if not process.dead:
                self.current = host
                process.throw(GreenletExit)
        self.current = None
        host.is_open = False

    # -- writes on their way ------------------------------------------------------------------------------------------------------------

    def submit(self, host: Host, address: int, content: bytes, latency_ns: int) -> Flight:
        sectors = [(address + at, content[at : at + SECTOR]) for at in range(0, len(content), SECTOR)]
        early = [sector for sector in sectors if self.rng.random() < 0.5]
        self._count += 1
        flight = Flight(host, self._count % host.used_paths, early, [sector for sector in sectors if sector not in early], getcurrent())
        host.flights.append(flight)
        first_ns = self.now_ns + int(latency_ns * self.rng.random())
        self.at(first_ns, lambda: self._land(flight, flight.early))
        self.at(self.now_ns + latency_ns, lambda: self._complete(flight))
        return flight

    def _land(self, flight: Flight, sectors: list[tuple[int, bytes]]) -> None:
        if flight.is_over:
            return
        if not self.lun.may_write(flight.host.name, flight.path):
            self._end(flight, FencedError("simulated: reservation conflict (EBADE)"))
            return
        for address, content in sectors:
            self.image[address : address + SECTOR] = content

    def _complete(self, flight: Flight) -> None:
        self._land(flight, flight.late)
        self._end(flight, None)

    def _end(self, flight: Flight, error: DeviceError | None) -> None:
        if flight.is_over:
            return
        flight.is_over, flight.error = True, error
        flight.host.flights.remove(flight)
        if flight.waiter is not None:
            self.wake(flight.host, flight.waiter, self.now_ns)

    def _abort(self, hosts: set[str]) -> None:
        for host in self.hosts:
            if host.name in hosts:
                for flight in list(host.flights):
                    self._end(flight, FencedError("simulated: aborted by another host (EBADE)"))

    def drop_flights(self, host: Host) -> None:
        """Its kernel is gone: part of what is on its way has landed, the rest never will."""
        for flight in list(host.flights):
            if self.rng.random() < 0.5:
                self._land(flight, [sector for sector in flight.late if self.rng.random() < 0.5])
            self._end(flight, None)


class HostDevice:
    """The LUN as one process of a host sees it; stands in for ``Device``. ``latency``: chooses how long a write is on its way."""

    is_block = True
    logical_block_size = SECTOR

    def __init__(self, world: World, host: Host, latency: Callable[[], int], *, write: bool = False) -> None:
        self.path = f"{host.name}:simulated"
        self.size = len(world.image)
        self._world, self._host, self._latency, self._write = world, host, latency, write
        self._failure: DeviceError | None = None
        if not host.has_path:
            raise DeviceError("simulated: no path (EIO)")
        if write:
            if host.is_open:
                raise DeviceBusyError("simulated: another process of this host has it")
            host.is_open = True

    def read(self, address: int, size: int) -> memoryview:
        self._world.give_way()
        if not self._host.has_path:
            raise DeviceError("simulated: no path (EIO)")
        content = bytes(self._world.image[address : address + size])
        self._world.sleep(self._latency() // 4)
        return memoryview(content)

    def write(self, address: int, buffers: Sequence[Any], durable: bool = True) -> None:
        world = self._world
        assert self._write and durable
        if self._failure is not None:
            raise type(self._failure)("simulated: an earlier write failed")
        content = b"".join(bytes(buffer) for buffer in buffers)
        world.give_way()  # between the look at the lease and the submission anything may happen
        if not self._host.has_path:
            self._failure = DeviceError("simulated: no path (EIO)")
            raise self._failure
        flight = world.submit(self._host, address, content, self._latency())
        while not flight.is_over:
            world._home.switch()
        if flight.error is not None:
            self._failure = flight.error
            raise flight.error

    def flush(self) -> None:
        self._world.give_way()

    def close(self) -> None:
        if self._write:
            self._host.is_open = False


class HostReservation(ModelReservation):
    """The model, each command of which takes time before and after it is carried out."""

    def __init__(
        self, world: World, host: Host, latency: Callable[[], int], *, is_readable: bool, path: int | None = None
    ) -> None:
        paths = range(host.paths) if path is None else [path]
        super().__init__(world.lun, host.name, paths, is_readable=is_readable, on_command=self._before)
        self._world, self._host, self._latency = world, host, latency

    def _before(self, what: str) -> None:
        self._world.sleep(self._latency() // 2)
        if not self._host.has_path:
            raise DeviceError(f"simulated: {what}: no path (EIO)")

    def register(self, key: int) -> bool:
        return self._after(super().register(key))

    def unregister(self) -> bool:
        return self._after(super().unregister())

    def reserve(self, key: int) -> bool:
        return self._after(super().reserve(key))

    def preempt_and_abort(self, key: int, victim: int) -> bool:
        return self._after(super().preempt_and_abort(key, victim))

    def _after(self, answer: bool) -> bool:
        self._world.sleep(self._latency() // 2)
        return answer

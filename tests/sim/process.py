"""What stands in for the parts of a process in the whole-system simulation: its end, its channel, its mappings, its writes."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hdad._core import Ring
from hdad.errors import DeviceError
from hdad.log.appender import Gather
from tests.sim.disk import Disk, Flight
from tests.sim.log import Violation

if TYPE_CHECKING:
    from hdad.worker.loop import WorkerLoop
    from hdad.writer.loop import WriterLoop

Trip = Callable[[str], None]


class Killed(BaseException):
    """kill -9: no handler of the killed sees it."""


class Hung(BaseException):
    """A stage that never returns: its process does nothing more until somebody kills it."""


class End:
    """One end of a command channel (``hdad.exchange.channel.Channel``)."""

    closed_by_peer = False

    def __init__(self, fd: int, own: deque[dict[str, Any]], other: deque[dict[str, Any]]) -> None:
        self._fd, self._own, self._other = fd, own, other

    def receive(self) -> list[dict[str, Any]]:
        found = list(self._own)
        self._own.clear()
        return found

    def send(self, message: Mapping[str, Any]) -> bool:
        self._other.append(dict(message))
        return True

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        pass


@dataclass(eq=False)
class Process:
    """A child that was forked. ``end``: its exit status once it is dead; ``loop``: None until it has begun."""

    pid: int
    role: int  # the worker's index; the writer comes after the workers
    generation: int
    begin: Callable[[Process], WorkerLoop | WriterLoop]
    down: deque[dict[str, Any]] = field(default_factory=deque)
    up: deque[dict[str, Any]] = field(default_factory=deque)
    loop: WorkerLoop | WriterLoop | None = None
    end: int | None = None
    is_hung: bool = False
    still_until_ns: int = 0

    @property
    def parents_end(self) -> End:
        return End(-self.pid, self.up, self.down)

    @property
    def childs_end(self) -> End:
        return End(self.pid, self.down, self.up)


class TrippedRing:
    """A mapping of its own, as each process has one; every touch is a place to die, before it or after."""

    def __init__(self, ring: Ring, trip: Trip) -> None:
        self._ring = Ring.attach(ring.fd)
        self._trip = trip

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ring, name)
        if not callable(found):
            return found
        trip = self._trip

        def touched(*args: Any) -> Any:
            trip(name)
            result = found(*args)
            trip(name)
            return result

        setattr(self, name, touched)
        return touched


class SimWrites:
    """Stands in for ``hdad.writer.writes.Writes``: writes return when the scheduler says so."""

    def __init__(self, disk: Disk, trip: Trip) -> None:
        self._disk = disk
        self._trip = trip
        self.inflight: list[tuple[Flight, Gather]] = []
        self._ended: list[Gather] = []
        self._aside: Flight | None = None
        self._then: Callable[[], object] = lambda: None
        self._error: DeviceError | None = None
        self._has_raised = False

    @property
    def inflight_count(self) -> int:
        return len(self.inflight) + len(self._ended)

    @property
    def is_aside_busy(self) -> bool:
        return self._aside is not None

    def _begin(self, address: int, buffers: Any) -> Flight:
        if self._has_raised:
            raise Violation("I8: a writer goes on after a failed write")
        self._trip("write")
        flight = self._disk.begin(address, buffers)
        self._trip("write")
        return flight

    def submit(self, gather: Gather) -> None:
        self.inflight.append((self._begin(gather.address, gather.buffers), gather))

    def inline(self, gather: Gather) -> None:
        flight = self._begin(gather.address, gather.buffers)
        self._disk.settle(flight)
        self._ended.append(gather)

    def aside(self, address: int, buffer: memoryview, then: Callable[[], object] = lambda: None) -> None:
        self._aside, self._then = self._begin(address, [bytes(buffer)]), then

    def return_one(self, rng: random.Random, fails: bool = False) -> bool:
        """Some write returns, or fails."""
        count = len(self.inflight) + (self._aside is not None)
        if not count or self._error is not None:
            return False
        index = rng.randrange(count)
        flight, gather = self.inflight[index] if index < len(self.inflight) else (self._aside, None)
        assert flight is not None
        if fails:
            self._error = DeviceError("simulated: write failed (EIO)")
            return True
        self._disk.settle(flight)
        if gather is None:
            self._aside = None
            self._then()
        else:
            del self.inflight[index]
            self._ended.append(gather)
        return True

    def reap(self, completed: Any) -> int:
        ended, self._ended = self._ended, []
        for gather in ended:
            completed(gather)
        if self._error is not None:
            self._has_raised = True
            raise self._error
        return len(ended)

    def close(self) -> None:
        """As the real one: what is in flight returns first."""
        while self.inflight or self._aside is not None:
            if not self.return_one(random.Random(0)):
                break

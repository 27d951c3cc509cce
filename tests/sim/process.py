"""What stands in for the parts of a process in the whole-system simulation: its end, its channel, its mappings."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hdad._core import Ring

if TYPE_CHECKING:
    from hdad.exchange.link.loop import LinkLoop
    from hdad.worker.loop import WorkerLoop
    from hdad.writer.loop import WriterLoop

    Loop = WorkerLoop | WriterLoop | LinkLoop

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
    role: int  # the worker's index; the writer comes after the workers, then the link
    generation: int
    begin: Callable[[Process], Loop]
    down: deque[dict[str, Any]] = field(default_factory=deque)
    up: deque[dict[str, Any]] = field(default_factory=deque)
    loop: Loop | None = None
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

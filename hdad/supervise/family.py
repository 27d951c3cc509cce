"""The supervisor's children: one ``Child`` each, started, told, reaped. What a death means is the loop's to decide."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from hdad.clock import wall_ns
from hdad.errors import ExitStatus
from hdad.supervise.spawn import Forked, kill, reap
from hdad.supervise.states import ChildEvent, ChildState, Deaths, next_state


@dataclass(slots=True, eq=False)
class Child:
    """``role``: writer, worker-N or redis. ``fork`` starts it. ``wanted``: it is to run."""

    role: str
    fork: Callable[[int], Forked]
    index: int = -1
    state: ChildState = ChildState.STOPPED
    wanted: bool = True
    forked: Forked | None = None
    generation: int = 0
    restarts: int = 0
    due_ns: int = 0  # when a WAITING child is started again
    started_ns: int = 0  # wall clock
    cpus: list[int] = field(default_factory=list)
    deaths: Deaths = field(default_factory=Deaths)
    failures: Deaths = field(default_factory=Deaths)  # ends that the device is to blame for
    last_end: str = ""
    stall: str = ""

    @property
    def is_running(self) -> bool:
        """True: there is a process."""
        return self.forked is not None

    @property
    def pid(self) -> int:
        """0: none."""
        return self.forked.pid if self.forked is not None else 0

    def step(self, event: ChildEvent) -> None:
        """Follow the table."""
        self.state = next_state(self.state, event)

    def start(self) -> Forked:
        """Fork it. Raises OSError."""
        self.generation += 1
        self.forked = self.fork(self.generation)
        self.started_ns = wall_ns()
        self.stall = ""
        self.step(ChildEvent.FORKED)
        return self.forked

    def tell(self, message: dict[str, Any]) -> None:
        """Send a command, if it runs and listens."""
        if self.forked is not None and self.forked.channel is not None:
            self.forked.channel.send(message)

    def drain(self) -> None:
        """Tell it to finish and go."""
        self.wanted = False
        self.step(ChildEvent.TOLD_TO_DRAIN)
        if self.forked is not None and self.forked.channel is None:
            kill(self.forked, signal.SIGTERM)  # a foreign program knows no other word
        self.tell({"op": "drain"})

    def end(self) -> int:
        """After its pidfd became readable: reap it. Returns the exit code, negative for a signal."""
        assert self.forked is not None
        forked, self.forked = self.forked, None
        code = reap(forked)
        self.step(ChildEvent.DIED)
        return code

    def kill(self) -> None:
        """SIGKILL."""
        if self.forked is not None:
            kill(self.forked)


def describe_end(code: int) -> str:
    """How a child ended, in words; negative: by which signal."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    try:
        return f"ended with status {code} ({ExitStatus(code).name})"
    except ValueError:
        return f"ended with status {code}"


def kernel_state(pid: int) -> str:
    """What the kernel says the writer is doing; D: it sleeps in the device and cannot even be killed."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            letter = file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "is gone"
    return "sleeps in the device (D state)" if letter == "D" else f"is in state {letter}"

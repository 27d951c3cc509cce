"""What a child may be, and what each event makes of it: one table, a missing entry is a bug. Pure. Also back-off and crash loops."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

SECOND_NS: Final = 1_000_000_000
MS: Final = 1_000_000


class ChildState(Enum):
    """A child, as the supervisor sees it."""

    STOPPED = "stopped"  # not wanted, not there
    STARTING = "starting"  # forked, not ready yet
    READY = "ready"
    DRAINING = "draining"  # told to finish and go
    WAITING = "waiting"  # died; started again when its back-off is over


class ChildEvent(Enum):
    """What happens to a child."""

    FORKED = "forked"
    SAID_READY = "said ready"
    TOLD_TO_DRAIN = "told to drain"
    DIED = "died"
    GIVEN_UP = "given up"  # not wanted any more while it waits


_S, _E = ChildState, ChildEvent
TRANSITIONS: Final[dict[tuple[ChildState, ChildEvent], ChildState]] = {
    (_S.STOPPED, _E.FORKED): _S.STARTING,
    (_S.STARTING, _E.SAID_READY): _S.READY,
    (_S.STARTING, _E.TOLD_TO_DRAIN): _S.DRAINING,  # SIGTERM during start
    (_S.STARTING, _E.DIED): _S.WAITING,
    (_S.READY, _E.SAID_READY): _S.READY,
    (_S.READY, _E.TOLD_TO_DRAIN): _S.DRAINING,
    (_S.READY, _E.DIED): _S.WAITING,
    (_S.DRAINING, _E.SAID_READY): _S.DRAINING,  # its word and ours crossed
    (_S.DRAINING, _E.TOLD_TO_DRAIN): _S.DRAINING,
    (_S.DRAINING, _E.DIED): _S.STOPPED,
    (_S.WAITING, _E.FORKED): _S.STARTING,
    (_S.WAITING, _E.TOLD_TO_DRAIN): _S.STOPPED,
    (_S.WAITING, _E.GIVEN_UP): _S.STOPPED,
    (_S.STOPPED, _E.TOLD_TO_DRAIN): _S.STOPPED,
    (_S.STOPPED, _E.GIVEN_UP): _S.STOPPED,
}


def next_state(state: ChildState, event: ChildEvent) -> ChildState:
    """Raises KeyError for what cannot happen."""
    return TRANSITIONS[state, event]


@dataclass(slots=True)
class Deaths:
    """When a role died: decides the back-off, and what is a crash loop."""

    times_ns: deque[int] = field(default_factory=deque)

    def add(self, now_ns: int, window_ns: int) -> int:
        """One more. Returns how many within the window."""
        self.times_ns.append(now_ns)
        while self.times_ns and self.times_ns[0] < now_ns - window_ns:
            self.times_ns.popleft()
        return len(self.times_ns)

    def backoff_ns(self, first_ms: int, max_ms: int) -> int:
        """Doubled with each death in the window; the first death is answered at once."""
        count = len(self.times_ns)
        if count <= 1:
            return 0
        return min(first_ms << min(count - 2, 30), max_ms) * MS


@dataclass(frozen=True, slots=True)
class Stall:
    """A child that makes no progress, in words; ``kill``: nothing but killing it helps."""

    text: str
    kill: bool


def judge_worker(now_ns: int, heartbeat_ns: int, busy_since_ns: int, batch_timeout_ns: int, stall_ns: int) -> Stall | None:
    """A worker's heartbeat and its running batch against their limits.

    | batch runs | for longer than batch_timeout | heartbeat older than stall | verdict                                     |
    |------------|-------------------------------|----------------------------|---------------------------------------------|
    | yes        | yes                           | any                        | kill: a stage hangs; trials find the entry  |
    | yes        | no                            | any                        | fine: a stage may take its time             |
    | no         |                               | yes                        | kill: stopped or stuck outside of a stage   |
    | no         |                               | no                         | fine                                        |
    """
    if busy_since_ns:
        age_ns = now_ns - busy_since_ns
        if age_ns > batch_timeout_ns:
            return Stall(f"a batch has been in its pipeline for {age_ns / SECOND_NS:.1f} s (pipeline.batch_timeout_ms)", True)
        return None
    age_ns = now_ns - heartbeat_ns
    return Stall(f"no sign of life for {age_ns / SECOND_NS:.0f} s", True) if heartbeat_ns and age_ns > stall_ns else None


def judge_writer(now_ns: int, heartbeat_ns: int, oldest_write_ns: int, is_recovering: bool, stuck_ns: int, stall_ns: int) -> Stall | None:
    """A writer that waits for the device is not killed: that would not help, and the kernel holds it anyway (D state)."""
    if oldest_write_ns:
        age_ns = now_ns - oldest_write_ns
        return Stall(f"the oldest write has been in flight for {age_ns / SECOND_NS:.0f} s", False) if age_ns > stuck_ns else None
    age_ns = now_ns - heartbeat_ns
    if heartbeat_ns and not is_recovering and age_ns > stall_ns:
        return Stall(f"no sign of life for {age_ns / SECOND_NS:.0f} s, and no write is in flight", True)
    return None

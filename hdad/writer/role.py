"""What this host is to its log: one table, a missing entry is a bug. Pure. The writer's process goes through it, the supervisor follows.

    STANDBY ──claims──▶ TAKING_OVER ──serves──▶ WRITER ──releases──▶ STEPPING_DOWN ──watches──▶ STANDBY
       ▲────── watches (another host was faster) ──┘        └── fenced ──▶ FENCED: the daemon ends, and is not restarted
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Role(Enum):
    """Of this host."""

    NONE = "none"  # no writer process, or one that has not said anything yet
    STANDBY = "standby"  # watches the lease of the writer; admits nothing
    TAKING_OVER = "taking over"  # claims the log, recovers
    WRITER = "writer"
    STEPPING_DOWN = "stepping down"  # makes what is in flight durable, releases the log
    FENCED = "fenced"  # another host took the log over while this one was the writer


class RoleEvent(Enum):
    """What the writer's process says, or how it ended."""

    WATCHES = "watches"
    CLAIMS = "claims"
    SERVES = "serves"
    RELEASES = "releases"
    FENCED = "fenced"
    ENDED = "ended"


_R, _E = Role, RoleEvent
TRANSITIONS: Final[dict[tuple[Role, RoleEvent], Role]] = {
    (_R.NONE, _E.WATCHES): _R.STANDBY,
    (_R.NONE, _E.CLAIMS): _R.TAKING_OVER,
    (_R.NONE, _E.FENCED): _R.FENCED,
    (_R.NONE, _E.ENDED): _R.NONE,
    (_R.STANDBY, _E.WATCHES): _R.STANDBY,
    (_R.STANDBY, _E.CLAIMS): _R.TAKING_OVER,
    (_R.STANDBY, _E.FENCED): _R.FENCED,
    (_R.STANDBY, _E.ENDED): _R.NONE,
    (_R.TAKING_OVER, _E.WATCHES): _R.STANDBY,  # another host was faster, or the device said no
    (_R.TAKING_OVER, _E.SERVES): _R.WRITER,
    (_R.TAKING_OVER, _E.FENCED): _R.FENCED,
    (_R.TAKING_OVER, _E.ENDED): _R.NONE,
    (_R.WRITER, _E.RELEASES): _R.STEPPING_DOWN,
    (_R.WRITER, _E.FENCED): _R.FENCED,
    (_R.WRITER, _E.ENDED): _R.NONE,
    (_R.STEPPING_DOWN, _E.WATCHES): _R.STANDBY,
    (_R.STEPPING_DOWN, _E.FENCED): _R.FENCED,
    (_R.STEPPING_DOWN, _E.ENDED): _R.NONE,
    (_R.FENCED, _E.ENDED): _R.FENCED,
}


def next_role(role: Role, event: RoleEvent) -> Role:
    """Raises KeyError for what cannot happen."""
    return TRANSITIONS[role, event]

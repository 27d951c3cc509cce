"""This host's role for its log, as the writer's process tells it, and who the writer is. Runs in the supervisor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hdad.clock import wall_ns
from hdad.errors import ExitStatus
from hdad.writer.role import Role, RoleEvent, next_role


class Node:
    """``role`` since ``since_ns`` (wall clock) because of ``why``; ``owner``: the writer, as this host saw it last (keys: node, contact,
    epoch, since_ns, is_serving, is_released), {} if the log never had one or nothing was seen yet. ``on_change`` hears of each new role."""

    def __init__(self) -> None:
        self.role = Role.NONE
        self.since_ns = wall_ns()
        self.why = ""
        self.owner: dict[str, Any] = {}
        self.on_change: list[Callable[[Role], object]] = []

    def heard(self, message: dict[str, Any]) -> None:
        """The writer's process said something of its role."""
        self.owner = message.get("owner", self.owner)
        self._step(RoleEvent(message["what"]), str(message.get("text", "")))

    def ended(self, code: int) -> None:
        """The writer's process has ended with this status."""
        self._step(RoleEvent.FENCED if code == ExitStatus.FENCED else RoleEvent.ENDED, "")

    def _step(self, event: RoleEvent, why: str) -> None:
        role = next_role(self.role, event)
        if role is not self.role:
            self.role, self.since_ns, self.why = role, wall_ns(), why
            for call in self.on_change:
                call(role)

    def as_dict(self, fence: str) -> dict[str, Any]:
        """For the status page. ``role`` is "" while no writer's process has said anything: always so on a host without the device."""
        role = self.role.value if self.role is not Role.NONE else ""
        return {"role": role, "since_ns": self.since_ns, "why": self.why, "fence": fence, "writer": self.owner}

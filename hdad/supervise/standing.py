"""The alarms that stand, by what they are about and by who raised them. Pure.

Several processes may say the same of one thing (each worker, that Redis does not answer), and a lane moves from one worker to the next: an
alarm stands as long as anybody has raised it and neither cleared it nor died.
"""

from __future__ import annotations

from typing import NamedTuple


class Alarm(NamedTuple):
    """``since_ns``: wall clock."""

    text: str
    since_ns: int
    role: str


class Standing:
    """LIMIT: as many as there are lanes and roles."""

    def __init__(self) -> None:
        self._raised: dict[str, dict[str, Alarm]] = {}

    def set(self, key: str, text: str, role: str, now_ns: int) -> None:
        """``role`` raises it, or says it in other words."""
        by_role = self._raised.setdefault(key, {})
        by_role[role] = Alarm(text, by_role[role].since_ns if role in by_role else now_ns, role)

    def clear(self, key: str, role: str) -> None:
        """It is over, as far as ``role`` knows."""
        by_role = self._raised.get(key, {})
        by_role.pop(role, None)
        if not by_role:
            self._raised.pop(key, None)

    def ended(self, role: str) -> None:
        """Its process is gone: its successor raises again what still is so."""
        for key in list(self._raised):
            self.clear(key, role)

    def all(self) -> dict[str, Alarm]:
        """One by key: what stands longest."""
        return {key: min(by_role.values(), key=lambda alarm: alarm.since_ns) for key, by_role in self._raised.items()}

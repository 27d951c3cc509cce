"""The two clocks. Deadlines use the monotonic one; the wall clock only labels. Machines get values, never these functions."""

from __future__ import annotations

from time import monotonic_ns, time_ns

__all__ = ["monotonic_ns", "wall_ns"]


def wall_ns() -> int:
    """Nanoseconds since the epoch: for labels that people read, never for a deadline."""
    return time_ns()

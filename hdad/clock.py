"""The clocks. Deadlines use the monotonic one; the wall clock only labels. Machines get values, never these functions."""

from __future__ import annotations

from time import CLOCK_BOOTTIME, clock_gettime_ns, monotonic_ns, time_ns

__all__ = ["boottime_ns", "monotonic_ns", "wall_ns"]


def boottime_ns() -> int:
    """Monotonic, and it goes on while the host is suspended: for the age of this host's own lease."""
    return clock_gettime_ns(CLOCK_BOOTTIME)


def wall_ns() -> int:
    """Nanoseconds since the epoch: for labels that people read, never for a deadline."""
    return time_ns()

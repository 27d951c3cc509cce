"""How many entries a second each lane brings, smoothed. Pure; the writer's Members look at all lanes in turns and ask this.

An exponentially weighted mean over TAU_NS of what was committed: one burst does not move lanes about, a lasting change does within some
ten seconds. State: a row for each lane that was looked at, no more than lanes (I7).
"""

from __future__ import annotations

import math
from typing import Final

TAU_NS: Final = 10_000_000_000
SAMPLE_NS_MIN: Final = 500_000_000  # nearer looks than this say more about batches than about lanes


class Rates:
    """See the module."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[int, int, float]] = {}  # lane → entries, when (ns), entries a second

    def observe(self, lane: int, entries: int, now_ns: int) -> int | None:
        """``entries``: all that the lane ever had. The rate now, whole entries a second; None at the first look, or too soon after one."""
        row = self._rows.get(lane)
        if row is None:
            self._rows[lane] = (entries, now_ns, 0.0)
            return None
        before, at_ns, rate = row
        elapsed_ns = now_ns - at_ns
        if elapsed_ns < SAMPLE_NS_MIN:
            return None
        rate += (max(0, entries - before) * 1e9 / elapsed_ns - rate) * -math.expm1(-elapsed_ns / TAU_NS)
        self._rows[lane] = (entries, now_ns, rate)
        return int(rate)

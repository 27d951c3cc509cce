"""What is flat: pure arithmetic over the samples of a run, with its limits stated.

Judged is the second part of a run, in which the supervisor is not restarted, after a warm-up: growth is the Theil-Sen slope (the median of
the slopes between all pairs of samples, which kills and waves hardly move) times the time judged. So the limits hold for a run of three
minutes as for one of many hours, and mean more the longer it is.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final, NamedTuple

WARM_UP_S: Final = 20.0
MEMORY_GROWTH_MAX: Final = 24 * 1024 * 1024  # bytes, all processes of the daemon together
FDS_GROWTH_MAX: Final = 6.0  # all processes together; a kill leaves a few out for a moment
LATENCY_RATIO_MAX: Final = 2.0  # the last third's median p50 to the first third's
LATENCY_SLACK_US: Final = 1000.0
POINTS_MAX: Final = 300  # LIMIT: of a slope; 45,000 pairs


@dataclass(slots=True)
class Sample:
    """One second of a run. Sums are over all processes of the daemon; a value that was not to be had is None."""

    at_s: float
    added: int
    durable: int | None = None
    lag: int | None = None
    memory: int | None = None
    memory_by_role: dict[str, int] | None = None
    fds: int | None = None
    p50_us: int | None = None
    p99_us: int | None = None
    is_whole: bool = False  # every process was there


class Verdict(NamedTuple):
    """One figure against its limit."""

    name: str
    value: float
    limit: float
    unit: str

    @property
    def key(self) -> str:
        """Its name in JSON."""
        return self.name.replace(" ", "_").replace(",", "")

    @property
    def is_flat(self) -> bool:
        """True: within the limit."""
        return self.value <= self.limit


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Theil-Sen: units of y for one of x; 0 for fewer than two points."""
    step = max(1, len(points) // POINTS_MAX)
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points[::step], 2) if x2 != x1]
    return statistics.median(slopes) if slopes else 0.0


def judge(samples: Sequence[Sample], judged_from_s: float) -> list[Verdict]:
    """Memory, descriptors and latency after the warm-up of the part that begins at ``judged_from_s``."""
    chosen = [sample for sample in samples if sample.at_s >= judged_from_s + WARM_UP_S and sample.is_whole]
    if len(chosen) < 10:
        return []
    seconds = chosen[-1].at_s - chosen[0].at_s
    memory = slope([(sample.at_s, sample.memory) for sample in chosen if sample.memory is not None]) * seconds
    fds = slope([(sample.at_s, sample.fds) for sample in chosen if sample.fds is not None]) * seconds
    latencies = [sample.p50_us for sample in chosen if sample.p50_us]
    third = max(1, len(latencies) // 3)
    first, last = (statistics.median(latencies[:third]), statistics.median(latencies[-third:])) if latencies else (0, 0)
    return [
        Verdict("memory growth", memory / (1 << 20), MEMORY_GROWTH_MAX / (1 << 20), "MiB"),
        Verdict("descriptors growth", fds, FDS_GROWTH_MAX, ""),
        Verdict("latency p50, last third", last / 1000, (LATENCY_RATIO_MAX * first + LATENCY_SLACK_US) / 1000, "ms"),
    ]

"""Numbers of repeated runs: median with minimum and maximum, ratios run by run, percentiles. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

Spread = dict[str, float]  # "median", "min", "max"


def spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum, to four significant digits. Raises ValueError without values."""
    if not values:
        raise ValueError("no values to make a median of")
    return {"median": _short(statistics.median(values)), "min": _short(min(values)), "max": _short(max(values))}


def is_spread(value: Any) -> bool:
    """Whether this is a figure with its minimum and maximum."""
    return isinstance(value, dict) and set(value) == {"median", "min", "max"}


def ratios(over: Sequence[float], under: Sequence[float]) -> Spread:
    """Round by round, one against the other."""
    return spread([first / second for first, second in zip(over, under, strict=True)])


def column(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    """One figure of all rounds."""
    return [row[name] for row in rows]


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Spread]:
    """All figures of all rounds; what is no number is left out."""
    return {name: spread(column(rows, name)) for name, value in rows[0].items() if isinstance(value, (int, float))}


def percentile(ordered: Sequence[int], percent: float) -> int:
    """Of sorted values: the smallest one that ``percent`` of all do not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def _short(value: float) -> float:
    return float(f"{value:.4g}")

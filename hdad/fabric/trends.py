"""What changed between surveys: since when a path is in its condition, and how much counters have risen. Pure.

One ``History`` lives as long as somebody looks: the supervisor for the daemon's life, ``hdactl paths --watch`` for its own. Wall clock, as
it is shown to people and compared between processes; nothing is decided by it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from hdad.fabric.facts import Facts, Path

SPAN_NS: Final = 60_000_000_000  # counters are compared with those of a minute ago
SAMPLES_MAX: Final = 64  # LIMIT: kept samples


@dataclass(frozen=True, slots=True)
class Trends:
    """``since``: path → when its condition began, wall clock ns. ``risen``: port → counter → by how much within ``span_s``."""

    since: Mapping[str, int] = field(default_factory=dict)
    risen: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    span_s: float = 0.0

    def age_s(self, path: str, now_ns: int) -> float | None:
        """How long a path has been in its condition; None: it was so when the looking began, or nobody looked."""
        began_ns = self.since.get(path, 0)
        return max(0, now_ns - began_ns) / 1e9 if began_ns else None

    def describe_age(self, path: str, now_ns: int) -> str:
        """`` for 12 s``, or nothing."""
        age_s = self.age_s(path, now_ns)
        return f" for {age_s:.0f} s" if age_s is not None else ""


class History:
    """Feed it each survey, get the trends. ``condition``: a path in one word (health.condition)."""

    def __init__(self, condition: Callable[[Path], str]) -> None:
        self._condition = condition
        self._conditions: dict[str, tuple[str, int]] = {}
        self._samples: deque[tuple[int, dict[str, dict[str, int]]]] = deque(maxlen=SAMPLES_MAX)

    def feed(self, facts: Facts) -> Trends:
        """The trends after this survey."""
        now_ns = facts.taken_ns
        is_first = not self._conditions
        conditions = {}
        for path in facts.paths:
            word = self._condition(path)
            before = self._conditions.get(path.name)
            # What was so at the first look may have been so for long: its beginning is not known, and not invented.
            conditions[path.name] = before if before is not None and before[0] == word else (word, 0 if is_first else now_ns)
        self._conditions = conditions
        counters = {host.name: host.counters for host in facts.hosts if host.counters}
        if counters:
            while len(self._samples) > 1 and now_ns - self._samples[0][0] > SPAN_NS:
                self._samples.popleft()  # the last one stays, however old: whoever looks rarely compares with the look before
            self._samples.append((now_ns, counters))
        return Trends({name: since for name, (_, since) in conditions.items() if since}, *self._risen())

    def _risen(self) -> tuple[dict[str, dict[str, int]], float]:
        if len(self._samples) < 2:
            return {}, 0.0
        (first_ns, first), (last_ns, last) = self._samples[0], self._samples[-1]
        risen = {}
        for host, counters in last.items():
            before = first.get(host, {})
            # A counter that fell was reset, or its adapter was: what it counts now has risen since then.
            grown = {name: value - before[name] if value >= before[name] else value for name, value in counters.items() if name in before}
            risen[host] = {name: value for name, value in grown.items() if value}
        return risen, (last_ns - first_ns) / 1e9

"""From status answers to rates and their history, for ``hdactl top``. Pure: answers and the times at which they came in, numbers out.

A rate is the difference of two counters over the time between two answers. A counter that went down belongs to a new process: that
moment has no rate. Bounded: HISTORY points a line, and lines only for what the newest answer names (I7).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

HISTORY: Final = 240  # LIMIT: points of a line; more than a terminal is wide
BLOCKS: Final = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS: Final = "_.-:=+*#"


def sparkline(values: list[float], width: int, blocks: str = BLOCKS) -> str:
    """The newest ``width`` values, highest possible; a gap where there is none. The highest of them is a full block; 0 is the lowest."""
    if width <= 0:
        return ""
    shown = values[-width:]
    highest = max(shown, default=0.0)
    if highest <= 0:
        return (blocks[0] * len(shown)).rjust(width)
    steps = len(blocks) - 1
    return "".join(blocks[min(steps, round(value / highest * steps))] for value in shown).rjust(width)


def counters_of(status: Mapping[str, Any]) -> dict[str, float]:
    """What grows, by name; lanes, workers and peers by theirs."""
    writer, totals = status["writer"] or {}, status["totals"]
    found: dict[str, float] = {
        "durable": writer.get("entries", totals["entries"]),
        "device": writer.get("device_bytes", 0),
        "writes": writer.get("writes", 0),
        "lost": totals["lost"],
    }
    for role in status["roles"]:
        if "entries_read" in role:
            found[f"worker {role['role']}"] = role["entries_read"]
    found["read"] = sum(value for name, value in found.items() if name.startswith("worker "))
    for lane in status["lanes"]:
        found[f"lane {lane['name']}"] = lane["entries"]
    link = status.get("link")
    if link:
        for name in ("bytes_in", "bytes_out", "frames_in", "frames_out"):
            found[f"link {name}"] = link["counters"][name]
        for peer in link.get("peers", ()):
            found[f"peer {peer['name']}"] = peer["bytes_in"]
    return found


def gauges_of(status: Mapping[str, Any]) -> dict[str, float]:
    """What goes up and down, by name."""
    return {
        "lag": status["totals"]["lag"],
        "p99": status["latency"]["p99_us"],
        **{f"lag {lane['name']}": lane["lag"] for lane in status["lanes"]},
    }


class Flow:
    """The answers so far. ``status``: the newest; ``rates``: name → its values, the newest last."""

    def __init__(self) -> None:
        self.status: dict[str, Any] = {}
        self.rates: dict[str, deque[float]] = {}
        self._before: tuple[float, int, dict[str, float]] | None = None

    def add(self, status: dict[str, Any], at_s: float) -> None:
        """One more answer; ``at_s``: monotonic."""
        self.status = status
        pid, counters = status["daemon"]["pid"], counters_of(status)
        now = gauges_of(status)
        if self._before is not None and self._before[1] == pid and at_s > self._before[0]:
            then_s, _, before = self._before
            now |= {
                name: (value - before[name]) / (at_s - then_s)
                for name, value in counters.items()
                if name in before and value >= before[name]
            }
        self._before = (at_s, pid, counters)
        for name, value in now.items():
            self.rates.setdefault(name, deque(maxlen=HISTORY)).append(value)
        for name in [name for name in self.rates if name not in now and name not in counters]:
            del self.rates[name]

    @property
    def has_rates(self) -> bool:
        """True: there were two answers of one daemon."""
        return "read" in self.rates or "durable" in self.rates

    def rate(self, name: str) -> float:
        """The newest value; 0 when there is none."""
        values = self.rates.get(name)
        return values[-1] if values else 0.0

    def history(self, name: str) -> list[float]:
        """All values, the newest last."""
        return list(self.rates.get(name, ()))

    def as_dict(self) -> dict[str, Any]:
        """For scripts: the newest rates."""
        lanes = self.status["lanes"]
        return {
            "read_per_s": round(self.rate("read"), 1),
            "durable_per_s": round(self.rate("durable"), 1),
            "device_bytes_per_s": round(self.rate("device"), 1),
            "lag": self.status["totals"]["lag"],
            "p99_us": self.status["latency"]["p99_us"],
            "workers": {name.removeprefix("worker "): round(self.rate(name), 1) for name in self.rates if name.startswith("worker ")},
            "lanes": [{"name": lane["name"], "per_s": round(self.rate(f"lane {lane['name']}"), 1), "lag": lane["lag"]} for lane in lanes],
            "link": {name.removeprefix("link "): round(self.rate(name), 1) for name in self.rates if name.startswith("link ")},
            "alarms": [alarm["text"] for alarm in self.status["alarms"]],
        }

"""The picture of a soak run: rate, lag, memory and latency over time, with each fault where it was."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

import matplotlib as mpl

from tests.soak.judge import Sample

mpl.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

ABOVE: Final[dict[str, Any]] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 8, "fontsize": "small", "frameon": False}
COLOURS: Final = {"worker": "tab:blue", "writer": "tab:red", "supervisor": "black", "redis": "tab:green"}


def draw(path: str, title: str, samples: Sequence[Sample], faults: Sequence[tuple[float, str]], judged_from_s: float) -> None:
    """Write a PNG. ``faults``: when, and of whom."""
    figure, panels = pyplot.subplots(4, 1, figsize=(13, 14), sharex=True, constrained_layout=True)
    figure.suptitle(title)
    times = [sample.at_s for sample in samples]
    rate, lag, memory, latency = panels
    _rates(rate, samples)
    lag.plot(times, [_or_nan(sample.lag) for sample in samples], color="tab:purple", linewidth=1)
    lag.set_ylabel("lag, entries")
    lag.set_ylim(bottom=0)
    _memory(memory, samples)
    for name, colour in (("p50_us", "tab:blue"), ("p99_us", "tab:orange")):
        latency.plot(times, [_or_nan(getattr(sample, name) or None, 1000) for sample in samples], color=colour, linewidth=1, label=name[:3])
    latency.set_yscale("log")
    latency.set_ylabel("XADD to durable, ms (last 10 s)")
    latency.legend(**ABOVE)
    latency.set_xlabel("seconds")
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.axvline(judged_from_s, color="grey", linestyle="--", linewidth=1)
        for at_s, who in faults:
            panel.axvline(at_s, color=COLOURS.get(who, "tab:grey"), alpha=0.4, linewidth=0.8)
    handles = [pyplot.Line2D([], [], color=colour, label=f"fault of {who}") for who, colour in COLOURS.items()]
    handles.append(pyplot.Line2D([], [], color="grey", linestyle="--", label="judged from here on"))
    rate.legend(handles=[*rate.get_lines()[:2], *handles], **ABOVE)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _rates(panel: Axes, samples: Sequence[Sample]) -> None:
    added, durable = [float("nan")], [float("nan")]
    for before, now in pairwise(samples):
        seconds = max(0.001, now.at_s - before.at_s)
        added.append((now.added - before.added) / seconds)
        known = before.durable is not None and now.durable is not None
        durable.append((now.durable - before.durable) / seconds if known else float("nan"))  # type: ignore[operator]
    times = [sample.at_s for sample in samples]
    panel.plot(times, added, color="tab:grey", linewidth=1, label="added")
    panel.plot(times, durable, color="tab:blue", linewidth=1, label="durable")
    panel.set_ylabel("entries/s")
    panel.set_ylim(bottom=0)


def _memory(panel: Axes, samples: Sequence[Sample]) -> None:
    times = [sample.at_s for sample in samples]
    panel.plot(times, [_or_nan(sample.memory, 1 << 20) for sample in samples], color="black", linewidth=1.2, label="all")
    roles = sorted({role for sample in samples for role in sample.memory_by_role or ()})
    for role in roles:
        panel.plot(times, [_or_nan((sample.memory_by_role or {}).get(role), 1 << 20) for sample in samples], linewidth=0.8, label=role)
    panel.set_ylabel("RSS, MiB")
    panel.set_ylim(bottom=0)
    twin = panel.twinx()
    fds = [_or_nan(sample.fds) for sample in samples]
    twin.plot(times, fds, color="tab:pink", linewidth=0.8, linestyle=":", label="descriptors (right)")
    twin.set_ylabel("descriptors")
    twin.set_ylim(0, 2 * max((sample.fds or 0 for sample in samples), default=1))
    lines = [*panel.get_lines(), *twin.get_lines()]
    panel.legend(lines, [str(line.get_label()) for line in lines], **ABOVE)


def _or_nan(value: float | None, divisor: float = 1.0) -> float:
    return float("nan") if value is None else value / divisor

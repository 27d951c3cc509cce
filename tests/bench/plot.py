"""The result as a picture: throughput, CPU, latency and ratios against their targets. Only where matplotlib is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from .figures import is_spread

Found = dict[str, Any]
COLOURS: Final = {"hdad": "#1f6f8b", "hdad_stage": "#1f6f8b", "ring": "#1f6f8b", "ring_objects": "#1f6f8b", "xread": "#9aa5ad"}
OTHER: Final = "#d08c60"


def draw(found: Found, targets: dict[str, tuple[str, float]], path: Path) -> str:
    """Write ``path``. Returns "" or why there is no picture."""
    try:
        import matplotlib
    except ImportError as error:
        return f"no plot: {error}"
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        (_has(found, "throughput"), _throughput), (_has(found, "throughput"), _cpu), (_has(found, "latency"), _latency),
        (bool(found.get("ratios")), _ratios), (_has(found, "ring"), _ring), (_has(found, "sizes"), _sizes),
    ]  # fmt: skip
    chosen = [panel for wanted, panel in panels if wanted]
    if not chosen:
        return "no plot: these sections have none"
    columns = min(2, len(chosen))
    rows = -(-len(chosen) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(7.5 * columns, 4.2 * rows), squeeze=False)
    for axis in axes.flat[len(chosen) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes.flat, chosen, strict=False):
        panel(axis, found, targets)
        axis.spines[["top", "right"]].set_visible(False)
    machine = found["machine"]
    figure.suptitle(f"hdad beside its peers · {machine['cpus']} CPUs · {machine['server']} · median, bars: minimum to maximum", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return ""


def _has(found: Found, section: str) -> bool:
    return bool(found.get(section)) and "failed" not in found[section]


def _bars(axis: Any, names: list[str], values: list[Found], scale: float, form: str) -> None:
    medians = [value["median"] / scale for value in values]
    low = [median - value["min"] / scale for median, value in zip(medians, values, strict=True)]
    high = [value["max"] / scale - median for median, value in zip(medians, values, strict=True)]
    places = range(len(names))
    axis.barh(places, medians, xerr=[low, high], color=[COLOURS.get(name, OTHER) for name in names], ecolor="#444", capsize=2, height=0.65)
    axis.set_yticks(places, [name.replace("_", " ") for name in names])
    axis.invert_yaxis()
    top = max(value["max"] for value in values) / scale
    axis.set_xlim(0, top * 1.15)
    for place, median, value in zip(places, medians, values, strict=True):
        axis.text(value["max"] / scale + top * 0.015, place, form.format(median), va="center", fontsize=8)


def _peers(found: Found, figure: str) -> tuple[list[str], list[Found]]:
    section = found["throughput"]
    names = [name for name, value in section.items() if isinstance(value, dict) and figure in value]
    return names, [section[name][figure] for name in names]


def _throughput(axis: Any, found: Found, _: Any) -> None:
    _bars(axis, *_peers(found, "per_s"), 1e6, "{:.2f}")
    axis.set_title("Throughput, million entries/s", fontsize=10)


def _cpu(axis: Any, found: Found, _: Any) -> None:
    names, client = _peers(found, "cpu_s_per_million")
    server = [found["throughput"][name]["server_cpu_s_per_million"]["median"] for name in names]
    medians = [value["median"] for value in client]
    places = range(len(names))
    axis.barh(places, medians, color=[COLOURS.get(name, OTHER) for name in names], height=0.65, label="client")
    axis.barh(places, server, left=medians, color="#ccc", height=0.65, label="server")
    axis.set_yticks(places, [name.replace("_", " ") for name in names])
    axis.invert_yaxis()
    for place, first, second in zip(places, medians, server, strict=True):
        axis.text(first + second, place, f" {first:.2f} + {second:.2f}", va="center", fontsize=8)
    axis.set_xlim(0, max(map(sum, zip(medians, server, strict=True))) * 1.2)
    axis.set_title("CPU seconds per million entries: peer (coloured) + server (grey)", fontsize=10)


def _latency(axis: Any, found: Found, _: Any) -> None:
    labels = list(found["latency"])
    width = 0.2
    for index, (peer, percent) in enumerate((peer, percent) for peer in ("hdad", "loop") for percent in (50, 99)):
        there = [(place, found["latency"][label][peer]) for place, label in enumerate(labels) if peer in found["latency"][label]]
        values = [(place, row[f"p{percent}_us"]) for place, row in there]
        places = [place + (index - 1.5) * width for place, _ in values]
        medians = [value["median"] / 1e3 for _, value in values]
        errors = [
            [median - value["min"] / 1e3 for median, (_, value) in zip(medians, values, strict=True)],
            [value["max"] / 1e3 - median for median, (_, value) in zip(medians, values, strict=True)],
        ]
        axis.bar(
            places, medians, width, yerr=errors, color=COLOURS.get(peer, OTHER), alpha=1 if percent == 50 else 0.5, capsize=2,
            label=f"{peer} p{percent}", ecolor="#444",
        )  # fmt: skip
    axis.set_yscale("log")
    axis.set_xticks(range(len(labels)), [f"{label} entries/s" for label in labels])
    axis.set_title("XADD to durable, ms", fontsize=10)
    axis.legend(fontsize=8, frameon=False, ncols=2)


def _ratios(axis: Any, found: Found, targets: dict[str, tuple[str, float]]) -> None:
    """Each ratio divided by its target, so that right of 1 is met, whichever way it is wanted."""
    names = [name for name in targets if is_spread(found["ratios"].get(name))]
    places = range(len(names))
    for place, name in zip(places, names, strict=True):
        sense, target = targets[name]
        value = found["ratios"][name]
        scores = [value[key] / target if sense == "≥" else target / max(value[key], 1e-9) for key in ("min", "median", "max")]
        colour = "#3a8f5c" if scores[1] >= 1 else "#c0504d"
        axis.plot([min(scores), max(scores)], [place, place], color=colour, linewidth=2)
        axis.plot([scores[1]], [place], "o", color=colour)
        text = f"{value['median']:.3g}  ({sense} {target:g})"
        axis.text(1.02, place, text, transform=axis.get_yaxis_transform(), va="center", fontsize=8)
    axis.axvline(1, color="#444", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_yticks(places, names, fontsize=8)
    axis.invert_yaxis()
    axis.set_title("Ratios against their targets (right of the line: met)", fontsize=10)


def _ring(axis: Any, found: Found, _: Any) -> None:
    names = [name for name, value in found["ring"].items() if isinstance(value, dict) and "per_s" in value]
    _bars(axis, names, [found["ring"][name]["per_s"] for name in names], 1e6, "{:.2f}")
    axis.set_title("Two processes, 200-byte records, million/s", fontsize=10)


def _sizes(axis: Any, found: Found, _: Any) -> None:
    sizes = [int(name.partition("_")[0]) for name in found["sizes"]]
    for peer in ("xread", "hdad", "group_c", "loop"):
        rows = zip(sizes, found["sizes"].values(), strict=True)
        there = [(size, row[peer]["per_s"]["median"] * size / 1e6) for size, row in rows if peer in row]
        if there:
            axis.plot(*zip(*there, strict=True), "o-", color=COLOURS.get(peer, OTHER), label=peer, alpha=0.6 if peer == "loop" else 1)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_title("MB/s of payload by entry size, bytes", fontsize=10)
    axis.legend(fontsize=8, frameon=False)

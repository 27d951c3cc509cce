"""What was found, for people: a table of figures, and of ratios beside their targets. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from .figures import is_spread

Found = dict[str, Any]

# The ratios that count, each of hdad to a peer: of rates larger is better, of latencies and server CPU less.
TARGETS: Final[dict[str, tuple[str, float]]] = {
    "raw_vs_loop": ("≥", 10),
    "raw_vs_group_c": ("≥", 3),
    "raw_vs_xread": ("≥", 0.6),
    "bytes16k_vs_limit": ("≥", 0.7),
    "stage_vs_loop_cpu": ("≥", 2.5),
    "p50_1k_vs_loop": ("≤", 1.0),
    "p99_1k_vs_loop": ("≤", 1.1),
    "p50_100k_vs_loop": ("≤", 0.7),
    "p99_100k_vs_loop": ("≤", 0.7),
    "server_cpu_vs_group": ("≤", 0.25),
    "ring_vs_faster_fifo": ("≥", 10),
    "writer_vs_fio": ("≥", 0.9),
}
# Beside them in the table and in the long JSON.
MORE_TARGETS: Final[dict[str, tuple[str, float]]] = {
    "ring_vs_mp_queue": ("≥", 50),
    "recovery_100g_s": ("≤", 1.0),
    "cost_10k_lanes": ("≤", 1.5),
    "link_vs_raw_tcp": ("≥", 0.5),
    "link_vs_beside": ("≥", 0.8),
}
ALL_TARGETS: Final = {**TARGETS, **MORE_TARGETS}


def collect(found: Found) -> Found:
    """The ratios of all sections, those with a target first."""
    every: Found = {}
    _gather(found, every)
    recovery = found.get("recovery", {})
    worst = [row["recovery_s"] for name, row in recovery.items() if name.startswith("100 GB")]
    if worst:
        every["recovery_100g_s"] = max(worst, key=lambda value: value["median"])
    if "cost_10000_even_vs_8" in every:
        every["cost_10k_lanes"] = every["cost_10000_even_vs_8"]
    return {name: every[name] for name in ALL_TARGETS if name in every} | every


def _gather(found: Found, every: Found) -> None:
    for name, value in found.items():
        if name == "ratios":
            for ratio, figure in value.items():
                every.setdefault(ratio, figure)  # sections come in order: the plain one before those that vary something
        elif isinstance(value, dict) and not is_spread(value):
            _gather(value, every)


def number(value: float) -> str:
    """Short, with the digits that matter."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def figures(found: Found, indent: int = 0) -> Iterator[str]:
    """One line a figure, sections and peers as headings."""
    margin = "  " * indent
    for name, value in found.items():
        if is_spread(value):
            yield f"{margin}{name:<{34 - len(margin)}}{number(value['median']):>12}   ({number(value['min'])} … {number(value['max'])})"
        elif not isinstance(value, dict):
            yield f"{margin}{name:<{34 - len(margin)}}{number(value) if isinstance(value, float) else str(value):>12}"
    for name, value in found.items():
        if isinstance(value, dict) and not is_spread(value) and name != "ratios":
            yield f"{margin}{name}"
            yield from figures(value, indent + 1)


def targets(ratios: Found) -> Iterator[str]:
    """One line a ratio: median, minimum and maximum, the target, and whether it is met."""
    for name, value in ratios.items():
        if not is_spread(value):
            continue
        sense, target = ALL_TARGETS.get(name, ("", 0))
        verdict = ""
        if sense:
            met = value["median"] >= target if sense == "≥" else value["median"] <= target
            verdict = f"   {sense} {target:<5g} {'met' if met else 'MISSED'}"
        extremes = f"({number(value['min'])} … {number(value['max'])})"
        yield f"  {name:<32}{number(value['median']):>12}   {extremes:<22}{verdict}".rstrip()

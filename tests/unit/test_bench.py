"""The pure parts of the bench: figures, ratios, and which of them --quick promises."""

from __future__ import annotations

import pytest

from tests.bench import report
from tests.bench.figures import column, is_spread, percentile, ratios, spread, summary

PROMISED = [
    "raw_vs_loop", "raw_vs_group_c", "raw_vs_xread", "bytes16k_vs_limit", "stage_vs_loop_cpu", "p50_1k_vs_loop", "p99_1k_vs_loop",
    "p50_100k_vs_loop", "p99_100k_vs_loop", "server_cpu_vs_group", "ring_vs_faster_fifo", "writer_vs_fio",
]  # fmt: skip


def test_spread_of_an_even_number_is_the_mean_of_the_middle() -> None:
    assert spread([4, 1, 3, 2]) == {"median": 2.5, "min": 1.0, "max": 4.0}


def test_spread_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_ratios_are_taken_round_by_round() -> None:
    assert ratios([10, 20, 90], [1, 4, 10]) == {"median": 9.0, "min": 5.0, "max": 10.0}  # not 20 / 4


def test_ratios_of_unequal_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        ratios([1, 2], [1])


@pytest.mark.parametrize(("percent", "expected"), [(0, 0), (50, 50), (99, 99), (100, 99)])
def test_percentile(percent: float, expected: int) -> None:
    assert percentile(list(range(100)), percent) == expected


def test_summary_leaves_out_what_is_no_number() -> None:
    rows = [{"per_s": 1.0, "note": "x"}, {"per_s": 3.0}]
    assert summary(rows) == {"per_s": {"median": 2.0, "min": 1.0, "max": 3.0}}
    assert column(rows, "per_s") == [1.0, 3.0]


def test_the_promised_ratios_are_the_ones_with_targets() -> None:
    assert list(report.TARGETS) == PROMISED


def test_collect_finds_ratios_in_sections_and_below_them() -> None:
    first, second, recovery = spread([1]), spread([2]), spread([0.5])
    found = {
        "throughput": {"hdad": {"per_s": first}, "ratios": {"raw_vs_loop": first}},
        "latency": {"1k": {"ratios": {"p50_1k_vs_loop": second}}},
        "sizes": {"64_bytes": {"ratios": {"raw_vs_loop": second}}},
        "recovery": {"10 GB, a": {"recovery_s": spread([9])}, "100 GB, a": {"recovery_s": first}, "100 GB, b": {"recovery_s": recovery}},
        "lanes": {"ratios": {"cost_10000_even_vs_8": second}},
    }
    ratios_found = report.collect(found)
    assert ratios_found["raw_vs_loop"] == first  # of the plain section, not of one that varies something
    assert ratios_found["p50_1k_vs_loop"] == second
    assert ratios_found["recovery_100g_s"] == first  # the slower one
    assert ratios_found["cost_10k_lanes"] == second
    assert list(ratios_found)[:2] == ["raw_vs_loop", "p50_1k_vs_loop"]
    assert all(map(is_spread, ratios_found.values()))


def test_targets_say_which_way_a_ratio_is_wanted() -> None:
    lines = list(report.targets({"raw_vs_loop": spread([10]), "p50_1k_vs_loop": spread([1.2]), "of_no_target": spread([3])}))
    assert [line.endswith(verdict) for line, verdict in zip(lines, (" met", " MISSED", ")"), strict=True)] == [True] * 3


def test_figures_are_one_line_each_with_headings() -> None:
    lines = list(report.figures({"ring": {"ring": {"per_s": spread([1_000_000.0])}, "iceoryx2": "not installed", "ratios": {}}}))
    assert [line.strip().split("  ")[0] for line in lines] == ["ring", "iceoryx2", "ring", "per_s"]
    assert "1,000,000" in lines[-1]

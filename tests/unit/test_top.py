"""The live view: rates from counters, histories, and a page that fits whatever terminal it is on."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from rich.console import Console

from hdad.cli.flow import ASCII_BLOCKS, HISTORY, Flow, sparkline
from hdad.cli.top import screen

SIZES = [(80, 24), (40, 8), (100, 30), (200, 60), (81, 12), (20, 3)]


def status(entries: int = 0, lanes: int = 3, pid: int = 7, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "daemon": {"name": "hdad", "state": "running", "uptime_s": 90.0, "redis": "redis://here", "pid": pid},
        "roles": [{"role": "writer", "state": "ready"}] + [
            {"role": f"worker-{index}", "state": "ready", "entries_read": entries // 2, "ring_full": 1} for index in range(2)
        ],
        "writer": {"entries": entries, "device_bytes": entries * 100, "writes": entries // 10, "device": "/dev/mapper/log"},
        "totals": {"entries": entries, "lost": 0, "lag": 17},
        "latency": {"p99_us": 1500},
        "lanes": [
            {"id": index + 1, "name": f"s:lane-{index}-名前", "worker": index % 2, "state": "reading", "entries": entries // lanes,
             "lag": index}
            for index in range(lanes)
        ],
        "lane_count": lanes, "link": None, "alarms": [], "now_ns": 10**18,
    }  # fmt: skip
    return found | more


def lines_of(flow: Flow, width: int, height: int) -> list[str]:
    console = Console(width=max(width, 40), height=height, force_terminal=True, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(screen(flow, width, height), soft_wrap=True)
    return captured.get().rstrip("\n").split("\n")


def test_a_rate_is_a_difference_over_time() -> None:
    flow = Flow()
    flow.add(status(1000), 10.0)
    assert not flow.has_rates and flow.rate("durable") == 0
    flow.add(status(1500), 10.5)
    assert flow.has_rates and flow.rate("durable") == 1000 and flow.rate("read") == 1000 and flow.rate("worker worker-1") == 500
    assert flow.as_dict()["durable_per_s"] == 1000 and flow.as_dict()["lanes"][0]["lag"] == 0


def test_another_daemon_and_counters_that_begin_anew_make_no_rate() -> None:
    flow = Flow()
    flow.add(status(1000), 1.0)
    flow.add(status(2000, pid=8), 2.0)
    assert not flow.has_rates
    flow.add(status(100, pid=8), 3.0)
    assert not flow.has_rates
    flow.add(status(200, pid=8), 4.0)
    assert flow.rate("durable") == 100


def test_histories_are_bounded_and_forget_lanes_that_are_gone() -> None:
    flow = Flow()
    for at in range(HISTORY + 50):
        flow.add(status(at * 10), float(at))
    assert len(flow.history("durable")) == HISTORY and "lane s:lane-2-名前" in flow.rates
    flow.add(status(HISTORY * 20, lanes=1), HISTORY + 51.0)
    assert "lane s:lane-2-名前" not in flow.rates and "lag s:lane-2-名前" not in flow.rates


def test_sparklines() -> None:
    assert sparkline([0, 1, 2, 4], 4) == "▁▃▅█"
    assert sparkline([5], 3) == "  █" and sparkline([], 3) == "   " and sparkline([0, 0], 2) == "▁▁"
    assert sparkline(list(range(100)), 5, ASCII_BLOCKS) == "#####" and sparkline([1.0, 2.0], 0) == ""


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("lanes", [0, 1, 5, 500])
def test_the_page_fits_the_terminal(width: int, height: int, lanes: int) -> None:
    from rich.cells import cell_len

    alarms = [{"role": "writer", "since_ns": 0, "text": "the device " + "x" * 300}] * 5
    link = {
        "counters": dict.fromkeys(("bytes_in", "bytes_out", "frames_in", "frames_out"), 5), "listen": ["tcp://[::]:7411"], "peers_all": 9,
        "peers": [{"name": f"host-{n}", "bytes_in": 5, "workers": {"0": 3}, "rtt_us": 210, "since_s": 1.0} for n in range(9)],
    }  # fmt: skip
    flow = Flow()
    for at in range(5):
        found = status(at * 1000, lanes=max(lanes, 1), alarms=copy.deepcopy(alarms), link=link)
        found["lanes"] = found["lanes"][:lanes]
        found["lane_count"] = lanes
        flow.add(found, float(at))
    lines = lines_of(flow, width, height)
    assert len(lines) <= max(height, 8)
    assert all(cell_len(line) <= max(width, 40) for line in lines), [cell_len(line) for line in lines]
    assert (lines[0].startswith("hdad  running") and "ALARM" in "".join(lines)) or "more alarms" in "".join(lines)
    if lanes and height >= 24:
        assert any(line.startswith("s:lane-") for line in lines) and any("host-0" in line for line in lines)
    if lanes == 500:
        assert any("more: hdactl lanes" in line for line in lines) or height < 12


def test_a_worker_host_shows_its_link_and_no_device() -> None:
    link = {"counters": dict.fromkeys(("bytes_in", "bytes_out", "frames_in", "frames_out"), 5), "writer": {
            "phase": "serving", "address": "tls://b:7411", "name": "host-b", "since_s": 3.0, "rtt_us": 90, "last_error": ""}}  # fmt: skip
    flow = Flow()
    for at in range(3):
        flow.add(status(at * 1000, link=link, writer={}), float(at))
    text = "\n".join(lines_of(flow, 80, 24))
    assert "link to host-b" in text and "device" not in text and "rtt 90 us" in text


def test_lanes_with_trouble_come_first_then_the_busiest() -> None:
    flow = Flow()
    for at in range(3):
        found = status(at * 1000)
        found["lanes"][1]["entries"] = at * 100_000
        found["lanes"][2]["state"] = "halted_rewound"
        flow.add(found, float(at))
    shown = [line.split()[0] for line in lines_of(flow, 100, 30) if line.startswith("s:lane")]
    assert shown[0].startswith("s:lane-2") and shown[1].startswith("s:lane-1")

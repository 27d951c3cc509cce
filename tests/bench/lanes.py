"""What an entry costs, in CPU time of hdad and server together, against the number of lanes.

All lanes are known and read before the clock runs: each has one entry, which is durable. Then hdad is told to pause, entries come, and it
is told to go on. "even": the entries are spread over all lanes. "few": they are in eight lanes, and the others are idle.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Final

from .daemon import Daemon, Setup
from .throughput import Bench, costs

PREFIX: Final = "lane:"
BUSY: Final = 8
SETTLE_S: Final = 1.0  # chores that follow the first look at the streams are over


def drain(bench: Bench, lanes: int, spread: str) -> dict[str, Any]:
    """One run."""
    server, entries = bench.server, bench.entries
    server.fill(PREFIX, lanes, lanes, bench.value_bytes)
    setup = Setup(server.url, PREFIX, False, bench.workers, bench.log.size, bench.overrides)
    daemon = Daemon(bench.folder, bench.log, setup)
    try:
        daemon.await_lanes(lanes)
        daemon.await_entries(lanes)
        time.sleep(SETTLE_S)
        daemon.call("pause")
        server.add(PREFIX, lanes if spread == "even" else BUSY, entries, bench.value_bytes)
        cpu, server_cpu, frames = daemon.cpu_ns(), server.cpu_ns(), daemon.writer.get("frames")
        began = time.monotonic_ns()
        daemon.call("resume")
        ended = daemon.await_entries(lanes + entries)
        cpu, server_cpu, frames = daemon.cpu_ns() - cpu, server.cpu_ns() - server_cpu, daemon.writer.get("frames") - frames
        memory = daemon.memory_bytes()
        daemon.stop()
    finally:
        daemon.kill()
    return {
        **costs(entries, (ended - began) / 1e9, cpu, server_cpu), "both_cpu_s_per_million": (cpu + server_cpu) / 1e3 / entries,
        "entries_per_frame": entries / max(1, frames), "memory_mb": memory / 1e6,
    }  # fmt: skip


def rounds(bench: Bench, counts: tuple[int, ...], spreads: tuple[str, ...], runs: int) -> dict[str, list[dict[str, Any]]]:
    """Each number of lanes once a round, in turns; named like "10000 even"."""
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(runs):
        for count in counts:
            for spread in spreads if count > BUSY else spreads[:1]:
                found.setdefault(f"{count} {spread}", []).append(drain(replace(bench, streams=count), count, spread))
    return found

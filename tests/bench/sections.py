"""The sections of the bench: what each measures, with how much of it. Each returns what it found as JSON-ready values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from . import latency, throughput
from .daemon import Log
from .figures import column, ratios, spread
from .server import Server
from .throughput import Bench

Found = dict[str, Any]


@dataclass
class Plan:
    """How much is measured. Made by the command line."""

    folder: Path
    runs: int = 3
    entries: int = 2_000_000
    slow_entries: int = 500_000
    seconds: float = 3
    rates: tuple[int, ...] = (1_000, 20_000, 100_000)
    workers: int = 2
    streams: int = 8
    value_bytes: int = 200
    server: str = "redis"
    tcp: bool = False
    peers: tuple[str, ...] = ()
    is_quick: bool = False
    overrides: dict[str, str] = field(default_factory=dict)
    say: Callable[[str], None] = print


class Session:
    """What sections share: the server that runs now, and the log's file."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.log = Log(plan.folder, 1 << 30)
        self._server: Server | None = None

    def server(self, kind: str = "", tcp: bool | None = None) -> Server:
        """The server of this kind, started at need; another one that runs is stopped."""
        kind = kind or self.plan.server
        if self._server is not None and self._server.kind != kind:
            self.stop_server()
        if self._server is None:
            self._server = Server(kind, self.plan.folder)
        self._server.use_tcp(self.plan.tcp if tcp is None else tcp)
        return self._server

    def stop_server(self) -> None:
        """End the one that runs."""
        if self._server is not None:
            self._server.stop()
            self._server = None

    def bench(self, **changes: Any) -> Bench:
        """Streams to measure on, as planned but for ``changes``."""
        plan = self.plan
        values = {
            "entries": plan.entries, "value_bytes": plan.value_bytes, "streams": plan.streams, "slow_entries": plan.slow_entries,
            "workers": plan.workers, "overrides": plan.overrides, **changes,
        }  # fmt: skip
        return Bench(values.pop("server", None) or self.server(), plan.folder, self.log, **values)


def _summary(rows: list[dict[str, Any]]) -> Found:
    names = [name for name, value in rows[0].items() if isinstance(value, (int, float))]
    return {name: spread(column(rows, name)) for name in names}


def measure_throughput(session: Session) -> Found:
    """Raw archive and JSON stage, beside all peers."""
    plan = session.plan
    peers = plan.peers or (
        ("xread", "hdad", "group_c", "loop", "hdad_stage", "loop_stage") if plan.is_quick else tuple(throughput.PEERS)
    )
    rounds = throughput.rounds(session.bench(), peers, plan.runs)
    found: Found = {peer: _summary(rows) for peer, rows in rounds.items()}
    found["ratios"] = throughput_ratios(rounds)
    return found


def throughput_ratios(rounds: dict[str, list[dict[str, Any]]]) -> Found:
    """Of hdad to each peer that was measured."""
    found: Found = {}

    def ratio(name: str, over: str, under: str, figure: str, *, inverse: bool = False) -> None:
        if over in rounds and under in rounds:
            first, second = column(rounds[over], figure), column(rounds[under], figure)
            found[name] = ratios(second, first) if inverse else ratios(first, second)

    ratio("raw_vs_loop", "hdad", "loop", "per_s")
    ratio("raw_vs_two_loops", "hdad", "two_loops", "per_s")
    ratio("raw_vs_group_c", "hdad", "group_c", "per_s")
    ratio("raw_vs_xread", "hdad", "xread", "per_s")
    ratio("raw_vs_loop_cpu", "hdad", "loop", "cpu_s_per_million", inverse=True)
    ratio("stage_vs_loop", "hdad_stage", "loop_stage", "per_s")
    ratio("stage_vs_loop_cpu", "hdad_stage", "loop_stage", "cpu_s_per_million", inverse=True)
    ratio("server_cpu_vs_group", "hdad", "group_c", "server_cpu_s_per_million")
    return found


def measure_latency(session: Session) -> Found:
    """XADD to durable at each rate."""
    plan = session.plan
    found: Found = {}
    for rate in plan.rates:
        rounds = latency.rounds(session.bench(), rate, plan.seconds, plan.runs)
        ours, theirs = rounds["hdad"], rounds["loop"]
        label = f"{rate // 1000}k" if rate % 1000 == 0 else str(rate)
        found[label] = {
            "hdad": _summary(ours), "loop": _summary(theirs),
            "ratios": {
                f"p{percent}_{label}_vs_loop": ratios(column(ours, f"p{percent}_us"), column(theirs, f"p{percent}_us"))
                for percent in (50, 99)
            },
        }  # fmt: skip
    return found


SECTIONS: Final[dict[str, Callable[[Session], Found]]] = {
    "throughput": measure_throughput,
    "latency": measure_latency,
}

"""The sections of the bench: what each measures, and with how much of it. Each returns what it found, ready for JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from harness import RedisServer

from . import ceilings, lanes, latency, link, recovery, ring, throughput
from .daemon import Log
from .figures import column, ratios, spread, summary
from .profile import Profiler
from .programs import python_peer
from .server import KINDS, Server, find
from .throughput import Bench

Found = dict[str, Any]
MIB: Final = 1 << 20
DATA_BYTES: Final = 750 * MIB  # LIMIT: of one filling; the log holds it whole, so that it can be verified
LARGE: Final = 16384


@dataclass
class Plan:
    """How much is measured. Made by the command line."""

    folder: Path
    runs: int = 3
    entries: int = 1_000_000
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
    latency_runs: int = 3
    scale: float = 1.0  # of sizes and counts that the command line does not name; less only to show that everything works
    overrides: dict[str, str] = field(default_factory=dict)
    say: Callable[[str], None] = print


class Session:
    """What sections share: the server that runs now, and the log's file."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.log = Log(plan.folder, 1024 * MIB)
        self._server: Server | None = None

    def server(self, kind: str = "", tcp: bool | None = None) -> Server:
        """The server of this kind, started at need; another one that runs is stopped. Raises BenchError."""
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
        """Streams to measure on, as planned but for ``changes``; no more entries than DATA_BYTES."""
        plan = self.plan
        values = {
            "entries": plan.entries, "value_bytes": plan.value_bytes, "streams": plan.streams, "slow_entries": plan.slow_entries,
            "workers": plan.workers, "overrides": plan.overrides, **changes,
        }  # fmt: skip
        values["entries"] = min(values["entries"], int(plan.scale * DATA_BYTES) // (values["value_bytes"] + 64))
        values["slow_entries"] = min(values["slow_entries"], values["entries"])
        return Bench(values.pop("server", None) or self.server(), plan.folder, self.log, **values)

    def peers(self, *names: str) -> tuple[str, ...]:
        """Those of ``names`` that the command line did not rule out."""
        return tuple(name for name in names if not self.plan.peers or name in self.plan.peers)


def measure_throughput(session: Session) -> Found:
    """Raw archive and JSON stage, beside all peers."""
    plan = session.plan
    names = ("xread", "hdad", "group_c", "loop", "hdad_stage", "loop_stage") if plan.is_quick else tuple(throughput.PEERS)
    rounds = throughput.rounds(session.bench(), session.peers(*names), plan.runs)
    return {**{peer: summary(rows) for peer, rows in rounds.items()}, "ratios": throughput_ratios(rounds)}


def throughput_ratios(rounds: dict[str, list[Found]]) -> Found:
    """Of hdad to each peer that was measured. Rates: larger is better; server_cpu_vs_group: smaller."""
    wanted = (
        ("raw_vs_loop", "hdad", "loop", "per_s"),
        ("raw_vs_two_loops", "hdad", "two_loops", "per_s"),
        ("raw_vs_group_c", "hdad", "group_c", "per_s"),
        ("raw_vs_xread", "hdad", "xread", "per_s"),
        ("raw_vs_loop_cpu", "loop", "hdad", "cpu_s_per_million"),
        ("stage_vs_loop", "hdad_stage", "loop_stage", "per_s"),
        ("stage_vs_loop_cpu", "loop_stage", "hdad_stage", "cpu_s_per_million"),
        ("server_cpu_vs_group", "hdad", "group_c", "server_cpu_s_per_million"),
    )
    return {
        name: ratios(column(rounds[over], figure), column(rounds[under], figure))
        for name, over, under, figure in wanted
        if over in rounds and under in rounds
    }


def measure_large(session: Session) -> Found:
    """Entries of 16 KB: bytes per second against the smaller of what the server gives and what the device takes."""
    plan = session.plan
    bench = session.bench(value_bytes=LARGE)
    bench.fill()
    rows = []
    for _ in range(plan.runs):
        limit_server = throughput.xread(bench)["per_s"] * LARGE
        ours = throughput.hdad(bench)
        limit_device = max(
            ceilings.device_write(plan.folder, bench.target("device.out"), throughput.FILE_BYTES, size * MIB) for size in (1, 4)
        )
        rate = ours["per_s"] * LARGE
        rows.append(
            {**ours, "bytes_per_s": rate, "xread_bytes_per_s": limit_server, "device_bytes_per_s": limit_device,
             "vs_limit": rate / min(limit_server, limit_device)}
        )  # fmt: skip
    found = summary(rows)
    return {**found, "ratios": {"bytes16k_vs_limit": found.pop("vs_limit")}}


def measure_sizes(session: Session) -> Found:
    """Raw archive of entries of each size."""
    found: Found = {}
    for size in (64, 200, 1024, LARGE):
        rounds = throughput.rounds(session.bench(value_bytes=size), session.peers("xread", "hdad", "group_c", "loop"), session.plan.runs)
        found[f"{size}_bytes"] = _with_ratios(rounds)
    return found


def measure_streams(session: Session) -> Found:
    """Raw archive from each number of streams."""
    found: Found = {}
    for count in (1, 8, 64, 1024):
        rounds = throughput.rounds(session.bench(streams=count), session.peers("xread", "hdad", "group_c", "loop"), session.plan.runs)
        found[f"{count}_streams"] = _with_ratios(rounds)
    return found


def measure_servers(session: Session) -> Found:
    """Raw archive from each server, by Unix socket and by TCP."""
    found: Found = {}
    for kind in KINDS:
        if find(kind) is None:
            found[kind] = "not installed"
            continue
        for tcp in (False, True):
            server = session.server(kind, tcp)
            rounds = throughput.rounds(session.bench(server=server), session.peers("xread", "hdad", "loop"), session.plan.runs)
            found[f"{server.version} {'tcp' if tcp else 'unix'}"] = _with_ratios(rounds)
    session.stop_server()
    return found


def measure_workers(session: Session) -> Found:
    """Raw archive and JSON stage by each number of workers."""
    found: Found = {}
    for count in (1, 2, 4):
        rounds = throughput.rounds(session.bench(workers=count), session.peers("hdad", "hdad_stage"), session.plan.runs)
        found[f"{count}_workers"] = _with_ratios(rounds)
    return found


def _with_ratios(rounds: dict[str, list[Found]]) -> Found:
    found: Found = {
        peer: {name: value for name, value in summary(rows).items() if name in ("per_s", "cpu_s_per_million", "server_cpu_s_per_million")}
        for peer, rows in rounds.items()
    }
    return {**found, "ratios": throughput_ratios(rounds)}


def measure_latency(session: Session) -> Found:
    """XADD to durable at each rate."""
    plan = session.plan
    found: Found = {}
    for rate in plan.rates:
        label = f"{rate // 1000}k" if rate % 1000 == 0 else str(rate)
        found[label] = _latency(session, rate, label)
    return found


def _latency(session: Session, rate: float, label: str) -> Found:
    plan = session.plan
    rounds = latency.rounds(session.bench(), rate, plan.seconds, plan.latency_runs, session.peers("hdad", "loop"))
    found: Found = {peer: summary(rows) for peer, rows in rounds.items()}
    if len(rounds) == 2:
        found["ratios"] = {
            f"p{percent}_{label}_vs_loop": ratios(column(rounds["hdad"], f"p{percent}_us"), column(rounds["loop"], f"p{percent}_us"))
            for percent in (50, 99)
        }
    behind = sorted({row["fell_behind"] for row in rounds.get("loop", ()) if "fell_behind" in row})
    return {**found, **({"loop_fell_behind": behind[0]} if behind else {})}


def measure_tail(session: Session) -> Found:
    """XADD to durable to seen by a reader that follows the log; and all that at half of what the whole chain can take."""
    plan = session.plan
    maximum = spread([latency.maximum(session.bench(), 2) for _ in range(plan.runs)])
    half = int(maximum["median"] / 2)
    found: Found = {"maximum_per_s": maximum, f"half ({half}/s)": _latency(session, half, "half")}
    for rate in (*plan.rates, half):
        rows = [latency.hdad(session.bench(), rate, plan.seconds, tail=True) for _ in range(plan.runs)]
        seen = summary([row["seen"] for row in rows])
        found[f"seen at {rate}/s"] = {
            "durable_p50_us": spread(column(rows, "p50_us")), "durable_p99_us": spread(column(rows, "p99_us")),
            "seen_p50_us": seen["p50_us"], "seen_p99_us": seen["p99_us"],
        }  # fmt: skip
    return found


def measure_ring(session: Session) -> Found:
    """The ring alone."""
    plan = session.plan
    names = ("ring", "ring_objects", "faster_fifo", "mp_queue", "mp_queue_lists") if plan.is_quick else tuple(ring.RECORDS)
    found: Found = {name: why for name in names if (why := ring.missing(name))}
    there = [name for name in names if name not in found]
    rounds: dict[str, list[Found]] = {name: [] for name in there}
    for _ in range(plan.runs):
        for name in there:
            rounds[name].append(python_peer("ring", name, int(ring.RECORDS[name] * plan.scale)).run())
    found.update((name, {"per_s": spread(column(rows, "per_s"))}) for name, rows in rounds.items())
    rates = {name: column(rows, "per_s") for name, rows in rounds.items()}
    found["ratios"] = {
        f"{ours}_vs_{peer}": ratios(rates[ours], rates[peer])
        for ours in ("ring", "ring_objects") for peer in there if not peer.startswith("ring")
    }  # fmt: skip
    return found


def measure_writer(session: Session) -> Found:
    """The writer alone, 1 MiB frames, against fio at the same depth, size of writes, and sync, on the same file."""
    plan = session.plan
    log = Log(plan.folder, int(2048 * plan.scale) * MIB, "writer.log")
    total = log.size * 3 // 4 // MIB * MIB
    rows = []
    try:
        for _ in range(plan.runs):
            row: Found = {}
            for size in (1, 4):
                log.format()
                peer = python_peer("writer", log.path, total, ceilings.DEPTH, size * MIB)
                result = peer.run()
                row[f"hdad_{size}m"], row[f"cpu_s_per_gb_{size}m"] = result["bytes_per_s"], result["cpu_s"] / total * 1e9
                row[f"device_{size}m"] = ceilings.device_write(plan.folder, log.path, total, size * MIB)
                log.blank()
            rows.append(row)
    finally:
        log.remove()
    found = summary(rows)
    return {
        "tool": ceilings.tool(), **found,
        "ratios": {
            "writer_vs_fio": ratios(column(rows, "hdad_1m"), column(rows, "device_1m")),
            "writer_vs_fio_4m": ratios(column(rows, "hdad_4m"), column(rows, "device_4m")),
        },
    }  # fmt: skip


def measure_link(session: Session) -> Found:
    """A link over loopback: frames of 1 MiB against raw TCP, and one worker against one beside the writer. In full also with TLS."""
    plan = session.plan
    entries = plan.entries if plan.is_quick else 2 * plan.entries
    certificates: dict[str, dict[str, Any]] = {"link": {}} if plan.is_quick else {"link": {}, "link_tls": link.certificate(plan.folder)}
    rows: list[dict[str, float]] = []
    with RedisServer(plan.folder, options=("--appendonly", "no")) as server:
        link.load(server, entries)
        for turn in range(plan.runs):
            row = {"raw_tcp": link.raw_tcp(plan.seconds / 2)}
            row["beside_per_s"] = link.one_worker(plan.folder / f"beside{turn}", server, entries, {}, False)
            for name, keys in certificates.items():
                row[name] = link.through_links(plan.seconds / 2, keys)
                row[f"{name}_per_s"] = link.one_worker(plan.folder / f"{name}{turn}", server, entries, keys, True)
            rows.append(row)
    return {
        **{name if name.endswith("per_s") else f"{name}_gb_per_s": spread(column(rows, name)) for name in rows[0]},
        "ratios": {
            **{f"{name}_vs_raw_tcp": ratios(column(rows, name), column(rows, "raw_tcp")) for name in certificates},
            **{f"{name}_vs_beside": ratios(column(rows, f"{name}_per_s"), column(rows, "beside_per_s")) for name in certificates},
        },
    }


def measure_recovery(session: Session) -> Found:
    """Recovery and start-up against the log's size."""
    plan = session.plan
    found: Found = {}
    for gigabytes in (100,) if plan.is_quick else (1, 10, 100):
        for frame in recovery.FRAME_BYTES:
            row = recovery.measure(plan.folder, gigabytes * recovery.GB, frame, plan.runs, session.server().url)
            found[f"{gigabytes} GB, newest segment full of {frame} frames"] = row
    return found


def measure_lanes(session: Session) -> Found:
    """Cost per entry against the number of lanes."""
    plan = session.plan
    counts = (8, int(10_000 * plan.scale)) if plan.is_quick else (8, 10, 100, 1_000, 10_000)
    spreads = ("even",) if plan.is_quick else ("even", "few")
    runs = 1 if plan.is_quick else plan.runs  # 10,000 streams take their time to be found and assigned
    rounds = lanes.rounds(session.bench(entries=min(plan.entries, 500_000)), counts, spreads, runs)
    found: Found = {name: summary(rows) for name, rows in rounds.items()}
    base = column(rounds["8 even"], "both_cpu_s_per_million")
    found["ratios"] = {
        f"cost_{name.replace(' ', '_')}_vs_8": ratios(column(rows, "both_cpu_s_per_million"), base)
        for name, rows in rounds.items() if name != "8 even"
    }  # fmt: skip
    return found


def measure_idle(session: Session) -> Found:
    """CPU and memory of all roles with nothing to do, eight lanes."""
    bench = session.bench(entries=8)
    rows = [latency.idle(bench, session.plan.seconds * 2) for _ in range(session.plan.runs)]
    return summary(rows)


def measure_memory(session: Session) -> Found:
    """What one core copies: the ceiling of everything that moves bytes."""
    sizes = {"64k": 64 << 10, "1m": MIB, "64m": 64 * MIB}
    return {
        f"memcpy_{name}_bytes_per_s": spread([ceilings.memcpy(session.plan.folder, size) for _ in range(session.plan.runs)])
        for name, size in sizes.items()
    }


def measure_profile(session: Session) -> Found:
    """Where the time goes: raw archive, JSON stage, and each rate of latency. Profilers disturb what they look at: the shares count."""
    plan = session.plan
    found: Found = {}
    bench = session.bench(entries=3 * plan.entries)
    bench.fill()
    for name, stage in (("raw", False), ("stage", True)):
        profiler = Profiler(plan.folder, 1 if name == "raw" else 3)
        throughput.hdad(bench, stage, profiler.start)
        found[name] = profiler.result()
    for rate in plan.rates:
        profiler = Profiler(plan.folder, plan.seconds)
        latency.hdad(session.bench(), rate, plan.seconds, during=profiler.start)
        found[f"{rate}/s"] = profiler.result()
    return found


SECTIONS: Final[dict[str, Callable[[Session], Found]]] = {
    "throughput": measure_throughput,
    "large": measure_large,
    "latency": measure_latency,
    "ring": measure_ring,
    "writer": measure_writer,
    "recovery": measure_recovery,
    "lanes": measure_lanes,
    "link": measure_link,
    "tail": measure_tail,
    "sizes": measure_sizes,
    "streams": measure_streams,
    "servers": measure_servers,
    "workers": measure_workers,
    "idle": measure_idle,
    "memory": measure_memory,
    "profile": measure_profile,
}
QUICK: Final = ("throughput", "large", "latency", "ring", "writer", "recovery", "lanes", "link")
SETTINGS: Final = {
    "data": "JSON of so many bytes in field d, words and numbers; all peers read the same entries from the same server, in turns",
    "how": "ratios are taken within a round; median of the rounds, with minimum and maximum",
    "durable": "hdad and group_c O_DIRECT|DSYNC, loop write + fdatasync; all to files that were written before",
    **throughput.SETTINGS,
    "latency": latency.SETTINGS,
    "ring": f"records of {ring.RECORD_BYTES} bytes, {ring.FRAME} a frame; ring: packs a reply natively, CRC32C checked; "
    "faster_fifo: put_many of bytes, no pickle; mp_queue put of one, of a list; iceoryx2 a record, a frame a sample",
    "device": f"{ceilings.tool()}, depth {ceilings.DEPTH}",
}


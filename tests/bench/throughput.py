"""How fast streams become durable: hdad, the hand-written loop (one and two of it), the C loop, and the ceiling that the server sets.

All read the same entries from the same server: every peer has a group of its own, hdad a log of its own, and nobody trims. Everything is
durable when it counts: O_DIRECT and DSYNC writes for hdad and the C loop, write and fdatasync for the Python loop, all to files that were
written before. One round measures each peer once; rounds are repeated, so that what disturbs the machine disturbs all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from .daemon import Daemon, Log, Setup, check_log
from .loop import GROUP as LOOP_GROUP
from .programs import Peer, python_peer, write_through
from .server import Server

PREFIX: Final = "bench:"
HELD: Final = "held:"
C_GROUP: Final = "c"
COUNT_MAX: Final = {"loop": 1000, "group": 1000, "xread": 500}  # LIMIT: a stream; each the best of 50 to 4000 that were tried
REPLY_BYTES: Final = {"loop": 4 << 20, "group": 4 << 20, "xread": 2 << 20}  # LIMIT: what is asked for at once; the best of 1 to 12 MiB
FILE_BYTES: Final = 256 << 20
SETTINGS: Final = {
    "loop": "redis-py + hiredis, gc.freeze, XREADGROUP COUNT 1000, one write + fdatasync + pipelined XACK a batch",
    "group_c": "C, XREADGROUP COUNT 1000, the next read sent before the batch is written, XACK after it",
    "xread": "C, XREAD COUNT 500, two requests on their way, no byte looked at",
    "count": "COUNT is less where a reply would exceed 4 MiB (xread: 2 MiB)",
}


@dataclass
class Bench:
    """Where and on what throughput is measured."""

    server: Server
    folder: Path
    log: Log
    entries: int
    value_bytes: int = 200
    streams: int = 8
    slow_entries: int = 0  # what the Python loop takes of them: its rate does not depend on how long it runs; 0: all
    workers: int = 2
    overrides: dict[str, str] = field(default_factory=dict)

    def fill(self) -> None:
        """The data that all peers read, out of hdad's sight."""
        self.server.fill(HELD, self.streams, self.entries, self.value_bytes)

    def payload_bytes(self) -> int:
        """What the producers gave: names and values of fields."""
        return self.entries * (self.value_bytes + 1)

    def count(self, peer: str) -> int:
        """COUNT of a peer's reads."""
        return max(1, min(COUNT_MAX[peer], REPLY_BYTES[peer] // (self.streams * (self.value_bytes + 46))))

    def target(self, name: str) -> str:
        """A file that was written before, as the log was: new extents would slow a peer down."""
        path = self.folder / name
        if not path.exists():
            write_through(path, FILE_BYTES)
        return str(path)


def _per_million(nanoseconds: int, entries: int) -> float:
    return nanoseconds / 1e3 / entries


def costs(entries: int, seconds: float, cpu: int, server_cpu: int) -> dict[str, float]:
    """Entries per second and CPU seconds per million; ``cpu`` and ``server_cpu`` in ns."""
    return {
        "per_s": entries / seconds, "cpu_s_per_million": _per_million(cpu, entries),
        "server_cpu_s_per_million": _per_million(server_cpu, entries),
    }  # fmt: skip


def hdad(bench: Bench, stage: bool = False, during: Callable[[Daemon], None] | None = None) -> dict[str, Any]:
    """One drain by hdad. ``during`` is called while it runs, for profilers."""
    server = bench.server
    setup = Setup(server.url, PREFIX, stage, bench.workers, bench.log.size, bench.overrides)
    daemon = Daemon(bench.folder, bench.log, setup)
    try:
        daemon.call("pause")
        server.rename(HELD, PREFIX, bench.streams)
        daemon.await_lanes(bench.streams)
        roles = daemon.cpu_by_role_ns()
        cpu, server_cpu = daemon.cpu_ns(), server.cpu_ns()
        began = time.monotonic_ns()
        daemon.call("resume")
        if during is not None:
            during(daemon)
        ended = daemon.await_entries(bench.entries)
        cpu, server_cpu = daemon.cpu_ns() - cpu, server.cpu_ns() - server_cpu
        roles = {role: spent - roles[role] for role, spent in daemon.cpu_by_role_ns().items()}
        memory, written = daemon.memory_bytes(), daemon.writer.get("device_bytes")
        frames, writes = daemon.writer.get("frames"), daemon.writer.get("writes")
        start_s = daemon.ready_s
        daemon.stop()
    finally:
        daemon.kill()
        server.rename(PREFIX, HELD, bench.streams)
        server.drop_group(HELD, bench.streams, "hdad")
    check_log(daemon.log, bench.entries)
    return {
        **costs(bench.entries, (ended - began) / 1e9, cpu, server_cpu), "memory_mb": memory / 1e6, "frames": frames, "writes": writes,
        "written_per_payload": written / bench.payload_bytes(), "start_s": start_s,
        **{f"{role}_cpu_s_per_million": _per_million(spent, bench.entries) for role, spent in roles.items()},
    }  # fmt: skip


def loop(bench: Bench, mode: str = "raw", processes: int = 1) -> dict[str, Any]:
    """The hand-written loop, one or several of it in one group."""
    server, entries = bench.server, bench.slow_entries or bench.entries
    server.make_group(HELD, bench.streams, LOOP_GROUP)
    share = 0 if processes > 1 else entries  # several run until nothing more comes
    if processes > 1:
        entries = bench.entries
    server_cpu = server.cpu_ns()
    peers = [
        python_peer("loop", server.address, HELD, bench.streams, share, bench.target(f"loop{index}.out"), f"c{index}", mode, "", 300,
                    bench.count("loop"))
        for index in range(processes)
    ]
    for peer in peers:
        peer.go()
    results = [peer.result() for peer in peers]
    server_cpu = server.cpu_ns() - server_cpu
    server.drop_group(HELD, bench.streams, LOOP_GROUP)
    done = sum(result["entries"] for result in results)
    assert done >= entries, "the loop saw less than it should"
    cpu = int(sum(result["cpu_s"] for result in results) * 1e9)
    return costs(done, max(result["seconds"] for result in results), cpu, server_cpu)


def group_c(bench: Bench) -> dict[str, Any]:
    """The C loop."""
    server = bench.server
    server.make_group(HELD, bench.streams, C_GROUP)
    words = ("group", server.address, HELD, bench.streams, bench.count("group"), bench.entries, bench.target("group.out"))
    figures = _drain(bench, *words)
    server.drop_group(HELD, bench.streams, C_GROUP)
    return figures


def xread(bench: Bench) -> dict[str, Any]:
    """The ceiling."""
    return _drain(bench, "xread", bench.server.address, HELD, bench.streams, bench.count("xread"), bench.entries)


def _drain(bench: Bench, *words: object) -> dict[str, Any]:
    peer = Peer(bench.folder / "drain", *words)
    server_cpu = bench.server.cpu_ns()
    result = peer.run()
    assert result["entries"] >= bench.entries, "the C loop saw less than it should"
    return costs(result["entries"], result["seconds"], int(result["cpu_s"] * 1e9), bench.server.cpu_ns() - server_cpu)


PEERS: Final[dict[str, Callable[[Bench], dict[str, Any]]]] = {
    "hdad": hdad,
    "loop": loop,
    "two_loops": lambda bench: loop(bench, processes=2),
    "group_c": group_c,
    "xread": xread,
    "hdad_stage": lambda bench: hdad(bench, stage=True),
    "loop_stage": lambda bench: loop(bench, "stage"),
}


def rounds(bench: Bench, peers: tuple[str, ...], runs: int) -> dict[str, list[dict[str, Any]]]:
    """Each peer once a round, in turns."""
    bench.fill()
    found: dict[str, list[dict[str, Any]]] = {peer: [] for peer in peers}
    for _ in range(runs):
        for peer in peers:
            found[peer].append(PEERS[peer](bench))
    return found

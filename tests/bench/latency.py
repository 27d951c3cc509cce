"""How long from XADD until durable, hdad and the hand-written loop at the same steady rate, in turns; and until a tailing reader has it.

The producer is open loop: it keeps its rate whatever the others do, and puts the monotonic clock into each entry just before handing it to
the kernel. An entry is durable for the loop when fdatasync has returned, for hdad when the writer saw its LSN durable (the trace in its
counters). The first WARM_S of each run are left out on both sides: connections, first batches. ``late_max_us``: the producer's worst
delay against its plan; ``write_max_us``: the longest write of the run: both tell a machine that stalled from a peer that did.
"""

from __future__ import annotations

import bisect
import json
import sys
import time
from array import array
from collections.abc import Callable
from typing import Any, Final

from hdad._core import RecordIterator, decode_entry
from hdad.log.reader import LogReader

from .daemon import Daemon, Setup
from .figures import percentile
from .loop import GROUP as LOOP_GROUP
from .programs import BenchError, Peer, python_peer
from .throughput import Bench

PREFIX: Final = "pace:"
WARM_S: Final = 0.25
SETTINGS: Final = "producer: C, open loop, entries due go out together at most every 200 us; its time is read just before send"


def _samples(stamps_and_ages: array[int]) -> dict[str, Any]:
    """Percentiles of (stamp, age) pairs, flat, after WARM_S."""
    first = min(stamps_and_ages[0::2])
    ages = sorted(age for stamp, age in zip(stamps_and_ages[0::2], stamps_and_ages[1::2], strict=True) if stamp - first > WARM_S * 1e9)
    return {
        "p50_us": percentile(ages, 50) / 1e3, "p99_us": percentile(ages, 99) / 1e3, "p999_us": percentile(ages, 99.9) / 1e3,
        "max_us": ages[-1] / 1e3, "count": len(ages),
    }  # fmt: skip


def _produce(bench: Bench, rate: float, seconds: float) -> Peer:
    return Peer(bench.folder / "produce", "rate", bench.server.address, PREFIX, bench.streams, rate, seconds, bench.value_bytes)


def hdad(
    bench: Bench, rate: float, seconds: float, tail: bool = False, during: Callable[[Daemon], None] | None = None
) -> dict[str, Any]:
    """One run of hdad. ``tail``: beside a reader that follows the log. ``during`` is called just before entries come, for profilers."""
    server, total = bench.server, int(rate * seconds)
    server.client.flushall()
    server.make_group(PREFIX, bench.streams, "hdad", anew=False)
    daemon = Daemon(bench.folder, bench.log, Setup(server.url, PREFIX, False, bench.workers, bench.log.size, bench.overrides))
    seen: dict[str, Any] = {}
    try:
        daemon.await_lanes(bench.streams)
        producer = _produce(bench, rate, seconds)
        reader = python_peer("latency", daemon.log, total) if tail else None
        if reader is not None:
            reader.go()
        time.sleep(0.3)  # the lanes' first look at their streams is not what is measured
        cpu, server_cpu, written = daemon.cpu_ns(), server.cpu_ns(), daemon.writer.get("device_bytes")
        if during is not None:
            during(daemon)
        produced = producer.run()
        daemon.await_entries(total, 60)
        cpu, server_cpu, written = daemon.cpu_ns() - cpu, server.cpu_ns() - server_cpu, daemon.writer.get("device_bytes") - written
        frames, writes = daemon.writer.get("frames"), daemon.writer.get("writes")
        write_max_us = daemon.writer.histogram("write_us").snapshot().maximum
        trace = daemon.counters.trace.pairs()
        if reader is not None:
            seen = {"seen": reader.result()}
        daemon.stop()
    finally:
        daemon.kill()
    return {
        **_samples(_ages(daemon.log, trace, total)), **seen, "cpu_s_per_million": cpu / 1e3 / total,
        "server_cpu_s_per_million": server_cpu / 1e3 / total, "entries_per_frame": total / max(1, frames),
        "frames_per_write": frames / max(1, writes), "written_per_payload": written / (total * (bench.value_bytes + 21)),
        "late_max_us": produced["late_max_us"], "write_max_us": write_max_us,
    }  # fmt: skip


def _ages(log: str, trace: list[tuple[int, int]], total: int) -> array[int]:
    """(stamp, ns until durable) of each entry in the log: when the durable LSN reached its frame's."""
    lsns = [lsn for _, lsn in trace]
    values = array("q")
    count = 0
    with LogReader(log) as reader:
        for frame in reader.frames():
            index = bisect.bisect_left(lsns, frame.header.lsn)
            if index == 0 and frame.header.lsn < lsns[0]:
                raise BenchError("the trace of durable LSNs is shorter than the run: make it shorter")
            at_ns = trace[index][0]
            for _, _, _, body in RecordIterator(frame.payload):
                stamp = int(decode_entry(body)[-1][1])
                values.append(stamp)
                values.append(at_ns - stamp)
                count += 1
    if count != total:
        raise BenchError(f"the log holds {count} entries instead of {total}")
    return values


def loop(bench: Bench, rate: float, seconds: float) -> dict[str, Any]:
    """One run of the loop."""
    server, total = bench.server, int(rate * seconds)
    server.client.flushall()
    server.make_group(PREFIX, bench.streams, LOOP_GROUP, anew=False)
    samples = bench.folder / "loop.samples"
    peer = python_peer(
        "loop", server.address, PREFIX, bench.streams, total, bench.target("loop0.out"), "c", "raw", samples, seconds * 3 + 5,
        bench.count("loop"),
    )  # fmt: skip
    producer = _produce(bench, rate, seconds)
    peer.go()
    time.sleep(0.3)
    server_cpu = server.cpu_ns()
    produced = producer.run()
    result = peer.result()
    server_cpu = server.cpu_ns() - server_cpu
    values = array("q")
    values.frombytes(samples.read_bytes())
    figures: dict[str, Any] = {
        **_samples(values), "cpu_s_per_million": result["cpu_s"] * 1e6 / max(1, result["entries"]),
        "server_cpu_s_per_million": server_cpu / 1e3 / total, "late_max_us": produced["late_max_us"],
        "write_max_us": result["write_max_us"],
    }  # fmt: skip
    if result["entries"] < total:
        figures["fell_behind"] = f"{result['entries']} of {total} entries in three times the time"
    return figures


def rounds(bench: Bench, rate: float, seconds: float, runs: int, peers: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """Each peer ("hdad", "loop") once a round, in turns."""
    found: dict[str, list[dict[str, Any]]] = {peer: [] for peer in peers}
    for _ in range(runs):
        for peer in peers:
            found[peer].append((hdad if peer == "hdad" else loop)(bench, rate, seconds))
    return found


def idle(bench: Bench, seconds: float) -> dict[str, float]:
    """CPU and memory of all roles when nothing comes."""
    server = bench.server
    server.client.flushall()
    server.make_group(PREFIX, bench.streams, "hdad", anew=False)
    daemon = Daemon(bench.folder, bench.log, Setup(server.url, PREFIX, False, bench.workers, bench.log.size, bench.overrides))
    try:
        daemon.await_lanes(bench.streams)
        time.sleep(2)
        cpu, began = daemon.cpu_ns(), time.monotonic_ns()
        time.sleep(seconds)
        percent = (daemon.cpu_ns() - cpu) / (time.monotonic_ns() - began) * 100
        memory = daemon.memory_bytes()
        daemon.stop()
    finally:
        daemon.kill()
    return {"idle_cpu_percent": percent, "idle_memory_mb": memory / 1e6}


def maximum(bench: Bench, seconds: float) -> float:
    """Entries per second that producer, server and hdad sustain together: the producer goes as fast as it is answered."""
    server = bench.server
    server.client.flushall()
    server.make_group(PREFIX, bench.streams, "hdad", anew=False)
    daemon = Daemon(bench.folder, bench.log, Setup(server.url, PREFIX, False, bench.workers, bench.log.size, bench.overrides))
    try:
        daemon.await_lanes(bench.streams)
        producer = Peer(bench.folder / "produce", "flat", server.address, PREFIX, bench.streams, seconds, bench.value_bytes)
        began = time.monotonic_ns()
        produced = producer.run()
        ended = daemon.await_entries(produced["entries"], 60)
        daemon.stop()
    finally:
        daemon.kill()
    return float(produced["entries"] / (ended - began) * 1e9)


def main() -> None:
    """A tailing reader as a program: follows the log until it has seen so many entries. Arguments: log, entries."""
    path, entries = sys.argv[1], int(sys.argv[2])
    values = array("q")
    with LogReader(path, start="end") as reader:
        print("READY", flush=True)
        sys.stdin.readline()
        for frame in reader.frames(follow=True, timeout_s=5):
            now = time.monotonic_ns()
            for _, _, _, body in RecordIterator(frame.payload):
                stamp = int(decode_entry(body)[-1][1])
                values.append(stamp)
                values.append(now - stamp)
            if len(values) >= 2 * entries:
                break
    print(json.dumps(_samples(values)))


if __name__ == "__main__":
    main()

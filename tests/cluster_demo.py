"""The demonstration of a takeover: three hosts, one log, load, a host that dies, one that freezes, one that steps down; then the proof.

Hosts a and b are attached to the device, one writes and one stands by; c has only workers, and sends their frames to whoever writes. All
three read and process throughout. What was added is known from the load, what is in the log from reading it like any consumer, what a
thawed writer still wrote from the kernel's count of its own way to the device.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import orjson
from rich.console import Console

from hdad.errors import ExitStatus
from hdad.log.geometry import UNIT
from hdad.log.inspect import verify
from hdad.log.reader import LogReader
from tests.harness import wait_until
from tests.hosts import Cluster, Host, Watcher, bytes_written, why_no_namespaces
from tests.traffic import Producer

STREAMS: Final = ("s:0", "s:1", "s:2", "s:3", "s:4", "s:5")
SHOW_S: Final = 0.5


class Show:
    """A line about all hosts, twice a second, and what happens between."""

    def __init__(self, console: Console, cluster: Cluster, producer: Producer) -> None:
        self._console, self._cluster, self._producer = console, cluster, producer
        self._began = time.monotonic()
        self._before = (self._began, 0)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Show:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def say(self, text: str) -> None:
        self._console.print(f"{time.monotonic() - self._began:6.1f} s  [bold]{text}[/bold]")

    def _run(self) -> None:
        while not self._is_over.wait(SHOW_S):
            at, durable, parts = time.monotonic(), 0, []
            for host in self._cluster.hosts.values():
                status = host.try_status() if host.is_running else None
                what = "down" if status is None else status["node"]["role"] or "workers"
                if what == "writer" and status is not None:
                    durable = status["totals"]["entries"]
                parts.append(f"{host.name} {what:<13}")
            line = f"{at - self._began:6.1f} s  {'  '.join(parts)}  added {self._producer.total:>9,}"
            if durable:
                rate = (durable - self._before[1]) / (at - self._before[0])
                line += f"  durable {durable:>9,}  {max(0, round(rate)):>7,}/s"
                self._before = (at, durable)
            self._console.print(line, markup=False)


def main() -> int:
    parser = argparse.ArgumentParser(description="Three hosts, one log: takeovers under load, shown and verified.")
    parser.add_argument("--seconds", type=float, default=20, help="of load around each of the four parts together")
    parser.add_argument("--rate", type=int, default=3000, help="entries per second")
    parser.add_argument("--timeout-ms", type=int, default=2000, help="log.takeover_timeout_ms")
    parser.add_argument("--directory", help="where the folder for the shared device's file is made")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    options = parser.parse_args()
    console = Console(stderr=options.json, highlight=False, soft_wrap=True)
    if reason := why_no_namespaces():
        console.print(f"hdad: SKIPPED: {reason}", markup=False)
        return 0
    folder = Path(tempfile.mkdtemp(prefix="hdad-", dir=options.directory))
    try:
        return run(options, folder, console)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(options: argparse.Namespace, folder: Path, console: Console) -> int:
    """The four parts, and the sum."""
    part_s = options.seconds / 4
    with Cluster(folder, "ab", "c", takeover_ms=options.timeout_ms) as cluster:
        a, b = cluster.attached
        console.print("three hosts: a and b are attached to the device, c has workers only …")
        for host in cluster.hosts.values():
            host.start()
        cluster.writer()
        with Producer(cluster.network.server.path, STREAMS, options.rate) as producer, Show(console, cluster, producer) as show:
            a.become("writer")
            b.become("standby")
            time.sleep(part_s)
            show.say("a, the writer's host, is killed: its processes with SIGKILL, its network too")
            cluster.network.cut("a")
            takeover_ms = _takeover(b, a.kill)
            b.become("writer")
            show.say(f"b writes: the first frame of its own was durable {takeover_ms} ms after the kill; the lease's timeout is "
                     f"{options.timeout_ms} ms")  # fmt: skip
            cluster.network.mend("a")
            a.start()
            a.become("standby")
            time.sleep(part_s)
            show.say("b, the writer now, freezes: all its processes are stopped")
            frozen_ms = _takeover(a, b.freeze)
            a.become("writer")
            before = bytes_written(b.device)
            show.say(f"a writes after {frozen_ms} ms; b thaws, and finds out")
            b.thaw()
            b.wait_end(ExitStatus.FENCED)
            zombie_blocks = (bytes_written(b.device) - before) // UNIT
            show.say(f"b has ended with status 7, fenced; it wrote {zombie_blocks} blocks after it was thawed")
            b.start()
            b.become("standby")
            time.sleep(part_s)
            show.say("the log is moved to b by plan: hdactl writer promote")
            move_ms = _takeover(b, lambda: b.call("promote"))
            b.become("writer")
            show.say(f"b writes after {move_ms} ms")
            time.sleep(part_s)
            producer.stop()
            wait_until(lambda: _durable(b) >= producer.total, lambda: f"all is durable; {_durable(b)} of {producer.total}")
            show.say("all is durable")
        b.wait_entries(producer.total)
        for host in (cluster.hosts["c"], a, b):
            host.stop()
        result = proof(b.device, producer.added)
        result |= {
            "takeover_ms": takeover_ms, "lease_timeout_ms": options.timeout_ms, "zombie_blocks": zombie_blocks,
            "frozen_takeover_ms": frozen_ms, "planned_move_ms": move_ms,
        }  # fmt: skip
    return _sum_up(result, console, options.json)


def _durable(host: Host) -> int:
    status = host.try_status()
    return int(status["totals"]["entries"]) if status else 0


def _takeover(successor: Host, happen: Callable[[], object]) -> int:
    """Milliseconds from what happens to the first durable frame of the next writer, as a reader on its host sees it."""
    watcher = Watcher(successor.device)
    began = time.monotonic()
    happen()
    return round((watcher.first_frame_of_a_newer_epoch() - began) * 1000)


def proof(device: str, added: dict[str, int]) -> dict[str, Any]:
    """What the log holds against what was added, entry by entry."""
    report = verify(device)
    committed = duplicates = out_of_order = 0
    seen: dict[str, set[int]] = {stream: set() for stream in added}
    newest = dict.fromkeys(added, -1)
    with LogReader(device) as reader:
        for record in reader.records():
            n = int(dict(record.fields)[b"n"])
            committed += 1
            duplicates += n in seen[record.lane]
            out_of_order += n < newest[record.lane] and n not in seen[record.lane]
            seen[record.lane].add(n)
            newest[record.lane] = max(newest[record.lane], n)
    lost = sum(len(set(range(count)) - seen[stream]) for stream, count in added.items())
    return {
        "added": sum(added.values()), "committed": committed, "lost": lost, "duplicates": duplicates, "out_of_order": out_of_order,
        "verified": report.ok, "violations": report.violations,
    }  # fmt: skip


def _sum_up(result: dict[str, Any], console: Console, is_json: bool) -> int:
    violations = result.pop("violations")
    limit_ms = result["lease_timeout_ms"] + 1000
    is_whole = result["verified"] and not (result["lost"] or result["duplicates"] or result["out_of_order"])
    is_in_time = max(result["takeover_ms"], result["frozen_takeover_ms"]) <= limit_ms and result["planned_move_ms"] <= 1000
    result["in_time"] = is_in_time
    console.print()
    for name in ("added", "committed", "lost", "duplicates", "out_of_order", "zombie_blocks"):
        console.print(f"{name.replace('_', ' '):<22}{result[name]:>12,}", markup=False)
    console.print(f"{'takeover':<22}{result['takeover_ms']:>9,} ms, and {result['frozen_takeover_ms']:,} ms from the frozen one; "
                  f"at most {limit_ms:,} are promised", markup=False)  # fmt: skip
    console.print(f"{'planned move':<22}{result['planned_move_ms']:>9,} ms; at most 1,000 are promised", markup=False)
    console.print(f"{'log verified':<22}{'yes' if result['verified'] else 'NO':>12}", markup=False)
    if not is_in_time:
        console.print("later than promised: is this machine busy with something else?", markup=False)
    for violation in violations:
        console.print(violation, style="red", markup=False)
    if is_json:
        print(orjson.dumps(result).decode(), flush=True)
    return 0 if is_whole else 1


if __name__ == "__main__":
    sys.exit(main())

"""The demo: a daemon with embedded defaults on this host's telemetry, live, then drained, verified and summed up.

Producers are two threads of this process: psutil's telemetry at a visible rate, and a surge of synthetic events in the middle. The daemon
is a process of its own, as in production; this one talks to it over its control socket and reads its log like any consumer.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import orjson
import psutil
import redis
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from hdad.cli.output import count, micros, size
from hdad.cli.status import page
from hdad.control.client import call
from hdad.errors import ControlError
from hdad.log.create import format_log
from hdad.log.inspect import verify
from hdad.log.reader import LogReader
from hdad.record import RecordKind

CONFIG = """\
# The demo's configuration; see etc/hdad.toml for every key.
[redis]
url = "embedded"
streams = ["telemetry:*", "events:*"]
scan_interval_ms = 200

[[pipeline.route]]              # game-like events: decoded, filtered, projected; what is no JSON becomes a dead letter
streams = ["events:*"]
stages = [
    {{ use = "filter", where = "level != 'debug'" }},
    {{ use = "select", fields = ["id", "level", "player", "score"] }},
]

[log]
device = "{folder}/demo.log"

[supervisor]
name = "hdad-demo"
state_directory = "{folder}"

[control]
socket = "{folder}/control.sock"

[metrics]
listen = "off"

[logging]
level = "warning"
"""


class Producer:
    """Adds to Redis and counts what Redis has taken."""

    def __init__(self, path: str) -> None:
        self.client = redis.Redis(unix_socket_path=path)
        self.added = 0
        self.stop = threading.Event()
        self._lock = threading.Lock()

    def add(self, entries: list[tuple[str, dict[str, Any]]]) -> None:
        pipeline = self.client.pipeline(transaction=False)
        for stream, fields in entries:
            pipeline.xadd(stream, fields)
        pipeline.execute()
        with self._lock:
            self.added += len(entries)

    def telemetry(self, rate: int) -> None:
        """This host: CPU, memory, disk, net, and every process, again and again; ``rate`` entries per second at most."""
        while not self.stop.is_set():
            began = time.monotonic()
            entries = self._sample()
            for start in range(0, len(entries), 50):
                self.add(entries[start : start + 50])
                if self.stop.wait(50 / rate):
                    return
            self.stop.wait(max(0.0, 0.2 - (time.monotonic() - began)))

    def _sample(self) -> list[tuple[str, dict[str, Any]]]:
        now = time.time_ns()
        entries: list[tuple[str, dict[str, Any]]] = [
            ("telemetry:cpu", {"cpu": index, "percent": percent, "t": now}) for index, percent in enumerate(psutil.cpu_percent(percpu=True))
        ]
        memory = psutil.virtual_memory()
        entries.append(("telemetry:memory", {"used": memory.used, "available": memory.available, "t": now}))
        for name, disk in (psutil.disk_io_counters(perdisk=True) or {}).items():
            entries.append(("telemetry:disk", {"disk": name, "read": disk.read_bytes, "written": disk.write_bytes, "t": now}))
        for name, net in psutil.net_io_counters(pernic=True).items():
            entries.append(("telemetry:net", {"nic": name, "received": net.bytes_recv, "sent": net.bytes_sent, "t": now}))
        for process in psutil.process_iter(["pid", "name", "memory_info", "cpu_times"]):
            info = process.info
            if info["memory_info"] is not None and info["cpu_times"] is not None:
                seconds = info["cpu_times"].user + info["cpu_times"].system
                entries.append(
                    (
                        "telemetry:process",
                        {"pid": info["pid"], "name": info["name"], "rss": info["memory_info"].rss, "cpu_s": seconds, "t": now},
                    )
                )
        return entries

    def surge(self, delay_s: float, total: int) -> None:
        """Synthetic events of two games, as fast as Redis takes them; one in 5,000 is broken."""
        self.stop.wait(delay_s)
        for start in range(0, total, 500):
            if self.stop.is_set():
                return
            entries: list[tuple[str, dict[str, Any]]] = []
            for index in range(start, min(start + 500, total)):
                level = "debug" if index % 5 == 0 else "info"
                text = orjson.dumps(
                    {"id": index, "level": level, "player": f"p{index % 997}", "score": index * 7 % 1000, "noise": "x" * 80}
                )
                entries.append((f"events:game-{index % 2}", {"json": b"{broken" if index % 5000 == 4999 else text}))
            self.add(entries)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run hdad on this host's telemetry, and prove what it did.")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--rate", type=int, default=1000, help="telemetry entries per second at most")
    parser.add_argument("--surge", type=int, default=100_000, help="synthetic events in the middle")
    parser.add_argument("--directory", help="where the demo's folder is made (default: the system's temporary folder)")
    parser.add_argument("--keep", action="store_true", help="keep the folder with log, configuration and server data")
    parser.add_argument("--json", action="store_true", help="no live view; the last line is one JSON object")
    options = parser.parse_args()
    folder = _folder(options.directory)
    console = Console(stderr=options.json, highlight=False, soft_wrap=True)
    try:
        return run(options, folder, console)
    finally:
        if options.keep:
            console.print(f"kept: {folder}", markup=False)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _folder(directory: str | None) -> Path:
    """A folder on a filesystem with direct I/O: tmpfs has had it only since Linux 6.6."""
    for parent in (directory, tempfile.gettempdir(), "/var/tmp", str(Path.home())):
        if parent is None:
            continue
        folder = Path(tempfile.mkdtemp(prefix="hdad-demo-", dir=parent))
        try:
            os.close(os.open(folder / "probe", os.O_CREAT | os.O_RDWR | os.O_DIRECT))
            return folder
        except OSError:
            shutil.rmtree(folder)
    raise SystemExit("hdad: no folder whose filesystem has direct I/O; name one with --directory")


def run(options: argparse.Namespace, folder: Path, console: Console) -> int:
    """Everything between making the log and the summary."""
    log = str(folder / "demo.log")
    console.print("making a log of 512 MiB in a file …", end=" ")
    format_log(log, size=512 << 20, label="demo")
    console.print("done")
    config = folder / "hdad.toml"
    config.write_text(CONFIG.format(folder=folder))
    argv = [str(Path(sys.executable).parent / "hdad"), "run", "-c", str(config)]
    daemon = subprocess.Popen(argv, start_new_session=True)
    socket = str(folder / "control.sock")
    try:
        _wait_for(socket, daemon)
        producer = Producer(str(folder / "redis" / "redis.sock"))
        threads = [
            threading.Thread(target=producer.telemetry, args=(options.rate,), daemon=True),
            threading.Thread(target=producer.surge, args=(options.seconds / 3, options.surge), daemon=True),
        ]
        for thread in threads:
            thread.start()
        _show(options, console, socket, producer)
        producer.stop.set()
        for thread in threads:
            thread.join()
        final = _settle(socket, producer)
        console.print("draining …", end=" ")
        daemon.send_signal(signal.SIGTERM)
        status = daemon.wait(60)
        console.print(f"the daemon has ended with status {status}")
        return _summary(options, console, folder, log, producer.added, final, status)
    finally:
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()


def _wait_for(socket: str, daemon: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            if all(role["state"] == "ready" for role in call(socket, "status")["roles"]):
                return
        except ControlError:
            pass
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"hdad: the daemon did not start (status {daemon.poll()})")
        time.sleep(0.05)


def _show(options: argparse.Namespace, console: Console, socket: str, producer: Producer) -> None:
    """The status page, live, for so many seconds."""
    until = time.monotonic() + options.seconds

    def view() -> Group:
        left = max(0.0, until - time.monotonic())
        return Group(page(call(socket, "status")), Text(f"\nadded to Redis: {count(producer.added)}   {left:.0f} s left", style="bold"))

    if options.json or not console.is_terminal:
        while time.monotonic() < until:
            time.sleep(min(2.0, max(0.0, until - time.monotonic())))
            status = call(socket, "status")
            console.print(
                f"{count(status['totals']['entries'])} durable of {count(producer.added)} added, {count(status['rates']['entries'])}/s",
                markup=False,
            )
        return
    with Live(view(), console=console, refresh_per_second=4, transient=True) as live:
        while time.monotonic() < until:
            time.sleep(0.25)
            live.update(view())


def _settle(socket: str, producer: Producer) -> dict[str, Any]:
    """Wait until everything that was added is durable; the status then."""
    deadline = time.monotonic() + 60
    while True:
        status: dict[str, Any] = call(socket, "status")
        if status["totals"]["entries"] >= producer.added or time.monotonic() > deadline:
            return status
        time.sleep(0.02)


def _summary(options: argparse.Namespace, console: Console, folder: Path, log: str, added: int, final: dict[str, Any], status: int) -> int:
    report = verify(log)
    seen: set[tuple[str, int, int]] = set()
    duplicates = 0
    with LogReader(log) as reader:
        for record in reader.records():
            key = (record.lane, *record.position)
            duplicates += key in seen and record.kind is not RecordKind.DEAD_LETTER
            seen.add(key)
    missing = added - report.entries
    result = {
        "added": added,
        "committed": report.committed,
        "filtered": report.filtered,
        "dead_lettered": report.dead_lettered,
        "lost": report.lost + max(0, missing),
        "duplicates": duplicates,
        "verified": report.ok,
        "p50_us": final["latency"]["all_p50_us"],
        "p99_us": final["latency"]["all_p99_us"],
        "records_per_s": round(report.records / options.seconds),
        "device_bytes": final["writer"]["device_bytes"],
    }
    good = report.ok and not duplicates and not result["lost"] and missing == 0 and status == 0
    console.print()
    console.print(f"added to Redis    {count(added):>12}", markup=False)
    console.print(f"= committed       {count(report.committed):>12}", markup=False)
    console.print(f"+ filtered        {count(report.filtered):>12}   by the pipeline of events:*", markup=False)
    console.print(f"+ dead letters    {count(report.dead_lettered):>12}   broken JSON, kept in the log with their reason", markup=False)
    console.print(f"lost              {count(result['lost']):>12}", markup=False)
    console.print(f"duplicates        {count(duplicates):>12}", markup=False)
    console.print(
        f"log verified      {'yes' if report.ok else 'NO':>12}   {report.frames} frames, {size(result['device_bytes'])} written",
        markup=False,
    )
    console.print(
        f"XADD to durable   p50 {micros(result['p50_us'])}, p99 {micros(result['p99_us'])} (newest entry of each frame)", markup=False
    )
    for violation in report.violations:
        console.print(violation, style="red", markup=False)
    if options.keep:
        console.print(
            f"\nwhere to look next:\n  hdactl log tail --from 1 {log}\n  hdactl deadletters list {log}\n  hdactl verify {log}", markup=False
        )
    else:
        console.print("\nwhere to look next: run again with --keep, then hdactl log read, hdactl deadletters list; README.md", markup=False)
    if options.json:
        print(orjson.dumps(result).decode(), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

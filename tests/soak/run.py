"""A long run: load in waves, random faults of every role, a log that goes around, trimming by the durable position, a reader throughout.

    scripts/soak [--hours H | --minutes M] [--rate N] [--seed S] [--directory D] [--plot FILE] [--json]

The first 40 % of the time everything is hit, the supervisor and Redis too; after that all but the supervisor, so that what grows in any
process can be seen (tests/soak/judge.py has the limits). At the end the reader must have been shown each entry once and in order, hdactl
verify must prove the log and its counters, and Redis must hold nothing any more. The status is 1 if anything is wrong or not flat.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console
from rich.table import Table

from hdad.control.client import call
from hdad.errors import ControlError
from hdad.limits import MIB
from hdad.log.inspect import inspect
from tests.harness import Daemon, RedisServer, wait_until
from tests.soak.judge import Sample, Verdict, judge
from tests.soak.plot import draw
from tests.traffic import Producer

STREAMS: Final = tuple(f"s:{index}" for index in range(8))
LOG_SIZE: Final = 34 * MIB  # eight segments of 4 MiB: goes around about twice a minute
WAVE_S: Final = 20.0
CHAOS_SHARE: Final = 0.4
SETTLE_S: Final = 120.0
CONFIG: Final = {
    "redis": {"trim": "durable", "socket_timeout_ms": 3000, "block_ms": 500},
    "supervisor": {"crash_loop_limit": 1000, "crash_loop_window_s": 60, "drain_timeout_s": 60},
}


class Soak:
    """One run. ``violations``: what must not be."""

    def __init__(self, folder: Path, seconds: float, rate: float, seed: int) -> None:
        self.rng = random.Random(seed)
        self.seconds, self.rate_max = seconds, rate
        self.server = RedisServer(folder, options=["--appendfsync", "everysec"])
        self.server.start()
        self.daemon = Daemon(folder, self.server.url, CONFIG, size=LOG_SIZE, segment_size=4 * MIB)
        self.reader = subprocess.Popen(
            [sys.executable, "-m", "tests.soak.reader", self.daemon.device], stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.shown: dict[str, Any] = {"records": 0, "next": {}, "violation": ""}
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        self.producer = Producer(self.server.path, STREAMS, rate / 10, 200)
        self.samples: list[Sample] = []
        self.faults: list[tuple[float, str]] = []
        self.kinds: Counter[str] = Counter()
        self.violations: list[str] = []
        self.report: dict[str, Any] = {}
        self._began = time.monotonic()
        self._deck: list[str] = []
        self._stopped: dict[int, float] = {}  # pid → when it goes on

    @property
    def at_s(self) -> float:
        """Seconds of the run."""
        return time.monotonic() - self._began

    @property
    def judged_from_s(self) -> float:
        """Where the part begins in which the supervisor is left alone."""
        return self.seconds * CHAOS_SHARE

    def _listen(self) -> None:
        assert self.reader.stdout is not None
        for line in self.reader.stdout:
            self.shown = json.loads(line)

    # -- the run -----------------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Load, faults and samples, until the time is over; then everything must come to rest and be proven."""
        with self.producer:
            every_s = max(1.0, self.seconds / 3600)
            sample_due, fault_due = 0.0, 5.0
            while self.at_s < self.seconds and not self.violations:
                self.producer.rate = self._wave(self.at_s)
                self._proceed()
                if self.at_s >= sample_due:
                    sample_due = self.at_s + every_s
                    self.samples.append(self._sample())
                if self.at_s >= fault_due:
                    self._fault()
                    fault_due = self.at_s + self.rng.expovariate(1 / 4) + 0.5
                if self.shown["violation"] or self.reader.poll() is not None:
                    self.violations.append(f"the reader: {self.shown['violation'] or 'it has ended'}")
                time.sleep(0.05)
            self._proceed(everything=True)
            self.producer.rate = 0
            self._settle()
        self._prove()

    def _wave(self, at_s: float) -> float:
        """Entries a second: from a tenth of the rate to all of it and back; each third wave is a surge of twice as much."""
        height = 2 if int(at_s / WAVE_S) % 3 == 2 else 1
        return self.rate_max * (0.1 + 0.9 * height * (0.5 - 0.5 * math.cos(2 * math.pi * at_s / WAVE_S)))

    # -- faults ------------------------------------------------------------------------------------------------------------------------

    def _fault(self) -> None:
        kinds: dict[str, Callable[[], None]] = {
            "kill worker": lambda: self._kill(f"worker-{self.rng.randrange(2)}"), "kill writer": lambda: self._kill("writer"),
            "stop worker": lambda: self._stop(f"worker-{self.rng.randrange(2)}"), "stop writer": lambda: self._stop("writer"),
            "stop redis": lambda: self._stop("redis"), "restart redis": self._restart_redis, "pause and resume": self._pause,
            "reload": lambda: self._ask("reload"),
        }  # fmt: skip
        if self.at_s < self.judged_from_s - 2:
            kinds |= {"kill supervisor": self._kill_supervisor, "stop supervisor": lambda: self._stop("supervisor"),
                      "more workers": self._more_workers}  # fmt: skip
        if not self._deck:  # each kind comes once before one comes again
            self._deck = sorted(kinds)
            self.rng.shuffle(self._deck)
        kind = self._deck.pop()
        if kind not in kinds:
            return
        self.kinds[kind] += 1
        self.faults.append((self.at_s, kind.rpartition(" ")[2]))
        kinds[kind]()

    def _pid(self, role: str) -> int:
        if role == "redis":
            return self.server.process.pid if self.server.process is not None else 0
        if role == "supervisor":
            return self.daemon.process.pid if self.daemon.process is not None else 0
        status = self._status()
        return next((int(row["pid"]) for row in status["roles"] if row["role"] == role), 0) if status else 0

    def _send(self, role: str, number: int) -> int:
        pid = self._pid(role)
        with suppress(ProcessLookupError):
            if pid:
                psutil.Process(pid).send_signal(number)
        return pid

    def _kill(self, role: str) -> None:
        self._send(role, signal.SIGKILL)

    def _stop(self, role: str) -> None:
        pid = self._send(role, signal.SIGSTOP)
        if pid:
            self._stopped[pid] = self.at_s + self.rng.uniform(0.1, 2.5)

    def _proceed(self, everything: bool = False) -> None:
        """Let those go on whose time it is."""
        for pid, until_s in list(self._stopped.items()):
            if everything or self.at_s >= until_s:
                del self._stopped[pid]
                with suppress(psutil.NoSuchProcess):
                    psutil.Process(pid).send_signal(signal.SIGCONT)

    def _restart_redis(self) -> None:
        if self.rng.random() < 0.5 and self.server.process is not None:
            self.server.process.terminate()  # in good order
        self.server.kill()
        self.server.start()

    def _kill_supervisor(self) -> None:
        self._proceed(everything=True)
        self.daemon.kill()
        self.daemon.start()  # as systemd does

    def _pause(self) -> None:
        self._ask("pause")
        time.sleep(self.rng.uniform(0.1, 1.0))
        self._ask("resume")

    def _more_workers(self) -> None:
        self._ask("workers", count=4)
        time.sleep(self.rng.uniform(0.5, 2.0))
        self._ask("workers", count=2)

    def _ask(self, method: str, **params: Any) -> Any:
        """None: it did not answer, as when it is stopped just now."""
        try:
            return call(self.daemon.socket, method, params, 2.0)
        except ControlError:
            return None

    def _status(self) -> dict[str, Any] | None:
        found: dict[str, Any] | None = self._ask("status")
        return found

    # -- looking -----------------------------------------------------------------------------------------------------------------------

    def _sample(self) -> Sample:
        sample = Sample(round(self.at_s, 2), self.producer.total)
        status = self._status()
        if self.daemon.process is not None and self.daemon.process.poll() is not None:
            self.violations.append(f"the daemon ended with status {self.daemon.process.returncode}: {self.daemon.log()[-2000:]}")
        if status is None:
            return sample
        sample.durable = int(status["totals"]["entries"])
        sample.lag = sample.added - sample.durable
        sample.p50_us, sample.p99_us = status["latency"]["p50_us"], status["latency"]["p99_us"]
        if status["totals"]["lost"]:
            self.violations.append(f"{status['totals']['lost']} entries are called lost")
        pids = {row["role"]: int(row["pid"]) for row in status["roles"]} | {"supervisor": int(status["daemon"]["pid"])}
        sample.is_whole = set(pids) == {"supervisor", "writer", "worker-0", "worker-1"} and all(pids.values())
        sample.memory_by_role, sample.fds = {}, 0
        for role, pid in pids.items():
            try:
                process = psutil.Process(pid)
                sample.memory_by_role[role] = process.memory_info().rss
                sample.fds += process.num_fds()
            except (psutil.NoSuchProcess, ValueError):  # it dies just now
                sample.is_whole = False
        sample.memory = sum(sample.memory_by_role.values())
        return sample

    # -- the end -----------------------------------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """No more entries, no more faults: everything becomes durable, is trimmed, and is shown to the reader."""
        try:
            wait_until(lambda: self.producer.total == (self._status() or {"totals": {"entries": -1}})["totals"]["entries"],
                       lambda: f"all {self.producer.total} entries are durable: {self._status()}", SETTLE_S)  # fmt: skip
            wait_until(lambda: not any(self.server.client.xlen(stream) for stream in STREAMS), "Redis holds nothing any more", SETTLE_S)
            wait_until(lambda: self.shown["next"] == self.producer.added or self.shown["violation"], "the reader was shown all", SETTLE_S)
            self.samples.append(self._sample())
            self.daemon.stop()
        except AssertionError as error:
            self.violations.append(str(error)[:2000])

    def _prove(self) -> None:
        self.reader.terminate()
        self.reader.wait(30)
        self._listener.join(30)
        if self.shown["violation"] or self.shown["next"] != self.producer.added:
            self.violations.append(f"the reader was shown {self.shown}; added: {self.producer.added}")
        command = [sys.executable, "-c", "from hdad.cli.hdactl import main; main()", "--json", "log", "verify", self.daemon.device]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode:
            self.violations.append(f"hdactl verify: status {found.returncode}: {found.stdout[:2000]}{found.stderr[:2000]}")
            return
        self.report = json.loads(found.stdout)
        counted = {lane["name"]: lane["committed"] for lane in self.report["lanes"]}
        if counted != self.producer.added or any(lane["lost"] or lane["dead_lettered"] for lane in self.report["lanes"]):
            self.violations.append(f"the log counts {counted}; added: {self.producer.added}")
        if "Traceback" in self.daemon.log():
            self.violations.append(f"a traceback in the daemon's log: {self.daemon.log()[:3000]}")

    def laps(self) -> float:
        """How often the log has gone around."""
        found = inspect(self.daemon.device)
        return float(found.get("segment_sequence", 0)) / float(found["segment_count"])

    def close(self) -> None:
        """Nothing is left running."""
        self._proceed(everything=True)
        self.reader.kill()
        self.reader.wait()
        if self.reader.stdout is not None:
            self.reader.stdout.close()
        self.daemon.kill()
        self.server.__exit__()


def summary(soak: Soak, verdicts: list[Verdict]) -> dict[str, Any]:
    """The figures."""
    lags = [sample.lag for sample in soak.samples if sample.lag is not None]
    judged = [sample for sample in soak.samples if sample.at_s >= soak.judged_from_s]
    p50s, p99s = sorted(s.p50_us for s in judged if s.p50_us), sorted(s.p99_us for s in judged if s.p99_us)
    return {
        "seconds": round(soak.at_s, 1), "added": soak.producer.total, "shown_to_reader": soak.shown["records"],
        "rate_mean": round(soak.producer.total / max(1.0, soak.seconds)), "faults": dict(sorted(soak.kinds.items())),
        "fault_count": soak.kinds.total(), "laps": round(soak.laps(), 1), "lag_max": max(lags, default=0),
        "p50_us": p50s[len(p50s) // 2] if p50s else 0, "p99_us": p99s[len(p99s) // 2] if p99s else 0,
        "memory_mib": round((judged[-1].memory or 0) / MIB, 1) if judged else 0,
        **{verdict.key: round(verdict.value, 2) for verdict in verdicts},
        "flat": bool(verdicts) and all(verdict.is_flat for verdict in verdicts), "verified": bool(soak.report.get("ok")),
        "violations": soak.violations,
    }  # fmt: skip


def show(found: dict[str, Any], verdicts: list[Verdict]) -> None:
    """The same for a person."""
    table = Table(title="soak", show_header=False)
    hidden = {"violations", "faults", *(verdict.key for verdict in verdicts)}
    for name, value in found.items():
        if name not in hidden:
            table.add_row(name.replace("_", " "), str(value) if isinstance(value, bool) else f"{value:,}")
    for kind, count in found["faults"].items():
        table.add_row(f"fault: {kind}", str(count))
    for verdict in verdicts:
        mark = "[green]flat[/]" if verdict.is_flat else "[red]NOT FLAT[/]"
        table.add_row(verdict.name, f"{verdict.value:.2f} {verdict.unit}, at most {verdict.limit:.2f}: {mark}")
    console = Console(width=110)
    console.print(table)
    for violation in found["violations"]:
        console.print(f"VIOLATION: {violation}", style="red", markup=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--hours", type=float)
    length.add_argument("--minutes", type=float)
    parser.add_argument("--rate", type=float, default=4000, help="entries a second at the top of a wave; surges have twice as many")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="of the faults; what they meet is not repeatable")
    parser.add_argument("--directory", help="where log and server have their files; default: a temporary folder")
    parser.add_argument("--plot", default="build/soak.png", help="the picture to write")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    options = parser.parse_args()
    seconds = options.hours * 3600 if options.hours else (options.minutes or 3) * 60
    folder = Path(tempfile.mkdtemp(prefix="hdad-soak-", dir=options.directory))
    print(f"soak: {seconds:.0f} s, seed {options.seed}, {folder}", file=sys.stderr)
    soak = Soak(folder, seconds, options.rate, options.seed)
    try:
        soak.run()
        verdicts = judge(soak.samples, soak.judged_from_s)
        found = summary(soak, verdicts)
    finally:
        soak.close()
    Path(options.plot).parent.mkdir(parents=True, exist_ok=True)
    title = f"{seconds / 60:g} min, {found['added']:,} entries, {found['fault_count']} faults, the log {found['laps']} times around"
    draw(options.plot, title, soak.samples, soak.faults, soak.judged_from_s)
    show(found, verdicts)
    print(f"plot: {options.plot}", file=sys.stderr)
    is_good = found["flat"] and found["verified"] and not found["violations"]
    if is_good:
        shutil.rmtree(folder)
    else:
        print(f"what is left is in {folder}", file=sys.stderr)
    if options.json:
        print(json.dumps(found | {"seed": options.seed, "plot": options.plot}))
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())

"""The bench's command: parse, measure section by section, print, draw. See scripts/bench.

Sections: throughput, large (16 KB entries), latency, ring, writer, recovery, lanes, link: those of --quick; and tail (seen by a reader; at
half of the maximum), sizes, streams, servers, workers, idle, memory, profile. Several may be named; without any all are measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import hdad

from . import plot, report
from .programs import BenchError, compile_programs
from .sections import QUICK, SECTIONS, SETTINGS, Plan, Session


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of: {', '.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="the ratios that count, in under five minutes")
    parser.add_argument("--figures", action="store_true", help="each section of --quick once and short: shows that it works, not how fast")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object: all that was found; with --quick the ratios")
    parser.add_argument("--plot", default="", metavar="PNG", help="where the picture goes (build/bench.png, of several sections)")
    parser.add_argument("--runs", type=int, default=0, help="rounds of each comparison (3); medians count")
    parser.add_argument("--entries", type=int, default=0, help="of the throughput measurements (1,000,000)")
    parser.add_argument("--seconds", type=float, default=0, help="of each latency measurement (3)")
    parser.add_argument("--rates", default="", help="entries per second of the latency measurements (1000,20000,100000)")
    parser.add_argument("--peers", default="", help="only these, such as hdad,xread")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--value-bytes", type=int, default=200, help="of an entry, at least 64")
    parser.add_argument("--server", choices=("redis", "valkey"), default="redis")
    parser.add_argument("--tcp", action="store_true", help="TCP on the loopback instead of the Unix socket")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=TOML", help="a key of hdad.toml, such as log.inflight_max=8")
    parser.add_argument("--directory", help="where the log and the peers' files are; on the disk that matters")
    options = parser.parse_args()
    for name in options.sections:
        if name not in SECTIONS:
            parser.error(f"no section {name!r}; allowed: {', '.join(SECTIONS)}")
    return options


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _plan(options: argparse.Namespace, folder: Path) -> Plan:
    brief = options.quick or options.figures
    rates = tuple(int(rate) for rate in options.rates.split(",") if rate) or ((1_000, 100_000) if brief else (1_000, 20_000, 100_000))
    runs, entries, slow_entries, seconds, scale = (1, 300_000, 100_000, 1, 0.2) if options.figures else (3, 1_000_000, 500_000, 3, 1)
    if options.quick:
        seconds = 2  # and five rounds: one stall of the device is a whole round's p99
    latency_runs = options.runs or (5 if options.quick else runs)
    peers = tuple(filter(None, options.peers.split(",")))
    overrides = dict(item.partition("=")[::2] for item in options.set)
    return Plan(
        folder, options.runs or runs, options.entries or entries, slow_entries, options.seconds or seconds, rates, options.workers,
        options.streams, options.value_bytes, options.server, options.tcp, peers, brief, latency_runs, scale, overrides, _say,
    )  # fmt: skip


def _measure(options: argparse.Namespace, plan: Plan, session: Session) -> dict[str, Any]:
    compile_programs(plan.folder)
    server = session.server()
    found: dict[str, Any] = {
        "machine": {
            "cpus": os.cpu_count(), "load_before": os.getloadavg()[0], "server": server.version, "hdad": str(Path(hdad.__file__).parent)
        },
        "settings": dict(SETTINGS),
    }  # fmt: skip
    for name in options.sections or (QUICK if plan.is_quick else [name for name in SECTIONS if name != "profile"]):
        began = time.monotonic()
        try:
            found[name] = SECTIONS[name](session)
        except BenchError as error:
            found[name] = {"failed": str(error)}
            found["failed"] = [*found.get("failed", ()), name]
            plan.say(f"{name}: {error}")
        plan.say(f"{name}: {time.monotonic() - began:.0f} s")
    found["ratios"] = report.collect(found)
    return found


def _show(options: argparse.Namespace, found: dict[str, Any]) -> None:
    print("\n".join(report.figures(found)))
    print("ratios of hdad to its peers")
    print("\n".join(report.targets(found["ratios"])))
    if options.plot or len(options.sections) != 1:
        path = Path(options.plot or "build/bench.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        print(plot.draw(found, report.ALL_TARGETS, path) or f"plot: {path}")
    if options.json:
        chosen = {name: found["ratios"].get(name) for name in report.TARGETS} if options.quick and not options.sections else found
        print(json.dumps(chosen))


def main() -> int:
    """Measure and print. Returns the exit status."""
    options = _parse()
    folder = Path(tempfile.mkdtemp(prefix="hdad-bench-", dir=options.directory))
    plan = _plan(options, folder)
    session = Session(plan)
    try:
        found = _measure(options, plan, session)
    except BenchError as error:  # no compiler, no server: there is nothing to show
        plan.say(str(error))
        return 1
    finally:
        session.stop_server()
        shutil.rmtree(folder, ignore_errors=True)
    _show(options, found)
    return 1 if found.get("failed") else 0


if __name__ == "__main__":
    sys.exit(main())

"""The bench's command: parse, measure section by section, print. See scripts/bench."""

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

from . import report
from .programs import BenchError, compile_programs
from .sections import SECTIONS, Plan, Session


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of: {', '.join(SECTIONS)}; none: all")
    parser.add_argument("--quick", action="store_true", help="the ratios that count, in under five minutes")
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object")
    parser.add_argument("--runs", type=int, default=3, help="rounds of each comparison; medians count")
    parser.add_argument("--entries", type=int, default=2_000_000, help="of the throughput measurements")
    parser.add_argument("--seconds", type=float, default=3, help="of each latency measurement")
    parser.add_argument("--rates", default="", help="entries per second of the latency measurements, such as 1000,100000")
    parser.add_argument("--peers", default="", help="only these of the throughput section, such as hdad,xread")
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


def _plan(options: argparse.Namespace, folder: Path) -> Plan:
    rates = tuple(int(rate) for rate in options.rates.split(",") if rate) or ((1_000, 100_000) if options.quick else (1_000, 20_000, 100_000))
    return Plan(
        folder, options.runs, options.entries, min(500_000, options.entries), options.seconds, rates, options.workers, options.streams,
        options.value_bytes, options.server, options.tcp, tuple(filter(None, options.peers.split(","))), options.quick,
        dict(item.partition("=")[::2] for item in options.set), lambda text: print(text, file=sys.stderr, flush=True),
    )  # fmt: skip


def main() -> int:
    """Measure and print. Returns the exit status."""
    options = _parse()
    folder = Path(tempfile.mkdtemp(prefix="hdad-bench-", dir=options.directory))
    plan = _plan(options, folder)
    found: dict[str, Any] = {"machine": {"cpus": os.cpu_count(), "load_before": os.getloadavg()[0], "hdad": str(Path(hdad.__file__).parent)}}
    session = Session(plan)
    try:
        compile_programs(folder)
        for name in options.sections or SECTIONS:
            began = time.monotonic()
            found[name] = SECTIONS[name](session)
            plan.say(f"{name}: {time.monotonic() - began:.0f} s")
    except BenchError as error:
        plan.say(f"bench: {error}")
        return 1
    finally:
        session.stop_server()
        shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(report.lines(found)))
    if options.json:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

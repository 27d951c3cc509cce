"""``hdactl log inspect|verify|read`` on damaged logs: each time a clear verdict, and a true one.

    python -m tests.hostile.run [--logs N] [--first S] [--seed S] [--jobs J] [--json]

Log S is base log S mod 40 (tests/hostile/base.py) with damage drawn from S (tests/hostile/damage.py); ``--seed S`` looks at that one
alone and says what it does. Clear: within TIME_S_MAX and MEMORY_MAX more than the process had, an exit status that README lists for it,
words on stderr or in the report, no traceback, not a byte changed. True, unless a checksum was forged or a part restored from an older
copy, which nobody can tell from the truth: nothing is read that is not in the whole log, nothing twice or out of order; and what is gone
although something that is still there calls it durable is told (status 0 is a lie then). One log in REAL_EVERY is also given to real
processes, which must say the same.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

from hdad.cli import hdactl, output
from hdad.errors import ExitStatus
from hdad.limits import MIB
from hdad.log.format import FrameKind
from tests.hostile.base import NAMES, BaseLog, make_base, scratch
from tests.hostile.damage import Damaged, damage
from tests.hostile.oracle import Missing, missing_of

BASES: Final = 40
TIME_S_MAX: Final = 10.0  # of CPU, each command; a whole log of this size takes 0.1 s
WALL_S_MAX: Final = 120.0  # the same when it waits: the disk of a busy machine may take its time
MEMORY_MAX: Final = 256 * MIB  # address space beyond what the process has before
REAL_EVERY: Final = 50
# What a command may end with. 2 for read: --lane names a lane that is not there (any more).
ALLOWED: Final = {
    "inspect": {ExitStatus.OK, ExitStatus.DAMAGED, ExitStatus.FOREIGN},
    "verify": {ExitStatus.OK, ExitStatus.FINDINGS, ExitStatus.FOREIGN},
    "read": {ExitStatus.OK, ExitStatus.DAMAGED, ExitStatus.FOREIGN, ExitStatus.LAPPED},
    "letters": {ExitStatus.OK, ExitStatus.DAMAGED, ExitStatus.FOREIGN, ExitStatus.LAPPED},
}


class Outcome(NamedTuple):
    """What a command did. ``seconds``: of CPU. ``trace``: what escaped from it, "" if nothing did."""

    status: int
    out: bytes
    err: str
    seconds: float
    trace: str = ""


@dataclass
class Tally:
    """Of some logs."""

    logs: int = 0
    commands: int = 0
    real: int = 0
    slowest_s: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    zones: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    peak_mib: int = 0

    def add(self, other: Tally) -> None:
        """Those too."""
        self.logs += other.logs
        self.commands += other.commands
        self.real += other.real
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.statuses += other.statuses
        self.zones += other.zones
        self.violations += other.violations
        self.peak_mib = max(self.peak_mib, other.peak_mib)


# -- running a command -------------------------------------------------------------------------------------------------------------------


class _TooLate(BaseException):
    """Not an Exception: no handler of the command may take it for one of its own."""


@contextlib.contextmanager
def _limited_time() -> Iterator[None]:
    def expire(_number: int, _frame: FrameType | None) -> None:
        raise _TooLate

    timers = ((signal.SIGPROF, signal.ITIMER_PROF, TIME_S_MAX), (signal.SIGALRM, signal.ITIMER_REAL, WALL_S_MAX))
    before = [signal.signal(number, expire) for number, _, _ in timers]
    for _, timer, seconds in timers:
        signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


@contextlib.contextmanager
def _limited_memory() -> Iterator[None]:
    """A size believed out of the log becomes a MemoryError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_MAX, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def run_here(arguments: Sequence[str]) -> Outcome:
    """``hdactl`` with these arguments, in this process, by the entry point that the command has."""
    out, err, argv = sys.stdout, sys.stderr, sys.argv
    sink, words = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()
    sys.stdout, sys.stderr, sys.argv = sink, words, ["hdactl", *arguments]
    output.console, output.errors = output._console(sink, False), output._console(words, True)  # type: ignore[misc]  # as in a new process
    began, status, trace = time.process_time(), 0, ""
    try:
        with _limited_memory(), _limited_time():
            hdactl.main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    except _TooLate:
        trace = f"not within {TIME_S_MAX:g} s of CPU or {WALL_S_MAX:g} s: {''.join(traceback.format_exc().splitlines(keepends=True)[-8:])}"
    except BaseException:  # whatever escapes is what we look for
        trace = traceback.format_exc()
    finally:
        sys.stdout, sys.stderr, sys.argv = out, err, argv
    sink.flush()
    content = sink.buffer
    assert isinstance(content, io.BytesIO)
    return Outcome(status, content.getvalue(), words.getvalue(), time.process_time() - began, trace)


def run_process(arguments: Sequence[str]) -> Outcome:
    """The same as a process of its own."""
    command = [sys.executable, "-c", "from hdad.cli.hdactl import main; main()", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=WALL_S_MAX, check=False, env={**os.environ, "PYTHONUTF8": "1"})
    except subprocess.TimeoutExpired:
        return Outcome(-1, b"", "", WALL_S_MAX, "the process did not end")
    err = done.stderr.decode("utf-8", "replace")
    return Outcome(done.returncode, done.stdout, err, 0.0, err if "Traceback" in err else "")


def commands_for(base: BaseLog, path: str, rng: random.Random) -> dict[str, list[str]]:
    """What is asked of one damaged log: inspect, verify and read, each for people or for programs, and one more way of reading."""
    first, last = base.frames[0].header.lsn, base.frames[-1].header.lsn
    start = rng.choice((str(rng.randint(first, last)), "2026-09-21T13:20:00", "end", "0"))
    lane = rng.choice([name for name in NAMES if "\0" not in name])  # no argument can have a zero byte
    after = f"{rng.randint(0, 2000)}-0"
    ways = (["--from", start], ["--lane", lane], ["--lane", lane, "--after", after], ["--format", "raw"], ["--limit", "5"])
    return {
        "inspect": [*rng.choice(([], ["--json"])), "log", "inspect", path],
        "verify": [*rng.choice(([], ["--json"])), "log", "verify", path],
        "read": ["log", "read", path],
        "read again": ["log", "read", path, *rng.choice(ways)],
        "letters": [*rng.choice(([], ["--json"])), "deadletters", "list", path],
    }


# -- judging -----------------------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)  # look_at_all comes base by base
def base_with_lines(number: int) -> tuple[BaseLog, list[bytes]]:
    """Base log ``number``, and what ``hdactl log read`` prints of it while it is whole."""
    base = make_base(number)
    with scratch() as folder:
        path = Path(folder) / "log"
        path.write_bytes(base.image)
        found = [run_here(["log", what, str(path)]) for what in ("inspect", "verify", "read")]
    wrong = [(outcome.status, outcome.err, outcome.trace) for outcome in found if outcome.trace or outcome.status]
    assert not wrong, f"base log {number} is not whole: {wrong}"
    return base, found[-1].out.splitlines(keepends=True)


def _lsn(line: bytes) -> int:
    return int(json.loads(line)["lsn"])


def _is_same(line: bytes, true: bytes, status: int) -> bool:
    """Whether ``line`` is ``true``; when damage was told, its lane's name may be what was damaged."""
    if line == true or not status or not line.startswith(b'{"lane":"",'):
        return line == true
    return line.partition(b',"id":')[2] == true.partition(b',"id":')[2]


def judge_form(what: str, outcome: Outcome) -> Iterator[str]:
    """Whether the verdict is clear."""
    name = what.partition(" ")[0]
    if outcome.trace:
        yield outcome.trace
        return
    if outcome.status not in ALLOWED[name] and not (what == "read again" and outcome.status == ExitStatus.USAGE):
        yield f"status {outcome.status}; allowed: {sorted(int(status) for status in ALLOWED[name])}: {outcome.err[:300]}"
    if outcome.status and not outcome.err.strip() and name not in ("inspect", "verify"):
        yield f"status {outcome.status} without a word"
    if outcome.status and not outcome.err.strip() and not outcome.out.strip():
        yield f"status {outcome.status} without a word or a report"


def judge_truth(what: str, outcome: Outcome, base: BaseLog, lines: Sequence[bytes], missing: Missing) -> Iterator[str]:
    """Whether the verdict is true. Only for accidents: a forged checksum makes a lie as good as the truth."""
    if what == "inspect" and not outcome.status:
        text = outcome.out.decode()
        found = json.loads(text)["next_lsn"] if text.startswith("{") else int(text.split("next lsn")[1].split()[0])
        last = base.frames[-1].header.lsn
        newest = max(frame.header.lsn for frame in base.frames if frame.header.kind == FrameKind.SEGMENT_HEAD)
        told = [lsn for lsn in missing.told_lsns if lsn >= newest]  # it looks at the newest segment only
        if found > last + 1 or (told and found <= told[-1]):
            yield f"it ends the log before LSN {found}, the truth is {last + 1}, and LSNs {told[-3:]} are known to be durable"
    if what == "verify" and not outcome.status and missing.told_lsns:
        yield f"it calls the log verified; LSNs {missing.told_lsns[:5]} were durable and are not there"
    if what.startswith("read") and outcome.out.startswith(b'{"lane":'):
        printed = outcome.out.splitlines(keepends=True)
        rest = iter(lines)
        strange = next((line for line in printed if not any(_is_same(line, true, outcome.status) for true in rest)), None)
        if strange is not None:
            yield f"it prints what the whole log does not have there: {strange[:200]!r}"
        elif what == "read" and not outcome.status:
            gone = {_lsn(line) for line in set(lines) - set(printed)} & set(missing.told_lsns)
            if gone:
                yield f"it passes over LSNs {sorted(gone)[:5]} without a word; they were durable"


def look_at(seed: int, verbose: bool = False) -> Tally:
    """One damaged log, all commands."""
    rng = random.Random(seed)
    base, lines = base_with_lines(seed % BASES)
    damaged = damage(base, rng)
    missing = missing_of(damaged)
    tally = Tally(logs=1, zones=Counter(set(damaged.zones)))
    with scratch() as folder:
        path = Path(folder) / "log"
        path.write_bytes(damaged.image)
        before = path.stat().st_mtime_ns
        for what, arguments in commands_for(base, str(path), rng).items():
            outcome = run_here(arguments)
            found = list(judge_form(what, outcome))
            if not found and not (damaged.is_forged or damaged.is_restored):
                found += judge_truth(what, outcome, base, lines, missing)
            if seed % REAL_EVERY == 0 and not found:
                found += _compare(outcome, run_process(arguments))
                tally.real += 1
            tally.commands += 1
            tally.slowest_s = max(tally.slowest_s, outcome.seconds)
            tally.statuses[f"{what}: {outcome.status}"] += 1
            tally.violations += [_told(seed, damaged, arguments, text) for text in found]
            if verbose:
                shown = outcome.out[:2000].decode("utf-8", "replace")
                print(f"{what}: status {outcome.status} in {outcome.seconds:.3f} s\n{outcome.err[:2000]}{shown}")
        if path.stat().st_mtime_ns != before or path.read_bytes() != damaged.image:
            tally.violations.append(_told(seed, damaged, [], "looking at the log changed it"))
    tally.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return tally


def _compare(here: Outcome, there: Outcome) -> Iterator[str]:
    if there.trace:
        yield f"a real process: {there.trace}"
    elif (here.status, here.out) != (there.status, there.out):
        yield f"a real process: status {there.status}, {len(there.out)} bytes; here {here.status}, {len(here.out)}: {there.err[:300]}"


def _told(seed: int, damaged: Damaged, arguments: Sequence[str], text: str) -> str:
    base = damaged.base
    return (
        f"seed {seed}: {' '.join(arguments)}\n  base {base.number}: {base.shape}, {base.ending}, blocks of {base.geometry.block_size}\n"
        + "".join(f"  {fault}\n" for fault in damaged.faults) + f"  -> {text}"
    )  # fmt: skip


# -- all of them -------------------------------------------------------------------------------------------------------------------------


def look_at_all(seeds: Sequence[int], jobs: int) -> Tally:
    """All of ``seeds``, in ``jobs`` processes."""
    total = Tally()
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        for tally in pool.imap_unordered(look_at, sorted(seeds, key=lambda seed: (seed % BASES, seed)), 8):
            total.add(tally)
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first")
    parser.add_argument("--seed", type=int, help="this one alone, and what each command says")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    began = time.monotonic()
    if options.seed is not None:
        total = look_at(options.seed, not options.json)
    else:
        total = look_at_all(range(options.first, options.first + options.logs), options.jobs)
    for violation in total.violations:
        print(violation, file=sys.stderr)
    seconds = round(time.monotonic() - began, 1)
    if options.json:
        print(json.dumps({
            "logs": total.logs, "commands": total.commands, "processes": total.real, "violations": len(total.violations),
            "statuses": total.statuses, "zones": total.zones, "slowest_s": round(total.slowest_s, 2), "peak_mib": total.peak_mib,
            "seconds": seconds,
        }))  # fmt: skip
    else:
        print(f"damaged logs: {total.logs:,}, {total.commands:,} commands and {total.real} processes, {len(total.violations)} violations; "
              f"slowest {total.slowest_s:.2f} s, at most {total.peak_mib} MiB; {seconds} s")  # fmt: skip
        for what, count in sorted(total.statuses.items()):
            print(f"  {count:>7,}  {what}")
    return 1 if total.violations or not total.logs else 0


if __name__ == "__main__":
    sys.exit(main())

"""The reader of a soak run, a process of its own: tails the log from its beginning and proves it, entry by entry.

    python -m tests.soak.reader DEVICE

A line of JSON a second on stdout: how many records it was shown, the next number of each stream, how old records were when it saw them. It
keeps nothing else, so its memory does not grow with the run. SIGTERM ends it, after a last line. A record out of turn, or being lapped, is
a violation: told in the last line, and status 1.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from types import FrameType

from hdad.errors import HdadError
from hdad.log.reader import LogReader

EVERY_S = 1.0
AGES_MAX = 20_000  # LIMIT: of one second


class Violation(Exception):
    """The log is not what was added."""


class Proof:
    """What comes next in each stream."""

    def __init__(self) -> None:
        self.next_n: dict[str, int] = {}
        self.records = 0
        self.ages_ms: list[float] = []

    def take(self, stream: str, n: int, ms: int) -> None:
        """One record. Raises Violation."""
        expected = self.next_n.get(stream, 0)
        if n != expected:
            raise Violation(f"{stream}: entry {n} where {expected} comes next: {'again' if n < expected else 'a gap'}")
        self.next_n[stream] = n + 1
        self.records += 1
        if len(self.ages_ms) < AGES_MAX:
            self.ages_ms.append(time.time() * 1000 - ms)

    def line(self, violation: str = "") -> str:
        """What to print, and a new second begins."""
        ages, self.ages_ms = sorted(self.ages_ms), []
        p50, p99 = (ages[len(ages) // 2], ages[len(ages) * 99 // 100]) if ages else (0.0, 0.0)
        return json.dumps({
            "records": self.records, "next": self.next_n, "p50_ms": round(p50, 2), "p99_ms": round(p99, 2), "violation": violation,
        })  # fmt: skip


def _print_when(due: float, proof: Proof) -> float:
    """A line, if it is time for one. Returns when the next is due."""
    if time.monotonic() < due:
        return due
    print(proof.line(), flush=True)
    return due + EVERY_S


def main() -> int:
    is_over = False

    def end(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_over
        is_over = True

    signal.signal(signal.SIGTERM, end)
    proof, due, violation = Proof(), time.monotonic() + EVERY_S, ""
    try:
        with LogReader(sys.argv[1]) as reader:
            while not is_over:
                for record in reader.records(follow=True, timeout_s=0.2):
                    proof.take(record.lane, int(dict(record.fields)[b"n"]), record.position.ms)
                    due = _print_when(due, proof)
                due = _print_when(due, proof)
    except (Violation, HdadError) as error:
        violation = f"{type(error).__name__}: {error}"
    print(proof.line(violation), flush=True)
    return 1 if violation else 0


if __name__ == "__main__":
    sys.exit(main())

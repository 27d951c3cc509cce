"""What the VM tests have to show: a table of the faults injected, and one line of JSON. Built from what tests recorded, nothing else.

``Summary`` collects in each pytest; with ``--vm-summary`` it leaves all of it there as JSON, and ``scripts/vm test`` shows what its runs
left as one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

PROPERTY: Final = "fault"


class Summary:
    """A plugin of the pytest outside: collects outcomes and recorded faults."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._began = time.monotonic()
        self._outcomes = {"passed": 0, "failed": 0, "skipped": 0}
        self._faults: list[dict[str, Any]] = []
        self._skipped: dict[str, int] = {}  # reason → tests
        self._seconds: dict[str, float] = {}  # of each file
        self._last = self._began

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        now = time.monotonic()
        file = nodeid.partition("::")[0]
        self._seconds[file] = self._seconds.get(file, 0.0) + now - self._last  # boots counted with the test that needs them
        self._last = now

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            if report.when == "teardown" and report.failed:
                self._outcomes["passed"] -= 1
            self._outcomes[report.outcome] += 1
            if report.skipped:
                reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
                self._skipped[reason] = self._skipped.get(reason, 0) + 1
        if report.when == "call":
            self._faults += [dict(value) for name, value in report.user_properties if name == PROPERTY]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        facts = {"outcomes": self._outcomes, "faults": self._faults, "seconds": self._seconds, "skipped": self._skipped}
        if self._path is not None:
            Path(self._path).write_text(json.dumps(facts))
            return
        for line in page(facts):
            terminalreporter.write_line(line)


def merged(all_facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What several runs have left, as if one had."""
    found: dict[str, Any] = {"outcomes": {"passed": 0, "failed": 0, "skipped": 0}, "faults": [], "seconds": {}, "skipped": {}}
    for facts in all_facts:
        found["faults"] += facts["faults"]
        for kind in ("outcomes", "seconds", "skipped"):
            for name, number in facts[kind].items():
                found[kind][name] = found[kind].get(name, 0) + number
    return found


def line_of(facts: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The line of JSON."""
    faults = facts["faults"]
    return {
        **facts["outcomes"],
        "seconds": round(seconds, 1),
        "longest_stall_ms": max((fault.get("stall_ms", 0) for fault in faults), default=0),
        "lost": sum(fault.get("lost", 0) for fault in faults),
        "fc_hosts_online": max((fault.get("fc_hosts_online", 0) for fault in faults), default=0),
        "fenced": sum(fault.get("fenced", 0) for fault in faults),
    }


def page(facts: dict[str, Any]) -> list[str]:
    """For people: the faults, the time each file took, and, where they cannot be overlooked, the tests that did not run."""
    lines = []
    if facts["faults"]:
        lines.append("-- faults injected --")
        head = ("fault", "entries", "lost", "longest stall", "p50", "p99", "slowest answer of status")
        rows = [head, *(_row(fault) for fault in facts["faults"])]
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        for first, *others in rows:
            cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
            lines.append("  ".join(cells).rstrip())
    lines.append("-- seconds of each file, boots counted --")
    lines += [f"{seconds:7.1f}  {file}" for file, seconds in facts["seconds"].items()]
    for reason, count in facts["skipped"].items():
        lines += [f"!!!! {count} TESTS DID NOT RUN !!!!", reason]
    return lines


def _row(fault: dict[str, Any]) -> tuple[str, ...]:
    return (
        fault["fault"], f"{fault['entries']:,}" if "entries" in fault else "", _lost(fault),
        *(f"{fault[name]:,.0f} ms" if name in fault else "" for name in ("stall_ms", "p50_ms", "p99_ms", "answer_ms")),
    )  # fmt: skip


def _lost(fault: dict[str, Any]) -> str:
    """Where the device itself loses what it had called durable, what counts is that all of it is told."""
    return str(fault["lost"]) if "lost" in fault else f"{fault['told']:,} told"

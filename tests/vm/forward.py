"""How a test gets into the VM: pytest on the host boots one, has pytest in it run the tests of a group, and shows their reports as its own.

``Host`` is the plugin outside: for the first test of a group it boots a VM for all of the group; each further test waits for its reports.
A test that hangs or takes the kernel down fails, the VM is thrown away, and the rest of its group goes on in a new one. ``Guest`` is the
plugin inside. Reports travel as lines of JSON through a file in /mnt/out, in pytest's own serial form.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.vm.kernel import SLACK, guest_environment
from tests.vm.packages import CannotBootError
from tests.vm.qemu import Machine

IN_VM: Final = "HDAD_VM_GUEST"
PAGES: Final = "HDAD_VM_PAGES"
REPORTS: Final = Path("/mnt/out/reports")
TEST_S: Final = 300.0 * SLACK  # a test in the VM takes 5 to 40 s on an idle machine
MEMORY_MIB: Final = 2560
POLL_S: Final = 0.05


def group_of(item: pytest.Item) -> str | None:
    """The VM an item wants to be in; None: it runs on the host."""
    marker = item.get_closest_marker("guest")
    return None if marker is None else str(marker.args[0]) if marker.args else "one"


class Guest:
    """Inside: writes down each report."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._file = REPORTS.open("a", buffering=1)

    def _write(self, **content: Any) -> None:
        self._file.write(json.dumps(content) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(start=nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            found = subprocess.run(["dmesg"], capture_output=True, text=True, check=False).stdout
            report.sections.append(("dmesg", "\n".join(found.splitlines()[-40:])))
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._write(report=data)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._write(end=nodeid)


class Host:
    """Outside. ``accelerator``: what the VMs ran with; ``boots``: how many there were."""

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._machine: Machine | None = None
        self._lines: Iterator[dict[str, Any] | None] = iter(())
        self._group: str | None = None
        self._cannot = ""
        self._numbers = itertools.count()
        self.accelerator = ""
        self.boots = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Run an item of a group in its VM; leave all others to pytest."""
        group = group_of(item)
        if group is None:
            self.end()
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item, group):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if nextitem is None or group_of(nextitem) != group:
            self.end()
        return True

    def _reports(self, item: pytest.Item, group: str) -> Iterator[pytest.TestReport]:
        try:
            if self._cannot:
                raise CannotBootError(self._cannot)
            if self._machine is None or self._group != group:
                self._begin(item, group)
        except CannotBootError as error:
            self._cannot = str(error)
            yield _report(item, "skipped", f"no VM can boot here: {error}")
            return
        began = time.monotonic()
        for content in self._lines:
            if content is not None and "report" in content:
                found = self._config.hook.pytest_report_from_serializable(config=self._config, data=content["report"])
                if found.nodeid == item.nodeid:
                    yield found
            elif content is not None and "page" in content:
                self._keep(content["page"], content["text"])
            elif content is not None and content.get("end") == item.nodeid:
                return
            elif content is None and time.monotonic() - began > TEST_S:
                break
        assert self._machine is not None
        what = f"no end within {TEST_S:g} s" if self._machine.is_running else "the VM ended"
        console = self._machine.console()
        self.end()
        yield _report(item, "failed", f"{what}; its console:\n{console[-6000:]}")

    def _begin(self, first: pytest.Item, group: str) -> None:
        """A VM for ``first`` and what comes behind it in its group."""
        self.end()
        folder = self._folder / f"vm-{next(self._numbers)}"
        items = first.session.items
        wanted = [item.nodeid for item in items[items.index(first) :] if group_of(item) == group]
        # Not by -p on the command line alone: each plugin costs a second of imports in an emulated machine.
        plugins = [word for name in ("hypothesispytest", "xdist", "xdist.looponfail", "cacheprovider") for word in ("-p", f"no:{name}")]
        # A test that hangs shows where on the console, before it is given up.
        plugins += ["-o", f"faulthandler_timeout={TEST_S * 0.8:g}"]
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "--no-summary", *plugins, "-m", "vm", *wanted]
        wanted_pages = {PAGES: "1"} if self._config.getoption("--vm-pages") else {}
        environment = {IN_VM: "1", **guest_environment(), **wanted_pages}
        self._machine = Machine(folder, command, memory_mib=MEMORY_MIB, environment=environment)
        self._machine.start()
        self._group, self.accelerator = group, self._machine.accelerator
        self.boots += 1
        self._lines = _lines(self._machine)

    def _keep(self, name: str, text: str) -> None:
        folder = self._config.getoption("--vm-pages")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            Path(folder, name).write_text(text)

    def end(self) -> None:
        """Let the VM go."""
        if self._machine is not None:
            self._machine.wait(5)
            self._machine.cut_power()
            self._machine = None

    def pytest_sessionfinish(self) -> None:
        self.end()


def _lines(machine: Machine) -> Iterator[dict[str, Any] | None]:
    """What the guest has written, line by line; None: nothing for now. Ends with the VM."""
    path = machine.out / "reports"
    rest = b""
    offset = 0
    while True:
        running = machine.is_running  # before the look: what it wrote last is seen still
        if path.exists():
            with path.open("rb") as file:
                file.seek(offset)
                new = file.read()
            offset += len(new)
            *whole, rest = (rest + new).split(b"\n")
            yield from map(json.loads, whole)
        if not running:
            return
        yield None
        time.sleep(POLL_S)


def _report(item: pytest.Item, outcome: Any, text: str) -> pytest.TestReport:
    path, line, _ = item.location
    detail: Any = (str(item.path), (line or 0) + 1, f"Skipped: {text}") if outcome == "skipped" else text
    return pytest.TestReport(item.nodeid, (path, line, item.name), {}, outcome, detail, "setup" if outcome == "skipped" else "call")


def keep_page(name: str, text: str) -> None:
    """Inside: a page of a tool as it was at this moment, for who wants to read it (--vm-pages)."""
    with REPORTS.open("a") as file:
        file.write(json.dumps({"page": name, "text": text}) + "\n")


def are_pages_wanted() -> bool:
    """Inside: somebody wants pages; one that takes long need not be made otherwise."""
    return bool(os.environ.get(PAGES))


def is_guest() -> bool:
    """True: this is the pytest inside."""
    return bool(os.environ.get(IN_VM))

"""Reads the imports of hdad/ and holds the table of layers: who may know whom. A module that breaks it is in the wrong place."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import hdad

ROOT = Path(hdad.__file__).parent
NOUNS = {"hdad", "hdad.errors", "hdad.limits", "hdad.clock", "hdad.record", "hdad.addresses", "hdad.timing", "hdad._core", "hdad.config"}
FORMATS = {"hdad.log.fields", "hdad.log.format", "hdad.log.geometry", "hdad.log.superblock", "hdad.log.lanes", "hdad.log.layout",
           "hdad.exchange.backring", "hdad.exchange.link.wire", "hdad.control.protocol", "hdad.worker.batch"}  # fmt: skip
PURE = {"hdad.source.cursor", "hdad.source.redirect", "hdad.writer.admission", "hdad.writer.commit", "hdad.writer.assignment",
        "hdad.writer.rates", "hdad.log.recovery",
        "hdad.supervise.states", "hdad.supervise.standing", "hdad.control.commands", "hdad.worker.pace", "hdad.worker.backoff",
        "hdad.worker.builtin", "hdad.worker.paths", "hdad.fabric.facts", "hdad.fabric.health", "hdad.fabric.trends",
        "hdad.exchange.link.timeline", "hdad.exchange.link.machine",
        "hdad.exchange.link.scrutiny", "hdad.log.ownership", "hdad.writer.election", "hdad.writer.role"}  # fmt: skip
NO_IO = FORMATS | PURE
OUTSIDE_IO = {"os", "socket", "select", "time", "random", "logging", "mmap", "subprocess", "threading", "pathlib", "redis", "psutil"}
STEERING = ("hdad.supervise", "hdad.control", "hdad.cli", "hdad.daemon")
DATA_PATH = ("hdad.source", "hdad.worker", "hdad.exchange", "hdad.writer", "hdad.log", "hdad.fabric")


def module_name(path: Path) -> str:
    parts = ["hdad", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Everything imported while the program runs; what is only for the type checker does not count."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(name if name in MODULES else node.module for name in names)
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse(path.read_text()))
    return found - {"__future__"}


PATHS = sorted(ROOT.rglob("*.py"))
MODULES = {module_name(path) for path in PATHS}
IMPORTS = {module_name(path): imports_of(path) for path in PATHS}


def ours(module: str) -> set[str]:
    return {name for name in IMPORTS[module] if name.split(".")[0] == "hdad"}


def test_every_module_named_in_the_table_exists() -> None:
    assert {"hdad._core"} == (NOUNS | FORMATS | PURE) - MODULES


def test_formats_and_machines_do_no_io() -> None:
    for module in sorted(NO_IO):
        assert {name.split(".")[0] for name in IMPORTS[module]} & OUTSIDE_IO == set(), module


def test_formats_and_machines_import_only_nouns_formats_and_machines() -> None:
    for module in sorted(NO_IO):
        assert ours(module) <= NOUNS | FORMATS | PURE, module
        assert "hdad.config" not in ours(module), f"{module}: a machine takes values, not the configuration"


def test_nouns_import_only_nouns() -> None:
    for module in sorted(NOUNS - {"hdad", "hdad._core"}):
        assert ours(module) <= NOUNS, module


def test_the_data_path_never_imports_what_steers() -> None:
    for module in sorted(MODULES):
        if module.startswith(DATA_PATH):
            assert not [name for name in ours(module) if name.startswith(STEERING)], module


def test_redis_is_imported_by_its_edge_only() -> None:
    assert [module for module in sorted(MODULES) if any(name.split(".")[0] == "redis" for name in IMPORTS[module])] == [
        "hdad.source.redis_connect", "hdad.source.redis_edge"
    ]  # fmt: skip


def test_direct_io_is_opened_by_the_device_only() -> None:
    assert [path.name for path in PATHS if re.search(r"os\.O_DIRECT\b", path.read_text())] == ["device.py"]


def test_hdactl_starts_without_what_only_the_daemon_needs() -> None:
    """At 3 a.m. on a busy host each import counts; these took half of the time until a status was shown."""
    heavy = ["hdad.config", "pydantic", "redis", "prometheus_client", "http.server", "ssl", "psutil"]
    code = f"import sys, hdad.cli.hdactl; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_there_is_no_cycle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path, module])
        if module in done or module not in IMPORTS:
            return
        for name in sorted(ours(module)):
            if name not in ("hdad", module):
                visit(name, (*path, module))
        done.add(module)

    for module in sorted(MODULES):
        visit(module, ())


def test_a_module_is_read_in_one_sitting() -> None:
    assert [path.name for path in PATHS if len(path.read_text().splitlines()) > 450] == []


def test_what_the_page_of_tests_names_is_there() -> None:
    """tests/README.md says what is shown where; a test that was renamed is not shown by a name."""
    tests = ROOT.parent / "tests"
    defined = {name for path in tests.rglob("test_*.py") for name in re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE)}
    page = (tests / "README.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) > 25 and not named - defined, sorted(named - defined)
    files = re.findall(r"`(tests/[\w/]+\.py)`", page)
    assert files and not [name for name in files if not (ROOT.parent / name).is_file()]

"""Tests of this folder need the VM. Marked ``guest("NAME")`` they run inside one, those of one name in the same; else they boot their own.

Run them with ``scripts/vm test``; pytest alone, with this folder named, does it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm.forward import Guest, Host, is_guest
from tests.vm.proof import Bench
from tests.vm.summary import PROPERTY, Summary

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vm-summary", metavar="PATH", help="write the VM tests' summary there, one line of JSON")


def pytest_configure(config: pytest.Config) -> None:
    if is_guest():
        config.pluginmanager.register(Guest(config), "hdad-vm-guest")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    if not is_guest():
        folder = config._tmp_path_factory.mktemp("vm")  # type: ignore[attr-defined]  # no fixture is there yet
        config.pluginmanager.register(Host(config, folder), "hdad-vm-host")
        config.pluginmanager.register(Summary(config.getoption("--vm-summary")), "hdad-vm-summary")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.vm)


@pytest.fixture
def bench(folder: Path, record_property: Any) -> Iterator[Bench]:
    """Daemons under load, and the proof afterwards."""
    with Bench(folder, lambda fault: record_property(PROPERTY, fault)) as made:
        yield made

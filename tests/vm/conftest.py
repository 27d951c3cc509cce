"""Tests of this folder need the VM. Marked ``guest("NAME")`` they run inside one, those of one name in the same; else they boot their own.

Run them with ``scripts/vm test``; pytest alone, with this folder named, does it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vm.fcoe import Fabric
from tests.vm.forward import Guest, Host, group_of, is_guest
from tests.vm.proof import Bench
from tests.vm.summary import PROPERTY, Summary

HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--vm-pages", metavar="FOLDER", help="keep pages of hdactl there, as they were in the VM")
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
    items.sort(key=lambda item: group_of(item) or "")  # those of one VM together; sorting keeps their order


@pytest.fixture
def record_fault(record_property: Any) -> Callable[[dict[str, Any]], None]:
    """Takes a row for the table of faults."""
    return lambda fault: record_property(PROPERTY, fault)


@pytest.fixture(scope="session")
def make_bench(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bench]:
    """Makes what ``bench`` is, for longer than a test."""
    return lambda record=print: Bench(tmp_path_factory.mktemp("h"), record)


@pytest.fixture
def bench(make_bench: Callable[..., Bench], record_fault: Callable[[dict[str, Any]], None]) -> Iterator[Bench]:
    """Daemons under load, and the proof afterwards."""
    with make_bench(record_fault) as made:
        yield made


@pytest.fixture(scope="session")
def fabric() -> Fabric:
    """Both cables of Fibre Channel, once for all tests of a VM."""
    return Fabric()

"""One survey of the device and its fabric, in stages, the ones that cannot block first. Edge.

Stages: what sysfs keeps in memory; multipathd, or device-mapper where it is silent; the adapters' statistics, which some drivers ask of
the firmware and which then hang as the adapter does. ``survey`` yields what is known after each: whoever runs it in a process of its own
(``deadline``, the supervisor's path watch) has the earlier stages when a later one hangs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple, Protocol

from hdad.clock import wall_ns
from hdad.errors import PeerProtocolError
from hdad.fabric import devicemapper, multipathd
from hdad.fabric.facts import Facts, HostPort
from hdad.fabric.sysfs import read_device, read_statistics
from hdad.fabric.tree import Tree


class AsksDaemon(Protocol):
    """multipathd, or what was captured of it."""

    def ask(self, command: str, /) -> str: ...


class AsksKernel(Protocol):
    """device-mapper, or what was captured of it."""

    def ask(self, what: str, name: str, /) -> str: ...


class Sources(NamedTuple):
    """Where a survey looks."""

    tree: Tree
    daemon: AsksDaemon
    kernel: AsksKernel


def live_sources(root: str = "/sys", timeout_s: float = 1.0) -> Sources:
    """This machine. ``timeout_s`` bounds each question to multipathd and device-mapper."""
    return Sources(Tree(root), multipathd.Multipathd(timeout_s, multipathd.default_addresses()), devicemapper.DeviceMapper(timeout_s))


def survey(device: str, sources: Sources, *, with_statistics: bool = True) -> Iterator[Facts]:
    """What is known after each stage; the last one ``is_complete``. Blocks as its sources do; raises nothing for what they say."""
    facts = replace(read_device(sources.tree, device), taken_ns=wall_ns()).with_note(*sources.tree.notes)
    yield facts
    if facts.kind == "multipath":
        facts = _ask_daemon(facts, sources)
        if "multipathd" not in facts.sources:
            facts = _ask_kernel(facts, sources)
        yield facts
    if with_statistics and any(host.port_name for host in facts.hosts):
        found: list[HostPort] = []
        for host in facts.hosts:
            counters = read_statistics(sources.tree, host.name) if host.port_name else {}
            found.append(replace(host, counters=counters))
        facts = replace(facts, hosts=tuple(found), sources=(*facts.sources, "statistics"))
    yield replace(facts.with_note(*sources.tree.notes), is_complete=True)


def _ask_daemon(facts: Facts, sources: Sources) -> Facts:
    try:
        reports = multipathd.parse_maps(sources.daemon.ask(multipathd.SHOW_MAPS))
        report = next((report for report in reports if facts.name == report.device or facts.map_name == report.name), None)
        if report is None:
            return facts.with_note(f"multipathd runs and does not know the map {facts.map_name}")
    except (OSError, PeerProtocolError) as error:
        return facts.with_note(multipathd.describe(error))
    facts = replace(multipathd.merge(facts, report), sources=(*facts.sources, "multipathd"))
    try:
        facts = multipathd.merge_failures(facts, sources.daemon.ask(multipathd.SHOW_FAILURES))
        return replace(facts, polling_s=multipathd.parse_polling(sources.daemon.ask(multipathd.SHOW_CONFIG)))
    except (OSError, PeerProtocolError) as error:  # the maps were told: what is missing is a detail
        return facts.with_note(multipathd.describe(error))


def _ask_kernel(facts: Facts, sources: Sources) -> Facts:
    try:
        table = devicemapper.parse_target(sources.kernel.ask("table", facts.map_name), is_status=False)
        status = devicemapper.parse_target(sources.kernel.ask("status", facts.map_name), is_status=True)
    except (OSError, PeerProtocolError) as error:
        return facts.with_note(f"device-mapper does not tell the paths' states: {error}")
    return replace(devicemapper.merge(facts, table, status), sources=(*facts.sources, "device-mapper"))

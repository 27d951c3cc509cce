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


def survey(device: str, sources: Sources, before: Facts | None = None) -> Iterator[Facts]:
    """What is known after each stage; the last one ``is_complete``. Blocks as its sources do; raises nothing for what they say.

    ``before``: an earlier survey whose details (failure counters, polling interval, statistics) are taken over instead of asked for again.
    """
    facts = replace(read_device(sources.tree, device), taken_ns=wall_ns()).with_note(*sources.tree.notes)
    if before is not None:
        facts = _with_details(facts, before)
    yield facts
    if facts.kind == "multipath":
        facts = _ask_daemon(facts, sources, is_detailed=before is None)
        if "multipathd" not in facts.sources:
            facts = _ask_kernel(facts, sources)
        yield facts
    if before is None and any(host.port_name for host in facts.hosts):
        found: list[HostPort] = []
        for host in facts.hosts:
            counters = read_statistics(sources.tree, host.name) if host.port_name else {}
            found.append(replace(host, counters=counters))
        facts = replace(facts, hosts=tuple(found), sources=(*facts.sources, "statistics"))
    yield replace(facts.with_note(*sources.tree.notes), is_complete=True)


def _with_details(facts: Facts, before: Facts) -> Facts:
    counters = {host.name: host.counters for host in before.hosts}
    return replace(
        facts.with_paths({path.name: {"failures": path.failures} for path in before.paths}),
        hosts=tuple(replace(host, counters=counters.get(host.name, {})) for host in facts.hosts),
        polling_s=before.polling_s,
    )


def _ask_daemon(facts: Facts, sources: Sources, is_detailed: bool) -> Facts:
    try:
        report = multipathd.parse_map(sources.daemon.ask(multipathd.SHOW_MAP.format(facts.map_name)))
    except (OSError, PeerProtocolError) as error:
        return facts.with_note(multipathd.describe(error))
    facts = replace(multipathd.merge(facts, report), sources=(*facts.sources, "multipathd"))
    if not is_detailed:
        return facts
    try:
        facts = multipathd.merge_failures(facts, sources.daemon.ask(multipathd.SHOW_FAILURES))
        return replace(facts, polling_s=multipathd.parse_polling(sources.daemon.ask(multipathd.SHOW_CONFIG)))
    except (OSError, PeerProtocolError) as error:  # the map was told: what is missing is a detail
        return facts.with_note(multipathd.describe(error))


def _ask_kernel(facts: Facts, sources: Sources) -> Facts:
    try:
        table = devicemapper.parse_target(sources.kernel.ask("table", facts.map_name), is_status=False)
        status = devicemapper.parse_target(sources.kernel.ask("status", facts.map_name), is_status=True)
    except (OSError, PeerProtocolError) as error:
        return facts.with_note(f"device-mapper does not tell the paths' states: {error}")
    return replace(devicemapper.merge(facts, table, status), sources=(*facts.sources, "device-mapper"))

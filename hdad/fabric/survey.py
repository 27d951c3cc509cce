"""One survey of the device and its fabric, in stages, the ones that cannot block first. Edge.

Stages: what sysfs keeps in memory; multipathd, or device-mapper where it is silent; the adapters' statistics, which some drivers ask of
the firmware and which then hang as the adapter does. ``survey`` yields what is known after each: whoever runs it in a process of its own
(``deadline``, the supervisor's path watch) has the earlier stages when a later one hangs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple, Protocol

from hdad.clock import wall_ns
from hdad.errors import DeviceError, PeerProtocolError
from hdad.fabric import devicemapper, multipathd
from hdad.fabric.facts import Facts, HostPort, Reservation
from hdad.fabric.sysfs import read_device, read_statistics
from hdad.fabric.tree import Tree


class AsksDaemon(Protocol):
    """multipathd, or what was captured of it."""

    def ask(self, command: str, /) -> str: ...


class AsksKernel(Protocol):
    """device-mapper, or what was captured of it."""

    def ask(self, what: str, name: str, /) -> str: ...


class Sources(NamedTuple):
    """Where a survey looks. ``keys``: asks the array for reservation keys; its None: they are of no concern. It may raise DeviceError."""

    tree: Tree
    daemon: AsksDaemon
    kernel: AsksKernel
    keys: Callable[[], Reservation | None] = lambda: None


def live_sources(root: str = "/sys", timeout_s: float = 1.0) -> Sources:
    """This machine. ``timeout_s`` bounds each question to multipathd and device-mapper."""
    return Sources(Tree(root), multipathd.Multipathd(timeout_s, multipathd.default_addresses()), devicemapper.DeviceMapper(timeout_s))


def survey(device: str, sources: Sources, before: Facts | None = None, *, is_detailed: bool = True) -> Iterator[Facts]:
    """What is known after each stage; the last one ``is_complete``. Blocks as its sources do; raises nothing for what they say.

    ``before``: an earlier survey. What it had of multipathd stands while multipathd does not answer, and its details (failure counters,
    polling interval, statistics) are taken over unless ``is_detailed``.
    """
    facts = replace(read_device(sources.tree, device), taken_ns=wall_ns()).with_note(*sources.tree.notes)
    if before is not None and before.kind == facts.kind:
        facts = _taken_over(facts, before)
    if facts.kind == "multipath":
        yield facts
        facts = _ask_daemon(facts, sources)
        if "multipathd" not in facts.sources:
            facts = _ask_kernel(facts, sources)
    facts = replace(facts, has_states=True)
    yield facts if is_detailed else replace(facts, is_complete=True)
    if is_detailed:
        yield replace(_with_details(facts, sources).with_note(*sources.tree.notes), is_complete=True)


def _taken_over(facts: Facts, before: Facts) -> Facts:
    counters = {host.name: host.counters for host in before.hosts}
    kept = {
        path.name: {"failures": path.failures, "dm_state": path.dm_state, "checker": path.checker, "is_marginal": path.is_marginal}
        for path in before.paths
    }
    return replace(
        facts.with_paths(kept),
        hosts=tuple(replace(host, counters=counters.get(host.name, {})) for host in facts.hosts),
        polling_s=before.polling_s,
        reservation=before.reservation,
        groups=before.groups,
        queueing=facts.queueing or before.queueing,
        policy=facts.policy or before.policy,
        features=before.features,
        hardware_handler=before.hardware_handler,
    )


def _ask_daemon(facts: Facts, sources: Sources) -> Facts:
    try:
        report = multipathd.parse_map(sources.daemon.ask(multipathd.SHOW_MAP.format(facts.map_name)))
    except (OSError, PeerProtocolError) as error:
        return facts.with_note(multipathd.describe(error))
    return replace(multipathd.merge(facts, report), sources=(*facts.sources, "multipathd"))


def _with_details(facts: Facts, sources: Sources) -> Facts:
    if "multipathd" in facts.sources:
        try:
            facts = multipathd.merge_failures(facts, sources.daemon.ask(multipathd.SHOW_FAILURES))
            facts = replace(facts, polling_s=multipathd.parse_polling(sources.daemon.ask(multipathd.SHOW_CONFIG)))
        except (OSError, PeerProtocolError) as error:
            facts = facts.with_note(multipathd.describe(error))
    if any(host.port_name for host in facts.hosts):
        found: list[HostPort] = []
        for host in facts.hosts:
            counters = read_statistics(sources.tree, host.name) if host.port_name else {}
            found.append(replace(host, counters=counters))
        facts = replace(facts, hosts=tuple(found), sources=(*facts.sources, "statistics"))
    try:
        return replace(facts, reservation=sources.keys())
    except DeviceError as error:
        return facts.with_note(f"reservation keys cannot be read: {error}")


def _ask_kernel(facts: Facts, sources: Sources) -> Facts:
    try:
        table = devicemapper.parse_target(sources.kernel.ask("table", facts.map_name), is_status=False)
        status = devicemapper.parse_target(sources.kernel.ask("status", facts.map_name), is_status=True)
    except (OSError, PeerProtocolError) as error:
        return facts.with_note(f"device-mapper does not tell the paths' states: {error}")
    return replace(devicemapper.merge(facts, table, status), sources=(*facts.sources, "device-mapper"))

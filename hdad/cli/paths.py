"""``hdactl paths``: the device, its paths and the ports they go through, as a page that one can act on. Plain values in, a page out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from rich.console import Group, RenderableType
from rich.text import Text

from hdad.cli.output import Filled, Fitting, count, seconds, size
from hdad.fabric.capture import recorded_sources
from hdad.fabric.deadline import survey_within
from hdad.fabric.facts import DEV_LOSS_INFINITY, Facts, HostPort, Path, RemotePort
from hdad.fabric.health import ERROR_COUNTERS, Expectations, Verdict, condition, judge, summary
from hdad.fabric.survey import live_sources
from hdad.fabric.trends import History, Trends

STYLES: Final = {"active": "green", "standby": "green", "marginal": "yellow", "unused": "yellow", "blocked": "yellow"}
KINDS: Final = {
    "multipath": "multipath map", "nvme": "NVMe native multipath", "single": "single device", "file": "file", "missing": "not there"
}  # fmt: skip


class Look(NamedTuple):
    """One survey, judged."""

    facts: Facts
    verdicts: list[Verdict]
    trends: Trends


def looks(
    device: str, expected: Expectations, folder: str, timeout_s: float, interval_s: float, memory: Callable[[], dict[str, Any] | None]
) -> Iterator[Look]:
    """A look now and one every ``interval_s``, each within ``timeout_s``. ``folder``: a captured one in place of this machine, or "".

    ``memory``: what a daemon that watches these paths remembers of them (``paths`` of its status), or None.
    """
    history = History(condition)
    while True:
        facts = survey_within(device, recorded_sources(folder) if folder else live_sources(timeout_s=timeout_s / 2), timeout_s)
        trends = remembered(facts, memory()) or history.feed(facts)
        yield Look(facts, judge(facts, expected, trends), trends)
        time.sleep(interval_s)


def remembered(facts: Facts, paths: Mapping[str, Any] | None) -> Trends | None:
    """Trends as a daemon has them, of paths that are now as it saw them; None if it watches something else."""
    if not paths or paths.get("map") != (facts.map_name or facts.name):
        return None
    same = {path.name for path in facts.paths if paths["conditions"].get(path.name) == condition(path)}
    since = {name: began_ns for name, began_ns in paths["since_ns"].items() if name in same}
    return Trends(since, paths["risen"], paths["risen_span_s"])


def page(look: Look) -> RenderableType:
    """The whole page: the map, its paths, the ports, what is wrong."""
    facts, verdicts, trends = look
    parts: list[RenderableType] = [_head(facts), Text("")]
    if facts.paths and (summary(facts) or facts.paths[0].address):
        parts += [paths_table(facts, trends), Text("")]
    if any(host.port_name for host in facts.hosts):
        parts += [ports_table(facts, trends), Text("")]
    parts += [Text(f"note: {note}", style="dim") for note in facts.notes]
    parts += findings(verdicts) or [Text("nothing is wrong" if facts.kind != "missing" else "", style="green")]
    return Group(*parts)


def _head(facts: Facts) -> RenderableType:
    names = [facts.name, KINDS[facts.kind], facts.uuid, f"{facts.paths[0].vendor} {facts.paths[0].model}".strip() if facts.paths else ""]
    names.append(size(facts.size) if facts.size is not None and facts.kind != "file" else "")
    head = Text.assemble((facts.device, "bold"), "  ", "  ".join(filter(None, names)))
    short = summary(facts)
    settings = [
        ("state", "suspended" if facts.is_suspended else "active" if facts.kind == "multipath" else ""),
        ("without paths", {"on": "writes wait for ever", "off": "writes fail"}.get(facts.queueing, _waiting(facts))),
        ("policy", facts.policy),
        ("handler", facts.hardware_handler),
        ("cache", f"{facts.write_cache}{', FUA' if facts.has_fua else ''}"),
        ("blocks", f"{facts.logical_block}/{facts.physical_block}" if facts.logical_block else ""),
        ("max", f"{facts.max_sectors_kb} KiB" if facts.max_sectors_kb else ""),
    ]
    plain = f"{facts.paths[0].transport}, one way to it" if facts.kind == "single" and facts.paths and facts.paths[0].transport else ""
    words = [Text(short or plain or "no paths to speak of", "bold" if short else "")]
    words += [Text(f"{name}: {value}") for name, value in settings if value]
    return Group(head, Filled(words))


def _waiting(facts: Facts) -> str:
    checks = facts.queueing.removesuffix(" checks")
    if checks.isdigit() and facts.polling_s:
        return f"writes wait {checks} checks, {int(checks) * facts.polling_s} s"
    return f"writes wait {facts.queueing.replace(' left', ' more')}" if facts.queueing else ""


def paths_table(facts: Facts, trends: Trends) -> RenderableType:
    """A row per path, by group."""
    order = {name: group.number for group in facts.groups for name in group.paths}
    rows = []
    for path in sorted(facts.paths, key=lambda path: (order.get(path.name, 99), path.name)):
        group, word, age_s = facts.group_of(path.name), condition(path), trends.age_s(path.name, facts.taken_ns)
        rows.append((
            path.name, f"{group.number} {group.state}" if group is not None else "-", path.address,
            Text(word, style=STYLES.get(word, "red")), f"for {seconds(age_s)}" if age_s is not None else "",
            path.access or "-", _device_words(path), " ".join(filter(None, (path.host, path.port))) or "-",
            " ".join(filter(None, (path.remote, path.target))) or "-",
            path.remote_state or "-", _errors(path),
        ))  # fmt: skip
    headings = (
        "PATH", "GROUP", "ADDRESS", "CONDITION", "SINCE", "ALUA/ANA", "DM, CHECKER, KERNEL", "HBA PORT", "REMOTE PORT", "STATE", "ERRORS"
    )  # fmt: skip
    return Fitting(headings, rows)


def _device_words(path: Path) -> str:
    return ", ".join(word or "-" for word in (path.dm_state, path.checker, path.device_state))


def _errors(path: Path) -> str:
    found = [f"{name.removesuffix('_cnt')} {value}" for name, value in path.errors.items() if value]
    if path.failures:
        found.insert(0, f"failed {path.failures}×")
    if path.key is not None:
        found.append(f"key {path.key}" if path.key else "no key")
    return ", ".join(found) or "-"


def ports_table(facts: Facts, trends: Trends) -> RenderableType:
    """A row per Fibre Channel port of this host, and what its target ports allow."""
    rows = []
    for host in facts.hosts:
        timeouts = {f"{_loss(port)}/{_told(port.fast_io_fail_s, 'off')}" for port in facts.remote_ports if port.host == host.name}
        rows.append((
            host.name, host.driver or "-", host.port_name or "-", host.pci or "-", _told(host.numa_node, "-"),
            Text(host.port_state or "-", style="green" if host.port_state == "Online" else "red"), host.speed or "-",
            sum(path.host == host.name for path in facts.paths), ", ".join(sorted(timeouts)) or "-", _port_errors(host, trends),
        ))  # fmt: skip
    headings = ("HBA", "DRIVER", "WWPN", "PCI", "NODE", "STATE", "SPEED", "PATHS", "DEV_LOSS/FAST_FAIL", "ERRORS (RISEN)")
    return Fitting(headings, rows, (4, 7))


def _told(value: int | None, otherwise: str) -> str:
    return str(value) if value is not None else otherwise


def _loss(port: RemotePort) -> str:
    return "infinity" if (port.dev_loss_s or 0) >= DEV_LOSS_INFINITY else _told(port.dev_loss_s, "-")


def _port_errors(host: HostPort, trends: Trends) -> str:
    if not host.counters:
        return "not read"
    risen = trends.risen.get(host.name, {})
    found = [
        f"{name.removesuffix('_count')} {count(host.counters[name])}" + (f" (+{count(risen[name])})" if risen.get(name) else "")
        for name in ERROR_COUNTERS
        if host.counters.get(name)
    ]
    return ", ".join(found) or "none"


def findings(verdicts: list[Verdict]) -> list[RenderableType]:
    """What is wrong, each with its remedy."""
    parts: list[RenderableType] = []
    for verdict in verdicts:
        mark, style = ("BAD ", "red") if verdict.level == "error" else ("warn", "yellow")
        parts.append(Text.assemble((mark, style), f" {verdict.where}: {verdict.text}\n     -> {verdict.remedy}"))
    return parts


def as_json(look: Look) -> dict[str, Any]:
    """The same for a tool: facts, each path's condition, verdicts."""
    facts, verdicts, trends = look
    return {
        "summary": summary(facts),
        "facts": facts,
        "conditions": {path.name: condition(path) for path in facts.paths},
        "since_ns": dict(trends.since),
        "risen": trends.risen,
        "risen_span_s": round(trends.span_s, 1),
        "verdicts": [verdict._asdict() for verdict in verdicts],
    }

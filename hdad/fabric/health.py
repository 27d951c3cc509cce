"""What is wrong with the device's paths, each with where and the remedy: verdicts from facts. Pure; every rule is a function of its own.

Rules judge what the facts tell; what nobody told is never a verdict but a note of the survey. Levels: ``error``: data is not written now,
or one more fault stops it; ``warning``: less redundancy, speed or foresight than the hardware gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from hdad.fabric.facts import Facts, HostPort, Path
from hdad.fabric.trends import Trends

FABRICS: Final = frozenset(("fc", "iscsi", "nvme-fc", "nvme-tcp", "nvme-rdma"))
GOOD_DEVICE: Final = frozenset(("", "running", "live"))
GOOD_REMOTE: Final = frozenset(("", "Online", "Marginal", "LOGGED_IN"))
OPTIMIZED: Final = frozenset(("active/optimized", "optimized"))
SERVING: Final = OPTIMIZED | {"active/non-optimized", "non-optimized", ""}
PORT_ONLINE: Final = frozenset(("", "Online"))
FAILOVER_S_MAX: Final = 10  # a path's loss may hold up writes that long before it is called slow
# Counters of the transport class that only rise when something is wrong (scsi_transport_fc.h, fc_host_statistics).
ERROR_COUNTERS: Final = (
    "link_failure_count", "loss_of_sync_count", "loss_of_signal_count", "prim_seq_protocol_err_count", "invalid_tx_word_count",
    "invalid_crc_count", "error_frames", "dumped_frames", "nos_count", "lip_count", "fcp_packet_aborts", "fc_seq_not_found",
    "fpin_li_failure_unknown", "fpin_li_link_failure_count", "fpin_li_loss_of_signals_count", "fpin_li_invalid_tx_word_count",
    "fpin_li_invalid_crc_count", "fpin_cn_credit_stall", "fpin_cn_lost_credit",
)  # fmt: skip


class Verdict(NamedTuple):
    """``code`` names the rule, for tools; ``where``: the path, port or map."""

    level: str  # error, warning
    code: str
    where: str
    text: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Expectations:
    """What hdad needs of the device. None and empty: nothing is expected."""

    takeover_s: float | None = None  # a standby takes the log over after that long without a sign of life
    io_s: float | None = None  # the longest that a write may take on a healthy device, a path's failover included
    needs_keys: bool = False  # the log is fenced by reservation
    block_size: int | None = None  # of the log
    writer_nodes: frozenset[int] = field(default_factory=frozenset)  # NUMA nodes the writer may run on


CONDITIONS: Final = ("active", "standby", "marginal", "failed", "blocked", "lost", "offline", "unused")


def condition(path: Path) -> str:
    """A path in one word. Top down, the first that fits:

    | fact                                                        | word        | carries I/O |
    |-------------------------------------------------------------|-------------|-------------|
    | the map does not use it                                     | unused      | no          |
    | SCSI device offline; NVMe controller dead or deleting       | offline     | no          |
    | SCSI transport-offline, session failed, NVMe connecting     | lost        | no          |
    | remote port not present                                     | lost        | no          |
    | SCSI device or remote port blocked, NVMe resetting          | blocked     | not now     |
    | device-mapper failed it, or multipathd's checker says so    | failed      | no          |
    | ALUA or ANA: standby, unavailable, inaccessible, transition | standby     | no          |
    | multipathd or the transport counts it as marginal           | marginal    | if it must  |
    | none of these                                               | active      | yes         |
    """
    if not path.in_map:
        return "unused"
    if path.device_state in ("offline", "dead", "deleting", "deleted", "deleting (no IO)", "cancel"):
        return "offline"
    if path.device_state in ("transport-offline", "connecting") or path.remote_state not in (*GOOD_REMOTE, "Blocked"):
        return "lost"
    if path.device_state not in GOOD_DEVICE or path.remote_state == "Blocked":
        return "blocked"
    if path.dm_state == "failed" or path.checker in ("faulty", "i/o timeout", "shaky", "disconnected"):
        return "failed"
    if path.access not in SERVING or path.checker == "ghost":
        return "standby"
    return "marginal" if path.is_marginal or path.remote_state == "Marginal" else "active"


def is_active(path: Path) -> bool:
    """True: it carries I/O, or would if its group were chosen."""
    return condition(path) in ("active", "marginal")


def summary(facts: Facts) -> str:
    """One phrase for status and alarms: "paths 3/4 active (sdd failed)"; "" for a device without paths to speak of."""
    if facts.kind not in ("multipath", "nvme") and not any(path.transport in ("fc", "iscsi", "sas", "scsi") for path in facts.paths):
        return ""
    used = [path for path in facts.paths if path.in_map]
    words = [condition(path) for path in facts.paths]
    bad = [f"{path.name} {word}" for path, word in zip(facts.paths, words, strict=True) if word not in ("active", "standby")]
    text = f"paths {sum(map(is_active, used))}/{len(used)} active"
    if "standby" in words:
        text += f", {words.count('standby')} standby"
    if bad:
        text += f" ({', '.join(bad[:4])}{f' and {len(bad) - 4} more' if len(bad) > 4 else ''})"
    if facts.is_suspended:
        text += ", map suspended"
    if used and not any(map(is_active, used)):
        text += f", queueing {facts.queueing}" if facts.queueing else ""
    return text


def place(facts: Facts, path: Path) -> str:
    """Where a path runs, for a person who stands before a switch: "sdc (host4 0x21… → rport-4:0-0 0x50…)"."""
    here = " ".join(filter(None, (path.host or path.address, path.port)))
    there = " ".join(filter(None, (path.remote, path.target)))
    return f"{path.name} ({here} → {there})" if there else f"{path.name} ({here})" if here else path.name


def judge(facts: Facts, expected: Expectations, trends: Trends) -> list[Verdict]:
    """All that is wrong, errors first. Empty: nothing is, as far as the facts tell."""
    found = [verdict for rule in RULES for verdict in rule(facts, expected, trends)]
    return sorted(found, key=lambda verdict: verdict.level != "error")


# -- the map -----------------------------------------------------------------------------------------------------------------------------


def _map_state(facts: Facts, _expected: Expectations, _trends: Trends) -> Iterator[Verdict]:
    if facts.kind == "missing":
        yield Verdict("error", "no-device", facts.device, "there is no such device",
                      "is the LUN zoned and mapped to this host, is multipathd running? rescan-scsi-bus.sh, multipath -r")  # fmt: skip
    if facts.is_suspended:
        yield Verdict("error", "suspended", facts.map_name, "the map is suspended: every write waits",
                      f"find out who reloads it; if nobody does: dmsetup resume {facts.map_name}")  # fmt: skip
    if facts.kind == "multipath" and facts.has_states and "multipathd" not in facts.sources:
        yield Verdict("warning", "no-multipathd", facts.map_name,
                      "multipathd does not answer: nobody brings a failed path back, adds a new one or ends the queueing",
                      "systemctl enable --now multipathd; if it runs: journalctl -u multipathd")  # fmt: skip
    if facts.kind == "multipath" and not facts.paths:
        yield Verdict("error", "no-paths", facts.map_name, "the map has no path at all",
                      "rescan the fabric: rescan-scsi-bus.sh, multipath -r")  # fmt: skip


def _redundancy(facts: Facts, _expected: Expectations, _trends: Trends) -> Iterator[Verdict]:
    used = [path for path in facts.paths if path.in_map]
    if facts.kind == "single" and used and used[0].transport in FABRICS:
        yield Verdict("error", "single-path", used[0].name, f"{facts.device} is one {used[0].transport} path, not a map of several",
                      "name the map (/dev/mapper/…); if there is none: systemctl enable --now multipathd")  # fmt: skip
    if facts.kind not in ("multipath", "nvme") or not used:
        return
    active = [path for path in used if is_active(path)]
    usable = active + [path for path in used if condition(path) == "standby"]
    if not active:
        known = {"": "", "on": "; writes wait, without limit", "off": "; writes fail"}
        held = known.get(facts.queueing, f"; writes wait ({facts.queueing})")
        yield Verdict("error", "all-paths-down", facts.map_name, f"none of {len(used)} paths is active{held}",
                      "switch, cables, zoning, target: see the ports below; the daemon goes on when one path is back")  # fmt: skip
    elif len(used) == 1:
        yield Verdict("error", "single-path", facts.map_name, f"the map has one path, {place(facts, used[0])}: its loss stops the log",
                      "zone the second port, rescan, and see that multipath.conf does not blacklist it")  # fmt: skip
    elif len(usable) == 1:
        yield Verdict("error", "last-path", facts.map_name, f"one of {len(used)} paths is left, {place(facts, active[0])}",
                      "bring a second one back before anything else")  # fmt: skip
    else:
        yield from _shared_parts(facts, usable)


def _shared_parts(facts: Facts, usable: list[Path]) -> Iterator[Verdict]:
    ours, theirs = {path.host or path.port for path in usable}, {path.target for path in usable}
    for what, ends in (("port of this host", ours), ("target port", theirs)):
        if len(ends) == 1 and "" not in ends:
            yield Verdict("warning", "single-port", facts.map_name, f"all {len(usable)} usable paths go through one {what}, {ends.pop()}",
                          "spread paths over two adapters, two fabrics and two target ports")  # fmt: skip


def _paths(facts: Facts, _expected: Expectations, trends: Trends) -> Iterator[Verdict]:
    for path in facts.paths:
        word = condition(path)
        if word in ("active", "standby"):
            continue
        level, text, remedy = PATH_TEXTS[word]
        since = trends.describe_age(path.name, facts.taken_ns)
        what = "session" if path.transport == "iscsi" else "remote port"
        detail = f"; {what} {path.remote_state}" if path.remote_state not in GOOD_REMOTE else ""
        yield Verdict(level, f"path-{word}", place(facts, path), f"{text}{since}{detail}", remedy.format(path=path.name, host=path.host))


PATH_TEXTS: Final = {
    "unused": ("warning", "leads to the same LUN, and the map does not use it",
               "multipathd add path {path}; if it stays out: multipath -v3, blacklist and find_multipaths in multipath.conf"),
    "offline": ("error", "the kernel has taken the device offline",
                "dmesg tells why; then: echo running > /sys/block/{path}/device/state (NVMe: nvme connect)"),
    "lost": ("error", "the connection is lost", "cable, switch port, zoning, target; it comes back by itself"),
    "blocked": ("warning", "blocked: its transport waits for the remote port", "wait for fast_io_fail_tmo; then see the remote port"),
    "failed": ("error", "failed", "multipathd reinstates it when its checker succeeds; by hand: multipathd reinstate path {path}"),
    "marginal": ("warning", "marginal: it fails again and again, and is used only if no other is left",
                 "look at the error counters of {host}: optics, cable, switch port; then: multipathd unset marginal {path}"),
}  # fmt: skip


def _access(facts: Facts, _expected: Expectations, _trends: Trends) -> Iterator[Verdict]:
    used = [path for path in facts.paths if is_active(path) and path.access]
    if used and not any(path.access in OPTIMIZED for path in used):
        yield Verdict("warning", "non-optimized", facts.map_name or facts.name,
                      f"all active paths are {used[0].access}: I/O goes through the controller that does not own the LUN",
                      "move the LUN back to its owner on the array, or find out why the optimized ports are gone")  # fmt: skip
    for group in facts.groups:
        states = {path.access for name in group.paths if (path := facts.path(name)) is not None and path.access}
        if len(states & OPTIMIZED) == 1 and states - OPTIMIZED:
            yield Verdict("warning", "mixed-group", f"{facts.map_name} group {group.number}",
                          f"optimized and other paths share a group: {', '.join(sorted(states))}",
                          "path_grouping_policy group_by_prio and prio alua in multipath.conf")  # fmt: skip


# -- what a lost path costs --------------------------------------------------------------------------------------------------------------


def queue_s(facts: Facts) -> int | None:
    """How long writes wait when no path is left, seconds. None: without limit, or not told."""
    match = re.fullmatch(r"(\d+) (checks|s|s left)", facts.queueing)
    if facts.queueing == "off" or match is None:
        return 0 if facts.queueing == "off" else None
    if match[2] == "checks":
        return int(match[1]) * facts.polling_s if facts.polling_s else None
    return int(match[1])


def _queueing(facts: Facts, expected: Expectations, _trends: Trends) -> Iterator[Verdict]:
    if facts.queueing == "on":
        yield Verdict("warning", "queue-forever", facts.map_name,
                      "without a path, writes wait without limit: the writer can then be neither stopped nor killed",
                      "no_path_retry 12 in multipath.conf, and no queue_if_no_path in features (NVMe: --ctrl-loss-tmo 60)")  # fmt: skip
    seconds = queue_s(facts)
    if seconds and expected.takeover_s is not None and seconds > expected.takeover_s:
        yield Verdict("warning", "queue-too-long", facts.map_name,
                      f"without a path, writes wait {seconds} s (no_path_retry × polling_interval), longer than the takeover timeout, "
                      f"{expected.takeover_s:g} s: this writer still waits when its successor has taken over",
                      "a smaller no_path_retry, or a longer takeover timeout")  # fmt: skip
    losses = {port.name: port.dev_loss_s for port in facts.remote_ports if port.dev_loss_s is not None}
    short = {name: loss_s for name, loss_s in losses.items() if seconds and loss_s < seconds}
    if short:
        yield Verdict("warning", "dev-loss-short", ", ".join(short),
                      f"dev_loss_tmo is {min(short.values())} s, and writes wait {seconds} s for a path: "
                      "its device is removed before, and comes back as another one",
                      "dev_loss_tmo infinity in multipath.conf")  # fmt: skip


def _timeouts(facts: Facts, expected: Expectations, _trends: Trends) -> Iterator[Verdict]:
    """How long a write may hang on a path after its link broke, before another path is tried, against what the pair of hosts allows."""
    if facts.kind not in ("multipath", "nvme"):
        return
    limit_s = expected.io_s if expected.io_s is not None else FAILOVER_S_MAX
    slow: dict[tuple[str, int], list[str]] = {}
    for path in facts.paths:
        port = facts.remote_port(path.remote)
        if not path.in_map:
            continue
        if port is not None and port.fast_io_fail_s is None and port.dev_loss_s is not None:
            slow.setdefault(("no-fast-fail", port.dev_loss_s), []).append(path.name)
        seconds = port.fast_io_fail_s if port is not None else path.recovery_s
        if seconds is not None:
            slow.setdefault(("slow-failover", seconds), []).append(path.name)
    for (code, seconds), names in sorted(slow.items()):
        is_lethal = expected.takeover_s is not None and seconds >= expected.takeover_s
        if is_lethal or seconds > limit_s or code == "no-fast-fail":
            off = " (dev_loss_tmo, since fast_io_fail_tmo is off)" if code == "no-fast-fail" else ""
            text = f"a broken link holds writes for up to {seconds} s{off}"
            if is_lethal:
                text += f": the standby takes over after {expected.takeover_s:g} s, though one path is left"
            elif expected.io_s is not None and seconds > expected.io_s:
                text += f", longer than log.io_timeout_ms allows, {expected.io_s:g} s"
            wanted = max(1, min(5, int(limit_s) - 1))
            yield Verdict("error" if is_lethal else "warning", code, ", ".join(names), text,
                          f"{wanted} for fast_io_fail_tmo (FC), replacement_timeout (iSCSI) or --keep-alive-tmo (NVMe)")  # fmt: skip


# -- what the device is ------------------------------------------------------------------------------------------------------------------


def _cache(facts: Facts, _expected: Expectations, _trends: Trends) -> Iterator[Verdict]:
    if facts.kind != "file" and facts.write_cache == "write back" and facts.has_fua is False:
        yield Verdict("warning", "cache-without-fua", facts.name,
                      "the write cache is volatile and cannot write through: every durable write is followed by a whole cache flush",
                      "turn the cache off on the array or disk (sdparm --clear WCE), if it has no battery")  # fmt: skip
    caches = {path.write_cache for path in facts.paths if path.write_cache}
    if len(caches) > 1:
        yield Verdict("error", "cache-mismatch", facts.map_name, "paths disagree whether the cache is volatile",
                      "rescan the paths (echo 1 > /sys/block/sdX/device/rescan), then: multipathd reload map")  # fmt: skip


def _geometry(facts: Facts, expected: Expectations, _trends: Trends) -> Iterator[Verdict]:
    for label, name in (("size", "size"), ("logical block size", "logical_block")):
        values = {getattr(path, name) for path in facts.paths if getattr(path, name) is not None}
        if len(values) > 1:
            told = ", ".join(f"{path.name} {getattr(path, name)}" for path in facts.paths)
            yield Verdict("error", f"{name.replace('_', '-')}-mismatch", facts.map_name, f"paths disagree on the {label}: {told}",
                          "is it one LUN? After a resize: rescan every path, then multipathd resize map")  # fmt: skip
    limits = {path.max_sectors_kb for path in facts.paths if path.in_map and path.max_sectors_kb}
    if len(limits) > 1 or (facts.max_sectors_kb and limits and facts.max_sectors_kb > min(limits)):
        yield Verdict("warning", "max-sectors-mismatch", facts.map_name,
                      f"max_sectors_kb differs: map {facts.max_sectors_kb}, paths {', '.join(map(str, sorted(limits)))}; "
                      "a request too large for a path fails it",
                      "max_sectors_kb in multipath.conf, the same for all, and reload the map")  # fmt: skip
    if expected.block_size is not None and facts.logical_block is not None and facts.logical_block > expected.block_size:
        yield Verdict("error", "log-block-size", facts.name,
                      f"the log's blocks have {expected.block_size} bytes, the device's {facts.logical_block}",
                      "the LUN is not the one that was formatted, or was converted: restore the old block size")  # fmt: skip


def _keys(facts: Facts, expected: Expectations, _trends: Trends) -> Iterator[Verdict]:
    if not expected.needs_keys:
        return
    used, held = [path for path in facts.paths if path.in_map], facts.reservation
    active_count, key_count = sum(map(is_active, used)), held.keys.count(held.ours) if held is not None and held.ours else None
    if held is not None and key_count is not None and key_count < active_count:
        yield Verdict("error", "missing-key", facts.map_name or facts.name,
                      f"the key {held.ours} is registered {key_count} times, and {active_count} paths are active: "
                      "writes on the others conflict",
                      "the writer registers it when it sees the path; if it stays: systemctl restart hdad")  # fmt: skip
    for path in used:
        if path.key == "":
            yield Verdict("error", "missing-key", place(facts, path),
                          "no reservation key is registered through this path: writes on it conflict",
                          "the writer registers it when it sees the path; if it stays: systemctl restart hdad")  # fmt: skip


# -- adapters ----------------------------------------------------------------------------------------------------------------------------


def _ports(facts: Facts, expected: Expectations, _trends: Trends) -> Iterator[Verdict]:
    for host in facts.hosts:
        where = " ".join(filter(None, (host.name, host.port_name)))
        is_used = any(path.host == host.name for path in facts.paths)
        if host.port_state not in PORT_ONLINE:
            yield Verdict("error" if is_used else "warning", "link-down", where, f"the port is {host.port_state}",
                          "optics, cable, switch port; an unused port: ignore it, or disable it on the switch")  # fmt: skip
        best, now = max(_gigabits(host.supported_speeds), default=0), max(_gigabits(host.speed), default=0)
        if is_used and host.port_state in PORT_ONLINE and 0 < now < best:
            yield Verdict("warning", "slow-link", where, f"runs at {host.speed}, and can do {best:g} Gbit",
                          "optics and the switch port's speed; fixed on purpose: no matter")  # fmt: skip
        if is_used and host.numa_node is not None and expected.writer_nodes and host.numa_node not in expected.writer_nodes:
            nodes = ", ".join(map(str, sorted(expected.writer_nodes)))
            yield Verdict("warning", "far-adapter", where, f"the adapter is on NUMA node {host.numa_node}, the writer on {nodes}",
                          f"log.cpu = a CPU of node {host.numa_node} (lscpu), or move the adapter")  # fmt: skip


def _gigabits(text: str) -> list[float]:
    """``4 Gbit, 8 Gbit, 16 Gbit`` → [4, 8, 16]; words that are no speed are left out."""
    return [float(number) for number in re.findall(r"(\d+(?:\.\d+)?) ?Gbit", text)]


def _counters(facts: Facts, _expected: Expectations, trends: Trends) -> Iterator[Verdict]:
    for host in facts.hosts:
        rising = {name: trends.risen[host.name][name] for name in ERROR_COUNTERS if trends.risen.get(host.name, {}).get(name)}
        if rising:
            told = ", ".join(f"{name} +{count}" for name, count in rising.items())
            yield Verdict("warning", "errors-rising", _name_of(host), f"within {trends.span_s:.0f} s: {told}",
                          "optics, cable, switch port: clean, reseat, replace; compare with the switch's own counters")  # fmt: skip


def _name_of(host: HostPort) -> str:
    return " ".join(filter(None, (host.name, host.port_name)))


Rule = Callable[[Facts, Expectations, Trends], Iterator[Verdict]]
RULES: Final[tuple[Rule, ...]] = (
    _map_state, _redundancy, _paths, _queueing, _timeouts, _keys, _cache, _geometry, _access, _ports, _counters
)  # fmt: skip

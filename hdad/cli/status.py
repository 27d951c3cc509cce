"""The status page for a person: what runs, how fast, how far behind, what is wrong. Plain data in, a page out."""

from __future__ import annotations

from typing import Any, Final

from rich.console import Group, RenderableType
from rich.text import Text

from hdad.cli.output import count, micros, seconds, size, table, when

LANES_SHOWN: Final = 20
PATHS_OLD_MS: Final = 5000
PEERS_SHOWN: Final = 8
GOOD: Final = frozenset(("ready", "reading", "idle", "running", "standby"))


def state_text(text: str) -> Text:
    """A state, coloured by whether it is good."""
    style = "green" if text in GOOD else "yellow" if text in ("starting", "recovering", "draining", "waiting", "paused") else "red"
    return Text(text.replace("_", " "), style=style)


def page(status: dict[str, Any], lanes_shown: int = LANES_SHOWN) -> RenderableType:
    """The whole page."""
    daemon, writer, totals, rates, latency = (status[name] for name in ("daemon", "writer", "totals", "rates", "latency"))
    head = Text.assemble(
        (daemon["name"], "bold"), f"  {daemon['version']}  pid {daemon['pid']}  up {seconds(daemon['uptime_s'])}  ",
        state_text(daemon["state"]),
    )
    paths = status.get("paths")  # an older daemon does not tell
    facts = [
        f"Redis    {daemon['redis']}",
        *_role(status),
        f"device   {writer['device']}  segment {writer['segment']}, {writer['segments_used']} used, reaches back "
        f"{seconds(writer['retained_s'])}, when full: {writer['on_full']}",
        *([f"paths    {paths['map']}: {paths['summary']}{_old(paths)}   (hdactl paths)"] if paths else []),
        f"log      durable to LSN {count(writer['durable_lsn'])}   {count(rates['writes'])} writes/s   {size(rates['device_bytes'])}/s   "
        f"in flight {writer['inflight']}, oldest {writer['oldest_write_ms']} ms   write p99 {micros(latency['write_p99_us'])}",
        f"flow     {count(rates['entries'])} entries/s   durable {count(totals['entries'])} = committed {count(totals['committed'])} + "
        f"filtered {count(totals['filtered'])} + dead {count(totals['dead_lettered'])}   lost {count(totals['lost'])}   "
        f"lag {count(totals['lag'])}",
        f"latency  entry to durable: p50 {micros(latency['p50_us'])}, p99 {micros(latency['p99_us'])} (last 10 s), "
        f"max {micros(latency['all_max_us'])} (since start)",
    ]
    facts += _links(status["link"], status["feed"])
    parts: list[RenderableType] = [head, Text("\n".join(facts)), Text(""), roles_table(status), Text("")]
    parts.append(lanes_table(status, lanes_shown))
    hidden = status["lane_count"] - lanes_shown
    if hidden > 0:
        parts.append(Text(f"… and {hidden} more lanes: hdactl lanes", style="dim"))
    parts.append(Text(""))
    parts += _troubles(status)
    return Group(*parts)


def _old(paths: dict[str, Any]) -> str:
    """That what is known of the paths is not of now."""
    age_ms = paths["age_ms"]
    return f", as of {seconds(age_ms / 1000)} ago" if age_ms is not None and age_ms > PATHS_OLD_MS else ""


def _links(link: dict[str, Any] | None, feed: dict[str, Any] | None) -> list[str]:
    """Other hosts: a line for the writer this host brings its frames to, one for each host that brings its own, one for readers."""
    lines = []
    warning = "  INSECURE: not encrypted, anybody who reaches the port is believed" if link and link["insecure"] else ""
    if link is not None and "writer" in link:
        writer = link["writer"]
        where = f"frames go to {writer['address']} ({writer['name']}), rtt {micros(writer['rtt_us'])}, for {seconds(writer['since_s'])}"
        found = where if writer["phase"] == "serving" else f"no writer: {writer['last_error'] or writer['phase']}"
        lines.append(f"link     {found}   {size(link['counters']['bytes_out'])} sent{warning}")
    if link is not None and "listen" in link:
        rings = link["rings"]
        listen = ", ".join(link["listen"])
        lines.append(f"link     {listen}   {link['peers_all']} worker hosts, {rings['free']} of {rings['all']} rings free{warning}")
        lines += [
            f"         {peer['name'] or '?'} ({peer['address']}): {len(peer['workers'])} workers, {count(peer['frames_in'])} frames, "
            f"{size(peer['bytes_in'])}, rtt {micros(peer['rtt_us'])}, for {seconds(peer['since_s'])}"
            for peer in link["peers"][:PEERS_SHOWN]
        ]
        lines += [f"         {text}" for text in link["news"][-3:]]
    if feed is not None:
        warning = "  INSECURE" if feed["insecure"] else ""
        lines.append(f"feed     {', '.join(feed['listen'])}   {feed['readers']} readers, {size(feed['bytes_out'])} sent{warning}")
    return lines


def _role(status: dict[str, Any]) -> list[str]:
    """This host's role, where there may be several hosts."""
    node = status["node"]
    if node["fence"] == "none":
        return []
    age = max(0, status["now_ns"] - node["since_ns"]) / 1e9
    found = node["writer"]
    state = "writes" if found.get("is_serving") else "has released the log" if found.get("is_released") else "is taking over, or dead"
    who = f"{found['contact'] or found['node']} {state}, epoch {found['epoch']}" if found else "the log never had a writer"
    return [f"role     {node['role']} for {seconds(age)}   {who}   fence {node['fence']}"]


def roles_table(status: dict[str, Any]) -> RenderableType:
    """Processes."""
    rows = []
    for role in status["roles"]:
        beat = role["heartbeat_age_ms"]
        rows.append((
            role["role"], role["pid"] or "-", state_text(role["state"]), _cpus(role["cpus"]), size(role["memory_bytes"]),
            f"{beat} ms" if beat is not None else "-", role["restarts"], count(role["entries_read"]) if "entries_read" in role else "",
            role["last_end"],
        ))  # fmt: skip
    return table(("ROLE", "PID", "STATE", "CPUS", "RSS", "BEAT", "RESTARTS", "ENTRIES READ", "LAST END"), rows, (1, 4, 5, 6, 7))


def lanes_table(status: dict[str, Any], limit: int) -> RenderableType:
    """Lanes: those with trouble first, then by lag."""
    lanes = sorted(status["lanes"], key=lambda lane: (lane["state"] in ("idle", "reading"), -lane["lag"], lane["id"]))[:limit]
    rows = [
        (
            lane["name"], state_text(lane["state"]), lane["reader"], lane["position"], count(lane["lag"]),
            count(lane["committed"]), count(lane["filtered"]), count(lane["dead_lettered"]), count(lane["lost"]),
        )
        for lane in lanes
    ]  # fmt: skip
    return table(("LANE", "STATE", "WORKER", "DURABLE TO", "LAG", "COMMITTED", "FILTERED", "DEAD", "LOST"), rows, (2, 4, 5, 6, 7, 8))


def _cpus(cpus: list[int]) -> str:
    if not cpus:
        return "-"
    if cpus == list(range(cpus[0], cpus[-1] + 1)) and len(cpus) > 1:
        return f"{cpus[0]}-{cpus[-1]}"
    return ",".join(map(str, cpus))


def _troubles(status: dict[str, Any]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for alarm in status["alarms"]:
        age = max(0, status["now_ns"] - alarm["since_ns"]) / 1e9
        parts.append(Text(f"ALARM {alarm['role']}, for {seconds(age)}: {alarm['text']}", style="red"))
    for error in status["errors"][-5:]:
        parts.append(Text(f"{when(error['at_ns'])} {error['role']}: {error['text']}", style="yellow"))
    return parts or [Text("no alarms", style="green")]

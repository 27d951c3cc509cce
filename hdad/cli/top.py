"""``hdactl top``: the flow of one host, live, on one screen: streams, workers, links, writer, device, with rates, lag and history.

Runs in hdactl. ``screen`` is a function of what came in and of the terminal's size; it makes as many lines as fit, the most telling
first. ``watch`` asks, draws, and waits for a key.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from typing import Any, Final

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from hdad.cli.flow import ASCII_BLOCKS, BLOCKS, Flow, sparkline
from hdad.cli.output import count, micros, seconds, size
from hdad.cli.status import state_text

WIDTH_MIN: Final = 40
HEIGHT_MIN: Final = 8
LABEL: Final = 9
VALUE: Final = 14
ASK_SHARE: Final = 20  # asking takes at most this part of the time: a daemon with very many lanes is asked less often


def screen(flow: Flow, width: int, height: int, blocks: str = BLOCKS) -> Group:
    """The page, at most ``height`` lines of at most ``width`` cells. ``flow`` has at least one answer."""
    width, height = max(width, WIDTH_MIN), max(height, HEIGHT_MIN)
    status = flow.status
    lines = [_head(status), _way(status)]
    alarms = _alarms(status, 1 if height < 20 else 3)
    room = height - len(lines) - len(alarms)
    flows = _flows(flow, width, blocks)[: max(3, room // 3)]
    lines += flows
    room -= len(flows)
    links = _links(flow, width, blocks)
    workers = _workers(flow, width, blocks)
    links = links[: max(0, min(len(links), room // 4))]
    room -= len(links)
    workers = workers[: max(0, min(len(workers), room // 2))]
    room -= len(workers)
    lines += workers + links + _lanes(flow, width, blocks, room)
    return Group(*[_fitted(line, width) for line in [*lines, *alarms][:height]])


def _fitted(line: Text, width: int) -> Text:
    line.no_wrap, line.overflow = True, "crop"
    line.truncate(width, overflow="crop")
    return line


def _head(status: dict[str, Any]) -> Text:
    daemon = status["daemon"]
    head = Text.assemble((daemon["name"], "bold"), "  ", state_text(daemon["state"]), f"  up {seconds(daemon['uptime_s'])}")
    head.append(f"  Redis {daemon['redis']}", style="dim")
    return head


def _way(status: dict[str, Any]) -> Text:
    """streams → workers → links → writer → device, with how many there are and how they are."""
    parts: list[Text] = []
    halted = sum(lane["state"] not in ("idle", "reading") for lane in status["lanes"])
    parts.append(Text(f"{count(status['lane_count'])} streams") + (Text(f" ({halted} not read)", style="yellow") if halted else Text("")))
    workers = [role for role in status["roles"] if "entries_read" in role]
    good = sum(role["state"] in ("ready", "draining") for role in workers)
    parts.append(Text(f"{len(workers)} workers", style="" if good == len(workers) else "yellow"))
    link, writer = status.get("link"), status["writer"]
    if link and "writer" in link:
        towards = link["writer"]
        parts.append(Text(f"link to {towards.get('name') or towards['address']}", style="" if towards["since_s"] is not None else "red"))
    else:
        if link and link.get("listen"):
            parts.append(Text(f"{link.get('peers_all', 0)} linked hosts"))
        role = next((role for role in status["roles"] if role["role"] == "writer"), None)
        parts.append(Text("writer ") + state_text(role["state"] if role else "none"))
    if writer and writer.get("device"):
        parts.append(Text(str(writer["device"])))
    return Text(" → ", style="dim").join(parts)


def _line(label: str, value: str, history: list[float], width: int, blocks: str) -> Text:
    room = width - LABEL - VALUE - 2
    return Text.assemble((label.ljust(LABEL), "bold"), value.rjust(VALUE), "  ", (sparkline(history, room, blocks), "cyan"))


def _flows(flow: Flow, width: int, blocks: str) -> list[Text]:
    status = flow.status
    link = status.get("link")
    rows = [
        ("read", f"{count(flow.rate('read'))}/s", "read"),
        ("durable", f"{count(flow.rate('durable'))}/s", "durable"),
        ("lag", count(status["totals"]["lag"]), "lag"),
    ]
    if link and "writer" in link:
        rows[1] = ("sent", f"{size(flow.rate('link bytes_out'))}/s", "link bytes_out")
    else:
        rows += [
            ("device", f"{size(flow.rate('device'))}/s", "device"),
            ("p99", micros(status["latency"]["p99_us"]), "p99"),
            ("writes", f"{count(flow.rate('writes'))}/s", "writes"),
        ]
        if link and link.get("listen"):
            rows.insert(2, ("links in", f"{size(flow.rate('link bytes_in'))}/s", "link bytes_in"))
    return [_line(label, value, flow.history(name), width, blocks) for label, value, name in rows]


def _columns(cells: list[tuple[str | Text, int, bool]]) -> Text:
    """Cells of (text, width, is right-aligned), two blanks between them."""
    line = Text()
    for content, width, is_right in cells:
        text = content if isinstance(content, Text) else Text(content)
        if cell_len(text.plain) > width:
            text = Text(set_cell_size(text.plain, width), style=text.style)
        padding = " " * (width - cell_len(text.plain))
        line.append_text(Text(padding) + text if is_right else text + Text(padding))
        line.append("  ")
    line.rstrip()
    return line


def _heading(cells: list[tuple[str, int, bool]]) -> Text:
    line = _columns([(text, width, is_right) for text, width, is_right in cells])
    line.stylize("bold underline")
    return line


def _workers(flow: Flow, width: int, blocks: str) -> list[Text]:
    workers = [role for role in flow.status["roles"] if "entries_read" in role]
    if not workers:
        return []
    owned: dict[int, int] = {}
    for lane in flow.status["lanes"]:
        owned[lane["worker"]] = owned.get(lane["worker"], 0) + 1
    widths = (LABEL, 10, 12, 6, 9)
    room = width - sum(widths) - 2 * len(widths)
    lines = [_heading([("WORKER", widths[0], False), ("STATE", widths[1], False), ("READ/S", widths[2], True), ("LANES", widths[3], True),
                       ("RING FULL", widths[4], True), ("", max(0, room), False)])]  # fmt: skip
    for role in sorted(workers, key=lambda role: -flow.rate(f"worker {role['role']}")):
        name = f"worker {role['role']}"
        index = int(role["role"].rpartition("-")[2])
        lines.append(_columns([
            (role["role"], widths[0], False), (state_text(role["state"]), widths[1], False), (count(flow.rate(name)), widths[2], True),
            (count(owned.get(index, 0)), widths[3], True), (count(role["ring_full"]), widths[4], True),
            (Text(sparkline(flow.history(name), max(0, room), blocks), style="cyan"), max(0, room), False),
        ]))  # fmt: skip
    return lines


def _links(flow: Flow, width: int, blocks: str) -> list[Text]:
    link = flow.status.get("link")
    if not link:
        return []
    if "writer" in link:
        to = link["writer"]
        text = f"{to['phase']}, rtt {micros(to['rtt_us'] or 0)}" if to["since_s"] is not None else f"{to['phase']}: {to['last_error']}"
        return [_columns([("LINK", LABEL, False), (f"{to.get('name') or to['address']}  {text}", width - LABEL - 2, False)])]
    peers = link.get("peers") or []
    if not peers:
        return []
    widths = (20, 9, 9, 12)
    room = max(0, width - sum(widths) - 2 * len(widths))
    lines = [_heading([("LINKED HOST", 20, False), ("WORKERS", 9, True), ("RTT", 9, True), ("IN/S", 12, True), ("", room, False)])]
    for peer in sorted(peers, key=lambda peer: -flow.rate(f"peer {peer['name']}")):
        name = f"peer {peer['name']}"
        lines.append(_columns([
            (peer["name"], 20, False), (count(len(peer["workers"])), 9, True), (micros(peer["rtt_us"]), 9, True),
            (size(flow.rate(name)), 12, True), (Text(sparkline(flow.history(name), room, blocks), style="cyan"), room, False),
        ]))  # fmt: skip
    return lines


def _lanes(flow: Flow, width: int, blocks: str, room: int) -> list[Text]:
    """Lanes: those with trouble first, then by rate, then by lag."""
    lanes = flow.status["lanes"]
    if room < 2 or not lanes:
        return []
    name_width = min(32, max(12, width // 4))
    widths = (name_width, 9, 6, 11, 11)
    rest = max(0, width - sum(widths) - 2 * len(widths))
    lines = [_heading([("STREAM", name_width, False), ("STATE", 9, False), ("WORKER", 6, True), ("DURABLE/S", 11, True), ("LAG", 11, True),
                       ("", rest, False)])]  # fmt: skip
    ordered = sorted(
        lanes, key=lambda lane: (lane["state"] in ("idle", "reading"), -flow.rate(f"lane {lane['name']}"), -lane["lag"], lane["id"])
    )
    shown = ordered[: room - 1 if len(lanes) <= room - 1 else room - 2]
    for lane in shown:
        name, worker = f"lane {lane['name']}", str(lane["worker"]) if lane["worker"] >= 0 else "-"
        lines.append(_columns([
            (lane["name"], name_width, False), (state_text(lane["state"]), 9, False), (worker, 6, True),
            (count(flow.rate(name)), 11, True), (count(lane["lag"]), 11, True),
            (Text(sparkline(flow.history(name), rest, blocks), style="cyan"), rest, False),
        ]))  # fmt: skip
    hidden = flow.status["lane_count"] - len(shown)
    if hidden > 0:
        lines.append(Text(f"… and {count(hidden)} more: hdactl lanes", style="dim"))
    return lines


def _alarms(status: dict[str, Any], limit: int) -> list[Text]:
    alarms = status["alarms"]
    lines = [
        Text(f"ALARM {alarm['role']}, {seconds(max(0, status['now_ns'] - alarm['since_ns']) / 1e9)}: {alarm['text']}", style="red")
        for alarm in alarms[:limit]
    ]
    if len(alarms) > limit:
        lines[-1] = Text(f"… and {len(alarms) - limit + 1} more alarms: hdactl status", style="red")
    return lines


def blocks_for(console: Console) -> str:
    """Characters that the terminal can show."""
    return BLOCKS if console.encoding.lower().startswith("utf") else ASCII_BLOCKS


def once(console: Console, ask: Callable[[], dict[str, Any]], interval_s: float) -> Flow:
    """Two answers, ``interval_s`` apart. Raises ControlError."""
    flow = Flow()
    flow.add(ask(), time.monotonic())
    time.sleep(interval_s)
    flow.add(ask(), time.monotonic())
    return flow


def watch(console: Console, ask: Callable[[], dict[str, Any]], interval_s: float) -> None:
    """Draw until q, Escape or ^C. A space stops the picture, or lets it go on. Raises ControlError."""
    flow, is_still = Flow(), False
    with _keys() as keys, Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
        while True:
            began_s = time.monotonic()
            if not is_still:
                flow.add(ask(), time.monotonic())
            took_s = time.monotonic() - began_s
            live.update(screen(flow, console.width, console.height, blocks_for(console)), refresh=True)
            key = keys(max(interval_s - took_s, took_s * (ASK_SHARE - 1), 0.05))
            if key in ("q", "\x1b", "\x03"):
                return
            is_still ^= key == " "


def _wait(wait_s: float) -> str:
    time.sleep(wait_s)
    return ""


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits so many seconds for a key; "": none came. The terminal is as before at the end."""
    if not sys.stdin.isatty():
        yield _wait
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def wait(wait_s: float) -> str:
        return os.read(fd, 1).decode("latin-1") if select.select([fd], [], [], wait_s)[0] else ""

    try:
        tty.setcbreak(fd)
        yield wait
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)

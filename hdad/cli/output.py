"""How hdactl prints: numbers, ages, tables, colours only on a terminal, JSON when asked. Nothing here decides anything."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TextIO, TypeVar

import orjson
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

Look = TypeVar("Look")
_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}
PIPE_WIDTH: Final = 400  # columns where there is no terminal: nothing is cut in a file or a pipe


def _console(stream: TextIO, is_error: bool) -> Console:
    width = None if stream.isatty() or "COLUMNS" in os.environ else PIPE_WIDTH
    return Console(stderr=is_error, highlight=False, soft_wrap=True, width=width)


def plain(text: str) -> str:
    """Text that a terminal takes for nothing but text: names and contents come from strangers, and may hold escape sequences (I9)."""
    return text.translate(_CONTROLS).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def line(text: str, style: str = "", *, is_error: bool = False) -> None:
    """One line, or several, of plain text."""
    (errors if is_error else console).print(Text(plain(text), style=style))


console = _console(sys.stdout, False)
errors = _console(sys.stderr, True)


def print_json(value: Any) -> None:
    """One line of JSON."""
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode() + "\n")


def watch(looks: Iterator[Look], as_json: Callable[[Look], Any] | None, page: Callable[[Look], RenderableType]) -> None:
    """One look after the other, until ^C: as JSON lines if ``as_json`` is given, in place on a terminal, one below the other elsewhere."""
    from rich.live import Live

    if as_json is None and console.is_terminal:
        with Live(page(next(looks)), console=console, screen=True, auto_refresh=False) as live:
            for look in looks:
                live.update(page(look), refresh=True)
    for look in looks:
        if as_json is not None:
            print_json(as_json(look))
            sys.stdout.flush()
        else:
            console.print(page(look))


def count(value: float) -> str:
    """With thousands separated."""
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def micros(value: float) -> str:
    """Microseconds in the unit that reads best."""
    if value < 1000:
        return f"{value:.0f} us"
    return f"{value / 1000:.1f} ms" if value < 1_000_000 else f"{value / 1_000_000:.1f} s"


def seconds(value: float) -> str:
    """A duration."""
    if value < 120:
        return f"{value:.0f} s"
    if value < 7200:
        return f"{value / 60:.0f} min"
    return f"{value / 3600:.1f} h" if value < 172_800 else f"{value / 86_400:.1f} d"


def when(label_ns: int) -> str:
    """A wall-clock label, UTC."""
    return datetime.fromtimestamp(label_ns / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S") if label_ns else "never"


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]], right: Iterable[int] = ()) -> Table:
    """A plain table; ``right``: columns of numbers. Cells are text as it is, never markup."""
    result = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    numbers = set(right)
    for index, heading in enumerate(headings):
        result.add_column(heading, justify="right" if index in numbers else "left", no_wrap=True)
    for row in rows:
        result.add_row(*[cell if isinstance(cell, Text) else Text(plain(str(cell)).replace("\n", "\\n")) for cell in row])
    return result


class Fitting:
    """A table where it fits; where it does not, each row as a few lines of its own. Nothing is ever cut: a WWPN with "…" helps nobody."""

    def __init__(self, headings: Sequence[str], rows: Sequence[Sequence[Any]], right: Iterable[int] = ()) -> None:
        self._headings, self._rows = headings, rows
        self._table = table(headings, rows, right)

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        if Measurement.get(_console, options.update(width=PIPE_WIDTH), self._table).maximum <= options.max_width:
            yield self._table
            return
        for first, *cells in self._rows:
            facts = [
                Text.assemble((f"{heading.lower()} ", "dim"), cell if isinstance(cell, Text) else str(cell))
                for heading, cell in zip(self._headings[1:], cells, strict=True)
                if str(cell) not in ("", "-")
            ]
            yield Text(str(first), style="bold")
            yield Filled(facts, "    ")


class Filled:
    """Facts side by side in as many lines as they need, none of them broken; one longer than a line has a line of its own."""

    def __init__(self, facts: Iterable[Text], indent: str = "") -> None:
        self._facts = list(facts)
        self._indent = indent

    def __rich_console__(self, _console: Console, options: ConsoleOptions) -> RenderResult:
        line: Text | None = None
        for fact in self._facts:
            if line is not None and len(line) + 3 + len(fact) <= options.max_width:
                line = Text.assemble(line, "   ", fact)
                continue
            if line is not None:
                yield line
            line = Text.assemble(self._indent, fact)
        if line is not None:
            yield line

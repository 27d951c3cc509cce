"""What was found, as a table for people. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Found = dict[str, Any]


def is_spread(value: Any) -> bool:
    """Whether this is a figure with its minimum and maximum."""
    return isinstance(value, dict) and set(value) == {"median", "min", "max"}


def number(value: float) -> str:
    """Short, with the digits that matter."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def lines(found: Found, indent: int = 0) -> Iterator[str]:
    """One line for each group of figures."""
    margin = "  " * indent
    plain = {name: value for name, value in found.items() if not isinstance(value, dict) or is_spread(value)}
    nested = {name: value for name, value in found.items() if name not in plain}
    for name, value in plain.items():
        if is_spread(value):
            yield f"{margin}{name:<28}{number(value['median']):>12}   ({number(value['min'])} … {number(value['max'])})"
        else:
            yield f"{margin}{name:<28}{number(value) if isinstance(value, float) else str(value):>12}"
    for name, value in nested.items():
        yield f"{margin}{name}"
        yield from lines(value, indent + 1)

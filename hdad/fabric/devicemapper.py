"""device-mapper's own word on a multipath map: ``dmsetup table`` and ``status`` as values (pure), and asking for them (edge).

Used when multipathd does not answer, or knows no such map: it needs root, and a program of its own that may be waited for. Formats: the
kernel's drivers/md/dm-mpath.c (multipath_status); a status line tells states and failures, a table line the features as loaded.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from hdad.errors import PeerProtocolError
from hdad.fabric.facts import PATHS_MAX, Facts, Group

CONTROL: Final = "/dev/mapper/control"
OUTPUT_BYTES_MAX: Final = 256 * 1024  # LIMIT: one line a map
WORDS_MAX: Final = 10_000  # LIMIT: words of one line
GROUP_STATES: Final = {"A": "active", "E": "enabled", "D": "disabled"}
PATH_STATES: Final = {"A": "active", "F": "failed"}


@dataclass(frozen=True, slots=True)
class TargetReport:
    """A multipath target: its table or its status, whichever was read. ``states``: major:minor → (state, failures)."""

    features: tuple[str, ...]
    hardware_handler: str
    groups: tuple[Group, ...]
    states: dict[str, tuple[str, int]]


def _take(words: Iterator[str], count: int) -> list[str]:
    if not 0 <= count <= WORDS_MAX:
        raise PeerProtocolError(f"dmsetup: {count} words announced")
    return [next(words) for _ in range(count)]


def parse_target(line: str, is_status: bool) -> TargetReport:
    """One line of ``dmsetup table`` or ``dmsetup status`` without its map's name. Raises PeerProtocolError.

    status: START LENGTH multipath #f f… #h h… #groups initial { state #ps ps… #paths #args { dev state fails args… } }
    table:  START LENGTH multipath #f f… #h h… #groups initial { selector #args a… #paths #args { dev args… } }
    """
    words = iter(line.split()[:WORDS_MAX])
    try:
        _, _, kind = _take(words, 3)
        if kind != "multipath":
            raise PeerProtocolError(f"dmsetup: a {kind!r} target, not multipath")
        features = _take(words, int(next(words)))
        handler = _take(words, int(next(words)))
        group_count, initial = int(next(words)), int(next(words))
        groups, states = [], {}
        for number in range(1, min(group_count, 64) + 1):
            state = next(words)
            _take(words, int(next(words)))
            path_count, argument_count = int(next(words)), int(next(words))
            names = []
            for _ in range(min(path_count, PATHS_MAX)):
                name = next(words)
                names.append(name)
                if is_status:
                    letter, failures = _take(words, 2)
                    states[name] = (PATH_STATES.get(letter, ""), int(failures))
                _take(words, argument_count)
            if is_status:
                groups.append(Group(number, GROUP_STATES.get(state, ""), paths=tuple(names)))
            else:
                groups.append(Group(number, "active" if number == initial else "enabled", state, paths=tuple(names)))
    except (StopIteration, ValueError) as error:
        raise PeerProtocolError(f"dmsetup: a line that is not multipath's: {line[:80]!r}") from error
    return TargetReport(tuple(features if not is_status else ()), " ".join(handler) if not is_status else "", tuple(groups), states)


def merge(facts: Facts, table: TargetReport, status: TargetReport) -> Facts:
    """What device-mapper says of this map. Groups name devices by number there; here by name."""
    names = {path.number: path.name for path in facts.paths}
    changes: dict[str, dict[str, Any]] = {}
    for number, (state, failures) in status.states.items():
        if number in names:
            changes[names[number]] = {"dm_state": state, "failures": failures}
    selectors = {group.number: group.selector for group in table.groups}
    groups = tuple(
        replace(
            group,
            selector=selectors.get(group.number, ""),
            paths=tuple(names.get(number, number) for number in group.paths),
        )
        for group in status.groups
    )
    return replace(
        facts.with_paths(changes),
        groups=groups,
        policy=next(iter(selectors.values()), ""),
        queueing="on" if "queue_if_no_path" in table.features else "off",
        features=" ".join(table.features),
        hardware_handler=table.hardware_handler,
    )


class DeviceMapper:
    """Runs ``dmsetup``. ``timeout_s`` bounds a call; ``program`` "": where it usually is. ``control``: the kernel's own interface."""

    def __init__(self, timeout_s: float = 2.0, program: str = "", control: str = CONTROL) -> None:
        self._timeout_s = timeout_s
        self._program = program
        self._control = control

    def ask(self, what: str, name: str) -> str:
        """The line of ``what`` (table or status) for a map. Raises OSError: no dmsetup, not root, no such map, late."""
        program = self._program or shutil.which("dmsetup") or shutil.which("dmsetup", path="/usr/sbin:/sbin")
        if not program:
            raise FileNotFoundError("there is no dmsetup")
        if not os.access(self._control, os.R_OK | os.W_OK):
            raise PermissionError("only root may ask it")
        arguments = [program, what, *(("--noflush",) if what == "status" else ()), name]
        try:
            done = subprocess.run(arguments, capture_output=True, timeout=self._timeout_s, check=False, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"dmsetup {what} does not answer within {self._timeout_s:g} s") from error
        if done.returncode:
            raise PermissionError(done.stderr[:200].decode("utf-8", "replace").strip().partition("\n")[0])
        return done.stdout[:OUTPUT_BYTES_MAX].decode("utf-8", "replace").strip()

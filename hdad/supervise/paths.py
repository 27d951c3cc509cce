"""The supervisor's path watch: a child that surveys the log's device (fabric/watch), what it last told, and since when it is so.

The supervisor itself asks neither multipathd nor an adapter. If the child falls silent, because a driver holds it, the states that sysfs
keeps in memory are read here, which does not block. The child is no part of the data path: nothing else minds when it dies or hangs.
"""

from __future__ import annotations

import logging
import os
import select
import selectors
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from hdad.clock import monotonic_ns, wall_ns
from hdad.config import Config
from hdad.errors import PeerProtocolError
from hdad.fabric.facts import Facts, Reservation, from_plain
from hdad.fabric.health import FABRICS, Expectations, Verdict, condition, judge, summary
from hdad.fabric.reservation import told
from hdad.fabric.sysfs import read_device, refresh
from hdad.fabric.tree import Tree
from hdad.fabric.trends import History, Trends
from hdad.log.node import node_uuid
from hdad.log.ownership import reservation_key
from hdad.supervise.spawn import Forked, kill, reap

SECOND_NS: Final = 1_000_000_000
SILENT_NS: Final = 3 * SECOND_NS  # no survey for so long: the child hangs, and states are read here
BACKOFF_NS: Final = (SECOND_NS, 60 * SECOND_NS)  # before a dead child is started again: from here, doubled, to there
END_S_MAX: Final = 1.0  # LIMIT: the daemon's end is not held up by a child that is no part of it
# What stops writes, or would with one more fault: said where a person looks first. The rest is for hdactl paths and doctor.
ALARMING: Final = frozenset(("no-paths", "all-paths-down", "last-path", "suspended", "missing-key"))

Alarm = Callable[[str, str], None]  # key, text; an empty text ends it


def expectations(config: Config) -> Expectations:
    """What this configuration needs of its device."""
    log = config.log
    nodes = _writer_nodes(log.cpu)
    if log.fence == "none":
        return Expectations(writer_nodes=nodes)
    return Expectations(log.takeover_timeout_ms / 1000, log.io_timeout_ms / 1000, log.fence == "reservation", writer_nodes=nodes)


def keys_of(config: Config) -> Callable[[], Reservation | None]:
    """What asks the array for the keys of the log's device; nothing unless it is fenced by reservation."""
    if config.log.fence != "reservation":
        return lambda: None
    return lambda: told(config.log.device, reservation_key(node_uuid(config.supervisor.node_id, config.supervisor.state_directory)))


def _writer_nodes(cpu: int) -> frozenset[int]:
    """NUMA nodes of the CPUs the writer may run on; by itself it goes to the device's node if it may."""
    allowed = {cpu} if cpu >= 0 else os.sched_getaffinity(0)
    nodes = set()
    for found in allowed:
        try:
            names = os.listdir(f"/sys/devices/system/cpu/cpu{found}")
        except OSError:
            continue
        nodes |= {int(name.removeprefix("node")) for name in names if name.startswith("node") and name[4:].isdigit()}
    return frozenset(nodes)


class PathWatch:
    """``facts`` and ``trends`` are what is known now; ``is_needed`` tells whether this device has paths to watch at all."""

    def __init__(
        self, device: str, expected: Expectations, selector: selectors.BaseSelector, fork: Callable[[], Forked], root: str = "/sys"
    ) -> None:
        self._expected = expected
        self._selector = selector
        self._fork = fork
        self._tree = Tree(root)
        self._history = History(condition)
        self._forked: Forked | None = None
        self._due_ns = 0
        self._backoff_ns = BACKOFF_NS[0]
        self._told_ns = monotonic_ns()
        self._read_ns = 0
        self.on_alarm: Alarm = lambda _key, _text: None
        self.facts = read_device(self._tree, device)
        self.trends = Trends()
        self.verdicts: list[Verdict] = []

    @property
    def is_needed(self) -> bool:
        """True: a map, native multipath, or a path through a fabric. A disk, a loop device or a file has nothing to watch."""
        return self.facts.kind in ("multipath", "nvme") or any(path.transport in FABRICS for path in self.facts.paths)

    def fds(self) -> Iterable[int]:
        """For a child to close."""
        return [self._forked.pidfd, self._forked.channel.fileno()] if self._forked and self._forked.channel else []

    def tick(self, now_ns: int) -> None:
        """Start the child, or stand in for it."""
        if self._forked is None and now_ns >= self._due_ns:
            self._start()
        if now_ns - self._told_ns > SILENT_NS and now_ns - self._read_ns >= SECOND_NS:
            self._read_ns = now_ns
            self._tree.forget()
            self._take(replace(refresh(self._tree, self.facts), taken_ns=wall_ns(), is_complete=False))

    def _start(self) -> None:
        try:
            forked = self._fork()
        except OSError as error:
            logging.getLogger("hdad").warning("path watch: not started: %s", error.strerror)
            self._wait()
            return
        self._forked = forked
        assert forked.channel is not None
        self._selector.register(forked.pidfd, selectors.EVENT_READ, lambda _mask: self._ended())
        self._selector.register(forked.channel.fileno(), selectors.EVENT_READ, lambda _mask: self._hear())

    def _hear(self) -> None:
        assert self._forked is not None and self._forked.channel is not None
        channel = self._forked.channel
        for message in channel.receive():
            if message.get("event") == "paths" and isinstance(message.get("facts"), dict):
                try:
                    facts = from_plain(message["facts"])
                except PeerProtocolError as error:
                    logging.getLogger("hdad").error("path watch: %s", error)
                    continue
                self._told_ns = monotonic_ns()
                self._backoff_ns = BACKOFF_NS[0]
                self._take(facts)
        if channel.closed_by_peer and channel.fileno() in self._selector.get_map():
            self._selector.unregister(channel.fileno())

    def _take(self, facts: Facts) -> None:
        self.facts = facts
        self.trends = self._history.feed(facts)
        self.verdicts = judge(facts, self._expected, self.trends)
        for code in ALARMING:
            found = next((verdict for verdict in self.verdicts if verdict.code == code), None)
            self.on_alarm(f"paths:{code}", f"{found.where}: {found.text}. {found.remedy}" if found is not None else "")

    def _ended(self) -> None:
        code = reap(self._unwatched())
        logging.getLogger("hdad").warning("path watch ended with %d; started again in %.0f s", code, self._backoff_ns / SECOND_NS)
        self._wait()

    def _unwatched(self) -> Forked:
        assert self._forked is not None
        forked, self._forked = self._forked, None
        for fd in (forked.pidfd, forked.channel.fileno() if forked.channel is not None else -1):
            if fd in self._selector.get_map():
                self._selector.unregister(fd)
        return forked

    def _wait(self) -> None:
        self._due_ns = monotonic_ns() + self._backoff_ns
        self._backoff_ns = min(2 * self._backoff_ns, BACKOFF_NS[1])

    def close(self) -> None:
        """End the child, and wait for it at most END_S_MAX: one that the kernel holds dies when it is let go, and init reaps it."""
        if self._forked is not None:
            forked = self._unwatched()
            kill(forked)
            if select.select([forked.pidfd], [], [], END_S_MAX)[0]:
                reap(forked)

    # -- what is known -----------------------------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """For an alarm: how the paths are, in a phrase."""
        return summary(self.facts)

    def status(self) -> dict[str, Any]:
        """For the status page; a few facts, hdactl paths has them all."""
        facts = self.facts
        return {
            "summary": summary(facts),
            "kind": facts.kind,
            "map": facts.map_name or facts.name,
            "conditions": {path.name: condition(path) for path in facts.paths},
            "since_ns": dict(self.trends.since),
            "risen": self.trends.risen,
            "risen_span_s": round(self.trends.span_s, 1),
            "verdicts": [{"level": verdict.level, "code": verdict.code, "where": verdict.where} for verdict in self.verdicts],
            "age_ms": max(0, wall_ns() - facts.taken_ns) // 1_000_000 if facts.taken_ns else None,
            "is_complete": facts.is_complete,
        }

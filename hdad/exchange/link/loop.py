"""The link's loop: what the supervisor says, one side or both of a link, and waiting for all of it.

Runs in the link process, one thread (names are looked up in another). A worker host has a forwarder, the writer's host a server; a host
that may become the writer has both, and is told which of its rings are whose: ``let-go`` before the local writer reads them, ``forward``
when it is no more. Reports once a second what status shows. Does not know what frames hold.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from hdad.exchange.channel import Channel
from hdad.exchange.link.forward import Forwarder
from hdad.exchange.link.serve import Server
from hdad.exchange.link.sockets import Wait
from hdad.exchange.link.watcher import Watcher
from hdad.exchange.slots import ring_bell
from hdad.metrics.counters import RoleBlock, State

REPORT_NS: Final = 1_000_000_000
SECOND_NS: Final = 1_000_000_000
WAIT_NS_MAX: Final = 500_000_000


class LinkLoop:
    """``bells``: rung by workers, by the writer, by name look-ups. ``data_bell``: wakes the writer. ``reload``: trust and peers anew."""

    def __init__(
        self, channel: Channel, block: RoleBlock, forwarder: Forwarder | None, server: Server | None, bells: list[int], data_bell: int,
        reload: Callable[[dict[str, Any]], None],
    ) -> None:  # fmt: skip
        self._channel = channel
        self._block = block
        self._forwarder = forwarder
        self._server = server
        self._data_bell = data_bell
        self._reload = reload
        self._outlets = forwarder.outlets if forwarder is not None else []
        self._bells = bells
        self._watcher: Watcher | None = None
        self._report_due_ns = 0
        self.is_draining = False
        block.set("state", State.READY)

    @property
    def is_orphaned(self) -> bool:
        """True: the supervisor is gone."""
        return self._channel.closed_by_peer

    @property
    def is_drained(self) -> bool:
        """True: both sides are done."""
        return (
            self.is_draining
            and (self._forwarder is None or self._forwarder.is_drained)
            and (self._server is None or self._server.is_drained)
        )

    def run_once(self, now_ns: int) -> bool:
        """One bounded round. True when anything was done."""
        self._block.set("heartbeat_ns", now_ns)
        work = self._hear_supervisor()
        if self._forwarder is not None:
            work |= self._forwarder.run(now_ns)
        if self._server is not None:
            work |= self._server.run(now_ns)
            if self._server.take_wake():
                ring_bell(self._data_bell)
        if now_ns >= self._report_due_ns:
            self._report(now_ns)
        return work

    def _hear_supervisor(self) -> bool:
        messages = self._channel.receive()
        for message in messages:
            op = message.get("op")
            if op == "drain":
                self._drain()
            elif op == "worker-dead" and int(message["worker"]) < len(self._outlets):
                self._outlets[int(message["worker"])].died(int(message["generation"]))
            elif op == "let-go" and self._forwarder is not None:
                self._forwarder.let_go()
                self._channel.send({"event": "has-let-go"})
            elif op == "forward" and self._forwarder is not None:
                self._forwarder.resume()
            elif op == "writer-at" and self._server is not None:
                self._server.told_where(str(message.get("contact", "")))
            elif op == "reload":
                self._reload(message.get("config", {}))
            elif op == "log-level":
                logging.getLogger().setLevel(str(message.get("level", "info")).upper())
        return bool(messages)

    def _drain(self) -> None:
        self.is_draining = True
        self._block.set("state", State.DRAINING)
        for side in (self._forwarder, self._server):
            if side is not None:
                side.is_draining = True

    def _report(self, now_ns: int) -> None:
        self._report_due_ns = now_ns + REPORT_NS
        report: dict[str, Any] = {"event": "link"}
        if self._forwarder is not None:
            report["writer"] = self._forwarder.report(now_ns)
        if self._server is not None:
            report |= self._server.report(now_ns)
            self._block.set("peers", len(self._server.guests))
        else:
            self._block.set("peers", int(self._forwarder is not None and self._forwarder.is_serving))
        self._channel.send(report)

    def wait(self, now_ns: int) -> None:
        """Sleep until a socket, a bell or the supervisor has something, or something is due."""
        due_ns = min(now_ns + WAIT_NS_MAX, self._report_due_ns)
        is_fresh = False
        waits: list[Wait] = []
        for side in (self._forwarder, self._server):
            if side is not None:
                due_ns = min(due_ns, side.due_ns(now_ns))
                waits += side.waits_for()
                is_fresh |= side.sleep()
        if self._watcher is None:
            self._watcher = Watcher(self._bells, self._channel.fileno())
        if not is_fresh:
            self._watcher.wait(waits, max(0, due_ns - now_ns) / SECOND_NS)

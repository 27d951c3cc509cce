"""One of several hosts in the simulation of links: a machine with a link, over the modelled network; with the device or without it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from hdad.addresses import Address
from hdad.alarms import Alarms
from hdad.config import Config
from hdad.exchange.link.forward import Forwarder
from hdad.exchange.link.inlet import Inlet, InletState
from hdad.exchange.link.ledger import Ledger
from hdad.exchange.link.loop import LinkLoop
from hdad.exchange.link.outlet import Outlet
from hdad.exchange.link.serve import Guest, Server
from hdad.exchange.link.whois import LocalWriter
from hdad.exchange.link.wire import Greeting, Reason, Role
from hdad.exchange.slots import WorkerSlot, create_remote_slots
from hdad.supervise.loop import TICK_S, Roles
from tests.sim.log import UUID, Violation
from tests.sim.machine import Machine
from tests.sim.process import Process

if TYPE_CHECKING:
    from tests.sim.fleet import Fleet

LISTEN: Final = Address("tcp", "w", 7411)
HONEST: Final = frozenset((Reason.DONE, Reason.LOST, Reason.SILENT, Reason.STALLED, Reason.CROWDED))  # how honest hosts may part


def check_honest(reason: Reason, words: str) -> None:
    """Here nobody lies."""
    if reason not in HONEST:
        raise Violation(f"an honest host's connection ends as {reason.name}: {words}")


class SimForwarder(Forwarder):
    """The real one, watched."""

    def _lose(self, reason: Reason, words: str) -> None:
        check_honest(reason, words)
        super()._lose(reason, words)


class SimServer(Server):
    """The real one, watched."""

    def _note(self, guest: Guest, reason: Reason, words: str) -> None:
        check_honest(reason, f"{guest.label}: {words}")
        super()._note(guest, reason, words)


class Host(Machine):
    """``processes``: workers by index, the writer (None on a host without the device), the link. ``starts_ns``: it has no power before."""

    def __init__(self, life: Fleet, name: str, config: Config, starts_ns: int = 0) -> None:
        self.life, self.name, self.starts_ns = life, name, starts_ns
        self.net = life.net.host(name)
        self._has_started = False
        self._tick_due_ns = 0
        super().__init__(life, config)
        self.remote = create_remote_slots(self.slots, config.link.remote_workers_max if config.log.device else 0, config.workers.ring_bytes)
        self.processes.append(None)
        self.roles = [role for role in range(len(self.processes)) if role != self.count or config.log.device]

    @property
    def link(self) -> LinkLoop | None:
        """None while there is none that has begun."""
        process = self.processes[-1]
        found = process.loop if process is not None and process.end is None else None
        return found if isinstance(found, LinkLoop) else None

    @property
    def is_at_rest(self) -> bool:
        """True: everybody serves, here and over the link."""
        link = self.link
        if link is None or not super().is_at_rest:
            return False
        if link._forwarder is not None:
            return link._forwarder.is_serving
        assert link._server is not None
        return all(inlet.state is not InletState.CLOSING and inlet.is_empty for inlet in link._server._inlets)

    def stop(self, has_power: bool = True) -> None:
        """The daemon is no more; without power nothing is closed in order."""
        if not has_power:
            self.net.vanish()
        for role in range(len(self.processes)):
            self.kill(role)

    def stand_still(self, until_ns: int) -> None:
        """All of its processes."""
        self.still_until_ns = until_ns
        for process in self.processes:
            if process is not None:
                process.still_until_ns = until_ns

    def close(self) -> None:
        """As of a machine."""
        super().close()
        if self.remote:
            os.close(self.remote[0].back_bell)

    # -- processes --------------------------------------------------------------------------------------------------------------------

    def _roles(self) -> Roles:
        writer = partial(self._fork, self.count) if self.config.log.device else None
        return Roles(writer, lambda index: partial(self._fork, index), link=partial(self._fork, self.count + 1))

    def _begin(self, role: int) -> Callable[[Process], Any]:
        return self._begin_link if role == self.count + 1 else super()._begin(role)

    def _slots_of_writer(self) -> list[WorkerSlot]:
        return [*self.slots, *self.remote]

    def _begin_link(self, process: Process) -> LinkLoop:
        """As ``hdad.exchange.link.child`` does it."""
        life, config, block = self.life, self.config, self.counters.link
        alarms = Alarms(process.childs_end, logging.getLogger("hdad.link"))  # type: ignore[arg-type]
        greeting = Greeting(
            Role.WORKERS, config.link.silence_ms, life.rng.randbytes(16), bytes(16), config.log.frame_bytes_max, self.count, self.name
        )
        forwarder: Forwarder | None = None
        server: Server | None = None
        if config.link.writers:
            forwarder = SimForwarder(
                [Outlet(self._mapped(slot)) for slot in self.slots], Ledger(self.counters.lanes, self.counters.writer), [LISTEN], greeting,
                self.net, alarms, block, life.rng.random, lambda: life.wall_ns // 1000,
            )  # fmt: skip
        else:
            whois = LocalWriter(self.counters.writer, UUID)
            inlets = [Inlet(self._mapped(slot), process.generation) for slot in self.remote]
            greeting = greeting._replace(role=Role.WRITER, workers=0)
            server = SimServer(inlets, [self.net.listen(LISTEN)], greeting, whois, alarms, block, config.link.connections_max)
        bell = self.slots[0].data_bell
        return LinkLoop(process.childs_end, block, forwarder, server, [], bell, lambda _: None)  # type: ignore[arg-type]

    def kill(self, role: int, end: int = -9) -> None:
        """The kernel closes what was the link's own."""
        process = self.processes[role]
        if role == self.count + 1 and process is not None and process.end is None:
            self.net.die()
        super().kill(role, end)

    def round_of(self, role: int) -> bool:
        """One round of one process. True: it did something."""
        self.life.skew_ns = self.life.skews[self.name]
        return super().round_of(role)

    def supervise(self) -> bool:
        """One round of the supervisor, if there is power, and something that wakes it: a death, a message, or its tick."""
        now_ns = self.life.now_ns
        if now_ns < self.starts_ns:
            return False
        if now_ns < self._tick_due_ns and not any(one is not None and (one.up or one.end is not None) for one in self.processes):
            return False
        self._tick_due_ns = now_ns + int(TICK_S * 1e9)
        if not self._has_started:
            self._has_started = True
            self.net.is_back()
        self.life.skew_ns = self.life.skews[self.name]
        return super().supervise()

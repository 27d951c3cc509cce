"""The link's process from its first line to its last. Root: listens, wires, runs the loop, turns errors into an exit status."""

from __future__ import annotations

import gc
import logging
import os
import random
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hdad.addresses import Address
from hdad.alarms import Alarms
from hdad.clock import monotonic_ns, wall_ns
from hdad.errors import ExitStatus, HdadError
from hdad.exchange.channel import Channel
from hdad.exchange.link.forward import Forwarder
from hdad.exchange.link.inlet import Inlet
from hdad.exchange.link.ledger import Ledger
from hdad.exchange.link.loop import LinkLoop
from hdad.exchange.link.outlet import Outlet
from hdad.exchange.link.serve import Server
from hdad.exchange.link.sockets import Listener, SocketOptions, TcpNetwork
from hdad.exchange.link.trust import Trust, TrustFiles
from hdad.exchange.link.whois import WhoIsWriter
from hdad.exchange.link.wire import Greeting, Role
from hdad.exchange.slots import WorkerSlot
from hdad.metrics.counters import Counters, State

if TYPE_CHECKING:
    from hdad.config import Config


def run(
    local: Sequence[WorkerSlot], remote: Sequence[WorkerSlot], generation: int, counters: Counters, channel: Channel, config: Config,
    whois: WhoIsWriter | None,
) -> ExitStatus:  # fmt: skip
    """Bring local workers' frames to the writer (``link.writers``), or take remote workers' frames (``link.listen``), until drained.

    ``whois`` None: this host has no writer. Never raises; the status tells.
    """
    logger = logging.getLogger("hdad.link")
    try:
        gc.freeze()  # what the supervisor had before the fork stays shared
        counters.link.set("state", State.STARTING)
        loop = _wire(local, remote, generation, counters, channel, config, whois)
        channel.send({"event": "ready"})
        while not loop.is_orphaned:
            if loop.run_once(monotonic_ns()):
                continue
            if loop.is_drained:
                channel.send({"event": "drained"})
                return ExitStatus.OK
            loop.wait(monotonic_ns())
        return ExitStatus.OK
    except HdadError as error:
        logger.error("%s", error)
        channel.send({"event": "error", "key": "", "text": str(error)})
        return error.status
    except Exception as error:  # root of the process: the traceback goes to the log, the status to the supervisor
        logger.exception("link: unforeseen")
        channel.send({"event": "error", "key": "", "text": f"unforeseen: {type(error).__name__}: {error}"})
        return ExitStatus.FAILURE


class TrustHolder:
    """The trust that counts now; None without TLS. A reload that fails leaves it as it is, with an alarm."""

    def __init__(self, config: Config, alarms: Alarms, alarm_key: str) -> None:
        self._alarms = alarms
        self._key = alarm_key
        link = config.link
        self._files = TrustFiles(link.tls_cert_file, link.tls_key_file, link.tls_ca_file)
        self._trust = Trust(self._files) if self._files.cert else None

    def __call__(self) -> Trust | None:
        """For the network."""
        return self._trust

    def reload(self) -> None:
        """Read the files again."""
        if self._trust is None:
            return
        try:
            self._trust = Trust(self._files)
        except HdadError as error:
            self._alarms.set(self._key, f"{error}; the certificates that were read before stay in use")
        else:
            self._alarms.clear(self._key, "certificates read again")


def _wire(
    local: Sequence[WorkerSlot], remote: Sequence[WorkerSlot], generation: int, counters: Counters, channel: Channel, config: Config,
    whois: WhoIsWriter | None,
) -> LinkLoop:  # fmt: skip
    link = config.link
    alarms = Alarms(channel, logging.getLogger("hdad.link"))
    trust = TrustHolder(config, alarms, "link-tls")
    network = TcpNetwork(trust, SocketOptions(4 * link.silence_ms, link.send_buffer_bytes))
    block = counters.link
    greeting = Greeting(
        Role.WORKERS, link.silence_ms, os.urandom(16), bytes(16), config.log.frame_bytes_max, len(local), socket.gethostname()
    )
    forwarder: Forwarder | None = None
    server: Server | None = None
    bells = [network.bell]
    if link.writers:
        ledger = Ledger(counters.lanes, counters.writer)
        forwarder = Forwarder(
            [Outlet(slot) for slot in local], ledger, [Address.parse(text) for text in link.writers], greeting, network, alarms, block,
            random.random, lambda: wall_ns() // 1000,
        )  # fmt: skip
        bells.append(local[0].data_bell)
        if config.log.device:
            forwarder.let_go()  # the rings are the local writer's, until the supervisor says otherwise
    if link.listen:
        assert whois is not None, "the configuration was checked: who listens has the log"
        listeners = [listen(network, Address.parse(text), "link.listen") for text in link.listen]
        inlets = [Inlet(slot, generation) for slot in remote]
        server = Server(inlets, listeners, greeting._replace(role=Role.WRITER, workers=0), whois, alarms, block, link.connections_max)
        bells.append(remote[0].back_bell)

    def reload(values: dict[str, Any]) -> None:
        trust.reload()
        for side in (forwarder, server):
            if side is not None and "link.peers" in values:
                side.allowed_names = tuple(values["link.peers"])

    reload({"link.peers": link.peers})
    data_bell = remote[0].data_bell if remote else local[0].data_bell
    return LinkLoop(channel, block, forwarder, server, bells, data_bell, reload)


def listen(network: TcpNetwork, address: Address, key: str) -> Listener:
    """Raises HdadError, which names the ``key`` of the configuration."""
    try:
        return network.listen(address)
    except OSError as error:
        raise HdadError(f"{key} {address}: {error.strerror}") from error

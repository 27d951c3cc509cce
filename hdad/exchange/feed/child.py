"""The feed's process from its first line to its last. Root: listens, wires, runs the loop, turns errors into an exit status."""

from __future__ import annotations

import gc
import logging
import os
import socket
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from hdad.addresses import Address
from hdad.alarms import Alarms
from hdad.clock import monotonic_ns
from hdad.errors import ExitStatus, HdadError
from hdad.exchange.channel import Channel
from hdad.exchange.feed.loop import SILENCE_MS, FeedLoop
from hdad.exchange.link.child import TrustHolder, listen
from hdad.exchange.link.sockets import SocketOptions, TcpNetwork
from hdad.exchange.link.wire import Greeting, Role
from hdad.limits import FRAME_BYTES_MAX
from hdad.log.device import Device
from hdad.log.opening import durable_evidence, read_leases, read_superblock
from hdad.log.reader import LogReader
from hdad.metrics.counters import Counters, State

if TYPE_CHECKING:
    from hdad.config import Config

LEASES_NS: Final = 20_000_000  # where the writer is elsewhere, its lease blocks are looked at so often
WRITING: Final = frozenset((State.READY, State.DRAINING))


def run(counters: Counters, channel: Channel, config: Config) -> ExitStatus:
    """Serve readers until told to end. Never raises; the status tells."""
    logger = logging.getLogger("hdad.feed")
    try:
        gc.freeze()  # what the supervisor had before the fork stays shared
        counters.feed.set("state", State.STARTING)
        loop = _wire(counters, channel, config)
        channel.send({"event": "ready"})
        while not loop.is_orphaned:
            if loop.run_once(monotonic_ns()):
                continue
            if loop.is_drained:
                channel.send({"event": "drained"})
                break
            loop.wait(monotonic_ns())
        return ExitStatus.OK
    except HdadError as error:
        logger.error("%s", error)
        channel.send({"event": "error", "key": "", "text": str(error)})
        return error.status
    except Exception as error:  # root of the process: the traceback goes to the log, the status to the supervisor
        logger.exception("feed: unforeseen")
        channel.send({"event": "error", "key": "", "text": f"unforeseen: {type(error).__name__}: {error}"})
        return ExitStatus.FAILURE


class Horizon:
    """The newest LSN that is known to be durable: from the writer's counters where it runs here, else from the lease blocks."""

    def __init__(self, counters: Counters, device: Device, log_uuid: bytes) -> None:
        self._block = counters.writer
        self._device = device
        self._log_uuid = log_uuid
        self._lsn = 0
        self._due_ns = 0

    def __call__(self, now_ns: int) -> int:
        """Raises DeviceError."""
        if self._block.get("state") in WRITING:
            self._lsn = max(self._lsn, self._block.get("durable_lsn"))
        elif now_ns >= self._due_ns:
            self._due_ns = now_ns + LEASES_NS
            self._lsn = max(self._lsn, durable_evidence(read_leases(self._device, self._log_uuid)))
        return self._lsn


def _wire(counters: Counters, channel: Channel, config: Config) -> FeedLoop:
    device = Device.open(config.log.device)
    superblock = read_superblock(device)
    alarms = Alarms(channel, logging.getLogger("hdad.feed"))
    trust = TrustHolder(config, alarms, "feed-tls")
    network = TcpNetwork(trust, SocketOptions(2 * SILENCE_MS, config.link.send_buffer_bytes, limits_unread=False))
    greeting = Greeting(Role.FEED, SILENCE_MS, os.urandom(16), superblock.uuid, FRAME_BYTES_MAX, 0, socket.gethostname())
    listeners = [listen(network, Address.parse(text), "feed.listen") for text in config.feed.listen]

    def reload(values: dict[str, Any]) -> None:
        trust.reload()
        if "feed.peers" in values:
            loop.allowed_names = tuple(values["feed.peers"])

    loop = FeedLoop(
        channel, counters.feed, listeners, greeting, partial(LogReader, config.log.device), Horizon(counters, device, superblock.uuid),
        alarms, config.feed.readers_max, reload,
    )  # fmt: skip
    loop.allowed_names = config.feed.peers
    return loop

"""The writer's process from its first line to its last. Root: opens the log, wires, runs the loop, turns errors into an exit status."""

from __future__ import annotations

import gc
import logging
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hdad.addresses import Address
from hdad.clock import monotonic_ns
from hdad.errors import ExitStatus, HdadError
from hdad.exchange.channel import Channel
from hdad.exchange.slots import WorkerSlot
from hdad.log.appender import LogAppender
from hdad.metrics.counters import Counters, State
from hdad.writer.loop import WriterLoop

if TYPE_CHECKING:
    from hdad.config import Config


def run(slots: list[WorkerSlot], counters: Counters, channel: Channel, config: Config) -> ExitStatus:
    """Recover the log and serve it until drained, or the supervisor is gone. Never raises; the status tells (I8: errors end it)."""
    logger = logging.getLogger("hdad.writer")
    block = counters.writer
    try:
        gc.freeze()  # what the supervisor had before the fork stays shared
        gc.set_threshold(50_000, 20, 50)  # frames come and go by the thousand, none of them in a cycle
        block.set("state", State.RECOVERING)
        block.set("inflight", 0)
        block.set("oldest_write_ns", 0)
        started_ns = monotonic_ns()
        block.set("heartbeat_ns", started_ns)
        log = open_log(config)
        block.set("recovery_ms", (monotonic_ns() - started_ns) // 1_000_000)
        loop = WriterLoop(slots, counters, channel, config, log)
        block.set("state", State.READY)
        channel.send({"event": "ready"})
        return _serve(loop, channel)
    except HdadError as error:
        logger.error("%s", error)
        channel.send({"event": "error", "key": "", "text": str(error)})
        return error.status
    except Exception as error:  # root of the process: the traceback goes to the log, the status to the supervisor
        logger.exception("writer: unforeseen")
        channel.send({"event": "error", "key": "", "text": f"unforeseen: {type(error).__name__}: {error}"})
        return ExitStatus.FAILURE


def _serve(loop: WriterLoop, channel: Channel) -> ExitStatus:
    while not loop.is_orphaned:
        if loop.run_once(monotonic_ns()):
            continue
        if loop.is_drained:
            loop.close()
            channel.send({"event": "drained"})
            return ExitStatus.OK
        loop.wait(monotonic_ns())
    return ExitStatus.OK


def contact_of(advertise: str, listen: Sequence[str]) -> str:
    """What the lease block says of this host: where its link is, so that worker hosts find the writer; without a link its name."""
    if advertise or not listen:
        return advertise or socket.gethostname()
    first = Address.parse(listen[0])
    return str(first._replace(host=socket.gethostname()) if first.host in ("0.0.0.0", "::") else first)


def open_log(config: Config) -> LogAppender:
    """Claim the device and recover. Raises DeviceError, FormatError, CorruptionError."""
    log = config.log
    return LogAppender.open(
        log.device,
        contact=contact_of(config.link.advertise, config.link.listen),
        accept_damage=log.accept_damage,
        on_full=log.on_full,
        retain_min_s=log.retain_min_s,
        write_bytes_max=log.write_bytes_max,
    )

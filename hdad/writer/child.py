"""The writer's process from its first line to its last. Root: standby and writer in turn, and errors turned into an exit status."""

from __future__ import annotations

import gc
import logging
import select
import socket
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from hdad.addresses import Address
from hdad.alarms import Alarms
from hdad.clock import boottime_ns, monotonic_ns
from hdad.errors import DeviceError, ExitStatus, FencedError, HdadError
from hdad.exchange.channel import Channel
from hdad.exchange.slots import WorkerSlot
from hdad.fabric.reservation import KernelReservation, Reservation
from hdad.log.appender import LogAppender
from hdad.log.device import BlockDevice, Device
from hdad.log.node import boot_uuid, node_uuid
from hdad.log.ownership import Owner, owner
from hdad.metrics.counters import Counters, State
from hdad.timing import MS
from hdad.writer.election import Candidate
from hdad.writer.keys import of_device
from hdad.writer.loop import WriterLoop
from hdad.writer.role import RoleEvent
from hdad.writer.standby import Claim, Standby

if TYPE_CHECKING:
    from hdad.config import Config

_STATES: Final = {RoleEvent.WATCHES: State.STANDBY, RoleEvent.CLAIMS: State.TAKING_OVER, RoleEvent.SERVES: State.READY}


class Around:
    """What a standby needs of this process (writer/standby.Surroundings)."""

    def __init__(self, channel: Channel, counters: Counters, config: Config) -> None:
        self.is_wanted = True
        self.is_asked = False
        self.has_rings = False  # nobody else reads the rings of local workers
        self._claim = 0
        self._channel = channel
        self._block = counters.writer
        self._config = config

    def open_reader(self) -> BlockDevice:
        """Read only, without a lock. Raises DeviceError."""
        return Device.open(self._config.log.device)

    def open_writer(self) -> BlockDevice:
        """For writing, exclusively on this host. Raises DeviceError."""
        return Device.open(self._config.log.device, write=True)

    def open_reservation(self) -> Reservation:
        """Raises DeviceError."""
        return KernelReservation.open(self._config.log.device)

    def looking(self, is_looking: bool) -> None:
        """A sign of life; a look that hangs is a device that hangs."""
        now_ns = monotonic_ns()
        self._block.set("heartbeat_ns", now_ns)
        self._block.set("oldest_write_ns", now_ns if is_looking else 0)

    def pause(self, ns: int) -> None:
        """Until the supervisor says something, at most so long."""
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        poll.poll(max(0, -(-ns // MS)))
        self._block.set("heartbeat_ns", monotonic_ns())
        for message in self._channel.receive():
            op = message.get("op")
            if op == "drain":
                self.is_wanted = False
            elif op == "promote":
                self.is_asked = True
            elif op == "rings-free":
                self.has_rings = int(message["claim"]) == self._claim
            elif op == "log-level":
                logging.getLogger().setLevel(str(message.get("level", "info")).upper())
        self.is_wanted = self.is_wanted and not self._channel.closed_by_peer

    def tell(self, event: RoleEvent, owner: Owner | None, text: str) -> None:
        """To the supervisor, and into the counters."""
        self._block.set("state", _STATES[event])
        if event is RoleEvent.CLAIMS:
            self._claim += 1
            self.has_rings = not self._config.link.writers  # else the link may be reading them (supervise/handover)
        message: dict[str, object] = {"event": "role", "what": event.value, "text": text, "claim": self._claim}
        if owner is not None:
            message["owner"] = {
                "node": str(uuid.UUID(bytes=owner.node)), "contact": owner.contact, "epoch": owner.epoch, "since_ns": owner.since_ns,
                "is_serving": owner.is_serving, "is_released": owner.is_released,
            }  # fmt: skip
        self._channel.send(message)
        if event in (RoleEvent.WATCHES, RoleEvent.SERVES):
            self._channel.send({"event": "ready"})


def run(slots: list[WorkerSlot], counters: Counters, channel: Channel, config: Config) -> ExitStatus:
    """Stand by until the log is this host's, recover and serve it; until drained, or the supervisor is gone.

    Never raises; the status tells (I8: errors end it).
    """
    logger = logging.getLogger("hdad.writer")
    block = counters.writer
    try:
        gc.freeze()  # what the supervisor had before the fork stays shared
        gc.set_threshold(50_000, 20, 50)  # frames come and go by the thousand, none of them in a cycle
        for name in ("inflight", "oldest_write_ns"):
            block.set(name, 0)
        block.set("heartbeat_ns", monotonic_ns())
        block.set("state", State.STARTING)
        around = Around(channel, counters, config)
        alarms = Alarms(channel, logger)
        standby = Standby(candidate(config), around, alarms, may_wait=may_wait(config))
        hold_back_until_ns = 0
        while (claim := standby.wait_turn(hold_back_until_ns)) is not None:
            status = _serve(claim, slots, counters, channel, config, around, alarms)
            if status is not None:
                return status
            hold_back_until_ns = boottime_ns() + config.log.takeover_timeout_ms * MS
        channel.send({"event": "drained"})
        return ExitStatus.OK
    except HdadError as error:
        logger.error("%s", error)
        channel.send({"event": "error", "key": "", "text": str(error)})
        return error.status
    except Exception as error:  # root of the process: the traceback goes to the log, the status to the supervisor
        logger.exception("writer: unforeseen")
        channel.send({"event": "error", "key": "", "text": f"unforeseen: {type(error).__name__}: {error}"})
        return ExitStatus.FAILURE


def may_wait(config: Config) -> bool:
    """Whether this host may stand by while another is the writer."""
    return config.log.fence != "none" and config.log.standby


def candidate(config: Config) -> Candidate:
    """This host, as the election knows it. Raises ConfigError."""
    node = node_uuid(config.supervisor.node_id, config.supervisor.state_directory)
    contact = contact_of(config.link.advertise, config.link.listen)
    return Candidate(node, boot_uuid(), contact, config.log.fence, config.log.timing)


def _serve(
    claim: Claim, slots: list[WorkerSlot], counters: Counters, channel: Channel, config: Config, around: Around, alarms: Alarms
) -> ExitStatus | None:
    """One time as the writer. None: back to standing by (the log was released, or another host was faster). Raises HdadError."""
    try:
        log = _open_log(claim, counters, config)
        while not around.has_rings and around.is_wanted:
            around.pause(log.lease.lease.renew_ms * MS)
            log.tick_lease()
        if not around.is_wanted:  # told to end before it began
            log.release_lease()
            log.close()
            claim.let_go()
            channel.send({"event": "drained"})
            return ExitStatus.OK
    except FencedError as error:  # nothing of this host's has been acknowledged yet: a standby has no reason to end
        claim.abandon()
        if not may_wait(config):
            raise
        alarms.set("claim", f"this standby could not take the log over: {error}")
        return None
    keys = of_device(config.log.device, claim.reservation, claim.key) if claim.reservation is not None else None
    loop = WriterLoop(slots, counters, channel, config, log, keys)
    around.tell(RoleEvent.SERVES, owner(log.superblock, [log.lease.lease]), "")
    try:
        while not loop.is_orphaned:
            if loop.run_once(monotonic_ns()):
                continue
            if loop.is_drained or loop.has_stepped_down:
                loop.close()
                claim.let_go()
                if not loop.is_draining:
                    return None
                channel.send({"event": "drained"})
                return ExitStatus.OK
            loop.wait(monotonic_ns())
    except FencedError as error:
        if claim.is_still_ours():
            raise DeviceError(f"{error}; but the reservation is this host's: a path has no key. Registering anew") from error
        raise
    return ExitStatus.OK


def contact_of(advertise: str, listen: Sequence[str]) -> str:
    """What the lease block says of this host: where its link is, so that worker hosts find the writer; without a link its name."""
    if advertise or not listen:
        return advertise or socket.gethostname()
    first = Address.parse(listen[0])
    return str(first._replace(host=socket.gethostname()) if first.host in ("0.0.0.0", "::") else first)


def _open_log(claim: Claim, counters: Counters, config: Config) -> LogAppender:
    """Recover. Raises DeviceError, FencedError, FormatError, CorruptionError."""
    block = counters.writer
    block.set("state", State.RECOVERING)
    started_ns = monotonic_ns()
    block.set("heartbeat_ns", started_ns)
    log = LogAppender.take_over(
        claim.device,
        claim=claim.lease,
        is_cautious=claim.is_cautious,
        accept_damage=config.log.accept_damage,
        on_full=config.log.on_full,
        retain_min_s=config.log.retain_min_s,
        write_bytes_max=config.log.write_bytes_max,
    )
    block.set("recovery_ms", (monotonic_ns() - started_ns) // MS)
    return log

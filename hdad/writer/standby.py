"""A host that is not the writer, or not yet: looks, claims, asks. Runs in the writer's process, before it is the writer and after.

Carries out what writer/election decides. Reads the device without a lock and without a key; opens it for writing only to claim. For a host
that may stand by, a device that cannot be read is no reason to end: it is told, and looked at again. One that may not (no fence, or told
not to wait) is as good as the only host: whatever keeps it from writing ends it, and the supervisor decides.
"""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeVar

from hdad.alarms import Alarms
from hdad.clock import boottime_ns, wall_ns
from hdad.errors import ConfigError, DeviceBusyError, DeviceError, FencedError
from hdad.fabric.reservation import Reservation
from hdad.log.device import BlockDevice
from hdad.log.lease import LeaseBlock, LeasedDevice, LeaseGuard
from hdad.log.opening import read_leases, read_superblock
from hdad.log.ownership import Owner
from hdad.log.superblock import Lease
from hdad.timing import MS
from hdad.writer.election import (
    Candidate,
    Command,
    Outcome,
    Pause,
    Step,
    Verdict,
    View,
    Watch,
    WriteLease,
    Written,
    ask,
    claim,
    drop_key,
    retract,
)
from hdad.writer.role import RoleEvent

Result = TypeVar("Result")
DEVICE_RETRY_NS: Final = 500 * MS


class Surroundings(Protocol):
    """What a standby needs of its process. ``is_wanted`` False: it is to end."""

    is_wanted: bool
    is_asked: bool  # an operator wants this host to be the writer; a standby takes note by setting it back

    def open_reader(self) -> BlockDevice:
        """Read only, without a lock. Raises DeviceError."""

    def open_writer(self) -> BlockDevice:
        """For writing, exclusively on this host. Raises DeviceError (DeviceBusyError: a local process has it)."""

    def open_reservation(self) -> Reservation:
        """Raises DeviceError."""

    def looking(self, is_looking: bool) -> None:
        """A look begins or ends: a sign of life, and what a hanging device is told by."""

    def pause(self, ns: int) -> None:
        """At most so long; shorter when there is something to hear."""

    def tell(self, event: RoleEvent, owner: Owner | None, text: str) -> None:
        """To whom it may concern: this host's role, and who the writer is."""


@dataclass(slots=True)
class Claim:
    """The log is this host's. ``lease``: its block as it is; ``reservation``: None without one."""

    device: BlockDevice
    lease: Lease
    is_cautious: bool
    reservation: Reservation | None
    key: int

    def let_go(self) -> None:
        """After the lease has said RELEASED. The reservation stays until a successor takes it: see writer/election."""
        if self.reservation is not None:
            self.reservation.close()

    def abandon(self) -> None:
        """Another host was faster: this one keeps no key, and lets the device go."""
        if self.reservation is not None:
            try:
                carry_out_steps(drop_key(self.key), self.reservation)
            except DeviceError:  # the key is gone already, or the device is: either way nothing is left to be done
                pass
            self.reservation.close()
        self.device.close()

    def is_still_ours(self) -> bool:
        """After a conflict: whether the reservation is this host's all the same. Then a path has no key."""
        try:
            held = self.reservation.read_reservation() if self.reservation is not None else None
        except DeviceError:  # it cannot be asked: believe the conflict
            return False
        return held is not None and held.key == self.key


class Standby:
    """``may_wait`` False: another writer that is alive ends the process (BUSY), and so does a device that fails (DEVICE). A second daemon
    on the writer's own host is no standby, and ends in any case (BUSY)."""

    def __init__(self, me: Candidate, around: Surroundings, alarms: Alarms, *, may_wait: bool) -> None:
        self._me = me
        self._around = around
        self._alarms = alarms
        self._may_wait = may_wait
        self._logger = logging.getLogger("hdad.standby")
        self._reader: BlockDevice | None = None
        self._told: tuple[object, ...] = ()
        self._has_claimed = False
        self._asking: Lease | None = None
        self._asked_ns = 0

    def wait_turn(self, hold_back_until_ns: int = 0) -> Claim | None:
        """Watch until the log is this host's. None: this process is to end. ``hold_back_until_ns``: others first until then.

        Raises DeviceBusyError and DeviceError (see ``may_wait``), ConfigError (another host has this identity), FormatError,
        ReservationLackingError.
        """
        watch = Watch(self._me, hold_back_until_ns)
        try:
            while self._around.is_wanted:
                view = self._look()
                if view is None:
                    self._around.pause(DEVICE_RETRY_NS)
                    continue
                verdict = watch.judge(view)
                self._consider(verdict, watch)
                if verdict in (Verdict.FREE, Verdict.DEAD):
                    if (found := self._claim(view, verdict, watch)) is not None:
                        return found
                    self._around.pause(self._me.timing.renew_ms * MS)
                else:
                    self._consider_asking(view, watch)
                    self._around.pause(self._me.timing.watch_ms * MS)
            return None
        finally:
            self._close_reader()

    # -- looking -----------------------------------------------------------------------------------------------------------------------

    def _look(self) -> View | None:
        """None: the device cannot be read now."""
        self._around.looking(True)
        begun_ns = boottime_ns()
        try:
            if self._reader is None:
                self._reader = self._around.open_reader()
            superblock = read_superblock(self._reader)
            leases = tuple(read_leases(self._reader, superblock.uuid))
        except DeviceError as error:
            if not self._may_wait:
                raise
            self._alarms.set("standby", f"this standby cannot see the log: {error}")
            self._close_reader()
            return None
        finally:
            self._around.looking(False)
        self._alarms.clear("standby", "this standby sees the log again")
        return View(superblock, leases, begun_ns, boottime_ns())

    def _close_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _consider(self, verdict: Verdict, watch: Watch) -> None:
        """Tell what is news, and end what cannot go on."""
        owner = watch.owner
        if verdict is Verdict.DOUBLE:
            raise ConfigError(
                "supervisor", "supervisor.node_id", self._me.node.hex(),
                "another host that is alive writes lease blocks with this identity (cloned machine-id?): give each host its own",
            )  # fmt: skip
        if verdict is Verdict.ALIVE and not self._may_wait:
            who = f"{owner.contact or owner.node.hex()}, writer epoch {owner.epoch}" if owner is not None else "somebody"
            raise DeviceBusyError(f"another host writes to this log: {who}. With log.fence set, this host could stand by")
        if watch.is_unfenced:
            text = "the writer's host has log.fence = \"none\": nothing shows that it has stopped, so this standby does not take over"
            self._alarms.set("unfenced", text)
        else:
            self._alarms.clear("unfenced", "the writer's host has a fence")
        if verdict is Verdict.ALIVE:
            self._alarms.clear("claim", "there is a writer")
        if self._may_wait and verdict in (Verdict.ALIVE, Verdict.WAIT):
            told = (verdict, replace(owner, lease=None) if owner is not None else None)
            if told != self._told:
                self._watches(owner, verdict.value)
                self._told = told

    def _watches(self, owner: Owner | None, why: str) -> None:
        self._has_claimed = False
        self._around.tell(RoleEvent.WATCHES, owner, why)

    # -- claiming ----------------------------------------------------------------------------------------------------------------------

    def _claim(self, view: View, verdict: Verdict, watch: Watch) -> Claim | None:
        owner, self._told = watch.owner, ()
        if self._has_claimed:  # a claim that came to nothing, or this host's time as the writer, is over
            self._watches(owner, "")
        self._has_claimed = True
        who = "nobody" if owner is None else owner.contact or owner.node.hex()
        why = "has stopped" if verdict is Verdict.FREE else "has been silent for the takeover timeout"
        self._around.tell(RoleEvent.CLAIMS, owner, f"the last writer, {who}, {why}")
        self._logger.info("claiming the log: its last writer, %s, %s", who, why)
        device: BlockDevice | None = None
        reservation: Reservation | None = None
        outcome: Outcome | None = None
        try:
            device = self._around.open_writer()
            reservation = self._around.open_reservation() if self._me.fence == "reservation" else None
            outcome = self._carry_out(claim(self._me, view, watch.holder), device, reservation)
        except DeviceError as error:
            self._drop_key(reservation)
            is_mended_by_waiting = error.status == DeviceError.status or isinstance(error, FencedError | DeviceBusyError)
            is_second_here = isinstance(error, DeviceBusyError) and owner is not None and owner.node == self._me.node
            if is_second_here or not (self._may_wait and is_mended_by_waiting):
                raise
            self._lost(str(error))
        finally:
            if outcome is None or not outcome.won:
                _close(device, reservation)
        watch.claimed(boottime_ns(), outcome.holder if outcome is not None else watch.holder)
        if outcome is None or outcome.lease is None or device is None:
            if outcome is not None and not self._may_wait:
                raise DeviceError(f"this host could not take the log over, and may not stand by: {outcome.reason}")
            if outcome is not None:
                self._lost(outcome.reason)
            return None
        self._asking = None
        self._alarms.clear("claim", "the log is this host's")
        self._logger.info("the log is this host's: %s", outcome.reason)
        if self._me.fence == "lease-unsafe":
            device = LeasedDevice(device, LeaseGuard(self._me.timing.limit_ms * MS, outcome.begun_ns))
        return Claim(device, outcome.lease, outcome.is_cautious, reservation, self._me.key)

    def _lost(self, reason: str) -> None:
        self._alarms.set("claim", f"this standby could not take the log over: {reason}")

    def _drop_key(self, reservation: Reservation | None) -> None:
        if reservation is not None:
            try:
                carry_out_steps(drop_key(self._me.key), reservation)
            except DeviceError as error:
                self._logger.warning("%s", error)

    def _carry_out(self, plan: Generator[Step, Any, Result], device: BlockDevice, reservation: Reservation | None) -> Result:
        """Do the plan's steps and return its result. Raises DeviceError."""
        answer: object = None
        try:
            while True:
                answer = self._do(plan.send(answer), device, reservation)
        except StopIteration as stop:
            result: Result = stop.value
            return result

    def _do(self, step: Step, device: BlockDevice, reservation: Reservation | None) -> object:
        if isinstance(step, Command):
            assert reservation is not None
            return getattr(reservation, step.name)(*step.arguments)
        if isinstance(step, WriteLease):
            block = LeaseBlock(device, replace(step.lease, counter=step.lease.counter - 1))
            begun_ns = boottime_ns()
            block.write(since_ns=wall_ns())
            return Written(block.lease, begun_ns, boottime_ns())
        if isinstance(step, Pause):
            until_ns = boottime_ns() + step.ns
            while (left_ns := until_ns - boottime_ns()) > 0:
                self._around.pause(left_ns)
            return None
        begun_ns = boottime_ns()
        superblock = read_superblock(device)
        return View(superblock, tuple(read_leases(device, superblock.uuid)), begun_ns, boottime_ns())

    # -- asking ------------------------------------------------------------------------------------------------------------------------

    def _consider_asking(self, view: View, watch: Watch) -> None:
        """An operator wants this host to be the writer: ask the one that is, by this host's lease block; not for ever."""
        plan: Generator[Step, Any, Lease | None]
        if self._around.is_asked and (watch.owner is None or watch.owner.is_released):
            self._around.is_asked = False
            watch.hurry()
            return
        if self._around.is_asked:
            self._around.is_asked = False
            self._asked_ns = view.begun_ns
            plan = ask(self._me, view)
        elif self._asking is not None and view.begun_ns - self._asked_ns > self._me.timing.takeover_ms * MS:
            self._alarms.tell("promote: the writer did not release the log within the takeover timeout")
            plan = retract(self._me, self._asking)
        else:
            return
        device: BlockDevice | None = None
        reservation: Reservation | None = None
        self._asking = None
        try:
            device = self._around.open_writer()
            reservation = self._around.open_reservation() if self._me.fence == "reservation" else None
            self._asking = self._carry_out(plan, device, reservation)
        except DeviceError as error:
            self._alarms.tell(f"promote: {error}")
        finally:
            _close(device, reservation)
        watch.claimed(boottime_ns(), watch.holder)


def carry_out_steps(plan: Generator[Step, Any, None], reservation: Reservation) -> None:
    """Of a plan that consists of commands to the reservation only. Raises DeviceError."""
    answer: object = None
    try:
        while True:
            step = plan.send(answer)
            assert isinstance(step, Command)
            answer = getattr(reservation, step.name)(*step.arguments)
    except StopIteration:
        return


def _close(device: BlockDevice | None, reservation: Reservation | None) -> None:
    if device is not None:
        device.close()
    if reservation is not None:
        reservation.close()

"""A host that is not the writer: what ends it, what it waits for, and its role; for hosts in time see tests/sim/fence."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace

import pytest

import hdad.writer.standby
from hdad.alarms import Alarms
from hdad.errors import DeviceBusyError, DeviceError, DeviceLostError, ReservationLackingError
from hdad.log.appender import LogAppender
from hdad.log.create import lay_out
from hdad.log.geometry import plan
from hdad.log.ownership import Owner
from hdad.log.superblock import Superblock
from hdad.timing import MS, Timing
from hdad.writer.election import Candidate
from hdad.writer.role import Role, RoleEvent, next_role
from hdad.writer.standby import Claim, Standby
from tests.sim.disk import Disk
from tests.sim.reservation import Lun, ModelReservation

SIZE = 16 << 20
TIMING = Timing(1000, 300, 50)


class Process:
    """writer/standby.Surroundings with a clock of its own. ``reading``, ``writing``: called when the device is opened; may raise."""

    def __init__(self, fence: str, *, may_wait: bool, rounds: int = 20) -> None:
        self.disk = Disk(SIZE)
        lay_out(self.disk, Superblock(bytes(range(16)), 1, 0, plan(SIZE, 512), 0))  # type: ignore[arg-type]
        self.is_wanted, self.is_asked = True, False
        self.now_ns, self.rounds = 10**12, rounds
        self.reading: Callable[[], object] = lambda: None
        self.writing: Callable[[], object] = lambda: None
        self.role = Role.NONE
        self.events: list[RoleEvent] = []
        self.alarms: dict[str, str] = {}
        channel = SimpleNamespace(send=self._hear)
        me = Candidate(b"a" * 16, b"k" * 16, "here", fence, TIMING)
        self.standby = Standby(me, self, Alarms(channel, logging.getLogger("test")), may_wait=may_wait)  # type: ignore[arg-type]

    def _hear(self, message: dict[str, str]) -> bool:
        if message["event"] == "alarm":
            self.alarms[message["key"]] = message["text"]
        elif message["event"] == "clear":
            self.alarms.pop(message["key"], None)
        return True

    def open_reader(self) -> Disk:
        self.reading()
        return self.disk

    def open_writer(self) -> Disk:
        self.writing()
        return self.disk

    def open_reservation(self) -> None:
        raise ReservationLackingError("none here")

    def looking(self, is_looking: bool) -> None:
        pass

    def pause(self, ns: int) -> None:
        self.now_ns += ns
        self.rounds -= 1
        self.is_wanted = self.rounds > 0

    def tell(self, event: RoleEvent, owner: Owner | None, text: str) -> None:
        self.role = next_role(self.role, event)
        self.events.append(event)

    def run(self, monkeypatch: pytest.MonkeyPatch) -> Claim | None:
        monkeypatch.setattr(hdad.writer.standby, "boottime_ns", lambda: self.now_ns)
        return self.standby.wait_turn()


def failing(error: DeviceError) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


def test_a_log_without_a_writer_is_claimed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process("none", may_wait=False)
    claim = process.run(monkeypatch)
    assert claim is not None and not claim.is_cautious and process.events == [RoleEvent.CLAIMS]


@pytest.mark.parametrize("error", [DeviceError("EIO"), DeviceLostError("gone"), DeviceBusyError("another hdad")])
@pytest.mark.parametrize("where", ["reading", "writing"])
def test_a_host_that_may_not_stand_by_ends_with_what_its_device_says(
    monkeypatch: pytest.MonkeyPatch, error: DeviceError, where: str
) -> None:
    process = Process("none", may_wait=False)
    setattr(process, where, failing(error))
    with pytest.raises(type(error)):
        process.run(monkeypatch)
    assert not process.alarms and RoleEvent.WATCHES not in process.events


@pytest.mark.parametrize("error", [DeviceError("EIO"), DeviceLostError("gone"), DeviceBusyError("another hdad")])
@pytest.mark.parametrize("where", ["reading", "writing"])
def test_a_standby_tells_what_its_device_says_and_tries_again(monkeypatch: pytest.MonkeyPatch, error: DeviceError, where: str) -> None:
    process = Process("lease-unsafe", may_wait=True)
    setattr(process, where, failing(error))
    assert process.run(monkeypatch) is None
    assert str(error) in process.alarms["standby" if where == "reading" else "claim"]
    assert process.events.count(RoleEvent.CLAIMS) > 1 or where == "reading", "each claim that fails ends before the next begins"
    setattr(process, where, lambda: None)
    process.is_wanted, process.rounds = True, 20
    assert process.run(monkeypatch) is not None and not process.alarms
    assert process.role is Role.TAKING_OVER


def test_a_device_without_reservations_ends_a_host_that_is_to_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process("reservation", may_wait=True)
    with pytest.raises(ReservationLackingError):
        process.run(monkeypatch)


def test_a_host_whose_time_as_the_writer_is_over_stands_by_before_it_claims_again(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process("lease-unsafe", may_wait=True)
    assert process.run(monkeypatch) is not None
    process.tell(RoleEvent.SERVES, None, "")
    process.tell(RoleEvent.RELEASES, None, "")
    process.now_ns += 10_000 * MS
    assert process.run(monkeypatch) is not None
    assert process.events[-2:] == [RoleEvent.WATCHES, RoleEvent.CLAIMS]


def test_a_second_daemon_on_the_writers_own_host_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process("lease-unsafe", may_wait=True)
    claim = process.run(monkeypatch)
    assert claim is not None
    LogAppender.take_over(process.disk, claim=claim.lease)  # type: ignore[arg-type]
    process.writing = failing(DeviceBusyError("another hdad writes to it"))
    with pytest.raises(DeviceBusyError):
        process.run(monkeypatch)


def test_a_writer_that_steps_down_leaves_the_reservation_to_its_successor() -> None:
    """Without any there would be a moment in which the array takes the late write of a writer fenced long before (fence seed 648)."""
    lun = Lun()
    reservation = ModelReservation(lun, "here")
    assert reservation.register(7) and reservation.reserve(7)
    disk = Disk(SIZE)
    Claim(disk, None, False, reservation, 7).let_go()  # type: ignore[arg-type]
    assert lun.holder is not None and set(lun.keys.values()) == {7}
    assert not lun.may_write("elsewhere")


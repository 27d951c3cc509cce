"""The writer's key on paths that appear while it serves: registered where it lacks, and never by a host that was taken over from."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import hdad.writer.keys
from hdad.errors import DeviceError, FencedError
from hdad.log.ownership import reservation_key
from hdad.writer.keys import LOOK_NS, Keys
from tests.sim.reservation import Lun, ModelReservation

A, B = reservation_key(b"a" * 16), reservation_key(b"b" * 16)


class Scene:
    """Host a writes by two paths, and may get a third."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, is_readable: bool = True) -> None:
        self.lun = Lun()
        self.now_ns = LOOK_NS
        self.paths = 2
        self.before_path: Callable[[], object] = lambda: None
        monkeypatch.setattr(hdad.writer.keys, "monotonic_ns", lambda: self.now_ns)
        self.reservation = ModelReservation(self.lun, "a", is_readable=is_readable)
        assert self.reservation.register(A) and self.reservation.reserve(A)
        self.keys = Keys(self.reservation, A, lambda: [str(number) for number in range(self.paths)], self._open)

    def _open(self, path: str) -> ModelReservation:
        self.before_path()
        return ModelReservation(self.lun, "a", [int(path)])

    def are_missing(self) -> bool:
        self.now_ns += LOOK_NS
        return self.keys.are_missing()

    def taken_over(self) -> None:
        other = ModelReservation(self.lun, "b")
        assert other.register(B) and other.preempt_and_abort(B, A)


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_path_that_is_added_gets_the_key(monkeypatch: pytest.MonkeyPatch, is_readable: bool) -> None:
    scene = Scene(monkeypatch, is_readable=is_readable)
    assert not scene.are_missing()
    scene.paths = 3
    assert scene.are_missing() and not scene.lun.may_write("a", 2)
    scene.keys.register()
    assert scene.lun.may_write("a", 2) and scene.lun.holder == ("a", 0) and not scene.are_missing()


def test_a_key_that_is_gone_from_a_path_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.lun.remove([("a", 1)])
    assert scene.are_missing()
    scene.keys.register()
    assert scene.lun.may_write("a", 1) and not scene.are_missing()


def test_keys_are_looked_at_now_and_then_only(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    assert not scene.are_missing()
    scene.paths = 3
    assert not scene.keys.are_missing()


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_host_that_was_taken_over_from_gets_no_key(monkeypatch: pytest.MonkeyPatch, is_readable: bool) -> None:
    scene = Scene(monkeypatch, is_readable=is_readable)
    scene.paths = 3
    scene.taken_over()
    asked: list[bool] = []
    scene.before_path = lambda: asked.append(True)
    with pytest.raises(FencedError):
        scene.keys.register()
    assert not asked and not scene.lun.may_write("a"), "not even for a moment"


@pytest.mark.parametrize("is_readable", [True, False])
def test_a_host_that_is_taken_over_from_while_it_registers_gives_the_key_back(monkeypatch: pytest.MonkeyPatch, is_readable: bool) -> None:
    scene = Scene(monkeypatch, is_readable=is_readable)
    scene.paths = 3

    def once() -> None:
        scene.before_path = lambda: None
        scene.taken_over()

    scene.before_path = once
    with pytest.raises(FencedError):
        scene.keys.register()
    assert not scene.lun.may_write("a") and scene.lun.may_write("b")


def test_a_path_that_fails_just_then_is_left_for_the_next_look(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.paths = 3
    scene.lun.offline.add(("a", 2))
    scene.keys.register()
    assert scene.lun.may_write("a", 0) and scene.lun.may_write("a", 1), "REGISTER on the whole device would have taken them away"
    scene.lun.offline.clear()
    assert scene.are_missing()
    scene.keys.register()
    assert not scene.are_missing()


def test_keys_that_cannot_be_read_now_are_no_reason_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch)
    scene.lun.offline |= {("a", 0), ("a", 1)}
    assert not scene.are_missing()
    with pytest.raises(DeviceError):
        scene.keys.register()

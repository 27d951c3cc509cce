"""How long a writer may trust its own lease, and which host this is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import hdad.log.lease
import hdad.log.node
from hdad.errors import ConfigError, FencedError
from hdad.log.geometry import LEASES_OFFSET, UNIT
from hdad.log.lease import LeaseBlock, LeasedDevice, LeaseGuard
from hdad.log.node import node_uuid
from hdad.log.superblock import Lease, LeaseState, decode_lease

UUID = bytes(range(16))
LIMIT = 100


class Clock:
    """``boottime_ns``, and a device whose writes take ``takes_ns``."""

    path, size, logical_block_size, is_block = "d", 1 << 20, 512, True

    def __init__(self) -> None:
        self.now_ns = 0
        self.takes_ns = 0
        self.writes: list[tuple[int, bytes]] = []

    def write(self, address: int, buffers: Any, durable: bool = True) -> None:
        self.now_ns += self.takes_ns
        self.writes.append((address, b"".join(bytes(buffer) for buffer in buffers)))

    def read(self, address: int, size: int) -> memoryview:
        return memoryview(bytes(size))

    def flush(self) -> None: ...
    def close(self) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(hdad.log.lease, "boottime_ns", lambda: found.now_ns)
    return found


def test_nothing_is_submitted_once_the_lease_is_too_old(clock: Clock) -> None:
    device = LeasedDevice(clock, LeaseGuard(LIMIT, 0))
    clock.now_ns = LIMIT
    device.write(1 << 20, [b"x"])
    clock.now_ns = LIMIT + 1
    with pytest.raises(FencedError, match="lease is"):
        device.write(1 << 20, [b"y"])
    assert [content for _, content in clock.writes] == [b"x"]


def test_a_write_that_returns_when_the_lease_is_over_is_not_called_done(clock: Clock) -> None:
    device = LeasedDevice(clock, LeaseGuard(LIMIT, 0))
    clock.takes_ns = LIMIT + 1
    with pytest.raises(FencedError):
        device.write(1 << 20, [b"x"])
    assert clock.writes, "it may have landed all the same"


def test_a_renewal_counts_from_its_beginning(clock: Clock) -> None:
    device = LeasedDevice(clock, LeaseGuard(LIMIT, 0))
    clock.now_ns, clock.takes_ns = 40, 50
    device.write(LEASES_OFFSET + 7 * UNIT, [b"lease"])
    assert device.guard.renewed_ns == 40
    clock.takes_ns = 0
    clock.now_ns = 40 + LIMIT
    device.write(1 << 20, [b"x"])
    clock.now_ns += 1
    with pytest.raises(FencedError):
        device.write(1 << 20, [b"y"])


def test_a_renewal_that_returns_after_the_old_lease_was_over_renews_nothing(clock: Clock) -> None:
    """A standby that had not seen it by then may be taking over."""
    device = LeasedDevice(clock, LeaseGuard(LIMIT, 0))
    clock.now_ns, clock.takes_ns = 90, 20
    with pytest.raises(FencedError):
        device.write(LEASES_OFFSET, [b"lease"])
    assert device.guard.renewed_ns == 0


def test_only_lease_blocks_renew(clock: Clock) -> None:
    device = LeasedDevice(clock, LeaseGuard(LIMIT, 0))
    clock.now_ns = 50
    for address in (0, UNIT, LEASES_OFFSET + 8 * UNIT, 1 << 20):
        device.write(address, [b"x"])
    assert device.guard.renewed_ns == 0


def test_each_tick_counts_and_a_new_state_has_its_time(clock: Clock) -> None:
    block = LeaseBlock(clock, Lease(2, UUID, b"n" * 16, 4, 10, 5, 0))
    block.write(6)
    block.write(state=LeaseState.RELEASED)
    found = [decode_lease(content, UUID) for _, content in clock.writes]
    assert [address for address, _ in clock.writes] == [LEASES_OFFSET + 2 * UNIT] * 2
    assert [(lease.counter, lease.durable_lsn, lease.state) for lease in found if lease is not None] == [
        (11, 6, LeaseState.ACTIVE), (12, 6, LeaseState.RELEASED),
    ]  # fmt: skip
    assert found[0] is not None and found[1] is not None and not found[0].since_ns and found[1].since_ns


# -- which host --------------------------------------------------------------------------------------------------------------------------


def test_the_configured_identity_comes_first_then_the_file_then_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = tmp_path / "machine-id"
    machine.write_text("cc" * 16 + "\n")
    monkeypatch.setattr(hdad.log.node, "MACHINE_ID", machine)
    assert node_uuid("", str(tmp_path)) == b"\xcc" * 16
    (tmp_path / "node-id").write_text("bb" * 16 + "\n")
    assert node_uuid("", str(tmp_path)) == b"\xbb" * 16
    assert node_uuid("aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa", str(tmp_path)) == b"\xaa" * 16


def test_a_host_without_an_identity_makes_one_up_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdad.log.node, "MACHINE_ID", tmp_path / "none")
    first = node_uuid("", str(tmp_path))
    assert node_uuid("", str(tmp_path)) == first and (tmp_path / "node-id").exists()
    with pytest.raises(ConfigError, match="cannot be made"):
        node_uuid("", str(tmp_path / "missing"))


def test_a_file_that_holds_no_uuid_is_told(tmp_path: Path) -> None:
    (tmp_path / "node-id").write_text("host 1")
    with pytest.raises(ConfigError, match="a uuid"):
        node_uuid("", str(tmp_path))

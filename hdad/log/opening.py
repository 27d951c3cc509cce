"""Reading superblock and leases from a device, and carrying out recovery's plan. Edge helpers that writer, reader and inspect share."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

from hdad.errors import DeviceError, ForeignDeviceError
from hdad.log.device import BlockDevice
from hdad.log.geometry import LEASE_COUNT, LEASES_OFFSET, UNIT
from hdad.log.recovery import Read
from hdad.log.superblock import Lease, Superblock, check_device, choose, decode_lease, decode_superblock

Decision = TypeVar("Decision")


def copy_addresses(size: int) -> list[int]:
    """Where superblock copies lie on a device of ``size`` bytes."""
    end = size // UNIT * UNIT
    return [address for address in (0, UNIT, end - 2 * UNIT, end - UNIT) if address >= 0]


def read_superblock(device: BlockDevice) -> Superblock:
    """The superblock, checked against the device. A copy that cannot be read counts like one that is not valid, while another is.

    Raises ForeignDeviceError, GeometryMismatchError, DeviceError.
    """
    if device.size < 4 * UNIT:
        raise ForeignDeviceError(f"{device.path}: {device.size} bytes are too small for an hdad log. Make one with: hdactl log format")
    copies: list[Superblock | None] = []
    unreadable: DeviceError | None = None
    for address in copy_addresses(device.size):
        try:
            view = device.read(address, UNIT)
        except DeviceError as error:  # a latent sector error: that is what the other copies are for, and the next writer writes it anew
            unreadable = error
        else:
            copies.append(decode_superblock(view))
    if unreadable is not None and not any(copies):
        raise unreadable
    try:
        superblock = choose(copies)
    except ForeignDeviceError as error:
        raise ForeignDeviceError(f"{device.path}: {error}") from error
    check_device(superblock, device.size, device.logical_block_size)
    return superblock


def read_leases(device: BlockDevice, uuid: bytes) -> list[Lease | None]:
    """All lease blocks, by slot."""
    view = device.read(LEASES_OFFSET, LEASE_COUNT * UNIT)
    return [decode_lease(view[slot * UNIT : (slot + 1) * UNIT], uuid) for slot in range(LEASE_COUNT)]


def durable_evidence(leases: list[Lease | None]) -> int:
    """The highest LSN that a lease calls durable; 0: none."""
    return max((lease.durable_lsn for lease in leases if lease is not None), default=0)


def carry_out(
    device: BlockDevice, plan: Generator[Read, memoryview, Decision], between: Callable[[], object] = lambda: None
) -> Decision:
    """Do the plan's reads and return its decision; ``between`` is called before each. Raises what the plan raises, and DeviceError."""
    try:
        read = next(plan)
        while True:
            between()
            read = plan.send(device.read(read.address, read.size))
    except StopIteration as stop:
        decision: Decision = stop.value
        return decision

"""A writer's own lease: its block on the device, and how long it may be trusted. Edge.

A writer on a device without reservations has nothing but its lease to keep it from writing after another host has taken over. So it looks
at the lease's age at both ends of each write: before, because what is not submitted does no harm; after, because a write that returns while
the lease is still good had landed before anybody could take over, hence may be acknowledged (hdad/timing has the timeline).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from hdad.clock import boottime_ns, monotonic_ns, wall_ns
from hdad.errors import FencedError
from hdad.log.device import BlockDevice, Buffer, aligned_buffer
from hdad.log.geometry import LEASE_COUNT, LEASES_OFFSET, UNIT
from hdad.log.node import boot_uuid, node_uuid
from hdad.log.ownership import own_slot
from hdad.log.superblock import Lease, LeaseState, Superblock, encode_lease

LEASES_END: Final = LEASES_OFFSET + LEASE_COUNT * UNIT
SECOND_NS: Final = 1_000_000_000


class LeaseBlock:
    """What this host's lease block says, and the next tick of it."""

    def __init__(self, device: BlockDevice, lease: Lease) -> None:
        self.lease = lease
        self._device = device
        self._buffer = aligned_buffer(UNIT)

    def next(self, durable_lsn: int | None = None, **changes: Any) -> tuple[int, memoryview]:
        """The next tick: its address and bytes, to be written before the next is asked for. ``changes``: other fields of the lease."""
        old = self.lease
        durable_lsn = old.durable_lsn if durable_lsn is None else durable_lsn
        if "state" in changes and changes["state"] is not old.state:
            changes.setdefault("since_ns", wall_ns())
        self.lease = replace(old, counter=old.counter + 1, durable_lsn=durable_lsn, label_ns=wall_ns(), **changes)
        self._buffer[:] = encode_lease(self.lease)
        return LEASES_OFFSET + self.lease.slot * UNIT, self._buffer

    def write(self, durable_lsn: int | None = None, **changes: Any) -> None:
        """Tick here and now. DURABLE on return. Raises DeviceError."""
        address, buffer = self.next(durable_lsn, **changes)
        self._device.write(address, [buffer])


class LeaseGuard:
    """How long this writer may still write. Counted from the beginning of its last lease write that returned in time."""

    def __init__(self, limit_ns: int, renewed_ns: int) -> None:
        self.limit_ns = limit_ns
        self.renewed_ns = renewed_ns

    def check(self) -> None:
        """Raises FencedError when the lease is too old."""
        age_ns = boottime_ns() - self.renewed_ns
        if age_ns > self.limit_ns:
            raise FencedError(
                f"this writer's lease is {age_ns / SECOND_NS:.1f} s old, it was good for {self.limit_ns / SECOND_NS:.1f} s: "
                "another host may have taken the log over since"
            )


class LeasedDevice:
    """A device that takes no write, and calls none done, unless the lease is good. Writes to the lease blocks renew it."""

    def __init__(self, device: BlockDevice, guard: LeaseGuard) -> None:
        self._device = device
        self.guard = guard
        self.path, self.size = device.path, device.size
        self.logical_block_size, self.is_block = device.logical_block_size, device.is_block

    def read(self, address: int, size: int) -> memoryview:
        """As the device's."""
        return self._device.read(address, size)

    def write(self, address: int, buffers: Sequence[Buffer], durable: bool = True) -> None:
        """As the device's. Raises FencedError too: then it may have landed or not, and nobody may be told that it has.

        A renewal counts from its beginning, and only if it has returned before the lease that it renews was over: a standby that has
        not seen it by then may be taking over.
        """
        begun_ns = boottime_ns()
        self.guard.check()
        self._device.write(address, buffers, durable)
        self.guard.check()
        if LEASES_OFFSET <= address < LEASES_END:
            self.guard.renewed_ns = begun_ns

    def flush(self) -> None:
        """As the device's."""
        self._device.flush()

    def close(self) -> None:
        """As the device's."""
        self._device.close()


class Renewal:
    """Ticks a claim while recovery takes its time."""

    def __init__(self, lease: LeaseBlock) -> None:
        self._lease = lease
        self._due_ns = monotonic_ns() + lease.lease.renew_ms * 1_000_000

    def __call__(self) -> None:
        now_ns = monotonic_ns()
        if now_ns >= self._due_ns:
            self._lease.write()
            self._due_ns = now_ns + self._lease.lease.renew_ms * 1_000_000


def lone_claim(superblock: Superblock, leases: Sequence[Lease | None], contact: str) -> Lease:
    """The lease block of this host where no election was held. Its epoch is newer than whatever anybody has claimed."""
    node = node_uuid()
    slot = own_slot(superblock, leases, node)
    old = leases[slot]
    epoch = max(superblock.writer_epoch, *(lease.writer_epoch for lease in leases if lease is not None), 0) + 1
    counter = old.counter if old is not None else 0
    return Lease(slot, superblock.uuid, node, epoch, counter, 0, 0, contact, LeaseState.CLAIMING, boot_uuid())

"""Worker slots: the rings and doorbells between one worker and the writer.

The supervisor makes all of them before it forks anybody; children inherit them and nothing is ever passed by name (memfd: nothing is
left behind by kill -9, and no resource tracker unlinks it). A slot outlives the workers and writers that use it: a successor goes on
at head and tail. Does not know what the bytes in the rings mean.

    data ring: worker → writer, frames          data bell: rung by every worker, heard by the writer (one eventfd for all)
    back ring: writer → worker, backring.py     back bell: rung by the writer, heard by this worker (messages, and room in the data ring)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from hdad._core import Ring
from hdad.exchange.backring import BACK_RING_BYTES
from hdad.limits import REMOTE_WORKERS_MAX, RING_BYTES_MAX, RING_BYTES_MIN, WORKERS_MAX

RING_BLOCK: Final = 4096  # frames in a data ring are whole multiples of it: DMA can start at any of them


@dataclass(frozen=True, slots=True)
class WorkerSlot:
    """What one worker and the writer share."""

    index: int
    data: Ring
    back: Ring
    data_bell: int
    back_bell: int


def create_slots(count_max: int, ring_bytes: int) -> list[WorkerSlot]:
    """Make ``count_max`` slots with data rings of ``ring_bytes`` (rounded up to a power of two). Raises ValueError or OSError."""
    if not 1 <= count_max <= WORKERS_MAX:
        raise ValueError(f"{count_max} worker slots; allowed: 1 to {WORKERS_MAX}")
    if not RING_BYTES_MIN <= ring_bytes <= RING_BYTES_MAX:
        raise ValueError(f"rings of {ring_bytes} bytes; allowed: {RING_BYTES_MIN} to {RING_BYTES_MAX}")
    capacity = 1 << (ring_bytes - 1).bit_length()
    data_bell = create_bell()
    return [
        WorkerSlot(
            index,
            Ring.create(capacity, f"hdad-data-{index}"),
            Ring.create(BACK_RING_BYTES, f"hdad-back-{index}"),
            data_bell,
            create_bell(),
        )
        for index in range(count_max)
    ]


def create_remote_slots(local: list[WorkerSlot], count: int, ring_bytes: int) -> list[WorkerSlot]:
    """Slots for workers of other hosts, numbered after the ``local`` ones, whose data bell they share; one back bell, heard by the link.

    Raises ValueError or OSError.
    """
    if not 0 <= count <= REMOTE_WORKERS_MAX:
        raise ValueError(f"{count} remote slots; allowed: 0 to {REMOTE_WORKERS_MAX}")
    if not count:
        return []
    capacity = 1 << (ring_bytes - 1).bit_length()
    back_bell = create_bell()
    return [
        WorkerSlot(
            index,
            Ring.create(capacity, f"hdad-data-{index}"),
            Ring.create(BACK_RING_BYTES, f"hdad-back-{index}"),
            local[0].data_bell,
            back_bell,
        )
        for index in range(len(local), len(local) + count)
    ]


def create_bell() -> int:
    """A non-blocking, close-on-exec eventfd."""
    return os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)


def ring_bell(bell: int) -> None:
    """Wake whoever selects on the bell. Never blocks: a counter that is full has woken him already."""
    try:
        os.eventfd_write(bell, 1)
    except BlockingIOError:
        pass

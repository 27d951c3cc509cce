"""When a group of admitted frames becomes a write. Pure.

A write that is short and alone is made by the loop itself (a thread costs two wake-ups); otherwise threads make up to ``inflight_max``
writes at a time. While writes are in flight frames gather, so groups grow by themselves with the load, and no timer adds latency.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

INLINE_BYTES_MAX: Final = 256 * 1024  # below, the copy to the device takes less than handing it to a thread
GROUP_BYTES_MIN: Final = 128 * 1024  # a further write in flight pays only if it carries this much
READY_MAX: Final = 3  # writes that wait for a thread: it goes from one to the next at once, while the loop does something else
READY_BYTES_MIN: Final = 1024 * 1024  # less than this waits where it can still grow


class Submit(IntEnum):
    """What to do with the open group."""

    WAIT = 0  # let it grow
    INLINE = 1  # write it here and now
    THREAD = 2  # hand it to a thread


@dataclass(frozen=True, slots=True)
class CommitPolicy:
    """``inflight_max``: writes in flight at most, 1 or more."""

    inflight_max: int

    def decide(self, open_bytes: int, inflight_count: int) -> Submit:
        """What to do with ``open_bytes`` of admitted frames while ``inflight_count`` writes are in flight.

        | open bytes        | in flight     | answer | reason                                          |
        |-------------------|---------------|--------|-------------------------------------------------|
        | 0                 | any           | WAIT   | nothing to write                                |
        | <= INLINE_MAX     | 0             | INLINE | shortest way to durable                         |
        | > INLINE_MAX      | 0             | THREAD | the loop goes on admitting meanwhile            |
        | < GROUP_MIN       | 1 ... max-1   | WAIT   | it grows until the present write has ended      |
        | >= GROUP_MIN      | 1 ... max-1   | THREAD | keeps the device busy                           |
        | < READY_MIN       | max           | WAIT   | it grows until one of them has ended            |
        | >= READY_MIN      | max           | THREAD | it waits for the first thread that is free      |
        | any               | max + READY   | WAIT   | the device is the bound                         |
        """
        if not open_bytes or inflight_count >= self.inflight_max + READY_MAX:
            return Submit.WAIT
        if inflight_count >= self.inflight_max:
            return Submit.THREAD if open_bytes >= READY_BYTES_MIN else Submit.WAIT
        if not inflight_count:
            return Submit.INLINE if open_bytes <= INLINE_BYTES_MAX else Submit.THREAD
        return Submit.THREAD if open_bytes >= GROUP_BYTES_MIN else Submit.WAIT

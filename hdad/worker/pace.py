"""When to read on: batches grow by themselves while a write is in flight (DESIGN 8). Pure.

A worker that reads as fast as Redis answers makes a frame of a few entries each time, and the writer drowns in frames. So while what
this worker has on its way is small, it is one batch, being made durable. What comes in the meantime
gathers in Redis and makes the next batch. Once much is on its way (a backlog), only the ring's room limits reading.
"""

from __future__ import annotations

from collections import deque
from typing import Final

BATCHES_MAX: Final = 1
SMALL_BYTES: Final = 256 * 1024


class Pace:
    """Ends of the batches that were published, in the ring's positions."""

    def __init__(self) -> None:
        self._ends: deque[int] = deque()

    def published(self, tail: int) -> None:
        """A batch is in the ring, up to ``tail``."""
        if not self._ends or self._ends[-1] != tail:
            self._ends.append(tail)

    def may_read(self, head: int, tail: int) -> bool:
        """Whether to ask for more, with the ring between ``head`` (durable) and ``tail``."""
        ends = self._ends
        while ends and ends[0] <= head:
            ends.popleft()
        return len(ends) < BATCHES_MAX or tail - head >= SMALL_BYTES

"""How long to leave Redis alone after an error: doubled each time, with jitter, up to a cap; nothing after a success. Pure."""

from __future__ import annotations

from typing import Final

BACKOFF_MIN_NS: Final = 50_000_000
BACKOFF_MAX_NS: Final = 5_000_000_000


class Backoff:
    """``failures``: in a row. ``due_ns``: not to be tried before, monotonic."""

    def __init__(self) -> None:
        self.failures = 0
        self.due_ns = 0

    def failed(self, now_ns: int, jitter: float) -> int:
        """One more failure. ``jitter`` from 0 to 1 takes up to half of the pause away. Returns ``due_ns``."""
        self.failures += 1
        ceiling = min(BACKOFF_MAX_NS, BACKOFF_MIN_NS << min(self.failures, 16))
        self.due_ns = now_ns + int(ceiling * (1 - jitter / 2))
        return self.due_ns

    def succeeded(self) -> None:
        """Begin anew."""
        self.failures = self.due_ns = 0

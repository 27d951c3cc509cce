"""hdad: Redis Streams, exactly once and in order, onto a log on a block device.

Public API: ``LogReader`` reads a log, ``connect`` one that another host has; ``Batch``, ``Record`` and ``run_stage`` are what a pipeline
stage sees and how to test one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Batch", "LogReader", "Position", "Record", "connect", "run_stage"]

if TYPE_CHECKING:
    from hdad.exchange.feed.client import connect
    from hdad.log.reader import LogReader
    from hdad.record import Position
    from hdad.worker.batch import Batch, Record
    from hdad.worker.testing import run_stage

_HOMES = {
    "Batch": "hdad.worker.batch", "LogReader": "hdad.log.reader", "Position": "hdad.record", "Record": "hdad.worker.batch",
    "connect": "hdad.exchange.feed.client", "run_stage": "hdad.worker.testing",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imported when asked for: the daemon's processes pay only for what they use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hdad' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)

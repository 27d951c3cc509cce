"""The worker's process from its first line to its last. Root: wires, runs the loop, turns errors into an exit status."""

from __future__ import annotations

import ctypes
import gc
import logging
from typing import TYPE_CHECKING, Final

from hdad.clock import monotonic_ns
from hdad.errors import ExitStatus, HdadError
from hdad.exchange.channel import Channel
from hdad.exchange.slots import WorkerSlot
from hdad.limits import MIB
from hdad.metrics.counters import Counters
from hdad.worker.loop import WorkerLoop
from hdad.worker.stage import Router

if TYPE_CHECKING:
    from hdad.config import Config

_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3


def run(slot: WorkerSlot, generation: int, counters: Counters, channel: Channel, config: Config) -> ExitStatus:
    """Run one worker until it is drained, or the supervisor is gone. Never raises; the status tells."""
    logger = logging.getLogger("hdad.worker")
    try:
        gc.freeze()  # what the supervisor had before the fork stays shared
        _keep_heap()
        gc.set_threshold(100_000, 20, 50)  # a batch makes records by the thousand, and none of them in a cycle
        loop = WorkerLoop(slot, generation, counters, channel, config, build_router(config))
        channel.send({"event": "ready"})
        while not loop.is_orphaned:
            now_ns = monotonic_ns()
            if loop.run_once(now_ns):
                continue
            if loop.is_drained:
                channel.send({"event": "drained"})
                return ExitStatus.OK
            loop.wait(monotonic_ns())
        return ExitStatus.OK
    except HdadError as error:
        logger.error("%s", error)
        channel.send({"event": "error", "key": "", "text": str(error)})
        return error.status
    except Exception as error:  # root of the process: the traceback goes to the log, the status to the supervisor
        logger.exception("worker %d: unforeseen", slot.index)
        channel.send({"event": "error", "key": "", "text": f"unforeseen: {type(error).__name__}: {error}"})
        return ExitStatus.FAILURE


def _keep_heap() -> None:
    """Keep freed memory for the next batch (mallopt(3)): giving it back and faulting it in again cost a third of a JSON stage's time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 64 * MIB)
        mallopt(_M_MMAP_THRESHOLD, 32 * MIB)


def build_router(config: Config) -> Router:
    """The stages of the configuration, imported. Raises StageError."""
    pipeline = config.pipeline
    return Router(pipeline.stages, [(route.streams, route.stages) for route in pipeline.route])

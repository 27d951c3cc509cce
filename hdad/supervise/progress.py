"""Whether every role makes progress: what hangs is killed, what waits for the device is known to.

Runs in the supervisor, once a tick. The rules are in ``states``; here are the counters they judge and what follows from a verdict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hdad.clock import wall_ns
from hdad.metrics.counters import State
from hdad.supervise.family import Child, kernel_state
from hdad.supervise.states import ChildState, judge_worker, judge_writer

if TYPE_CHECKING:
    from hdad.supervise.loop import Supervisor

SECOND_NS: Final = 1_000_000_000
PAUSE_NS: Final = 5 * SECOND_NS  # between two checks, ten of which are due each second: it was not the children who made no progress


class Progress:
    """One per supervisor."""

    def __init__(self, host: Supervisor) -> None:
        self._host = host
        self._checked_ns = self._resumed_ns = host.started_ns

    def check(self, now_ns: int) -> bool:
        """Kill what hangs. True when every role makes progress, or is known to wait for the device."""
        config = self._host.config
        if now_ns - self._checked_ns > PAUSE_NS:
            self._resumed_ns = now_ns
        self._checked_ns = now_ns
        stall_ns = max(15, 3 * config.redis.socket_timeout_ms // 1000) * SECOND_NS
        progress = True
        for child in self._host.workers:
            if child.state in (ChildState.READY, ChildState.STARTING, ChildState.DRAINING) and child.is_running:
                block = self._host.counters.worker(child.index)
                stall = judge_worker(
                    now_ns, self._as_seen(block.get("heartbeat_ns")), self._as_seen(block.get("busy_since_ns")),
                    config.pipeline.batch_timeout_ms * 1_000_000, stall_ns,
                )  # fmt: skip
                progress &= stall is None
                if stall is not None:
                    self._stalled(child, self._with_lanes(child, stall.text))
            elif child.wanted and child.state is not ChildState.WAITING and not self._host.is_draining:
                progress = False
        for service in (self._host.link, self._host.feed):
            if service is not None and service.is_running:
                stall = judge_worker(now_ns, self._as_seen(self._host.beat_of(service)), 0, 0, stall_ns)
                progress &= stall is None
                if stall is not None:
                    self._stalled(service, stall.text)
        return progress & self._check_writer(now_ns, stall_ns)

    def _check_writer(self, now_ns: int, stall_ns: int) -> bool:
        config, progress = self._host.config, True
        if self._host.writer is not None and self._host.writer.is_running:
            block = self._host.counters.writer
            is_recovering = block.get("state") in (State.RECOVERING, State.TAKING_OVER)
            verdict = judge_writer(
                now_ns, self._as_seen(block.get("heartbeat_ns")), block.get("oldest_write_ns"), is_recovering,
                config.supervisor.write_stuck_s * SECOND_NS, stall_ns,
            )  # fmt: skip
            if verdict is None:
                self._host.set_alarm("device", "")
            elif verdict.kill:
                progress = False
                self._stalled(self._host.writer, verdict.text)
            else:
                how = ": ".join(filter(None, (f"device {config.log.device}", self._host.describe_device(), verdict.text)))
                self._host.set_alarm("device", f"{how}; the writer {kernel_state(self._host.writer.pid)}. Entries wait in Redis")
        return progress

    def _as_seen(self, at_ns: int) -> int:
        """A child's time stamp, but not from before the supervisor itself went on after a pause: the whole host may have been paused, and
        their signs of life are no older than its own. 0: none."""
        return max(at_ns, self._resumed_ns) if at_ns else 0

    def _with_lanes(self, child: Child, text: str) -> str:
        lanes = self._host.counters.lanes
        names = [
            row.name.decode("utf-8", "replace") for row in lanes.rows() if row.worker == child.index and lanes.read_trial(row.lane_id)[3]
        ]
        return f"{text}, lane {', '.join(names[:3])}" if names else text

    def _stalled(self, child: Child, text: str) -> None:
        if child.stall:
            return  # killed already, the kernel is at it
        child.stall = text
        self._host.logger.error("%s: %s; killed", child.role, text)
        self._host.errors.append((wall_ns(), child.role, f"{text}; killed"))
        if child.index >= 0 and self._host.counters.worker(child.index).get("busy_since_ns"):
            self._host.counters.supervisor.add("stage_kills")
        child.kill()

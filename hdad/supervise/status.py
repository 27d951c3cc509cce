"""What ``hdactl status`` shows, from shared memory and the supervisor's own knowledge: never asks a child, a device or Redis."""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Any, Final

import hdad
from hdad.clock import monotonic_ns, wall_ns
from hdad.metrics.counters import Counters, Snapshot, State
from hdad.metrics.lanes import LaneState, LaneTotals, LaneView
from hdad.supervise.family import Child
from hdad.writer.role import Role

if TYPE_CHECKING:
    from hdad.supervise.loop import Supervisor

SECOND_NS: Final = 1_000_000_000
SAMPLES: Final = 11  # one a second: rates are over the last ten
LANES_SHOWN_MAX: Final = 10_000  # LIMIT: rows of one answer


class Sampler:
    """Counters of the last seconds, for rates and recent latency."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._samples: deque[tuple[int, dict[str, int], Snapshot, Snapshot]] = deque(maxlen=SAMPLES)
        self._due_ns = 0

    def tick(self, now_ns: int) -> None:
        """Take a sample, once a second."""
        if now_ns >= self._due_ns:
            self._due_ns = now_ns + SECOND_NS
            writer = self._counters.writer
            latency, write = writer.histogram("entry_to_durable_us").snapshot(), writer.histogram("write_us").snapshot()
            self._samples.append((now_ns, writer.snapshot(), latency, write))

    def rates(self) -> dict[str, float]:
        """Per second."""
        names = ("entries", "records", "frames", "writes", "device_bytes")
        if len(self._samples) < 2:
            return {name: 0.0 for name in names}
        (first_ns, first, _, _), (last_ns, last, _, _) = self._samples[0], self._samples[-1]
        seconds = (last_ns - first_ns) / SECOND_NS
        return {name: round((last[name] - first[name]) / seconds, 1) for name in names}

    def recent(self) -> tuple[Snapshot, Snapshot] | None:
        """(entry to durable, writes) of the last seconds; None when there is no sample."""
        if not self._samples:
            return None
        _, _, latency, write = self._samples[0]
        writer = self._counters.writer
        return (
            writer.histogram("entry_to_durable_us").snapshot().since(latency),
            writer.histogram("write_us").snapshot().since(write),
        )


def build_status(supervisor: Supervisor, sampler: Sampler, lanes_max: int = LANES_SHOWN_MAX) -> dict[str, Any]:
    """The whole page as plain data; its keys are part of the control protocol."""
    counters, config, now_ns = supervisor.counters, supervisor.config, monotonic_ns()
    totals = counters.lanes.totals()
    readers = _remote_readers(supervisor)
    roles = [_role(child, supervisor, now_ns) for child in supervisor.children() if child.wanted or child.is_running]
    running = "standby" if supervisor.node.role is Role.STANDBY else "running"
    state = "draining" if supervisor.is_draining else "paused" if supervisor.is_paused else running
    return {
        "daemon": {
            "name": config.supervisor.name,
            "pid": os.getpid(),
            "version": hdad.__version__,
            "state": state,
            "config_file": supervisor.config_path,
            "started_at_ns": supervisor.started_wall_ns,
            "uptime_s": round((now_ns - supervisor.started_ns) / SECOND_NS, 1),
            "metrics": config.metrics.listen,
            "redis": config.redis.url,
        },
        "node": supervisor.node.as_dict(config.log.fence),
        "roles": roles,
        "writer": _writer(supervisor, now_ns),
        "paths": supervisor.describe_paths(),
        "link": _link(supervisor),
        "feed": _feed(supervisor),
        "lanes": [_lane(row, readers, now_ns) for row in counters.lanes.rows(lanes_max)],
        "lane_count": totals.lanes,
        "totals": _totals(totals, counters),
        "rates": sampler.rates(),
        "latency": _latency(counters, sampler),
        "paused_lanes": sorted(supervisor.paused_lanes),
        "alarms": [
            {"key": key, "text": text, "since_ns": since, "role": role}
            for key, (text, since, role) in sorted(supervisor.alarms.all().items())
        ],
        "errors": [{"at_ns": at, "role": role, "text": text} for at, role, text in supervisor.errors],
        "now_ns": wall_ns(),
    }


def _role(child: Child, supervisor: Supervisor, now_ns: int) -> dict[str, Any]:
    block = supervisor.block_of(child)
    heartbeat_ns = block.get("heartbeat_ns") if block is not None else 0
    state = child.state.value
    if block is not None and child.is_running:
        state = State(block.get("state")).name.lower()
    row: dict[str, Any] = {
        "role": child.role,
        "pid": child.pid,
        "state": state,
        "restarts": child.restarts,
        "last_end": child.last_end,
        "heartbeat_age_ms": max(0, now_ns - heartbeat_ns) // 1_000_000 if heartbeat_ns and child.is_running else None,
        "cpus": _affinity(child.pid),
        "memory_bytes": _memory(child.pid),
    }
    if child.index >= 0 and block is not None:
        row |= {name: block.get(name) for name in ("entries_read", "frames", "read_errors", "redirects", "ring_full")}
    return row


def _affinity(pid: int) -> list[int]:
    try:
        return sorted(os.sched_getaffinity(pid)) if pid else []
    except OSError:
        return []


def _memory(pid: int) -> int:
    """Resident anonymous memory and shared pages of one process (RSS), bytes."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _writer(supervisor: Supervisor, now_ns: int) -> dict[str, Any]:
    block = supervisor.counters.writer
    found = block.snapshot()
    oldest_ns = found.pop("oldest_write_ns")
    found.pop("heartbeat_ns")
    return {
        **found,
        "device": supervisor.config.log.device,
        "on_full": supervisor.config.log.on_full,
        "retained_s": max(0, wall_ns() - found["oldest_label_ns"]) // SECOND_NS if found["oldest_label_ns"] else 0,
        "oldest_write_ms": max(0, now_ns - oldest_ns) // 1_000_000 if oldest_ns else 0,
    }


def _link(supervisor: Supervisor) -> dict[str, Any] | None:
    """What the link reported last; None: this host has none."""
    if supervisor.link is None:
        return None
    report = {key: value for key, value in supervisor.link_report.items() if key != "event"}
    addresses = (*supervisor.config.link.listen, *supervisor.config.link.writers, *supervisor.config.feed.listen)
    return {"insecure": any(text.startswith("tcp:") for text in addresses), "counters": supervisor.counters.link.snapshot(), **report}


def _feed(supervisor: Supervisor) -> dict[str, Any] | None:
    """Readers of other hosts; None: they are not served here."""
    if supervisor.feed is None:
        return None
    listen = list(supervisor.config.feed.listen)
    return {"listen": listen, "insecure": any(text.startswith("tcp:") for text in listen), **supervisor.counters.feed.snapshot()}


def _remote_readers(supervisor: Supervisor) -> dict[int, str]:
    """Rings of workers of other hosts → host and worker, as the link reported them last."""
    peers = supervisor.link_report.get("peers", [])
    return {ring: f"{peer['name']}/{worker}" for peer in peers for worker, ring in peer["workers"].items()}


def _lane(row: LaneView, readers: dict[int, str], now_ns: int) -> dict[str, Any]:
    return {
        "id": row.lane_id,
        "name": row.name.decode("utf-8", "surrogateescape").encode("utf-8", "backslashreplace").decode(),
        "worker": row.worker,
        "reader": readers.get(row.worker, str(row.worker)) if row.worker >= 0 else "-",
        "position": str(row.position),
        "read": str(row.read),
        "lag": row.lag,
        "state": LaneState(row.state).name.lower(),
        "state_age_s": round(max(0, now_ns - row.state_since_ns) / SECOND_NS, 1) if row.state_since_ns else 0,
        "entries": row.entries,
        "committed": row.committed,
        "filtered": row.filtered,
        "dead_lettered": row.dead,
        "lost": row.lost,
        "frames": row.frames,
    }


def _totals(lanes: LaneTotals, counters: Counters) -> dict[str, int]:
    return {
        "entries": lanes.entries,
        "committed": lanes.committed,
        "filtered": lanes.filtered,
        "dead_lettered": lanes.dead,
        "lost": lanes.lost,
        "lag": lanes.lag,
        "read_errors": sum(counters.worker(index).get("read_errors") for index in range(counters.workers_max)),
    }


def _latency(counters: Counters, sampler: Sampler) -> dict[str, int]:
    total = counters.writer.histogram("entry_to_durable_us").snapshot()
    recent, write = sampler.recent() or (total, counters.writer.histogram("write_us").snapshot())
    return {
        "p50_us": recent.percentile(50),
        "p99_us": recent.percentile(99),
        "max_us": recent.maximum,
        "all_p50_us": total.percentile(50),
        "all_p99_us": total.percentile(99),
        "all_max_us": total.maximum,
        "write_p50_us": write.percentile(50),
        "write_p99_us": write.percentile(99),
    }


def one_line(status: dict[str, Any]) -> str:
    """For ``systemctl status``."""
    rates, totals, latency = status["rates"], status["totals"], status["latency"]
    state, p99_ms = status["daemon"]["state"], latency["p99_us"] / 1000
    text = f"{state}: {rates['entries']:.0f} entries/s, {totals['entries']} durable, lag {totals['lag']}, p99 {p99_ms:.1f} ms"
    if totals["lost"]:
        text += f", lost {totals['lost']}"
    if status["alarms"]:
        text += f"; {len(status['alarms'])} alarms, first: {status['alarms'][0]['text'][:120]}"
    return text

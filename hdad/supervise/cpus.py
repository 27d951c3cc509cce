"""Which process runs on which CPUs. ``plan_cpus`` is pure; ``near_cpus`` looks at sysfs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hdad.log.device import sysfs_directory


class CpuPlan(NamedTuple):
    """``writer``: its CPUs. ``workers``: the CPUs of each slot. ``notes``: what an operator should know."""

    writer: list[int]
    workers: list[list[int]]
    notes: list[str]


def plan_cpus(allowed: set[int], wanted: Sequence[int], writer_cpu: int, near: set[int], slots: int, count: int) -> CpuPlan:
    """Spread ``slots`` workers, of which ``count`` run now, over the CPUs this process may use.

    The writer gets a CPU of its own, next to the device if possible, when there are more CPUs than workers; else it may use all.
    """
    notes = []
    usable = [cpu for cpu in (wanted or sorted(allowed)) if cpu in allowed]
    refused = [cpu for cpu in wanted if cpu not in allowed]
    if refused:
        notes.append(f"workers.cpus: {refused} are not in this process' cpuset {sorted(allowed)}; left out")
    if not usable:
        notes.append("workers.cpus: none is in the cpuset; all allowed CPUs are used")
        usable = sorted(allowed)
    if writer_cpu >= 0 and writer_cpu in allowed:
        writer = [writer_cpu]
    else:
        if writer_cpu >= 0:
            notes.append(f"log.cpu = {writer_cpu} is not in the cpuset {sorted(allowed)}; chosen by itself")
        choice = sorted(allowed & near) or sorted(allowed)
        spare = [cpu for cpu in choice if cpu not in usable[:count]] or choice
        writer = [spare[0]] if len(allowed) > count else sorted(allowed)
    if len(usable) <= count and not wanted:
        notes.append(f"{count} workers on {len(usable)} CPUs: not pinned, since each would wait for its own CPU while another is idle")
        return CpuPlan(writer, [usable] * slots, notes)
    rest = [cpu for cpu in usable if cpu not in writer] if len(writer) == 1 and len(usable) > 1 else usable
    if len(rest) < count:
        notes.append(f"{count} workers share {len(rest)} CPUs")
    return CpuPlan(writer, [[rest[index % len(rest)]] for index in range(slots)], notes)


def near_cpus(device: str) -> set[int]:
    """CPUs of the NUMA node that the device hangs on; empty when the kernel does not tell."""
    try:
        directory = sysfs_directory(device)
        for folder in (directory, *directory.parents) if directory is not None else ():
            node_file = folder / "numa_node"
            if node_file.exists():
                node = int(node_file.read_text())
                return _parse_cpus(Path(f"/sys/devices/system/node/node{node}/cpulist").read_text()) if node >= 0 else set()
    except (OSError, ValueError):  # a hint only
        pass
    return set()


def _parse_cpus(text: str) -> set[int]:
    """``0-3,8`` → {0, 1, 2, 3, 8}."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cpus.update(range(int(first), int(last or first) + 1))
    return cpus

"""What is on the disk when the power fails: at every recorded write of a real run, torn or whole, and after real power cuts of the VM.

The VM writes, the host judges its disk image with hdad's own recovery, verify and reader (I1–I3, I5).
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from harness import wait_until

from hdad.log.inspect import verify, verify_device
from hdad.log.reader import LogReader
from tests.sim.disk import Disk
from tests.sim.log import reader_on, recovered
from tests.vm.kernel import SLACK, guest_environment
from tests.vm.load import text_of
from tests.vm.logwrites import END, read_writes
from tests.vm.packages import CannotBootError
from tests.vm.qemu import Disk as Image
from tests.vm.qemu import Machine
from tests.vm.summary import PROPERTY

BLOCK = 512
TORN_SAMPLES = 4  # of each write, besides whole and absent
RUN_S = 240.0 * SLACK
CACHES = ("none", "writeback", "none", "writeback")  # of the disk, for one life each


def _boot(out: Path, *words: str, disks: list[Image]) -> Machine:
    try:
        machine = Machine(out, [sys.executable, "-m", "tests.vm.lives", *words], disks=disks, environment=guest_environment())
        machine.start()
    except CannotBootError as error:
        pytest.skip(f"SKIPPED: no VM can boot here: {error}")
    return machine


def _sparse(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def test_at_every_recorded_write_the_log_holds_what_was_acknowledged(tmp_path: Path, record_property: Any) -> None:
    data, log = _sparse(tmp_path / "data", 64 << 20), _sparse(tmp_path / "log", 2 << 30)
    machine = _boot(tmp_path / "out", "record", disks=[Image(data), Image(log)])
    try:
        assert machine.wait(RUN_S) == 0, machine.console()[-4000:]
    finally:
        machine.cut_power()
    counts = json.loads((machine.out / "counts").read_text())
    states = _replay(Disk(64 << 20), read_writes(log), random.Random(1))
    assert states["marks"] == 31 and states["points"] > 1000 and states["epochs"] == 3, states
    report = verify(str(data))  # the device itself, at the end: nothing was left out of the recording
    assert report.ok and report.entries == sum(counts.values()), report
    name = f"crash at each of {states['points']} recorded states"
    record_property(PROPERTY, {"fault": name, "lost": sum(counts.values()) - report.entries, "entries": report.entries})


def _replay(disk: Disk, writes: Any, rng: random.Random) -> dict[str, int]:
    """Write by write; at each the log is recovered, and what the last mark calls durable is there."""
    durable: dict[str, Any] = {"durable_lsn": 0, "lanes": {}}
    found = {"marks": 0, "points": 0, "epochs": 0}
    epochs = set()
    for write in writes:
        if write.mark == END:
            break
        if write.mark:
            durable = json.loads(write.mark)
            found["marks"] += 1
            report = verify_device(disk)  # type: ignore[arg-type]
            assert report.ok and report.last_lsn >= durable["durable_lsn"], report
            continue
        if not write.data:
            continue
        flight = disk.begin(write.offset, [write.data], durable=True)
        if durable["durable_lsn"]:  # before there was no log
            for state in _some_states(disk, rng):
                found["points"] += 1
                epochs.add(_assert_holds(state, durable))
        disk.settle(flight)
    found["epochs"] = len(epochs - {0})
    _assert_content(disk)
    return found


def _some_states(disk: Disk, rng: random.Random) -> Any:
    """Without the write that is in flight, torn in some ways, and with it."""
    yield Disk(disk.size, block_size=BLOCK, image=disk.image)
    for _ in range(TORN_SAMPLES if len(disk.changes()) > 1 else 0):
        landed = [change for change in disk.changes() if rng.random() < 0.5]
        for address, old, new in landed:
            disk.image[address : address + len(old)] = new
        yield Disk(disk.size, block_size=BLOCK, image=disk.image)
        for address, old, _ in landed:
            disk.image[address : address + len(old)] = old


def _assert_holds(state: Disk, durable: dict[str, Any]) -> int:
    log = recovered(state)
    assert log.next_lsn > durable["durable_lsn"], f"recovered up to {log.next_lsn - 1}, acknowledged up to {durable['durable_lsn']}"
    entries = {row.name.decode(): row.entries for row in log.lanes.values()}
    for lane, count in durable["lanes"].items():
        assert entries.get(lane, 0) >= count, f"{lane}: {count} acknowledged, {entries.get(lane, 0)} recovered"
    return log.writer_epoch


def _assert_content(disk: Disk) -> None:
    seen: dict[str, int] = {}
    with reader_on(disk) as reader:
        for record in reader.records():
            n = seen.get(record.lane, 0)
            assert record.fields == [(b"n", b"%d" % n), (b"text", text_of(n))], record
            seen[record.lane] = n + 1


def test_power_cuts_lose_nothing_that_was_acknowledged(tmp_path: Path, record_property: Any) -> None:
    image = _sparse(tmp_path / "data", 256 << 20)
    rng = random.Random(2)
    acknowledged: dict[str, int] = {}
    lost = 0
    for round_, cache in enumerate(CACHES):
        machine = _boot(tmp_path / f"out-{round_}", "power", str(round_), disks=[Image(image, cache)])
        try:
            acks = machine.out / "acks"
            wanted = rng.randrange(4, 20)
            wait_until(lambda: _count(acks) >= wanted or not machine.is_running, machine.console, RUN_S)  # noqa: B023
            assert machine.is_running, machine.console()[-4000:]
            time.sleep(rng.random() * 0.05)  # not a wait: the moment of the cut is what is random
        finally:
            machine.cut_power()
        recovered_ = json.loads((machine.out / "recovered").read_text())
        assert all(recovered_.get(lane, 0) >= count for lane, count in acknowledged.items()), "the next boot finds what was acknowledged"
        acknowledged |= json.loads(acks.read_text().split("\n")[-2])
        lost += _lost(str(image), acknowledged)
        assert not lost, f"{lost} acknowledged entries are not there"
    entries = sum(acknowledged.values())
    record_property(PROPERTY, {"fault": f"power cut {len(CACHES)} times under load", "lost": lost, "entries": entries})


def _count(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def _lost(path: str, acknowledged: dict[str, int]) -> int:
    """How many acknowledged entries are not in the log; what is there is right, in order, once."""
    report = verify(path)
    assert report.ok, report.violations
    seen: dict[str, int] = {}
    with LogReader(path) as reader:
        reader.learn_durable(report.last_lsn)  # no lease tells a reader of the last frames; who recovers the log finds them whole
        for record in reader.records():
            n = seen.get(record.lane, 0)
            assert record.fields == [(b"n", b"%d" % n), (b"text", text_of(n))], record
            seen[record.lane] = n + 1
    return sum(max(0, count - seen.get(lane, 0)) for lane, count in acknowledged.items())

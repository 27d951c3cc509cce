"""Several hdad hosts in one VM: each a daemon of its own with an identity of its own, on its own multipath map of one LUN."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

from harness import Daemon

from hdad.errors import ExitStatus
from hdad.log.format import FRAME_HEADER_SIZE, MAGIC, decode_header, occupied
from tests.vm.kernel import until
from tests.vm.load import Load, Oracle

TAKEOVER_MS: Final = 12_000  # times are an emulated machine's
IO_MS: Final = 4000
BECOMES_S: Final = 120.0
RATE: Final = 300  # entries a second: what two daemons and a reader in one emulated machine keep up with
MORE: Final = 300  # entries
SCAN_BYTES: Final = 4 << 20
MAGIC_OFFSET: Final = 8  # in a frame's head


class Node(Daemon):
    """One host. ``name`` is what others are told; its first letter makes its identity. The log is formatted by the first."""

    def __init__(self, folder: Path, name: str, url: str, device: str, *, is_first: bool = False, **log: Any) -> None:
        self.name = name
        own = folder / name
        own.mkdir()
        sections: dict[str, dict[str, Any]] = {
            "log": {"fence": "reservation", "takeover_timeout_ms": TAKEOVER_MS, "io_timeout_ms": IO_MS, **log},
            "supervisor": {"node_id": f"{ord(name[0]):032x}", "name": name, "write_stuck_s": 1},
        }
        super().__init__(own, url, sections, start=False, device=device, format_device=is_first)

    def become(self, role: str) -> None:
        """Until it is."""
        until(lambda: self.role == role, lambda: f"{self.name} is {role}; it is {self.role}; log:\n{self.log()[-2500:]}", BECOMES_S)

    def close(self) -> None:
        """At the test's end, however it ended."""
        if self.is_running:
            self.thaw()
        self.kill()


class Written(NamedTuple):
    """A frame that is on a device, whether it counts or not."""

    address: int
    lsn: int
    epoch: int
    blocks: int


def written(device: str, block_size: int = 512) -> set[Written]:
    """Every frame that is anywhere on the device, by its head: what a reader of the log passes over is among them."""
    found = set()
    with open(device, "rb") as file:
        base = 0
        while content := file.read(SCAN_BYTES):
            at = content.find(MAGIC)
            while at >= 0:
                start = at - MAGIC_OFFSET
                if start % block_size == 0 and start + FRAME_HEADER_SIZE <= len(content):
                    header = decode_header(memoryview(content)[start : start + FRAME_HEADER_SIZE])
                    size = occupied(header, block_size)
                    found.add(Written(base + start, header.lsn, header.writer_epoch, size // block_size))
                at = content.find(MAGIC, at + 1)
            base += len(content)
    return found


def fence(writer: Node, standby: Node, load: Load, oracle: Oracle) -> dict[str, Any]:
    """The writer's host stands still for longer than the takeover takes, and goes on then. A row for the table of faults.

    It ends with FENCED, all that was added is in the log, and no block of it got to the device after the takeover (I4).
    """
    load.daemon = standby
    load.wait_status(bool, "a look has ended: the next one is at the standby, and waits for no frozen host", BECOMES_S)
    load.mark()
    writer.freeze()
    standby.become("writer")
    load.wait_more(MORE)
    before = written(oracle.device)
    newest = max(frame.epoch for frame in before)
    writer.thaw()
    fenced = int(writer.wait_end(None) == ExitStatus.FENCED)
    assert fenced and not writer.is_running and "reservation conflict" in writer.log(), writer.log()[-2000:]
    load.wait_more(MORE)
    zombie_blocks = sum(frame.blocks for frame in written(oracle.device) - before if frame.epoch < newest)
    assert zombie_blocks == 0, "after the takeover the array takes nothing of the fenced writer"
    counts = load.settle()
    oracle.assert_holds(counts)
    lost = sum(max(0, count - oracle.seen[lane]) for lane, count in counts.items())
    name = f"writer {writer.name} frozen, taken over from, thawed: {zombie_blocks} blocks of it written"
    return {"fault": name, "lost": lost, "fenced": fenced, "zombie_blocks": zombie_blocks, **load.measured()}

"""Runs of hdad in a VM that the host looks at afterwards, on a disk image: recorded write by write, or ended by the power switch.

``python -m tests.vm.lives record`` or ``power ROUND``, in the VM; its reports are files in /mnt/out.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness import wait_until

from tests.vm.kernel import load, sh
from tests.vm.proof import Bench

OUT: Final = Path("/mnt/out")
STREAMS: Final = ("a", "b", "c", "d")


def record() -> None:
    """hdad on /dev/vda, every write recorded on /dev/vdb by dm-log-writes, with marks that say what was acknowledged before them.

    A mark is JSON: {"durable_lsn", "lanes": {name: entries}}. The writer is killed in between, so recovery's writes are there too.
    """
    load("virtio_blk", "dm_log_writes")
    os.environ["DM_DISABLE_UDEV"] = "1"  # without udevd, dmsetup makes the node itself
    sectors = int(Path("/sys/block/vda/size").read_text())
    sh("dmsetup", "create", "recorded", "--table", f"0 {sectors} log-writes /dev/vda /dev/vdb")
    with Bench(_folder(), lambda _: None) as bench:
        small = {"frame_bytes_max": 64 << 10, "write_bytes_max": 256 << 10}
        daemon = bench.daemon("/dev/mapper/recorded", log=small, redis={"entry_bytes_max": 16 << 10})
        _mark(daemon.status())
        # Many small writes: each is a place to crash at, and all of them fit the device.
        with bench.load(daemon, streams=[f"s:{name}" for name in STREAMS], batch=50, rate=1200) as running:
            for round_ in range(3):
                for _ in range(10):
                    running.wait_more(200)
                    _mark(daemon.status())
                if round_ < 2:
                    pid = daemon.kill_role("writer")
                    wait_until(lambda pid=pid: daemon.role_pid("writer") != pid, "its successor runs")
            running.finish()
        daemon.stop()
        (OUT / "counts").write_text(json.dumps(running.counts))
    sh("dmsetup", "remove", "recorded")  # writes the log's superblock, with the number of entries


def _mark(status: dict[str, Any]) -> None:
    facts = {"durable_lsn": status["writer"]["durable_lsn"], "lanes": {lane["name"]: lane["entries"] for lane in status["lanes"]}}
    sh("dmsetup", "message", "recorded", "0", "mark", json.dumps(facts, separators=(",", ":")))


def power(round_: str) -> None:
    """hdad on /dev/vda under full load, until the power fails. What is acknowledged is reported in /mnt/out/acks, a line of JSON each.

    On a disk that holds a log already, the daemon recovers it first, and this round's streams are new ones.
    """
    load("virtio_blk")
    with Bench(_folder(), lambda _: None) as bench:
        daemon = bench.daemon("/dev/vda", is_new=round_ == "0")
        (OUT / "recovered").write_text(json.dumps({lane["name"]: lane["entries"] for lane in daemon.status()["lanes"]}))
        with (
            bench.load(daemon, streams=[f"s:{round_}:{name}" for name in STREAMS]) as running,
            (OUT / "acks").open("w") as acks,
        ):
            while True:
                running.wait_more(100)
                status = running.samples[-1].status
                acks.write(json.dumps({lane["name"]: lane["entries"] for lane in status["lanes"]}) + "\n")
                acks.flush()


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="h"))


if __name__ == "__main__":
    record() if sys.argv[1] == "record" else power(sys.argv[2])

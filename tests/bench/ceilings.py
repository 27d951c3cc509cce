"""What the device and the memory give at most: fio where it is installed, else a C program that writes alike; and memcpy. Edge."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from .programs import BenchError, Peer

DEPTH: Final = 4
MIB: Final = 1 << 20


def tool() -> str:
    """What writes: for the output."""
    return "fio, io_uring, direct=1, sync=dsync" if shutil.which("fio") else "C, O_DIRECT|O_DSYNC, threads (fio is not installed)"


def device_write(folder: Path, path: str, total: int, write_bytes: int, depth: int = DEPTH) -> float:
    """Bytes per second of sequential durable writes over a file that was written before; what it held is gone."""
    if shutil.which("fio") is None:
        return float(Peer(folder / "device", "write", path, total, write_bytes, depth).run()["bytes_per_s"])
    done = subprocess.run(
        ["fio", "--name=bench", f"--filename={path}", "--rw=write", f"--bs={write_bytes}", "--direct=1", "--sync=dsync",
         "--ioengine=io_uring", f"--iodepth={depth}", "--thread", f"--size={total}", "--overwrite=1", "--output-format=json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise BenchError(f"fio: {done.stderr.strip()}")
    found: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    return float(found["jobs"][0]["write"]["bw_bytes"])


def memcpy(folder: Path, chunk_bytes: int) -> float:
    """Bytes per second of one core."""
    return float(Peer(folder / "device", "memcpy", 20_000 * MIB, chunk_bytes).run()["bytes_per_s"])

"""Storage that can be made to fail: loop devices, and small filesystems of their own for what lies behind them. Needs root."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, Self

EXT4_IOC_SHUTDOWN: Final = 0x8004587D  # _IOR('X', 125, u32), fs/ext4/ext4.h: what the kernel does after errors, asked for
SHUTDOWN_NOLOGFLUSH: Final = 2


def run(*command: object) -> str:
    """Run a tool; its output. Raises CalledProcessError."""
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout.strip()


def why_not() -> str:
    """Why there can be no loop devices or mounts here; "": there can."""
    if os.geteuid() != 0:
        return "loop devices and mounts need root"
    found = subprocess.run(["losetup", "-f"], capture_output=True, text=True, check=False)
    return "" if found.returncode == 0 else f"no loop device here: {found.stderr.strip()}"


class Loop:
    """A loop device over ``backing``."""

    def __init__(self, backing: Path, block: int = 512) -> None:
        self.backing, self._block = backing, block
        self.path = run("losetup", "-f", "--show", "--direct-io=on", "--sector-size", block, backing)
        self.set_read_only(False)  # a device may remember what an earlier test made it

    def reattach(self) -> None:
        """The same device over the same file again, after ``close``."""
        run("losetup", "--direct-io=on", "--sector-size", self._block, self.path, self.backing)

    def set_read_only(self, is_so: bool) -> None:
        """Writes fail, or do again."""
        run("blockdev", "--setro" if is_so else "--setrw", self.path)

    def resize(self, size: int) -> None:
        """The backing file, and the device with it."""
        os.truncate(self.backing, size)
        run("losetup", "-c", self.path)

    def close(self) -> None:
        """Let it go."""
        subprocess.run(["losetup", "-d", self.path], check=False)


class Filesystem:
    """An ext4 of its own in a file in memory, mounted on ``folder``. ``size``: bytes."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        folder.mkdir()
        self._image = Path("/dev/shm") / f"hdad-test-{os.getpid()}-{folder.parent.name}-{folder.name}"
        with self._image.open("wb") as file:
            file.truncate(size)
        run("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", self._image)
        self._device = run("losetup", "-f", "--show", self._image)
        self.mount()

    def mount(self) -> None:
        """Mount it, again after ``umount``."""
        run("mount", self._device, self.folder)

    def umount(self) -> None:
        """Nothing may have a file of it open."""
        run("umount", self.folder)

    def fill(self) -> Path:
        """Take all room that is left. Returns the file to remove."""
        path = self.folder / "fill"
        with path.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(65_536))
        with path.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(512))
        return path

    def freeze(self) -> None:
        """Writes hang from now on, as when all paths to a device are gone and multipath queues."""
        run("fsfreeze", "-f", self.folder)

    def thaw(self) -> None:
        """They go on."""
        run("fsfreeze", "-u", self.folder)

    def shut_down(self) -> None:
        """Every read and write fails from now on, until it is mounted anew."""
        fd = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", SHUTDOWN_NOLOGFLUSH))
        finally:
            os.close(fd)

    def close(self) -> None:
        """Unmount and remove it."""
        subprocess.run(["fsfreeze", "-u", str(self.folder)], check=False, capture_output=True)
        subprocess.run(["umount", "-l", str(self.folder)], check=False, capture_output=True)
        subprocess.run(["losetup", "-d", self._device], check=False, capture_output=True)
        self._image.unlink(missing_ok=True)


class Storage:
    """Makes loop devices and filesystems in ``folder``, and takes them away again in the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = ExitStack()
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._made.close()

    def _name(self) -> str:
        self._count += 1
        return f"d{self._count}"

    def filesystem(self, size: int) -> Filesystem:
        """A new one."""
        made = Filesystem(self._folder / self._name(), size)
        self._made.callback(made.close)
        return made

    def loop(self, size: int, block: int = 512, on: Path | None = None) -> Loop:
        """A new device over a file without blocks in ``on``."""
        backing = (on or self._folder) / self._name()
        with backing.open("wb") as file:
            file.truncate(size)
        made = Loop(backing, block)
        self._made.callback(made.close)
        return made

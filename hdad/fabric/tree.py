"""Reading a sysfs tree under any root: bounded, never raising for what is missing or odd, remembering what it could not read. Edge.

The root is a parameter, so that a captured tree is read as the live one. Reading an attribute may call into a driver; only those that ask
an adapter's firmware (fc_host statistics) can take long, and ``survey`` reads these last. What was asked for is remembered, and can so be
captured for a bug report or a test.
"""

from __future__ import annotations

import errno
import os
from typing import Final

TEXT_BYTES_MAX: Final = 4096  # LIMIT: a sysfs attribute is at most a page
NAMES_MAX: Final = 4096  # LIMIT: entries of one folder
NOTES_MAX: Final = 20  # LIMIT: notes of one survey


def clean(data: bytes) -> str:
    """Untrusted bytes (I9) as one printable line: vendors, targets and drivers choose them."""
    text = data.decode("utf-8", "replace").strip("\0 \t\r\n")
    return "".join(character if character.isprintable() else "?" for character in text.replace("\n", " "))


class Tree:
    """``root``: where sysfs is. ``notes``: what could not be read for another reason than that it is not there."""

    def __init__(self, root: str = "/sys") -> None:
        self.root = os.path.realpath(root)
        self.notes: list[str] = []
        self.seen: dict[str, str | None] = {}  # all that was asked for: an attribute's content, None for anything else that is there

    def forget(self) -> None:
        """Begin anew: a tree that is read again and again does not remember for ever (I7)."""
        self.notes.clear()
        self.seen.clear()

    def real(self, path: str) -> str:
        """The canonical path below the root that ``path`` leads to; "" if there is nothing, or it leads out of the root."""
        found = os.path.realpath(os.path.join(self.root, path))
        if not found.startswith(self.root + "/") or not os.path.lexists(found):
            return ""
        self.seen.setdefault(path, None)
        return found[len(self.root) + 1 :]

    def text(self, path: str) -> str:
        """An attribute's content as one line; "" if there is none."""
        try:
            fd = os.open(os.path.join(self.root, path), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                content = clean(os.read(fd, TEXT_BYTES_MAX))
            finally:
                os.close(fd)
        except OSError as error:
            # ENODEV, ENXIO, EIO: the device behind it goes away just now; EINVAL, EOPNOTSUPP: the driver does not know it.
            if error.errno in (errno.EACCES, errno.EPERM) and len(self.notes) < NOTES_MAX:
                self.notes.append(f"{path}: {error.strerror}")
            return ""
        self.seen[path] = content
        return content

    def number(self, path: str, base: int = 10) -> int | None:
        """An attribute that is a number; None if there is none, or it is no number. ``base`` 0: as its prefix says."""
        try:
            return int(self.text(path), base)
        except ValueError:
            return None

    def names(self, path: str) -> list[str]:
        """A folder's entries, sorted, at most NAMES_MAX; [] if it is none."""
        try:
            found = sorted(os.listdir(os.path.join(self.root, path)))[:NAMES_MAX]
        except OSError:
            return []
        for name in found:
            self.seen.setdefault(f"{path}/{name}", None)
        return found

    def exists(self, path: str) -> bool:
        """True: there is such an entry."""
        if not os.path.exists(os.path.join(self.root, path)):
            return False
        self.seen.setdefault(path, None)
        return True

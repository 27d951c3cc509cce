"""What dm-log-writes recorded, read back: every write of a device in the order in which it was complete, and marks between them.

Format: drivers/md/dm-log-writes.c and Documentation/admin-guide/device-mapper/log-writes.rst. Pure but for the file that it reads.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

MAGIC: Final = 0x6A736677736872
SUPER: Final = struct.Struct("<QQQI")  # magic, version, entries, sector size
ENTRY: Final = struct.Struct("<QQQQ")  # sector, sectors, flags, bytes of data that follow
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
END: Final = "dm-log-writes-end"  # the mark that the target itself makes when it goes


class Write(NamedTuple):
    """One entry. ``offset`` and ``size`` in bytes of the device; ``mark``: the words of a mark, which writes nothing."""

    offset: int
    size: int
    flags: int
    data: bytes
    mark: str


def read_writes(path: Path) -> Iterator[Write]:
    """All entries of a log device or its image, in order."""
    with path.open("rb") as file:
        magic, version, count, sector_size = SUPER.unpack(file.read(SUPER.size))
        assert (magic, version) == (MAGIC, 1), "not a log of dm-log-writes"
        file.seek(sector_size)
        for _ in range(count):
            sector, sectors, flags, size = ENTRY.unpack(file.read(sector_size)[: ENTRY.size])
            if flags & MARK:  # its words lie in the entry's own block
                file.seek(-sector_size + ENTRY.size, 1)
                text = file.read(sector_size - ENTRY.size)[:size].rstrip(b"\0").decode()
                yield Write(0, 0, flags, b"", text)
                continue
            length = sectors * sector_size
            if flags & DISCARD or not sectors:
                yield Write(sector * sector_size, length, flags, b"", "")
                continue
            yield Write(sector * sector_size, length, flags, file.read(length), "")

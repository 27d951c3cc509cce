"""What else may be on a device: signatures of filesystems, partitions and volumes, mounts, holders. Edge; looks, never writes.

Used before formatting (DESIGN 6): data that somebody else put there is never overwritten.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

from hdad.log.device import sysfs_directory


class Signature(NamedTuple):
    """Bytes that show what a device holds. Sources: libblkid's superblock probes (util-linux)."""

    name: str
    offset: int
    magic: bytes


SIGNATURES: Final = (
    Signature("ext2/3/4", 0x438, b"\x53\xef"),
    Signature("xfs", 0, b"XFSB"),
    Signature("btrfs", 0x10040, b"_BHRfS_M"),
    Signature("f2fs", 0x400, b"\x10\x20\xf5\xf2"),
    Signature("ntfs", 3, b"NTFS    "),
    Signature("exfat", 3, b"EXFAT   "),
    Signature("vfat", 0x52, b"FAT32   "),
    Signature("vfat", 0x36, b"FAT16   "),
    Signature("swap", 4086, b"SWAPSPACE2"),
    Signature("LUKS", 0, b"LUKS\xba\xbe"),
    Signature("LVM physical volume", 0x218, b"LVM2 001"),
    Signature("LVM physical volume", 0x18, b"LVM2 001"),
    Signature("Linux RAID", 4096, b"\xfc\x4e\x2b\xa9"),
    Signature("Linux RAID", 0, b"\xfc\x4e\x2b\xa9"),
    Signature("bcache", 0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca"),
    Signature("bluestore", 0, b"bluestore block device"),
    Signature("DRBD", 0, b"\x83\x74\x02\x6b"),
    Signature("squashfs", 0, b"hsqs"),
    Signature("iso9660", 0x8001, b"CD001"),
    Signature("gfs2", 0x10000, b"\x01\x16\x19\x70"),
    Signature("ocfs2", 0x2000, b"OCFSV2"),
    Signature("ZFS", 0x20000, b"\x0c\xb1\xba\x00"),
    Signature("GPT partition table", 512, b"EFI PART"),
    Signature("GPT partition table", 4096, b"EFI PART"),
    Signature("MBR partition table", 510, b"\x55\xaa"),
)
PROBE_BYTES: Final = 0x21000
assert max(signature.offset + len(signature.magic) for signature in SIGNATURES) <= PROBE_BYTES


def find_signatures(start: memoryview | bytes) -> list[str]:
    """Names of what the first PROBE_BYTES of a device show."""
    found = [name for name, offset, magic in SIGNATURES if bytes(start[offset : offset + len(magic)]) == magic]
    return list(dict.fromkeys(found))


def find_users(path: str) -> list[str]:
    """Who uses a block device: mounts, holders (device-mapper, md), partitions. Empty for a regular file."""
    if not Path(path).is_block_device():
        return []
    users = []
    number = os.stat(path).st_rdev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == wanted:
            users.append(f"mounted on {fields[4]}")
    directory = sysfs_directory(path)
    if directory is not None:
        users += [
            f"held by {holder.name} (one path of a multipath map, or part of a volume)" for holder in _children(directory / "holders")
        ]
        users += [f"has partition {child.name}" for child in _children(directory) if (child / "partition").exists()]
    return users


def _children(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []

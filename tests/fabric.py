"""Fabric fixtures: folders in tests/fixtures/fabric, unpacked into what ``hdactl paths --from`` reads.

``tree`` is a sysfs tree in one file: ``path = content``, ``path -> path it leads to`` (both from the root of sysfs), ``path/`` for an empty
folder. ``replies/`` is as a capture has it: what multipathd and dmsetup said, a file each.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hdad.fabric.capture import recorded_sources
from hdad.fabric.facts import Facts
from hdad.fabric.survey import survey

FIXTURES = Path(__file__).parent / "fixtures" / "fabric"


def unpack(name: str, folder: Path) -> Path:
    """The fixture, unpacked into a new folder below ``folder``."""
    place = folder / name
    root = place / "sys"
    for line in (FIXTURES / name / "tree").read_text().splitlines():
        if line.startswith("#"):
            continue
        if " -> " in line:
            path, _, target = line.partition(" -> ")
            link(root, path, target)
        elif " = " in f"{line} ":
            path, _, content = line.partition(" =")
            write(root, path, content.strip())
        else:
            (root / line).mkdir(parents=True, exist_ok=True)
    if (FIXTURES / name / "replies").is_dir():
        shutil.copytree(FIXTURES / name / "replies", place / "replies")
    else:
        (place / "replies").mkdir()
    return place


def pack(place: Path, name: str, comment: str) -> None:
    """A captured folder as a fixture."""
    root, lines = place / "sys", []
    for path in sorted(root.rglob("*")):
        where = path.relative_to(root)
        if path.is_symlink():
            lines.append(f"{where} -> {path.resolve().relative_to(root.resolve())}")
        elif path.is_file():
            lines.append(f"{where} = {path.read_text().strip()}".rstrip())
        elif not any(path.iterdir()):
            lines.append(f"{where}/")
    shutil.copytree(place / "replies", FIXTURES / name / "replies")
    (FIXTURES / name / "tree").write_text("".join(f"{line}\n" for line in [f"# {comment}", *lines]))


def write(root: Path, path: str, content: str) -> None:
    """One attribute."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(content + "\n")


def link(root: Path, path: str, target: str) -> None:
    """A symbolic link, relative as sysfs has them."""
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).symlink_to(os.path.relpath(root / target, (root / path).parent))


def read(folder: Path, device: str) -> Facts:
    """A whole survey of an unpacked fixture."""
    return list(survey(device, recorded_sources(str(folder))))[-1]

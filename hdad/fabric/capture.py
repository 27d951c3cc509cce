"""A survey written down, to be read again elsewhere: for a bug report, a vendor's case, a test. Edge.

A folder: ``sys/`` holds every attribute the survey asked for, with the links that lead to it, so that it is read as the live tree is;
``replies/`` what multipathd and device-mapper said. WWPNs and serial numbers are in it, nothing of the log is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from hdad.fabric.facts import Facts
from hdad.fabric.survey import Sources, survey
from hdad.fabric.tree import Tree


def _file_name(*words: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")


class Recorder:
    """Passes questions on, and keeps the replies. For the daemon and for the kernel."""

    def __init__(self, ask: Callable[..., str], replies: dict[str, str]) -> None:
        self._ask = ask
        self._replies = replies

    def ask(self, *words: str) -> str:
        """As the source it stands for."""
        reply = self._ask(*words)
        self._replies[_file_name(*words)] = reply
        return reply


class Recorded:
    """Answers from a captured folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ask(self, *words: str) -> str:
        """What was said then. Raises FileNotFoundError if nothing was."""
        return (self._folder / _file_name(*words)).read_text(encoding="utf-8")


def recorded_sources(folder: str) -> Sources:
    """A captured folder in place of this machine."""
    replies = Recorded(Path(folder) / "replies")
    return Sources(Tree(os.path.join(folder, "sys")), replies, replies)


def capture(device: str, sources: Sources, folder: str) -> Facts:
    """Survey, and write down into a new folder all that was read. Blocks as the sources do. Raises OSError."""
    replies: dict[str, str] = {}
    recording = Sources(sources.tree, Recorder(sources.daemon.ask, replies), Recorder(sources.kernel.ask, replies))
    facts = Facts(device)
    for stage in survey(device, recording):
        facts = stage
    root = Path(folder)
    (root / "replies").mkdir(parents=True)
    for name, reply in replies.items():
        (root / "replies" / name).write_text(reply, encoding="utf-8")
    _write_tree(sources.tree, root / "sys")
    return facts


def _write_tree(tree: Tree, root: Path) -> None:
    """Files and folders at their canonical places, and each link on the way to one. Links that lead elsewhere become empty folders."""
    for path, content in sorted(tree.seen.items()):
        place = ""
        for part in path.split("/"):
            step = f"{place}/{part}" if place else part
            if os.path.islink(os.path.join(tree.root, step)):
                target = os.path.relpath(os.path.realpath(os.path.join(tree.root, step)), tree.root)
                if target.startswith(".."):
                    break
                _link(root / step, root / target)
                step = target
            place = step
        else:
            where = root / place
            if content is None:
                if os.path.isdir(os.path.join(tree.root, place)):
                    where.mkdir(parents=True, exist_ok=True)
            else:
                where.parent.mkdir(parents=True, exist_ok=True)
                where.write_text(content + "\n", encoding="utf-8")


def _link(link: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(target, link.parent))

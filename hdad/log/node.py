"""Which host this is, and which life of its kernel. Edge: reads files, and writes one where the host has no identity."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Final

from hdad.errors import ConfigError

MACHINE_ID: Final = Path("/etc/machine-id")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
FILE_NAME: Final = "node-id"


def node_uuid(configured: str = "", state_directory: str = "") -> bytes:
    """This host's uuid: ``supervisor.node_id``; else the file node-id in the state directory; else machine-id(5); else one that is made up
    and kept in that file. Two hosts with one identity (cloned machines) would take each other for their own former life.

    Raises ConfigError for what is no uuid.
    """
    kept = Path(state_directory, FILE_NAME) if state_directory else None
    if configured:
        return _parsed(configured, "supervisor.node_id")
    if kept is not None and kept.exists():
        return _parsed(kept.read_text(encoding="ascii", errors="replace"), str(kept))
    try:
        return uuid.UUID(MACHINE_ID.read_text().strip()).bytes
    except (OSError, ValueError):
        made_up = uuid.uuid4()
    if kept is not None:
        try:
            fd = os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(
                "supervisor", "supervisor.node_id", "", f"this host has no machine-id, and {kept} cannot be made: {error.strerror}"
            ) from error
        with os.fdopen(fd, "w") as file:
            file.write(f"{made_up}\n")
            file.flush()
            os.fsync(file.fileno())
    return made_up.bytes


def _parsed(text: str, where: str) -> bytes:
    try:
        return uuid.UUID(text.strip()).bytes
    except ValueError as error:
        raise ConfigError("supervisor", where, text.strip()[:64], "allowed: a uuid, 32 hexadecimal digits") from error


def boot_uuid() -> bytes:
    """Of the running kernel (random(4)); zeros where it does not say."""
    try:
        return uuid.UUID(BOOT_ID.read_text().strip()).bytes
    except (OSError, ValueError):
        return bytes(16)

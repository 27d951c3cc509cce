"""Fixtures of all tests: private servers, daemons, logs. Everything is started here and ended by pid; traffic stays on Unix sockets."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import Daemon, RedisServer

# A shell that starts the tests in the background has them ignore ^C, and so would the programs that a test interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short path: Unix sockets have 107 bytes."""
    return tmp_path_factory.mktemp("h")


@pytest.fixture
def server(folder: Path) -> Iterator[RedisServer]:
    """A private Redis-compatible server with an append-only file."""
    with RedisServer(folder) as running:
        yield running


@pytest.fixture
def make_daemon(folder: Path, server: RedisServer) -> Iterator[Callable[..., Daemon]]:
    """Start daemons on ``server``; those that still run are killed at the end."""
    daemons: list[Daemon] = []

    def make(**options: object) -> Daemon:
        daemon = Daemon(folder, server.url, **options)  # type: ignore[arg-type]
        daemons.append(daemon)
        return daemon

    yield make
    for daemon in daemons:
        daemon.kill()

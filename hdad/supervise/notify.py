"""Words to systemd (sd_notify(3)): ready, status, watchdog, reloading, stopping. Silent where there is no systemd. Edge."""

from __future__ import annotations

import os
from typing import Final

import sdnotify

from hdad.clock import monotonic_ns

SEND_S_MAX: Final = 0.1  # LIMIT: a service manager that does not listen must not stop the supervisor


class Notifier:
    """``watchdog_interval_ns``: feed at least this often; 0: there is no watchdog."""

    def __init__(self) -> None:
        self._systemd = sdnotify.SystemdNotifier() if os.environ.get("NOTIFY_SOCKET") else None
        if self._systemd is not None and self._systemd.socket is not None:
            self._systemd.socket.settimeout(SEND_S_MAX)
        self._status = ""
        is_ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        usec = os.environ.get("WATCHDOG_USEC", "") if is_ours else ""
        self.watchdog_interval_ns = int(usec) * 1000 // 2 if usec.isdigit() else 0

    def ready(self) -> None:
        """Serving (again)."""
        self._notify("READY=1")

    def status(self, text: str) -> None:
        """One line for ``systemctl status``; sent when it changed."""
        if text != self._status:
            self._status = text
            self._notify(f"STATUS={text}")

    def watchdog(self) -> None:
        """Every role makes progress."""
        self._notify("WATCHDOG=1")

    def reloading(self) -> None:
        """A reload begins; ``ready`` ends it (Type=notify-reload)."""
        self._notify(f"RELOADING=1\nMONOTONIC_USEC={monotonic_ns() // 1000}")

    def stopping(self, text: str) -> None:
        """Draining."""
        self._notify(f"STOPPING=1\nSTATUS={text}")

    def extend(self, seconds: float) -> None:
        """Not finished, but at work: give us this much more."""
        self._notify(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def _notify(self, text: str) -> None:
        if self._systemd is not None:
            self._systemd.notify(text)

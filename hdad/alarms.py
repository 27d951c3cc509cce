"""Conditions that a person should see: raised once, cleared once, told to the supervisor over the command channel.

Runs in workers and in the writer. Keys name the thing (``lane:orders:1``), texts say what happened and what to do.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol


class Sender(Protocol):
    """The channel's sending half."""

    def send(self, message: dict[str, Any], /) -> bool: ...


class Alarms:
    """``raised`` maps keys to texts; it is bounded by lanes and connections."""

    def __init__(self, channel: Sender, logger: logging.Logger) -> None:
        self._channel = channel
        self._logger = logger
        self.raised: dict[str, str] = {}

    def set(self, key: str, text: str) -> None:
        """Raise an alarm, or change its text. Does nothing if it stands already with this text."""
        if self.raised.get(key) != text:
            self.raised[key] = text
            self._logger.warning("%s", text)
            self._channel.send({"event": "alarm", "key": key, "text": text})

    def clear(self, key: str, text: str = "") -> None:
        """End an alarm, if it stands."""
        if self.raised.pop(key, None) is not None:
            self._logger.info("%s", text or f"{key}: over")
            self._channel.send({"event": "clear", "key": key})

    def tell(self, text: str) -> None:
        """An event of the past, not a state: one log line and one entry among the last errors."""
        self._logger.warning("%s", text)
        self._channel.send({"event": "error", "key": "", "text": text})

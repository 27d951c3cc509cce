"""Commands and events between the supervisor and one child: a SOCK_SEQPACKET pair, one JSON object a message.

Owns the framing and the bound; either process holds one end. Never blocks: a peer that does not read loses messages, and the loss is
counted (a watchdog must not hang on a stuck child, nor a child on a stuck supervisor). Does not know what the messages mean.

supervisor → child: {"op": "drain" | "pause" | "resume" | "accept" | "reload" | "log-level" | "rebalance" | "worker-dead" | "promote" |
    "demote" | "rings-free" | "let-go" | "forward" | "writer-at", ...}
child → supervisor: {"event": "ready" | "drained" | "alarm" | "clear" | "lane-halted" | "error" | "role" | "has-let-go", "key": ..., ...}
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any, Final

import orjson

MESSAGE_BYTES_MAX: Final = 64 * 1024  # LIMIT: one message
RECEIVE_COUNT_MAX: Final = 256  # LIMIT: messages taken by one receive()


class Channel:
    """One end. ``fileno`` makes it fit for a selector."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self.dropped_count = 0  # messages that did not fit, were too long, or found no peer
        self.garbage_count = 0  # messages received that were no JSON object
        self.closed_by_peer = False

    def fileno(self) -> int:
        """The descriptor to select on for reading."""
        return self._socket.fileno()

    def send(self, message: Mapping[str, Any]) -> bool:
        """Send, or drop and count. True when the kernel took it. Never blocks, never raises for what the peer does."""
        data = orjson.dumps(message)
        if len(data) <= MESSAGE_BYTES_MAX:
            try:
                self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                return True
            except OSError:  # full (EAGAIN), or the peer is gone (EPIPE, ECONNRESET): both are a loss, and counted
                pass
        self.dropped_count += 1
        return False

    def receive(self) -> list[dict[str, Any]]:
        """All messages that are here, at most RECEIVE_COUNT_MAX; sets ``closed_by_peer`` at the end of the stream. Never blocks."""
        messages: list[dict[str, Any]] = []
        while len(messages) < RECEIVE_COUNT_MAX and not self.closed_by_peer:
            try:
                data = self._socket.recv(MESSAGE_BYTES_MAX, socket.MSG_DONTWAIT)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:  # ECONNRESET: the peer died with unread messages
                data = b""
            if not data:
                self.closed_by_peer = True
                break
            try:
                message = orjson.loads(data)
            except orjson.JSONDecodeError:
                message = None
            if isinstance(message, dict):
                messages.append(message)
            else:
                self.garbage_count += 1
        return messages

    def close(self) -> None:
        """Close this end; the peer then sees ``closed_by_peer``."""
        self._socket.close()


def create_pair() -> tuple[Channel, Channel]:
    """Two connected ends, both close-on-exec; the supervisor keeps one, the forked child the other."""
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(first), Channel(second)

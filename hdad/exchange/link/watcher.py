"""One epoll over bells, a supervisor's channel, and sockets that come and go. Edge."""

from __future__ import annotations

import select
from collections.abc import Iterable

from hdad.exchange.link.sockets import Wait


class Watcher:
    """``bells`` are rung, never read: each ring is an edge. The kernel forgets a socket that is closed, and its number may come again."""

    def __init__(self, bells: Iterable[int], channel: int) -> None:
        self._poll = select.epoll()
        for bell in bells:
            self._poll.register(bell, select.EPOLLIN | select.EPOLLET)
        self._poll.register(channel, select.EPOLLIN)
        self._watched: dict[int, tuple[object, int]] = {}

    def wait(self, waits: Iterable[Wait], timeout_s: float) -> None:
        """Until one of ``waits`` is ready, a bell was rung since the last wait, or the channel has a message; at most ``timeout_s``."""
        wanted: dict[int, tuple[object, int]] = {}
        for socket, wants_read, wants_write in waits:
            fd = socket.fileno()
            if fd >= 0:
                wanted[fd] = socket, select.EPOLLIN * wants_read | select.EPOLLOUT * wants_write
        if wanted != self._watched:
            self._watch(wanted)
        self._poll.poll(timeout_s)

    def _watch(self, wanted: dict[int, tuple[object, int]]) -> None:
        for fd, (socket, mask) in wanted.items():
            before = self._watched.get(fd)
            if before is not None and before == (socket, mask):
                continue
            try:
                self._poll.modify(fd, mask)
            except FileNotFoundError:
                self._poll.register(fd, mask)
        for fd in self._watched.keys() - wanted.keys():
            try:
                self._poll.unregister(fd)
            except OSError:  # it is closed, and forgotten
                pass
        self._watched = wanted

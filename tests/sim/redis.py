"""A Redis in memory that knows streams as hdad asks for them; stands in for ``hdad.source.redis_edge.RedisEdge``.

One ``Server`` outlives its restarts. Each worker has an ``Edge`` of its own. What is asked by XREAD is answered in RESP, by bytes that
arrive in pieces of any size, whenever the scheduler lets the worker look. A failover to an older copy, and DEL, too.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hdad.errors import SourceError
from hdad.record import ORIGIN, Position
from hdad.source.cursor import StreamInfo
from hdad.source.redis_edge import Missing, WrongType

Entry = tuple[Position, bytes]


@dataclass
class Stream:
    """``entries`` are those that are left. ``history``: all that were ever added; ``ever``: those that a rewind unmade, too."""

    entries: list[Entry] = field(default_factory=list)
    history: list[Entry] = field(default_factory=list)
    ever: set[Entry] = field(default_factory=set)
    numbers: dict[Position, int] = field(default_factory=dict)
    last: Position = ORIGIN
    max_deleted: Position = ORIGIN

    def add(self, ms: int, body: bytes) -> None:
        seq = self.last.seq + 1 if self.last.ms >= ms else 0
        self.last = Position(max(ms, self.last.ms), seq)
        while self.numbers.get(self.last) == len(self.history) + 1:  # the same ID with the same number in two copies: nobody can tell
            self.last = Position(self.last.ms, self.last.seq + 1)
        self.numbers[self.last] = len(self.history) + 1
        for entries in (self.entries, self.history):
            entries.append((self.last, body))
        self.ever.add((self.last, body))

    def after(self, position: Position, count: int) -> list[Entry]:
        start = bisect_right(self.entries, position, key=lambda entry: entry[0])
        return self.entries[start : start + count]

    def trim(self, below: Position) -> list[Position]:
        """Drop entries before ``below``. Returns their positions."""
        gone = [position for position, _ in self.entries if position < below]
        del self.entries[: len(gone)]
        if gone:
            self.max_deleted = max(self.max_deleted, gone[-1])
        return gone

    def delete(self, index: int) -> Position:
        """XDEL of one of ``entries``."""
        position, _ = self.entries.pop(index)
        self.max_deleted = max(self.max_deleted, position)
        return position

    def rewind(self, count: int) -> None:
        """A copy that had not got the last ``count`` entries takes over; what was dropped before stays dropped."""
        del self.history[len(self.history) - count :]
        self.last = self.history[-1][0] if self.history else ORIGIN
        self.entries = [entry for entry in self.entries if entry[0] <= self.last]
        self.max_deleted = min(self.max_deleted, self.last)


class Server:
    """``on_shown(name, position)`` and ``on_trim(name, below)``: what hdad says is durable, before it is done (I1)."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.streams: dict[bytes, Stream] = {}
        self.is_up = True
        self.incarnation = 0
        self.now_ns: Callable[[], int] = lambda: 0
        self.on_shown: Callable[[bytes, Position], None] = lambda name, position: None
        self.on_trim: Callable[[bytes, Position], None] = lambda name, below: None
        self.trip: Callable[[str], None] = lambda where: None

        self._gone: dict[bytes, Stream] = {}

    def stream(self, name: bytes) -> Stream:
        """It, made if need be; a deleted one begins anew."""
        if name not in self.streams:
            before = self._gone.pop(name, None)
            self.streams[name] = Stream(ever=before.ever, numbers=before.numbers) if before is not None else Stream()
        return self.streams[name]

    def delete(self, name: bytes) -> None:
        """DEL."""
        self._gone[name] = self.streams.pop(name)

    def restart(self) -> None:
        """All connections end; nothing is forgotten."""
        self.is_up = True
        self.incarnation += 1


class Hot:
    """One connection for XREAD."""

    client_id = 1

    def __init__(self, server: Server) -> None:
        self._server = server
        self._incarnation = server.incarnation
        self._asked: tuple[list[tuple[bytes, Position]], int, int] | None = None
        self._coming = b""
        self.is_unblocked = False

    def _check(self) -> None:
        if not self._server.is_up or self._server.incarnation != self._incarnation:
            raise SourceError("simulated: the connection is gone")

    def send(self, data: bytes) -> None:
        self._server.trip("xread")
        self._check()
        parts = data.split(b"\r\n")[2::2]
        assert parts[0] == b"XREAD" and parts[1] == b"COUNT"
        count, at, deadline_ns = int(parts[2]), 3, 0
        if parts[at] == b"BLOCK":
            deadline_ns = self._server.now_ns() + int(parts[at + 1]) * 1_000_000
            at += 2
        assert parts[at] == b"STREAMS"
        names = parts[at + 1 :]
        half = len(names) // 2
        self._asked = [(name, Position.parse(text)) for name, text in zip(names[:half], names[half:], strict=True)], count, deadline_ns
        self.is_unblocked = False

    def receive_into(self, view: memoryview) -> int:
        self._check()
        if not self._coming and self._asked is not None:
            self._answer(*self._asked)
        rng = self._server.rng
        if not self._coming or rng.random() < 0.2:
            return 0
        size = min(len(view), len(self._coming), rng.choice((1, 7, 200, 4000, 1 << 20)))
        view[:size], self._coming = self._coming[:size], self._coming[size:]
        return size

    def _answer(self, lanes: list[tuple[bytes, Position]], count: int, deadline_ns: int) -> None:
        found = []
        for name, position in lanes:
            stream = self._server.streams.get(name)
            entries = stream.after(position, count) if stream is not None else []
            if entries:
                body = b"".join(b"*2\r\n" + _bulk(b"%d-%d" % at) + b"*2\r\n" + _bulk(b"n") + _bulk(text) for at, text in entries)
                found.append(b"*2\r\n" + _bulk(name) + b"*%d\r\n" % len(entries) + body)
        if found:
            self._coming = b"*%d\r\n" % len(found) + b"".join(found)
        elif self.is_unblocked or self._server.now_ns() >= deadline_ns:
            self._coming = b"*-1\r\n"
        else:
            return
        self._asked = None

    def fileno(self) -> int:
        raise AssertionError("the simulation does not wait")

    def close(self) -> None:
        self._asked, self._coming = None, b""


def _bulk(data: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(data), data)


class Edge:
    """What a worker calls."""

    is_cluster = False

    def __init__(self, server: Server) -> None:
        self._server = server

    def _check(self, what: str) -> None:
        self._server.trip(what)
        if not self._server.is_up:
            raise SourceError("simulated: Redis does not answer")

    def close(self) -> None:
        pass

    def slot_of(self, key: bytes) -> int:
        return 0

    def open_hot(self, key: bytes) -> Hot:
        self._check("connect")
        return Hot(self._server)

    def unblock(self, hot: Hot, key: bytes) -> None:
        self._check("unblock")
        hot.is_unblocked = True

    def scan(self, cursor: int, pattern: bytes, count: int = 1000) -> tuple[int, list[bytes]]:
        self._check("scan")
        return 0, list(self._server.streams)

    def stream_infos(self, names: Sequence[bytes]) -> list[StreamInfo | Missing | WrongType]:
        self._check("infos")
        return [self._info(name) for name in names]

    def _info(self, name: bytes) -> StreamInfo | Missing:
        stream = self._server.streams.get(name)
        if stream is None:
            return Missing()
        first = stream.entries[0][0] if stream.entries else None
        return StreamInfo(len(stream.entries), len(stream.history), stream.last, first, stream.max_deleted)

    def other_groups(self, name: bytes, own: bytes) -> list[object]:
        return []

    def set_groups(self, group: bytes, lanes: Sequence[tuple[bytes, Position, int | None]]) -> list[str]:
        self._check("groups")
        for name, position, _ in lanes:
            self._server.on_shown(name, position)
        return []

    def trim(self, name: bytes, below: Position) -> int:
        self._check("trim")
        if name not in self._server.streams:
            return 0
        self._server.on_trim(name, below)
        return len(self._server.streams[name].trim(below))

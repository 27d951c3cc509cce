"""A Redis in memory that knows streams as hdad asks for them; stands in for ``hdad.source.redis_edge.RedisEdge``.

One ``Server`` outlives its restarts; it is one server, or a Cluster of ``SLOTS`` slots. Each worker has an ``Edge`` of its own. What is
asked by XREAD is answered in RESP, by bytes that arrive in pieces of any size, whenever the scheduler lets the worker look. It restarts, is
away, falls silent without a word, answers with errors and with what is no RESP; keys change their type, are deleted, and go back to an
older copy; another consumer group reads along.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from hdad.errors import SourceError
from hdad.record import ORIGIN, Position
from hdad.source.cursor import StreamInfo
from hdad.source.redis_edge import GroupState, Missing, WrongType

Entry = tuple[Position, bytes]
SLOTS: Final = 3
WRONGTYPE: Final = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"


@dataclass
class Stream:
    """``entries`` are those that are left. ``history``: all that were ever added; ``ever``: those that a rewind unmade, too.

    ``group``: what hdad's own group shows. ``other``: what another group was given; ``pending``: the oldest of it not acknowledged.
    """

    entries: list[Entry] = field(default_factory=list)
    history: list[Entry] = field(default_factory=list)
    ever: set[Entry] = field(default_factory=set)
    numbers: dict[Position, int] = field(default_factory=dict)
    last: Position = ORIGIN
    max_deleted: Position = ORIGIN
    group: tuple[Position, int | None] = (ORIGIN, None)
    other: Position | None = None
    pending: Position | None = None

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
        self.group = min(self.group[0], self.last), None
        if self.other is not None:
            self.other, self.pending = min(self.other, self.last), None

    def read_by_other(self, rng: random.Random) -> None:
        """The other group takes some entries, acknowledges some, or comes into being."""
        if self.other is None:
            self.other = ORIGIN
            return
        taken = self.after(self.other, rng.randint(0, 5))
        if taken:
            self.pending = taken[0][0] if self.pending is None else self.pending
            self.other = taken[-1][0]
        if rng.random() < 0.5:
            self.pending = None if rng.random() < 0.7 or not taken else taken[-1][0]


class Server:
    """``on_shown(name, position)`` and ``on_trim(name, below)``: what hdad says is durable, before it is done (I1).

    ``wrong``: keys that are of another type for a while. ``replies``: what the next XREADs are answered instead of entries.
    """

    def __init__(self, rng: random.Random, is_cluster: bool = False) -> None:
        self.rng = rng
        self.is_cluster = is_cluster
        self.streams: dict[bytes, Stream] = {}
        self.is_up = True
        self.incarnation = 0
        self.wrong: set[bytes] = set()
        self.replies: list[bytes] = []
        self.pieces: tuple[int, ...] = (1, 7, 200, 4000, 1 << 20)
        self.connections = 0
        self.silenced = 0
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

    def seen(self, name: bytes) -> Stream | None:
        """It, as long as the key is a stream."""
        return self.streams.get(name) if name not in self.wrong else None

    def delete(self, name: bytes) -> None:
        """DEL."""
        self.wrong.discard(name)
        self._gone[name] = self.streams.pop(name)

    def restart(self) -> None:
        """All connections end; nothing is forgotten."""
        self.is_up = True
        self.incarnation += 1

    def fall_silent(self) -> None:
        """From now on no connection that is there carries anything, and nobody says that it is gone (a host that vanished)."""
        self.silenced = self.connections

    def slot(self, name: bytes) -> int:
        """Of a Cluster; 0 otherwise."""
        return name[-1] % SLOTS if self.is_cluster else 0


class Hot:
    """One connection for XREAD."""

    client_id = 1

    def __init__(self, server: Server, key: bytes) -> None:
        self._server = server
        self._slot = server.slot(key)
        self._incarnation = server.incarnation
        server.connections += 1
        self._number = server.connections
        self._asked: tuple[list[tuple[bytes, Position]], int, int] | None = None
        self._coming = b""
        self.is_unblocked = False

    def _check(self) -> None:
        if not self._server.is_up or self._server.incarnation != self._incarnation:
            raise SourceError("simulated: the connection is gone")

    @property
    def _is_silent(self) -> bool:
        return self._number <= self._server.silenced

    def send(self, data: bytes) -> None:
        self._server.trip("xread")
        if self._is_silent:  # into the kernel's buffer
            return
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
        assert {self._server.slot(name) for name in names[:half]} == {self._slot}, "CROSSSLOT"
        self._asked = [(name, Position.parse(text)) for name, text in zip(names[:half], names[half:], strict=True)], count, deadline_ns
        self.is_unblocked = False

    def receive_into(self, view: memoryview) -> int:
        if self._is_silent:
            return 0
        self._check()
        if not self._coming and self._asked is not None:
            self._answer(*self._asked)
        rng = self._server.rng
        if not self._coming or rng.random() < 0.2:
            return 0
        size = min(len(view), len(self._coming), rng.choice(self._server.pieces))
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
        if self._server.replies:
            self._coming = self._server.replies.pop()
        elif any(name in self._server.wrong for name, _ in lanes):
            self._coming = WRONGTYPE
        elif found:
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

    def __init__(self, server: Server) -> None:
        self._server = server
        self.is_cluster = server.is_cluster

    def _check(self, what: str) -> None:
        self._server.trip(what)
        if not self._server.is_up:
            raise SourceError("simulated: Redis does not answer")

    def close(self) -> None:
        pass

    def slot_of(self, key: bytes) -> int:
        return self._server.slot(key)

    def open_hot(self, key: bytes) -> Hot:
        self._check("connect")
        return Hot(self._server, key)

    def unblock(self, hot: Hot, key: bytes) -> None:
        self._check("unblock")
        hot.is_unblocked = True

    def scan(self, cursor: int, pattern: bytes, count: int = 1000) -> tuple[int, list[bytes]]:
        self._check("scan")
        return 0, [name for name in self._server.streams if name not in self._server.wrong]

    def stream_infos(self, names: Sequence[bytes]) -> list[StreamInfo | Missing | WrongType]:
        self._check("infos")
        return [self._info(name) for name in names]

    def _info(self, name: bytes) -> StreamInfo | Missing | WrongType:
        if name in self._server.wrong:
            return WrongType("WRONGTYPE")
        stream = self._server.streams.get(name)
        if stream is None:
            return Missing()
        first = stream.entries[0][0] if stream.entries else None
        return StreamInfo(len(stream.entries), len(stream.history), stream.last, first, stream.max_deleted)

    def other_groups(self, name: bytes, own: bytes) -> list[GroupState]:
        self._check("other groups")
        stream = self._server.seen(name)
        if stream is None or stream.other is None:
            return []
        return [GroupState(b"other", stream.other, stream.pending)]

    def set_groups(self, group: bytes, lanes: Sequence[tuple[bytes, Position, int | None]]) -> dict[bytes, str]:
        self._check("groups")
        refused = {}
        for name, position, ordinal in lanes:
            if name in self._server.wrong:
                refused[name] = "WRONGTYPE"
            elif name in self._server.streams:
                self._server.on_shown(name, position)
                self._server.streams[name].group = position, ordinal
        return refused

    def group_positions(self, group: bytes, names: Sequence[bytes]) -> dict[bytes, Position]:
        self._check("group positions")
        return {name: stream.group[0] for name in names if (stream := self._server.seen(name)) is not None and stream.group[0] > ORIGIN}

    def trim(self, name: bytes, below: Position) -> int:
        self._check("trim")
        if name in self._server.wrong:
            raise SourceError("WRONGTYPE")
        if name not in self._server.streams:
            return 0
        self._server.on_trim(name, below)
        return len(self._server.streams[name].trim(below))

"""Which streams there are: the names in the configuration and what its patterns find, in bounded steps; told to the writer in HELLOs.

Runs in a worker. A stream that was seen stays; one that is deleted stays a lane and waits. A HELLO holds at most STREAMS_PER_HELLO
streams and goes out when the ring has room.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Final

from hdad.alarms import Alarms
from hdad.limits import LANE_NAME_BYTES_MAX, LANES_MAX
from hdad.record import ORIGIN, Position
from hdad.source.cursor import StreamInfo
from hdad.source.redis_edge import RedisEdge

STREAMS_PER_HELLO: Final = 512
SCAN_STEPS_MAX: Final = 8  # LIMIT: SCAN calls of one round, so that a server with millions of keys is walked in turns
_PATTERN_SIGNS: Final = frozenset("*?[")


def is_pattern(text: str) -> bool:
    """True: ``text`` is a glob pattern and not a name."""
    return any(sign in _PATTERN_SIGNS for sign in text)


class Discovery:
    """``start_at_end``: streams that exist at the first look begin at their end; later ones always at their beginning."""

    def __init__(self, edge: RedisEdge, alarms: Alarms, streams: Sequence[str], start_at_end: bool, reads_copies: bool = False) -> None:
        self._edge = edge
        self._alarms = alarms
        self._start_at_end = start_at_end
        self._reads_copies = reads_copies
        self._known: dict[bytes, tuple[Position, int]] = {}
        self._unsent: deque[bytes] = deque()
        self.set_streams(streams)
        self._is_first_round = True

    def set_streams(self, streams: Sequence[str]) -> None:
        """New names and patterns (reload). Streams known already stay."""
        self._names = [text.encode("utf-8", "surrogateescape") for text in streams if not is_pattern(text)]
        self._patterns = [text.encode("utf-8", "surrogateescape") for text in streams if is_pattern(text)]
        self._cursor = 0
        self._pattern_index = 0

    @property
    def count(self) -> int:
        """Streams known."""
        return len(self._known)

    def restart(self) -> None:
        """The writer is new: tell it everything again."""
        self._unsent = deque(self._known)

    def look(self) -> int:
        """One bounded round of looking. Returns how many streams are new. Raises SourceError."""
        from_end = self._start_at_end and self._is_first_round
        found = [name for name in self._names if name not in self._known]
        found += self._scan()
        fresh = self._acceptable(dict.fromkeys(found))
        for start in range(0, len(fresh), STREAMS_PER_HELLO):
            self._learn(fresh[start : start + STREAMS_PER_HELLO], from_end)
        return len(fresh)

    def _scan(self) -> Iterator[bytes]:
        for _ in range(SCAN_STEPS_MAX):
            if not self._patterns:
                break
            pattern = self._patterns[self._pattern_index % len(self._patterns)]
            self._cursor, names = self._edge.scan(self._cursor, pattern)
            yield from (name for name in names if name not in self._known)
            if self._cursor == 0:
                self._pattern_index += 1
                if self._pattern_index % len(self._patterns) == 0:
                    self._is_first_round = False
                    return
        if not self._patterns:
            self._is_first_round = False

    def _acceptable(self, names: dict[bytes, None]) -> list[bytes]:
        accepted: list[bytes] = []
        for name in names:
            if len(name) > LANE_NAME_BYTES_MAX:
                text = os.fsdecode(name[:60])
                self._alarms.set(
                    f"name:{text}", f"stream {text}… has a name of {len(name)} bytes; at most {LANE_NAME_BYTES_MAX}: it is not read"
                )
            elif len(self._known) + len(accepted) >= LANES_MAX:
                self._alarms.set("lanes", f"more than {LANES_MAX} streams; further ones are not read")
                break
            else:
                accepted.append(name)
        return accepted

    def _learn(self, names: Sequence[bytes], from_end: bool) -> None:
        for name, info in zip(names, self._edge.stream_infos(names), strict=True):
            start, before = ORIGIN, 0
            if isinstance(info, StreamInfo):
                if from_end:
                    start, before = info.last, info.entries_added
                else:
                    before = info.entries_added - info.length
                    if self._reads_copies and before:  # a replica may still have what its master has dropped: not ours any more
                        start = info.last if info.first is None else info.first.predecessor()
            self._known[name] = (start, before)
            self._unsent.append(name)

    def next_hello(self) -> dict[str, Any]:
        """Some of the streams that the writer was not told of yet; names as Latin-1 text. ``sent`` afterwards if it went out."""
        names = [self._unsent[index] for index in range(min(STREAMS_PER_HELLO, len(self._unsent)))]
        return {name.decode("latin-1"): [*self._known[name][0], self._known[name][1]] for name in names}

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def sent(self, count: int) -> None:
        """The first ``count`` of the untold streams went out."""
        for _ in range(count):
            self._unsent.popleft()

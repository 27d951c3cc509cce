"""One connection that reads some lanes: a request in flight, a reply arriving, a reply being harvested.

Runs in a worker. Owns the read-ahead: as soon as a reply is complete its positions are known, so the next request goes out before the
reply is packed, and Redis works while the worker does. At most one request and one unharvested reply exist (I7). A single server has
one port; a Cluster one for each slot, since an XREAD must not cross slots. Does not reconnect by itself: the loop decides when.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from hdad._core import XReadReply
from hdad.errors import SourceError
from hdad.record import Position
from hdad.source.redis_edge import HotConnection, encode_xread
from hdad.worker.harvest import Item
from hdad.worker.lane import Lane

REPLY_BYTES_TARGET: Final = 4 * 1024 * 1024  # of one reply: enough to amortise a round trip, little enough to stay small
ENTRY_BYTES_GUESS: Final = 512
IDLE_LANES_PER_READ: Final = 256  # a stream named in a read costs the server 0.2 us, busy or idle (DESIGN 8)
READS_UNTIL_BOLDER: Final = 16


class Request(NamedTuple):
    """What was asked for: lanes, from where, how many entries of each."""

    lanes: dict[bytes, tuple[Lane, Position]]
    count_max: int
    is_blocking: bool


class Caution(NamedTuple):
    """How much to ask for, after replies that were too large."""

    count_max: int
    lanes_max: int


_CAUTIONS: Final = (Caution(2**31, 2**31), Caution(1, 2**31), Caution(1, 1))


class Port:
    """``slot``: the Cluster slot, or 0. ``lanes``: those it reads, in order of assignment."""

    def __init__(self, slot: int, reply_bytes_max: int, count_max: int, block_ms: int, timeout_ms: int) -> None:
        self.slot = slot
        self.lanes: list[Lane] = []
        self.unchecked: list[Lane] = []  # to be compared with their streams before they are read
        self.hot: HotConnection | None = None
        self.request: Request | None = None
        self.is_complete = False  # the reply to ``request`` is here, whole
        self.harvest: deque[Item] = deque()
        self.check_due_ns = 0
        self.check_turn = 0  # the first lane of the next look
        self.retry_ns = 0
        self.failures = 0
        self._reply_bytes_max = reply_bytes_max
        self._count_max = count_max
        self._block_ms = block_ms
        self._timeout_ns = timeout_ms * 1_000_000
        self._heard_ns = 0  # when the request was sent, or bytes of its reply came last
        self._arriving = XReadReply(reply_bytes_max)
        self.harvested = XReadReply(reply_bytes_max)
        self._entry_bytes = float(ENTRY_BYTES_GUESS)
        self._caution = 0
        self._reads_at_caution = 0
        self._turn = 0

    def fileno(self) -> int:
        """For a selector; only while ``hot`` is there."""
        assert self.hot is not None
        return self.hot.fileno()

    @property
    def wants_bytes(self) -> bool:
        """True: it waits for bytes of a reply."""
        return self.hot is not None and self.request is not None and not self.is_complete

    def close(self) -> None:
        """Drop the connection and what was on its way; a reply that is whole stays to be harvested."""
        if self.hot is not None:
            self.hot.close()
        self.hot = None
        self.request = None
        self.is_complete = False
        self._arriving = XReadReply(self._reply_bytes_max)
        self.unchecked = list(self.lanes)

    def send(self, now_ns: int) -> bool:
        """Ask for the next entries. False: there is no lane to read. Raises SourceError."""
        assert self.hot is not None and self.request is None
        lanes, is_blocking = self._choose()
        if not lanes:
            return False
        count = self._count(len(lanes))
        block_ms = self._block_ms if is_blocking else None
        self.hot.send(encode_xread(count, block_ms, [lane.key for lane in lanes], [lane.read for lane in lanes]))
        self.request = Request({lane.name: (lane, lane.read) for lane in lanes}, count, is_blocking)
        self._heard_ns = now_ns
        return True

    def _choose(self) -> tuple[Sequence[Lane], bool]:
        """The lanes of the next read, and whether it may wait: busy ones each time, idle ones in turns, all when none is busy."""
        readable = [lane for lane in self.lanes if not lane.halted]
        limit = _CAUTIONS[self._caution].lanes_max
        if limit < len(readable):
            self._turn += 1
            return [readable[self._turn % len(readable)]], False
        if len(readable) <= IDLE_LANES_PER_READ:
            return readable, True
        busy = [lane for lane in readable if lane.busy]
        if not busy:
            return readable, True
        start = self._turn % len(readable)
        self._turn = start + IDLE_LANES_PER_READ
        turn = [lane for lane in (readable + readable)[start : start + IDLE_LANES_PER_READ] if not lane.busy]
        return busy + turn, False

    def _count(self, lane_count: int) -> int:
        room = min(REPLY_BYTES_TARGET, self._reply_bytes_max // 2)
        fitting = int(room / (lane_count * self._entry_bytes))
        return max(1, min(self._count_max, fitting, _CAUTIONS[self._caution].count_max))

    def receive(self, now_ns: int) -> int:
        """Take the bytes that are here. Returns how many. Raises SourceError, ValueError (not RESP), OverflowError (reply too large).

        A server that vanished without a word says nothing for ever, and TCP is content with that: silence beyond the time limit is an
        error, too.
        """
        assert self.hot is not None
        total = 0
        while not self.is_complete:
            size = self.hot.receive_into(self._arriving.space())
            if not size:
                break
            total += size
            self.is_complete = self._arriving.commit(size)
        if total:
            self._heard_ns = now_ns
        elif now_ns - self._heard_ns > self._timeout_ns:
            raise SourceError(f"Redis has been silent for {self._timeout_ns / 1e9:g} s (redis.socket_timeout_ms)")
        return total

    def accept(self) -> XReadReply:
        """The complete reply; ``request`` stays. Call ``begin`` or ``discard`` then."""
        assert self.is_complete
        return self._arriving

    def discard(self) -> None:
        """Done with a reply that holds no entries: none of the lanes asked for is busy any more."""
        for lane, _ in self.request.lanes.values() if self.request is not None else ():
            lane.busy = False
        self._arriving.reset()
        self.request, self.is_complete = None, False
        self._grow_bolder()

    def begin(self) -> int:
        """Advance the lanes past a reply with entries, and make it the one being harvested. Returns how many entries it has.

        The reply may hold lanes that are no longer read here, or not from there: those are left out.
        """
        assert self.request is not None and not self.harvest
        reply = self._arriving
        size = reply.buffered
        request, self.request, self.is_complete = self.request, None, False
        for lane, _ in request.lanes.values():
            lane.busy = False
        total = 0
        for index, (name, count, _first_ms, _first_seq, last_ms, last_seq) in enumerate(reply.streams):
            total += count
            asked = request.lanes.get(name)
            if asked is None or not count:
                continue
            lane, asked_from = asked
            if lane.read != asked_from or lane not in self.lanes or lane.halted:
                continue
            last = Position(last_ms, last_seq)
            if lane.mark is not None and last >= lane.mark[0]:
                _prove(lane, reply.entries(index))
            lane.advance(last, count)
            lane.busy = True
            self.harvest.append(Item(lane, index, count, min(size, self._reply_bytes_max)))
        if total:
            self._entry_bytes += 0.2 * (size / total - self._entry_bytes)
        self._arriving, self.harvested = self.harvested, self._arriving
        self._arriving.reset()
        self._grow_bolder()
        return total

    def _grow_bolder(self) -> None:
        if self._caution:
            self._reads_at_caution += 1
            if self._reads_at_caution > READS_UNTIL_BOLDER + len(self.lanes) * (self._caution == 2):
                self._caution -= 1
                self._reads_at_caution = 0

    def grow_cautious(self) -> tuple[Lane, Position] | None:
        """A reply was larger than ``reply_bytes_max``: ask for less. When one entry alone is that large: its lane and position."""
        request = self.request
        if request is not None and request.count_max == 1 and len(request.lanes) == 1:
            found = self._arriving.partial_id()
            ((lane, asked_from),) = request.lanes.values()
            if found is not None and found[0] == lane.name and lane.read == asked_from:
                return lane, Position(found[1], found[2])
        self._caution = min(self._caution + 1, len(_CAUTIONS) - 1)
        self._reads_at_caution = 0
        return None


def _prove(lane: Lane, entries: Sequence[tuple[int, int, bytes]]) -> None:
    """``entries`` come after ``read`` and reach the mark: are there as many up to it as the server said?"""
    assert lane.mark is not None
    (at, added), lane.mark = lane.mark, None
    lane.is_proven = lane.ordinal + sum(entry[:2] <= at for entry in entries) == added

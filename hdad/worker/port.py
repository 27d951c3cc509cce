"""One connection that reads some lanes: a request in flight, a reply arriving, a reply being harvested.

Runs in a worker. Owns the read-ahead: as soon as a reply is complete its positions are known, so the next request goes out before the
reply is packed, and Redis works while the worker does. At most one request and one unharvested reply exist (I7). A single server has
one port; a Cluster one for each slot, since an XREAD must not cross slots. Does not reconnect by itself: the loop decides when.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

from hdad._core import Record, XReadReply
from hdad.errors import SourceError
from hdad.record import Position
from hdad.source.redirect import Address
from hdad.source.redis_edge import HotConnection, encode_xread
from hdad.worker.harvest import Item
from hdad.worker.lane import Lane
from hdad.worker.turns import Turns

REPLY_BYTES_TARGET: Final = 3 * 1024 * 1024 // 2  # of one reply: amortises a round trip; for more, a server takes new pages each time
REPLY_BYTES_OF_MANY: Final = 4 * 1024 * 1024  # of more lanes: each one's part is a frame, and a small frame costs more than pages
LANES_FEW: Final = 64
ENTRY_BYTES_GUESS: Final = 16 * 1024  # before the first reply: a small one tells; a reply over the limit costs the connection
READS_UNTIL_BOLDER: Final = 16
RARE_NS: Final = 50_000_000  # entries that a read has to wait for so long are rare: the next read may wait for them, too
ALONE_BLOCK_MS: Final = 20  # a read of one lane among several does not let the others wait for long


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
        self.watched: HotConnection | None = None  # what the loop's epoll knows of
        self.is_readable = True  # False: epoll has just said that no bytes are there
        self.request: Request | None = None
        self.is_complete = False  # the reply to ``request`` is here, whole
        self.harvest: deque[Item] = deque()
        self.check_due_ns = 0
        self.check_turn = 0  # the first lane of the next look
        self.retry_ns = 0
        self.failures = 0
        self.at: Address | None = None  # where to connect, if not where the client would; see worker/following for these
        self.is_asking = False
        self.home_due_ns = 0
        self.redirects = 0
        self.is_copy = False  # ``hot`` leads to a replica
        self.avoided: Address | None = None
        self.still_looks = 0
        self.has_advanced = False
        self._alone = 0  # reads that name one lane each
        self._reply_bytes_max = reply_bytes_max
        self._count_max = count_max
        self._block_ms = block_ms
        self._timeout_ns = timeout_ms * 1_000_000
        self._asked_ns = 0  # when the request was sent
        self._heard_ns = 0  # when it was, or bytes of its reply came last
        self._arriving = XReadReply(reply_bytes_max)
        self.harvested = XReadReply(reply_bytes_max)
        self._entry_bytes = float(ENTRY_BYTES_GUESS)
        self._has_learned = False
        self._caution = 0
        self._reads_at_caution = 0
        self._turns = Turns(self.lanes)

    def fileno(self) -> int:
        """For a selector; only while ``hot`` is there."""
        assert self.hot is not None
        return self.hot.fileno()

    @property
    def has_reply(self) -> bool:
        """True: a reply with entries is here, whole."""
        return self.is_complete and self._arriving.kind == "streams"

    def reconsider(self) -> None:
        """Lanes came, went, or changed their state: look again which ones are read."""
        self._turns.reconsider()

    def take(self, lane: Lane) -> None:
        """One more lane to read, after a look at its stream."""
        self.lanes.append(lane)
        self.unchecked.append(lane)
        self.reconsider()

    def leave(self, lane: Lane) -> None:
        """One lane less; nothing if it is not here."""
        for lanes in (self.lanes, self.unchecked):
            if lane in lanes:
                lanes.remove(lane)
                self.reconsider()

    def read_alone(self) -> None:
        """Name one lane a read for a while."""
        self._alone = READS_UNTIL_BOLDER + 2 * len(self.lanes)

    def close(self) -> None:
        """Drop the connection and what was on its way; a reply that is whole stays to be harvested."""
        if self.hot is not None:
            self.hot.close()
        self.hot = None
        self.is_readable = True
        self.request = None
        self.is_complete = False
        self._arriving = XReadReply(self._reply_bytes_max)
        self.unchecked = list(self.lanes)

    def send(self, now_ns: int) -> bool:
        """Ask for the next entries. False: there is no lane to read. Raises SourceError."""
        assert self.hot is not None and self.request is None
        lanes, block_ms = self._choose()
        if not lanes:
            return False
        count = self._count(len(lanes))
        self.hot.send(encode_xread(count, block_ms, [lane.key for lane in lanes], [lane.read for lane in lanes]))
        self.request = Request({lane.name: (lane, lane.read) for lane in lanes}, count, block_ms is not None)
        self._asked_ns = self._heard_ns = now_ns
        return True

    def _choose(self) -> tuple[Sequence[Lane], int | None]:
        """The lanes of the next read, and how long it may wait (ms; None: not at all)."""
        readable = self._turns.readable
        if self._alone and len(readable) > 1:
            self._alone -= 1
            return self._turns.one(), min(ALONE_BLOCK_MS, self._block_ms)
        if _CAUTIONS[self._caution].lanes_max < len(readable):
            return self._turns.one(), None
        lanes, may_wait = self._turns.next()
        return lanes, self._block_ms if may_wait else None

    def _count(self, lane_count: int) -> int:
        room = min(REPLY_BYTES_TARGET if lane_count <= LANES_FEW else REPLY_BYTES_OF_MANY, self._reply_bytes_max // 2)
        fitting = int(room / (lane_count * self._entry_bytes))
        return max(1, min(self._count_max, fitting, _CAUTIONS[self._caution].count_max))

    def receive(self, now_ns: int) -> int:
        """Take the bytes that are here. Returns how many. Raises SourceError (also of silence), ValueError (not RESP), OverflowError (reply
        too large)."""
        assert self.hot is not None
        total = 0
        while not self.is_complete:
            size = self.hot.receive_into(self._arriving.space())
            if not size:
                self.is_readable = False
                break
            if self.request is None:
                raise ValueError("bytes that nobody asked for")
            total += size
            self.is_complete = self._arriving.commit(size)
        if total:
            self._heard_ns = now_ns
        elif self.is_silent(now_ns):
            raise SourceError(f"Redis has been silent for {self._timeout_ns / 1e9:g} s (redis.socket_timeout_ms)")
        return total

    def is_silent(self, now_ns: int) -> bool:
        """A server that vanished without a word says nothing for ever, and TCP is content with that: the answer is overdue."""
        return self.request is not None and now_ns - self._heard_ns > self._timeout_ns

    def accept(self) -> XReadReply:
        """The complete reply; ``request`` stays. Call ``begin`` or ``discard`` then."""
        assert self.is_complete
        return self._arriving

    def discard(self) -> None:
        """Done with a reply that holds no entries: none of the lanes asked for is busy any more."""
        if self.request is not None:
            self._turns.asked(lane for lane, _ in self.request.lanes.values())
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
        self._turns.asked(lane for lane, _ in request.lanes.values())
        total = 0
        for index, (name, count, _first_ms, _first_seq, last_ms, last_seq) in enumerate(reply.streams):
            total += count
            asked = request.lanes.get(name)
            if asked is None or not count:
                continue
            lane, asked_from = asked
            if lane.read != asked_from or lane.is_dropped or lane.halted:
                continue
            last = Position(last_ms, last_seq)
            if lane.mark is not None and last >= lane.mark[0]:
                _prove(lane, reply.records(index, lane.stream))
            lane.advance(last, count)
            self._turns.had(lane, count, request.count_max)
            self.harvest.append(Item(lane, index, count, min(size, self._reply_bytes_max)))
        if total:
            self.has_advanced = True
            self._entry_bytes = _learned(self._entry_bytes, size / total, self._has_learned)
            self._has_learned = True
            if self._heard_ns - self._asked_ns < RARE_NS:
                self._turns.ask_all_again()
        self._arriving, self.harvested = self.harvested, self._arriving
        self._arriving.reset()
        self._grow_bolder()
        return total

    def _grow_bolder(self) -> None:
        if self._caution:
            self._reads_at_caution += 1
            until_all = len(self.lanes) if self._caution == 2 else self._turns.reads_until_all  # then the lane that was too much has come
            if self._reads_at_caution > READS_UNTIL_BOLDER + until_all:
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


def _prove(lane: Lane, entries: Sequence[Record]) -> None:
    """``entries`` come after ``read`` and reach the mark: are there as many up to it as the server said?"""
    assert lane.mark is not None
    (at, added), lane.mark = lane.mark, None
    lane.is_proven = lane.ordinal + sum(entry.position <= at for entry in entries) == added


def _learned(known: float, seen: float, has_learned: bool) -> float:
    """Bytes of an entry: up at once, since too much is lost with its connection; down slowly."""
    return seen if seen > known or not has_learned else known + 0.2 * (seen - known)

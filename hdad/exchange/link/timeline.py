"""How long is too long on a link: every limit follows from one number, ``link.silence_ms``. Pure.

    silence = 3000 ms is the default. What a peer that lives can need between two messages, at worst:
       500 ms    its ping was due: one is sent each silence/6 when nothing else was
     + 200 ms    a round of its loop: it reads and writes at most a few MiB between two looks at the clock, and its CPU may be taken
     + 1400 ms   three retransmissions of one lost packet: 200, 400, 800 ms (TCP_RTO_MIN and doubling, tcp(7), RFC 6298)
     =2100 ms    < silence. With 1/6 of it, two pings in a row may be lost whole before a living peer is given up.

    A worker host dies, or its cable is cut, at t:
       t                   its last message
       t + silence         the writer's host gives it up: a frame in its rings tells the writer, behind all frames that had come
       + 20 ms             the writer gathers news (members.SETTLE_NS) and assigns its lanes to others, under new epochs
       + 100 ms            a round of each: link, writer, worker; the worker looks at the streams and reads
     So lanes of a dead or silent host move within silence + 0.2 s; lanes of a host whose kernel closes the connection, at once.

    The writer's host dies at t: worker hosts give it up at t + silence, or at once when its kernel says so, and ask the candidates in
    turn: each at most ``connect`` long, then a pause that doubles from 50 ms to 500 ms. So a new writer is found within
    connect + 0.5 s after it serves, when the others do not answer, and within 0.5 s when they refuse.

    A link that stands still (SIGSTOP) longer than silence is given up as if it were dead; what it had sent is in the rings and counts. When
    it wakes up its connection is closed, it drops what its rings hold and asks its workers to begin anew. After ``stall_ns`` of the
    supervisor (15 s) it is killed and forked again; that is later than silence (at most 10 s), so both ends have their order.

    A peer that sends a byte now and then is not silent and makes no progress: a message must be whole within ``stall`` of its beginning.
    256 KiB (wire.PIECE_BYTES_MAX) in 4 × 3 s are 22 KB/s: slower networks need a larger silence. What a peer does not read for ``stall``
    ends the connection as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MS: Final = 1_000_000
SILENCE_MS_MIN: Final = 300
SILENCE_MS_MAX: Final = 10_000
PINGS_PER_SILENCE: Final = 6
BACKOFF_MIN_NS: Final = 50 * MS
BACKOFF_MAX_NS: Final = 500 * MS
CONNECT_NS_MAX: Final = 2000 * MS
CHANNEL_RETRY_NS: Final = 200 * MS  # a writer without a free ring is asked again
CHANNEL_IDLE_NS: Final = 10_000 * MS  # a channel without a worker is closed


@dataclass(frozen=True, slots=True)
class Timeline:
    """The limits of one connection, nanoseconds. ``silence_ns``: ours; ``peer_silence_ns``: the peer's, as its greeting says."""

    silence_ns: int
    peer_silence_ns: int

    @property
    def ping_ns(self) -> int:
        """Something is sent at least so often."""
        return min(self.silence_ns, self.peer_silence_ns) // PINGS_PER_SILENCE

    @property
    def greeting_ns(self) -> int:
        """From the connection to the peer's whole greeting, TLS included."""
        return self.silence_ns

    @property
    def connect_ns(self) -> int:
        """For the name, and for TCP's handshake."""
        return min(self.silence_ns, CONNECT_NS_MAX)

    @property
    def stall_ns(self) -> int:
        """A message that has begun is whole, and bytes that wait are taken, within this."""
        return 4 * self.silence_ns


def backoff_ns(failures: int, jitter: float) -> int:
    """The pause after ``failures`` in a row (1 and more). ``jitter`` from 0 to 1 takes up to half of it away."""
    ceiling = min(BACKOFF_MAX_NS, BACKOFF_MIN_NS << min(failures - 1, 16))
    return int(ceiling * (1 - jitter / 2))

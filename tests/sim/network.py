"""A network of hosts in memory: what stands in for TCP where links are tested and simulated.

Fault model. Bytes on a connection arrive in order, in pieces of any size, after a delay of its own (so connections overtake each other).
Each direction has a window: who does not read stops who sends. A path between two hosts may be cut, one way or both: bytes, closes and
connection requests that use it wait, as TCP's retransmissions do, and come when it is whole again; a side that gave up in the meantime
has closed, and its peer learns of it then. A connection may break: what is on its way is lost, and one side learns of it, or both. A
process that dies closes its connections; a host that loses power closes nothing: its peers hear nothing, and a reset once it is back.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from hdad.addresses import Address
from hdad.exchange.link.sockets import StreamLost

WINDOW_BYTES = 256 * 1024


@dataclass(eq=False)
class Half:
    """One direction. ``pieces``: (arrives at, bytes); the end of the stream is an empty piece."""

    source: str
    target: str
    pieces: deque[tuple[int, bytes]] = field(default_factory=deque)
    size: int = 0
    is_reset: bool = False


class SimStream:
    """One end of a connection."""

    is_secure = False
    names: tuple[str, ...] = ()

    def __init__(self, network: SimNet, out: Half, into: Half, peer: str, established_ns: int) -> None:
        self._network, self._out, self._in = network, out, into
        self.peer = peer
        self._established_ns = established_ns
        self.is_closed = False
        self._has_finished = False

    def fileno(self) -> int:
        raise AssertionError("nobody waits here")

    @property
    def wants_write(self) -> bool:
        return False

    def establish(self) -> bool:
        self._network.trip("establish")
        if not self._network.is_whole(self._in.source, self._in.target):
            return False
        if self._in.is_reset:
            raise StreamLost(f"{self.peer}: refused")
        return self._network.now_ns() >= self._established_ns

    def receive(self, spaces: Sequence[memoryview]) -> int:
        network, half = self._network, self._in
        network.trip("receive")
        if not network.is_whole(half.source, half.target):
            return 0
        if half.is_reset:
            raise StreamLost(f"{self.peer}: reset")
        if not half.pieces or half.pieces[0][0] > network.now_ns():
            return 0
        at, data = half.pieces[0]
        if not data:
            raise StreamLost(f"{self.peer}: closed by the peer")
        done = 0
        limit = network.rng.choice((1, 23, 200, 5000, 1 << 20)) if network.rng is not None else 1 << 20
        for space in spaces:
            size = min(len(space), len(data) - done, limit - done)
            space[:size] = data[done : done + size]
            done += size
        half.size -= done
        if done == len(data):
            half.pieces.popleft()
        else:
            half.pieces[0] = (at, data[done:])
        return done

    def send(self, buffers: Sequence[bytes | memoryview]) -> int:
        self._network.trip("send")
        if self._in.is_reset:
            raise StreamLost(f"{self.peer}: reset")
        data = b"".join(bytes(buffer) for buffer in buffers)[: max(0, WINDOW_BYTES - self._out.size)]
        if data and not self._has_finished:
            self._out.pieces.append((self._network.arrival(self._out), data))
            self._out.size += len(data)
        return len(data)

    def finish(self) -> None:
        if not self._has_finished:
            self._has_finished = True
            self._out.pieces.append((self._network.arrival(self._out), b""))

    def close(self) -> None:
        self.finish()
        self.is_closed = True
        self._network.streams.pop(self, None)


class SimListener:
    """One listening socket."""

    def __init__(self, network: SimNet, host: str, address: Address) -> None:
        self._network, self.host = network, host
        self.address = address
        self.waiting: deque[tuple[int, SimStream]] = deque()

    def fileno(self) -> int:
        raise AssertionError("nobody waits here")

    def accept(self) -> SimStream | None:
        self._network.trip("accept")
        for found in self.waiting:
            at_ns, stream = found
            if at_ns <= self._network.now_ns() and self._network.is_whole(stream._in.source, self.host):
                self.waiting.remove(found)
                return stream
        return None

    def close(self) -> None:
        for _, stream in self.waiting:
            stream._out.is_reset = True
        self._network.listeners.pop(self.address, None)


class SimNet:
    """All hosts. ``rng`` None: no delays, no pieces."""

    def __init__(self, now_ns: Callable[[], int], rng: random.Random | None = None) -> None:
        self.now_ns = now_ns
        self.rng = rng
        self.trip: Callable[[str], None] = lambda where: None
        self.cut: set[tuple[str, str]] = set()  # directed
        self.dark: set[str] = set()  # hosts without power
        self.listeners: dict[Address, SimListener] = {}
        self.streams: dict[SimStream, None] = {}  # in order: what happens to them is the seed's, not the address space's
        self.delay_ns_max = 0
        self.dead: list[Half] = []  # of hosts that lost power

    def is_whole(self, source: str, target: str) -> bool:
        return (source, target) not in self.cut and source not in self.dark and target not in self.dark

    def arrival(self, half: Half) -> int:
        delay_ns = self.rng.randrange(self.delay_ns_max + 1) if self.rng is not None else 0
        earliest = half.pieces[-1][0] if half.pieces else 0
        return max(earliest, self.now_ns() + delay_ns)

    def break_one(self, rng: random.Random) -> bool:
        """A connection is no more: one end learns of it, or both. False: there is none."""
        if not self.streams:
            return False
        stream = rng.choice(list(self.streams))
        for half in rng.choice(((stream._in,), (stream._in, stream._out))):
            half.is_reset = True
            half.pieces.clear()
            half.size = 0
        return True

    def host(self, name: str) -> HostNet:
        return HostNet(self, name)


class HostNet:
    """What one host's link asks for (``hdad.exchange.link.sockets.Network``)."""

    def __init__(self, network: SimNet, name: str) -> None:
        self._network, self.name = network, name

    def connect(self, address: Address) -> SimStream:
        network = self._network
        listener = network.listeners.get(address)
        there = listener.host if listener is not None else address.host
        out, into = Half(self.name, there), Half(there, self.name)
        mine = SimStream(network, out, into, str(address), network.arrival(into))
        if listener is None:
            into.is_reset = True
            return mine
        theirs = SimStream(network, into, out, f"{self.name}:1", 0)
        listener.waiting.append((network.arrival(out), theirs))
        network.streams |= {mine: None, theirs: None}
        return mine

    def listen(self, address: Address) -> SimListener:
        listener = self._network.listeners[address] = SimListener(self._network, self.name, address)
        return listener

    def vanish(self) -> None:
        """The host loses power: its peers hear nothing, until it is back and resets what it knows nothing of."""
        network = self._network
        network.dark.add(self.name)
        for listener in [found for found in network.listeners.values() if found.host == self.name]:
            network.listeners.pop(listener.address, None)
            for _, stream in listener.waiting:
                network.dead.append(stream._out)
        for stream in [found for found in network.streams if found._out.source == self.name]:
            network.dead.append(stream._out)
            del network.streams[stream]

    def is_back(self) -> None:
        """It has booted."""
        network = self._network
        network.dark.discard(self.name)
        for half in [found for found in network.dead if found.source == self.name]:
            half.is_reset = True
            network.dead.remove(half)

    def die(self) -> None:
        """The link's process is killed: the kernel closes what was its own."""
        for listener in [found for found in self._network.listeners.values() if found.host == self.name]:
            listener.close()
        for stream in [found for found in self._network.streams if found._out.source == self.name]:
            stream.close()

"""Lanes follow their streams from node to node: slots that move in a Cluster, failovers, replicas that stand still.

Runs in a worker, for the loop, which asks where a port connects and hands over error replies. What a port reads is never in question
here: a lane goes from one port to another only while nothing of it is on its way, and goes on at its position (I2).

    MOVED      the slot is served elsewhere now: the port connects there at once; nothing has failed
    ASK        the slot is on its way, and this stream has arrived: its lane goes to a port that says ASKING first, and tries its old
               place again from time to time, so that it comes home when the slot has arrived
    TRYAGAIN   of the streams named in one read some have arrived: they are read one by one for a while
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hdad.source.redirect import Address, parse_redirect
from hdad.worker.lane import Lane

if TYPE_CHECKING:
    from hdad.config import RedisConfig
    from hdad.source.redis_edge import HotConnection
    from hdad.worker.loop import WorkerLoop
    from hdad.worker.port import Port

REDIRECTS_MAX: Final = 5  # LIMIT: in a row, without an answer; then the port waits as after an error
HOME_NS: Final = 2_000_000_000
AGAIN_NS: Final = 50_000_000
STILL_LOOKS_MAX: Final = 5  # a replica that gave nothing for so long, and its master has something: another one is asked


class Following:
    """One per worker loop."""

    def __init__(self, loop: WorkerLoop, config: RedisConfig) -> None:
        self._loop = loop
        self._reads_copies = config.read_from == "replica"

    def connect(self, port: Port) -> HotConnection:
        """A connection for ``port``, to where its streams are. Raises SourceError."""
        edge, key = self._loop.edge, port.lanes[0].name
        at, is_asking = port.at, port.is_asking
        port.is_copy = False
        if not is_asking:
            port.at = None
        if at is None and self._reads_copies:
            at = self._choose_copy(port, edge.copies_of(key))
            port.is_copy = at is not None
        if at is None:
            return edge.open_hot(key)
        return edge.open_hot(key, at, is_copy=port.is_copy, is_asking=is_asking)

    def _choose_copy(self, port: Port, copies: list[Address]) -> Address | None:
        """Workers begin at different replicas; each failure goes on to the next one, and in the end to the master (None)."""
        fit = [address for address in copies if address != port.avoided]
        if not fit:
            return None
        choices: list[Address | None] = [*(fit[(self._loop.index + turn) % len(fit)] for turn in range(len(fit))), None]
        return choices[port.failures % len(choices)]

    def obey(self, port: Port, text: str, asked: list[Lane], now_ns: int) -> bool:
        """An error reply to a read of the lanes ``asked``. False: it is no redirect, or one too many. Raises SourceError."""
        if text.startswith("TRYAGAIN"):
            port.read_alone()
            if len(asked) == 1:
                port.close()
                port.retry_ns = now_ns + AGAIN_NS
            return True
        redirect = parse_redirect(text)
        port.redirects += 1
        if redirect is None or port.hot is None or port.redirects > REDIRECTS_MAX:
            port.redirects = 0
            return False
        self._loop.block.add("redirects")
        if not redirect.address[0]:
            assert port.hot.address is not None, "a node of a Cluster has an address"
            redirect = redirect._replace(address=(port.hot.address[0], redirect.address[1]))
        if redirect.is_ask and len(asked) > 1:
            port.read_alone()
        elif redirect.is_ask:
            self._send_ahead(port, asked[0], redirect.address, now_ns)
        elif port.is_asking:
            self.go_home(port)
        else:
            self._loop.edge.moved(redirect)
            port.close()
            port.retry_ns = now_ns
            port.at = None if self._reads_copies else redirect.address
        return True

    def _send_ahead(self, port: Port, lane: Lane, address: Address, now_ns: int) -> None:
        ahead = self._loop.port(~port.slot, port.slot)
        ahead.at, ahead.is_asking, ahead.home_due_ns = address, True, now_ns + HOME_NS
        if lane in port.lanes:
            port.leave(lane)
            ahead.take(lane)

    def go_home(self, port: Port) -> None:
        """The lanes of a port that asks are read at their slot's own port again."""
        home = self._loop.port(port.slot, port.slot)
        for lane in list(port.lanes):
            port.leave(lane)
            home.take(lane)
        self._loop.interrupt(home)

    def looked(self, port: Port, is_copy_behind: bool, now_ns: int) -> None:
        """After a look at a port that reads a replica: has it stood still for too long?"""
        port.still_looks = port.still_looks + 1 if is_copy_behind and not port.has_advanced else 0
        port.has_advanced = False
        if port.still_looks >= STILL_LOOKS_MAX and port.hot is not None:
            address = port.hot.address
            port.still_looks, port.avoided = 0, address
            if address is not None:
                self._loop.alarms.tell(f"replica {address[0]}:{address[1]} stands still, its master does not: reading elsewhere")
            port.close()
            port.retry_ns = now_ns

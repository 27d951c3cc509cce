"""Which lanes a read names, when there are more than one read should name. Pure.

Runs in a worker, one for each port. A lane is *full* when its last reply had as many entries as were asked for: it has more. It is *warm*
when it had fewer: it may have some again soon. Full ones come first; some warm ones follow, so that lanes in use wait for a short
time only; all lanes, whatever they are, have the rest of the room in turns, so that nobody waits for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final

from hdad.worker.lane import Lane

LANES_PER_READ: Final = 256  # a stream named in a read costs the server 0.2 us, busy or idle (DESIGN 8); more share a frame's cost worse
LANES_IN_TURN_MIN: Final = 64  # of them
LANES_WARM_MAX: Final = 64  # of them; in a backlog of many lanes most of these were read to their end, and are named in vain


class Turns:
    """``lanes``: those of the port, which adds and removes them and says so by ``reconsider``."""

    def __init__(self, lanes: Sequence[Lane]) -> None:
        self._lanes = lanes
        self._readable: list[Lane] | None = None
        self._full: dict[Lane, None] = {}  # in the order in which they were read
        self._warm: dict[Lane, None] = {}
        self._turn = 0
        self._unasked = 0  # lanes to be asked once more, after entries came, before a read may wait for all of them

    def reconsider(self) -> None:
        """Lanes came, went, or changed their state, or were not read for a while: look again which ones are read, and ask them all."""
        self._readable = None

    @property
    def readable(self) -> Sequence[Lane]:
        """Lanes that are not halted."""
        if self._readable is None:
            self._readable = [lane for lane in self._lanes if not lane.halted]
            self._unasked = len(self._readable)
            there = set(self._readable)
            self._full = {lane: None for lane in self._full if lane in there}
            self._warm = {lane: None for lane in self._warm if lane in there}
        return self._readable

    def one(self) -> Sequence[Lane]:
        """The next lane, alone. There is one."""
        self._turn += 1
        return [self.readable[self._turn % len(self.readable)]]

    def next(self) -> tuple[Sequence[Lane], bool]:
        """The lanes of the next read, and whether it names all of them, and may wait.

        Only when none has more, and all have been asked since entries came quickly, one read waits for all of them.
        """
        readable = self.readable
        if len(readable) <= LANES_PER_READ or not (self._full or self._unasked > 0):
            return readable, True
        chosen = dict.fromkeys(islice(self._full, LANES_PER_READ - LANES_IN_TURN_MIN))
        warm_max = min(LANES_WARM_MAX, LANES_PER_READ - LANES_IN_TURN_MIN - len(chosen))
        chosen |= dict.fromkeys(islice(self._warm, warm_max))
        room = LANES_PER_READ - len(chosen)
        chosen |= dict.fromkeys(_in_turn(readable, self._turn, room))
        self._turn += room
        self._unasked -= room
        return list(chosen), False

    @property
    def reads_until_all(self) -> int:
        """After so many reads, each lane was named."""
        return len(self._lanes) // LANES_IN_TURN_MIN

    def asked(self, lanes: Iterable[Lane]) -> None:
        """A reply is here: those that had something are told by ``had``."""
        for lane in lanes:
            if lane.busy:
                lane.busy = False
                self._full.pop(lane, None)
                self._warm.pop(lane, None)

    def had(self, lane: Lane, count: int, count_max: int) -> None:
        """``count`` entries came of ``lane``, ``count_max`` were asked for."""
        lane.busy = True
        (self._full if count >= count_max else self._warm)[lane] = None

    def ask_all_again(self) -> None:
        """Entries come quickly: before a read waits, all lanes are asked once more. A read that waits costs the server most."""
        self._unasked = len(self._lanes)


def _in_turn(lanes: Sequence[Lane], start: int, count: int) -> list[Lane]:
    """``count`` of them from ``start`` on, around the end; all when there are fewer."""
    start %= len(lanes)
    return [*lanes[start : start + count], *lanes[: max(0, min(start, start + count - len(lanes)))]]

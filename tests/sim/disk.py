"""A disk in memory, and the fault model: what may happen to bytes, and what hdad promises then.

The model of a crash. A write that was begun and has not returned is in flight. At a crash each *sector* of it (``atomic`` bytes, 512
unless said otherwise) has landed or has not, independently of all others: so a write vanishes, lands, or tears anywhere, and writes in
flight land in any order. A write made with ``durable`` is settled when it returns; one made without is in flight until ``flush`` returns.
A sector itself is never half old, half new: devices guarantee that much, and where one does not, the frame's CRC sees it as damage. What a
write carries is read from memory when it lands, not when it is asked for (``Flight.source``): a ring given back too early shows.

The model of a device that does not keep what it was given, one fault at a time: by zone of the device.

| zone              | crash                           | one sector or frame rots, is lost or misdirected | sector cannot be read     |
|-------------------|---------------------------------|--------------------------------------------------|---------------------------|
| superblock copies | log opens as before or after    | the other three copies decide                    | the writer does not start |
| lease blocks      | older evidence                  | older evidence                                   | the writer does not start |
| heads of older    | never written                   | recovery finds the newest without it; readers    | the writer may not start  |
| segments          |                                 | and verify say so                                |                           |
| older segments    | never written                   | recovery trusts them; readers and verify say so  | the reader says where     |
| newest segment,   | acknowledged frames are there   | damaged: the writer refuses to start until the   | the writer does not start |
| up to evidence    |                                 | operator decides; readers go around it           |                           |
| newest segment,   | each frame is there or absent,  | indistinguishable from torn: the log ends before | the writer does not start |
| behind evidence   | none without those before it    | it (at most one lease interval of a quiet log)   |                           |
| unused            | nothing                         | nothing                                          | nothing                   |

*Evidence* is the highest LSN that a lease block, a later frame or the head of a later segment calls durable. After damage was accepted no
LSN is given twice, all that was readable still is, and a writer that dies over its first writes leaves nothing worse behind.

| what a device does     | what is promised                                                         | shown by                       |
|------------------------|--------------------------------------------------------------------------|--------------------------------|
| wrong bytes, once      | read again; never taken for torn or damaged                              | damage.py ("once")             |
| less than asked (short)| gone on with, each part durable; no bytes at all: the device is full     | tests/unit/test_device.py      |
| EIO, ENOSPC, ENODEV,   | I8: nothing more is acknowledged, the descriptor takes nothing more, the | system.py, test_directed.py    |
| ETIMEDOUT on a write   | writer ends; each sector of what was in flight has landed or not         |                                |
| EIO on reads, a while  | the writer ends and is started again until they succeed                  | system.py ("read error")       |
| slow: any order        | the durable LSN is the end of the contiguous prefix                      | crash.py, system.py            |
| stuck for long         | nothing is acknowledged meanwhile, nobody is killed for it, then it goes on | system.py ("device stuck")  |
| a log that grows       | readers, verify and inspect beside a writer call nothing damaged         | live.py                        |

Out of scope: several faults at once in one log, but for a crash that follows accepted damage; a device that lies about durability for
longer than it takes to write one lease (its losses are damage, not silence); forged CRCs; a device whose sectors tear.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from hdad.errors import DeviceError

EXHAUSTIVE_SECTORS_MAX: Final = 9  # LIMIT: all subsets of so many sectors are looked at, samples of more
SAMPLES: Final = 384


@dataclass(slots=True, eq=False)
class Flight:
    """One write on its way: what each of its sectors will be. ``source``: the memory it comes from, which is read when it lands (DMA)."""

    sectors: dict[int, bytes]
    is_durable: bool
    source: Sequence[memoryview | bytes] | None = None

    def load(self) -> None:
        """Read the memory."""
        if self.source is not None:
            content, offset = b"".join(self.source), 0
            for sector, old in self.sectors.items():
                self.sectors[sector] = content[offset : offset + len(old)]
                offset += len(old)


class Disk:
    """Stands in for ``hdad.log.device.Device``. ``on_crash_point`` is called before anything settles."""

    is_block = True

    def __init__(self, size: int, *, block_size: int = 512, atomic: int = 512, image: bytearray | None = None) -> None:
        self.path = "simulated"
        self.size = size
        self.logical_block_size = block_size
        self.atomic = atomic
        self.image = image if image is not None else bytearray(size)
        self.flights: list[Flight] = []
        self.settled_count = 0  # writes that have returned
        self.unreadable: set[int] = set()  # addresses of sectors with a latent error
        self.once: dict[int, bytes] = {}  # what a sector reads as the next time, and then no more
        self.on_crash_point: Callable[[], None] | None = None

    # -- as hdad uses it ---------------------------------------------------------------------------------------------------------------

    def read(self, address: int, size: int) -> memoryview:
        if address < 0 or address + size > self.size:
            raise DeviceError(f"simulated: read of {size} bytes at {address}, the disk has {self.size}")
        if self.unreadable and any(address <= sector < address + size for sector in self.unreadable):
            raise DeviceError(f"simulated: read of {size} bytes at {address}: latent sector error (EIO)")
        if not self.flights and not self.once:
            return memoryview(self.image)[address : address + size].toreadonly()
        view = bytearray(self.image[address : address + size])
        for flight in self.flights:  # a reader beside the writer may see what is not durable
            for sector, content in flight.sectors.items():
                if address <= sector < address + size:
                    view[sector - address : sector - address + len(content)] = content
        for sector in [sector for sector in self.once if address <= sector < address + size]:
            content = self.once.pop(sector)
            view[sector - address : sector - address + len(content)] = content
        return memoryview(view)

    def write(self, address: int, buffers: Sequence[memoryview | bytes], durable: bool = True) -> None:
        flight = self.begin(address, buffers, durable)
        if durable:
            self.settle(flight)

    def flush(self) -> None:
        for flight in [flight for flight in self.flights if not flight.is_durable]:
            self.settle(flight)

    def close(self) -> None:
        pass

    # -- as the simulation uses it -------------------------------------------------------------------------------------------------------

    def begin(self, address: int, buffers: Sequence[memoryview | bytes], durable: bool = True) -> Flight:
        """A write that has not returned yet."""
        content = b"".join(buffers)
        assert address % self.logical_block_size == 0 and len(content) % self.logical_block_size == 0, "O_DIRECT wants whole blocks"
        assert address >= 0 and address + len(content) <= self.size
        step = self.atomic
        flight = Flight({address + at: content[at : at + step] for at in range(0, len(content), step)}, durable)
        for other in self.flights:
            assert not (other.sectors.keys() & flight.sectors.keys()), "two writes in flight to one place have no order"
        self.flights.append(flight)
        return flight

    def settle(self, flight: Flight) -> None:
        """It returns; before that is a crash point."""
        if self.on_crash_point is not None:
            self.on_crash_point()
        flight.load()
        for sector, content in flight.sectors.items():
            self.image[sector : sector + len(content)] = content
        self.flights.remove(flight)
        self.settled_count += 1

    def changes(self) -> list[tuple[int, bytes, bytes]]:
        """(address, old, new) of each sector in flight that would change something."""
        for flight in self.flights:
            flight.load()
        return [
            (sector, old, content)
            for flight in self.flights
            for sector, content in flight.sectors.items()
            if (old := bytes(self.image[sector : sector + len(content)])) != content
        ]

    def crash_states(self, rng: random.Random) -> Iterator[Disk]:
        """The disk after a crash now, in each state it may have: all of them when few sectors are in flight, samples otherwise.

        It is one disk that changes under the caller: copy it to keep it.
        """
        changes = self.changes()
        state = Disk(self.size, block_size=self.logical_block_size, atomic=self.atomic, image=self.image)
        landed = [False] * len(changes)

        def toggle(index: int) -> None:
            address, old, new = changes[index]
            landed[index] = not landed[index]
            self.image[address : address + len(old)] = new if landed[index] else old

        try:
            yield state
            if len(changes) <= EXHAUSTIVE_SECTORS_MAX:
                for number in range(1, 1 << len(changes)):
                    toggle((number & -number).bit_length() - 1)  # Gray code: each state once, one sector at a time
                    yield state
            else:
                for wanted in _samples(len(changes), rng):
                    for index, want in enumerate(wanted):
                        if landed[index] != want:
                            toggle(index)
                    yield state
        finally:
            for index, is_landed in enumerate(landed):
                if is_landed:
                    toggle(index)

    def settled(self) -> Disk:
        """What is there whatever becomes of what is in flight, to be looked at."""
        return Disk(self.size, block_size=self.logical_block_size, atomic=self.atomic, image=self.image)

    def copy(self) -> Disk:
        """The same bytes, apart, with nothing in flight."""
        return Disk(self.size, block_size=self.logical_block_size, atomic=self.atomic, image=bytearray(self.image))

    def crash(self, rng: random.Random) -> Disk:
        """One state after a crash now, by the seed."""
        state = self.copy()
        for address, _, new in self.changes():
            if rng.random() < 0.5:
                state.image[address : address + len(new)] = new
        return state


def _samples(count: int, rng: random.Random) -> Iterator[list[bool]]:
    """All; each one missing; each prefix; and random ones of every density."""
    yield [True] * count
    for index in range(count):
        yield [other != index for other in range(count)]
        yield [other <= index for other in range(count)]
    for _ in range(max(0, SAMPLES - 2 * count)):
        density = rng.random()
        yield [rng.random() < density for _ in range(count)]

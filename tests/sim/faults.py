"""What befalls a host in the whole-system simulation, its device, its Redis, and what an operator asks of it: one method each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from hdad.control.protocol import Failure
from hdad.errors import HdadError
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind, is_of_log, occupied
from hdad.log.opening import durable_evidence, read_leases
from tests.sim.device import WRITE_ERRORS
from tests.sim.log import UUID, recovered
from tests.sim.redis import Stream

if TYPE_CHECKING:
    from tests.sim.life import Life

MS: Final = 1_000_000
STILL_MS: Final = (50, 500, 3000, 20_000)  # the last is longer than the supervisor lets a process be silent, and than a write may take
ERRORS: Final = (b"-LOADING Redis is loading the dataset in memory\r\n", b"-ERR simulated\r\n", b"+OK\r\n")
GARBAGE: Final = (
    b"*1\r\n$-5\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"*1\r\n*2\r\n$3\r\ns:0\r\n*1\r\n*2\r\n$4\r\nno-n\r\n*0\r\n", b"\0" * 64,
)  # fmt: skip


class Faults:
    """Each as often as its weight says. Those whose conditions are not met do nothing."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self.rng = life.rng
        self.table: dict[str, tuple[int, Callable[[], Any]]] = {}
        self.add({
            "trip": (3, self.trip),
            "kill": (1, self.kill),
            "still": (1, self.still),
            "supervisor still": (1, self.supervisor_still),
            "power": (1, lambda: life.power(life.any_machine())),
            "write error": (1, self.write_error),
            "read error": (1, self.read_error),
            "device stuck": (1, self.device_stuck),
            "sector rots": (1, self.sector_rots),
            "redis restarts": (1, life.server.restart),
            "redis away": (1, self.redis_away),
            "redis silent": (1, life.server.fall_silent),
            "redis error": (1, self.redis_error),
            "wrong type": (1, self.wrong_type),
            "drop": (1, lambda: self._of_stream(self.drop)),
            "xdel": (1, lambda: self._of_stream(self.xdel)),
            "rewind": (1, lambda: self._of_stream(self.rewind)),
            "deleted": (1, lambda: self._of_stream(self.deleted)),
            "pause": (1, lambda: self._ask(life.any_machine().operations.pause, None)),
            "pause lane": (1, self.pause_lane),
            "workers": (1, self.workers),
            "reload": (1, self.reload),
            "daemon restarts": (1, lambda: life.any_machine().supervisor.drain("systemctl restart")),
        })

    def add(self, table: dict[str, tuple[int, Callable[[], Any]]]) -> None:
        """More faults: name → weight, and what happens."""
        self.table |= table
        self._names = [name for name, (weight, _) in self.table.items() for _ in range(weight)]

    def happen(self) -> None:
        """One of them."""
        name = self.rng.choice(self._names)
        if name not in self._life.without and self.table[name][1]() is not False:
            self._life.note(name)

    def _ask(self, call: Callable[..., Any], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Failure:
            pass  # a daemon that drains says no, and one that does not know the lane yet

    # -- processes --------------------------------------------------------------------------------------------------------------------

    def trip(self) -> None:
        """Somebody dies at one of the next touches of what others see."""
        self._life.trip_in = self.rng.randint(1, 60)

    def kill(self) -> None:
        machine = self._life.any_machine()
        machine.kill(self.rng.randrange(len(machine.processes)))

    def still(self) -> bool:
        """SIGSTOP, or a host that swaps: a process does nothing for a while; what it had asked of the device goes on."""
        machine = self._life.any_machine()
        process = machine.processes[self.rng.randrange(len(machine.processes))]
        if process is None or process.end is not None:
            return False
        process.still_until_ns = self._life.now_ns + self.rng.choice(STILL_MS) * MS
        return True

    def supervisor_still(self) -> None:
        self._life.any_machine().still_until_ns = self._life.now_ns + self.rng.choice(STILL_MS) * MS

    # -- the device -------------------------------------------------------------------------------------------------------------------

    def write_error(self) -> None:
        """A write on its way fails, or the next one that is made in place."""
        life, number = self._life, self.rng.choice(WRITE_ERRORS)
        threads = life.machine.threads
        if threads is None or not threads.return_one(self.rng, number):
            life.next_write_fails = number

    def read_error(self) -> None:
        """Reads fail for a while."""
        self._life.reads_fail_until_ns = self._life.now_ns + self.rng.choice((5, 200, 2000)) * MS

    def device_stuck(self) -> None:
        """Nothing that is on its way returns for a while: all paths are gone, and multipath queues."""
        self._life.stuck_until_ns = self._life.now_ns + self.rng.choice(STILL_MS) * MS

    def sector_rots(self) -> bool:
        """A bit flips in a frame that a lease calls durable, in the segment that recovery reads; then power fails, so it does read."""
        life, disk = self._life, self._life.disk
        if not life.is_rotting or disk.flights or life.oracle.rotten:
            return False
        try:
            log = recovered(disk.copy())
        except HdadError:
            return False
        evidence = durable_evidence(read_leases(disk, UUID))  # type: ignore[arg-type]
        address, covered = life.geometry.segment_address(log.sequence), []
        while address < log.next_address:
            header = is_of_log(disk.read(address, FRAME_HEADER_SIZE), UUID, address)
            if header is None or header.lsn > evidence:
                break
            if log.sequence or header.kind != FrameKind.SEGMENT_HEAD:  # without its only head a log cannot be accepted
                covered.append((address, FRAME_HEADER_SIZE + header.stored_size))
            address += occupied(header, life.geometry.block_size)
        if not covered:
            return False
        start, size = self.rng.choice(covered)
        disk.image[start + self.rng.randrange(size)] ^= 1 << self.rng.randrange(8)
        life.oracle.rots(log.lanes.values())
        life.power()
        return True

    # -- Redis ------------------------------------------------------------------------------------------------------------------------

    def redis_away(self) -> None:
        self._life.server.is_up = False

    def redis_error(self) -> None:
        """The next reads are answered with errors, or with what is no RESP (I9)."""
        self._life.server.replies += [self.rng.choice(ERRORS + GARBAGE) for _ in range(self.rng.randint(1, 3))]

    def wrong_type(self) -> bool:
        """A key becomes one of another type; an operator puts it right later."""
        server = self._life.server
        names = [name for name in server.streams if name not in server.wrong]
        if not names:
            return False
        server.wrong.add(self.rng.choice(names))
        return True

    def _of_stream(self, what: Callable[[bytes, Stream], bool]) -> bool:
        streams = self._life.server.streams
        if not streams:
            return False
        name = self.rng.choice(list(streams))
        return what(name, streams[name])

    def drop(self, name: bytes, stream: Stream) -> bool:
        """Somebody trims what hdad may not have read."""
        if not stream.entries:
            return False
        self._life.oracle.dropped.setdefault(name, set()).update(stream.trim(self.rng.choice(stream.entries)[0]))
        return True

    def xdel(self, name: bytes, stream: Stream) -> bool:
        if not stream.entries:
            return False
        for _ in range(self.rng.randint(1, min(3, len(stream.entries)))):
            self._life.oracle.dropped.setdefault(name, set()).add(stream.delete(self.rng.randrange(len(stream.entries))))
        return True

    def rewind(self, name: bytes, stream: Stream) -> bool:
        """A failover to a copy that had not got everything."""
        if not self._life.is_breaking or not stream.history:
            return False
        stream.rewind(self.rng.randint(1, min(20, len(stream.history))))
        self._life.now_ns += MS  # as below: a failover takes longer, and what comes next has other IDs than what was lost
        self._life.oracle.broken[name] = self._life.oracle.broken.get(name, 0) + 1
        self._life.server.restart()
        return True

    def deleted(self, name: bytes, stream: Stream) -> bool:
        if not self._life.is_breaking:
            return False
        self._life.server.delete(name)
        self._life.now_ns += MS  # begun anew in the very millisecond that was read, its IDs would tell nothing (source/cursor)
        self._life.oracle.broken[name] = self._life.oracle.broken.get(name, 0) + 1
        return True

    # -- operators --------------------------------------------------------------------------------------------------------------------

    def pause_lane(self) -> bool:
        streams = self._life.server.streams
        if not streams:
            return False
        self._ask(self._life.any_machine().operations.pause, [self.rng.choice(list(streams)).decode()])
        return True

    def workers(self) -> None:
        machine = self._life.any_machine()
        self._ask(machine.operations.set_workers, self.rng.randint(1, machine.count))

    def reload(self) -> None:
        """The file was edited; what may change while running does."""
        machine = self._life.any_machine()
        operations = machine.operations
        if not machine.supervisor.is_draining:
            streams = self.rng.choice((["s:*"], ["s:*", "s:0"]))
            operations._apply({"redis.trim": self.rng.choice(("off", "durable")), "redis.streams": streams})

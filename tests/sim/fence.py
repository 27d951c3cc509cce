"""Two or three hosts that may write one log: who is the writer, and what becomes of one that was taken over.

    python -m tests.sim.fence [--seeds N] [--first S] [--seed S [--steps K]] [--jobs J] [--json]

Real are standby, election, lease and its guard, takeover, appender, recovery and reader; simulated are LUN, array, clocks, processes
(tests/sim/cluster). Each host runs hdad's own loop of standing by and serving; where the writer's loop would be, a driver appends frames
of three lanes, several writes in flight, ticks the lease, and acknowledges what is durable. Faults: a host stands still, shorter or much
longer than every timeout, at any touch of device or array; its process dies, or it loses power, or is stopped in order; its device is
slow, or has no path, or one more; its clocks differ and jump; an operator moves the writer. One seed is one life, exactly repeated.

The oracle: whatever was acknowledged is in the log of every later writer (I1); at the end each lane holds its positions without gap or
repeat, with the content that belongs there (I2, I3); nothing is acknowledged by a writer that was taken over which its successor has not
found (I4); verify finds nothing, no reader on the way saw anything else, and nothing is ever called damaged (I5); under a reservation
nobody without the reservation changes a byte; and once faults stop, some host serves within a few timeouts.
"""

from __future__ import annotations

import logging
import random
import sys
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

from crc32c import crc32c
from greenlet import GreenletExit

import hdad.log.reader
from hdad._core import encode_entry, pack_values
from hdad.alarms import Alarms
from hdad.errors import DeviceError, FencedError, HdadError, LappedError
from hdad.limits import KIB
from hdad.log.appender import AppendResult, Gather, LogAppender
from hdad.log.create import lay_out
from hdad.log.device import aligned_buffer
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind, build_frame_header, decode_header, frame_size
from hdad.log.geometry import SEGMENTS_OFFSET, UNIT, Geometry
from hdad.log.inspect import verify_device
from hdad.log.lanes import LaneRow
from hdad.log.opening import read_leases
from hdad.log.superblock import NOBODY, Superblock
from hdad.record import ORIGIN, Position
from hdad.timing import Timing
from hdad.writer.election import Candidate, asking, superseded
from hdad.writer.keys import Keys
from hdad.writer.role import Role, RoleEvent, next_role
from hdad.writer.standby import Claim, Standby
from tests.sim.cluster import MS, Host, HostDevice, HostReservation, World
from tests.sim.command import Simulation, main
from tests.sim.disk import Disk
from tests.sim.log import UUID, Violation, reader_on, recovered, small_segments

T_MS: Final = 1000
LANES: Final = 3
INFLIGHT_MAX: Final = 3
SEGMENT: Final = 16 * KIB
SEGMENTS: Final = 96  # so many that the log does not come around: a write held back for a whole lap is beyond what is promised
PATHS_MAX: Final = 4
SETTLE_MS_MAX: Final = 12 * T_MS
STEPS_MAX: Final = 25
FAULTS: Final = (
    "still", "still", "still", "kill", "power", "stop", "slow", "path", "wall clock", "demote", "promote", "path added",
)  # fmt: skip


class SimTiming(Timing):
    """The real timeline, looked at less often."""

    @property
    def watch_ms(self) -> int:
        return T_MS // 12


@dataclass
class Facts:
    """What a life did, for the sum. ``trace``: its faults, each with its virtual time and its host."""

    events: dict[str, int] = field(default_factory=dict)
    takeovers: int = 0
    acked: int = 0
    settle_ms: int = 0
    violation: str = ""
    trace: list[str] = field(default_factory=list)

    def count(self, what: str) -> None:
        self.events[what] = self.events.get(what, 0) + 1


@dataclass
class Takeover:
    """What a writer found."""

    epoch: int
    positions: dict[int, int]


class Around:
    """writer/standby.Surroundings of one simulated process."""

    def __init__(self, life: Life, host: Host) -> None:
        self.is_wanted = True
        self.is_asked = False
        self.is_demoted = False
        self.role = Role.NONE
        self._life, self._host = life, host

    def open_reader(self) -> HostDevice:
        return HostDevice(self._life.world, self._host, self._life.latency(self._host))

    def open_writer(self) -> HostDevice:
        return HostDevice(self._life.world, self._host, self._life.latency(self._host), write=True)

    def open_reservation(self, path: int | None = None) -> HostReservation:
        life = self._life
        return HostReservation(life.world, self._host, life.latency(self._host), is_readable=life.is_readable, path=path)

    def keys(self, claim: Claim) -> Keys | None:
        """What looks after the key on this host's paths."""
        if claim.reservation is None:
            return None

        def paths() -> list[str]:
            return [str(number) for number in range(self._host.paths)]

        return Keys(claim.reservation, claim.key, paths, lambda path: self.open_reservation(int(path)))

    def looking(self, is_looking: bool) -> None:
        pass

    def pause(self, ns: int) -> None:
        self._life.world.sleep(ns)

    def tell(self, event: RoleEvent, owner: Any = None, text: str = "") -> None:
        self.role = next_role(self.role, event)  # a step that the table does not have is a finding
        self._life.facts.count(event.value)


class Writer:
    """In place of the writer's loop: appends, submits, renews, acknowledges, in its order and with its rules."""

    def __init__(self, life: Life, host: Host, log: LogAppender, around: Around, keys: Keys | None) -> None:
        self.life, self.host, self.log, self.around = life, host, log, around
        self.keys, self.are_keys_missing = keys, False
        self.world, self.rng = life.world, life.rng
        self.timing: Timing = life.timing
        self.inflight = 0
        self.is_ticking = False
        self.done: list[Gather] = []
        self.error: HdadError | None = None
        self.is_stepping_down = False
        self.successor = NOBODY
        self.lease_due_ns = 0
        self.positions = {row.id: row.position.ms for row in log.lanes.values()}
        self.waiting: list[tuple[int, int, int]] = []  # lsn, lane, position

    def run(self) -> bool:
        """Until told to stop (True: in order, to step down or to end). Raises HdadError."""
        life, log = self.life, self.log
        for lane in range(1, LANES + 1):
            if lane not in log.lanes:
                if log.lanes_frame([LaneRow.new(lane, b"lane-%d" % lane, ORIGIN, 0)]) is not AppendResult.OK:
                    raise Violation("a log that overwrites is full")
                self.positions[lane] = 0
        while True:
            if self.error is not None:
                raise self.error
            for gather in self.done:
                log.completed(gather)
            self.done.clear()
            self._acknowledge()
            if self.host in life.to_stop or self.around.is_demoted:
                self.is_stepping_down = True
            if self.is_stepping_down and self.around.role is Role.WRITER:
                self.around.tell(RoleEvent.RELEASES)
            if self.is_stepping_down and not self.inflight and not log.open_bytes:
                while self.is_ticking:
                    self.world.sleep(MS)
                if self.error is not None:
                    raise self.error
                log.release_lease(self.successor)
                return True
            if not self.is_stepping_down and self.rng.random() < 0.3:
                self._append()
            if self.are_keys_missing and self.keys is not None and not self.inflight and not self.is_ticking:
                self.keys.register()
                self.are_keys_missing = False
                life.facts.count("keys registered")
            if not self.are_keys_missing:
                self._submit()
                self._tick()
            self.world.sleep(self.rng.choice((1, 5, 20)) * MS)

    def _append(self) -> None:
        lane = self.rng.randint(1, LANES)
        first, count = self.positions[lane] + 1, self.rng.randint(1, 3)
        records = [(position, 0, 0, body(lane, position)) for position in range(first, first + count)]
        size = sum(24 + len(content) for _, _, _, content in records)
        view = aligned_buffer(frame_size(size, self.log.block_size))
        payload = view[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + size]
        pack_values(payload, records)
        to = Position(first + count - 1, 0)
        build_frame_header(
            view, kind=FrameKind.DATA, lane_id=lane, lane_epoch=self.log.epoch << 32 | 1, from_=Position(first - 1, 0), to=to,
            record_count=count, entry_count=count, stored_size=size, payload_crc=crc32c(payload), label_ns=1, lost_count=0,
            filtered_count=0, dead_count=0, worker=0,
        )  # fmt: skip
        if self.log.append(view, len(view), decode_header(view)) is not AppendResult.OK:
            raise Violation("a log that overwrites is full")
        self.positions[lane] = to.ms
        self.waiting.append((self.log.next_lsn - 1, lane, to.ms))

    def _submit(self) -> None:
        while self.inflight < INFLIGHT_MAX and (gather := self.log.take()) is not None:
            self.inflight += 1
            self.world.start(self.host, lambda gather=gather: self._write(gather))

    def _write(self, gather: Gather) -> None:
        try:
            self.log.device.write(gather.address, gather.buffers)
            self.done.append(gather)
        except HdadError as error:
            self.error = self.error or error
        self.inflight -= 1

    def _tick(self) -> None:
        now_ns = self.world.clock_ns()
        if now_ns < self.lease_due_ns or self.is_ticking:
            return
        self.is_ticking = True
        self.lease_due_ns = now_ns + self.timing.renew_ms * MS
        address, buffer = self.log.next_lease()
        self.world.start(self.host, lambda: self._renew(address, bytes(buffer)))

    def _renew(self, address: int, content: bytes) -> None:
        log = self.log
        try:
            log.device.write(address, [content])
            leases, node = tuple(read_leases(log.device, log.superblock.uuid)), log.superblock.writer_node
            if superseded(leases, node, log.epoch) is not None:
                raise FencedError("superseded")
            found = asking(leases, node, log.epoch)
            if found != NOBODY and not self.is_stepping_down:
                self.is_stepping_down, self.successor = True, found
            if self.keys is not None and self.keys.are_missing():
                self.are_keys_missing = True
        except HdadError as error:
            self.error = self.error or error
        self.is_ticking = False

    def _acknowledge(self) -> None:
        while self.waiting and self.waiting[0][0] <= self.log.durable_lsn:
            _, lane, position = self.waiting.pop(0)
            self.life.acknowledged(self.log.epoch, lane, position)


def body(lane: int, position: int) -> bytes:
    return encode_entry([(b"v", b"%d:%d" % (lane, position) + b"." * (position * 37 % 300))])


class Life:
    """One seed. ``steps``: so many faults, instead of as many as the seed says. ``without``: faults that are left out."""

    def __init__(self, seed: int, steps: int | None = None, without: Collection[str] = ()) -> None:
        self.rng = rng = random.Random(seed)
        self.facts = Facts()
        self.without = without
        chosen = rng.randint(3, STEPS_MAX)
        self.steps = chosen if steps is None else steps
        self.fence = rng.choice(("reservation", "lease-unsafe"))
        self.is_readable = rng.random() < 0.7
        self.timing = SimTiming(T_MS, 300, rng.choice((50, 100)))
        size = SEGMENTS_OFFSET + SEGMENTS * SEGMENT + 2 * UNIT
        self.geometry = Geometry(size, 512, SEGMENT, SEGMENTS)
        self.world = World(rng, size)
        lay_out(Disk(size, image=self.world.image), Superblock(UUID, 1, 0, self.geometry, 0))  # type: ignore[arg-type]
        self.hosts = [
            Host(f"h{number}", bytes([number + 1]) * 16, rng.randrange(10**12), 1 + rng.uniform(-0.004, 0.004), boot=self._boot_id())
            for number in range(rng.choice((2, 3, 3)))
        ]
        self.world.hosts = self.hosts
        self.acked: dict[int, int] = {}
        self.takeovers: list[Takeover] = []
        self.to_stop: set[Host] = set()
        self.arounds: dict[Host, Around] = {}
        self.serving: dict[Host, int] = {}  # host: writer epoch
        self.seen: dict[int, int] = {}  # by the reader: position of each lane

    def _boot_id(self) -> bytes:
        return uuid.UUID(int=self.rng.getrandbits(128)).bytes

    def latency(self, host: Host) -> Any:
        """How long a write of ``host`` takes: mostly short; slow, up to what counts as healthy; now and then far beyond."""

        def choose() -> int:
            dice = self.rng.random()
            if dice < 0.002:
                return int(self.rng.uniform(0.3, 3) * T_MS * MS)
            return int(self.rng.uniform(0.1, 2) * MS) * host.slow

        return choose

    # -- hosts --------------------------------------------------------------------------------------------------------------------------

    def boot(self, host: Host) -> None:
        """The daemon of ``host`` starts."""
        self.world.start(host, lambda: self._process(host))

    def _process(self, host: Host) -> None:
        """The writer's process, as writer/child has it; then the supervisor, or an operator, starts another."""
        hold_back_ns = 0
        around = self.arounds[host] = Around(self, host)
        try:
            me = Candidate(host.node, host.boot, host.name, self.fence, self.timing)
            alarms = Alarms(SimpleNamespace(send=lambda message: True), logging.getLogger("sim"))  # type: ignore[arg-type]
            standby = Standby(me, around, alarms, may_wait=True)  # type: ignore[arg-type]
            while (claim := standby.wait_turn(hold_back_ns)) is not None:
                if not self._serve(host, claim, around):
                    continue
                hold_back_ns = self.world.clock_ns() + T_MS * MS
                if host in self.to_stop:
                    break
        except FencedError:
            self.facts.count("fenced")
        except DeviceError:
            self.facts.count("ended by its device")
        except GreenletExit:
            raise
        except Exception as error:  # whatever it is, it is this seed's finding
            self.world.trouble = self.world.trouble or f"{host.name}: {type(error).__name__}: {error}"
        self.serving.pop(host, None)
        self.to_stop.discard(host)
        host.is_open = False
        self._start_again(host, self.rng.choice((10, 500, 3000)))

    def _start_again(self, host: Host, in_ms: int) -> None:
        """A process ends only when its threads' writes have ended; its successor comes ``in_ms`` later, at the earliest."""
        host.starts += 1
        number = host.starts

        def start() -> None:
            if number != host.starts:
                return
            if host.flights or host.still_until_ns > self.world.now_ns:
                self.world.at(self.world.now_ns + 20 * MS, start)
                return
            self.world.kill(host)
            self.boot(host)

        host.greenlets = []
        for flight in host.flights:
            flight.waiter = None
        self.world.at(self.world.now_ns + in_ms * MS, start)

    def _serve(self, host: Host, claim: Claim, around: Around) -> bool:
        """False: another host was faster."""
        try:
            log = LogAppender.take_over(claim.device, claim=claim.lease, is_cautious=claim.is_cautious, write_bytes_max=4096)
        except FencedError:
            self.facts.count("takeover lost")
            claim.abandon()
            return False
        self._took_over(host, log)
        around.tell(RoleEvent.SERVES)
        try:
            Writer(self, host, log, around, around.keys(claim)).run()
        finally:
            self.serving.pop(host, None)
        around.is_demoted = False
        log.close()
        claim.let_go()
        return True

    # -- oracle -------------------------------------------------------------------------------------------------------------------------

    def _took_over(self, host: Host, log: LogAppender) -> None:
        self.serving[host] = log.epoch
        self.facts.takeovers += 1
        if any(takeover.epoch > log.epoch for takeover in self.takeovers):
            self.facts.count("taken over from meanwhile")  # its first frame was on its way for long; it acknowledges nothing, see below
            return
        positions = {row.id: row.position.ms for row in log.lanes.values()}
        for lane, position in self.acked.items():
            if positions.get(lane, 0) < position:
                raise Violation(f"I1: lane {lane} was acknowledged up to {position}; the writer of epoch {log.epoch} finds {positions}")
        if any(takeover.epoch == log.epoch for takeover in self.takeovers):
            raise Violation(f"I4: epoch {log.epoch} begins after {[takeover.epoch for takeover in self.takeovers]}")
        self.takeovers.append(Takeover(log.epoch, positions))

    def acknowledged(self, epoch: int, lane: int, position: int) -> None:
        """A position is shown to the world: Redis may forget it."""
        for takeover in self.takeovers:
            if takeover.epoch > epoch and takeover.positions.get(lane, 0) < position:
                found = f"epoch {takeover.epoch} found {takeover.positions}"
                raise Violation(f"I4: the writer of epoch {epoch} acknowledges {position} of lane {lane}; {found}")
        self.acked[lane] = max(self.acked.get(lane, 0), position)
        self.facts.acked += 1

    def read_along(self) -> None:
        """A consumer on a host of its own, from the beginning, as far as things are durable, again and again."""
        host = Host("reader", b"r" * 16, 0, 1.0)
        self.world.hosts = [*self.hosts, host]

        def run() -> None:
            before = hdad.log.reader.Device
            try:
                hdad.log.reader.Device = SimpleNamespace(  # type: ignore[assignment, misc]
                    open=lambda path: HostDevice(self.world, host, lambda: int(self.rng.uniform(0.1, 3) * MS))
                )
                reader = hdad.log.reader.LogReader("simulated")
            finally:
                hdad.log.reader.Device = before  # type: ignore[misc]
            while True:
                for record in reader.records():
                    lane = int(record.lane.removeprefix("lane-"))
                    if record.position.ms != self.seen.get(lane, 0) + 1 or record.body != body(lane, record.position.ms):
                        raise Violation(f"a reader sees {record.position.ms} of lane {lane} after {self.seen.get(lane, 0)}")
                    self.seen[lane] = record.position.ms
                self.world.sleep(30 * MS)

        def guarded() -> None:
            try:
                run()
            except (GreenletExit, LappedError):
                pass
            except Exception as error:  # whatever it is, it is this seed's finding
                self.world.trouble = self.world.trouble or f"reader: {type(error).__name__}: {error}"

        self.world.start(host, guarded)

    def judge(self) -> None:
        """The end: the log as anybody finds it."""
        disk = Disk(self.geometry.size, image=self.world.image)
        log = recovered(disk)
        report = verify_device(disk)  # type: ignore[arg-type]
        if not report.ok:
            raise Violation(f"verify: {report.violations[:3]}")
        for lane, position in self.acked.items():
            if log.lanes[lane].position.ms < position:
                raise Violation(f"I1: lane {lane} was acknowledged up to {position}, the log ends at {log.lanes[lane].position}")
        LogAppender.take_over(disk)  # type: ignore[arg-type]  # what is there is durable, and readers may know
        found: dict[int, int] = {}
        with reader_on(disk) as reader:
            for record in reader.records():
                lane = int(record.lane.removeprefix("lane-"))
                if record.position.ms != found.get(lane, 0) + 1 or record.body != body(lane, record.position.ms):
                    raise Violation(f"I2: lane {lane}: {record.position.ms} after {found.get(lane, 0)}")
                found[lane] = record.position.ms
        if found != {row.id: row.position.ms for row in log.lanes.values() if row.position.ms}:
            raise Violation(f"I2: records up to {found}, lanes at {[(row.id, row.position.ms) for row in log.lanes.values()]}")
        for lane, position in self.seen.items():
            if found.get(lane, 0) < position:
                raise Violation(f"a reader saw {position} of lane {lane}, the log ends at {found.get(lane)}")

    # -- faults -------------------------------------------------------------------------------------------------------------------------

    def fault(self) -> None:
        rng, world = self.rng, self.world
        what = rng.choice(FAULTS)
        victims = [host for host in self.hosts if host in self.serving] if rng.random() < 0.7 else []
        host = rng.choice(victims or self.hosts)
        if what in self.without:
            return
        self.facts.count(what)
        self.facts.trace.append(f"{world.now_ns // MS:,} ms: {what}, {host.name}")
        if what == "still":
            host.still_until_ns = world.now_ns + int(rng.choice((0.1, 0.5, 0.9, 1.1, 1.5, 4)) * T_MS * MS)
        elif what in ("kill", "power"):
            self.serving.pop(host, None)
            world.kill(host)
            self.to_stop.discard(host)
            if what == "power":
                host.boot = self._boot_id()
                world.drop_flights(host)
                self._start_again(host, rng.choice((500, 2000, 6000)))
            else:
                self._start_again(host, rng.choice((1, 50, 1200)))
        elif what == "stop":
            if host in self.serving:
                self.to_stop.add(host)
        elif what == "slow":
            host.slow = rng.choice((1, 20, 100))
        elif what == "path":
            host.has_path = False
            world.at(world.now_ns + rng.randrange(10, 3000) * MS, lambda: setattr(host, "has_path", True))
        elif what == "path added":
            host.paths = count = min(host.paths + 1, PATHS_MAX)
            world.at(world.now_ns + rng.randrange(6000) * MS, lambda: setattr(host, "used_paths", count))
        elif what == "wall clock":
            host.wall_ns += rng.randrange(-(10**13), 10**13)
        elif what == "demote":
            if host in self.serving and host in self.arounds:
                self.arounds[host].is_demoted = True
        elif what == "promote":
            for other in self.hosts:
                if other not in self.serving and other in self.arounds:
                    self.arounds[other].is_asked = True
                    break

    def run(self) -> None:
        """Faults, then peace. Raises Violation."""
        for host in self.hosts:
            self._start_again(host, self.rng.choice((0, 0, 300)))
        if self.rng.random() < 0.5:
            self.read_along()
        for _ in range(self.steps):
            self._pass(self.rng.choice((5, 60, 400, 1500)))
            self.fault()
        for host in self.hosts:
            host.still_until_ns, host.slow, host.has_path = min(host.still_until_ns, self.world.now_ns), 1, True
        self.settle()
        self.judge()

    def _pass(self, ms: int) -> None:
        self.world.run_until(self.world.now_ns + ms * MS)
        if self.world.trouble:
            raise Violation(self.world.trouble)

    def settle(self) -> None:
        """Liveness: some host serves, and goes on serving."""
        began_ns, before = self.world.now_ns, sum(self.acked.values())
        while sum(self.acked.values()) < before + 10:
            if self.world.now_ns - began_ns > SETTLE_MS_MAX * MS:
                raise Violation(f"liveness: after {SETTLE_MS_MAX} ms nothing new is durable; serving: {self.serving}")
            self._pass(100)
        self.facts.settle_ms = (self.world.now_ns - began_ns) // MS
        self.facts.count(self.fence)


@contextmanager
def simulated(life_of: list[Life]) -> Iterator[None]:
    """hdad's modules get the clock of the host that runs."""
    clocks = {
        "boottime_ns": lambda: life_of[0].world.clock_ns(),  # noqa: PLW0108 (the life comes later)
        "monotonic_ns": lambda: life_of[0].world.clock_ns(),  # noqa: PLW0108
        "wall_ns": lambda: life_of[0].world.wall_ns(),  # noqa: PLW0108
    }
    fakes = [
        (module, name, fake)
        for path, module in list(sys.modules.items())
        if path.startswith("hdad.")
        for name, fake in clocks.items()
        if hasattr(module, name)
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in fakes]
    for module, name, fake in fakes:
        setattr(module, name, fake)
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with small_segments():
            yield
    finally:
        logging.disable(level)
        for module, name, value in before:
            setattr(module, name, value)


def run_seed(seed: int, steps: int | None = None, without: Collection[str] = ()) -> Facts:
    """One life, and what was wrong with it."""
    life_of: list[Life] = []
    with simulated(life_of):
        life = Life(seed, steps, without)
        life_of.append(life)
        try:
            life.run()
        except Exception as wrong:  # whatever it is, it is this seed's finding
            life.facts.violation = f"seed {seed}, {life.fence}: {type(wrong).__name__}: {wrong}"
        finally:
            for host in life.world.hosts:
                life.world.kill(host)
    return life.facts


SIMULATION: Final = Simulation("tests.sim.fence", __doc__, run_seed, lambda _: FAULTS, STEPS_MAX, "serving again")

if __name__ == "__main__":
    sys.exit(main(SIMULATION))

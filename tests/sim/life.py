"""One seed of the whole-system simulation: what happens to a host, its disk and its Redis, and whether it comes to rest afterwards."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Final

from hdad.config import Config
from hdad.control.protocol import Failure
from hdad.errors import ExitStatus
from hdad.limits import KIB, MIB
from hdad.log.appender import LogAppender
from hdad.log.create import lay_out
from hdad.log.geometry import SEGMENTS_OFFSET, UNIT, Geometry
from hdad.log.superblock import Superblock
from hdad.record import ORIGIN, Position
from tests.sim.disk import Disk
from tests.sim.faults import Faults
from tests.sim.log import UUID, Violation
from tests.sim.machine import Machine
from tests.sim.oracle import Oracle
from tests.sim.process import Killed, Process
from tests.sim.redis import Server, Stream
from tests.sim.traffic import ENTRY_BYTES_MAX, FRAME_BYTES_MAX, REPLY_BYTES_MAX, STAGED, body

MS: Final = 1_000_000
EPOCH_NS: Final = 1_700_000_000 * 1_000_000_000
WORKERS: Final = 3
SETTLE_MS_MAX: Final = 60_000  # virtual: so long may it take until everything is durable once faults stop
DRAIN_MS_MAX: Final = 30_000
STEPS_MAX: Final = 400
KNOBS: Final[dict[tuple[str, str], tuple[int, ...]]] = {  # limits that a short life would never reach: each seed has its own
    ("hdad.writer.commit", "INLINE_BYTES_MAX"): (0, 4 * KIB, 256 * KIB),
    ("hdad.writer.commit", "GROUP_BYTES_MIN"): (1, 8 * KIB, 128 * KIB),
    ("hdad.writer.commit", "READY_BYTES_MIN"): (1, MIB),
    ("hdad.writer.intake", "BYTES_PER_ROUND"): (1, 8 * KIB, 8 * MIB),
    ("hdad.worker.pace", "SMALL_BYTES"): (0, 8 * KIB, 256 * KIB),
    ("hdad.worker.turns", "LANES_PER_READ"): (2, 256),
    ("hdad.worker.turns", "LANES_IN_TURN_MIN"): (1,),
    ("hdad.worker.port", "READS_UNTIL_BOLDER"): (1, 16),
    ("hdad.worker.discovery", "STREAMS_PER_HELLO"): (1, 512),
    ("hdad.worker.chores", "LANES_PER_LOOK"): (1, 512),
    ("hdad.worker.chores", "GROUPS_PER_ROUND"): (1, 256),
    ("hdad.worker.chores", "TRIMS_PER_ROUND"): (1, 64),
}


@dataclass
class Facts:
    """What a life did, for the sum. ``trace``: its faults, each with its step and its virtual time."""

    steps: int = 0
    entries: int = 0
    events: dict[str, int] = field(default_factory=dict)
    settle_ms: int = 0
    violation: str = ""
    trace: list[str] = field(default_factory=list)

    def count(self, what: str) -> None:
        self.events[what] = self.events.get(what, 0) + 1


class Life:
    """``steps``: so many with faults, instead of as many as the seed says. ``without``: faults that are left out."""

    steps_range = (50, STEPS_MAX)

    def __init__(self, seed: int, steps: int | None = None, without: Collection[str] = ()) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.without = without
        self.facts = Facts()
        self.now_ns = 1_000_000 * MS
        self.trip_in = 0  # touches until somebody dies; 0: nobody
        self.reads_fail_until_ns = 0
        self.stuck_until_ns = 0
        self.next_write_fails = 0
        self.accepts_damage = False
        chosen = rng.randint(*self.steps_range)
        self.steps = chosen if steps is None else steps
        block = rng.choice((512, 512, 4096))
        segment = 64 * KIB
        count = rng.choice((4, 24))
        self.geometry = Geometry(SEGMENTS_OFFSET + count * segment + 2 * UNIT, block, segment, count)
        self.disk = Disk(self.geometry.size, block_size=block)
        lay_out(self.disk, Superblock(UUID, 1, 0, self.geometry, 0))  # type: ignore[arg-type]
        self.oracle = Oracle(self)
        self.server = Server(rng, is_cluster=rng.random() < 0.25)
        self.server.now_ns = lambda: self.now_ns
        self.server.on_shown = self.oracle.shown
        self.server.on_trim = self.oracle.trimmed
        self.server.trip = self.trip
        self.knobs = {knob: rng.choice(values) for knob, values in KNOBS.items()}
        self.routes = [(STAGED, ("tests.sim.traffic:stage",))] if rng.random() < 0.5 else []
        self.is_breaking = rng.random() < 0.3  # streams go backwards in this life
        self.is_rotting = not self.is_breaking and rng.random() < 0.2  # the device does not keep what it was given
        self.values = _values(rng, self.server.is_cluster)
        self.config = Config.model_validate(self.values)
        self.faults = Faults(self)
        self.machines: list[Machine] = []  # one; in tests/sim/fleet the first of several
        self.by_pid: dict[int, tuple[Machine, Process]] = {}

    @property
    def machine(self) -> Machine:
        """The host with the device, which is up; from ``run`` on."""
        return self.machines[0]

    @property
    def present(self) -> list[Machine]:
        """The hosts that can be at rest."""
        return self.machines

    def any_machine(self) -> Machine:
        """Whom something befalls."""
        return self.machine

    def start(self) -> None:
        """All hosts come up."""
        self.machines.append(Machine(self, self.config))

    def close(self) -> None:
        """The hosts are gone, if they ever were there, and their descriptors with them."""
        for machine in self.machines:
            machine.close()
        self.machines.clear()

    def note(self, what: str, more: str = "") -> None:
        """Something happened. ``more``: for the trace alone."""
        self.facts.count(what)
        self.facts.trace.append(f"step {self.facts.steps}, {self.now_ns // MS - 1_000_000:,} ms: {what}{more}")

    @property
    def wall_ns(self) -> int:
        """The clock on the wall of whoever runs."""
        return EPOCH_NS + self.now_ns

    # -- what the machine asks ---------------------------------------------------------------------------------------------------------

    def trip(self, where: str) -> None:
        """Somebody touches something that others see."""
        if self.trip_in:
            self.trip_in -= 1
            if not self.trip_in:
                raise Killed(where)

    def read_fails(self) -> bool:
        """Whether the device fails to read now."""
        return self.now_ns < self.reads_fail_until_ns

    def write_fails(self) -> int:
        """With which error a write that is made in place fails; 0: it does not. A device that is stuck holds its writer."""
        process = self.machine.processes[self.machine.count]
        if self.is_stuck() and process is not None:
            process.still_until_ns = max(process.still_until_ns, self.stuck_until_ns)
        number, self.next_write_fails = self.next_write_fails, 0
        return number

    def is_stuck(self) -> bool:
        """Whether the device lets nothing return now."""
        return self.now_ns < self.stuck_until_ns

    # -- steps ------------------------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Somebody goes on, or something happens."""
        rng = self.rng
        self.facts.steps += 1
        dice = rng.random()
        if dice < 0.12:
            self.supervise()
        elif dice < 0.55:
            self.machine.round_of(rng.randrange(WORKERS + 1))
        elif dice < 0.70:
            if self.machine.threads is not None:
                self.machine.threads.return_one(rng)
        elif dice < 0.82:
            self.add_entries()
        elif dice < 0.96:
            self.now_ns += rng.choice((1, 1, 5, 30, 200)) * MS
        elif dice < 0.97:
            self.operate()
        elif not self.server.is_up:
            self.server.restart()
        else:
            self.faults.happen()
        self.oracle.bounded()

    def supervise(self, machine: Machine | None = None) -> bool:
        """A round of a supervisor; a daemon that has ended is started again."""
        machine = machine or self.machine
        if self.now_ns < machine.still_until_ns:
            return False
        work = machine.supervise()
        end = machine.supervisor._exit
        if end is None:
            return work
        if end is ExitStatus.DAMAGED and self.oracle.rotten:
            self.accepts_damage = True  # the operator has read what it says
            self.oracle.rotten = False
        elif end not in (ExitStatus.OK, ExitStatus.DRAIN_INCOMPLETE):
            raise Violation(f"the daemon ended: {end.name}")
        self.note(f"daemon ended, {end.name}")
        self.restart(machine)
        return True

    def add_entries(self) -> None:
        name = b"s:%d" % self.rng.randrange(self.rng.choice((2, 6)))
        if name in self.server.wrong:
            return
        stream = self.add_to(name)
        if self.rng.random() < 0.1:
            stream.read_by_other(self.rng)

    def add_to(self, name: bytes) -> Stream:
        """Some entries."""
        stream = self.server.stream(name)
        for _ in range(self.rng.choice((1, 1, 3, 30))):
            stream.add((EPOCH_NS + self.now_ns) // MS, body(self.rng, name, len(stream.history)))
            self.facts.entries += 1
        return stream

    def operate(self) -> None:
        """An operator undoes what faults left: pauses, too few workers, halted lanes, keys of a wrong type."""
        self.server.wrong.clear()
        for machine in self.machines:
            supervisor = machine.supervisor
            if supervisor.is_paused or supervisor.paused_lanes:
                self._ask(machine.operations.resume, None)
            if not all(child.wanted for child in supervisor.workers):
                self._ask(machine.operations.set_workers, machine.count)
        writer, process = self.machine.writer, self.machine.processes[self.machine.count]
        on_their_way = {message.get("lane") for message in process.down if message["op"] == "accept"} if process is not None else set()
        for row in [row for row in writer._log.lanes.values() if row.is_halted] if writer is not None else []:
            if row.name.decode() in on_their_way:
                continue  # of two words on one halt the first one heard counts
            if row.name not in self.oracle.broken and not self.oracle.is_damaged:
                raise Violation(f"lane {row.name.decode()} is halted, and its stream never went backwards")
            stream = self.server.stream(row.name)
            position = self.rng.choice((None, ORIGIN, stream.last))
            try:
                self.machine.operations.accept(row.name.decode(), position)
            except Failure:
                continue  # it is not halted yet, or no more
            self.oracle.accepted.setdefault(row.name, []).append(row.position if position is None else position)
            self.note("lane accepted", f": {row.name.decode()}, from {position}")

    def _ask(self, call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
        except Failure:
            pass  # a daemon that drains says no

    def power(self, machine: Machine | None = None) -> None:
        """A host goes down without warning, and comes back."""
        self.restart(machine or self.machine, has_power=False)

    def restart(self, machine: Machine, has_power: bool = True) -> None:
        """The daemon begins anew, on rings and counters that are new."""
        machine.stop(has_power)
        machine.close()
        self.machines[self.machines.index(machine)] = self.made(machine)

    def made(self, before: Machine) -> Machine:
        """What comes after ``before``."""
        return Machine(self, self.config)

    # -- rest -------------------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Faults, then peace. Raises Violation."""
        self.start()
        for _ in range(self.steps):
            self.step()
        self.heal()
        self.settle()
        if self.rng.random() < 0.5:
            self.drain()
        self.machine.kill(self.machine.count)
        log: Any = self.config.log  # reopening changes nothing, and says to readers what is durable
        LogAppender.take_over(self.disk, contact="sim", on_full=log.on_full, retain_min_s=log.retain_min_s)  # type: ignore[arg-type]
        self.oracle.judge()

    def heal(self) -> None:
        """Faults stop."""
        self.trip_in = self.next_write_fails = 0
        self.reads_fail_until_ns = self.stuck_until_ns = 0
        for machine in self.machines:
            machine.still_until_ns = 0
            for process in machine.processes:
                if process is not None:
                    process.still_until_ns = 0
        self.server.replies.clear()
        if not self.server.is_up:
            self.server.restart()

    def everybody(self) -> None:
        """All that can go on does, and time passes."""
        work = False
        for machine in list(self.machines):
            work |= self.supervise(machine)
        for machine in self.machines:
            for role in range(len(machine.processes)):
                work |= machine.round_of(role)
        while self.machine.threads is not None and self.machine.threads.return_one(self.rng):
            work = True
        self.facts.steps += 1
        self.now_ns += self.pace_ms(work) * MS

    def pace_ms(self, work: bool) -> int:
        """How much time passes with a round of everybody in which somebody had something to do, or nobody had."""
        return 1 if work else 10

    def settle(self) -> None:
        """Liveness."""
        began_ns = self.now_ns
        while not self.is_all_durable():
            if self.now_ns - began_ns > SETTLE_MS_MAX * MS:
                rows = self.machine.writer._log.lanes.values() if self.machine.writer is not None else ()
                stands = {row.name.decode(): (str(row.position), row.ordinal, row.is_halted) for row in rows}
                wanted = {name.decode(): (str(stream.last), len(stream.history)) for name, stream in self.server.streams.items()}
                groups = {name.decode(): (str(stream.group[0]), stream.group[1]) for name, stream in self.server.streams.items()}
                alarms = [text for text, _, _ in self.machine.supervisor.alarms.all().values()]
                raise Violation(
                    f"liveness: after {SETTLE_MS_MAX} ms not all is durable: {stands}, wanted {wanted}; groups {groups}; alarms {alarms}"
                )
            self.operate()
            self.everybody()
        self.facts.settle_ms = max(self.facts.settle_ms, (self.now_ns - began_ns) // MS)

    def is_all_durable(self) -> bool:
        """True: nothing is left to do."""
        writer = self.machine.writer
        if writer is None or writer._waiting or not all(machine.is_at_rest for machine in self.present):
            return False
        log = writer._log
        for name, stream in self.server.streams.items():
            lane = log.lane_by_name.get(name)
            if lane is None or log.lanes[lane].is_halted:
                return False
            row = log.lanes[lane]
            if name in self.oracle.broken:
                if stream.after(row.position, 1) or row.position > stream.last:
                    return False
            elif stream.after(row.position, 1) or (self._is_countable(stream, row.position) and row.ordinal != len(stream.history)):
                return False  # losses are found by the look after
            if not self.oracle.is_shown(name, stream, row):
                return False
        return not log.open_bytes and log.durable_lsn == log.next_lsn - 1 and not self.oracle.standing_alarms()

    def _is_countable(self, stream: Stream, position: Position) -> bool:
        return position == stream.last or not stream.entries

    def drain(self) -> None:
        """All that is there is durable, so the daemon ends at once, and well."""
        supervisor = self.machine.supervisor
        supervisor.drain("the end")
        began_ns = self.now_ns
        while supervisor._exit is None:
            if self.now_ns - began_ns > DRAIN_MS_MAX * MS:
                raise Violation("liveness: the daemon does not drain")
            self.everybody() if supervisor is self.machine.supervisor else None
            if supervisor is not self.machine.supervisor:
                break
        if supervisor._exit is not ExitStatus.OK:
            raise Violation(f"drained with {supervisor._exit}")


def _values(rng: random.Random, is_cluster: bool) -> dict[str, Any]:
    blocks = rng.random() < 0.2
    values: dict[str, Any] = {
        "redis": {
            "url": "cluster://simulated" if is_cluster else "redis://simulated",
            "streams": ["s:*"],
            "trim": "durable" if rng.random() < 0.3 else "off",
            "count_max": rng.choice((1, 7, 100)),
            "reply_bytes_max": REPLY_BYTES_MAX,
            "entry_bytes_max": ENTRY_BYTES_MAX,
            "scan_interval_ms": 50,
            "group_interval_ms": 30,
            "block_ms": 100,
        },
        "workers": {"count": WORKERS, "count_max": WORKERS, "ring_bytes": 64 * KIB},
        "pipeline": {"batch_timeout_ms": 1000},
        "log": {
            "device": "simulated",
            "frame_bytes_max": FRAME_BYTES_MAX,
            "inflight_max": rng.choice((1, 4)),
            "write_bytes_max": 64 * KIB,
            "lease_interval_ms": 20,
            "on_full": "block" if blocks else "overwrite",
            "retain_min_s": rng.choice((1, 3)) if blocks else 0,
        },
        "supervisor": {"crash_loop_limit": 10_000, "restart_backoff_max_ms": 1000, "drain_timeout_s": 20},
    }
    values["log"]["fence"] = "reservation" if values["redis"]["count_max"] == 7 else "none"  # then keys are looked after
    return values

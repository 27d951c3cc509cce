"""One seed of the whole-system simulation: what happens to a host, its disk and its Redis, and whether it comes to rest afterwards."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Final

from hdad.config import Config
from hdad.control.protocol import Failure
from hdad.errors import ExitStatus
from hdad.limits import KIB
from hdad.log.appender import LogAppender
from hdad.log.create import lay_out
from hdad.log.geometry import SEGMENTS_OFFSET, UNIT, Geometry
from hdad.log.superblock import Superblock
from hdad.record import ORIGIN, Position
from hdad.supervise.states import ChildState
from tests.sim.disk import Disk
from tests.sim.log import UUID, Violation
from tests.sim.machine import Machine
from tests.sim.oracle import Oracle
from tests.sim.process import Killed
from tests.sim.redis import Server, Stream
from tests.sim.traffic import STAGED, body

MS: Final = 1_000_000
EPOCH_NS: Final = 1_700_000_000 * 1_000_000_000
WORKERS: Final = 3
SETTLE_MS_MAX: Final = 120_000  # virtual: so long may it take until everything is durable once faults stop
DRAIN_MS_MAX: Final = 30_000
STEPS_MAX: Final = 400
STILL_MS: Final = (50, 500, 3000, 20_000)  # the last is longer than the supervisor lets a process be silent
FAULTS: Final = (
    "trip", "trip", "trip", "kill", "still", "redis restarts", "redis away", "drop", "write error", "power", "xdel", "rewind", "deleted",
    "pause", "workers", "daemon restarts",
)  # fmt: skip


@dataclass
class Facts:
    """What a life did, for the sum."""

    steps: int = 0
    entries: int = 0
    events: dict[str, int] = field(default_factory=dict)
    settle_ms: int = 0
    violation: str = ""

    def count(self, what: str) -> None:
        self.events[what] = self.events.get(what, 0) + 1


class Life:
    """``steps``: so many with faults, instead of as many as the seed says."""

    def __init__(self, seed: int, steps: int | None = None) -> None:
        self.rng = rng = random.Random(seed)
        self.facts = Facts()
        self.now_ns = 1_000_000 * MS
        self._trip_in = 0  # touches until somebody dies; 0: nobody
        chosen = rng.randint(50, STEPS_MAX)
        self.steps = chosen if steps is None else steps
        block = rng.choice((512, 512, 4096))
        segment = 64 * KIB
        count = rng.choice((4, 24))
        self.geometry = Geometry(SEGMENTS_OFFSET + count * segment + 2 * UNIT, block, segment, count)
        self.disk = Disk(self.geometry.size, block_size=block)
        lay_out(self.disk, Superblock(UUID, 1, 0, self.geometry, 0))  # type: ignore[arg-type]
        self.oracle = Oracle(self)
        self.server = Server(rng)
        self.server.now_ns = lambda: self.now_ns
        self.server.on_shown = self.oracle.shown
        self.server.on_trim = self.oracle.trimmed
        self.server.trip = self.trip
        self.routes = [(STAGED, ("tests.sim.traffic:stage",))] if rng.random() < 0.5 else []
        self.is_breaking = rng.random() < 0.3  # streams go backwards in this life
        self.config = _config(rng)
        self.machine: Machine

    def trip(self, where: str) -> None:
        """Somebody touches something that others see."""
        if self._trip_in:
            self._trip_in -= 1
            if not self._trip_in:
                raise Killed(where)

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
            if self.machine.writes is not None:
                self.machine.writes.return_one(rng)
        elif dice < 0.82:
            self.add_entries()
        elif dice < 0.96:
            self.now_ns += rng.choice((1, 1, 5, 30, 200)) * MS
        elif dice < 0.97:
            self.operate()
        elif not self.server.is_up:
            self.server.restart()
        else:
            self.fault()

    def supervise(self) -> bool:
        """A round of the supervisor; a daemon that has ended is started again."""
        work = self.machine.supervise()
        if self.machine.supervisor._exit is None:
            return work
        if self.machine.supervisor._exit not in (ExitStatus.OK, ExitStatus.DRAIN_INCOMPLETE):
            raise Violation(f"the daemon ended: {self.machine.supervisor._exit.name}")
        self.facts.count(f"daemon ended, {self.machine.supervisor._exit.name}")
        self.power()
        return True

    def add_entries(self) -> None:
        name = b"s:%d" % self.rng.randrange(self.rng.choice((2, 6)))
        stream = self.server.stream(name)
        for _ in range(self.rng.choice((1, 1, 3, 30))):
            stream.add((EPOCH_NS + self.now_ns) // MS, body(self.rng, name, len(stream.history)))
            self.facts.entries += 1

    def operate(self) -> None:
        """An operator undoes what faults left: pauses, too few workers, halted lanes."""
        supervisor = self.machine.supervisor
        if supervisor.is_paused:
            self._ask(self.machine.operations.resume, None)
        if not all(child.wanted for child in supervisor.workers):
            self._ask(self.machine.operations.set_workers, WORKERS)
        writer = self.machine.writer
        for row in [row for row in writer._log.lanes.values() if row.is_halted] if writer is not None else []:
            if row.name not in self.oracle.broken:
                raise Violation(f"lane {row.name.decode()} is halted, and its stream never went backwards")
            stream = self.server.stream(row.name)
            position = self.rng.choice((None, ORIGIN, stream.last))
            try:
                self.machine.operations.accept(row.name.decode(), position)
            except Failure:
                continue  # it is not halted yet, or no more
            self.oracle.accepted.setdefault(row.name, []).append(row.position if position is None else position)
            self.facts.count("lane accepted")

    def power(self) -> None:
        """The host goes down and comes back; rings and counters are new."""
        self.machine.kill(WORKERS)
        self.machine.close()
        self.machine = Machine(self)

    def fault(self) -> None:
        """One of them."""
        rng = self.rng
        what = rng.choice(FAULTS)
        if what in ("rewind", "deleted") and not self.is_breaking:
            return
        self.facts.count(what)
        machine = self.machine
        if what == "trip":
            self._trip_in = rng.randint(1, 60)
        elif what == "kill":
            machine.kill(rng.randrange(WORKERS + 1))
        elif what == "still":
            process = machine.processes[rng.randrange(WORKERS + 1)]
            if process is not None:
                process.still_until_ns = self.now_ns + rng.choice(STILL_MS) * MS
        elif what == "redis restarts":
            self.server.restart()
        elif what == "redis away":
            self.server.is_up = False
        elif what == "write error":
            if machine.writes is not None:
                machine.writes.return_one(rng, fails=True)
        elif what == "power":
            self.power()
        elif what == "pause":
            self._ask(machine.operations.pause, None)
        elif what == "workers":
            self._ask(machine.operations.set_workers, rng.randint(1, WORKERS))
        elif what == "daemon restarts":
            machine.supervisor.drain("systemctl restart")
        elif self.server.streams:
            name = rng.choice(list(self.server.streams))
            self._fault_of_stream(what, name, self.server.streams[name])

    def _ask(self, call: Any, *arguments: Any) -> None:
        try:
            call(*arguments)
        except Failure:
            pass  # a daemon that drains says no

    def _fault_of_stream(self, what: str, name: bytes, stream: Stream) -> None:
        rng, oracle = self.rng, self.oracle
        if what == "drop" and stream.entries:
            oracle.dropped.setdefault(name, set()).update(stream.trim(rng.choice(stream.entries)[0]))
        elif what == "xdel" and stream.entries:
            for _ in range(rng.randint(1, min(3, len(stream.entries)))):
                oracle.dropped.setdefault(name, set()).add(stream.delete(rng.randrange(len(stream.entries))))
        elif what == "rewind" and stream.history:
            stream.rewind(rng.randint(1, min(20, len(stream.history))))
            oracle.broken[name] = oracle.broken.get(name, 0) + 1
            self.server.restart()
        elif what == "deleted":
            self.server.delete(name)
            self.now_ns += MS  # begun anew in the very millisecond that was read, its IDs would tell nothing (source/cursor)
            oracle.broken[name] = oracle.broken.get(name, 0) + 1

    # -- rest -------------------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Faults, then peace. Raises Violation."""
        self.machine = Machine(self)
        for _ in range(self.steps):
            self.step()
        self._trip_in = 0
        for process in self.machine.processes:
            if process is not None:
                process.still_until_ns = 0
        if not self.server.is_up:
            self.server.restart()
        self.settle()
        if self.rng.random() < 0.5:
            self.drain()
        self.machine.kill(WORKERS)
        log: Any = self.config.log  # reopening changes nothing, and says to readers what is durable
        LogAppender.take_over(self.disk, contact="sim", on_full=log.on_full, retain_min_s=log.retain_min_s)  # type: ignore[arg-type]
        self.oracle.judge()

    def everybody(self) -> None:
        """All that can go on does, and time passes."""
        work = self.supervise()
        for role in range(WORKERS + 1):
            work |= self.machine.round_of(role)
        while self.machine.writes is not None and self.machine.writes.return_one(self.rng):
            work = True
        self.facts.steps += 1
        self.now_ns += (1 if work else 10) * MS

    def settle(self) -> None:
        """Liveness."""
        began_ns = self.now_ns
        while not self.is_all_durable():
            if self.now_ns - began_ns > SETTLE_MS_MAX * MS:
                rows = self.machine.writer._log.lanes.values() if self.machine.writer is not None else ()
                stands = {row.name.decode(): (str(row.position), row.ordinal, row.is_halted) for row in rows}
                wanted = {name.decode(): (str(stream.last), len(stream.history)) for name, stream in self.server.streams.items()}
                raise Violation(f"liveness: after {SETTLE_MS_MAX} ms not all is durable: {stands}, wanted {wanted}")
            self.operate()
            self.everybody()
        self.facts.settle_ms = (self.now_ns - began_ns) // MS

    def is_all_durable(self) -> bool:
        """True: nothing is left to do."""
        writer = self.machine.writer
        if writer is None or writer._waiting or self.machine.supervisor.is_draining:
            return False
        if not all(child.wanted and child.state is ChildState.READY for child in self.machine.supervisor.children()):
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
        return not log.open_bytes and log.durable_lsn == log.next_lsn - 1

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


def _config(rng: random.Random) -> Config:
    blocks = rng.random() < 0.2
    values: dict[str, Any] = {
        "redis": {
            "url": "redis://simulated",
            "streams": ["s:*"],
            "trim": "durable" if rng.random() < 0.3 else "off",
            "count_max": rng.choice((1, 7, 100)),
            "reply_bytes_max": 64 * KIB,
            "entry_bytes_max": 4 * KIB,
            "scan_interval_ms": 50,
            "group_interval_ms": 30,
            "block_ms": 100,
        },
        "workers": {"count": WORKERS, "count_max": WORKERS, "ring_bytes": 64 * KIB},
        "pipeline": {"batch_timeout_ms": 1000},
        "log": {
            "device": "simulated",
            "frame_bytes_max": 8 * KIB,
            "inflight_max": rng.choice((1, 4)),
            "write_bytes_max": 64 * KIB,
            "lease_interval_ms": 20,
            "on_full": "block" if blocks else "overwrite",
            "retain_min_s": rng.choice((1, 3)) if blocks else 0,
        },
        "supervisor": {"crash_loop_limit": 10_000, "restart_backoff_max_ms": 1000, "drain_timeout_s": 20},
    }
    values["log"]["fence"] = "reservation" if values["redis"]["count_max"] == 7 else "none"  # then keys are looked after
    return Config.model_validate(values)

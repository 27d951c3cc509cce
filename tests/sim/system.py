"""The whole of hdad on one host under a seeded scheduler and a virtual clock: real workers, rings and writer; simulated Redis and disk.

    python -m tests.sim.system [--seeds N] [--first S] [--seed S] [--jobs J] [--json]

Nothing runs by itself: each step lets one worker or the writer make one round, a write in flight return, Redis get entries, or time pass.
Faults: a worker or the writer is killed at any touch of shared memory, disk or Redis, or stands still for long; Redis restarts, is away, or
drops entries nobody read; a write fails; power is lost, and each sector in flight lands or does not. One seed is one life, exactly repeated.

The oracle: what hdad shows to Redis or trims there is durable at that moment (I1); each record of the log is an entry that was added, in order,
once (I2, I3); none is missing that Redis did not drop, and those are counted (I10); a writer whose write failed writes nothing more (I8);
nothing ends but by a fault; and once faults stop, all that was added is durable within bounded virtual time.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Final

import hdad.worker.chores
import hdad.worker.loop
import hdad.writer.loop
from hdad._core import Ring, encode_entry
from hdad.config import Config
from hdad.errors import DeviceError, HdadError
from hdad.exchange.slots import WorkerSlot, create_slots
from hdad.limits import KIB
from hdad.log.appender import Gather, LogAppender
from hdad.log.create import lay_out
from hdad.log.geometry import SEGMENTS_OFFSET, UNIT, Geometry
from hdad.log.inspect import verify_device
from hdad.log.superblock import Superblock
from hdad.metrics.counters import Counters
from hdad.record import ORIGIN, Position, RecordKind
from hdad.worker.loop import WorkerLoop
from hdad.worker.stage import Router
from hdad.writer.loop import WriterLoop
from tests.sim.crash import UUID, Violation, reader_on, recovered, small_segments
from tests.sim.disk import Disk, Flight
from tests.sim.redis import Edge, Server, Stream

MS: Final = 1_000_000
EPOCH_NS: Final = 1_700_000_000 * 1_000_000_000
WORKERS: Final = 3
SETTLE_MS_MAX: Final = 60_000  # virtual: so long may it take until everything is durable once faults stop
RESTART_MS: Final = 100
STEPS_MAX: Final = 400


class Killed(BaseException):
    """kill -9: no handler of the killed sees it."""


class Inbox:
    """Stands in for the command channel's end in a child."""

    closed_by_peer = False

    def __init__(self) -> None:
        self.messages: deque[dict[str, Any]] = deque()

    def receive(self) -> list[dict[str, Any]]:
        found = list(self.messages)
        self.messages.clear()
        return found

    def send(self, message: dict[str, Any]) -> bool:
        return True


class TrippedRing:
    """A mapping of its own, as each process has one; every touch is a place to die, before it or after."""

    def __init__(self, ring: Ring, life: Life) -> None:
        self._ring = Ring.attach(ring.fd)
        self._life = life

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._ring, name)
        if not callable(found):
            return found
        life = self._life

        def touched(*args: Any) -> Any:
            life.trip(name)
            result = found(*args)
            life.trip(name)
            return result

        setattr(self, name, touched)
        return touched


class SimWrites:
    """Stands in for ``hdad.writer.writes.Writes``: writes return when the scheduler says so."""

    life: Life  # set by the life that makes the class its own

    def __init__(self, device: Disk, inflight_max: int, bell: int, block: object) -> None:
        self._disk = device
        self.inflight: list[tuple[Flight, Gather]] = []
        self._ended: list[Gather] = []
        self._aside: Flight | None = None
        self._error: DeviceError | None = None
        self._has_raised = False
        self.life.writes = self

    @property
    def inflight_count(self) -> int:
        return len(self.inflight) + len(self._ended)

    @property
    def is_aside_busy(self) -> bool:
        return self._aside is not None

    def _begin(self, address: int, buffers: Any) -> Flight:
        if self._has_raised:
            raise Violation("I8: a writer goes on after a failed write")
        self.life.trip("write")
        flight = self._disk.begin(address, buffers)
        self.life.trip("write")
        return flight

    def submit(self, gather: Gather) -> None:
        self.inflight.append((self._begin(gather.address, gather.buffers), gather))

    def inline(self, gather: Gather) -> None:
        flight = self._begin(gather.address, gather.buffers)
        self._disk.settle(flight)
        self._ended.append(gather)

    def aside(self, address: int, buffer: memoryview) -> None:
        self._aside = self._begin(address, [bytes(buffer)])

    def return_one(self, rng: random.Random, fails: bool = False) -> bool:
        """Some write returns, or fails."""
        count = len(self.inflight) + (self._aside is not None)
        if not count or self._error is not None:
            return False
        index = rng.randrange(count)
        flight, gather = self.inflight[index] if index < len(self.inflight) else (self._aside, None)
        assert flight is not None
        if fails:
            self._error = DeviceError("simulated: write failed (EIO)")
            return True
        self._disk.settle(flight)
        if gather is None:
            self._aside = None
        else:
            del self.inflight[index]
            self._ended.append(gather)
        return True

    def reap(self, completed: Any) -> int:
        ended, self._ended = self._ended, []
        for gather in ended:
            completed(gather)
        if self._error is not None:
            self._has_raised = True
            raise self._error
        return len(ended)

    def close(self) -> None:
        pass


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
    """One seed."""

    def __init__(self, seed: int, steps: int | None = None) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.facts = Facts()
        self.now_ns = 1_000_000 * MS
        self.trip_in = 0  # touches until somebody dies; 0: nobody
        self.steps = rng.randint(50, STEPS_MAX) if steps is None else steps
        if steps is not None:
            rng.randint(50, STEPS_MAX)
        block = rng.choice((512, 512, 4096))
        count = rng.choice((4, 24))
        segment = 64 * KIB
        self.geometry = Geometry(SEGMENTS_OFFSET + count * segment + 2 * UNIT, block, segment, count)
        self.disk = Disk(self.geometry.size, block_size=block)
        lay_out(self.disk, Superblock(UUID, 1, 0, self.geometry, 0))  # type: ignore[arg-type]
        self.server = Server(rng)
        self.server.now_ns = lambda: self.now_ns
        self.server.on_shown = self.shown
        self.server.on_trim = lambda name, below: self.shown(name, self._before(name, below))
        self.server.trip = self.trip
        self.dropped: dict[bytes, set[Position]] = {}
        is_trimming = rng.random() < 0.3
        self.config = Config.model_validate(
            {
                "redis": {
                    "url": "redis://simulated",
                    "streams": ["s:*"],
                    "trim": "durable" if is_trimming else "off",
                    "count_max": rng.choice((1, 7, 100)),
                    "reply_bytes_max": 64 * KIB,
                    "entry_bytes_max": 4 * KIB,
                    "scan_interval_ms": 50,
                    "group_interval_ms": 30,
                    "block_ms": 100,
                },
                "workers": {"count": WORKERS, "count_max": WORKERS, "ring_bytes": 64 * KIB},
                "log": {"device": "simulated", "frame_bytes_max": 8 * KIB, "inflight_max": rng.choice((1, 4)), "write_bytes_max": 64 * KIB,
                        "lease_interval_ms": 20},
            }
        )  # fmt: skip
        self.writes: SimWrites | None = None
        self.acknowledged: dict[bytes, Position] = {}
        self.power_on()

    # -- the machine --------------------------------------------------------------------------------------------------------------------

    def power_on(self) -> None:
        """A new supervisor: rings, counters, everybody dead as yet."""
        self.slots = create_slots(WORKERS, self.config.workers.ring_bytes)
        self.counters = Counters.create(WORKERS, 64)
        self.writer: WriterLoop | None = None
        self.workers: list[WorkerLoop | None] = [None] * WORKERS
        self.generations = [0] * WORKERS
        self.inboxes = [Inbox() for _ in range(WORKERS)]
        self.writer_inbox = Inbox()
        self.still_until_ns = [0] * (WORKERS + 1)
        self.due_ns = [self.now_ns] * (WORKERS + 1)  # when the supervisor starts each of them; the writer is the last

    def power_off(self) -> None:
        self.kill_writer(is_power=True)
        for slot in self.slots:
            os.close(slot.back_bell)
        os.close(self.slots[0].data_bell)

    def _slot(self, index: int) -> WorkerSlot:
        slot = self.slots[index]
        return WorkerSlot(index, TrippedRing(slot.data, self), TrippedRing(slot.back, self), slot.data_bell, slot.back_bell)  # type: ignore[arg-type]

    def trip(self, where: str) -> None:
        """Somebody touches something that others see."""
        if self.trip_in:
            self.trip_in -= 1
            if not self.trip_in:
                raise Killed(where)

    def start_writer(self) -> None:
        self.writer_inbox = Inbox()
        log = LogAppender.take_over(self.disk, contact="sim", write_bytes_max=self.config.log.write_bytes_max)  # type: ignore[arg-type]
        slots = [self._slot(index) for index in range(WORKERS)]
        self.writer = WriterLoop(slots, self.counters, self.writer_inbox, self.config, log)  # type: ignore[arg-type]

    def start_worker(self, index: int) -> None:
        self.generations[index] += 1
        self.inboxes[index] = Inbox()
        self.workers[index] = WorkerLoop(
            self._slot(index), self.generations[index], self.counters, self.inboxes[index], self.config, Router((), ())  # type: ignore[arg-type]
        )  # fmt: skip

    def kill_writer(self, is_power: bool = False) -> None:
        """What was in flight lands or not; a device never takes a write of the dead once the next writer is there."""
        self.writer, self.writes = None, None
        self.disk = self.disk.crash(self.rng)
        self.due_ns[WORKERS] = self.now_ns + RESTART_MS * MS

    def kill_worker(self, index: int) -> None:
        self.workers[index] = None
        self.due_ns[index] = self.now_ns + RESTART_MS * MS
        self.writer_inbox.messages.append({"op": "worker-dead", "worker": index, "generation": self.generations[index]})

    # -- steps ----------------------------------------------------------------------------------------------------------------------------

    def round_of(self, index: int) -> bool:
        """One child's round, the writer being the last of them; a dead one is started when it is due. True: it did something."""
        if self.now_ns < self.still_until_ns[index]:
            return False
        child = self.writer if index == WORKERS else self.workers[index]
        try:
            if child is not None:
                return child.run_once(self.now_ns)
            if self.now_ns < self.due_ns[index]:
                return False
            if index == WORKERS:
                self.start_writer()
            else:
                self.start_worker(index)
        except Killed as killed:
            self.facts.count(f"killed at {killed}")
            self.kill(index)
        except DeviceError:
            self.facts.count("writer ended by its device")
            self.kill(index)
        return True

    def kill(self, index: int) -> None:
        if index == WORKERS:
            self.kill_writer()
        else:
            self.kill_worker(index)

    def add_entries(self) -> None:
        name = b"s:%d" % self.rng.randrange(self.rng.choice((2, 6)))
        stream = self.server.streams.setdefault(name, Stream())
        for _ in range(self.rng.choice((1, 1, 3, 30))):
            stream.add((EPOCH_NS + self.now_ns) // MS, b"%d:" % len(stream.history) + b"x" * self.rng.choice((0, 20, 500)))
            self.facts.entries += 1

    def fault(self) -> None:
        """One of them."""
        rng = self.rng
        what = rng.choice(("trip", "trip", "trip", "kill", "still", "restart", "away", "drop", "write error", "power"))
        self.facts.count(what)
        if what == "trip":
            self.trip_in = rng.randint(1, 60)
        elif what == "kill":
            self.kill(rng.randrange(WORKERS + 1))
        elif what == "still":
            self.still_until_ns[rng.randrange(WORKERS + 1)] = self.now_ns + rng.choice((50, 500, 3000)) * MS
        elif what == "restart":
            self.server.restart()
        elif what == "away":
            self.server.is_up = False
        elif what == "drop" and self.server.streams:
            name = rng.choice(list(self.server.streams))
            stream = self.server.streams[name]
            if stream.entries:
                self.dropped.setdefault(name, set()).update(stream.trim(rng.choice(stream.entries)[0]))
        elif what == "write error" and self.writes is not None:
            self.writes.return_one(rng, fails=True)
        elif what == "power":
            self.power_off()
            self.power_on()

    def step(self) -> None:
        rng = self.rng
        self.facts.steps += 1
        dice = rng.random()
        if dice < 0.55:
            self.round_of(rng.randrange(WORKERS + 1))
        elif dice < 0.70:
            if self.writes is not None:
                self.writes.return_one(rng)
        elif dice < 0.82:
            self.add_entries()
        elif dice < 0.97:
            self.now_ns += rng.choice((1, 1, 5, 30, 200)) * MS
        elif not self.server.is_up:
            self.server.restart()
        else:
            self.fault()

    def run(self) -> None:
        """Faults, then peace. Raises Violation."""
        for _ in range(self.steps):
            self.step()
        self.trip_in = 0
        self.still_until_ns = [0] * (WORKERS + 1)
        if not self.server.is_up:
            self.server.restart()
        self.settle()
        self.kill_writer()
        self.start_writer()  # reopening changes nothing, and says to readers what is durable
        self.judge()

    def settle(self) -> None:
        """Liveness."""
        began_ns = self.now_ns
        while not self.is_all_durable():
            if self.now_ns - began_ns > SETTLE_MS_MAX * MS:
                rows = self.writer._log.lanes.values() if self.writer is not None else ()
                stands = {row.name.decode(): (str(row.position), row.ordinal, row.is_halted) for row in rows}
                wanted = {name.decode(): (str(stream.last), len(stream.history)) for name, stream in self.server.streams.items()}
                raise Violation(f"liveness: after {SETTLE_MS_MAX} ms not all is durable: {stands}, wanted {wanted}")
            work = False
            for index in range(WORKERS + 1):
                work |= self.round_of(index)
            while self.writes is not None and self.writes.return_one(self.rng):
                work = True
            self.facts.steps += 1
            self.now_ns += (1 if work else 10) * MS
        self.facts.settle_ms = (self.now_ns - began_ns) // MS

    def is_all_durable(self) -> bool:
        if self.writer is None or self.writer._waiting:
            return False
        log = self.writer._log
        for name, stream in self.server.streams.items():
            lane = log.lane_by_name.get(name)
            if lane is None or log.lanes[lane].position != stream.last or log.lanes[lane].ordinal != len(stream.history):
                return False  # losses are found by the look after
        return not log.open_bytes and log.durable_lsn == log.next_lsn - 1

    # -- the oracle ---------------------------------------------------------------------------------------------------------------------------

    def _before(self, name: bytes, below: Position) -> Position:
        """The last entry that a trim would take."""
        return max((at for at, _ in self.server.streams[name].entries if at < below), default=ORIGIN)

    def shown(self, name: bytes, position: Position) -> None:
        """I1: what is settled on the disk alone must know it, whatever becomes of what is in flight."""
        if position <= self.acknowledged.get(name, ORIGIN):
            return
        rows = {row.name: row.position for row in recovered(self.disk.copy()).lanes.values()}
        if rows.get(name, ORIGIN) < position:
            raise Violation(f"I1: {name.decode()} is shown as durable up to {position}; the disk has it up to {rows.get(name)}")
        self.acknowledged[name] = position

    def judge(self) -> None:
        """The log holds what it should."""
        report = verify_device(self.disk)  # type: ignore[arg-type]
        if not report.ok:
            raise Violation(f"verify: {report.violations}")
        log = recovered(self.disk)
        rows = {row.name: row for row in log.lanes.values()}
        seen: dict[bytes, list[tuple[Position, bytes]]] = {name: [] for name in self.server.streams}
        with reader_on(self.disk) as reader:
            for record in reader.records():
                if record.kind is not RecordKind.ENTRY:
                    raise Violation(f"a record of kind {record.kind}")
                seen[record.lane.encode()].append((record.position, record.body))
        for name, stream in self.server.streams.items():
            row, dropped = rows[name], self.dropped.get(name, set())
            if row.ordinal != len(stream.history):
                raise Violation(
                    f"I10: {name.decode()}: {row.before} before hdad came + {row.entries} read + {row.lost} lost are not "
                    f"{len(stream.history)} added"
                )
            if row.before + row.lost > len(dropped):
                raise Violation(f"I10: {name.decode()}: {row.before} before + {row.lost} lost, {len(dropped)} were dropped")
            found = seen[name]
            expected = [(at, encode_entry([(b"n", body)])) for at, body in stream.history]
            if log.sequence >= self.geometry.segment_count:  # it has wrapped around: the oldest are overwritten
                expected = [entry for entry in expected if found and entry[0] >= found[0][0]]
            present = {at for at, _ in found}
            expected = [entry for entry in expected if entry[0] in present or entry[0] not in dropped]
            if found != expected:
                missing = [at for at, _ in expected if at not in present]
                raise Violation(f"{name.decode()}: {len(found)} records, {len(expected)} expected; missing {missing[:5]}, or order, or twice")


# -- many of them ------------------------------------------------------------------------------------------------------------------------------


@contextmanager
def simulated(life_of: list[Life]) -> Iterator[None]:
    """hdad's modules get the virtual clock, the seed's randomness, Redis and writes of the life in ``life_of``."""
    clock = {"monotonic_ns": lambda: life_of[0].now_ns, "wall_ns": lambda: EPOCH_NS + life_of[0].now_ns}
    fakes: list[tuple[Any, str, Any]] = [
        (module, name, fake)
        for path, module in list(sys.modules.items())
        if path.startswith("hdad.")
        for name, fake in clock.items()
        if hasattr(module, name)
    ]
    dice = SimpleNamespace(random=lambda: life_of[0].rng.random())
    fakes += [(hdad.worker.loop, "random", dice), (hdad.worker.chores, "random", dice)]
    fakes += [(hdad.worker.loop, "RedisEdge", lambda _: Edge(life_of[0].server)), (hdad.writer.loop, "Writes", _writes_of(life_of))]
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


def _writes_of(life_of: list[Life]) -> Any:
    def make(*args: Any) -> SimWrites:
        return type("SimWritesOfLife", (SimWrites,), {"life": life_of[0]})(*args)

    return make


def run_seed(seed: int, steps: int | None = None) -> Facts:
    """One life, and what was wrong with it."""
    life_of: list[Life] = []
    with simulated(life_of):
        life = Life(seed, steps)
        life_of.append(life)
        try:
            life.run()
        except (Violation, HdadError, AssertionError, ValueError, KeyError, IndexError) as wrong:
            life.facts.violation = f"seed {seed}, step {life.facts.steps}: {type(wrong).__name__}: {wrong}"
        finally:
            for slot in life.slots:
                os.close(slot.back_bell)
            os.close(life.slots[0].data_bell)
    return life.facts


def shrunk(seed: int) -> str:
    """The fewest steps with faults after which this seed still fails, and what it says then."""
    whole = run_seed(seed)
    low, high, text = 0, min(whole.steps, STEPS_MAX), whole.violation
    while high - low > 1:
        middle = (low + high) // 2
        facts = run_seed(seed, middle)
        if facts.violation:
            high, text = middle, facts.violation
        else:
            low = middle
    return f"{text}\nreplay: python -m tests.sim.system --seed {seed} --steps {high}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="this life alone")
    parser.add_argument("--steps", type=int, help="with --seed: so many steps before faults stop")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    began = time.monotonic()
    lives: list[Facts] = []
    if options.seed is not None:
        lives.append(run_seed(options.seed, options.steps))
    else:
        with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
            for facts in pool.imap_unordered(run_seed, range(options.first, options.first + options.seeds), 8):
                lives.append(facts)
                if facts.violation:
                    break
            pool.terminate()
    events: dict[str, int] = {}
    for facts in lives:
        for what, count in facts.events.items():
            events[what] = events.get(what, 0) + count
    violations = [facts.violation for facts in lives if facts.violation]
    for violation in violations:
        print(violation, file=sys.stderr)
        if options.seed is None:
            print(shrunk(int(violation.split()[1].rstrip(","))), file=sys.stderr)
    sums = {
        "lives": len(lives),
        "steps": sum(facts.steps for facts in lives),
        "entries": sum(facts.entries for facts in lives),
        "settle_ms_max": max(facts.settle_ms for facts in lives),
        "violations": violations,
        "seconds": round(time.monotonic() - began, 1),
    }
    if options.json:
        print(json.dumps({**sums, "events": events}))
    else:
        print(
            f"lives: {sums['lives']:,}, steps: {sums['steps']:,}, entries: {sums['entries']:,}; {len(violations)} violations; all durable at "
            f"most {sums['settle_ms_max']:,} virtual ms after the last fault; {sums['seconds']} s"
        )
        print("  " + ", ".join(f"{count:,} {what}" for what, count in sorted(events.items())))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())

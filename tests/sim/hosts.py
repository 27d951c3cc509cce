"""Several hosts under a seeded scheduler and a virtual clock: a writer's host, hosts with workers only, links over a modelled network.

    python -m tests.sim.hosts [--seeds N] [--first S] [--seed S [--steps K]] [--jobs J] [--json]

Real are supervisors, workers, rings, links (machine, forwarder, server) and the writer; simulated are the network (network.py), Redis, the
disk and time. Faults: a process is killed at any touch of shared memory, disk, Redis or the network, or at any moment; it, or its whole host,
stands still for shorter or longer than every limit; paths between hosts are cut, one way or both; delays; a host loses power and comes
back, the writer's too; a daemon is restarted in order; writes fail; Redis restarts, is away, drops entries. One seed is one life.

The oracle is that of tests/sim/system: whatever is shown to Redis as durable is (I1); the log holds what entries ask for, in order, once (I2,
I3), whichever host read them, and nothing of an assignment that was over (I4); no honest host is ever called a liar or garbage; and once
faults stop, all that was added is durable within bounded virtual time, with every host serving.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import hdad.supervise.family
from hdad.addresses import Address
from hdad.alarms import Alarms
from hdad.config import Config
from hdad.errors import DeviceError, ExitStatus
from hdad.exchange.link.forward import Forwarder
from hdad.exchange.link.inlet import Inlet, InletState
from hdad.exchange.link.ledger import Ledger
from hdad.exchange.link.loop import LinkLoop
from hdad.exchange.link.outlet import Outlet
from hdad.exchange.link.serve import Server
from hdad.exchange.link.whois import ElectedWriter
from hdad.exchange.link.wire import Greeting, Role
from hdad.exchange.slots import WorkerSlot, create_remote_slots, create_slots
from hdad.limits import KIB
from hdad.log.appender import LogAppender
from hdad.log.create import lay_out
from hdad.log.geometry import SEGMENTS_OFFSET, UNIT, Geometry
from hdad.log.superblock import Superblock
from hdad.metrics.counters import Counters, State
from hdad.record import Position
from hdad.supervise.loop import Roles
from hdad.supervise.spawn import Forked
from hdad.supervise.states import ChildState
from hdad.worker.loop import WorkerLoop
from hdad.worker.stage import Router
from hdad.writer.loop import WriterLoop
from tests.sim.disk import Disk
from tests.sim.life import EPOCH_NS, Facts
from tests.sim.log import UUID, Violation
from tests.sim.machine import LANES, SimSupervisor, _wake
from tests.sim.network import SimNet
from tests.sim.oracle import Oracle
from tests.sim.process import Hung, Killed, Process, SimWrites, TrippedRing
from tests.sim.redis import Server as Redis
from tests.sim.system import simulated
from tests.sim.traffic import body

MS: Final = 1_000_000
HERE: Final = Address("tcp", "w", 7411)
WORKERS: Final = 2  # of each host without the device
REMOTE: Final = 5  # rings for them: one more than needed, so that a host that came again finds some
STEPS_MAX: Final = 500
SETTLE_MS_MAX: Final = 120_000
STILL_MS: Final = (20, 200, 1500, 20_000)  # the last is longer than every limit, the supervisor's too
FAULTS: Final = (
    "trip", "trip", "kill", "kill link", "still", "still host", "cut", "cut", "heal", "delays", "power", "restart", "write error",
    "redis restarts", "redis away", "drop",
)  # fmt: skip
HONEST: Final = frozenset(("done", "lost", "silent", "stalled", "crowded"))  # how connections of honest hosts may end


class Box:
    """One host: a supervisor and its processes. Roles: workers by index, then the writer, then the link."""

    def __init__(self, life: HostsLife, name: str, config: Config) -> None:
        self.life, self.name, self.config = life, name, config
        self.count = config.workers.count_max
        self.has_log = bool(config.log.device)
        self.slots = create_slots(self.count, config.workers.ring_bytes)
        self.remote = create_remote_slots(self.slots, REMOTE if self.has_log else 0, config.workers.ring_bytes)
        self.counters = Counters.create(self.count, LANES)
        self.net = life.net.host(name)
        self.net.is_back()
        self.processes: list[Process | None] = [None] * (self.count + 2)
        self.writes: SimWrites | None = None
        roles = Roles(
            partial(self._fork, self.count) if self.has_log else None, lambda index: partial(self._fork, index),
            link=partial(self._fork, self.count + 1),
        )  # fmt: skip
        self.supervisor = SimSupervisor(config, "", self.counters, roles)

    def close(self) -> None:
        """The host is gone, and all descriptors with it."""
        for slot in self.slots:
            os.close(slot.back_bell)
        os.close(self.slots[0].data_bell)
        if self.remote:
            os.close(self.remote[0].back_bell)

    @property
    def writer(self) -> WriterLoop | None:
        process = self.processes[self.count]
        found = process.loop if process is not None and process.end is None else None
        return found if isinstance(found, WriterLoop) else None

    # -- processes --------------------------------------------------------------------------------------------------------------------

    def _fork(self, role: int, generation: int) -> Forked:
        begin: Callable[[Process], Any] = self._begin_worker
        if role >= self.count:
            begin = self._begin_writer if role == self.count else self._begin_link
        process = Process(len(self.life.by_pid) + 1, role, generation, begin)
        self.life.by_pid[process.pid] = self, process
        self.processes[role] = process
        return Forked(process.pid, process.pid + 1_000_000, process.parents_end)  # type: ignore[arg-type]

    def _mapped(self, slot: WorkerSlot) -> WorkerSlot:
        trip = self.life.trip
        return WorkerSlot(slot.index, TrippedRing(slot.data, trip), TrippedRing(slot.back, trip), slot.data_bell, slot.back_bell)  # type: ignore[arg-type]

    def _begin_worker(self, process: Process) -> WorkerLoop:
        slot = self._mapped(self.slots[process.role])
        return WorkerLoop(slot, process.generation, self.counters, process.childs_end, self.config, Router((), []))  # type: ignore[arg-type]

    def _begin_writer(self, process: Process) -> WriterLoop:
        self.counters.writer.set("state", State.RECOVERING)
        self.life.writes_of = self
        log = LogAppender.take_over(self.life.disk, contact=str(HERE), write_bytes_max=self.config.log.write_bytes_max)  # type: ignore[arg-type]
        slots = [self._mapped(slot) for slot in (*self.slots, *self.remote)]
        loop = WriterLoop(slots, self.counters, process.childs_end, self.config, log)  # type: ignore[arg-type]
        self.counters.writer.set("state", State.READY)
        return loop

    def _begin_link(self, process: Process) -> LinkLoop:
        life, link = self.life, self.config.link
        alarms = Alarms(process.childs_end, logging.getLogger("hdad.link"))
        greeting = Greeting(
            Role.WORKERS, link.silence_ms, life.rng.randbytes(16), bytes(16), self.config.log.frame_bytes_max, self.count, self.name
        )
        block = self.counters.link
        if not self.has_log:
            ledger = Ledger(self.counters.lanes, self.counters.writer)
            outlets = [Outlet(self._mapped(slot)) for slot in self.slots]
            forwarder = Forwarder(
                outlets, ledger, [HERE], greeting, self.net, alarms, block, lambda: life.rng.random(), lambda: (EPOCH_NS + life.now_ns) // 1000  # noqa: PLW0108
            )  # fmt: skip
            bells = self.slots[0].data_bell
            return LinkLoop(process.childs_end, block, forwarder, None, [], bells, lambda _: None, lambda _: None)  # type: ignore[arg-type]
        whois = ElectedWriter(self.counters.writer, UUID)
        inlets = [Inlet(self._mapped(slot), process.generation) for slot in self.remote]
        greeting = greeting._replace(role=Role.WRITER, workers=0)
        server = Server(inlets, [self.net.listen(HERE)], greeting, whois, alarms, block, 8)
        return LinkLoop(process.childs_end, block, None, server, [], self.remote[0].data_bell, lambda _: None, whois.learn)  # type: ignore[arg-type]

    def kill(self, role: int, end: int = -9) -> None:
        """kill -9, or an end in order; the kernel closes what was the process' own."""
        process = self.processes[role]
        if process is None or process.end is not None:
            return
        process.end = end
        if role == self.count:
            self.writes = None
            self.life.disk = self.life.disk.crash(self.life.rng)
        elif role == self.count + 1:
            self.net.die()

    def round_of(self, role: int) -> bool:
        """One round of one process. True: it did something."""
        life, process = self.life, self.processes[role]
        if process is None or process.end is not None or process.is_hung or life.now_ns < process.still_until_ns:
            return False
        try:
            if process.loop is None:
                process.loop = process.begin(process)
                process.childs_end.send({"event": "ready"})
                return True
            if not isinstance(process.loop, LinkLoop):
                _wake(process.loop)
            if process.loop.run_once(life.now_ns):
                return True
            if not process.loop.is_drained:
                return False
            if isinstance(process.loop, WriterLoop):
                process.loop.close()
            self.kill(role, ExitStatus.OK)
        except Killed as killed:
            life.facts.count(f"killed at {killed}")
            self.kill(role)
        except Hung:
            process.is_hung = True
        except DeviceError as error:
            life.facts.count("writer ended by its device")
            self.kill(role, error.status)
        return True

    def supervise(self) -> bool:
        """One round of the supervisor: the dead, their messages, its tick. True: something had happened."""
        work = False
        for child in self.supervisor.children():
            found = self.life.by_pid.get(child.pid)
            if found is not None:
                process = found[1]
                work |= process.end is not None or bool(process.up)
                if process.end is not None:
                    self.supervisor._ended(child)
                else:
                    self.supervisor._hear(child)
        self.supervisor._tick(self.life.now_ns)
        return work


class HostsLife:
    """One seed. ``steps``: so many with faults, instead of as many as the seed says. ``machine`` is the writer's host (see system.simulated)."""

    def __init__(self, seed: int, steps: int | None = None) -> None:
        self.rng = rng = random.Random(seed)
        self.facts = Facts()
        self.now_ns = 1_000_000 * MS
        self._trip_in = 0
        chosen = rng.randint(100, STEPS_MAX)
        self.steps = chosen if steps is None else steps
        segment = 64 * KIB
        self.geometry = Geometry(SEGMENTS_OFFSET + 48 * segment + 2 * UNIT, 512, segment, 48)
        self.disk = Disk(self.geometry.size, block_size=512)
        lay_out(self.disk, Superblock(UUID, 1, 0, self.geometry, 0))  # type: ignore[arg-type]
        self.oracle = Oracle(self)  # type: ignore[arg-type]
        self.server = Redis(rng)
        self.server.now_ns = lambda: self.now_ns
        self.server.on_shown = self.oracle.shown
        self.server.on_trim = self.oracle.trimmed
        self.server.trip = self.trip
        self.routes: list[Any] = []
        self.net = SimNet(lambda: self.now_ns, rng)
        self.net.delay_ns_max = rng.choice((0, 1, 20)) * MS
        self.by_pid: dict[int, tuple[Box, Process]] = {}
        self.writes_of: Box
        self.has_local = rng.random() < 0.5  # the writer's host has a worker that reads, too
        self.names = ["w", "x", "y"][: rng.choice((2, 3))]
        self.silence_ms = rng.choice((300, 1000))
        self.trims = rng.random() < 0.3
        self.boxes: dict[str, Box] = {}

    @property
    def machine(self) -> Box:
        return self.writes_of

    def trip(self, where: str) -> None:
        """Somebody touches something that others see."""
        if self._trip_in:
            self._trip_in -= 1
            if not self._trip_in:
                raise Killed(where)

    def boot(self, name: str) -> None:
        """A host begins."""
        self.boxes[name] = Box(self, name, self._config(name))

    def _config(self, name: str) -> Config:
        is_writer = name == "w"
        streams = ["s:*"] if not is_writer or self.has_local else ["none"]
        link: dict[str, Any] = {"silence_ms": self.silence_ms, "insecure": True}
        link |= {"listen": [str(HERE)], "remote_workers_max": REMOTE} if is_writer else {"writers": [str(HERE)]}
        count = 1 if is_writer else WORKERS
        return Config.model_validate(
            {
                "redis": {
                    "url": "redis://simulated", "streams": streams, "trim": "durable" if self.trims else "off", "count_max": 7,
                    "reply_bytes_max": 64 * KIB, "entry_bytes_max": 4 * KIB, "scan_interval_ms": 50, "group_interval_ms": 30,
                    "block_ms": 100,
                },
                "workers": {"count": count, "count_max": count, "ring_bytes": 64 * KIB},
                "log": {
                    "device": "simulated" if is_writer else "", "frame_bytes_max": 8 * KIB, "write_bytes_max": 64 * KIB,
                    "lease_interval_ms": 20,
                },
                "link": link,
                "supervisor": {"crash_loop_limit": 10_000, "restart_backoff_max_ms": 1000, "drain_timeout_s": 20},
            }
        )  # fmt: skip

    # -- steps ------------------------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Somebody goes on, or something happens."""
        rng = self.rng
        self.facts.steps += 1
        dice = rng.random()
        box = self.boxes[rng.choice(self.names)]
        if dice < 0.15:
            self.supervise(box)
        elif dice < 0.30:
            box.round_of(box.count + 1)
        elif dice < 0.58:
            box.round_of(rng.randrange(box.count + 1))
        elif dice < 0.70:
            self._return_write()
        elif dice < 0.80:
            self.add_entries()
        elif dice < 0.96:
            self.now_ns += rng.choice((1, 1, 5, 30, 100)) * MS
        elif not self.server.is_up:
            self.server.restart()
        else:
            self.fault(box)

    def _return_write(self, fails: bool = False) -> bool:
        writes = self.boxes["w"].writes
        return writes is not None and writes.return_one(self.rng, fails=fails)

    def supervise(self, box: Box) -> bool:
        """A round of a supervisor; a daemon that has ended is started again."""
        work = box.supervise()
        if box.supervisor._exit is None:
            return work
        if box.supervisor._exit not in (ExitStatus.OK, ExitStatus.DRAIN_INCOMPLETE):
            raise Violation(f"the daemon on {box.name} ended: {box.supervisor._exit.name}: {list(box.supervisor.errors)[-3:]}")
        self.facts.count(f"daemon ended, {box.supervisor._exit.name}")
        self._stop(box, has_power=True)
        self.boot(box.name)
        return True

    def _stop(self, box: Box, has_power: bool) -> None:
        if not has_power:
            box.net.vanish()
        for role in range(box.count + 2):
            box.kill(role)
        self._check_honest(box)
        box.close()

    def _check_honest(self, box: Box) -> None:
        for name in ("garbage", "lies", "flood", "version", "refused", "failed"):
            if box.counters.link.get(f"ends_{name}"):
                raise Violation(f"an honest host's connection ended as {name}: {box.supervisor.link_report.get('news')}")

    def add_entries(self) -> None:
        name = b"s:%d" % self.rng.randrange(self.rng.choice((2, 6)))
        stream = self.server.stream(name)
        for _ in range(self.rng.choice((1, 1, 3, 30))):
            stream.add((EPOCH_NS + self.now_ns) // MS, body(self.rng, name, len(stream.history)))
            self.facts.entries += 1

    def fault(self, box: Box) -> None:
        """One of them, on one host."""
        rng = self.rng
        what = rng.choice(FAULTS)
        self.facts.count(what)
        if what == "trip":
            self._trip_in = rng.randint(1, 80)
        elif what == "kill":
            box.kill(rng.randrange(box.count + 1))
        elif what == "kill link":
            box.kill(box.count + 1)
        elif what == "still":
            self._still(box, [rng.randrange(box.count + 2)])
        elif what == "still host":
            self._still(box, list(range(box.count + 2)))
        elif what == "cut":
            other = rng.choice(self.names[1:])
            self.net.cut |= rng.choice(({("w", other)}, {(other, "w")}, {("w", other), (other, "w")}))
        elif what == "heal":
            self.net.cut.clear()
        elif what == "delays":
            self.net.delay_ns_max = rng.choice((0, 1, 20, 150)) * MS
        elif what == "power":
            self._stop(box, has_power=False)
            self.now_ns += rng.choice((1, 1000)) * MS
            self.boot(box.name)
        elif what == "restart":
            box.supervisor.drain("systemctl restart")
        elif what == "write error":
            self._return_write(fails=True)
        elif what == "redis restarts":
            self.server.restart()
        elif what == "redis away":
            self.server.is_up = False
        elif what == "drop" and self.server.streams:
            name = rng.choice(list(self.server.streams))
            stream = self.server.streams[name]
            if stream.entries:
                self.oracle.dropped.setdefault(name, set()).update(stream.trim(rng.choice(stream.entries)[0]))

    def _still(self, box: Box, roles: list[int]) -> None:
        until_ns = self.now_ns + self.rng.choice(STILL_MS) * MS
        for role in roles:
            process = box.processes[role]
            if process is not None:
                process.still_until_ns = until_ns

    # -- rest -------------------------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Faults, then peace. Raises Violation."""
        for name in self.names:
            self.boot(name)
            self.writes_of = self.boxes["w"]
        for _ in range(self.steps):
            self.step()
        self._trip_in = 0
        self.net.cut.clear()
        self.net.delay_ns_max = 0
        for box in self.boxes.values():
            for process in box.processes:
                if process is not None:
                    process.still_until_ns = 0
        if not self.server.is_up:
            self.server.restart()
        began_ns = self.now_ns
        while not self.is_at_rest():
            if self.now_ns - began_ns > SETTLE_MS_MAX * MS:
                raise Violation(f"liveness: after {SETTLE_MS_MAX} ms: {self._wanted()}")
            self.everybody()
        self.facts.settle_ms = (self.now_ns - began_ns) // MS
        for box in self.boxes.values():
            self._check_honest(box)
        self.boxes["w"].kill(self.boxes["w"].count)
        LogAppender.take_over(self.disk, contact="sim")  # type: ignore[arg-type]  # says to readers what is durable
        self.oracle.judge()

    def everybody(self) -> None:
        """All that can go on does, and time passes."""
        work = False
        for box in list(self.boxes.values()):
            work |= self.supervise(box)
        for box in list(self.boxes.values()):
            for role in range(box.count + 2):
                work |= box.round_of(role)
        while self._return_write():
            work = True
        self.facts.steps += 1
        self.now_ns += (1 if work else 10) * MS

    def _wanted(self) -> Any:
        writer = self.boxes["w"].writer
        rows = {row.name.decode(): (str(row.position), row.ordinal) for row in writer._log.lanes.values()} if writer is not None else None
        streams = {name.decode(): (str(stream.last), len(stream.history)) for name, stream in self.server.streams.items()}
        links = {name: box.supervisor.link_report for name, box in self.boxes.items()}
        children = {name: [(child.role, child.state.value) for child in box.supervisor.children()] for name, box in self.boxes.items()}
        return f"{rows}, wanted {streams}; {links}; {children}"

    def is_at_rest(self) -> bool:
        """True: all is durable, and everybody serves."""
        writer = self.boxes["w"].writer
        if writer is None or writer._waiting:
            return False
        for box in self.boxes.values():
            if box.supervisor.is_draining or not all(child.state is ChildState.READY for child in box.supervisor.children()):
                return False
            link = box.processes[box.count + 1]
            loop = link.loop if link is not None and link.end is None else None
            if not isinstance(loop, LinkLoop) or (loop._forwarder is not None and not loop._forwarder.is_serving):
                return False
            if loop._server is not None and any(inlet.state is InletState.CLOSING for inlet in loop._server._inlets):
                return False
        log = writer._log
        for name, stream in self.server.streams.items():
            lane = log.lane_by_name.get(name)
            if lane is None:
                return False
            row = log.lanes[lane]
            if stream.after(row.position, 1) or (self._is_countable(stream, row.position) and row.ordinal != len(stream.history)):
                return False
        return not log.open_bytes and log.durable_lsn == log.next_lsn - 1

    def _is_countable(self, stream: Any, position: Position) -> bool:
        return bool(position == stream.last or not stream.entries)


@contextmanager
def hosted(life_of: list[HostsLife]) -> Iterator[None]:
    """As ``system.simulated``, for processes of several hosts."""
    family: Any = hdad.supervise.family
    with simulated(life_of):  # type: ignore[arg-type]
        family.reap = lambda forked: life_of[0].by_pid[forked.pid][1].end or 0
        family.kill = lambda forked, number=9: life_of[0].by_pid[forked.pid][0].kill(life_of[0].by_pid[forked.pid][1].role)
        yield


def run_seed(seed: int, steps: int | None = None) -> Facts:
    """One life, and what was wrong with it."""
    life_of: list[HostsLife] = []
    with hosted(life_of):
        life = HostsLife(seed, steps)
        life_of.append(life)
        try:
            life.run()
        except Exception as wrong:  # whatever it is, it is this seed's finding
            life.facts.violation = f"seed {seed}, step {life.facts.steps}: {type(wrong).__name__}: {wrong}"
        finally:
            for box in life.boxes.values():
                box.close()
    return life.facts


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
        print(violation[:4000], file=sys.stderr)
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
            f"lives: {sums['lives']:,}, steps: {sums['steps']:,}, entries: {sums['entries']:,}; {len(violations)} violations; all durable "
            f"at most {sums['settle_ms_max']:,} virtual ms after the last fault; {sums['seconds']} s"
        )
        print("  " + ", ".join(f"{count:,} {what}" for what, count in sorted(events.items())))
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())

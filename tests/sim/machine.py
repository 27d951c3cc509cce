"""A host with the device in the whole-system simulations: the real supervisor and its table of children, whose processes are here; rings,
counters."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from hdad.config import Config
from hdad.errors import CorruptionError, DeviceError, ExitStatus
from hdad.exchange.link.loop import LinkLoop
from hdad.exchange.slots import WorkerSlot, create_slots
from hdad.log.appender import LogAppender
from hdad.metrics.counters import Counters, State
from hdad.supervise.loop import Roles, Supervisor
from hdad.supervise.operations import DaemonOperations
from hdad.supervise.spawn import Forked
from hdad.supervise.states import ChildState
from hdad.worker.loop import WorkerLoop
from hdad.worker.stage import Router
from hdad.writer.loop import WriterLoop
from tests.sim.device import OpenDisk, Threads
from tests.sim.log import Violation
from tests.sim.process import Hung, Killed, Process, TrippedRing

if TYPE_CHECKING:
    from tests.sim.life import Life

LANES: Final = 64


class Selector:
    """Nobody waits here; what the supervisor would be woken for is looked at in its round."""

    def __init__(self) -> None:
        self._map: dict[int, Any] = {}

    def register(self, fd: Any, events: int, data: Any) -> None:
        self._map[fd] = data

    def unregister(self, fd: int) -> None:
        del self._map[fd]

    def get_map(self) -> dict[int, Any]:
        return self._map


class SimSupervisor(Supervisor):
    """The real one, but for signals."""

    def _install_signals(self) -> None:
        pass


class SimKeys:
    """Stands in for ``hdad.writer.keys.Keys``: now and then a path lacks the key."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._looks = 0

    def are_missing(self) -> bool:
        self._looks += 1
        return self._looks % 3 == 0

    def register(self) -> None:
        threads = self._machine.threads
        if threads is not None and threads.count:
            raise Violation("I4: a key is registered while writes are on their way")
        self._machine._life.facts.count("keys registered")


class Machine:
    """From one start of the daemon to its end. ``processes``: workers by index, then the writer."""

    def __init__(self, life: Life, config: Config) -> None:
        self._life = life
        self.config = config
        self.slots = create_slots(config.workers.count_max, config.workers.ring_bytes)
        self.counters = Counters.create(config.workers.count_max, LANES)
        self.count = config.workers.count_max
        self.still_until_ns = 0  # of the supervisor
        self.processes: list[Process | None] = [None] * (self.count + 1)
        self.threads: Threads | None = None
        self.supervisor = SimSupervisor(config, "", self.counters, self._roles())
        self.operations = DaemonOperations(self.supervisor)

    @property
    def writer(self) -> WriterLoop | None:
        """None while there is none that has recovered."""
        process = self.processes[self.count]
        found = process.loop if process is not None and process.end is None else None
        return found if isinstance(found, WriterLoop) else None

    @property
    def is_at_rest(self) -> bool:
        """True: everybody serves, and all room of rings is given back."""
        supervisor = self.supervisor
        is_ready = all(child.wanted and child.state is ChildState.READY for child in supervisor.children())
        return is_ready and not supervisor.is_draining and all(slot.data.head == slot.data.tail for slot in self.slots)

    def stop(self, has_power: bool = True) -> None:
        """The daemon is no more; without power nothing is closed in order."""
        self.kill(self.count)

    def close(self) -> None:
        """The machine is gone, and its descriptors with it: those of rings as soon as nobody looks at them."""
        for fd in (self.slots[0].data_bell, *(slot.back_bell for slot in self.slots), self.counters.fd, self.counters.lanes.fd):
            os.close(fd)

    # -- processes --------------------------------------------------------------------------------------------------------------------

    def _roles(self) -> Roles:
        return Roles(partial(self._fork, self.count), lambda index: partial(self._fork, index))

    def _begin(self, role: int) -> Callable[[Process], Any]:
        """What a process does first."""
        return self._begin_writer if role == self.count else self._begin_worker

    def _fork(self, role: int, generation: int) -> Forked:
        process = Process(len(self._life.by_pid) + 1, role, generation, self._begin(role))
        self._life.by_pid[process.pid] = self, process
        self.processes[role] = process
        return Forked(process.pid, process.pid + 1_000_000, process.parents_end)  # type: ignore[arg-type]

    def _mapped(self, slot: WorkerSlot) -> WorkerSlot:
        data, back = (TrippedRing(ring, self._life.trip) for ring in (slot.data, slot.back))
        return WorkerSlot(slot.index, data, back, slot.data_bell, slot.back_bell)  # type: ignore[arg-type]

    def _slots_of_writer(self) -> list[WorkerSlot]:
        return self.slots

    def _begin_writer(self, process: Process) -> WriterLoop:
        """As ``hdad.writer.child`` does it."""
        life, config, block = self._life, self.config.log, self.counters.writer
        block.set("state", State.RECOVERING)
        block.set("heartbeat_ns", life.now_ns)
        device = OpenDisk(life.disk, life.trip, life.read_fails, life.write_fails)
        log = LogAppender.take_over(
            device, contact="sim", accept_damage=life.accepts_damage, on_full=config.on_full, retain_min_s=config.retain_min_s,  # type: ignore[arg-type]
            write_bytes_max=config.write_bytes_max,
        )  # fmt: skip
        life.oracle.recovered(bool(log.damaged))
        life.accepts_damage = False
        self.threads = Threads(device, life.is_stuck)
        slots = [self._mapped(slot) for slot in self._slots_of_writer()]
        keys = SimKeys(self) if config.fence == "reservation" else None
        loop = WriterLoop(slots, self.counters, process.childs_end, self.config, log, keys)  # type: ignore[arg-type]
        block.set("state", State.READY)
        return loop

    def _begin_worker(self, process: Process) -> WorkerLoop:
        router = Router((), self._life.routes)
        slot = self._mapped(self.slots[process.role])
        return WorkerLoop(slot, process.generation, self.counters, process.childs_end, self.config, router)  # type: ignore[arg-type]

    def kill(self, role: int, end: int = -9) -> None:
        """Of a writer's writes in flight each sector lands or not; a device never takes them once the next writer is there."""
        process = self.processes[role]
        if process is None or process.end is not None:
            return
        process.end = end
        if role == self.count:
            self.threads = None
            self._life.disk = self._life.disk.crash(self._life.rng)

    def round_of(self, role: int) -> bool:
        """One round of one process. True: it did something."""
        process = self.processes[role]
        if process is None or process.end is not None or process.is_hung or self._life.now_ns < process.still_until_ns:
            return False
        try:
            if process.loop is None:
                process.loop = process.begin(process)
                process.childs_end.send({"event": "ready"})
                return True
            wake(process.loop)
            if process.loop.run_once(self._life.now_ns):
                return True
            if not process.loop.is_drained:
                return False
            if isinstance(process.loop, WriterLoop):
                process.loop.close()
            self.kill(role, ExitStatus.OK)
        except Killed as killed:
            self._life.facts.count(f"killed at {killed}")
            self.kill(role)
        except Hung:
            self._life.facts.count("stage hung")
            process.is_hung = True
        except DeviceError as error:
            self._life.facts.count("writer ended by its device")
            self.kill(role, error.status)
        except CorruptionError as error:
            self._life.oracle.refused(error)
            self.kill(role, error.status)
        return True

    def supervise(self) -> bool:
        """One round of the supervisor: the dead, their messages, its tick. True: something had happened."""
        work = False
        supervisor = self.supervisor
        for child in supervisor.children():
            _, process = self._life.by_pid.get(child.pid, (None, None))
            if process is not None:
                work |= process.end is not None or bool(process.up)
                if process.end is not None:
                    supervisor._ended(child)
                else:
                    supervisor._hear(child)
        supervisor._tick(self._life.now_ns)
        return work


def wake(loop: WorkerLoop | WriterLoop | LinkLoop) -> None:
    """As epoll would: whoever waits is told of whatever may be there. A link looks everywhere in each round anyhow."""
    if isinstance(loop, LinkLoop):
        return
    loop._is_spoken_to = True
    if isinstance(loop, WorkerLoop):
        for port in loop.ports.values():
            port.is_readable = True
    else:
        loop._is_rung = True


def reap(life_of: Callable[[], Life]) -> Callable[[Forked], int]:
    """For ``hdad.supervise.family``."""
    return lambda forked: life_of().by_pid[forked.pid][1].end or 0


def kill(life_of: Callable[[], Life]) -> Callable[..., None]:
    """For ``hdad.supervise.family``: SIGKILL reaches one that stands still, or hangs, too."""

    def kill_one(forked: Forked, number: int = 9) -> None:
        life = life_of()
        machine, process = life.by_pid[forked.pid]
        life.facts.count("killed by the supervisor")
        machine.kill(process.role)

    return kill_one


SELECTORS: Final = SimpleNamespace(DefaultSelector=Selector, EVENT_READ=1)

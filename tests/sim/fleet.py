"""One seed of the simulation of several hosts: the writer's, and one or two with workers only, whose frames come over links."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from hdad.config import Config
from hdad.errors import LappedError
from hdad.limits import KIB
from hdad.log.format import FrameKind
from tests.sim.host import LISTEN, Host
from tests.sim.life import MS, Life
from tests.sim.log import Violation, read_all, reader_on
from tests.sim.machine import Machine
from tests.sim.network import SimNet
from tests.sim.rifts import Rifts

WRITER: Final = "w"
WORKERS: Final = 2  # of each host without the device
STEPS_MAX: Final = 700
PATIENCE_NS: Final = 500 * MS
REMOTE: Final = 5  # rings for them: one more than needed, so that a host that came again finds some
SHARES: Final = (0.12, 0.57, 0.69, 0.75, 0.90, 0.91, 0.94)  # supervisors, processes, writes, entries, time, operator, calm; faults
ABSENCE: Final = 0.3  # of lives in which a host stays away at first when faults stop
NEVER_NS: Final = 1 << 62
CALM: Final = (1, 4, 12)  # rounds of everybody


class Fleet(Life):
    """As ``Life``. ``names`` of hosts, the writer's first; ``skews``: how far each clock on the wall is off."""

    steps_range = (200, STEPS_MAX)

    def __init__(self, seed: int, steps: int | None = None, without: Collection[str] = ()) -> None:
        super().__init__(seed, steps, without)
        rng = self.rng
        self.net = SimNet(lambda: self.now_ns, rng)
        self.net.trip = self.trip
        self.net.delay_ns_max = rng.choice((0, 1, 20)) * MS
        self.names = [WRITER, "x", "y"][: rng.choice((2, 3))]
        self.skews = dict.fromkeys(self.names, 0)
        self.skew_ns = 0  # of who runs
        self.healed_ns = 0  # when faults stopped
        self.absent = ""  # a host that stays away for longer than the others
        self.silence_ms = rng.choice((300, 1000))
        self.has_local = rng.random() < 0.5  # the writer's host has workers that read, too
        self.configs = {name: self._config(name) for name in self.names}
        self.config = self.configs[WRITER]
        self.faults = Rifts(self)

    def _config(self, name: str) -> Config:
        is_writer = name == WRITER
        values = {key: dict(section) for key, section in self.values.items()}
        link: dict[str, Any] = {"silence_ms": self.silence_ms, "insecure": True}
        if is_writer:
            link |= {"listen": [str(LISTEN)], "remote_workers_max": REMOTE}
        else:
            link |= {"writers": [str(LISTEN)]}
            values["log"] = {"device": "", "frame_bytes_max": values["log"]["frame_bytes_max"]}
        values["redis"]["count_max"] = max(7, values["redis"]["count_max"])
        count = 1 if is_writer else WORKERS
        values["workers"] = {"count": count, "count_max": count, "ring_bytes": 64 * KIB}
        if is_writer and not self.has_local:
            values["redis"]["streams"] = ["none:*"]
        return Config.model_validate(values | {"link": link})

    # -- hosts --------------------------------------------------------------------------------------------------------------------------

    @property
    def hosts(self) -> list[Host]:
        """All, the writer's first."""
        return [machine for machine in self.machines if isinstance(machine, Host)]

    @property
    def wall_ns(self) -> int:
        """As of a life; each host has its own."""
        return super().wall_ns + self.skew_ns

    @property
    def present(self) -> list[Machine]:
        """All but the absent one."""
        return [host for host in self.hosts if host.name != self.absent]

    def any_machine(self) -> Host:
        """Any of them."""
        return self.rng.choice(self.hosts)

    def start(self) -> None:
        """All come up."""
        self.machines += [Host(self, name, self.configs[name]) for name in self.names]

    def made(self, before: Machine) -> Machine:
        """The next daemon on the same host."""
        assert isinstance(before, Host)
        return Host(self, before.name, self.configs[before.name], self.now_ns + self.off_ms(before) * MS)

    def off_ms(self, host: Host) -> int:
        """For how long a host stays down: one without power longer than one whose daemon is started again."""
        return self.rng.choice((10, 500, 3000)) if host.name in self.net.dark else 0

    # -- steps ------------------------------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Somebody goes on, or something happens."""
        rng = self.rng
        self.facts.steps += 1
        dice = rng.random()
        if dice < SHARES[0]:
            self.supervise(self.any_machine())
        elif dice < SHARES[1]:
            host = self.any_machine()
            host.round_of(rng.choice(host.roles))
        elif dice < SHARES[2]:
            if self.machine.threads is not None:
                self.machine.threads.return_one(rng)
        elif dice < SHARES[3]:
            self.add_entries()
        elif dice < SHARES[4]:
            self.now_ns += rng.choice((1, 1, 5, 5, 30, 100)) * MS
        elif dice < SHARES[5]:
            self.operate()
        elif dice < SHARES[6]:
            for _ in range(rng.choice(CALM)):
                self.everybody()
        elif not self.server.is_up:
            self.server.restart()
        else:
            self.faults.happen()
        if not self.facts.steps % 4:
            self.oracle.bounded()

    # -- rest -------------------------------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Faults stop."""
        super().heal()
        self.net.cut.clear()
        self.net.delay_ns_max = 0
        self.net.rng = None
        self.healed_ns = self.now_ns
        self.server.pieces = (1 << 20,)
        for host in self.hosts:
            host.starts_ns = 0
        if (len(self.names) > 2 or self.has_local) and self.rng.random() < ABSENCE:
            self._leave(self.rng.choice(self.hosts[1:]))

    def _leave(self, host: Host) -> None:
        """A host with workers is cut off, or stands still, or has no power; and there are new entries in its lanes."""
        self.absent = host.name
        way = self.rng.choice(("cut off", "still", "off"))
        self.note(f"{host.name} stays {way}")
        if way == "cut off":
            self.net.cut |= {(WRITER, host.name), (host.name, WRITER)}
        elif way == "still":
            host.stand_still(NEVER_NS)
        else:
            self.power(host)
            next(found for found in self.hosts if found.name == host.name).starts_ns = NEVER_NS
        for name in self.server.streams:
            if name not in self.server.wrong:
                self.add_to(name)

    def _come_back(self) -> None:
        host = next(host for host in self.hosts if host.name == self.absent)
        self.absent = ""
        self.net.cut.clear()
        host.starts_ns = 0
        host.stand_still(0)
        self.healed_ns = self.now_ns

    def settle(self) -> None:
        """Liveness: without the absent host, which nobody waits for; then with it, of which nothing counts that it had left."""
        if self.absent:
            super().settle()
            self._come_back()
        super().settle()

    def pace_ms(self, work: bool) -> int:
        """As of a life, but faster, above all when some long limit is waited for: among several hosts somebody always does something."""
        if not self.healed_ns:
            return self.rng.choice((1, 4, 20))
        return 4 if work and self.now_ns - self.healed_ns < PATIENCE_NS else 40

    def run(self) -> None:
        """As a life. Raises Violation."""
        super().run()
        try:
            self._judge_epochs()
        except LappedError as lapped:  # as in the oracle
            if not self.oracle.is_damaged:
                raise
            self._judge_epochs(lapped.oldest_lsn)

    def _judge_epochs(self, start: int | None = None) -> None:
        """I4: each lane's epochs only grow along the log, and each is one worker's."""
        epochs: dict[int, int] = {}
        owners: dict[tuple[int, int], int] = {}
        with reader_on(self.disk, "skip" if self.oracle.is_damaged else "raise", start) as reader:
            for header, _ in read_all(reader):
                if header.kind != FrameKind.DATA:
                    continue
                lane, epoch = header.lane_id, header.lane_epoch
                if epoch < epochs.get(lane, 0):
                    raise Violation(f"I4: lane {lane}: a frame of epoch {epoch:#x} lies behind one of {epochs[lane]:#x}")
                if owners.setdefault((lane, epoch), header.worker) != header.worker:
                    raise Violation(f"I4: lane {lane}: frames of epoch {epoch:#x} are of workers {owners[lane, epoch]} and {header.worker}")
                epochs[lane] = epoch

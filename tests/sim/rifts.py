"""What befalls several hosts and the network between them, besides what befalls one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.sim.faults import MS, STILL_MS, Faults

if TYPE_CHECKING:
    from tests.sim.fleet import Fleet

SKEWS_MS: Final = (-20_000, -300, 0, 300, 20_000)
DELAYS_MS: Final = (0, 1, 20, 150)


class Rifts(Faults):
    """As ``Faults``, each on any host."""

    def __init__(self, life: Fleet) -> None:
        self._fleet = life
        super().__init__(life)
        self.add(
            {
                "kill link": (2, self.kill_link),
                "daemon killed": (1, lambda: life.restart(life.any_machine())),
                "host still": (3, self.host_still),
                "cut": (3, self.cut),
                "one way cut": (3, self.one_way),
                "heal": (3, life.net.cut.clear),
                "connection breaks": (2, lambda: life.net.break_one(self.rng)),
                "delays": (2, self.delays),
                "clock jumps": (1, self.clock_jumps),
            }
        )

    def kill_link(self) -> None:
        host = self._fleet.any_machine()
        host.kill(len(host.processes) - 1)

    def host_still(self) -> None:
        """All of a host stands still: a virtual machine that is paused."""
        self._fleet.any_machine().stand_still(self._fleet.now_ns + self.rng.choice(STILL_MS) * MS)

    def _other(self) -> str:
        return self.rng.choice(self._fleet.names[1:])

    def cut(self) -> None:
        """Between the writer's host and another nothing gets through."""
        first, other = self._fleet.names[0], self._other()
        self._fleet.net.cut |= {(first, other), (other, first)}

    def one_way(self) -> None:
        """It does one way, and not the other."""
        first, other = self._fleet.names[0], self._other()
        self._fleet.net.cut.add(self.rng.choice(((first, other), (other, first))))

    def delays(self) -> None:
        self._fleet.net.delay_ns_max = self.rng.choice(DELAYS_MS) * MS

    def clock_jumps(self) -> None:
        """The clock on a host's wall."""
        self._fleet.skews[self._fleet.any_machine().name] = self.rng.choice(SKEWS_MS) * MS

"""All times of a writer's lease, in one place, and why they fit together. A noun: values only.

T = log.takeover_timeout_ms, Q = log.io_timeout_ms (the longest that a write may take on a healthy device, path failover included),
R = renew (the longest pause between two lease writes), S = settle, W = watch, k = skew (the clocks of two hosts differ by less over T).

    writer's clock                                          standby's clock
    w          it begins to write its lease
    w + R      it begins the next one; that may take Q
                                                            s ≥ w      the end of the look that saw the lease change
    w + L      no renewal has returned: from here it submits
               nothing and calls nothing done, status FENCED
    w + L + Q  what it had submitted just before has landed
               or failed; L + Q + k = T
                                                            s + T      a look that begins now or later finds the lease as it was:
                                                                       the writer has ended, nothing of it is on its way
                                                            s + T + W  so the standby knows it at the latest; it claims
                                                            + S        lease-unsafe only: and sees whether another one does, too
                                                            + recovery and then it serves

They fit if and only if a renewal that takes as long as a write may take is in time, R + Q ≤ L, that is R + 2 Q + k ≤ T.

With a reservation the array refuses the old writer's writes, so L is not looked at; T then decides only how patient a standby is. Under
``lease-unsafe`` the whole safety hangs on the left column: a write that a device or a hypervisor holds back for longer than Q after it was
submitted, or a host whose clock stands still with it (a paused virtual machine), may land after s + T. What that can do is in DESIGN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MS: Final = 1_000_000
TAKEOVER_MS_MIN: Final = 500
TAKEOVER_MS_MAX: Final = 100_000
IDLE_MS: Final = 1000  # a quiet log's lease is written that seldom, or more often if T asks for it
WATCH_MS_MAX: Final = 100
SETTLE_MS_MAX: Final = 400


@dataclass(frozen=True, slots=True)
class Timing:
    """``takeover_ms``: T; ``io_ms``: Q; ``lease_ms``: the pause between two lease writes while the log moves. Milliseconds."""

    takeover_ms: int
    io_ms: int
    lease_ms: int

    @property
    def renew_ms(self) -> int:
        """R: ten of them fit into T."""
        return max(self.lease_ms, min(IDLE_MS, self.takeover_ms // 10))

    @property
    def skew_ms(self) -> int:
        """k: one hundredth; clocks that NTP slews differ by a twentieth of that."""
        return -(-self.takeover_ms // 100)

    @property
    def limit_ms(self) -> int:
        """L: how long a lease is good for, from the beginning of its last write."""
        return self.takeover_ms - self.io_ms - self.skew_ms

    @property
    def watch_ms(self) -> int:
        """W: the pause between two looks of a standby."""
        return max(5, min(WATCH_MS_MAX, self.takeover_ms // 50))

    @property
    def settle_ms(self) -> int:
        """S: how long two claims need to see each other (writer/election); half of it is the longest that a claim may take to land."""
        return min(SETTLE_MS_MAX, self.takeover_ms // 5)

    def wrong(self) -> str:
        """What does not fit, in an operator's words; "" if all does."""
        need = self.renew_ms + 2 * self.io_ms + self.skew_ms
        if need <= self.takeover_ms:
            return ""
        return (
            f"takeover_timeout_ms ({self.takeover_ms}) must be at least {need}: a renewal of the lease ({self.renew_ms}), twice "
            f"io_timeout_ms ({self.io_ms}), and {self.skew_ms} for clocks that differ"
        )

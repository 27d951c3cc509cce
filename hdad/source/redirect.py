"""A Redis Cluster's word on who serves a slot: MOVED and ASK, as they stand in error replies. Pure.

Source of the rules: the Redis Cluster specification. MOVED is lasting: the slot is served there now. ASK is for one command: the slot is
on its way there, and this key has arrived; the command must come after ASKING, since the node there does not own the slot yet.
"""

from __future__ import annotations

from typing import Final, NamedTuple

SLOTS: Final = 16_384
Address = tuple[str, int]


class Redirect(NamedTuple):
    """``address``: (host, port); the host is empty when it is the one that answered."""

    is_ask: bool
    slot: int
    address: Address


def parse_redirect(text: str) -> Redirect | None:
    """What an error reply says; None when it is no redirect, or none that makes sense (I9)."""
    words = text.split()
    if len(words) != 3 or words[0] not in ("MOVED", "ASK"):
        return None
    host, _, port = words[2].rpartition(":")
    if not (words[1].isascii() and words[1].isdigit() and port.isascii() and port.isdigit()):
        return None
    slot, number = int(words[1]), int(port)
    if slot >= SLOTS or not 0 < number < 65_536:
        return None
    return Redirect(words[0] == "ASK", slot, (host.strip("[]"), number))

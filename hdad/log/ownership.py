"""Who is the writer of a log, as superblock and lease blocks tell it. Pure.

The superblock names the host that raised the writer epoch last; that host's lease block tells the rest. Used by standbys, links (hints to
who asks the wrong host) and ``hdactl cluster``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hdad.log.superblock import NOBODY, Lease, LeaseState, Superblock

_KEY_PREFIX: Final = 0x4844 << 48  # "HD": an operator sees in sg_persist whose key it is


def reservation_key(node: bytes) -> int:
    """The reservation key of a host: by its uuid alone, so that it can be worked out from a lease block, and given to multipathd.

    A key per writer epoch would fence no better: what is fenced is the host's access to the LUN, not a process on it.
    """
    return _KEY_PREFIX | int.from_bytes(hashlib.sha256(b"hdad reservation key" + node).digest()[:6], "big")


def is_hdads(key: int) -> bool:
    """Whether a reservation key is one that ``reservation_key`` may give."""
    return key >> 48 == _KEY_PREFIX >> 48


@dataclass(frozen=True, slots=True)
class Owner:
    """The last writer. ``is_released``: it has stopped in order. ``is_serving``: by its own word it is the writer (it may be dead since).

    Neither: it is taking over. ``since_ns``: wall clock, for people; ``lease``: None if its block is gone.
    """

    node: bytes
    epoch: int
    contact: str
    since_ns: int
    is_serving: bool
    is_released: bool
    lease: Lease | None


def owner(superblock: Superblock, leases: Iterable[Lease | None]) -> Owner | None:
    """The last writer; None: the log has never had one.

    | the block of the superblock's node | its epoch      | serving | released | reason                                           |
    |------------------------------------|----------------|---------|----------|--------------------------------------------------|
    | active                             | superblock's   | yes     | no       |                                                  |
    | active                             | another        | no      | no       | superblock raised, first tick not yet written    |
    | released                           | any            | no      | yes      |                                                  |
    | idle or asking                     | any            | no      | yes      | no writer says so of itself: it had released     |
    | claiming                           | any            | no      | no       | it is taking over, again perhaps                 |
    | none                               |                | no      | no       | superblock raised, or the block is rotten        |
    """
    if superblock.writer_node == NOBODY:
        return None
    own = next((lease for lease in leases if lease is not None and lease.node_uuid == superblock.writer_node), None)
    if own is None:
        return Owner(superblock.writer_node, superblock.writer_epoch, "", 0, False, False, None)
    is_serving = own.state is LeaseState.ACTIVE and own.writer_epoch == superblock.writer_epoch
    is_released = own.state in (LeaseState.RELEASED, LeaseState.IDLE, LeaseState.ASKING)
    return Owner(superblock.writer_node, superblock.writer_epoch, own.contact, own.since_ns, is_serving, is_released, own)


def own_slot(superblock: Superblock, leases: Iterable[Lease | None], node: bytes) -> int:
    """The slot for the lease block of ``node``: the one it has, a free one, or that of the oldest writer epoch; never the owner's.

    Which free one hangs on ``node``, so that of two hosts that start at once one seldom writes over what the other has just written.
    """
    table = list(leases)
    mine = [slot for slot, lease in enumerate(table) if lease is not None and lease.node_uuid == node]
    free = [slot for slot, lease in enumerate(table) if lease is None]
    others = [
        slot
        for _, slot, lease in sorted((lease.writer_epoch, slot, lease) for slot, lease in enumerate(table) if lease is not None)
        if lease.node_uuid != superblock.writer_node
    ]
    if free and not mine:
        return free[int.from_bytes(node, "big") % len(free)]
    return [*mine, *others][0]

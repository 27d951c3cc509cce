"""Which host may be the writer: watching the lease of the one that is, and claiming its place. Pure: values in, verdicts and steps out.

A standby looks at superblock and lease blocks again and again (``Watch``). When the writer has released the log, or its lease has stood
still for the timeout, the standby carries out the steps of ``claim``. Two standbys may do so at once; exactly one wins:

- **reservation**: the array decides. PREEMPT AND ABORT succeeds for the one that comes first; the victim's key is gone for the other,
  which takes its own key away again and watches on. Where nobody holds the reservation, RESERVE decides likewise. Once held, it is never
  given up, only taken: a writer that releases the log keeps it until its successor takes it. Without any reservation the array would take
  the writes of a writer that was fenced long ago and wakes up just then.
- **lease-unsafe**: each candidate (1) looks that nothing has changed, (2) writes CLAIMING into its own lease block, and gives up if that
  has not landed within half the settle time of (1), (3) waits for the settle time, (4) looks again. A claim that landed after its rival's
  (1) has landed before that rival's (4), so of two candidates that pass (2) each sees the other in (4); the one with the lower slot stays.
  Whoever finds anything else changed gives up. The host of the last writer (its process died and was started again) does not wait: all
  others give way to it.

A claim, as every tick of a lease, is a sign of life: all other standbys begin to count anew when they see it.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, NamedTuple

from hdad.log.ownership import Owner, is_hdads, own_slot, owner, reservation_key
from hdad.log.superblock import NOBODY, Lease, LeaseState, Superblock
from hdad.timing import MS, TAKEOVER_MS_MAX, Timing


class View(NamedTuple):
    """What one look showed. ``begun_ns``, ``ended_ns``: this host's clock before and after the read."""

    superblock: Superblock
    leases: tuple[Lease | None, ...]
    begun_ns: int
    ended_ns: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """This host. ``boot``: its kernel's present life. ``fence``: as configured."""

    node: bytes
    boot: bytes
    contact: str
    fence: str
    timing: Timing

    @property
    def key(self) -> int:
        """Its reservation key."""
        return reservation_key(self.node)


class Verdict(Enum):
    """Of a look."""

    WAIT = "wait"  # nothing is known yet
    ALIVE = "alive"  # somebody's lease moves
    FREE = "free"  # nobody is the writer: claim
    DEAD = "dead"  # the writer's lease has stood still for the timeout: claim
    DOUBLE = "double"  # another host has this host's identity


# -- watching ----------------------------------------------------------------------------------------------------------------------------


class Watch:
    """One time as a standby. ``owner``: the last writer, as of the last look."""

    def __init__(self, me: Candidate, hold_back_until_ns: int = 0) -> None:
        self._me = me
        self._hold_back_until_ns = hold_back_until_ns  # this host has released the log just now: the others first
        self._seen: tuple[object, ...] | None = None
        self._own: Lease | None = None
        self._is_own_known = False
        self._changed_ns = 0
        self._is_alive = False
        self._is_hurried = False
        self.holder = 0  # who held the reservation when a claim found it held by a host that was not expected
        self.owner: Owner | None = None

    def judge(self, view: View) -> Verdict:
        """What a look means. Stillness counts from the end of the look that saw the last change to the beginning of this one.

        | the last writer                      | somebody else claims | still for          | verdict       |
        |--------------------------------------|----------------------|--------------------|---------------|
        | none, or released to all or to us    | no                   | any                | FREE          |
        | the same                             | yes                  | the timeout        | FREE          |
        | released to another, or by us lately | any                  | the timeout        | FREE          |
        | this host in this life of its kernel | no                   | any                | FREE          |
        | this host before it was booted       | no                   | two renewals       | DEAD          |
        | the same                             | yes                  | the timeout        | DEAD          |
        | another host                         | any                  | the longer timeout | DEAD          |
        | the same, which does not stop by itself when its lease is old, under lease-unsafe:  never DEAD    |
        | otherwise: ALIVE if anything has changed under our eyes, else WAIT                               |
        """
        me = self._me
        self.owner = found = owner(view.superblock, view.leases)
        if self._is_double(view):
            return Verdict.DOUBLE
        seen = footprint(view, me.node)
        if seen != self._seen:
            self._is_alive = self._seen is not None
            self._seen, self._changed_ns = seen, view.ended_ns
        still_ns = view.begun_ns - self._changed_ns
        waiting = Verdict.ALIVE if self._is_alive else Verdict.WAIT
        is_claimed = _is_claimed(view, me.node)
        if found is None or found.is_released or _is_own_life(found, me):
            is_ours = not is_claimed and not self._gives_way(found, view.begun_ns)
            return Verdict.FREE if is_ours or still_ns >= me.timing.takeover_ms * MS else waiting
        return Verdict.DEAD if still_ns >= self._patience_ns(found, is_claimed) and not self.is_unfenced else waiting

    @property
    def is_unfenced(self) -> bool:
        """True: the last writer is configured without a fence, so under lease-unsafe nothing shows that it has stopped."""
        found = self.owner
        if self._me.fence != "lease-unsafe" or found is None or found.lease is None:
            return False
        return found.node != self._me.node and not found.is_released and not found.lease.timeout_ms

    def _is_double(self, view: View) -> bool:
        """Whether this host's own block has changed without its doing."""
        own = next((lease for lease in view.leases if lease is not None and lease.node_uuid == self._me.node), None)
        is_double = self._is_own_known and own is not None and own != self._own
        self._own, self._is_own_known = own, True
        return is_double

    def _gives_way(self, found: Owner | None, now_ns: int) -> bool:
        if found is None or found.lease is None or not found.is_released:
            return False
        if found.node == self._me.node and now_ns < self._hold_back_until_ns:
            return True
        return found.lease.successor not in (NOBODY, self._me.node) and not self._is_hurried

    def _patience_ns(self, found: Owner, is_claimed: bool) -> int:
        timing = self._me.timing
        if found.node == self._me.node and found.lease is not None and not is_claimed:  # this host was booted since; or its twin is alive
            renew_ms = min(found.lease.renew_ms, timing.takeover_ms)
            return (2 * max(renew_ms, timing.renew_ms) + timing.watch_ms) * MS
        published_ms = found.lease.timeout_ms if found.lease is not None else 0
        return max(timing.takeover_ms, min(published_ms, TAKEOVER_MS_MAX)) * MS

    def hurry(self) -> None:
        """An operator's word: what has been released is for this host."""
        self._hold_back_until_ns = 0
        self._is_hurried = True

    def claimed(self, now_ns: int, holder: int = 0) -> None:
        """After a claim that was lost: what this host wrote is its own, and who holds the reservation has the timeout to show himself."""
        self._is_own_known = False
        if holder != self.holder:
            self.holder = holder
            self._changed_ns = now_ns


def footprint(view: View, node: bytes) -> tuple[object, ...]:
    """All that others may change."""
    superblock = view.superblock
    others = tuple(None if lease is not None and lease.node_uuid == node else lease for lease in view.leases)
    return superblock.sequence, superblock.writer_epoch, superblock.writer_node, others


def _is_own_life(found: Owner, me: Candidate) -> bool:
    """Whether this host's own process was the writer: the device's lock tells whether it still is."""
    return found.node == me.node and found.lease is not None and found.lease.boot_uuid == me.boot != NOBODY


def _is_claimed(view: View, node: bytes) -> bool:
    """Whether another host claims the log, or did and died."""
    return any(
        lease is not None
        and lease.node_uuid != node
        and lease.state is LeaseState.CLAIMING
        and lease.writer_epoch > view.superblock.writer_epoch
        for lease in view.leases
    )


# -- claiming ----------------------------------------------------------------------------------------------------------------------------


class Look(NamedTuple):
    """Answered by a View."""


class WriteLease(NamedTuple):
    """Answered by a Written. The one who writes puts the labels on."""

    lease: Lease


class Written(NamedTuple):
    """``lease``: as it was written; the clock before and after."""

    lease: Lease
    begun_ns: int
    ended_ns: int


class Pause(NamedTuple):
    """Answered when the time is over."""

    ns: int


class Command(NamedTuple):
    """One command to the reservation (fabric/reservation); answered by what its method returns."""

    name: str
    arguments: tuple[int, ...] = ()


Step = Look | WriteLease | Pause | Command


class Outcome(NamedTuple):
    """How a claim ended. ``lease``: this host's block, good from ``begun_ns`` on. ``holder``: who holds the reservation instead."""

    won: bool
    reason: str
    lease: Lease | None = None
    begun_ns: int = 0
    is_cautious: bool = False
    holder: int = 0


Plan = Generator[Step, Any, Outcome]
_LOST_RACE: Final = "another host is at it"


def claim(me: Candidate, seen: View, noted_holder: int = 0) -> Plan:
    """The steps after a verdict of FREE or DEAD on ``seen``. ``noted_holder``: Watch.holder, which had the timeout to show itself."""
    if me.fence == "reservation":
        return (yield from _by_reservation(me, seen, noted_holder))
    if me.fence == "lease-unsafe":
        return (yield from _by_lease(me, seen))
    return Outcome(True, "no other host", _claim_of(me, seen), seen.begun_ns, _may_write_late(me, seen))


def _own_block(me: Candidate, view: View) -> Lease:
    """This host's block as it is, or a new one."""
    slot = own_slot(view.superblock, view.leases, me.node)
    old = view.leases[slot]
    if old is not None and old.node_uuid == me.node:
        return old
    return Lease(slot, view.superblock.uuid, me.node, 0, old.counter if old is not None else 0, 0, 0)


def _claim_of(me: Candidate, view: View, state: LeaseState = LeaseState.CLAIMING) -> Lease:
    """The next block: a claim for an epoch newer than any that was ever named. Evidence of what was durable stays in it."""
    old = _own_block(me, view)
    epoch = max(view.superblock.writer_epoch, *(lease.writer_epoch for lease in view.leases if lease is not None), 0)
    return replace(
        old, slot=own_slot(view.superblock, view.leases, me.node), counter=old.counter + 1, state=state, contact=me.contact,
        writer_epoch=epoch + 1 if state is LeaseState.CLAIMING else view.superblock.writer_epoch, boot_uuid=me.boot, successor=NOBODY,
        key=me.key if me.fence == "reservation" else 0, renew_ms=me.timing.renew_ms,
        timeout_ms=me.timing.takeover_ms if me.fence != "none" else 0,
    )  # fmt: skip


def withdrawn(lease: Lease) -> Lease:
    """The block after a claim or a request that came to nothing."""
    return replace(lease, counter=lease.counter + 1, state=LeaseState.IDLE)


def _may_write_late(me: Candidate, view: View) -> bool:
    """Whether writes of the last writer may still be on their way: it is another host, and did not say that it had stopped."""
    found = owner(view.superblock, view.leases)
    return found is not None and found.node != me.node and not found.is_released


def _by_lease(me: Candidate, seen: View) -> Plan:
    first: View = yield Look()
    if footprint(first, me.node) != footprint(seen, me.node):
        return Outcome(False, _LOST_RACE)
    written: Written = yield WriteLease(_claim_of(me, first))
    mine = written.lease
    settle_ns = me.timing.settle_ms * MS
    if written.ended_ns - first.begun_ns > settle_ns // 2:
        yield WriteLease(withdrawn(mine))
        took_ms = (written.ended_ns - first.begun_ns) // MS
        return Outcome(False, f"the claim took {took_ms} ms to land, {me.timing.settle_ms // 2} are allowed")
    found = owner(first.superblock, first.leases)
    if found is None or found.is_released or found.node != me.node:
        yield Pause(settle_ns)
        second: View = yield Look()
        if not _stays(mine, first, second):
            if second.leases[mine.slot] == mine:  # else the slot is another candidate's, whose claim must not be wiped out
                yield WriteLease(withdrawn(mine))
            return Outcome(False, _LOST_RACE)
    return Outcome(True, "the claim stands", mine, written.begun_ns, _may_write_late(me, first))


def _stays(mine: Lease, first: View, second: View) -> bool:
    """Whether this candidate stays, after the settle time.

    | block             | now                                              | answer     | reason                                      |
    |-------------------|--------------------------------------------------|------------|---------------------------------------------|
    | superblock        | changed                                          | gives way  | somebody has taken over                     |
    | this host's       | not as it was written                            | gives way  | another candidate took the same slot        |
    | another's         | unchanged, or withdrawn, or asking               | stays      | nobody there                                |
    | another's         | claiming, in a higher slot, not the last writer  | stays      | it sees this claim, and gives way           |
    | another's         | anything else                                    | gives way  | alive, or first by its slot                 |
    """
    old, new = first.superblock, second.superblock
    if (new.sequence, new.writer_epoch, new.writer_node) != (old.sequence, old.writer_epoch, old.writer_node):
        return False
    for slot, (before, after) in enumerate(zip(first.leases, second.leases, strict=True)):
        if slot == mine.slot:
            if after != mine:
                return False
        elif after != before:
            if after is None or after.state not in (LeaseState.CLAIMING, LeaseState.IDLE, LeaseState.ASKING):
                return False
            if after.state is LeaseState.CLAIMING and (slot < mine.slot or after.node_uuid == new.writer_node):
                return False
    return True


def _by_reservation(me: Candidate, seen: View, noted_holder: int) -> Plan:
    yield Command("register", (me.key,))
    view: View = yield Look()  # once more: a host that was preempted meanwhile must not write, and has just registered
    if footprint(view, me.node) != footprint(seen, me.node):
        yield from drop_key(me.key)
        return Outcome(False, _LOST_RACE)
    found = owner(view.superblock, view.leases)
    owners_key = reservation_key(found.node) if found is not None else 0
    held = yield Command("read_reservation")
    if held is None:
        won, victim, held_by = yield from _take_blindly(me, view)
    else:
        won, victim, held_by = yield from _take_from(me, held.key, owners_key, noted_holder)
    if not won:
        yield from drop_key(me.key)
        reason = f"the reservation is held by key {held_by:#x}" if held_by else _LOST_RACE
        return Outcome(False, reason + ("" if not held_by or is_hdads(held_by) else ", which is not hdad's"), holder=held_by)
    for other in sorted(set((yield Command("read_keys")) or ()) - {me.key}):
        if is_hdads(other):  # nobody but the writer writes
            yield Command("preempt_and_abort", (me.key, other))
    written: Written = yield WriteLease(_claim_of(me, view))
    is_cautious = _may_write_late(me, view) and victim != owners_key
    return Outcome(True, "the reservation is ours", written.lease, written.begun_ns, is_cautious)


def drop_key(key: int) -> Generator[Step, Any, None]:
    """Take this host's key away, since it does not write; unless the reservation hangs on it, or may."""
    held = yield Command("read_reservation")
    if held is not None and held.key != key:
        yield Command("unregister", ())


Taken = tuple[bool, int, int]  # whether the reservation is ours; whose key was taken away; who holds it instead


def _take_from(me: Candidate, holder: int, owners_key: int, noted_holder: int) -> Generator[Step, Any, Taken]:
    """Take the reservation.

    | held by                                  | then                                            |
    |------------------------------------------|-------------------------------------------------|
    | nobody                                   | RESERVE                                         |
    | this host                                | it is ours                                      |
    | the last writer                          | PREEMPT AND ABORT                               |
    | another hdad host, for the timeout now   | the same: it took it, and died                  |
    | another hdad host, news to us            | not now: it may be about to write its own lease |
    | somebody else                            | never                                           |
    """
    victim = 0
    if holder == 0:
        yield Command("reserve", (me.key,))
    elif holder in (owners_key, noted_holder) and is_hdads(holder) and holder != me.key:
        victim = holder
        yield Command("preempt_and_abort", (me.key, victim))
    held = yield Command("read_reservation")
    now_holder = held.key if held is not None else 0
    return now_holder == me.key, victim, now_holder


def _take_blindly(me: Candidate, view: View) -> Generator[Step, Any, Taken]:
    """The reservation cannot be read here: take it if it is free, else from whoever may hold it, the last ones first.

    The claim is written before, so that others know whose key to take away should this host die at the next step.
    """
    written: Written = yield WriteLease(_claim_of(me, view))
    if (yield Command("reserve", (me.key,))):
        return True, 0, 0
    leases = sorted((lease for lease in view.leases if lease is not None), key=lambda lease: -lease.writer_epoch)
    others = [node for node in (view.superblock.writer_node, *(lease.node_uuid for lease in leases)) if node not in (NOBODY, me.node)]
    for victim in dict.fromkeys(map(reservation_key, others)):
        yield Command("preempt_and_abort", (me.key, victim))
        if (yield Command("reserve", (me.key,))):
            return True, victim, 0
    yield WriteLease(withdrawn(written.lease))
    yield Command("unregister", ())  # the reservation is not ours: the array has said so just now
    return False, 0, 0


# -- asking ------------------------------------------------------------------------------------------------------------------------------


def ask(me: Candidate, seen: View) -> Generator[Step, Any, Lease]:
    """The steps that ask the writer to release the log to this host."""
    if me.fence == "reservation":
        yield Command("register", (me.key,))
    written: Written = yield WriteLease(_claim_of(me, seen, LeaseState.ASKING))
    return written.lease


def retract(me: Candidate, lease: Lease) -> Generator[Step, Any, None]:
    """The steps after a request that nobody heard."""
    yield WriteLease(withdrawn(lease))
    if me.fence == "reservation":
        yield from drop_key(me.key)


def superseded(leases: tuple[Lease | None, ...], node: bytes, epoch: int) -> Lease | None:
    """The block of another host that is, or was, the writer after this ``epoch``; None: there is none."""
    states = (LeaseState.ACTIVE, LeaseState.RELEASED)
    others = (lease for lease in leases if lease is not None and lease.node_uuid != node and lease.state in states)
    return next((lease for lease in others if lease.writer_epoch > epoch), None)


def asking(leases: tuple[Lease | None, ...], node: bytes, epoch: int) -> bytes:
    """The host that asks the writer of this ``epoch``, which is not ``node``, to release the log to it; NOBODY: none does."""
    found = (
        lease
        for lease in leases
        if lease is not None and lease.state is LeaseState.ASKING and lease.writer_epoch == epoch and lease.node_uuid != node
    )
    return next((lease.node_uuid for lease in found), NOBODY)

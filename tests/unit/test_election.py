"""Who may be the writer: every row of the tables of watching and claiming, the roles, the timeline, and whose block is whose."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from hdad.log.geometry import LEASE_COUNT, plan
from hdad.log.ownership import is_hdads, own_slot, owner, reservation_key
from hdad.log.superblock import NOBODY, Lease, LeaseState, Superblock
from hdad.timing import MS, TAKEOVER_MS_MAX, Timing
from hdad.writer.election import (
    Candidate,
    Command,
    Look,
    Outcome,
    Pause,
    Verdict,
    View,
    Watch,
    WriteLease,
    Written,
    ask,
    asking,
    claim,
    retract,
    superseded,
)
from hdad.writer.role import TRANSITIONS, Role, RoleEvent, next_role

UUID = bytes(range(16))
A, B, C = b"a" * 16, b"b" * 16, b"c" * 16
BOOT = b"k" * 16
TIMING = Timing(1000, 300, 50)
T = TIMING.takeover_ms * MS
S = LeaseState


def me(node: bytes = B, fence: str = "lease-unsafe") -> Candidate:
    return Candidate(node, BOOT, "here", fence, TIMING)


def block(slot: int, node: bytes, state: LeaseState = S.ACTIVE, epoch: int = 5, counter: int = 1, **more: Any) -> Lease:
    return Lease(slot, UUID, node, epoch, counter, 7, 1, "there", state, more.pop("boot", b"o" * 16), timeout_ms=1000, renew_ms=100, **more)


def view(*leases: Lease, at_ms: int = 0, node: bytes = A, epoch: int = 5, took_ms: int = 0) -> View:
    table: list[Lease | None] = [None] * LEASE_COUNT
    for lease in leases:
        table[lease.slot] = lease
    superblock = Superblock(UUID, 9, epoch, plan(64 << 20, 512), 0, writer_node=node)
    return View(superblock, tuple(table), at_ms * MS, (at_ms + took_ms) * MS)


# -- whose is what -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "epoch", "serving", "released"),
    [
        (S.ACTIVE, 5, True, False), (S.ACTIVE, 4, False, False), (S.RELEASED, 5, False, True), (S.RELEASED, 4, False, True),
        (S.IDLE, 6, False, True), (S.ASKING, 5, False, True), (S.CLAIMING, 6, False, False),
    ],
)  # fmt: skip
def test_the_last_writer_as_its_block_tells(state: LeaseState, epoch: int, serving: bool, released: bool) -> None:
    found = owner(*view(block(0, A, state, epoch), block(1, B, epoch=99))[:2])
    assert found is not None and (found.node, found.epoch, found.contact) == (A, 5, "there")
    assert (found.is_serving, found.is_released) == (serving, released)


def test_a_log_that_never_had_a_writer_and_a_writer_whose_block_is_rotten() -> None:
    assert owner(*view(node=NOBODY)[:2]) is None
    found = owner(*view(block(1, B))[:2])
    assert found is not None and not found.is_serving and not found.is_released and found.lease is None


def test_a_host_keeps_its_slot_and_never_takes_the_writers() -> None:
    look = view(block(0, A), block(3, B))
    assert own_slot(look.superblock, look.leases, B) == 3
    assert own_slot(look.superblock, look.leases, C) == 5, "free, chosen by the host"
    full = view(*(block(slot, A if slot == 2 else bytes([slot]) * 16, epoch=1 if slot == 2 else 9 - slot) for slot in range(LEASE_COUNT)))
    assert own_slot(full.superblock, full.leases, C) == 7, "the oldest epoch, though the writer's block shows an older one"


def test_reservation_keys_are_recognised_and_differ() -> None:
    keys = {reservation_key(node) for node in (A, B, C)}
    assert len(keys) == 3 and all(is_hdads(key) and 0 < key < 1 << 64 for key in keys)
    assert not is_hdads(0) and not is_hdads(0xA11CE)


# -- watching ----------------------------------------------------------------------------------------------------------------------------


def test_a_standby_waits_the_whole_timeout_by_its_own_observation() -> None:
    watch = Watch(me())
    assert watch.judge(view(block(0, A), at_ms=0, took_ms=50)) is Verdict.WAIT
    assert watch.judge(view(block(0, A), at_ms=1049)) is Verdict.WAIT, "it counts from the end of the look that saw the change"
    assert watch.judge(view(block(0, A), at_ms=1050)) is Verdict.DEAD


def test_a_look_that_began_too_early_proves_nothing_however_long_it_took() -> None:
    watch = Watch(me())
    watch.judge(view(block(0, A), at_ms=0))
    assert watch.judge(view(block(0, A), at_ms=999, took_ms=5000)) is Verdict.WAIT


@pytest.mark.parametrize(
    "changed", [block(0, A, counter=2), block(0, A, S.CLAIMING, 6), replace(block(0, A), durable_lsn=8)]
)  # fmt: skip
def test_any_sign_of_life_begins_the_count_anew(changed: Lease) -> None:
    watch = Watch(me())
    watch.judge(view(block(0, A), at_ms=0))
    assert watch.judge(view(changed, at_ms=900)) is Verdict.ALIVE
    assert watch.judge(view(changed, at_ms=1899)) is Verdict.ALIVE
    assert watch.judge(view(changed, at_ms=1900)) is Verdict.DEAD


def test_another_candidates_claim_and_a_new_superblock_are_signs_of_life_and_ones_own_block_is_not() -> None:
    for changed in (view(block(0, A), block(2, C, S.CLAIMING, 6), at_ms=900), view(block(0, A), at_ms=900, epoch=6)):
        watch = Watch(me())
        watch.judge(view(block(0, A), at_ms=0))
        assert watch.judge(changed) is Verdict.ALIVE
    watch = Watch(me())
    watch.judge(view(block(0, A), at_ms=0))
    watch.claimed(0)
    assert watch.judge(view(block(0, A), block(1, B, S.IDLE), at_ms=1000)) is Verdict.DEAD


def test_the_longer_of_two_timeouts_counts_and_an_absurd_one_is_cut() -> None:
    watch = Watch(me())
    slow = replace(block(0, A), timeout_ms=3000)
    watch.judge(view(slow, at_ms=0))
    assert watch.judge(view(slow, at_ms=2999)) is Verdict.WAIT and watch.judge(view(slow, at_ms=3000)) is Verdict.DEAD
    absurd = replace(block(0, A), timeout_ms=2**32 - 1)
    watch = Watch(me())
    watch.judge(view(absurd, at_ms=0))
    assert watch.judge(view(absurd, at_ms=TAKEOVER_MS_MAX)) is Verdict.DEAD


@pytest.mark.parametrize(
    ("case", "look", "expected"),
    [
        ("never had one", view(node=NOBODY), Verdict.FREE),
        ("released to all", view(block(0, A, S.RELEASED)), Verdict.FREE),
        ("released to us", view(block(0, A, S.RELEASED, successor=B)), Verdict.FREE),
        ("released to another", view(block(0, A, S.RELEASED, successor=C)), Verdict.WAIT),
        ("our own process died", view(block(1, B, boot=BOOT), node=B), Verdict.FREE),
        ("our host was booted since", view(block(1, B), node=B), Verdict.WAIT),
        ("released, and claimed by another", view(block(0, A, S.RELEASED), block(2, C, S.CLAIMING, 6)), Verdict.WAIT),
        ("ours, and claimed by another", view(block(1, B, boot=BOOT), block(2, C, S.CLAIMING, 6), node=B), Verdict.WAIT),
        ("released, and a claim of old times", view(block(0, A, S.RELEASED), block(2, C, S.CLAIMING, 5)), Verdict.FREE),
        ("another host's, block rotten", view(block(1, C)), Verdict.WAIT),
    ],
)
def test_the_first_look(case: str, look: View, expected: Verdict) -> None:
    assert Watch(me()).judge(look) is expected, case


def test_what_was_released_to_another_or_claimed_and_left_is_free_after_the_timeout() -> None:
    for look in (view(block(0, A, S.RELEASED, successor=C)), view(block(0, A, S.RELEASED), block(2, C, S.CLAIMING, 6))):
        watch = Watch(me())
        assert watch.judge(look) is Verdict.WAIT
        assert watch.judge(look._replace(begun_ns=T, ended_ns=T)) is Verdict.FREE


def test_a_host_that_released_the_log_lets_others_go_first_unless_an_operator_hurries_it() -> None:
    look = view(block(1, B, S.RELEASED, boot=BOOT), node=B)
    watch = Watch(me(), hold_back_until_ns=500 * MS)
    assert watch.judge(look) is Verdict.WAIT
    assert watch.judge(look._replace(begun_ns=500 * MS)) is Verdict.FREE
    hurried = Watch(me(), hold_back_until_ns=500 * MS)
    hurried.judge(look)
    hurried.hurry()
    assert hurried.judge(look) is Verdict.FREE


def test_two_renewals_show_whether_a_host_has_a_twin() -> None:
    look = view(block(1, B), node=B)
    watch = Watch(me())
    watch.judge(look)
    late_ns = (2 * 100 + TIMING.watch_ms) * MS
    assert watch.judge(look._replace(begun_ns=late_ns - 1, ended_ns=late_ns)) is Verdict.WAIT
    assert watch.judge(look._replace(begun_ns=late_ns, ended_ns=late_ns)) is Verdict.DEAD
    twin = Watch(me())
    twin.judge(look)
    assert twin.judge(view(block(1, B, counter=2), node=B, at_ms=50)) is Verdict.DOUBLE


def test_a_host_that_was_booted_does_not_get_before_one_that_claims_already() -> None:
    watch = Watch(me())
    watch.judge(view(block(1, B), node=B))
    claimed = view(block(1, B), block(2, C, S.CLAIMING, 6), node=B, at_ms=100)
    assert watch.judge(claimed) is Verdict.ALIVE
    assert watch.judge(claimed._replace(begun_ns=T, ended_ns=T)) is Verdict.ALIVE
    assert watch.judge(claimed._replace(begun_ns=T + 100 * MS, ended_ns=T + 100 * MS)) is Verdict.DEAD


def test_a_writer_that_does_not_stop_by_itself_is_never_called_dead_under_lease_unsafe() -> None:
    look = view(replace(block(0, A), timeout_ms=0))
    for fence, expected in (("lease-unsafe", Verdict.WAIT), ("reservation", Verdict.DEAD), ("none", Verdict.DEAD)):
        watch = Watch(me(fence=fence))
        watch.judge(look)
        assert watch.judge(look._replace(begun_ns=100 * T, ended_ns=100 * T)) is expected
        assert watch.is_unfenced == (fence == "lease-unsafe")


def test_a_holder_of_the_reservation_that_is_news_has_the_timeout_to_show_itself() -> None:
    watch = Watch(me(fence="reservation"))
    look = view(block(0, A))
    watch.judge(look)
    watch.claimed(T, holder=reservation_key(C))
    assert watch.judge(look._replace(begun_ns=2 * T - 1, ended_ns=2 * T)) is Verdict.WAIT
    assert watch.judge(look._replace(begun_ns=2 * T, ended_ns=2 * T)) is Verdict.DEAD and watch.holder == reservation_key(C)


# -- claiming ----------------------------------------------------------------------------------------------------------------------------


class Carrier:
    """Carries out a plan: ``looks`` in turn (the last one again), ``answers`` by command (a list in turn); writes take ``write_ms``."""

    def __init__(self, looks: list[View], answers: dict[str, Any] | None = None, write_ms: int = 1) -> None:
        self.looks, self.answers, self.write_ms = looks, {"read_keys": [], **(answers or {})}, write_ms
        self.log: list[Any] = []
        self.written: list[Lease] = []

    def run(self, plan: Any) -> Any:
        answer: Any = None
        try:
            while True:
                step = plan.send(answer)
                self.log.append(step)
                answer = self._answer(step)
        except StopIteration as stop:
            return stop.value

    def _answer(self, step: Any) -> Any:
        if isinstance(step, Look):
            look = self.looks[0] if len(self.looks) == 1 else self.looks.pop(0)
            return self._with_mine(look)
        if isinstance(step, WriteLease):
            self.written.append(step.lease)
            return Written(step.lease, 0, self.write_ms * MS)
        if isinstance(step, Command):
            found = self.answers.get(step.name, True)
            return (found.pop(0) if len(found) > 1 else found[0]) if isinstance(found, list) and step.name != "read_keys" else found
        return None

    def _with_mine(self, look: View) -> View:
        if not self.written:
            return look
        table = list(look.leases)
        table[self.written[-1].slot] = self.written[-1]
        return look._replace(leases=tuple(table))

    def commands(self) -> list[str]:
        return [step.name for step in self.log if isinstance(step, Command)]


DEAD = view(block(0, A))


def test_a_claim_by_lease_is_written_settled_and_looked_at_again() -> None:
    carrier = Carrier([DEAD])
    outcome: Outcome = carrier.run(claim(me(), DEAD))
    assert outcome.won and outcome.is_cautious and outcome.lease == carrier.written[0]
    assert [type(step) for step in carrier.log] == [Look, WriteLease, Pause, Look]
    mine = carrier.written[0]
    assert (mine.state, mine.writer_epoch, mine.slot, mine.node_uuid, mine.boot_uuid) == (S.CLAIMING, 6, 1, B, BOOT)
    assert (mine.renew_ms, mine.timeout_ms, mine.key) == (TIMING.renew_ms, 1000, 0)


def test_a_claim_names_a_newer_epoch_than_anybody_ever_did_and_keeps_its_own_evidence() -> None:
    look = view(block(0, A), block(2, C, S.IDLE, epoch=11), replace(block(4, B, S.IDLE), durable_lsn=77))
    carrier = Carrier([look])
    assert carrier.run(claim(me(), look)).won
    assert (carrier.written[0].writer_epoch, carrier.written[0].slot, carrier.written[0].durable_lsn) == (12, 4, 77)


def test_a_claim_that_took_too_long_to_land_is_withdrawn() -> None:
    carrier = Carrier([DEAD], write_ms=TIMING.settle_ms // 2 + 1)
    outcome = carrier.run(claim(me(), DEAD))
    assert not outcome.won and "to land" in outcome.reason
    assert [lease.state for lease in carrier.written] == [S.CLAIMING, S.IDLE]


def test_the_host_of_the_last_writer_does_not_settle_and_is_not_cautious() -> None:
    look = view(block(1, B, boot=BOOT), node=B)
    carrier = Carrier([look])
    outcome = carrier.run(claim(me(), look))
    assert outcome.won and not outcome.is_cautious and [type(step) for step in carrier.log] == [Look, WriteLease]
    released = view(block(1, B, S.RELEASED, boot=BOOT), node=B)
    carrier = Carrier([released, view(replace(block(1, B, S.CLAIMING, 6), counter=2), node=B)])
    carrier.run(claim(me(), released))
    assert Pause in [type(step) for step in carrier.log], "others may claim what was released, too"


def test_something_that_changed_since_the_verdict_ends_a_claim_before_it_is_written() -> None:
    carrier = Carrier([view(block(0, A, counter=2))])
    assert not carrier.run(claim(me(), DEAD)).won and not carrier.written


@pytest.mark.parametrize(
    ("case", "after", "stays"),
    [
        ("a rival in a higher slot", [block(0, A), block(2, C, S.CLAIMING, 6)], True),
        ("a rival that has withdrawn", [block(0, A), block(2, C, S.IDLE, 6)], True),
        ("somebody who asks", [block(0, A), block(2, C, S.ASKING, 5)], True),
        ("the writer ticks", [block(0, A, counter=2)], False),
        ("the writer's host claims", [block(0, A, S.CLAIMING, 6)], False),
        ("somebody serves", [block(0, A), block(2, C, S.ACTIVE, 6)], False),
        ("our slot is somebody else's", [block(0, A), block(1, C, S.CLAIMING, 6)], False),
    ],
)
def test_what_a_candidate_makes_of_the_look_after_the_settle_time(case: str, after: list[Lease], stays: bool) -> None:
    carrier = Carrier([DEAD, view(*after)])
    carrier._with_mine = (lambda look: look) if "our slot" in case else carrier._with_mine  # type: ignore[method-assign]
    outcome = carrier.run(claim(me(), DEAD))
    assert outcome.won == stays, case
    assert [lease.state for lease in carrier.written] == ([S.CLAIMING] if stays or "our slot" in case else [S.CLAIMING, S.IDLE])


def test_a_rival_in_a_lower_slot_wins_and_a_raised_superblock_too() -> None:
    first = view(block(0, A), block(3, B, S.IDLE))
    for second in (view(block(0, A), block(1, C, S.CLAIMING, 6)), view(block(0, A), epoch=6)):
        carrier = Carrier([first, second])
        assert not carrier.run(claim(me(), first)).won


def test_of_two_that_see_each_other_exactly_one_stays() -> None:
    """Both rows of the argument at once, for each pair of slots."""
    for mine, other in itertools.permutations(range(1, LEASE_COUNT), 2):
        both = {}
        for node, rival, slot, rival_slot in ((B, C, mine, other), (C, B, other, mine)):
            first = view(block(0, A), block(slot, node, S.IDLE, 4))
            after = view(block(0, A), block(rival_slot, rival, S.CLAIMING, 6))
            carrier = Carrier([first, after])
            carrier._with_mine = lambda look, carrier=carrier, slot=slot: _put(look, slot, carrier.written)  # type: ignore[method-assign, misc]
            both[node] = carrier.run(claim(me(node), first)).won
        assert sorted(both.values()) == [False, True], (mine, other)


def _put(look: View, slot: int, written: list[Lease]) -> View:
    table = list(look.leases)
    if written:
        table[slot] = written[-1]
    return look._replace(leases=tuple(table))


KEY_A, KEY_B, KEY_C = reservation_key(A), reservation_key(B), reservation_key(C)


class Held:
    def __init__(self, key: int) -> None:
        self.key = key


@pytest.mark.parametrize(
    ("case", "holders", "noted", "won", "cautious", "commands"),
    [
        ("the last writer holds it", [KEY_A, KEY_B], 0, True, False,
         ["register", "read_reservation", "preempt_and_abort", "read_reservation", "read_keys"]),
        ("another was faster", [KEY_A, KEY_C], 0, False, False,
         ["register", "read_reservation", "preempt_and_abort", "read_reservation", "read_reservation", "unregister"]),
        ("nobody holds it", [0, KEY_B], 0, True, True, ["register", "read_reservation", "reserve", "read_reservation", "read_keys"]),
        ("it is ours already", [KEY_B, KEY_B], 0, True, True, ["register", "read_reservation", "read_reservation", "read_keys"]),
        ("somebody new holds it", [KEY_C, KEY_C], 0, False, False,
         ["register", "read_reservation", "read_reservation", "read_reservation", "unregister"]),
        ("and had the timeout", [KEY_C, KEY_B], KEY_C, True, True,
         ["register", "read_reservation", "preempt_and_abort", "read_reservation", "read_keys"]),
        ("other software holds it", [0xA11CE, 0xA11CE], 0xA11CE, False, False,
         ["register", "read_reservation", "read_reservation", "read_reservation", "unregister"]),
    ],
)  # fmt: skip
def test_a_claim_by_reservation(
    case: str, holders: list[int], noted: int, won: bool, cautious: bool, commands: list[str]
) -> None:
    carrier = Carrier([DEAD], {"read_reservation": [Held(key) for key in holders]})
    outcome: Outcome = carrier.run(claim(me(fence="reservation"), DEAD, noted))
    assert (outcome.won, carrier.commands()) == (won, commands), case
    assert outcome.is_cautious == cautious and bool(carrier.written) == won
    if not won:
        assert outcome.holder == holders[-1]
    else:
        assert carrier.written[0].key == KEY_B


def test_a_host_that_registered_after_it_was_preempted_takes_its_key_away_again() -> None:
    carrier = Carrier([view(block(0, A, counter=2))], {"read_reservation": Held(KEY_C)})
    assert not carrier.run(claim(me(fence="reservation"), DEAD)).won
    assert carrier.commands() == ["register", "read_reservation", "unregister"]


def test_a_key_on_which_the_reservation_hangs_is_never_taken_away() -> None:
    """Without any reservation the array would take what a writer fenced long ago writes when it wakes up."""
    for answers in ({"read_reservation": Held(KEY_B)}, {"read_reservation": None, "reserve": True}):
        carrier = Carrier([view(block(0, A, counter=2))], answers)
        assert not carrier.run(claim(me(fence="reservation"), DEAD)).won
        assert "unregister" not in carrier.commands()


def test_a_successor_takes_the_reservation_of_a_writer_that_has_released_the_log() -> None:
    released = view(block(0, A, S.RELEASED))
    carrier = Carrier([released], {"read_reservation": [Held(KEY_A), Held(KEY_B)]})
    outcome = carrier.run(claim(me(fence="reservation"), released))
    assert outcome.won and not outcome.is_cautious and "preempt_and_abort" in carrier.commands()


def test_the_new_writer_takes_all_other_hdad_keys_away_and_no_foreign_ones() -> None:
    carrier = Carrier([DEAD], {"read_reservation": [Held(KEY_A), Held(KEY_B)], "read_keys": [KEY_B, KEY_C, KEY_B, 0xA11CE]})
    assert carrier.run(claim(me(fence="reservation"), DEAD)).won
    preempted = [step.arguments[1] for step in carrier.log if isinstance(step, Command) and step.name == "preempt_and_abort"]
    assert preempted == [KEY_A, KEY_C]


def test_where_the_reservation_cannot_be_read_reserving_tells_whose_it_is() -> None:
    carrier = Carrier([DEAD], {"read_reservation": None, "reserve": [False, True]})
    outcome = carrier.run(claim(me(fence="reservation"), DEAD))
    assert outcome.won and not outcome.is_cautious
    assert carrier.written[0].state is S.CLAIMING, "others must be able to name this host's key should it die now"
    carrier = Carrier([DEAD], {"read_reservation": None, "reserve": True})
    outcome = carrier.run(claim(me(fence="reservation"), DEAD))
    assert outcome.won and outcome.is_cautious and carrier.written[0].state is S.CLAIMING, "nobody held it: nothing was aborted"
    carrier = Carrier([DEAD], {"read_reservation": None, "reserve": False, "preempt_and_abort": True})
    outcome = carrier.run(claim(me(fence="reservation"), DEAD))
    assert not outcome.won, "taking away some key is not holding the reservation"
    assert [lease.state for lease in carrier.written] == [S.CLAIMING, S.IDLE] and carrier.commands()[-2] == "unregister"


def test_without_a_fence_nothing_is_written_and_a_dead_hosts_late_writes_are_reckoned_with() -> None:
    carrier = Carrier([])
    outcome = carrier.run(claim(me(fence="none"), DEAD))
    assert outcome.won and outcome.is_cautious and not carrier.log
    released = view(block(0, A, S.RELEASED))
    assert not carrier.run(claim(me(fence="none"), released)).is_cautious


# -- asking ------------------------------------------------------------------------------------------------------------------------------


def test_asking_is_a_block_of_the_writers_epoch_and_can_be_taken_back() -> None:
    carrier = Carrier([DEAD], {"read_reservation": Held(KEY_A)})
    lease = carrier.run(ask(me(fence="reservation"), DEAD))
    assert (lease.state, lease.writer_epoch, lease.slot) == (S.ASKING, 5, 1) and carrier.commands() == ["register"]
    asked = view(block(0, A), lease)
    assert asking(asked.leases, A, 5) == B
    assert asking(asked.leases, A, 6) == NOBODY, "asked of an older writer"
    assert asking(asked.leases, B, 5) == NOBODY, "its own block"
    unfenced = Carrier([DEAD])
    unfenced.run(retract(me(), unfenced.run(ask(me(), DEAD))))
    assert [one.state for one in unfenced.written] == [S.ASKING, S.IDLE] and not unfenced.commands()
    carrier.run(retract(me(fence="reservation"), lease))
    assert carrier.written[-1].state is S.IDLE and carrier.commands() == ["register", "read_reservation", "unregister"]


@pytest.mark.parametrize(
    ("state", "epoch", "is_successor"),
    [(S.ACTIVE, 6, True), (S.RELEASED, 6, True), (S.ACTIVE, 5, False), (S.ACTIVE, 4, False), (S.CLAIMING, 6, False), (S.IDLE, 6, False)],
)
def test_a_writer_recognises_its_successor_by_its_block(state: LeaseState, epoch: int, is_successor: bool) -> None:
    leases = view(block(0, A), block(1, B, state, epoch)).leases
    assert (superseded(leases, A, 5) is not None) == is_successor
    assert superseded(leases, B, 5) is None, "its own block is no successor"


# -- roles and times ---------------------------------------------------------------------------------------------------------------------


def test_every_role_is_reached_and_left_and_what_cannot_happen_is_an_error() -> None:
    assert {role for role, _ in TRANSITIONS} == set(Role) == set(TRANSITIONS.values())
    impossible = [pair for pair in itertools.product(Role, RoleEvent) if pair not in TRANSITIONS]
    for role, event in impossible:
        with pytest.raises(KeyError):
            next_role(role, event)
    assert (Role.STANDBY, RoleEvent.SERVES) in impossible and (Role.WRITER, RoleEvent.WATCHES) in impossible


@pytest.mark.parametrize("role", list(Role))
def test_from_every_role_a_process_may_end_and_only_fenced_stays(role: Role) -> None:
    assert next_role(role, RoleEvent.ENDED) is (Role.FENCED if role is Role.FENCED else Role.NONE)
    if role is not Role.FENCED:
        assert next_role(role, RoleEvent.FENCED) is Role.FENCED


def test_the_way_of_a_planned_move() -> None:
    role = Role.NONE
    for event in (RoleEvent.WATCHES, RoleEvent.CLAIMS, RoleEvent.SERVES, RoleEvent.RELEASES, RoleEvent.WATCHES):
        role = next_role(role, event)
    assert role is Role.STANDBY


@pytest.mark.parametrize("takeover", [500, 1000, 5000, 10_000, 100_000])
@pytest.mark.parametrize("io", [50, 100, 300, 4000, 50_000])
@pytest.mark.parametrize("lease", [10, 100, 1000, 10_000])
def test_whatever_the_configuration_allows_keeps_the_timeline(takeover: int, io: int, lease: int) -> None:
    timing = Timing(takeover, io, lease)
    fits = timing.renew_ms + io <= timing.limit_ms
    assert fits == (not timing.wrong())
    if fits:
        assert timing.limit_ms + io + timing.skew_ms <= takeover, "what was submitted just in time has landed when a standby may begin"
        assert timing.settle_ms < timing.limit_ms, "a claim outlives its settling"
        assert timing.watch_ms + timing.settle_ms <= 1000, "of the second that a takeover may take beyond the timeout"

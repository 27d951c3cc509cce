"""A few of the damaged logs of ``scripts/check hostile``, and that its oracle sees what it is to see."""

from __future__ import annotations

import random

import pytest

from hdad.log.format import FrameKind
from tests.hostile.base import make_base
from tests.hostile.damage import Damaged
from tests.hostile.oracle import missing_of
from tests.hostile.run import Outcome, judge_form, judge_truth, look_at, look_at_all

pytestmark = pytest.mark.integration


def test_a_damaged_log_gets_a_clear_and_true_verdict_each_time() -> None:
    total = look_at_all(range(1, 41), jobs=1)
    assert total.logs == 40 and total.commands == 200
    assert not total.violations, "\n".join(total.violations)


def test_real_processes_say_the_same() -> None:
    tally = look_at(50)
    assert tally.real == tally.commands == 5
    assert not tally.violations, "\n".join(tally.violations)


def test_a_damaged_log_is_the_same_each_time_by_its_seed() -> None:
    assert make_base(7).image == make_base(7).image
    assert look_at(12).statuses == look_at(12).statuses


def test_the_oracle_knows_of_a_durable_frame_that_is_gone_and_calls_silence_a_lie() -> None:
    base = make_base(2)  # several segments, drained: a lease calls everything durable
    image = bytearray(base.image)
    frame = next(frame for frame in base.frames if frame.header.kind == FrameKind.DATA)
    image[frame.address + 8] ^= 1
    missing = missing_of(Damaged(base, image))
    assert missing.told_lsns == [frame.header.lsn]
    silent = Outcome(0, b"", "", 0.0)
    assert list(judge_truth("verify", silent, base, [], missing))
    told = Outcome(13, b"VIOLATIONS", "", 0.0)
    assert not list(judge_truth("verify", told, base, [], missing))


def test_the_oracle_knows_a_verdict_that_is_none() -> None:
    assert list(judge_form("read", Outcome(1, b"", "some words", 0.0)))
    assert list(judge_form("read", Outcome(5, b"", "", 0.0)))
    assert list(judge_form("verify", Outcome(0, b"", "", 0.0, "Traceback")))
    assert not list(judge_form("read", Outcome(5, b"", "damaged at byte 7", 0.0)))


def test_swapped_sectors_are_seen_whatever_they_are() -> None:
    rng = random.Random(3)
    base = make_base(2)
    data = [frame for frame in base.frames if frame.header.kind == FrameKind.DATA]
    one, two = rng.sample(data, 2)
    image = bytearray(base.image)
    image[one.address : one.address + 512], image[two.address : two.address + 512] = (
        image[two.address : two.address + 512], image[one.address : one.address + 512],
    )  # fmt: skip
    assert set(missing_of(Damaged(base, image)).told_lsns) == {one.header.lsn, two.header.lsn}

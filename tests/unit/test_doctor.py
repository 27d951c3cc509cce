"""What ``hdactl doctor`` concludes from what it measured."""

from __future__ import annotations

import pytest

from hdad.cli.doctor import skew_ns


@pytest.mark.parametrize(
    ("before", "theirs", "after", "skew"),
    [
        (100, 150, 200, 0),
        (100, 100, 5_000, 0),  # the answer was slow: nothing is known of its clock but that it fits
        (100, 40, 200, 60),  # theirs is behind, at least so much
        (100, 270, 200, 70),
    ],
)
def test_a_slow_answer_is_no_skew(before: int, theirs: int, after: int, skew: int) -> None:
    assert skew_ns(before, theirs, after) == skew

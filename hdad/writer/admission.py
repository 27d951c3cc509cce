"""Which frames may enter the log: I2 (exactly once), I3 (order) and I4 (no zombies), as one table. Pure.

Owns nothing; the writer's process asks it once a frame. A lane's position is where the newest admitted frame of that lane ended.
"""

from __future__ import annotations

from enum import IntEnum

from hdad.record import Position


class Verdict(IntEnum):
    """What to do with a frame."""

    ADMIT = 0  # goes on exactly where the lane stands
    REPEAT = 1  # all of it is in the log already: drop it in silence, and count it
    GAP = 2  # does not start where the lane stands: refuse, and tell the worker where to go on
    STALE = 3  # of an older assignment: drop it in silence, and count it
    MALFORMED = 4  # ends where it starts, or before: our own bug; refuse


def judge(lane_position: Position, lane_epoch: int, frame_epoch: int, from_: Position, to: Position) -> Verdict:
    """The verdict on a frame that covers ``(from_, to]``, for a lane that stands at ``lane_position`` under ``lane_epoch``.

    | frame epoch | to vs from | from vs lane | to vs lane | verdict   | reason                                              |
    |-------------|------------|--------------|------------|-----------|-----------------------------------------------------|
    | other       | any        | any          | any        | STALE     | its sender lost the lane, or was told to start over |
    | same        | <=         | any          | any        | MALFORMED | a frame moves its lane on, or it is no frame        |
    | same        | >          | =            | any        | ADMIT     | contiguous                                          |
    | same        | >          | <>           | <=         | REPEAT    | nothing new in it                                   |
    | same        | >          | <>           | >          | GAP       | would skip entries, or hold some of them twice      |
    """
    if frame_epoch != lane_epoch:
        return Verdict.STALE
    if to <= from_:
        return Verdict.MALFORMED
    if from_ == lane_position:
        return Verdict.ADMIT
    return Verdict.REPEAT if to <= lane_position else Verdict.GAP

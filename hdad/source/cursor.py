"""Where a lane stands in its stream, and what a look at the stream says about it: lost entries, rewinds, restarts. Pure.

The *ordinal* of a position is the number of entries that were ever added to the stream up to it. Redis counts all entries ever added
(``entries-added``) and how many are left (``length``), so entries that vanished before they were read are counted by number (I10),
without trusting ``lag`` (redis#13337). Source of the rules: the Redis documentation of XINFO STREAM and XTRIM, Redis 7.0 and newer.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from hdad.record import ORIGIN, Position

UNKNOWN_ORDINAL = 2**64 - 1  # after an operator's accept: known again when the lane has caught up


class StreamInfo(NamedTuple):
    """What XINFO STREAM says. ``first`` is None when the stream is empty."""

    length: int
    entries_added: int
    last: Position  # last-generated-id
    first: Position | None  # ID of the first entry that is left
    max_deleted: Position = ORIGIN


class Finding(IntEnum):
    """What a look at a stream found."""

    FINE = 0
    LOST = 1  # entries after the position were trimmed or deleted before they were read
    RESTARTED = 2  # another stream of the same name, all of whose entries lie behind the position: going on misses nothing
    REWOUND = 3  # it went backwards (failover, restore): IDs before the position may be given again; an operator must decide


class Examination(NamedTuple):
    """``lost`` entries to declare; ``ordinal`` of the position after declaring them (UNKNOWN_ORDINAL if not known).

    ``is_exact``: the stream's own count at the position agrees, so no entry hides before it.
    """

    finding: Finding
    lost: int
    ordinal: int
    is_exact: bool = False


def examine(position: Position, ordinal: int, info: StreamInfo, anchor: Position | None = None) -> Examination:
    """Compare a lane that has read everything up to ``position`` with its stream. ``anchor``: where it stood at the last look.

    | case                                         | finding   | reason                                                             |
    |----------------------------------------------|-----------|--------------------------------------------------------------------|
    | last < position                              | REWOUND   | Redis never lowers it: this is an older copy, or a new, older stream |
    | added < ordinal, all it ever had is left, after the anchor | RESTARTED | begun anew since the last look: no entry of it can hide |
    | added < ordinal, otherwise                   | REWOUND   | an older copy that went on: entries may hide before the position   |
    | nothing left at or before the position       | LOST if added - length > ordinal | all that is gone and was not read           |
    | last = position                              | LOST if added > ordinal | the same, nothing remains to be read                 |
    | otherwise                                    | FINE      | the next look from a clearer place tells                           |

    The anchor is moved to the position whenever a connection is made; so between it and the position lie only entries read over one
    connection, from one server, whose clock gives a stream begun anew later IDs than all before. LIMIT: not within one millisecond.
    """
    if info.last < position:
        return Examination(Finding.REWOUND, 0, ordinal)
    behind = info.first is None or info.first > position  # everything that is left was added after the position
    known = info.entries_added - info.length if behind else info.entries_added if info.last == position else UNKNOWN_ORDINAL
    if ordinal == UNKNOWN_ORDINAL:
        return Examination(Finding.FINE, 0, known, known != UNKNOWN_ORDINAL)
    if info.entries_added < ordinal:
        is_new = info.first is None or info.first > (position if anchor is None else anchor)
        if is_new and info.length == info.entries_added:
            return Examination(Finding.RESTARTED, 0, known, known != UNKNOWN_ORDINAL)
        return Examination(Finding.REWOUND, 0, ordinal)
    if known == UNKNOWN_ORDINAL:
        return Examination(Finding.FINE, 0, ordinal)
    lost = known - ordinal
    if lost > 0:
        return Examination(Finding.LOST, lost, ordinal + lost, True)
    return Examination(Finding.FINE, 0, ordinal, lost == 0)


def examine_copy(
    position: Position, ordinal: int, copy: StreamInfo | None, primary: StreamInfo | None, anchor: Position | None = None
) -> Examination | None:
    """As ``examine``, for a lane that reads a replica: ``copy`` is what the replica has, ``primary`` its master; None: no such stream.

    A replica is an earlier state of its master, so what it lacks says nothing: None is "nothing can be said now", and reading goes on,
    since it gives only what comes after the position. What the master lacks says that it is no longer the master that was read.

    | primary               | copy                       | result        | reason                                                       |
    |-----------------------|----------------------------|---------------|--------------------------------------------------------------|
    | REWOUND               | any                        | REWOUND       | the log has what the master lost; entries may hide           |
    | none                  | any                        | None          | deleted, or in flux: the caller asks whether both are gone   |
    | RESTARTED             | RESTARTED                  | RESTARTED     | both have the new stream                                     |
    | RESTARTED             | otherwise                  | None          | the replica still has the old one                            |
    | FINE, LOST            | none, REWOUND, RESTARTED   | None          | it is behind, or follows another master still                |
    | FINE, LOST            | LOST                       | LOST          | lost is what cannot be read any more where it is read        |
    | FINE                  | FINE                       | FINE          | exact when the master is: trimming is done there             |
    | LOST                  | FINE                       | FINE          | trimmed there, but the replica still gives it                |
    """
    if primary is None:
        return None
    ours = examine(position, ordinal, primary, anchor)
    if ours.finding is Finding.REWOUND:
        return ours
    found = examine(position, ordinal, copy, anchor) if copy is not None else None
    if found is None or found.finding is Finding.REWOUND or (found.finding is Finding.RESTARTED) != (ours.finding is Finding.RESTARTED):
        return None
    if found.finding is not Finding.FINE:
        return found._replace(is_exact=False)
    is_fine = ours.finding is Finding.FINE
    known = ours.ordinal if is_fine and found.ordinal == UNKNOWN_ORDINAL else found.ordinal
    return Examination(Finding.FINE, 0, known, is_fine and ours.is_exact)

"""Entries of the whole-system simulation, a stage that does to them what they ask for, and what the log shall then hold of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

from hdad._core import encode_entry
from hdad.limits import KIB
from hdad.log.format import FRAME_HEADER_SIZE
from hdad.record import RecordKind
from hdad.worker.batch import Batch, Record
from tests.sim.process import Hung, Killed
from tests.sim.redis import Entry

STAGED: Final = ("s:2", "s:4")  # the streams whose entries go through a stage
FATES: Final = "nffxx"  # of an entry: normal, filtered, its stage raises; seldom: hangs, dies
SIZES: Final = (0, 20, 500)
LARGE: Final = (3000, 4500, 9000, 30_000, 70_000)  # two records too large for a frame, an entry too large, a frame, far more, a reply
ENTRY_BYTES_MAX: Final = 4 * KIB
FRAME_BYTES_MAX: Final = 8 * KIB
REPLY_BYTES_MAX: Final = 64 * KIB
RECORD_HEADER_SIZE: Final = 24


def body(rng: random.Random, name: bytes, number: int) -> bytes:
    """The value of a new entry's only field. Its first letter is its fate in the stage."""
    fate = "n"
    if name.decode() in STAGED and rng.random() < 0.1:
        fate = "hd"[rng.randrange(2)] if rng.random() < 0.05 else rng.choice(FATES)
    size = rng.choice(LARGE) if rng.random() < 0.004 else rng.choice(SIZES)
    return b"%s%d:" % (fate.encode(), number) + b"x" * size


def stage(batch: Batch) -> Iterator[Record | None]:
    """Two records of every seventh entry, one of the others, but for those with another fate."""
    for record in batch:
        text = record.fields[b"n"]
        match text[:1]:
            case b"f":
                continue
            case b"x":
                raise ValueError("as the entry asked")
            case b"h":
                raise Hung
            case b"d":
                raise Killed("stage")
        for _ in range(_copies(text)):
            yield record.with_value(text)


def _copies(text: bytes) -> int:
    return 2 if b"7:" in text[:12] else 1


def expected(name: str, entry: Entry, is_staged: bool) -> list[tuple[RecordKind, bytes]]:
    """Kind and body of the records that the log shall hold of an entry; of a dead letter the body is left out."""
    text = entry[1]
    packed = encode_entry([(b"n", text)])
    letter = [(RecordKind.DEAD_LETTER, b"")]
    if len(packed) > REPLY_BYTES_MAX:
        return letter
    if not is_staged or name not in STAGED:
        return [(RecordKind.ENTRY, packed)] if len(packed) <= ENTRY_BYTES_MAX else letter
    match text[:1]:
        case b"f":
            return []
        case b"n":
            count = _copies(text)
            is_too_large = count * (RECORD_HEADER_SIZE + len(text)) > FRAME_BYTES_MAX - FRAME_HEADER_SIZE
            return letter if is_too_large else [(RecordKind.VALUE, text)] * count
        case _:
            return letter

"""Entries of the whole-system simulation, a stage that does to them what they ask for, and what the log shall then hold of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

from hdad._core import encode_entry
from hdad.record import RecordKind
from hdad.worker.batch import Batch, Record
from tests.sim.process import Hung, Killed
from tests.sim.redis import Entry

STAGED: Final = ("s:2", "s:4")  # the streams whose entries go through a stage
FATES: Final = "nffxx"  # of an entry: normal, filtered, its stage raises; seldom: hangs, dies
SIZES: Final = (0, 20, 500)


def body(rng: random.Random, name: bytes, number: int) -> bytes:
    """The value of a new entry's only field. Its first letter is its fate in the stage."""
    fate = "n"
    if name.decode() in STAGED and rng.random() < 0.1:
        fate = "hd"[rng.randrange(2)] if rng.random() < 0.05 else rng.choice(FATES)
    return b"%s%d:" % (fate.encode(), number) + b"x" * rng.choice(SIZES)


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
        for _ in range(2 if b"7:" in text else 1):
            yield record.with_value(text)


def expected(name: str, entry: Entry, is_staged: bool) -> list[tuple[RecordKind, bytes]]:
    """Kind and body of the records that the log shall hold of an entry; of a dead letter the body is left out."""
    text = entry[1]
    if not is_staged or name not in STAGED:
        return [(RecordKind.ENTRY, encode_entry([(b"n", text)]))]
    match text[:1]:
        case b"f":
            return []
        case b"n":
            return [(RecordKind.VALUE, text)] * (2 if b"7:" in text else 1)
        case _:
            return [(RecordKind.DEAD_LETTER, b"")]

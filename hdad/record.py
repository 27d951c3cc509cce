"""Nouns of the data: positions and records. No I/O, no formats."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, Self

U64_MAX = 2**64 - 1


class Position(NamedTuple):
    """A place in a lane: a Redis stream entry ID, milliseconds and sequence, both u64. Only grows."""

    ms: int
    seq: int

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Read ``"ms-seq"`` or ``"ms"`` (then seq is 0). Raises ValueError on anything else."""
        if isinstance(text, bytes):
            text = text.decode("ascii", "strict")
        ms_text, dash, seq_text = text.partition("-")
        if not (ms_text.isascii() and ms_text.isdigit()) or (dash and not (seq_text.isascii() and seq_text.isdigit())):
            raise ValueError(f"not a stream position: {text!r}; allowed: MS-SEQ, both decimal")
        ms, seq = int(ms_text), int(seq_text) if dash else 0
        if ms > U64_MAX or seq > U64_MAX:
            raise ValueError(f"not a stream position: {text!r}; both parts are at most {U64_MAX}")
        return cls(ms, seq)

    def predecessor(self) -> Self:
        """The greatest position before this one; of the origin, itself."""
        return type(self)(self.ms, self.seq - 1) if self.seq else type(self)(max(0, self.ms - 1), U64_MAX if self.ms else 0)

    def __str__(self) -> str:
        return f"{self.ms}-{self.seq}"


ORIGIN = Position(0, 0)


class RecordKind(IntEnum):
    """What a record's body is. FORMAT: stored as u8."""

    ENTRY = 0  # a stream entry's fields as Redis had them
    VALUE = 1  # bytes made by a stage
    DEAD_LETTER = 2  # why an entry failed, and the entry

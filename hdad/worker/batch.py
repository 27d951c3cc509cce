"""What a pipeline stage sees and makes: ``Record`` and ``Batch``. Pure; part of the public API.

A record keeps the position of the entry it came from, whatever stages do with it; that is how every entry is accounted for (I10).
Records are native: a batch makes them by the thousand. One as it came from Redis lies in the reply until its bytes are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import overload

from hdad._core import Record

__all__ = ["Batch", "Record"]


class Batch(Sequence[Record]):
    """Records of one stream, in stream order. Iterate it; ``stream`` is its name (bytes that are not UTF-8 are surrogate-escaped)."""

    __slots__ = ("_records", "stream")

    def __init__(self, stream: str, records: Sequence[Record]) -> None:
        self.stream = stream
        self._records = records

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        return self._records[index]

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

"""Field tables: the one source of a structure's codec, of FORMAT.md and of ``hdactl log layout``. Formats: no I/O, no state.

Everything on the device is little-endian and of fixed width; reserved bytes are zero and checked.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple


class Field(NamedTuple):
    """One field of a structure. ``code``: as in ``struct``. ``by``: who fills it."""

    offset: int
    code: str
    name: str
    by: str
    meaning: str

    @property
    def size(self) -> int:
        """Bytes."""
        return struct.calcsize("<" + self.code)


def codec(fields: Sequence[Field], size: int) -> struct.Struct:
    """The structure's codec; asserts that the table has neither hole nor overlap and is ``size`` bytes long."""
    offset = 0
    for field in fields:
        assert field.offset == offset, f"{field.name} is not where the table says"
        offset += field.size
    result = struct.Struct("<" + "".join(field.code for field in fields))
    assert offset == size == result.size
    return result

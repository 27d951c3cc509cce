"""For tests of pipeline stages: run one over entries as a worker would. Part of the public API."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import orjson

from hdad._core import encode_entry
from hdad.record import Position, RecordKind
from hdad.worker.batch import Batch, Record
from hdad.worker.stage import Stage, load_stage, run_stages


def run_stage(
    stage: str | Mapping[str, Any] | Callable[[Batch], Iterable[Record | None]],
    entries: Sequence[Mapping[bytes, bytes] | tuple[Position, Mapping[bytes, bytes]]],
    stream: str = "test",
) -> tuple[list[Record], list[tuple[Position, dict[str, Any]]]]:
    """Run a stage over ``entries`` (fields, or a position and fields; positions default to 1-0, 1-1, …).

    Returns (records in stream order, dead letters as (position, {"reason", "stage", "error", "traceback", "stream"})).
    Raises StageError when ``stage`` names nothing that can be run.
    """
    loaded = Stage(getattr(stage, "__name__", "stage"), stage) if callable(stage) else load_stage(stage)
    records = []
    for index, entry in enumerate(entries):
        position, fields = entry if isinstance(entry, tuple) else (Position(1, index), entry)
        body = encode_entry(fields.items())
        records.append(Record(stream, position, RecordKind.ENTRY, body))
    outcome = run_stages([loaded], Batch(stream, records))
    return outcome.records, [(letter.position, orjson.loads(letter.detail)) for letter in outcome.dead]

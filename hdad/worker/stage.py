"""Stages: finding them by name, and running a chain of them over a batch with every entry accounted for. Pure but for imports.

A stage is a callable that takes a ``Batch`` and gives back an iterable of ``Record`` (a generator, as a rule). Each record it gives
back keeps the position of an entry of the batch. An entry none of whose records comes back was filtered; an entry whose record raises
is dead-lettered. To find which record raised, the batch is run again record by record: so a stage must not have side effects that
matter twice.
"""

from __future__ import annotations

import fnmatch
import importlib
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from hdad._core import encode_records, gather_records
from hdad.errors import StageError
from hdad.record import Position
from hdad.worker import builtin
from hdad.worker.batch import Batch, Record

StageCallable = Callable[[Batch], Iterable[Record | None]]
TRACEBACK_CHARACTERS_MAX: Final = 4000  # LIMIT: of a dead letter; the end of a traceback says most


class Stage(NamedTuple):
    """A callable and the name that dead letters and status give it."""

    name: str
    call: StageCallable


class DeadLetter(NamedTuple):
    """Why an entry is not in the log as a record. ``detail`` is JSON."""

    position: Position
    detail: bytes


class Outcome(NamedTuple):
    """What became of a batch: records in stream order, dead letters in stream order."""

    records: list[Record]
    dead: list[DeadLetter]


def load_stage(spec: str | Mapping[str, Any]) -> Stage:
    """``"module:callable"``, or a mapping with ``use`` for a built-in. Raises StageError with what is wrong and what is allowed."""
    if not isinstance(spec, str):
        options = dict(spec)
        use = options.pop("use", None)
        return Stage(str(use), builtin.build(str(use), options))
    module_name, colon, attribute = spec.partition(":")
    if not colon or not module_name or not attribute:
        raise StageError(f'stage {spec!r}: not of the form "module:callable"')
    try:
        target: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            target = getattr(target, part)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise StageError(f"stage {spec!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(target):
        raise StageError(f"stage {spec!r} is a {type(target).__name__}, not a callable")
    return Stage(spec, target)


class Router:
    """Which chain of stages a stream has: the first route whose pattern fits, else the default chain."""

    def __init__(self, stages: Sequence[Any], routes: Sequence[tuple[Sequence[str], Sequence[Any]]] = ()) -> None:
        self._default = [load_stage(spec) for spec in stages]
        self._routes = [(list(patterns), [load_stage(spec) for spec in specs]) for patterns, specs in routes]

    def stages_for(self, stream: str) -> list[Stage]:
        """Empty: a raw archive."""
        for patterns, stages in self._routes:
            if any(fnmatch.fnmatchcase(stream, pattern) for pattern in patterns):
                return stages
        return self._default


def run_stages(stages: Sequence[Stage], batch: Batch) -> Outcome:
    """Run the chain. Never raises for what a stage does, but for KeyboardInterrupt and SystemExit."""
    dead: list[DeadLetter] = []
    records: Sequence[Record] = list(batch)
    for stage in stages:
        if not records:
            break
        try:
            records = _checked(stage, batch.stream, records)
        except Exception:  # whatever the user's code raises becomes dead letters, one record at a time
            records = _one_by_one(stage, batch.stream, records, dead)
    if stages:
        records = _encoded(stages[-1], batch.stream, records, dead)
    dead_positions = {letter.position for letter in dead}
    kept = [record for record in records if (record.ms, record.seq) not in dead_positions] if dead else list(records)
    dead.sort()
    return Outcome(kept, dead)


def _checked(stage: Stage, stream: str, records: Sequence[Record]) -> list[Record]:
    """One stage over ``records``. Raises what it raises, and TypeError or ValueError for what it may not give back."""
    result, is_in_order, alien = gather_records(stage.call(Batch(stream, records)), records)
    if alien is not None:
        raise TypeError(f"stage {stage.name} gave a {type(alien).__name__}; allowed: Record or None (see Record.with_value)")
    return result if is_in_order else _sorted(stage, records, result)


def _sorted(stage: Stage, records: Sequence[Record], result: list[Record]) -> list[Record]:
    """Records that came back out of order, in order. Raises ValueError for one that is not of this batch."""
    allowed = {id(record.origin) for record in records}
    for record in result:
        if id(record.origin) not in allowed:
            raise ValueError(f"stage {stage.name} gave a record at {record.position}, which is not in its batch")
    return sorted(result, key=_position_of)


def _encoded(stage: Stage, stream: str, records: Sequence[Record], dead: list[DeadLetter]) -> Sequence[Record]:
    """Make every body now: a value without JSON is that record's fault, not the batch's."""
    try:
        encode_records(records)
        return records
    except TypeError:
        pass
    result = []
    for record in records:
        try:
            _ = record.body
            result.append(record)
        except TypeError as error:
            dead.append(DeadLetter(record.position, describe("not JSON", stage.name, stream, error)))
    return result


def _position_of(record: Record) -> tuple[int, int]:
    return record.ms, record.seq


def _one_by_one(stage: Stage, stream: str, records: Sequence[Record], dead: list[DeadLetter]) -> list[Record]:
    result: list[Record] = []
    failed: set[tuple[int, int]] = set()
    for record in records:
        position = (record.ms, record.seq)
        if position in failed:
            continue
        try:
            result.extend(_checked(stage, stream, [record]))
        except Exception as error:  # see run_stages
            failed.add(position)
            dead.append(DeadLetter(record.position, describe("exception", stage.name, stream, error)))
    return result


def describe(reason: str, stage: str, stream: str, error: BaseException | str) -> bytes:
    """The JSON of a dead letter."""
    if isinstance(error, BaseException):
        lines = "".join(traceback.format_exception(error))
        text = f"{type(error).__name__}: {error}"
    else:
        lines, text = "", error
    return orjson.dumps(
        {
            "reason": reason,
            "stage": stage,
            "error": _plain(text)[:TRACEBACK_CHARACTERS_MAX],
            "traceback": _plain(lines)[-TRACEBACK_CHARACTERS_MAX:],
            "stream": _plain(stream),
        }
    )


def shortened(detail: bytes, bytes_max: int) -> bytes:
    """The JSON of a dead letter in at most ``bytes_max`` bytes (1 KiB or more): its longest texts are cut, of a traceback the beginning."""
    limit = TRACEBACK_CHARACTERS_MAX
    content = orjson.loads(detail) if len(detail) > bytes_max else {}
    while len(detail) > bytes_max:
        limit //= 2
        cut = {key: text[max(0, len(text) - limit) :] if key == "traceback" else text[:limit] for key, text in content.items()}
        detail = orjson.dumps(cut)
    return detail


def _plain(text: str) -> str:
    """Text without surrogates: orjson refuses them, and an exception may carry any text."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8", "replace")

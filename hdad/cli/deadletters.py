"""``hdactl deadletters``: list, show and replay the entries that failed. Reads the log; replay adds to Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from hdad.cli import output
from hdad.cli.log import From, left_out, text_of, to_ndjson
from hdad.cli.options import default_path
from hdad.errors import HdadError, SourceError
from hdad.log.logrecord import LogRecord
from hdad.log.reader import LogReader, Start
from hdad.record import Position, RecordKind


@click.group()
def deadletters() -> None:
    """Entries that a stage refused: why, where, and once more."""


@contextmanager
def _letters(device: str, from_: Start, lane: str | None) -> Iterator[Iterator[LogRecord]]:
    """The dead letters there are. Raises CorruptionError at the end if damage was gone around."""
    with LogReader(device, from_, lane=lane, on_damage="skip") as reader:
        yield (record for record in reader.records() if record.kind is RecordKind.DEAD_LETTER)
        if reader.damaged:
            raise left_out(reader)


@deadletters.command("list")
@click.argument("device")
@click.option("--from", "from_", type=From(), help="LSN or time; default: the oldest there is.")
@click.option("--lane", help="Only this stream.")
@click.option("--limit", default=50, show_default=True)
@click.pass_obj
def list_(context: Any, device: str, from_: Start, lane: str | None, limit: int) -> None:
    """The dead letters of a log, and how many of each reason."""
    with _letters(device, from_, lane) as letters:
        _list(letters, limit, context.is_json)


def _list(letters: Iterator[LogRecord], limit: int, is_json: bool) -> None:
    rows: list[tuple[Any, ...]] = []
    reasons: Counter[tuple[str, str]] = Counter()
    for record in letters:
        letter = record.dead_letter
        assert letter is not None
        detail = letter[0]
        reasons[detail["stage"], detail["reason"]] += 1
        if len(rows) < limit:
            name = text_of(record.lane.encode("utf-8", "surrogateescape"))
            rows.append((record.lsn, name, record.position, detail["stage"], detail["reason"], detail["error"][:100]))
    if is_json:
        keys = ("lsn", "lane", "id", "stage", "reason", "error")
        output.print_json({
            "total": reasons.total(), "reasons": [[*key, count] for key, count in reasons.most_common()],
            "letters": [dict(zip(keys, map(_plain, row), strict=True)) for row in rows],
        })  # fmt: skip
        return
    if rows:
        output.console.print(output.table(("LSN", "LANE", "ID", "STAGE", "REASON", "ERROR"), rows, (0,)))
    for (stage, reason), count in reasons.most_common():
        output.line(f"{count} x {reason} in stage {stage or '-'}")
    if not rows:
        output.console.print("no dead letters")


def _plain(value: Any) -> Any:
    return value if isinstance(value, int) else str(value)


@deadletters.command()
@click.argument("device")
@click.argument("lane")
@click.argument("entry_id")
@click.pass_obj
def show(context: Any, device: str, lane: str, entry_id: str) -> None:
    """One dead letter: its traceback, and the entry."""
    position = _position(entry_id)
    with _letters(device, None, lane) as letters:
        record = next((record for record in letters if record.position == position), None)
    if record is None:
        raise HdadError(f"no dead letter {entry_id} of lane {lane} in {device}; see: hdactl deadletters list {device}")
    if context.is_json:
        click.echo(to_ndjson(record).decode(), nl=False)
        return
    letter = record.dead_letter
    assert letter is not None
    detail, fields = letter
    output.line(f"{lane} {position}: {detail['reason']} in stage {detail['stage'] or '-'}\n{detail['error']}")
    if detail["traceback"]:
        output.line(detail["traceback"])
    for name, value in fields or ():
        output.line(f"  {text_of(name)} = {text_of(value)}")
    if fields is None:
        output.line("  the entry was too large to be kept whole")


def _position(text: str) -> Position:
    try:
        return Position.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="ENTRY_ID") from error


@deadletters.command()
@click.argument("device")
@click.option("--from", "from_", type=From(), help="LSN or time; default: the oldest there is.")
@click.option("--lane", help="Only this stream.")
@click.option("--id", "entry_id", help="Only this entry.")
@click.option("--to", help="Add to this stream; default: the one each came from.")
@click.option("--config", "-c", "config_path", default=default_path, help="Configuration that names Redis.")
@click.option("--dry-run", is_flag=True, help="Only say what would be added.")
@click.pass_obj
def replay(context: Any, device: str, from_: Start, lane: str | None, entry_id: str | None, to: str | None, config_path: str,
           dry_run: bool) -> None:  # fmt: skip
    """Add the failed entries to Redis again, with new IDs, so that the (mended) pipeline gets them once more."""
    from hdad.config import load
    from hdad.source.redis_edge import RedisEdge

    config = load(config_path)
    if config.redis.url == "embedded" and not dry_run:
        from hdad.config import with_redis_url
        from hdad.source.embedded import plan_server

        config = with_redis_url(config, plan_server(config.embedded, config.supervisor.state_directory).url)
    edge = RedisEdge(config.redis)
    wanted = _position(entry_id) if entry_id else None
    added = cut = 0
    with _letters(device, from_, lane) as letters:
        for record in letters:
            if wanted is not None and record.position != wanted:
                continue
            letter = record.dead_letter
            assert letter is not None
            fields = letter[1]
            if not fields:
                cut += 1
                continue
            if not dry_run:
                edge.add(to.encode() if to else record.lane.encode("utf-8", "surrogateescape"), fields)
            added += 1
        words = "would be added" if dry_run else "added"
        note = f"; {cut} were too large to be kept, and cannot be" if cut else ""
        context.show({"added": 0 if dry_run else added, "found": added, "cut": cut}, f"{added} entries {words} again{note}")
    if wanted is not None and not added:
        raise SourceError(f"no dead letter {entry_id} that could be replayed")

"""``hdactl log``: format, inspect, verify, layout, read and tail. Works on the device itself, with or without a daemon."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, BinaryIO

import click
import orjson

from hdad.cli import output
from hdad.cli.options import default_path
from hdad.errors import CorruptionError, ExitStatus
from hdad.log.logrecord import LogRecord
from hdad.log.reader import LogReader, Start
from hdad.record import Position, RecordKind

if TYPE_CHECKING:
    from hdad.exchange.feed.client import RemoteReader

_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


class Size(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Bytes, with K, M, G or T (binary)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = re.fullmatch(r"(\d+)([KMGT]?)(i?B)?", str(value))
        if not found:
            self.fail(f"{value!r}: allowed: a number of bytes, or with K, M, G, T: 512M", param, ctx)
        return int(found[1]) * _UNITS[found[2]]


class From(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """An LSN, a time, or "end"."""

    name = "lsn|time|end"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Start:
        if value == "end":
            return "end"
        if value is None or isinstance(value, int | datetime):
            return value
        if str(value).isdigit():
            return int(value)
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f'{value!r}: allowed: an LSN, a time such as 2026-01-31T10:00:00, or "end"', param, ctx)
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


@click.group()
def log() -> None:
    """The log on a device: make it, look at it, read it."""


@log.command("format")
@click.argument("device")
@click.option("--size", type=Size(), help="Make DEVICE a file of this size.")
@click.option("--segment-size", type=Size(), default="0", help="Default: 256M, less on a small device.")
@click.option("--block-size", type=click.Choice(["512", "4096"]), help="Default: the device's, 4096 for a file.")
@click.option("--label", default="", help="Words for people, at most 64 bytes.")
@click.option("--force-uuid", help="Give up the hdad log with this uuid, and all its data.")
@click.pass_obj
def format_(
    context: Any, device: str, size: int | None, segment_size: int, block_size: str | None, label: str, force_uuid: str | None
) -> None:
    """Make a new log on DEVICE. Refuses whatever may be somebody else's data."""
    import uuid

    from rich.progress import Progress

    from hdad.log.create import format_log

    if len(label.encode()) > 64:
        raise click.BadParameter("at most 64 bytes", param_hint="--label")
    with Progress(console=output.errors, transient=True, disable=not output.errors.is_terminal) as progress:
        task = progress.add_task("writing the file through once", total=None)
        superblock = format_log(
            device, size=size, segment_size=segment_size, block_size=int(block_size or 0), label=label, force_uuid=force_uuid,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )  # fmt: skip
    g = superblock.geometry
    text = str(uuid.UUID(bytes=superblock.uuid))
    context.show(
        {"uuid": text, "size": g.size, "block_size": g.block_size, "segment_size": g.segment_size, "segment_count": g.segment_count},
        f"{device}: log {text}, {g.segment_count} segments of {output.size(g.segment_size)}, blocks of {g.block_size} bytes",
    )


@log.command()
@click.argument("device")
@click.pass_obj
def inspect(context: Any, device: str) -> None:
    """What the log is, where it ends, who writes it. Damage is told, and is status 5."""
    from hdad.log.inspect import inspect as inspect_log

    found = inspect_log(device)
    if context.is_json:
        output.print_json(found)
    else:
        lanes = found.pop("lanes", [])
        leases = found.pop("leases")
        for key, value in found.items():
            shown = output.when(value) if key.endswith("_ns") else output.size(value) if key in ("size", "segment_size") else value
            output.line(f"{key.replace('_', ' '):26} {shown}")
        for lease in leases:
            output.line(
                f"writer on {lease['contact'] or lease['node']}: epoch {lease['writer_epoch']}, durable LSN {lease['durable_lsn']}, "
                f"last seen {output.when(lease['label_ns'])} UTC"
            )
        rows = [(lane["name"], lane["position"], lane["entries"], lane["dead_lettered"], lane["lost"], "halted" if lane["halted"] else "")
                for lane in lanes]  # fmt: skip
        output.console.print(output.table(("LANE", "POSITION", "ENTRIES", "DEAD", "LOST", ""), rows, (2, 3, 4)))
    if found["damaged"]:
        sys.exit(ExitStatus.DAMAGED)


@log.command()
@click.argument("device")
@click.pass_obj
def verify(context: Any, device: str) -> None:
    """Walk the whole log and prove order, exactly-once and conservation. Status 13 if it finds a violation."""
    verify_device(device, context.is_json)


def verify_device(device: str, is_json: bool) -> None:
    """Shared with ``hdactl verify``."""
    from rich.progress import Progress

    from hdad.log.inspect import verify as verify_log

    with Progress(console=output.errors, transient=True, disable=not output.errors.is_terminal) as progress:
        task = progress.add_task("segments", total=None)
        report = verify_log(device, lambda done, total: progress.update(task, completed=done, total=total))
    if is_json:
        output.print_json(report.as_dict())
    else:
        output.line(
            f"{device}: {'verified' if report.ok else 'VIOLATIONS'}: LSN {report.first_lsn} to {report.last_lsn}"
            f" in {report.segments} segments,"
            f" {output.count(report.entries)} entries = {output.count(report.committed)} committed"
            f" + {output.count(report.filtered)} filtered"
            f" + {output.count(report.dead_lettered)} dead; {output.count(report.records)} records,"
            f" {output.count(report.lost)} lost before they were read"
        )
        for violation in report.violations:
            output.line(f"  {violation}", "red")
    if not report.ok:
        sys.exit(ExitStatus.FINDINGS)


@log.command()
@click.option("--markdown", is_flag=True, help="As FORMAT.md is.")
@click.option("--c", "c_header", is_flag=True, help="Offsets of a frame's header for C, as hdad/native/frame_layout.h has them.")
def layout(markdown: bool, c_header: bool) -> None:
    """The format's tables."""
    from hdad.log import layout as tables

    if c_header:
        click.echo(tables.c_header(), nl=False)
    else:
        click.echo(tables.markdown() if markdown else tables.text(), nl=not markdown)


class Source:
    """Where to read: a device of this host, or a host that serves the log."""

    def __init__(self, device: str | None, from_host: str | None, files: tuple[str, str, str]) -> None:
        if (device is None) == (from_host is None):
            raise click.UsageError("name a DEVICE, or a host with --from-host")
        self._device, self._from_host, self._files = device, from_host, files

    def open(self, start: Start, lane: str | None, after: Position | None) -> LogReader | RemoteReader:
        """Raises HdadError."""
        if self._device is not None:
            return LogReader(self._device, start, lane=lane, after=after, on_damage="skip")
        from hdad.exchange.feed.client import connect

        assert self._from_host is not None
        cert, key, ca = self._files
        try:
            return connect(
                self._from_host, start, lane=lane, after=after, on_damage="skip", tls_cert_file=cert, tls_key_file=key, tls_ca_file=ca
            )
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--from-host") from error


def _with_source(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments that say where to read."""

    @click.argument("device", required=False)
    @click.option("--from-host", metavar="HOST[:PORT]", help="A host that serves the log ([feed] listen); several with commas.")
    @click.option("--tls-cert", envvar="HDAD_TLS_CERT", help="With --from-host: this reader's certificate. Default: link.tls_cert_file.")
    @click.option("--tls-key", envvar="HDAD_TLS_KEY", help="Its key. Default: link.tls_key_file.")
    @click.option("--tls-ca", envvar="HDAD_TLS_CA", help="The authority of the host's certificate. Default: link.tls_ca_file.")
    @functools.wraps(command)
    def wrapped(
        device: str | None, from_host: str | None, tls_cert: str | None, tls_key: str | None, tls_ca: str | None, **options: Any
    ) -> None:
        files = (tls_cert or "", tls_key or "", tls_ca or "")
        if from_host is not None and not all(files) and not from_host.startswith("tcp:") and os.path.exists(default_path()):
            from hdad.config import load

            link = load(default_path()).link
            configured = (link.tls_cert_file, link.tls_key_file, link.tls_ca_file)
            files = tuple(given or found for given, found in zip(files, configured, strict=True))  # type: ignore[assignment]
        command(source=Source(device, from_host, files), **options)

    return wrapped


@log.command()
@_with_source
@click.option("--from", "from_", type=From(), help="Default: the oldest there is.")
@click.option("--lane", help="Only this stream.")
@click.option("--after", help="With --lane: only entries after this ID.")
@click.option("--format", "format_", type=click.Choice(["ndjson", "raw"]), default="ndjson", show_default=True,
              help="raw: values and field values as bytes, a line each.")  # fmt: skip
@click.option("--limit", type=int, help="At most this many records.")
def read(source: Source, from_: Start, lane: str | None, after: str | None, format_: str, limit: int | None) -> None:
    """Print records, to the end of what is durable now. From DEVICE, or over TCP from a host that has it."""
    _print_records(source, from_, lane, after, format_, limit, follow=False)


@log.command()
@_with_source
@click.option("--from", "from_", type=From(), default="end", show_default=True)
@click.option("--lane", help="Only this stream.")
@click.option("--after", help="With --lane: only entries after this ID.")
@click.option("--format", "format_", type=click.Choice(["ndjson", "raw"]), default="ndjson", show_default=True)
@click.option("--limit", type=int, help="At most this many records.")
def tail(source: Source, from_: Start, lane: str | None, after: str | None, format_: str, limit: int | None) -> None:
    """Print records as they become durable, until ^C. Reads DEVICE beside a running writer, or over TCP, and then resumes after breaks."""
    _print_records(source, None if after else from_, lane, after, format_, limit, follow=True)


def _print_records(
    source: Source, from_: Start, lane: str | None, after: str | None, format_: str, limit: int | None, follow: bool
) -> None:
    try:
        position = Position.parse(after) if after else None
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--after") from error
    if position is not None and lane is None:
        raise click.UsageError("--after needs --lane")
    with source.open(from_, lane, position) as reader:
        try:
            _print_all(reader, format_, limit, follow)
        except BrokenPipeError:  # who read our output went away, as head does; nothing more can be said to them
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        if lane is not None and not follow and lane.encode("utf-8", "surrogateescape") not in reader.lane_names():
            names = ", ".join(sorted(map(text_of, reader.lane_names()))[:20])
            raise click.BadParameter(f"{lane!r} is not in this log; it has: {names or 'none'}", param_hint="--lane")
        if reader.damaged:
            raise left_out(reader)


def left_out(reader: LogReader | RemoteReader) -> CorruptionError:
    """What to raise when all is read that can be read, and damage was gone around."""
    first = reader.damaged[0]
    count = len(reader.damaged)
    return CorruptionError(
        first.address, f"LSN {first.first_lsn}", f"{first.reason}; damaged places that were left out: {count}; see hdactl log verify"
    )


def _print_all(reader: LogReader | RemoteReader, format_: str, limit: int | None, follow: bool) -> None:
    stream: BinaryIO = sys.stdout.buffer
    damages = 0
    for index, record in enumerate(reader.records(follow=follow)):
        if limit is not None and index >= limit:
            break
        stream.write(to_ndjson(record) if format_ == "ndjson" else _raw(record))
        if follow:
            stream.flush()
        for damage in reader.damaged[damages:]:
            output.line(f"damaged: LSN {damage.first_lsn} at byte {damage.address}; going around it", "red", is_error=True)
        damages = len(reader.damaged)
    stream.flush()


def text_of(value: bytes) -> str:
    """Bytes as text; what is not UTF-8 as \\xNN."""
    return value.decode("utf-8", "backslashreplace")


def to_ndjson(record: LogRecord) -> bytes:
    """One line."""
    content: dict[str, Any] = {
        "lane": text_of(record.lane.encode("utf-8", "surrogateescape")), "id": str(record.position), "lsn": record.lsn,
        "kind": record.kind.name.lower(),
    }  # fmt: skip
    if record.kind is RecordKind.ENTRY:
        content["fields"] = {text_of(name): text_of(value) for name, value in record.fields}
    elif record.kind is RecordKind.VALUE:
        try:
            content["value"] = orjson.Fragment(record.body) if orjson.loads(record.body) is not None else None
        except orjson.JSONDecodeError:
            content["value"] = text_of(record.body)
    else:
        letter = record.dead_letter
        assert letter is not None
        content["dead_letter"] = letter[0]
        content["fields"] = {text_of(name): text_of(value) for name, value in letter[1] or ()}
    return orjson.dumps(content) + b"\n"


def _raw(record: LogRecord) -> bytes:
    if record.kind is RecordKind.ENTRY:
        return b"".join(value + b"\n" for _, value in record.fields)
    return record.body + b"\n" if record.kind is RecordKind.VALUE else b""

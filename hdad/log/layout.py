"""The format described from its own tables: FORMAT.md, the C header of frames and ``hdactl log layout`` are all this. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from hdad.log.fields import Field
from hdad.log.format import FIELDS, FRAME_HEADER_SIZE, MAGIC, VERSION
from hdad.log.geometry import LEASE_COUNT, LEASES_OFFSET, SEGMENTS_OFFSET, UNIT
from hdad.log.lanes import ROW_FIELDS, TABLE_FIELDS
from hdad.log.superblock import LEASE_FIELDS, SUPERBLOCK_FIELDS


class Part(NamedTuple):
    """A heading, its words, and a table or none."""

    title: str
    text: str
    fields: Sequence[Field] = ()


# FORMAT: the layouts of records and bodies are owned by hdad/native/pack.h.
RECORD_FIELDS: Final = (
    Field(0, "I", "body_size", "worker", "bytes of the body that follows"),
    Field(4, "B", "kind", "worker", "0 entry, 1 value, 2 dead letter"),
    Field(5, "3s", "reserved", "worker", "zero"),
    Field(8, "Q", "position_ms", "worker", "of the stream entry that the record comes from"),
    Field(16, "Q", "position_seq", "worker", "positions in a frame never go back"),
)

PARTS: Final = (
    Part(
        "The device",
        f"""Everything is little-endian and of fixed width; reserved bytes are zero and checked. CRCs are CRC32C (Castagnoli).

    0, {UNIT}, and the last two units of {UNIT} bytes    superblock copies
    {LEASES_OFFSET} + {UNIT} i, i < {LEASE_COUNT}                          lease blocks
    {SEGMENTS_OFFSET} + segment_size × i                    segments, used in a circle

A segment is a row of frames; its first is a segment head with the whole lane table. Segment sequence n lies at place n modulo
segment_count. A frame never reaches into the next segment: what is left over is one padding frame. Where a writer took over while
writes of the former one might still have been on their way, the rest of a segment, or whole segments, are left out: the head that
follows says how many (from_ms), and has the next LSN and the header CRC of the last frame before.""",
    ),
    Part(
        "Superblock copy, 192 bytes, then zeros to 4096",
        """Valid if and only if magic, version and CRC are right. Copies are written one by one with a flush between. A writer that takes
over raises the epoch here before it writes a frame; from then on frames of older epochs with begin_lsn or more are void.""",
        SUPERBLOCK_FIELDS,
    ),
    Part("Lease block, 272 bytes, then zeros to 4096", "A writer's sign of life, and evidence of what was durable.", LEASE_FIELDS),
    Part(
        "Frame header, 192 bytes",
        """The payload follows; zeros fill the last block. A frame at an address is valid if and only if
(1) its magic is HDADFRM1 and its version is known, (2) its header CRC is right and its reserved bytes are zero, (3) its uuid is this
log's, (4) its address is where it lies, (5) its LSN is the one expected, (6) its predecessor CRC is the header CRC of the frame before
it, (7) its writer epoch is not smaller than its predecessor's, nor, from begin_lsn on, than the superblock's, (8) it ends within its
segment, its payload within it, and its kind is one of the device's, (9) its payload CRC is right.""",
        FIELDS,
    ),
    Part(
        "Payload of segment head and lanes frames: table head, 16 bytes",
        "A segment head replaces the lane table; a lanes frame changes the rows it names. Rows follow, each with its name.",
        TABLE_FIELDS,
    ),
    Part("Row of the lane table, 88 bytes, then the name", "", ROW_FIELDS),
    Part(
        "Payload of data frames: records, header 24 bytes, then the body",
        """Body of kind 0, entry: u32 number of pairs, then for each field and each value u32 size and the bytes, as Redis had them.
Body of kind 1, value: bytes made by a stage. Body of kind 2, dead letter: u32 size of a JSON object (reason, stage, error, traceback),
the object, then the entry as in kind 0, cut if it was too large.""",
        RECORD_FIELDS,
    ),
)


def text() -> str:
    """For a terminal."""
    lines: list[str] = []
    for part in PARTS:
        lines += [part.title, *(f"  {line}".rstrip() for line in part.text.splitlines())]
        if part.fields:
            lines.append("  offset size  name              by      meaning")
        lines += [f"  {f.offset:6} {f.size:4}  {f.name:17} {f.by:7} {f.meaning}".rstrip() for f in part.fields]
        lines.append("")
    return "\n".join(lines[:-1])


def markdown() -> str:
    """FORMAT.md."""
    lines = ["# The log's format, version 2", "", "Made by `hdactl log layout --markdown` from the tables that drive the codec.", ""]
    for part in PARTS:
        lines += [f"## {part.title}", ""]
        if part.text:
            lines += [part.text, ""]
        if part.fields:
            lines += ["| offset | size | name | filled by | meaning |", "|---|---|---|---|---|"]
            lines += [f"| {f.offset} | {f.size} | {f.name} | {f.by} | {f.meaning} |" for f in part.fields]
            lines.append("")
    return "\n".join(lines)


def c_header() -> str:
    """hdad/native/frame_layout.h."""
    lines = [
        "/* Where the fields of a frame's header are. Made by `hdactl log layout --c` from the table in hdad/log/format.py. */",
        "#ifndef HDAD_FRAME_LAYOUT_H",
        "#define HDAD_FRAME_LAYOUT_H",
        "",
        f'#define HDAD_FRAME_MAGIC "{MAGIC.decode()}"',
        f"#define HDAD_FRAME_VERSION {VERSION}u",
        f"#define HDAD_FRAME_HEADER_SIZE {FRAME_HEADER_SIZE}u",
        *(f"#define HDAD_FRAME_{field.name.upper()}_AT {field.offset}u" for field in FIELDS),
        "",
        "#endif",
        "",
    ]
    return "\n".join(lines)

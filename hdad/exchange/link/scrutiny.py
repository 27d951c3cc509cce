"""What a remote worker may put into a ring of the writer's host. Pure: I9 for frames that come over the wire.

The writer takes what is in its rings for the word of its own workers, and ends at a contradiction. So whatever a remote worker says is
looked at here, before it is published: a header whose sums hold, a lane that was assigned to this very worker, a payload that is what its
CRC says and whole records; a HELLO with nothing in it but what the writer knows. Everything else closes the connection (LIES).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final

import orjson
from crc32c import crc32c

from hdad._core import check_records
from hdad.exchange.link.wire import Reason, WireError
from hdad.limits import CAPACITY_MAX, LANE_NAME_BYTES_MAX, LANES_MAX
from hdad.log.format import FRAME_HEADER_SIZE, MAGIC, VERSION, FrameHeader, FrameKind, build_frame_header, decode_header
from hdad.record import ORIGIN, U64_MAX

LOST_MAX: Final = 2**40  # LIMIT: entries that one frame declares lost; sums of it stay within the log's u64
STREAMS_MAX: Final = 512  # LIMIT: of one HELLO (worker/discovery)
_CRC: Final = struct.Struct("<I")
_EPOCH: Final = struct.Struct("<Q")
_EPOCH_OFFSET: Final = 80  # lane_epoch in the frame header: of a HELLO, the generation that the link gave its worker
_WORKER: Final = struct.Struct("<I")
_WORKER_OFFSET: Final = 160
_LISTS: Final = {"halt": 2, "rebase": 5, "lost": 5}


def header_crc(header: memoryview | bytes) -> int:
    """CRC32C of a frame header as its worker built it; it travels in the place where the writer puts its own."""
    crc: int = crc32c(header[4:FRAME_HEADER_SIZE])
    return crc


def seal(frame: memoryview) -> None:
    """The sender's side of it."""
    _CRC.pack_into(frame, 0, header_crc(frame))


def check_header(data: bytes, size: int) -> FrameHeader:
    """The header of a frame of ``size`` bytes. Raises WireError."""
    header = decode_header(data)
    if header.magic != MAGIC or header.version != VERSION or header_crc(data) != header.header_crc:
        raise WireError("link: the header of a frame is not what was sent")
    empty = (header.uuid, header.lsn, header.durable_lsn, header.address, header.writer_epoch, header.predecessor_crc)
    if any(empty[0]) or any(empty[1:]) or header.reserved or header.codec or any(header.reserved_end):
        raise WireError("link: a frame with fields that are the writer's", Reason.LIES)
    if header.stored_size != size - FRAME_HEADER_SIZE or header.raw_size != header.stored_size:
        raise WireError(f"link: a frame of {size} bytes with a payload of {header.stored_size}, raw {header.raw_size}", Reason.LIES)
    if header.kind == FrameKind.HELLO:
        return header
    if header.kind != FrameKind.DATA:
        raise WireError(f"link: a frame of kind {header.kind}", Reason.LIES)
    if header.filtered_count + header.dead_count > header.entry_count or header.lost_count > LOST_MAX:
        raise WireError(
            f"link: a frame of {header.entry_count} entries, {header.filtered_count} filtered, {header.dead_count} dead, "
            f"{header.lost_count} lost", Reason.LIES,
        )  # fmt: skip
    return header


def check_lane(header: FrameHeader, assigned: Mapping[int, int]) -> None:
    """``assigned``: lane → newest epoch that this worker was told. An older one is late, not a lie. Raises WireError."""
    epoch = assigned.get(header.lane_id)
    if epoch is None or header.lane_epoch > epoch:
        raise WireError(f"link: a frame of lane {header.lane_id} under epoch {header.lane_epoch:#x}; its own is {epoch}", Reason.LIES)


def check_payload(header: FrameHeader, payload: memoryview) -> None:
    """Raises WireError."""
    if crc32c(payload) != header.payload_crc:
        raise WireError("link: the payload of a frame is not what its worker packed")
    if header.kind == FrameKind.DATA:
        try:
            check_records(payload, header.record_count)
        except ValueError as error:
            raise WireError(f"link: a frame of lane {header.lane_id}: {error}", Reason.LIES) from error


def read_hello(payload: memoryview) -> dict[str, Any]:
    """The content of a worker's HELLO. Raises WireError if it says anything but what a worker says."""
    try:
        content = orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise WireError(f"link: a HELLO that is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise WireError("link: a HELLO that is no object")
    known = {"worker", "generation", "is_first", "streams", "capacity", *_LISTS}
    if content.keys() - known or not _is_u64(content.get("generation")) or content.get("is_first", False) not in (True, False):
        raise WireError(f"link: a HELLO with {sorted(content)[:10]}", Reason.LIES)
    capacity = content.get("capacity", 1)
    if not (_is_u64(capacity) and 1 <= capacity <= CAPACITY_MAX):
        raise WireError(f"link: a HELLO with the capacity {capacity!r:.40}", Reason.LIES)
    streams = content.get("streams", {})
    if not isinstance(streams, dict) or len(streams) > STREAMS_MAX:
        raise WireError("link: a HELLO with streams that are none", Reason.LIES)
    for name, values in streams.items():
        if len(name) > LANE_NAME_BYTES_MAX or any(ord(sign) > 255 for sign in name) or not _is_row(values, 3):
            raise WireError(f"link: a HELLO with the stream {name[:40]!r}", Reason.LIES)
    for key, count in _LISTS.items():
        if key in content and not (_is_row(content[key], count) and 0 < content[key][0] < LANES_MAX):
            raise WireError(f"link: a HELLO with {key} {content[key]!r:.80}", Reason.LIES)
    if "lost" in content and content["lost"][2] > LOST_MAX:
        raise WireError(f"link: a HELLO with {content['lost'][2]} entries lost", Reason.LIES)
    return content


def _is_u64(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= U64_MAX


def _is_row(value: object, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(map(_is_u64, value))


def stamp_worker(frame: memoryview, index: int, generation: int | None = None) -> None:
    """Give a frame the index of its ring, and a HELLO the generation that is its worker's in that ring."""
    _WORKER.pack_into(frame, _WORKER_OFFSET, index)
    if generation is not None:
        _EPOCH.pack_into(frame, _EPOCH_OFFSET, generation)


def build_gone(frame: memoryview, index: int, generation: int) -> int:
    """A HELLO frame that says: the worker is dead. Returns its bytes."""
    payload = orjson.dumps({"worker": index, "generation": generation, "is_gone": True})
    end = FRAME_HEADER_SIZE + len(payload)
    frame[FRAME_HEADER_SIZE:end] = payload
    build_frame_header(
        frame, kind=FrameKind.HELLO, lane_id=0, lane_epoch=generation, from_=ORIGIN, to=ORIGIN, record_count=0, entry_count=0,
        stored_size=len(payload), payload_crc=crc32c(payload), label_ns=0, lost_count=0, filtered_count=0, dead_count=0, worker=index,
    )  # fmt: skip
    return end

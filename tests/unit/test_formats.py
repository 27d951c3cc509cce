"""Codecs of the log: round trips, refusals, and arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
from crc32c import crc32c

from hdad.errors import ForeignDeviceError, FormatError, GeometryMismatchError, UnknownVersionError
from hdad.limits import LANES_MAX
from hdad.log import format as frames
from hdad.log.format import FRAME_HEADER_SIZE, Expectation, FrameKind, broken_rules, build_frame_header, decode_header, frame_size, stamp
from hdad.log.geometry import SEGMENTS_OFFSET, UNIT, plan
from hdad.log.lanes import BEFORE_UNKNOWN, LaneRow, decode_rows, encode_rows, rows_size
from hdad.log.signatures import PROBE_BYTES, SIGNATURES, find_signatures
from hdad.log.superblock import (
    LEASE_SIZE,
    SUPERBLOCK_SIZE,
    Lease,
    LeaseState,
    Superblock,
    check_device,
    choose,
    decode_lease,
    decode_superblock,
    encode_lease,
    encode_superblock,
)
from hdad.record import ORIGIN, Position

UUID = bytes(range(16))
GEOMETRY = plan(64 << 20, 4096, 1 << 20)
SUPERBLOCK = Superblock(UUID, 3, 7, GEOMETRY, 1_700_000_000_000_000_000, "label")


def frame(
    payload: bytes = b"payload", *, lsn: int = 5, address: int = SEGMENTS_OFFSET, kind: int = FrameKind.DATA, block: int = 512
) -> bytearray:
    view = bytearray(frame_size(len(payload), block))
    view[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + len(payload)] = payload
    build_frame_header(
        memoryview(view), kind=kind, lane_id=4, lane_epoch=2, from_=Position(1, 2), to=Position(3, 4), record_count=1, entry_count=3,
        stored_size=len(payload), payload_crc=crc32c(payload), label_ns=99, lost_count=5, filtered_count=1, dead_count=1, worker=2,
    )  # fmt: skip
    stamp(memoryview(view), uuid=UUID, lsn=lsn, durable_lsn=4, address=address, writer_epoch=7, predecessor_crc=77)
    return view


EXPECTED = Expectation(UUID, SEGMENTS_OFFSET, 5, 77, 7, SEGMENTS_OFFSET + (1 << 20), 512)


def test_a_frame_header_reads_as_it_was_written() -> None:
    header = decode_header(frame())
    assert (header.lsn, header.durable_lsn, header.address, header.writer_epoch, header.predecessor_crc) == (5, 4, SEGMENTS_OFFSET, 7, 77)
    assert (header.from_, header.to, header.lane_id, header.lane_epoch) == (Position(1, 2), Position(3, 4), 4, 2)
    assert (header.entry_count, header.committed_count, header.filtered_count, header.dead_count, header.lost_count) == (3, 1, 1, 1, 5)
    view = frame()
    assert broken_rules(memoryview(view), decode_header(view), EXPECTED) == []


@pytest.mark.parametrize(
    ("change", "rules"),
    [
        ({"uuid": bytes(16)}, [3]),
        ({"address": SEGMENTS_OFFSET + 512}, [4]),
        ({"lsn": 6}, [5]),
        ({"lsn": 4}, [5]),
        ({"predecessor_crc": 78}, [6]),
        ({"writer_epoch_min": 8}, [7]),
        ({"end": SEGMENTS_OFFSET + 256}, [8]),
    ],
)
def test_each_rule_of_validity_is_looked_at(change: dict[str, int], rules: list[int]) -> None:
    view = frame()
    assert broken_rules(memoryview(view), decode_header(view), EXPECTED._replace(**change)) == rules  # type: ignore[arg-type]


def test_rule_1_magic_and_version() -> None:
    for offset in (8, 16):
        view = frame()
        view[offset] ^= 1
        assert broken_rules(memoryview(view), decode_header(view), EXPECTED) == [1]


def test_rule_2_every_bit_of_the_header_is_covered() -> None:
    for bit in range(FRAME_HEADER_SIZE * 8):
        view = frame()
        view[bit // 8] ^= 1 << bit % 8
        assert broken_rules(memoryview(view), decode_header(view), EXPECTED), f"bit {bit}"


def test_rule_2_reserved_bytes_must_be_zero_even_under_a_right_crc() -> None:
    for offset in (19, 20, 164, 191):
        view = frame()
        view[offset] = 1
        view[:4] = crc32c(view[4:FRAME_HEADER_SIZE]).to_bytes(4, "little")
        assert broken_rules(memoryview(view), decode_header(view), EXPECTED) == [2]


@pytest.mark.parametrize("kind", [0, 5, FrameKind.HELLO, 255])
def test_rule_8_kinds_that_are_never_on_a_device(kind: int) -> None:
    view = frame(kind=kind)
    assert broken_rules(memoryview(view), decode_header(view), EXPECTED) == [8]


def test_rule_9_every_bit_of_the_payload_is_covered() -> None:
    view = frame()
    header = decode_header(view)
    payload = view[FRAME_HEADER_SIZE : FRAME_HEADER_SIZE + header.stored_size]
    assert frames.is_payload_right(header, memoryview(payload))
    for bit in range(len(payload) * 8):
        changed = bytearray(payload)
        changed[bit // 8] ^= 1 << bit % 8
        assert not frames.is_payload_right(header, memoryview(changed))
    assert not frames.is_payload_right(header, memoryview(payload[:-1]))


def test_a_stored_size_of_all_ones_is_refused_without_being_believed() -> None:
    view = frame()
    view[128:132] = b"\xff" * 4
    view[:4] = crc32c(view[4:FRAME_HEADER_SIZE]).to_bytes(4, "little")
    assert broken_rules(memoryview(view), decode_header(view), EXPECTED) == [8]


# -- geometry ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16 << 20, 100 << 20, (1 << 30) + 12_345, 100 << 30, 20 << 40])
@pytest.mark.parametrize("block", [512, 4096])
def test_segments_and_copies_do_not_overlap_and_fit(size: int, block: int) -> None:
    g = plan(size, block)
    assert g.segment_address(0) == SEGMENTS_OFFSET and g.segment_address(g.segment_count) == SEGMENTS_OFFSET
    assert g.segment_end(g.segment_count - 1) <= g.copies[2] < g.copies[3] <= size - UNIT
    assert g.frame_size_max <= g.segment_size // 4 and g.segment_count >= 2


@pytest.mark.parametrize(
    ("size", "block", "segment"), [(1 << 20, 4096, 0), (64 << 20, 1024, 0), (64 << 20, 512, 4097), (64 << 20, 512, 1 << 62), (0, 512, 0)]
)
def test_what_does_not_fit_is_refused(size: int, block: int, segment: int) -> None:
    with pytest.raises(FormatError, match=r"too small|block size|segment size"):
        plan(size, block, segment)


# -- superblock and lease ----------------------------------------------------------------------------------------------------------------


def test_superblock_and_lease_round_trip_and_every_bit_counts() -> None:
    copy = encode_superblock(SUPERBLOCK)
    assert len(copy) == UNIT and decode_superblock(copy) == SUPERBLOCK
    lease = Lease(2, UUID, bytes(16), 7, 100, 55, 9, "host:1", LeaseState.RELEASED, b"b" * 16, b"s" * 16, 5, 6, 7, 8)
    block = encode_lease(lease)
    assert len(block) == UNIT and decode_lease(block, UUID) == lease
    assert decode_lease(block, bytes(16)) is None
    for bit in range(0, LEASE_SIZE * 8, 5):
        changed = bytearray(block)
        changed[bit // 8] ^= 1 << bit % 8
        assert decode_lease(changed, UUID) is None
    for bit in range(0, SUPERBLOCK_SIZE * 8, 3):
        changed = bytearray(copy)
        changed[bit // 8] ^= 1 << bit % 8
        assert decode_superblock(changed) is None


def test_the_newest_whole_copy_counts_and_copies_of_two_logs_are_refused() -> None:
    newer = replace(SUPERBLOCK, sequence=4)
    assert choose([SUPERBLOCK, None, newer, None]) == newer
    late = replace(SUPERBLOCK, sequence=9, writer_epoch=6)
    assert choose([late, newer, late]) == newer, "a copy of an older writer that got there late"
    with pytest.raises(ForeignDeviceError, match="no superblock copy"):
        choose([None, None])
    with pytest.raises(ForeignDeviceError, match="different logs"):
        choose([SUPERBLOCK, replace(SUPERBLOCK, uuid=bytes(16))])


def resealed(copy: bytes, offset: int, value: bytes) -> bytes:
    changed = bytearray(copy)
    changed[offset : offset + len(value)] = value
    changed[:4] = crc32c(bytes(changed[4:SUPERBLOCK_SIZE])).to_bytes(4, "little")
    return bytes(changed)


def as_version_1(copy: bytes) -> bytes:
    """A copy as it was before beginnings of writers were in it."""
    changed = bytearray(copy[:160])
    changed[16] = 1
    changed[:4] = crc32c(bytes(changed[4:])).to_bytes(4, "little")
    return bytes(changed) + bytes(UNIT - 160)


def test_an_unknown_version_and_an_impossible_geometry_are_told() -> None:
    copy = encode_superblock(SUPERBLOCK)
    with pytest.raises(UnknownVersionError, match="version 3"):
        decode_superblock(resealed(copy, 16, b"\3"))
    with pytest.raises(UnknownVersionError, match="version 1"):
        decode_superblock(as_version_1(copy))
    with pytest.raises(GeometryMismatchError):
        decode_superblock(resealed(copy, 72, b"\1"))
    with pytest.raises(FormatError):
        decode_superblock(resealed(copy, 64, bytes(8 - 1) + b"\xff"))


def test_a_device_of_another_size_or_block_size_is_refused() -> None:
    check_device(SUPERBLOCK, GEOMETRY.size, 512)
    with pytest.raises(GeometryMismatchError, match="made for"):
        check_device(SUPERBLOCK, GEOMETRY.size + 4096, 512)
    with pytest.raises(GeometryMismatchError, match="blocks"):
        check_device(Superblock(UUID, 1, 1, plan(64 << 20, 512), 0), 64 << 20, 4096)


# -- lane table --------------------------------------------------------------------------------------------------------------------------

ROW = LaneRow(3, b"s:\xff", 9, Position(5, 6), 10, 7, 1, 2, 4, 3, 11, True)


def test_lane_rows_round_trip() -> None:
    rows = [ROW, LaneRow.new(4, b"", ORIGIN, 0)]
    payload = encode_rows(77, rows)
    assert len(payload) == rows_size(rows) and decode_rows(payload) == (77, rows)


def test_counts_of_a_row_are_what_data_frames_change() -> None:
    assert ROW.counts == (10, 7, 1, 2, 4, 3)


def test_every_cut_of_a_lane_table_is_refused() -> None:
    payload = encode_rows(1, [ROW, ROW])
    for size in range(len(payload)):
        with pytest.raises(FormatError):
            decode_rows(payload[:size])
    with pytest.raises(FormatError, match="after the last row"):
        decode_rows(payload + b"\0")


@pytest.mark.parametrize(
    ("offset", "value"),
    [(16, (0).to_bytes(4, "little")), (16, LANES_MAX.to_bytes(4, "little")), (20, b"\xff\xff"), (22, b"\2"), (12, b"\1"), (8, b"\xff" * 4)],
)
def test_lane_table_fields_out_of_range_are_refused(offset: int, value: bytes) -> None:
    payload = bytearray(encode_rows(1, [ROW]))
    payload[offset : offset + len(value)] = value
    with pytest.raises(FormatError):
        decode_rows(bytes(payload))


def test_a_row_after_a_frame_counts_what_the_frame_says() -> None:
    header = decode_header(frame())
    after = LaneRow.new(4, b"x", Position(1, 2), 100).after(header)
    assert (after.position, after.epoch, after.entries, after.committed, after.dead, after.filtered, after.lost, after.frames) == (
        Position(3, 4), 2, 3, 1, 1, 1, 5, 1,
    )  # fmt: skip
    assert after.ordinal == 100 + 3 + 5


# -- signatures --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda signature: f"{signature.name}@{signature.offset}")
def test_every_known_signature_is_found(signature: object) -> None:
    name, offset, magic = signature  # type: ignore[misc]
    start = bytearray(PROBE_BYTES)
    start[offset : offset + len(magic)] = magic
    assert find_signatures(start) == [name]


def test_an_empty_device_bears_nothing() -> None:
    assert find_signatures(bytes(PROBE_BYTES)) == []


def test_an_ordinal_is_known_unless_an_operator_accepted_a_position() -> None:
    row = LaneRow(1, b"l", 1, Position(1, 0), entries=3, lost=2, before=4)
    assert row.ordinal == 9
    assert row._replace(before=BEFORE_UNKNOWN).ordinal == 2**64 - 1


def test_a_header_that_was_read_is_written_as_it_was() -> None:
    view = frame()
    assert frames.encode_header(decode_header(view)) == bytes(view[:FRAME_HEADER_SIZE])

"""Bytes of format version 2, both ways. A change here is a change of the format: a new version, and a Format line in the changelog."""

from __future__ import annotations

from pathlib import Path

from crc32c import crc32c

import hdad
from hdad.exchange.link.wire import (
    Greeting,
    Kind,
    Reason,
    Role,
    StartKind,
    Subscription,
    check_body,
    decode_greeting,
    decode_head,
    decode_subscription,
    encode,
    encode_bye,
    encode_greeting,
    encode_piece,
    encode_subscription,
)
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind, build_frame_header, decode_header, stamp
from hdad.log.geometry import plan
from hdad.log.lanes import LaneRow, decode_rows, encode_rows
from hdad.log.layout import PARTS, c_header, markdown, text
from hdad.log.superblock import (
    LEASE_SIZE,
    SUPERBLOCK_SIZE,
    Lease,
    LeaseState,
    Superblock,
    decode_lease,
    decode_superblock,
    encode_lease,
    encode_superblock,
)
from hdad.record import Position

UUID = bytes.fromhex("00112233445566778899aabbccddeeff")
HEADER = (
    "b4781d717069e3f44844414446524d31010001000000000000112233445566778899aabbccddeeff050000000000000004000000000000000000100000000000"
    "07000000000000004d00000004000000020000000000000001000000000000000200000000000000030000000000000004000000000000000100000003000000"
    "07000000070000006300000000000000050000000000000001000000010000000200000000000000000000000000000000000000000000000000000000000000"
)
SUPERBLOCK = (
    "b71d70bd000000004844414453555031020000000010000000112233445566778899aabbccddeeff030000000000000007000000000000000000000400000000"
    "00001000000000003e00000000000000000010000000000000002a36fe9c9717676f6c64656e0000000000000000000000000000000000000000000000000000"
    "00000000000000000000000000000000000000000000000000000000000000000c000000000000005901000000000000000102030405060708090a0b0c0d0e0f"
)
LEASE = (
    "7b33de5e02000000484441444c534531020000000100000000112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f0700000000000000"
    "6400000000000000370000000000000001002a36fe9c9717686f73743a3100000000000000000000000000000000000000000000000000000000000000000000"
    "00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "0000000000000000000000000000000000000000000000000102030405060708090a0b0c0d0e0f1002030405060708090a0b0c0d0e0f101102002a36fe9c9717"
    "0605040302014448e803000010270000"
)
ROWS = (
    "0c00000000000000020000000000000003000000030001000900000000000000050000000000000006000000000000000a000000000000000700000000000000"
    "01000000000000000200000000000000040000000000000003000000000000000b00000000000000733aff040000000100000000000000000000000000000000"
    "00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
    "00000074"
)

GREETING = (
    "484441444c4e4b3101000100b80b000000112233445566778899aabbccddeeff000102030405060708090a0b0c0d0e0f0000100004000000776f726b65722d37"
    "00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
)
WIRE = {
    "4f6558ea0000000008000300000000008877665544332211": encode(Kind.CREDIT, 3, 0x1122334455667788),
    "2e7f3ce00c00000003000000000000000000000000000000746c733a2f2f623a37343131": encode(Kind.NOT_WRITER, body=b"tls://b:7411"),
    "058e081fc800000007000200000000008813000000000000": encode_piece(Kind.FRAME, 2, 200, 5000),
    "9e2fb70a020000000e0000000000000002000000000000006e6f": encode_bye(Reason.LIES, "no"),
}
SUBSCRIPTION = "040f030000000000000000000000000005000000000000000600000000000000733a61"
THE_GREETING = Greeting(Role.WORKERS, 3000, UUID, bytes(range(16)), 1 << 20, 4, "worker-7")
THE_SUBSCRIPTION = Subscription(StartKind.AFTER, 0, True, b"s:a", Position(5, 6), True)
THE_SUPERBLOCK = Superblock(
    UUID, 3, 7, plan(64 << 20, 4096, 1 << 20), 1_700_000_000_000_000_000, "golden", 12, 345, bytes(range(16))
)
THE_LEASE = Lease(
    2, UUID, bytes(range(16)), 7, 100, 55, 1_700_000_000_000_000_001, "host:1", LeaseState.RELEASED, bytes(range(1, 17)),
    bytes(range(2, 18)), 1_700_000_000_000_000_002, 0x4844_0102_0304_0506, 1000, 10_000,
)  # fmt: skip
THE_ROWS = [LaneRow(3, b"s:\xff", 9, Position(5, 6), 10, 7, 1, 2, 4, 3, 11, True), LaneRow(4, b"t", 0, Position(0, 0))]


def header_bytes() -> bytes:
    view = bytearray(FRAME_HEADER_SIZE)
    build_frame_header(
        memoryview(view), kind=FrameKind.DATA, lane_id=4, lane_epoch=2, from_=Position(1, 2), to=Position(3, 4), record_count=1,
        entry_count=3, stored_size=7, payload_crc=crc32c(b"payload"), label_ns=99, lost_count=5, filtered_count=1, dead_count=1, worker=2,
    )  # fmt: skip
    stamp(memoryview(view), uuid=UUID, lsn=5, durable_lsn=4, address=1 << 20, writer_epoch=7, predecessor_crc=77)
    return bytes(view)


def test_frame_header() -> None:
    assert header_bytes().hex() == HEADER
    header = decode_header(bytes.fromhex(HEADER))
    assert (header.lsn, header.lane_id, header.to, header.committed_count, header.lost_count) == (5, 4, Position(3, 4), 1, 5)


def test_superblock() -> None:
    assert encode_superblock(THE_SUPERBLOCK)[:SUPERBLOCK_SIZE].hex() == SUPERBLOCK
    assert not any(encode_superblock(THE_SUPERBLOCK)[SUPERBLOCK_SIZE:])
    assert decode_superblock(bytes.fromhex(SUPERBLOCK)) == THE_SUPERBLOCK


def test_lease() -> None:
    assert encode_lease(THE_LEASE)[:LEASE_SIZE].hex() == LEASE
    assert decode_lease(bytes.fromhex(LEASE), UUID) == THE_LEASE


def test_lane_table() -> None:
    assert encode_rows(12, THE_ROWS).hex() == ROWS
    assert decode_rows(bytes.fromhex(ROWS)) == (12, THE_ROWS)


def test_the_packaged_description_is_made_from_the_tables() -> None:
    path = Path(hdad.__file__).parent / "log" / "FORMAT.md"
    assert path.read_text() == markdown(), "make it anew: hdactl log layout --markdown > hdad/log/FORMAT.md"
    for part in PARTS:
        assert part.title in text() and part.title in markdown()
        for field in part.fields:
            assert field.name in text()


def test_the_offsets_in_c_are_made_from_the_table() -> None:
    path = Path(hdad.__file__).parent / "native" / "frame_layout.h"
    assert path.read_text() == c_header(), "make it anew: hdactl log layout --c > hdad/native/frame_layout.h"


def test_the_wire_is_what_it_was() -> None:
    assert encode_greeting(THE_GREETING).hex() == GREETING and decode_greeting(bytes.fromhex(GREETING)) == THE_GREETING
    assert encode_subscription(THE_SUBSCRIPTION).hex() == SUBSCRIPTION
    assert decode_subscription(bytes.fromhex(SUBSCRIPTION)) == THE_SUBSCRIPTION
    for golden, data in WIRE.items():
        assert data.hex() == golden
        head = decode_head(memoryview(data))
        if head.kind is not Kind.FRAME:
            check_body(head, memoryview(data))

"""Records and entries as bytes. Golden bytes here are the format of every payload ever written: a change is a format change."""

from __future__ import annotations

import gc
import os
import struct
from collections.abc import Callable
from typing import Any

import pytest

from hdad._core import RecordIterator, check_records, decode_entry, encode_entry, pack_values, unpack_records

HEAD = struct.Struct("<IB3sQQ")
PAIRS = [(b"field", b"value"), (b"", b""), (b"\0\xff", b"x" * 300)]
GOLDEN_ENTRY = bytes.fromhex("0200000001000000610200000062630000000003000000646566")
GOLDEN_RECORD = bytes.fromhex("1a0000000000000008070605040302011100000000000000") + GOLDEN_ENTRY


def record(ms: int, seq: int, kind: int, body: bytes, reserved: bytes = bytes(3), size: int | None = None) -> bytes:
    return HEAD.pack(len(body) if size is None else size, kind, reserved, ms, seq) + body


def packed(*records: tuple[int, int, int, bytes]) -> bytes:
    out = bytearray(sum(24 + len(item[3]) for item in records))
    assert pack_values(out, list(records)) == (len(records), len(out))
    return bytes(out)


def test_golden_entry_both_ways() -> None:
    pairs = [(b"a", b"bc"), (b"", b"def")]
    assert encode_entry(pairs) == GOLDEN_ENTRY
    assert decode_entry(GOLDEN_ENTRY) == pairs


def test_golden_record_both_ways() -> None:
    assert packed((0x0102030405060708, 0x11, 0, GOLDEN_ENTRY)) == GOLDEN_RECORD
    assert [(ms, seq, kind, bytes(body)) for ms, seq, kind, body in unpack_records(GOLDEN_RECORD)] == [
        (0x0102030405060708, 0x11, 0, GOLDEN_ENTRY)
    ]
    check_records(GOLDEN_RECORD, 1)


@pytest.mark.parametrize("pairs", [[], PAIRS, PAIRS * 100])
def test_entry_round_trip(pairs: list[tuple[bytes, bytes]]) -> None:
    assert decode_entry(encode_entry(pairs)) == pairs
    assert decode_entry(memoryview(encode_entry(iter(pairs)))) == pairs


def test_encode_entry_takes_any_buffer_and_refuses_text() -> None:
    assert encode_entry([(memoryview(b"a"), bytearray(b"bc")), (b"", b"def")]) == GOLDEN_ENTRY
    with pytest.raises(TypeError):
        encode_entry([("a", "b")])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="unpack"):
        encode_entry([(b"a",)])  # type: ignore[list-item]


@pytest.mark.parametrize("cut", range(len(GOLDEN_ENTRY)))
def test_cut_entry_raises(cut: int) -> None:
    with pytest.raises(ValueError, match="entry"):
        decode_entry(GOLDEN_ENTRY[:cut])


@pytest.mark.parametrize(
    "body", [GOLDEN_ENTRY + b"x", b"\xff\xff\xff\xff", b"\1\0\0\0\xff\xff\xff\xff", b"\1\0\0\0\0\0\0\0\xfc\xff\xff\xff", b"\0\0\0\0\0"]
)
def test_false_sizes_in_an_entry_raise(body: bytes) -> None:
    with pytest.raises(ValueError, match="entry"):
        decode_entry(body)


def test_pack_values_stops_when_full_and_writes_nothing_beyond() -> None:
    out = bytearray(b"\xaa" * 100)
    body = b"y" * 20
    assert pack_values(out, [(1, 0, 1, body), (2, 0, 1, body), (3, 0, 1, body)]) == (2, 88)
    assert out[88:] == b"\xaa" * 12
    assert [item[0] for item in unpack_records(out[:88])] == [1, 2]
    for size in range(44):
        assert pack_values(bytearray(size), [(1, 0, 1, body)]) == (0, 0)
    assert pack_values(bytearray(44), [(1, 0, 1, body)]) == (1, 44)


@pytest.mark.parametrize("kind", [3, 255, 256, -1])
def test_pack_values_refuses_unknown_kinds(kind: int) -> None:
    with pytest.raises(ValueError, match="kind"):
        pack_values(bytearray(100), [(1, 0, kind, b"")])


@pytest.mark.parametrize("item", [(-1, 0, 1, b""), (0, -1, 1, b""), (2**64, 0, 1, b""), (0, 2**64, 1, b"")])
def test_pack_values_refuses_positions_that_are_no_u64(item: tuple[int, int, int, bytes]) -> None:
    with pytest.raises(OverflowError):
        pack_values(bytearray(100), [item])


def test_pack_values_refuses_a_read_only_target() -> None:
    with pytest.raises((BufferError, TypeError)):
        pack_values(b"x" * 100, [(1, 0, 1, b"")])  # type: ignore[arg-type]


def test_extreme_positions_survive() -> None:
    top = 2**64 - 1
    assert unpack_records(packed((0, 0, 1, b""), (top, top, 1, b"z")))[1][:3] == (top, top, 1)


@pytest.mark.parametrize("read", [unpack_records, lambda payload: list(RecordIterator(payload))])
def test_readers_agree(read: Callable[[Any], list[tuple[int, int, int, memoryview]]]) -> None:
    records = [(index // 3, index % 3, index % 3, os.urandom(index)) for index in range(100)]
    payload = packed(*records)
    for source in (payload, bytearray(payload), memoryview(payload), memoryview(payload).cast("c")):
        assert [(ms, seq, kind, bytes(body)) for ms, seq, kind, body in read(source)] == records
    assert read(b"") == []


def test_iterator_is_lazy_and_its_views_keep_the_payload_alive() -> None:
    payload = bytearray(packed((1, 2, 1, b"first")) + b"garbage")
    iterator = RecordIterator(payload)
    body = next(iterator)[3]
    with pytest.raises(ValueError, match=r"cut .*byte 29 of 36"):
        next(iterator)
    with pytest.raises(BufferError):
        payload.clear()
    del payload, iterator
    gc.collect()
    assert bytes(body) == b"first"


def test_iterator_that_was_never_initialized_raises() -> None:
    with pytest.raises(TypeError, match="not initialized"):
        next(RecordIterator.__new__(RecordIterator))


# What is wrong with a payload of two records, and the words by which it is refused.
GOOD = record(1, 0, 1, b"abc") + record(1, 1, 0, GOLDEN_ENTRY)
WRONG_STRUCTURE = [
    (GOOD[:-1], "beyond the payload"),
    (GOOD + b"\0", "cut in a record's header"),
    (GOOD[:20], "cut in a record's header"),
    (record(1, 0, 3, b""), "unknown record kind"),
    (record(1, 0, 255, b""), "unknown record kind"),
    (record(1, 0, 1, b"", reserved=b"\1\0\0"), "reserved"),
    (record(1, 0, 1, b"", reserved=b"\0\1\0"), "reserved"),
    (record(1, 0, 1, b"", reserved=b"\0\0\1"), "reserved"),
    (record(1, 0, 1, b"abc", size=4), "beyond the payload"),
    (record(1, 0, 1, b"abc", size=2**32 - 1), "beyond the payload"),
]
WRONG_MEANING = [
    (record(2, 0, 1, b"") + record(1, 9, 1, b""), "before its predecessor"),
    (record(2, 1, 1, b"") + record(2, 0, 1, b""), "before its predecessor"),
    (record(1, 0, 0, b"abc"), "without a pair count"),
    (record(1, 0, 0, GOLDEN_ENTRY[:-1]), "beyond its body"),
    (record(1, 0, 0, GOLDEN_ENTRY + b"x"), "after an entry's last value"),
    (record(1, 0, 2, b"\5\0\0\0abcd"), "dead letter"),
    (record(1, 0, 2, b""), "dead letter"),
]


@pytest.mark.parametrize(("payload", "words"), WRONG_STRUCTURE)
def test_wrong_structure_is_refused_by_all(payload: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        unpack_records(payload)
    for count in range(4):
        with pytest.raises(ValueError, match=words if count >= 2 else None):
            check_records(payload, count)


@pytest.mark.parametrize(("payload", "words"), WRONG_MEANING)
def test_wrong_meaning_is_refused_by_check(payload: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_records(payload, len(unpack_records(payload)))


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "more records"), (1, "more records"), (3, "fewer records"), (2**64 - 1, "fewer"), (-1, "count"), (2**64, "count")],
)
def test_check_refuses_another_count(count: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_records(GOOD, count)


def test_check_accepts_equal_positions_empty_payload_and_cut_dead_letters() -> None:
    check_records(GOOD, 2)
    check_records(b"", 0)
    check_records(record(5, 5, 1, b"a") + record(5, 5, 1, b"b"), 2)
    check_records(record(5, 5, 2, b"\2\0\0\0{}" + GOLDEN_ENTRY[:7]), 1)


def test_check_tells_where() -> None:
    with pytest.raises(ValueError, match="byte 27 of 51"):
        check_records(record(1, 0, 1, b"abc") + record(1, 0, 9, b""), 2)

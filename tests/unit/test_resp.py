"""The scan of XREAD replies: shapes, verdicts, bounds. That chunks do not matter is in tests/property."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

import pytest

from hdad._core import Record, Ring, XReadReply, check_records, decode_entry, detach_records, encode_entry, measure_records, unpack_records
from hdad.record import RecordKind

BYTES_MAX = 1 << 20
Pairs = list[tuple[bytes, bytes]]
Streams = dict[bytes, list[tuple[str, Pairs | None]]]


def bulk(text: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(text), text)


def array(*items: bytes) -> bytes:
    return b"*%d\r\n" % len(items) + b"".join(items)


def entry(entry_id: str, pairs: Pairs | None) -> bytes:
    body = b"*-1\r\n" if pairs is None else array(*(bulk(text) for pair in pairs for text in pair))
    return array(bulk(entry_id.encode()), body)


def resp2(streams: Streams) -> bytes:
    return array(*(array(bulk(name), array(*(entry(*item) for item in items))) for name, items in streams.items()))


def resp3(streams: Streams) -> bytes:
    return b"%%%d\r\n" % len(streams) + b"".join(bulk(name) + array(*(entry(*item) for item in items)) for name, items in streams.items())


STREAMS: Streams = {
    b"telemetry:1": [("1700000000000-0", [(b"a", b"1"), (b"bb", b"22")]), ("1700000000000-1", [(b"c", b"x" * 1000)])],
    b"": [("0-1", [(b"", b"")])],
    b"telemetry:2": [
        ("18446744073709551615-18446744073709551615", [(b"\r\n$1\r\n", b"\0\xff")]),
    ],
}


def feed(reply: XReadReply, data: bytes) -> bool:
    done = reply.commit(0)
    while data:
        view = reply.space()
        part = data[: len(view)]
        view[: len(part)] = part
        done = reply.commit(len(part))
        data = data[len(part) :]
    return done


def parse(data: bytes, bytes_max: int = BYTES_MAX) -> XReadReply:
    reply = XReadReply(bytes_max)
    assert feed(reply, data)
    return reply


def contents(reply: XReadReply) -> Streams:
    return {
        row[0]: [(str(record.position), decode_entry(record.body)) for record in reply.records(index, "s")]
        for index, row in enumerate(reply.streams)
    }


@pytest.mark.parametrize("encode", [resp2, resp3])
def test_streams_are_read_in_both_protocols(encode: object) -> None:
    reply = parse(resp2(STREAMS) if encode is resp2 else resp3(STREAMS))
    assert reply.kind == "streams"
    assert reply.error == b""
    assert contents(reply) == STREAMS
    assert reply.streams[0] == (b"telemetry:1", 2, 1700000000000, 0, 1700000000000, 1)
    assert reply.streams[2][2:] == (2**64 - 1,) * 4


def test_resp3_fields_as_a_map_and_verbatim_strings_are_read() -> None:
    data = b"%1\r\n" + b"=5\r\ntxt:s\r\n" + array(array(bulk(b"1-1"), b"%1\r\n" + b"=7\r\ntxt:abc\r\n" + bulk(b"v")))
    assert contents(parse(data)) == {b"s": [("1-1", [(b"abc", b"v")])]}


@pytest.mark.parametrize("data", [b"*-1\r\n", b"_\r\n", b"$-1\r\n"])
def test_null_replies_are_nil(data: bytes) -> None:
    reply = parse(data)
    assert (reply.kind, reply.streams, reply.partial_id()) == ("nil", [], None)


@pytest.mark.parametrize("data", [b"*0\r\n", b"%0\r\n"])
def test_empty_aggregates_are_no_streams(data: bytes) -> None:
    reply = parse(data)
    assert (reply.kind, reply.streams) == ("streams", [])


@pytest.mark.parametrize("data", [b"-NOAUTH no\r\n", b"!9\r\nNOAUTH no\r\n"])
def test_errors_are_told(data: bytes) -> None:
    reply = parse(data)
    assert (reply.kind, reply.error, reply.streams) == ("error", b"NOAUTH no", [])


OTHERS = [
    b"+OK\r\n",
    b":5\r\n",
    b"$3\r\nabc\r\n",
    b"$0\r\n\r\n",
    b"=7\r\ntxt:abc\r\n",
    b",1.5\r\n",
    b"#t\r\n",
    b"(12345678901234567890123\r\n",
    b"~0\r\n",
    b"~2\r\n:1\r\n:2\r\n",
    array(b":1\r\n"),
    array(bulk(b"a"), bulk(b"b")),
    array(array(bulk(b"s"))),
    array(array(bulk(b"s"), array(), bulk(b"more"))),
    array(array(b":1\r\n", array())),
    array(array(bulk(b"s"), bulk(b"not entries"))),
    array(array(bulk(b"s"), array(bulk(b"1-1")))),
    array(array(bulk(b"s"), array(array(bulk(b"1-1"))))),
    array(array(bulk(b"s"), array(array(b":1\r\n", array())))),
    array(array(bulk(b"s"), array(array(bulk(b"1-1"), b":1\r\n")))),
    array(array(bulk(b"s"), array(array(bulk(b"1-1"), array(bulk(b"odd")))))),
    array(array(bulk(b"s"), array(array(bulk(b"1-1"), array(bulk(b"f"), b":1\r\n"))))),
    array(array(bulk(b"s"), array(array(bulk(b"1-1"), array(bulk(b"f"), b"$-1\r\n"))))),
    array(
        array(
            bulk(b"s"),
            array(
                array(
                    bulk(b"1-1"),
                    array(bulk(b"f"), array(array())),
                ),
                array(),
            ),
        )
    ),
    array(array(bulk(b"s"), array(entry("1-1", [(b"f", b"v")]), b":1\r\n")), array(bulk(b"t"), array())),
    b"%2\r\n" + bulk(b"s") + array(entry("1-1", [])) + b":7\r\n" + array(array(), b"_\r\n"),
    b"%1\r\n:1\r\n|1\r\n+k\r\n+v\r\n:2\r\n",
]


@pytest.mark.parametrize("data", OTHERS)
def test_replies_of_another_shape_are_other_and_end_where_they_end(data: bytes) -> None:
    follower = resp2({b"s": [("1-1", [(b"f", b"v")])]})
    reply = parse(data + follower)
    assert (reply.kind, reply.streams) == ("other", [])
    reply.reset()
    assert reply.buffered == len(follower)
    assert reply.commit(0)
    assert contents(reply) == {b"s": [("1-1", [(b"f", b"v")])]}


@pytest.mark.parametrize("data", OTHERS)
def test_no_proper_prefix_of_another_shape_is_complete(data: bytes) -> None:
    reply = XReadReply(BYTES_MAX)
    for index in range(len(data)):
        assert feed(reply, data[index : index + 1]) is (index == len(data) - 1)


@pytest.mark.parametrize("body", ["*-1", "_", "*0", "$-1", "%0"])
def test_entry_without_a_body_has_no_pairs(body: str) -> None:
    data = array(array(bulk(b"s"), array(array(bulk(b"1-1"), body.encode() + b"\r\n"), entry("1-2", [(b"f", b"v")]))))
    assert contents(parse(data)) == {b"s": [("1-1", []), ("1-2", [(b"f", b"v")])]}


@pytest.mark.parametrize("empty", [b"*0\r\n", b"*-1\r\n", b"_\r\n"])
def test_stream_without_entries_has_zeros(empty: bytes) -> None:
    reply = parse(array(array(bulk(b"s"), empty), array(bulk(b"t"), array(entry("7-8", [])))))
    assert reply.streams == [(b"s", 0, 0, 0, 0, 0), (b"t", 1, 7, 8, 7, 8)]
    assert reply.partial_id() == (b"t", 7, 8)
    assert reply.records(0, "s") == []
    assert reply.pack(0, 0, bytearray(10), 100) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "before", [b">2\r\n+invalidate\r\n*1\r\n$1\r\nk\r\n", b">0\r\n", b"|1\r\n+ttl\r\n:3600\r\n", b">1\r\n%1\r\n+a\r\n*-1\r\n|0\r\n"]
)
def test_pushes_and_attributes_before_a_reply_are_skipped(before: bytes) -> None:
    for data in (resp2(STREAMS), resp3(STREAMS)):
        assert contents(parse(before * 3 + data)) == STREAMS


def test_pushes_alone_are_no_reply_and_take_no_room() -> None:
    reply = XReadReply(1024)
    for _ in range(1000):
        assert feed(reply, b">2\r\n+message\r\n$100\r\n" + b"x" * 100 + b"\r\n") is False
        assert reply.buffered == 0
    assert feed(reply, b"_\r\n") is True


GARBAGE = [
    (b"hello\r\n", "type byte"),
    (b"\r\n", "type byte"),
    (b"*x\r\n", "not a number"),
    (b"*\r\n", "not a number"),
    (b"*-2\r\n", "not a number"),
    (b"*--1\r\n", "not a number"),
    (b"*-\r\n", "not a number"),
    (b"*-0\r\n", "not a number"),
    (b"*?\r\n", "not a number"),
    (b"%-1\r\n", "not a number"),
    (b">-1\r\n", "not a number"),
    (b"!-1\r\n", "not a number"),
    (b"=-1\r\n", "not a number"),
    (b"*1x\r\n", "CR LF"),
    (b"*1\rx", "CR LF"),
    (b"*1\n", "CR LF"),
    (b"*2147483648\r\n", "too large"),
    (b"*18446744073709551617\r\n", "too large"),
    (b"*99999999999999999999999999\r\n", "too large"),
    (b"*000000000000000000001\r\n", "too large"),
    (b"$2147483647\r\n", "too large"),
    (b"$4294967300\r\n", "too large"),
    (b"$18446744073709551617\r\n", "too large"),
    (b"$-2\r\n", "not a number"),
    (b"$3\r\nabcd\r\n", "CR LF"),
    (b"$3\r\nabc\n\n", "CR LF"),
    (b"=3\r\nabc\r\n", "verbatim"),
    (b"=5\r\nabcde\r\n", "verbatim"),
    (b"+OK\n", "CR LF"),
    (b"+\n", "CR LF"),
    (b"_x\r\n", "null"),
    (b"*1\r\n>1\r\n:1\r\n", "push inside"),
    (b"*1\r\n" * 17 + b":1\r\n", "too deep"),
    (b">1\r\n" + b"*1\r\n" * 16 + b":1\r\n", "too deep"),
    (b"*1\r\n" + b"|1\r\n" * 20, "too deep"),
    (array(array(bulk(b"s"), array(array(bulk(b"nonsense"), array())))), "MS-SEQ"),
]
BAD_IDS = [
    "",
    "-",
    "1",
    "1-",
    "-1",
    "1-1-1",
    "1-x",
    "x-1",
    " 1-1",
    "1-1 ",
    "18446744073709551616-0",
    "0-18446744073709551616",
    "99999999999999999999-1",
    "1-+1",
]


@pytest.mark.parametrize(("data", "words"), GARBAGE)
def test_garbage_raises_and_only_clear_goes_on(data: bytes, words: str) -> None:
    for size in (1, len(data)):
        reply = XReadReply(BYTES_MAX)
        with pytest.raises(ValueError, match=words):
            for start in range(0, len(data), size):
                assert not feed(reply, data[start : start + size])
        with pytest.raises(ValueError, match=words):
            reply.commit(0)
        with pytest.raises(ValueError, match="clear"):
            reply.reset()
        reply.clear()
        assert feed(reply, resp2(STREAMS))
        assert contents(reply) == STREAMS


@pytest.mark.parametrize("entry_id", BAD_IDS)
def test_ids_that_are_none_raise(entry_id: str) -> None:
    for follower in ([], [("9-9", [(b"f", b"v" * 200)])]):
        with pytest.raises(ValueError, match="MS-SEQ"):
            parse(resp2({b"s": [(entry_id, [(b"f", b"v")]), *follower]}))


@pytest.mark.parametrize(
    "entry_id",
    [
        "0-0",
        "00001-007",
        "999999999999999999-999999999999999999",
        "1000000000000000000-1000000000000000000",
        "12345678-12345678",
        "123456789-0",
    ],
)
def test_ids_of_all_lengths_are_read(entry_id: str) -> None:
    ms, seq = map(int, entry_id.split("-"))
    reply = parse(resp2({b"s": [(entry_id, [(b"f", b"v" * 200)])]}))
    assert reply.streams == [(b"s", 1, ms, seq, ms, seq)]


@pytest.mark.parametrize(("first", "second"), [("2-0", "1-9"), ("1-1", "1-1"), ("1-2", "1-1")])
def test_ids_that_do_not_grow_raise(first: str, second: str) -> None:
    for pairs in ([], [(b"f", b"v" * 200)]):
        with pytest.raises(ValueError, match="do not grow"):
            parse(resp2({b"s": [(first, pairs), (second, pairs)]}))


def test_ids_start_anew_in_each_stream() -> None:
    streams: Streams = {b"s": [("5-5", [(b"f", b"v")])], b"t": [("1-1", [(b"f", b"v")])]}
    assert contents(parse(resp2(streams))) == streams


# --- packing ---


def test_pack_writes_records_that_read_back() -> None:
    reply = parse(resp2(STREAMS))
    out = bytearray(4096)
    count, used, ms, seq = reply.pack(0, 0, out, BYTES_MAX)
    assert (count, ms, seq) == (2, 1700000000000, 1)
    check_records(memoryview(out)[:used], 2)
    records = unpack_records(out[:used])
    assert [(f"{r[0]}-{r[1]}", decode_entry(r[3])) for r in records] == STREAMS[b"telemetry:1"]
    assert used == reply.entry_size(0, 0) + reply.entry_size(0, 1)
    assert [bytes(r[3]) for r in records] == [record.body for record in reply.records(0, "s")]


def test_pack_stops_when_full_and_goes_on_from_skip() -> None:
    streams: Streams = {b"s": [(f"{index}-0", [(b"field", b"v" * (index % 90))] * (index % 4)) for index in range(1, 300)]}
    reply = parse(resp2(streams))
    for room in (24, 28, 100, 313, 1000):
        skip, found = 0, []
        while skip < 299:
            out = bytearray(b"\xaa" * (room + 64))
            count, used, ms, seq = reply.pack(0, skip, memoryview(out)[:room], BYTES_MAX)
            assert used <= room and out[room:] == b"\xaa" * 64
            if count == 0:
                assert reply.entry_size(0, skip) > room
                skip += 1
                continue
            check_records(memoryview(out)[:used], count)
            records = unpack_records(bytes(out[:used]))
            assert records[-1][:2] == (ms, seq) == (skip + count, 0)
            found += [(f"{r[0]}-{r[1]}", decode_entry(r[3])) for r in records]
            skip += count
        assert found == [item for index, item in enumerate(streams[b"s"]) if reply.entry_size(0, index) <= room]
    assert reply.pack(0, 299, bytearray(100), BYTES_MAX) == (0, 0, 0, 0)


def test_pack_stops_before_an_entry_that_is_too_large() -> None:
    reply = parse(resp2(STREAMS))
    large = reply.entry_size(0, 1) - 24
    out = bytearray(4096)
    assert reply.pack(0, 0, out, large - 1)[::2] == (1, 1700000000000)
    assert reply.pack(0, 1, out, large - 1) == (0, 0, 0, 0)
    assert reply.pack(0, 1, out, large)[0] == 1


def test_pack_into_a_ring() -> None:
    ring, reply = Ring.create(65536), parse(resp2(STREAMS))
    claimed = ring.claim(4096)
    assert claimed is not None
    count, used, _, _ = reply.pack(0, 0, claimed[192:], BYTES_MAX)
    ring.publish(192 + used)
    check_records(ring.poll()[192:], count)


@pytest.mark.parametrize(("stream", "skip"), [(3, 0), (-1, 0), (0, 3), (0, -1), (2**40, 0)])
def test_pack_of_what_is_not_there_raises(stream: int, skip: int) -> None:
    with pytest.raises(IndexError):
        parse(resp2(STREAMS)).pack(stream, skip, bytearray(10), 10)


def test_looking_for_what_is_not_there_raises() -> None:
    reply = parse(resp2(STREAMS))
    for stream, index in ((0, 2), (0, -1), (3, 0)):
        with pytest.raises(IndexError):
            reply.entry_size(stream, index)
    with pytest.raises(IndexError):
        reply.records(0, "s", -1)
    assert reply.records(0, "s", 2) == reply.records(0, "s", 99) == []
    assert [record.position for record in reply.records(0, "s", 1)] == [record.position for record in reply.records(0, "s")[1:]]


def test_records_that_somebody_holds_outlive_their_reply() -> None:
    """A stage may keep some. Their bytes stay what they were, whatever the reply's memory holds next."""
    reply = parse(resp2(STREAMS))
    expected = contents(reply)[b"telemetry:1"]
    kept, also_kept = reply.records(0, "s")[1], reply.records(0, "s")[0].with_value("made")
    reply.reset()
    feed(reply, resp2({b"other": [("1-1", [(b"x", b"y" * 5000)])]}))
    assert contents(reply) == {b"other": [("1-1", [(b"x", b"y" * 5000)])]}
    assert [(str(record.position), decode_entry(record.body)) for record in (also_kept.origin, kept)] == expected
    assert also_kept.body == b"made" and kept.fields == dict(expected[1][1]) and kept.origin is kept


def test_bytes_behind_a_reply_stay_when_somebody_holds_records_of_it() -> None:
    reply = XReadReply(BYTES_MAX)
    following = {b"other": [("1-1", [(b"x", b"y")])]}
    feed(reply, resp2(STREAMS) + resp2(following))
    kept = reply.records(0, "s")
    reply.reset()
    assert reply.commit(0) and contents(reply) == following
    assert [decode_entry(record.body) for record in kept] == [pairs for _, pairs in STREAMS[b"telemetry:1"]]


def test_a_reply_keeps_its_memory_when_nobody_holds_its_records_or_they_are_detached() -> None:
    def memory_of(held: bool, detached: bool) -> bool:
        reply = parse(resp2(STREAMS))
        records = reply.records(0, "s")
        kept = records[1] if held else None
        if detached:
            detach_records(records)
        del records
        before = address_of(reply)
        reply.reset()
        assert kept is None or decode_entry(kept.body) == STREAMS[b"telemetry:1"][1][1]
        return address_of(reply) == before

    assert [memory_of(*flags) for flags in ((False, False), (True, False), (True, True))] == [True, False, True]


def address_of(reply: XReadReply) -> int:
    """Where a reply keeps its bytes."""
    window = (ctypes.c_char * 1).from_buffer(reply.space(1))
    address = ctypes.addressof(window) - reply.buffered
    del window
    return address


@pytest.mark.parametrize(
    "pairs", [[], [(b"a", b"")], [(b"", b"x")], [(b"d", b'{"n": 1}')], [(b"d", b"[1]" + b" " * 300)], [(b"a", b"1"), (b"b", b"2")]]
)
def test_a_record_in_a_reply_and_one_of_bytes_are_the_same(pairs: list[tuple[bytes, bytes]]) -> None:
    def look(get: Callable[[Record], object]) -> list[object]:
        """Each time on new ones: what is asked first decides where it is taken from."""
        own = parse(resp2({b"s": [("5-6", pairs)]})).records(0, "s")[0]
        return [get(own), get(Record("s", (5, 6), RecordKind.ENTRY, encode_entry(pairs)))]

    for get in (
        lambda record: record.data,
        lambda record: record.body,
        lambda record: record.fields,
        lambda record: (record.ms, record.seq, record.position, record.kind, record.stream, record.value, repr(record)),
        lambda record: record.with_fields({b"n": b"m"}).body,
        lambda record: measure_records([record]),
    ):
        one, other = look(get)
        assert one == other


def test_looking_into_an_incomplete_reply_raises() -> None:
    reply = XReadReply(BYTES_MAX)
    feed(reply, resp2(STREAMS)[:-1])
    for look in (
        lambda: reply.kind,
        lambda: reply.streams,
        lambda: reply.records(0, "s"),
        lambda: reply.entry_size(0, 0),
        lambda: reply.pack(0, 0, bytearray(9), 9),
    ):
        with pytest.raises(ValueError, match="not complete"):
            look()
    assert reply.error == b""


# --- buffer ---


def test_reset_keeps_what_follows() -> None:
    reply = parse(resp2(STREAMS) + resp3(STREAMS) + b"_\r\n+O")
    assert contents(reply) == STREAMS
    reply.reset()
    assert reply.commit(0) and contents(reply) == STREAMS
    reply.reset()
    assert reply.commit(0) and reply.kind == "nil"
    reply.reset()
    assert reply.commit(0) is False and reply.buffered == 2
    assert feed(reply, b"K\r\n") and reply.kind == "other"


def test_reset_of_an_incomplete_reply_changes_nothing() -> None:
    reply, data = XReadReply(BYTES_MAX), resp2(STREAMS)
    feed(reply, data[:100])
    reply.reset()
    assert feed(reply, data[100:])
    assert contents(reply) == STREAMS


def test_bytes_after_a_complete_reply_do_not_change_it() -> None:
    reply = parse(resp2(STREAMS))
    assert feed(reply, b"garbage" * 20_000)
    assert contents(reply) == STREAMS


def test_partial_id_appears_with_the_first_id() -> None:
    reply, data = XReadReply(BYTES_MAX), resp2({b"name": [("12-34", [(b"f", b"v" * 50)])]})
    at = data.index(b"12-34") + 7
    for index in range(len(data) - 1):
        feed(reply, data[index : index + 1])
        assert reply.partial_id() == ((b"name", 12, 34) if index + 1 >= at else None)


def test_reply_larger_than_the_bound_raises_when_that_is_known() -> None:
    data = resp2({b"name": [("12-34", [(b"f", b"v" * 5000)])]})
    reply = XReadReply(4096)
    feed(reply, data[:200])
    with pytest.raises(OverflowError, match="4096"):
        reply.space()
    assert reply.partial_id() == (b"name", 12, 34)
    small = resp2({b"name": [(f"{index}-1", [(b"f", b"v" * 50)]) for index in range(100)]})
    reply = XReadReply(4096)
    with pytest.raises(OverflowError):
        feed(reply, small)
    assert reply.buffered == 4096 and reply.partial_id() == (b"name", 0, 1)
    reply.clear()
    assert (reply.buffered, reply.partial_id()) == (0, None)
    assert feed(reply, b"_\r\n")


def test_reply_of_exactly_the_bound_fits() -> None:
    data = resp2({b"name": [("12-34", [(b"f", b"v" * 5000)])]})
    assert contents(parse(data, len(data)))[b"name"][0][0] == "12-34"
    with pytest.raises(OverflowError):
        parse(data, len(data) - 1)


def test_announced_counts_take_no_memory() -> None:
    reply = XReadReply(1024)
    assert feed(reply, b"*2147483647\r\n*2\r\n$1\r\ns\r\n*2147483647\r\n*2\r\n$3\r\n1-1\r\n*2147483646\r\n") is False
    assert reply.partial_id() == (b"s", 1, 1)


def test_space_gives_the_hint_within_the_bound() -> None:
    reply = XReadReply(1 << 20)
    assert len(reply.space(200_000)) >= 200_000
    assert len(reply.space(1 << 30)) == 1 << 20
    with pytest.raises(ValueError, match="hint"):
        reply.space(0)


def test_views_survive_growth_and_the_object() -> None:
    reply = XReadReply(1 << 20)
    old = reply.space(1)
    new = reply.space(1 << 20)
    old[:5] = b"stale"
    new[:4] = b"_\r\n+"
    assert reply.commit(4) and reply.kind == "nil"
    del reply
    gc.collect()
    assert bytes(old[:5]) == b"stale" and bytes(new[:4]) == b"_\r\n+"


@pytest.mark.parametrize("n", [-1, 1 << 20, 2**62])
def test_commit_of_more_than_there_is_space_for_raises(n: int) -> None:
    with pytest.raises(ValueError, match="space for"):
        XReadReply(BYTES_MAX).commit(n)


@pytest.mark.parametrize("bytes_max", [0, -1, 1023, 2**31, 2**64])
def test_impossible_bounds_raise(bytes_max: int) -> None:
    with pytest.raises(ValueError, match="allowed"):
        XReadReply(bytes_max)


def test_reply_that_was_never_initialized_raises() -> None:
    reply = XReadReply.__new__(XReadReply)
    for call in (
        reply.space,
        lambda: reply.commit(0),
        lambda: reply.kind,
        lambda: reply.streams,
        reply.partial_id,
        reply.reset,
        reply.clear,
        lambda: reply.error,
    ):
        with pytest.raises(TypeError, match="not initialized"):
            call()

"""One connection of a link: what it refuses, in words and as what; what it holds back, and when it speaks up."""

from __future__ import annotations

import struct

import pytest
from crc32c import crc32c
from links import FRAME_BYTES_MAX, MS, greeting

from hdad.errors import LocalProtocolError
from hdad.exchange.link.machine import (
    OUT_BYTES_MAX,
    UNREAD_BYTES_MAX,
    Connection,
    Ended,
    Event,
    FrameBegun,
    FrameEnded,
    Greeted,
    Overdue,
    State,
    Told,
)
from hdad.exchange.link.scrutiny import read_hello
from hdad.exchange.link.wire import (
    BODY_BYTES_MAX,
    CHANNELS_MAX,
    REASON_BYTES_MAX,
    Kind,
    Reason,
    Role,
    WireError,
    decode_greeting,
    decode_number,
    decode_subscription,
    decode_words,
    encode,
    encode_bye,
    encode_greeting,
    encode_number,
    encode_piece,
)
from hdad.log.format import FRAME_HEADER_SIZE

START_NS = 1_000 * MS
HELLO = encode(Kind.HELLO, body=encode_greeting(greeting(Role.WORKERS)))


def server() -> Connection:
    return Connection(greeting(Role.WRITER), [Role.WORKERS], is_caller=False, frame_bytes_max=FRAME_BYTES_MAX, now_ns=START_NS)


def hear(connection: Connection, data: bytes, now_ns: int = START_NS) -> list[Event]:
    space = connection.spaces()[0]
    space[: len(data)] = data
    connection.received(len(data), now_ns)
    events = []
    while (event := connection.next_event()) is not None:
        events.append(event)
    return events


def opened() -> Connection:
    connection = server()
    assert isinstance(hear(connection, HELLO)[0], Greeted)
    connection.welcome(greeting(Role.WRITER))
    connection.sent(connection.out_bytes, START_NS)
    return connection


@pytest.mark.parametrize(
    ("whole", "first", "words"),
    [
        (FRAME_BYTES_MAX + 8, FRAME_HEADER_SIZE, "a frame of .* begins with"),
        (4096, FRAME_HEADER_SIZE - 8, "a frame of 4096 bytes begins with"),
        (FRAME_HEADER_SIZE, FRAME_HEADER_SIZE + 8, "begins with"),
    ],
)
def test_a_frame_that_cannot_be_one_is_garbage_with_its_first_piece(whole: int, first: int, words: str) -> None:
    with pytest.raises(WireError, match=words) as caught:
        hear(opened(), encode_piece(Kind.FRAME, 0, first, whole) + bytes(first))
    assert caught.value.reason is Reason.GARBAGE


@pytest.mark.parametrize(("size", "whole"), [(4096, 0), (8, 4096)])
def test_a_later_piece_is_no_larger_than_what_is_missing_and_begins_nothing(size: int, whole: int) -> None:
    connection = opened()
    hear_begin(connection, whole=1024, first=FRAME_HEADER_SIZE)
    with pytest.raises(WireError, match=f"are missing|a piece of {size} bytes"):
        hear(connection, encode_piece(Kind.FRAME, 0, size, whole))


def hear_begin(connection: Connection, whole: int, first: int) -> None:
    data = encode_piece(Kind.FRAME, 0, first, whole) + bytes(first)
    space = connection.spaces()[0]
    space[: len(data)] = data
    connection.received(len(data), START_NS)
    assert connection.next_event() is not None
    connection.place(memoryview(bytearray(whole)))
    assert connection.next_event() is None


def test_a_role_that_is_not_wanted_here_is_garbage() -> None:
    caller = Connection(greeting(Role.WORKERS), [Role.WRITER], is_caller=True, frame_bytes_max=FRAME_BYTES_MAX, now_ns=START_NS)
    with pytest.raises(WireError, match="a FEED here; wanted: WRITER"):
        hear(caller, encode(Kind.WELCOME, body=encode_greeting(greeting(Role.FEED))))


def test_nothing_is_said_before_a_connection_is_open_and_one_good_bye_ends_it() -> None:
    connection = server()
    with pytest.raises(LocalProtocolError, match="CREDIT while greeting"):
        connection.send(Kind.CREDIT)
    with pytest.raises(LocalProtocolError, match="LOG while greeting"):
        connection.send_piece(Kind.LOG, 0, memoryview(bytes(8)), 8)
    connection.bye(Reason.REFUSED, "no")
    size = connection.out_bytes
    connection.bye(Reason.DONE)
    assert connection.out_bytes == size > 0 and connection.state is State.ENDED
    assert hear(connection, HELLO) == [], "after the last word nothing is listened to"


def test_a_bye_tells_why() -> None:
    assert hear(opened(), encode_bye(Reason.CROWDED, "too many")) == [Ended(Reason.CROWDED, "too many")]


def test_pings_are_not_answered_while_the_peer_does_not_read_and_what_it_makes_us_queue_is_bounded() -> None:
    connection = opened()
    while connection.has_room:
        connection.send(Kind.BACK, 0, 0, bytes(BODY_BYTES_MAX))
    assert connection.out_bytes >= OUT_BYTES_MAX
    before = connection.out_bytes
    hear(connection, encode(Kind.PING, 0, 1))
    assert connection.out_bytes == before
    with pytest.raises(WireError, match="wait for a peer that does not read") as caught:
        while connection.out_bytes <= UNREAD_BYTES_MAX:
            connection.send(Kind.BACK, 0, 0, bytes(BODY_BYTES_MAX))
    assert caught.value.reason is Reason.STALLED


def test_bytes_that_the_kernel_does_not_take_for_the_stall_limit_end_the_connection() -> None:
    connection = opened()
    connection.send(Kind.CREDIT, 0, 1)
    connection.sent(0, START_NS + MS)  # the kernel takes none
    connection.sent(0, START_NS + 2 * MS)
    late = START_NS + MS + connection.timeline.stall_ns
    hear(connection, encode(Kind.PONG, 0, 0), late)
    connection.tick(late)
    with pytest.raises(Overdue, match="bytes were not read for") as caught:
        connection.tick(late + MS)
    assert caught.value.reason is Reason.STALLED


def test_a_ping_is_due_when_nothing_was_said_for_its_interval() -> None:
    connection = opened()
    due_ns = connection.due_ns
    assert due_ns == START_NS + connection.timeline.ping_ns
    connection.tick(due_ns - 1)
    assert not connection.out_bytes
    connection.tick(due_ns)
    assert connection.out_bytes


def head(number: int = 1, size: int = 0, channel: int = 0, zero: int = 0) -> bytes:
    rest = struct.pack("<IBBHIQ", size, number, zero, channel, 0, 0)
    return struct.pack("<I", crc32c(rest)) + rest


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (head(number=200), "no message of kind 200"),
        (head(number=int(Kind.PING), zero=7), "reserved bytes 7"),
        (head(number=int(Kind.PING), size=BODY_BYTES_MAX + 1), "at most"),
        (head(number=int(Kind.PING), channel=CHANNELS_MAX), f"channel {CHANNELS_MAX}; there are {CHANNELS_MAX}"),
        (head(number=int(Kind.FRAME), size=0), "the head of a FRAME of 0 bytes"),
    ],
)
def test_a_head_that_no_program_of_ours_sends_is_garbage(data: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        hear(opened(), data)


def changed(offset: int, value: bytes) -> bytes:
    body = bytearray(encode_greeting(greeting(Role.WORKERS)))
    body[offset : offset + len(value)] = value
    return bytes(body)


@pytest.mark.parametrize(
    ("body", "words", "reason"),
    [
        (b"short", "a greeting of 5 bytes", Reason.GARBAGE),
        (changed(0, b"GET / HT"), "something that is not hdad", Reason.GARBAGE),
        (changed(8, b"\2\0"), "the peer speaks version 2", Reason.VERSION),
        (changed(10, b"\x63\0"), "a greeting with role 99", Reason.GARBAGE),
        (changed(120, b"\1"), "a greeting with role", Reason.GARBAGE),
    ],
)
def test_a_greeting_of_something_else_is_refused_and_says_as_what(body: bytes, words: str, reason: Reason) -> None:
    with pytest.raises(WireError, match=words) as caught:
        decode_greeting(body)
    assert caught.value.reason is reason


def test_words_and_bodies_are_bounded_on_both_sides() -> None:
    with pytest.raises(LocalProtocolError, match="with a body of"):
        encode(Kind.BACK, body=bytes(BODY_BYTES_MAX + 1))
    with pytest.raises(WireError, match="bytes of words"):
        decode_words(bytes(REASON_BYTES_MAX + 1), REASON_BYTES_MAX)


@pytest.mark.parametrize("streams", [b"[]", b'{"streams": []}', b'{"generation": 1, "streams": [1]}'])
def test_a_hello_without_streams_that_are_some_is_a_lie_or_garbage(streams: bytes) -> None:
    with pytest.raises(WireError):
        read_hello(memoryview(streams))


def test_a_message_is_understood_when_all_of_it_is_there_however_it_is_cut() -> None:
    connection = opened()
    message = encode(Kind.CLOSE, 3, 0, b"")
    begun = encode_piece(Kind.FRAME, 0, FRAME_HEADER_SIZE, FRAME_HEADER_SIZE)
    assert hear(connection, message[:10]) == []
    (closed,) = hear(connection, message[10:] + begun)
    assert isinstance(closed, Told) and (closed.kind, closed.channel) == (Kind.CLOSE, 3)
    assert hear(connection, bytes(FRAME_HEADER_SIZE - 1)) == [], "the frame's header is not whole"
    space = connection.spaces()[0]
    space[:1] = b"\0"
    connection.received(1, START_NS)
    assert isinstance(connection.next_event(), FrameBegun)


def test_a_body_that_is_not_whole_waits_and_a_long_conversation_needs_no_more_room() -> None:
    caller = Connection(greeting(Role.WORKERS), [Role.WRITER], is_caller=True, frame_bytes_max=FRAME_BYTES_MAX, now_ns=START_NS)
    hear(caller, encode(Kind.WELCOME, body=encode_greeting(greeting(Role.WRITER))))
    message = encode(Kind.BACK, 0, 0, bytes(BODY_BYTES_MAX - 8))
    rest = b""
    for number in range(40):  # cut anew each time, so that the buffer never falls empty
        data = rest + message
        cut = len(data) - 1000 - number
        heard = hear(caller, data[:cut]) if number else hear(caller, message[:cut])
        rest = data[cut:]
        assert all(isinstance(event, Told) and event.kind is Kind.BACK for event in heard)
    assert len(hear(caller, rest)) == 1


def test_pieces_of_a_frame_end_it_when_they_are_as_many_bytes_as_it_has() -> None:
    connection = opened()
    hear_begin(connection, whole=FRAME_HEADER_SIZE + 96, first=FRAME_HEADER_SIZE)
    assert hear(connection, encode_piece(Kind.FRAME, 0, 32, 0) + bytes(32)) == []
    assert hear(connection, encode_piece(Kind.FRAME, 0, 64, 0) + bytes(64)) == [FrameEnded(Kind.FRAME, 0)]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "a subscription of 0 bytes"),
        (struct.pack("<BBHIQQQ", 9, 0, 0, 0, 0, 0, 0), "a subscription from 9"),
        (struct.pack("<BBHIQQQ", 0, 16, 0, 0, 0, 0, 0), "with flags 16"),
        (struct.pack("<BBHIQQQ", 0, 0, 5, 0, 0, 0, 0) + b"abc", "a name of 5 bytes, 3 are there"),
        (struct.pack("<BBHIQQQ", 0, 2, 0, 0, 0, 0, 0), "a position is in a lane"),
    ],
)
def test_a_subscription_that_asks_for_nothing_that_there_is_is_garbage(body: bytes, words: str) -> None:
    with pytest.raises(WireError, match=words):
        decode_subscription(body)


def test_numbers_with_words_go_both_ways_and_half_a_number_is_garbage() -> None:
    assert decode_number(encode_number(7, "lapped")) == (7, "lapped")
    with pytest.raises(WireError, match="a number of 3 bytes"):
        decode_number(b"abc")


def test_the_body_is_what_was_sent_or_garbage() -> None:
    message = bytearray(encode(Kind.CLOSE, 1, 0, b""))
    message[0] ^= 1
    with pytest.raises(WireError, match="a CLOSE of 0 bytes is not what was sent"):
        hear(opened(), bytes(message))

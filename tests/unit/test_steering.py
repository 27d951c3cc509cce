"""Control protocol, commands and permissions; messages between processes; counters; discovery. Without processes or sockets."""

from __future__ import annotations

import logging
import random
from typing import Any

import orjson
import pytest

from hdad._core import Ring
from hdad.alarms import Alarms
from hdad.control.commands import COMMANDS, Level, execute
from hdad.control.protocol import (
    Failure,
    Request,
    decode_answer,
    decode_request,
    encode_failure,
    encode_request,
    encode_result,
    split_lines,
)
from hdad.errors import ControlError, ExitStatus, LocalProtocolError, PeerProtocolError
from hdad.exchange.backring import HEAD_SIZE, Message, MessageType, Outbox, decode, encode
from hdad.limits import CONTROL_MESSAGE_BYTES_MAX, LANE_NAME_BYTES_MAX
from hdad.record import Position
from hdad.source.cursor import StreamInfo
from hdad.supervise.standing import Standing
from hdad.worker.discovery import STREAMS_PER_HELLO, Discovery, is_pattern

# -- control -----------------------------------------------------------------------------------------------------------------------------


class Recorder:
    """Operations that note what was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> dict[str, Any]:
            self.calls.append((name, args))
            return {"did": name}

        return call


def test_a_request_and_its_answers_read_as_they_were_written() -> None:
    assert decode_request(encode_request(4, "pause", {"lanes": ["a"]})) == Request(4, "pause", {"lanes": ["a"]})
    assert decode_answer(encode_result(4, {"x": [1]})) == {"x": [1]}
    with pytest.raises(ControlError, match="no") as caught:
        decode_answer(encode_failure(4, Failure(-32000, "no", "do this", ExitStatus.PERMISSION)))
    assert caught.value.hint == "do this" and caught.value.status is ExitStatus.PERMISSION


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"jsonrpc":"1.0","method":"status"}',
        b'{"jsonrpc":"2.0","method":7}',
        b'{"jsonrpc":"2.0","method":"a","params":[1]}',
        b"\xff",
    ],
)
def test_what_is_no_request_is_refused(line: bytes) -> None:
    with pytest.raises(Failure):
        decode_request(line)


@pytest.mark.parametrize("line", [b"", b"{", b"7", b"{}", b'{"error": 3}'])
def test_what_is_no_answer_is_a_protocol_error(line: bytes) -> None:
    with pytest.raises(PeerProtocolError):
        decode_answer(line)


def test_lines_are_cut_as_they_come_in_any_pieces() -> None:
    rng = random.Random(3)
    lines = [b"a" * rng.randrange(1, 50) for _ in range(40)]
    data = b"\n".join(lines) + b"\n"
    buffer, found = bytearray(), []
    while data:
        size = rng.randrange(1, 30)
        buffer += data[:size]
        data = data[size:]
        found += split_lines(buffer)
    assert found == lines and not buffer
    with pytest.raises(PeerProtocolError, match="longer"):
        split_lines(bytearray(CONTROL_MESSAGE_BYTES_MAX + 1))


VALID: dict[str, dict[str, Any]] = {
    "status": {}, "pause": {"lanes": ["a"]}, "resume": {}, "drain": {}, "lane-accept": {"lane": "a", "from": "3-1"}, "reload": {},
    "log-level": {"level": "debug"}, "workers": {"count": 3}, "promote": {}, "demote": {},
}  # fmt: skip


@pytest.mark.parametrize("method", sorted(COMMANDS))
def test_each_command_needs_its_level_and_reaches_the_daemon(method: str) -> None:
    daemon = Recorder()
    request = Request(1, method, VALID[method])
    need = COMMANDS[method].level
    with pytest.raises(Failure, match="may not") as caught:
        execute(request, Level(need - 1), daemon)  # type: ignore[arg-type]
    assert caught.value.status is ExitStatus.PERMISSION and "group" in caught.value.hint and not daemon.calls
    execute(request, need, daemon)  # type: ignore[arg-type]
    assert len(daemon.calls) == 1
    assert (need is Level.READ) == (method == "status")


def test_accept_takes_a_position_or_stays() -> None:
    daemon = Recorder()
    execute(Request(1, "lane-accept", {"lane": "a", "from": "3-1"}), Level.OPERATE, daemon)  # type: ignore[arg-type]
    execute(Request(1, "lane-accept", {"lane": "a"}), Level.OPERATE, daemon)  # type: ignore[arg-type]
    assert daemon.calls == [("accept", ("a", Position(3, 1))), ("accept", ("a", None))]


@pytest.mark.parametrize(
    ("method", "params", "words"),
    [
        ("stats", {}, "allowed: status"),
        ("workers", {}, "count = None"),
        ("workers", {"count": True}, "allowed: a int"),
        ("workers", {"count": "3"}, "allowed: a int"),
        ("workers", {"count": 3, "now": 1}, "unknown parameter 'now'"),
        ("pause", {"lanes": [1]}, "a list of texts"),
        ("lane-accept", {"lane": "a", "from": "x"}, "MS-SEQ"),
    ],
)
def test_wrong_calls_are_refused_in_words(method: str, params: dict[str, Any], words: str) -> None:
    with pytest.raises(Failure, match=words):
        execute(Request(1, method, params), Level.OPERATE, Recorder())  # type: ignore[arg-type]


# -- back ring ---------------------------------------------------------------------------------------------------------------------------


def test_messages_read_as_they_were_written() -> None:
    messages = [
        Message(kind, lane_id=index, lane_epoch=index * 7, position=Position(index, 2**64 - 1), extra=index + 5, name=b"n" * index)
        for index, kind in enumerate(MessageType)
    ]
    assert decode(b"".join(map(encode, messages))) == messages


def test_every_cut_and_every_wrong_head_is_refused() -> None:
    data = encode(Message(MessageType.ASSIGN, 1, name=b"lane"))
    for size in range(1, len(data)):
        with pytest.raises(LocalProtocolError):
            decode(data[:size])
    for offset, value in ((0, 0), (0, 255), (4, 99), (7, 9)):
        changed = bytearray(data)
        changed[offset] = value
        with pytest.raises(LocalProtocolError):
            decode(bytes(changed))
    with pytest.raises(LocalProtocolError, match="at most"):
        encode(Message(MessageType.ASSIGN, 1, name=b"n" * (LANE_NAME_BYTES_MAX + 1)))


def test_the_outbox_keeps_the_newest_of_each_lane_and_sends_when_there_is_room() -> None:
    ring = Ring.create(65536)
    outbox = Outbox()
    blocker = ring.claim(65536 - 2 * HEAD_SIZE)
    assert blocker is not None
    ring.publish(65536 - 2 * HEAD_SIZE)
    for count in range(100):
        outbox.put(Message(MessageType.DURABLE, 1, 1, Position(count, 0)))
        outbox.put(Message(MessageType.ASSIGN, 2, count, name=b"x" * 8))
        outbox.put(Message(MessageType.DURABLE, 3, 1, Position(count, 0)))
    outbox.put(Message(MessageType.WHO))
    outbox.flush(ring)
    ring.release(65536 - 2 * HEAD_SIZE)
    seen = decode(ring.poll())
    assert seen[0].type is MessageType.WHO
    ring.release(len(ring.poll()))
    outbox.flush(ring)
    seen += decode(ring.poll())
    newest = {(message.type, message.lane_id): message for message in seen}
    assert newest[MessageType.DURABLE, 1].position == newest[MessageType.DURABLE, 3].position == Position(99, 0)
    assert newest[MessageType.ASSIGN, 2].lane_epoch == 99
    assert len(seen) == 4


# -- alarms ------------------------------------------------------------------------------------------------------------------------------


def test_an_alarm_is_raised_once_changed_when_its_text_changes_and_ended_once() -> None:
    sent: list[dict[str, Any]] = []

    class Channel:
        def send(self, message: dict[str, Any], /) -> bool:
            sent.append(message)
            return True

    alarms = Alarms(Channel(), logging.getLogger("test"))
    alarms.set("k", "one")
    alarms.set("k", "one")
    alarms.set("k", "two")
    alarms.clear("k")
    alarms.clear("k")
    assert [(item["event"], item.get("text")) for item in sent] == [("alarm", "one"), ("alarm", "two"), ("clear", None)]


# -- discovery ---------------------------------------------------------------------------------------------------------------------------


class Edge:
    """A server of streams: SCAN in pages, XINFO STREAM."""

    def __init__(self, *names: bytes) -> None:
        self.names = list(names)
        self.scans = 0

    def scan(self, cursor: int, pattern: bytes) -> tuple[int, list[bytes]]:
        self.scans += 1
        page = self.names[cursor : cursor + 2]
        return (cursor + 2 if cursor + 2 < len(self.names) else 0), page

    def stream_infos(self, names: list[bytes]) -> list[StreamInfo]:
        return [StreamInfo(3, 10, Position(9, 0), Position(7, 0)) for _ in names]


def discovery(edge: Edge, *streams: str, at_end: bool = False) -> Discovery:
    class Channel:
        def send(self, message: dict[str, Any], /) -> bool:
            return True

    return Discovery(edge, Alarms(Channel(), logging.getLogger("test")), list(streams), at_end)  # type: ignore[arg-type]


def hello(found: Discovery) -> dict[str, Any]:
    streams: dict[str, Any] = {}
    while found.has_unsent:
        some = found.next_hello()
        streams |= some
        found.sent(len(some))
    return streams


def test_patterns_and_names_are_found_in_bounded_rounds() -> None:
    edge = Edge(*(b"s:%d" % index for index in range(50)))
    found = discovery(edge, "s:*", "named")
    rounds = 0
    while found.count < 51:
        found.look()
        rounds += 1
    assert rounds > 1 and edge.scans <= 8 * rounds
    assert len(hello(found)) == 51
    assert found.look() == 0


def test_a_stream_begins_behind_what_was_trimmed_before_or_at_its_end_as_configured() -> None:
    found = discovery(Edge(), "a")
    found.look()
    assert hello(found) == {"a": [0, 0, 7]}
    edge = Edge(b"s:1")
    late = discovery(edge, "s:*", at_end=True)
    late.look()
    assert hello(late) == {"s:1": [9, 0, 10]}
    edge.names.append(b"s:2")
    late.look()
    assert hello(late) == {"s:2": [0, 0, 7]}, "a stream that appears later is read from its beginning"


def test_hellos_are_bounded_and_told_again_to_a_new_writer() -> None:
    found = discovery(Edge(), *(f"n{index}" for index in range(STREAMS_PER_HELLO + 5)))
    found.look()
    assert len(found.next_hello()) == STREAMS_PER_HELLO
    assert len(hello(found)) == STREAMS_PER_HELLO + 5 and not found.has_unsent
    found.restart()
    assert len(hello(found)) == STREAMS_PER_HELLO + 5


def test_a_name_that_is_too_long_is_left_out_with_an_alarm() -> None:
    found = discovery(Edge(b"s" * (LANE_NAME_BYTES_MAX + 1), b"s:1"), "s*")
    found.look()
    assert list(hello(found)) == ["s:1"]
    assert any("at most" in text for text in found._alarms.raised.values())


def test_patterns_are_told_from_names() -> None:
    assert [is_pattern(text) for text in ("a", "a*", "a?", "a[b]", "a:b")] == [False, True, True, True, False]


def test_json_of_the_protocol_is_one_line() -> None:
    line = encode_result(1, {"text": "a\nb"})
    assert line.count(b"\n") == 1 and orjson.loads(line)["result"]["text"] == "a\nb"


def blocked(ring: Ring, left: int) -> int:
    """Fill ``ring`` but for ``left`` bytes. Returns how many that are."""
    size = ring.capacity - left
    assert ring.claim(size) is not None
    ring.publish(size)
    return size


@pytest.mark.parametrize("room", range(5))
def test_an_outbox_without_room_keeps_the_rest_in_its_order(room: int) -> None:
    """WHO, WELCOME, an assignment, a DURABLE: as many as fit go, at each place where it may end."""
    ring = Ring.create(65536)
    outbox = Outbox()
    outbox.put(Message(MessageType.DURABLE, 1, 1, Position(9, 0)))
    outbox.put(Message(MessageType.REVOKE, 2, 1))
    outbox.put(Message(MessageType.WELCOME, extra=3))
    outbox.put(Message(MessageType.WHO))
    assert len(outbox) == 4
    size = blocked(ring, room * HEAD_SIZE)
    outbox.flush(ring)
    assert len(outbox) == 4 - room
    assert ring.release(size) is (room < 4), "the worker is to tell when there is room"
    outbox.flush(ring)
    assert [message.type for message in decode(ring.poll())] == [
        MessageType.WHO, MessageType.WELCOME, MessageType.REVOKE, MessageType.DURABLE
    ]  # fmt: skip


def test_a_cleared_outbox_keeps_the_question_who_is_there() -> None:
    outbox = Outbox()
    for kind in (MessageType.WHO, MessageType.WELCOME, MessageType.ASSIGN, MessageType.DURABLE):
        outbox.put(Message(kind, 1))
    outbox.clear()
    assert len(outbox) == 1 and outbox.who


class Racing:
    """A ring whose consumer makes room just when the producer goes to sleep; ``enough``: as much as it wanted."""

    def __init__(self, enough: bool) -> None:
        self.enough, self.claims, self.awake = enough, 0, False
        self.view = memoryview(bytearray(64))

    def claim(self, size: int) -> memoryview | None:
        self.claims += 1
        return self.view[:size] if self.claims > 1 and self.enough else None

    def producer_sleep(self, size: int) -> bool:
        return True

    def producer_awake(self) -> None:
        self.awake = True

    def publish(self, size: int) -> bool:
        return True


@pytest.mark.parametrize("enough", [False, True])
def test_room_that_comes_while_the_producer_goes_to_sleep_is_used(enough: bool) -> None:
    outbox, ring = Outbox(), Racing(enough)
    outbox.put(Message(MessageType.WHO))
    assert outbox.flush(ring) is enough and ring.awake and len(outbox) == (not enough)


# -- alarms that stand -------------------------------------------------------------------------------------------------------------------


def test_an_alarm_stands_as_long_as_anybody_has_raised_it() -> None:
    standing = Standing()
    standing.set("redis", "one", "worker-0", 5)
    standing.set("redis", "two", "worker-1", 7)
    standing.set("redis", "one more", "worker-0", 9)
    assert standing.all() == {"redis": ("one more", 5, "worker-0")}, "what stands longest, in its newest words"
    standing.clear("redis", "worker-0")
    assert standing.all() == {"redis": ("two", 7, "worker-1")}
    standing.set("lane:a", "gone", "worker-1", 8)
    standing.clear("lane:a", "worker-0")
    standing.clear("nothing", "worker-0")
    assert set(standing.all()) == {"redis", "lane:a"}
    standing.ended("worker-1")
    assert standing.all() == {}

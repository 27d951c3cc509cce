"""Properties of the link: any chunking equals one chunk, codecs both ways, garbage is told as such, and frames arrive in order or not at
all.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from links import FRAME_BYTES_MAX, MS, Pair, data_frame, greeting

from hdad.errors import PeerProtocolError
from hdad.exchange.backring import Message, MessageType
from hdad.exchange.link.inlet import InletState
from hdad.exchange.link.machine import Connection, Event, FrameBegun, FrameEnded
from hdad.exchange.link.scrutiny import read_hello
from hdad.exchange.link.wire import (
    BODY_BYTES_MAX,
    GREETING_SIZE,
    PIECE_BYTES_MAX,
    Greeting,
    Kind,
    Reason,
    Role,
    StartKind,
    Subscription,
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
    encode_subscription,
)
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind
from hdad.record import ORIGIN, Position

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)


# -- chunks --------------------------------------------------------------------------------------------------------------------------------


def script(rng: random.Random) -> bytes:
    """What a worker host may say: a greeting, control messages, frames in pieces, channels mixed."""
    parts = [encode(Kind.HELLO, body=encode_greeting(greeting(Role.WORKERS, node=bytes(16))))]
    left: dict[int, tuple[bytes, int]] = {}
    for _ in range(rng.randrange(1, 25)):
        channel = rng.randrange(3)
        if rng.random() < 0.3:
            parts.append(encode(rng.choice((Kind.OPEN, Kind.GONE, Kind.CLOSE)), channel, rng.randrange(1 << 40)))
            continue
        frame, at = left.pop(channel, (data_frame(channel, 1, 1, rng.choice((0, 5000, 60_000)))[: -rng.randrange(1, 40)], 0))
        size = min(len(frame) - at, rng.choice((FRAME_HEADER_SIZE, 1000, 9000, 20_000, PIECE_BYTES_MAX)))
        parts += [encode_piece(Kind.FRAME, channel, size, 0 if at else len(frame)), frame[at : at + size]]
        if at + size < len(frame):
            left[channel] = frame, at + size
    parts.append(encode_bye(Reason.DONE, "the end"))
    return b"".join(parts)


def events_of(data: bytes, cuts: Sequence[int]) -> tuple[list[Event], list[bytes]]:
    """What the machine makes of ``data`` when it comes in pieces of the sizes ``cuts``, again and again."""
    machine = Connection(greeting(Role.WRITER), (Role.WORKERS,), is_caller=False, frame_bytes_max=FRAME_BYTES_MAX, now_ns=0)
    events: list[Event] = []
    frames: list[bytes] = []
    placed: dict[int, tuple[bytearray, int]] = {}
    at = turn = 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        turn += 1
        received = 0
        for space in machine.spaces():
            piece = data[at + received : at + min(received + len(space), size)]
            space[: len(piece)] = piece
            received += len(piece)
        at += received
        machine.received(received, 1)
        while (event := machine.next_event()) is not None:
            events.append(event)
            if isinstance(event, FrameBegun):
                room = bytearray(event.size + 100)
                placed[event.channel] = room, event.size
                machine.place(memoryview(room))
            elif isinstance(event, FrameEnded):
                room, whole = placed.pop(event.channel)
                assert not any(room[whole:]), "nothing is written behind a frame"
                frames.append(bytes(room[:whole]))
            elif type(event).__name__ == "Greeted":
                machine.welcome(greeting(Role.WRITER))
    return events, frames


@given(seed=st.integers(0, 2**32), cuts=st.lists(st.integers(1, 3000), min_size=1, max_size=20))
@settings(max_examples=120, deadline=None)
def test_any_chunking_equals_one_chunk(seed: int, cuts: list[int]) -> None:
    data = script(random.Random(seed))
    assert events_of(data, cuts) == events_of(data, [1 << 30])


@given(seed=st.integers(0, 2**32), flips=st.lists(st.tuples(st.integers(0, 2**32), st.integers(1, 255)), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_a_changed_byte_is_seen_or_lies_in_a_frame_whose_own_checksums_see_it(seed: int, flips: list[tuple[int, int]]) -> None:
    data = bytearray(script(random.Random(seed)))
    whole = events_of(bytes(data), [1 << 30])
    for at, value in flips:
        data[at % len(data)] ^= value
    try:
        events, frames = events_of(bytes(data), [4096])
    except PeerProtocolError:
        return
    told = [event for event in events if not isinstance(event, FrameBegun)]
    assert told == [event for event in whole[0] if not isinstance(event, FrameBegun)][: len(told)]
    assert len(frames) <= len(whole[1])


@given(data=st.binary(max_size=2000), roles=st.sampled_from(list(Role)), cut=st.integers(1, 500))
@settings(max_examples=300, deadline=None)
def test_garbage_is_a_wire_error_or_waits_for_more(data: bytes, roles: Role, cut: int) -> None:
    machine = Connection(greeting(Role.WRITER), (roles,), is_caller=False, frame_bytes_max=FRAME_BYTES_MAX, now_ns=0)
    try:
        for at in range(0, len(data), cut):
            piece = data[at : at + cut]
            machine.spaces()[0][: len(piece)] = piece
            machine.received(len(piece), 1)
            while machine.next_event() is not None:
                pass
    except WireError as error:
        assert str(error)


# -- codecs --------------------------------------------------------------------------------------------------------------------------------

@given(
    st.builds(
        Greeting, st.sampled_from(list(Role)), st.integers(1, 2**32 - 1), st.binary(min_size=16, max_size=16),
        st.binary(min_size=16, max_size=16), u32, st.integers(0, 64),
        st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=64),
    )
)  # fmt: skip
def test_a_greeting_reads_as_it_was_written(sent: Greeting) -> None:
    data = encode_greeting(sent)
    assert len(data) == GREETING_SIZE and decode_greeting(data) == sent


@given(
    st.sampled_from(list(StartKind)), u64, st.booleans(), st.one_of(st.none(), st.binary(max_size=384)),
    st.one_of(st.none(), st.builds(Position, u64, u64)), st.booleans(),
)  # fmt: skip
def test_a_subscription_reads_as_it_was_written_or_is_refused(
    start: StartKind, from_: int, follows: bool, lane: bytes | None, after: Position | None, skips: bool
) -> None:
    wanted = Subscription(start, from_, follows, lane, after, skips)
    data = encode_subscription(wanted)
    if (after is not None and lane is None) or (start is StartKind.AFTER and after is None):
        with pytest.raises(WireError):
            decode_subscription(data)
    else:
        assert decode_subscription(data) == wanted


@given(st.binary(max_size=500))
def test_no_subscription_or_hello_or_number_is_understood_that_was_not_meant(data: bytes) -> None:
    for decoder in (decode_subscription, decode_greeting, decode_number, read_hello):
        try:
            decoder(memoryview(data))
        except PeerProtocolError:
            continue


@given(st.text(max_size=2000))
def test_words_are_cut_and_made_printable(text: str) -> None:
    encoded = encode_bye(Reason.FAILED, text.encode("utf-8", "replace").decode())
    assert len(encoded) < BODY_BYTES_MAX
    assert decode_words(encoded[24:], 512).isprintable()
    number, words = decode_number(encode_number(2**63, text.encode("utf-8", "replace").decode()))
    assert number == 2**63 and words.isprintable()


# -- two links under any schedule ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_under_any_schedule_what_arrives_is_in_order_and_whole_and_rings_come_free_again(seed: int) -> None:
    """Two workers publish; the writer takes and releases; links and workers die, paths are cut: each ring holds runs of frames in order."""
    rng = random.Random(seed)
    pair = Pair(workers=2, rings=5, rng=rng, capacity=128 * 1024)
    pair.net.delay_ns_max = rng.choice((0, 3, 40)) * MS
    next_to = [1, 1]
    got: dict[tuple[int, int], int] = {}  # (ring, generation) → newest frame
    generation = 1
    counts = {"frames": 0, "gone": 0}
    greeted: dict[int, int] = {}

    def take() -> None:
        for ring in pair.writers:
            for header, frame in ring.frames():
                if header.kind == FrameKind.HELLO:
                    if b"is_gone" in frame[FRAME_HEADER_SIZE:]:
                        counts["gone"] += 1
                        continue
                    greeted[ring.slot.index] = header.lane_epoch
                    worker = int(frame[FRAME_HEADER_SIZE:].split(b'"worker":')[1][:1])
                    ring.say(
                        Message(MessageType.WELCOME, extra=header.lane_epoch),
                        Message(MessageType.ASSIGN, worker + 1, header.lane_epoch, ORIGIN, 0, b"x"),
                    )
                    continue
                counts["frames"] += 1
                key = ring.slot.index, header.lane_epoch
                assert header.to.ms == got.get(key, header.to.ms - 1) + 1, "no gap within an assignment"
                assert header.lane_epoch <= greeted[ring.slot.index]
                got[key] = header.to.ms
            if rng.random() < 0.7:
                ring.release()

    epochs: list[int] = [0, 0]
    shy: set[int] = set()  # workers that have to greet, as soon as their ring has room

    def greet(index: int) -> None:
        worker = pair.workers[index]
        if index in shy and worker.frames.hello({"worker": index, "generation": worker.generation, "is_first": True, "streams": {}}):
            shy.discard(index)

    for _ in range(400):
        pair.run(rng.randrange(4), rng.choice((1, 1, 5, 30)) * MS)
        take()
        for index, worker in enumerate(pair.workers):
            for message in worker.heard():
                if message.type is MessageType.WHO:
                    epochs[index] = 0
                    shy.add(index)
                elif message.type is MessageType.ASSIGN:
                    epochs[index] = message.lane_epoch
                    next_to[index] += 1000
            greet(index)
            size = rng.choice((10, 3000, 30_000))
            if epochs[index] and rng.random() < 0.8 and worker.data(index + 1, epochs[index], next_to[index], size):
                next_to[index] += 1
        if pair.net.cut and rng.random() < 0.05:
            pair.net.cut.clear()
        dice = rng.random()
        if dice < 0.01:
            pair.forwarder_net.die()
            pair.start_forwarder()
        elif dice < 0.02:
            pair.server_net.die()
            pair.start_server()
        elif dice < 0.03:
            pair.net.cut ^= {rng.choice((("writer", "workers"), ("workers", "writer")))}
        elif dice < 0.04:
            index = rng.randrange(2)
            generation += 1
            pair.workers[index].generation = generation
            pair.forwarder.outlets[index].died(generation - 1)
            epochs[index] = 0
            shy.add(index)
    pair.net.cut.clear()
    for _ in range(300):
        pair.run(5, 20 * MS)
        take()
        for ring in pair.writers:
            ring.release()
        for index, worker in enumerate(pair.workers):
            if any(message.type is MessageType.WHO for message in worker.heard()):
                shy.add(index)
            greet(index)
    assert pair.forwarder.is_serving and counts["frames"] > 20
    assert sum(inlet.state is InletState.OPEN for inlet in pair.inlets) <= 2
    assert not any(inlet.state is InletState.CLOSING for inlet in pair.inlets)
    assert all(worker.slot.data.head == worker.slot.data.tail for worker in pair.workers)
    assert not set(pair.server.ends) - {"lost", "silent", "stalled", "done", "crowded"}, pair.server.news

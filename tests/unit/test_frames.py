"""Frames as a worker builds them and the writer scans them, natively; how much a read asks for, and when it waits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hdad._core import Ring, XReadReply, pack_values, scan_frames, seal_frame, unpack_records
from hdad.exchange.slots import RING_BLOCK
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind, decode_header
from hdad.record import ORIGIN, Position
from hdad.worker.frames import FrameBuilder
from hdad.worker.lane import Lane
from hdad.worker.port import ENTRY_BYTES_GUESS, LANES_FEW, RARE_NS, REPLY_BYTES_OF_MANY, REPLY_BYTES_TARGET, Port, _learned

CAPACITY = 64 * 1024
BLOCK_MS = 1000
DATA = int(FrameKind.DATA)


def reply_of(count: int, value: bytes = b"x" * 20) -> XReadReply:
    """XREAD's answer for stream ``s``: ``count`` entries 5-1, 5-2, …"""
    ids = [b"5-%d" % number for number in range(1, count + 1)]
    entries = [b"*2\r\n$%d\r\n%s\r\n*2\r\n$1\r\nf\r\n$%d\r\n%s\r\n" % (len(name), name, len(value), value) for name in ids]
    data = b"*1\r\n*2\r\n$1\r\ns\r\n*%d\r\n%s" % (count, b"".join(entries))
    reply = XReadReply(1 << 20)
    reply.space(len(data))[: len(data)] = data
    assert reply.commit(len(data))
    return reply


def packed(*sizes: int) -> bytearray:
    """Frames one after the other, each with one record of so many bytes, in dirty memory."""
    whole = bytearray()
    for number, size in enumerate(sizes, 1):
        out = bytearray(b"\xaa" * (-(-(FRAME_HEADER_SIZE + 24 + size) // RING_BLOCK) * RING_BLOCK))
        view = memoryview(out)
        _, used = pack_values(view[FRAME_HEADER_SIZE:], [(number, 0, 1, b"v" * size)])
        seal_frame(view, RING_BLOCK, DATA, used, (7, 9), (number - 1, 3), (number, 0), 1, 2, 4, 1, 0, 6, 11)
        whole += out
    return whole


def test_a_sealed_frame_says_all_that_it_was_built_from_and_ends_in_zeros() -> None:
    (frame,) = scan_frames(memoryview(packed(100)), RING_BLOCK, 1)
    header = decode_header(frame.view)
    assert (header.lane_id, header.lane_epoch, header.from_, header.to) == (7, 9, Position(0, 3), Position(1, 0))
    assert (header.record_count, header.entry_count, header.lost_count, header.filtered_count, header.dead_count) == (1, 2, 4, 1, 0)
    assert (header.worker, header.label_ns, header.stored_size, header.raw_size) == (6, 11, 124, 124)
    assert (frame.lane_id, frame.lane_epoch, frame.from_, frame.to, frame.kind) == (7, 9, header.from_, header.to, DATA)
    assert (frame.entry_count, frame.committed_count, frame.lost_count, frame.size) == (2, 1, 4, RING_BLOCK)
    assert unpack_records(frame.payload) == [(1, 0, 1, b"v" * 100)]
    assert not any(frame.view[FRAME_HEADER_SIZE + 124 :]) and not any(frame.view[24:76]), "the writer's part and the rest are zero"


def test_a_scan_gives_whole_frames_and_stops_behind_its_limit() -> None:
    view = memoryview(packed(10, 5000, 20))
    assert [frame.size for frame in scan_frames(view, RING_BLOCK, 1 << 20)] == [RING_BLOCK, 2 * RING_BLOCK, RING_BLOCK]
    assert len(scan_frames(view, RING_BLOCK, 1)) == 1, "one at least, however large"
    assert len(scan_frames(view, RING_BLOCK, RING_BLOCK + 1)) == 2


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data.__setitem__(FRAME_HEADER_SIZE + 30, 0), "not what its worker packed"),
        (lambda data: data.__setitem__(8, 0), "wrong magic"),
        (lambda data: data.__setitem__(16, 9), "another version"),
        (lambda data: data.__setitem__(131, 0x7F), "beyond what is there"),
        (lambda data: data.__delitem__(slice(100, None)), "less than a frame's header"),
    ],
)
def test_a_scan_refuses_what_is_no_frame(damage: object, words: str) -> None:
    data = packed(100)
    damage(data)  # type: ignore[operator]
    with pytest.raises(ValueError, match=words):
        scan_frames(memoryview(data), RING_BLOCK, 1 << 20)


def test_a_frame_that_does_not_fit_its_room_is_refused() -> None:
    with pytest.raises(ValueError, match="a frame of 8192 bytes in 4096"):
        seal_frame(memoryview(bytearray(RING_BLOCK)), RING_BLOCK, DATA, RING_BLOCK, (1, 1), (0, 0), (1, 0), 0, 0, 0, 0, 0, 0, 0)


# -- a worker's frames -----------------------------------------------------------------------------------------------------------------


def test_frames_of_a_reply_are_seen_together_and_those_of_stages_at_once() -> None:
    ring = Ring.create(CAPACITY)
    frames, lanes = FrameBuilder(ring, 3, 8192), [Lane(number, b"s", 9, ORIGIN, ORIGIN) for number in (1, 2)]
    reply = reply_of(5)
    for lane in lanes:
        assert frames.entries(lane, reply, 0, 0, 500, 1 << 20) == 5
    assert not ring.poll() and frames.frames == 2, "the writer sees none of them yet"
    frames.publish()
    found = scan_frames(ring.poll(), RING_BLOCK, 1 << 20)
    assert [(frame.lane_id, frame.to, frame.entry_count) for frame in found] == [(1, Position(5, 5), 5), (2, Position(5, 5), 5)]
    before = ring.tail
    assert frames.values(lanes[0], Position(6, 0), [(6, 0, 1, b"v")], 1, 0, 0)
    assert ring.tail > before and lanes[0].framed == Position(6, 0)


def test_a_full_ring_takes_nothing_and_goes_on_when_there_is_room() -> None:
    ring = Ring.create(CAPACITY)
    frames, lane, reply = FrameBuilder(ring, 0, 8192), Lane(1, b"s", 9, ORIGIN, ORIGIN), reply_of(4)
    built = 0
    while frames.entries(lane, reply, 0, 0, 200, 1 << 20) is not None:
        built += 1
    frames.publish()
    assert built == CAPACITY // RING_BLOCK == len(scan_frames(ring.poll(), RING_BLOCK, 1 << 20))
    ring.release(RING_BLOCK)
    assert frames.entries(lane, reply, 0, 0, 200, 1 << 20) == 4


def test_what_is_announced_is_so_until_it_is_published() -> None:
    ring = Ring.create(CAPACITY)
    assert not ring.is_announced and not ring.announce(), "the consumer is awake"
    assert ring.is_announced
    assert ring.claim(10) is not None
    ring.publish(10)
    assert not ring.is_announced
    ring.consumer_sleep(10)
    assert ring.announce(), "the consumer sleeps: wake him"


# -- how much a read asks for ----------------------------------------------------------------------------------------------------------


def test_a_read_of_many_lanes_asks_for_more_so_that_frames_are_worth_their_cost() -> None:
    port = Port(0, 64 << 20, 100_000, BLOCK_MS, 5000)
    targets = {1: REPLY_BYTES_TARGET, LANES_FEW: REPLY_BYTES_TARGET, LANES_FEW + 1: REPLY_BYTES_OF_MANY, 256: REPLY_BYTES_OF_MANY}
    for lanes, target in targets.items():
        assert port._count(lanes) == max(1, target // (lanes * ENTRY_BYTES_GUESS))
    assert REPLY_BYTES_OF_MANY > 2 * REPLY_BYTES_TARGET


@pytest.mark.parametrize(("waited_ns", "waits_again"), [(RARE_NS, True), (RARE_NS - 1, False)])
def test_a_read_waits_for_many_lanes_again_only_when_entries_are_rare(waited_ns: int, waits_again: bool) -> None:
    """A read that names thousands of lanes and waits costs the server much; where entries come quickly, all are asked in turns before."""
    port = Port(0, 64 << 20, 2000, BLOCK_MS, 5000)
    port._entry_bytes = 200.0
    for number in range(1000):
        port.take(Lane(number, b"s%d" % number, 1, ORIGIN, ORIGIN))
    reply = b"*1\r\n*2\r\n$2\r\ns7\r\n*1\r\n*2\r\n$3\r\n1-0\r\n*2\r\n$1\r\nd\r\n$1\r\nv\r\n"
    incoming = [b""]

    def receive_into(view: memoryview) -> int:
        data = incoming.pop()
        view[: len(data)] = data
        return len(data)

    port.hot = SimpleNamespace(send=lambda _: None, receive_into=receive_into)  # type: ignore[assignment]

    def answered(data: bytes, at_ns: int) -> None:
        incoming.append(data)
        assert port.receive(at_ns) == len(data)

    def may_wait() -> bool:
        assert port.send(0) and port.request is not None
        return port.request.is_blocking

    while not may_wait():  # until all were asked in vain
        answered(b"*-1\r\n", 1)
        port.discard()
    answered(reply, waited_ns)
    assert port.begin() == 1
    assert may_wait() is waits_again


def test_the_size_of_entries_is_learned_up_at_once_and_down_slowly() -> None:
    assert _learned(16_384, 200, False) == 200
    assert _learned(200, 10_000, True) == 10_000
    assert 8000 < _learned(10_000, 200, True) < 10_000

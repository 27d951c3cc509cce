"""What the writer tells a worker when not all of it fits at once."""

from __future__ import annotations

import pytest

from hdad._core import Ring
from hdad.errors import LocalProtocolError
from hdad.exchange.backring import BACK_RING_BYTES, HEAD_SIZE, Message, MessageType, Outbox, decode, encode, encode_durable
from hdad.limits import LANE_NAME_BYTES_MAX
from hdad.record import Position


def drained(ring: Ring) -> list[Message]:
    view = ring.poll()
    found = decode(view)
    size = len(view)
    del view
    ring.release(size)
    return found


def test_durable_is_encoded_as_any_message_is() -> None:
    message = Message(MessageType.DURABLE, 7, 9, Position(3, 4), 5)
    assert encode_durable(7, 9, Position(3, 4), 5) == encode(message)


def test_names_are_bounded() -> None:
    with pytest.raises(LocalProtocolError, match="lane name of"):
        encode(Message(MessageType.ASSIGN, 1, 1, Position(0, 0), 0, bytes(LANE_NAME_BYTES_MAX + 1)))


@pytest.mark.parametrize("who", [False, True])
def test_what_does_not_fit_at_once_goes_out_in_order_as_room_comes_back(who: bool) -> None:
    ring = Ring.create(BACK_RING_BYTES)
    outbox = Outbox()
    lanes = 2 * BACK_RING_BYTES // HEAD_SIZE
    if who:
        outbox.put(Message(MessageType.WHO))
    outbox.put(Message(MessageType.WELCOME, extra=1))
    for lane in range(1, lanes + 1):
        outbox.put(Message(MessageType.DURABLE, lane, 1, Position(lane, 0), lane))
    heard: list[Message] = []
    for _ in range(10):
        outbox.flush(ring)
        heard += drained(ring)
        if not len(outbox):
            break
    kinds = [message.type for message in heard]
    assert kinds[: 1 + who] == [MessageType.WHO] * who + [MessageType.WELCOME]
    assert [message.lane_id for message in heard[1 + who :]] == list(range(1, lanes + 1))


class Released:
    """A ring whose consumer makes room after the first look."""

    def __init__(self) -> None:
        self.ring = Ring.create(BACK_RING_BYTES)
        self.is_full = True

    def claim(self, size: int, /) -> memoryview | None:
        return None if self.is_full else self.ring.claim(size)

    def producer_sleep(self, size: int, /) -> bool:
        self.is_full = False
        return False

    def producer_awake(self) -> None: ...
    def publish(self, size: int, /) -> bool:
        return self.ring.publish(size)


def test_room_that_comes_while_it_is_asked_for_is_used() -> None:
    released, outbox = Released(), Outbox()
    for lane in (1, 2):
        outbox.put(Message(MessageType.DURABLE, lane, 1, Position(lane, 0), lane))
    outbox.flush(released)
    assert not len(outbox) and [message.lane_id for message in drained(released.ring)] == [1, 2]

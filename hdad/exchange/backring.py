"""Messages from the writer to one worker over that worker's back ring: who owns which lane from where, and what is durable.

Owns the bytes of these messages, and the writer's ``Outbox`` of those that did not fit yet. The writer's process encodes, a worker's
decodes. A publish is always whole messages, so what ``Ring.poll`` shows is a whole number of them. Invariant: the outbox is bounded by
the number of lanes (I7), since a newer message about a lane replaces an older one that was not sent yet. Does not ring doorbells.

One message, little-endian, padded with zeros to 8 bytes:
    0 u32 size (of all, with name and padding) | 4 u32 type, and in its top byte how many bytes of padding follow the name (0 to 7)
    8 u64 lane id | 16 u64 lane epoch | 24 u64 ms | 32 u64 seq | 40 u64 extra | 48 name
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple, Protocol

from hdad.errors import LocalProtocolError
from hdad.limits import LANE_NAME_BYTES_MAX
from hdad.record import ORIGIN, Position

_HEAD: Final = struct.Struct("<IIQQQQQ")
HEAD_SIZE: Final = _HEAD.size
MESSAGE_BYTES_MAX: Final = HEAD_SIZE + ((LANE_NAME_BYTES_MAX + 7) & ~7)
BACK_RING_BYTES: Final = 64 * 1024
assert HEAD_SIZE == 48


class MessageType(IntEnum):
    """What the writer tells a worker."""

    ASSIGN = 1  # read this lane, after this position, with this epoch in each frame; extra: the lane's entries so far (read + lost)
    REVOKE = 2  # stop reading this lane; frames still on their way will be dropped as stale
    DURABLE = 3  # everything of this lane up to this position is durable; extra: the lane's entries up to there (read + lost)
    REFUSED = 4  # a frame left a gap: go on reading after this position, with this new epoch; otherwise as ASSIGN
    WHO = 5  # the writer has just started: forget all assignments and say HELLO
    WELCOME = 6  # your HELLO was heard; extra: its generation. What lies before it in the ring was for your predecessor


_DURABLE: Final = int(MessageType.DURABLE)
_TYPES: Final = {int(kind): kind for kind in MessageType}


class Message(NamedTuple):
    """One message. ``name`` is there in ASSIGN and REFUSED only; ``position`` means nothing in REVOKE, WHO and WELCOME."""

    type: MessageType
    lane_id: int = 0
    lane_epoch: int = 0
    position: Position = ORIGIN
    extra: int = 0
    name: bytes = b""


class ProducerRing(Protocol):
    """The side of a ring that this module writes to."""

    def claim(self, n: int, /) -> memoryview | None: ...
    def publish(self, n: int, /) -> bool: ...
    def producer_sleep(self, n: int, /) -> bool: ...
    def producer_awake(self) -> None: ...


def encode(message: Message) -> bytes:
    """The bytes of one message, a multiple of 8. Raises LocalProtocolError if the name is longer than LANE_NAME_BYTES_MAX."""
    name = message.name
    if len(name) > LANE_NAME_BYTES_MAX:
        raise LocalProtocolError(f"lane name of {len(name)} bytes; at most {LANE_NAME_BYTES_MAX}")
    padding = -len(name) & 7
    size = HEAD_SIZE + len(name) + padding
    kind = int(message.type) | padding << 24
    ms, seq = message.position
    return _HEAD.pack(size, kind, message.lane_id, message.lane_epoch, ms, seq, message.extra) + name + bytes(padding)


def encode_durable(lane_id: int, lane_epoch: int, position: tuple[int, int], ordinal: int) -> bytes:
    """DURABLE, by far the most frequent message, without a Message in between."""
    return _HEAD.pack(HEAD_SIZE, _DURABLE, lane_id, lane_epoch, position[0], position[1], ordinal)


def decode(view: memoryview | bytes) -> list[Message]:
    """All messages in ``view`` (what ``Ring.poll`` gave). The caller then releases ``len(view)``. Raises LocalProtocolError (I9)."""
    messages: list[Message] = []
    offset, end = 0, len(view)
    while offset < end:
        if end - offset < HEAD_SIZE:
            raise LocalProtocolError(f"back ring: {end - offset} bytes at the end are less than a message")
        size, kind, lane_id, lane_epoch, ms, seq, extra = _HEAD.unpack_from(view, offset)
        padding = kind >> 24
        if not HEAD_SIZE + padding <= size <= min(MESSAGE_BYTES_MAX, end - offset) or size & 7 or padding > 7:
            raise LocalProtocolError(f"back ring: message of {size} bytes with {padding} of padding at {offset} of {end}")
        message_type = _TYPES.get(kind & 0xFFFFFF)
        if message_type is None:
            raise LocalProtocolError(f"back ring: unknown message type {kind & 0xFFFFFF}")
        name = bytes(view[offset + HEAD_SIZE : offset + size - padding]) if size > HEAD_SIZE else b""
        messages.append(Message(message_type, lane_id, lane_epoch, Position(ms, seq), extra, name))
        offset += size
    return messages


@dataclass(slots=True)
class Outbox:
    """Encoded messages for one worker that are not in its back ring yet. LIMIT: one about assignment and one DURABLE per lane."""

    who: bool = False
    welcome: bytes = b""
    control: dict[int, bytes] = field(default_factory=dict)  # lane id → the newest of ASSIGN, REVOKE, REFUSED
    durable: dict[int, bytes] = field(default_factory=dict)  # lane id → the newest DURABLE

    def put(self, message: Message) -> None:
        """Queue a message; it replaces an older one about the same lane."""
        if message.type is MessageType.WHO:
            self.who = True
        elif message.type is MessageType.WELCOME:
            self.welcome = encode(message)
        elif message.type is MessageType.DURABLE:
            self.durable[message.lane_id] = encode(message)
        else:
            self.control[message.lane_id] = encode(message)

    def clear(self) -> None:
        """Forget everything: the worker it was for is dead. Only WHO stays: its successor may have said HELLO to the writer before."""
        self.welcome = b""
        self.control.clear()
        self.durable.clear()

    def __len__(self) -> int:
        return self.who + bool(self.welcome) + len(self.control) + len(self.durable)

    def flush(self, ring: ProducerRing) -> bool:
        """Move what fits into the ring: WHO, WELCOME, then assignments, then DURABLE. True: the worker sleeps, ring its bell.

        What does not fit stays; then the ring's producer flag is set, so that the worker rings the data bell when it has made room.
        """
        messages = [encode(Message(MessageType.WHO))] if self.who else []
        if self.welcome:
            messages.append(self.welcome)
        messages += self.control.values()
        messages += self.durable.values()
        wake = _send(ring, b"".join(messages))  # almost always all of it fits
        if wake is not None:
            self.who = False
            self.clear()
            return wake
        return self._flush_one_by_one(ring)

    def _flush_one_by_one(self, ring: ProducerRing) -> bool:
        wake = False
        if self.who:
            published = _send(ring, encode(Message(MessageType.WHO)))
            if published is None:
                return wake
            wake, self.who = wake or published, False
        if self.welcome:
            published = _send(ring, self.welcome)
            if published is None:
                return wake
            wake, self.welcome = wake or published, b""
        for queue in (self.control, self.durable):
            while queue:
                lane_id = next(iter(queue))
                published = _send(ring, queue[lane_id])
                if published is None:
                    return wake
                wake = wake or published
                del queue[lane_id]
        return wake


def _send(ring: ProducerRing, data: bytes) -> bool | None:
    """Publish whole messages; None when there is no room (the producer flag is then set)."""
    if len(data) > BACK_RING_BYTES:
        return None
    view = ring.claim(len(data))
    if view is None:
        if not ring.producer_sleep(len(data)):
            return None
        ring.producer_awake()
        view = ring.claim(len(data))
        if view is None:
            return None
    view[: len(data)] = data
    return ring.publish(len(data))

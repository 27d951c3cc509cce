"""The bytes between two hosts: message heads, greetings, subscriptions. Formats: bytes ↔ values only.

Everything is little-endian and of fixed width; reserved bytes are zero and checked. A message is a head of HEAD_SIZE bytes and a body.
The head's CRC32C covers the head, and the body of every message but FRAME and LOG: those carry pieces of a frame, which has checksums of
its own. One field table per structure drives its codec.

A frame travels without the zeros that fill its last block. Its first piece begins with the whole frame header. A FRAME's header_crc field
holds the CRC32C of the header as the worker built it (the writer stamps its own later); a LOG's is the one on the device.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final, NamedTuple

from crc32c import crc32c

from hdad.errors import LocalProtocolError, PeerProtocolError
from hdad.limits import KIB, LANE_NAME_BYTES_MAX
from hdad.log.fields import Field, codec
from hdad.record import ORIGIN, Position

VERSION: Final = 1  # FORMAT: a change of anything here needs a new one
MAGIC: Final = b"HDADLNK1"
BODY_BYTES_MAX: Final = 16 * KIB  # LIMIT: the body of a message that is no piece of a frame
PIECE_BYTES_MAX: Final = 256 * KIB  # LIMIT: one piece; so long may one frame hold up a control message
CHANNELS_MAX: Final = 64  # LIMIT: workers of one host (limits.WORKERS_MAX)
CONTACT_BYTES_MAX: Final = 128
REASON_BYTES_MAX: Final = 512


class Kind(IntEnum):
    """What a message is. FORMAT."""

    HELLO = 1  # the first word of who connects: a greeting
    WELCOME = 2  # the writer's answer: a greeting
    NOT_WRITER = 3  # the writer is not here; body: where it is (UTF-8), or nothing
    OPEN = 4  # channel: a worker wants to be read
    OPENED = 5  # channel: it has a ring here; value: bytes of credit
    FULL = 6  # channel: no ring is free; try again
    FRAME = 7  # channel: a piece of a frame; value: bytes of the whole frame in its first piece, 0 in the others
    CREDIT = 8  # channel; value: ring bytes released since OPENED
    BACK = 9  # channel; body: messages of the back ring, whole ones
    GONE = 10  # channel: the worker is dead; takes GONE_CREDIT bytes of credit
    CLOSE = 11  # channel: the ring may go to another worker
    PING = 12  # value: the sender's clock
    PONG = 13  # value: as in the PING
    BYE = 14  # the last word; value: a Reason; body: words
    SUBSCRIBE = 20  # the second word of a reader: a subscription
    LANE = 21  # value: lane id; body: its name. Comes before the lane's first LOG
    LOG = 22  # a piece of a durable frame; value: as in FRAME
    PROGRESS = 23  # value: next LSN; all before it was sent, or was not asked for
    END = 24  # value: next LSN; all that is durable was sent, and no more was asked for
    LAPPED = 25  # value: the LSN wanted; body: u64 the oldest there is
    DAMAGED = 26  # value: first LSN that is damaged; body: u64 address, then words


class Role(IntEnum):
    """Who greets. FORMAT."""

    WORKERS = 1  # a host with workers, whose frames come
    READER = 2  # a subscriber
    WRITER = 3
    FEED = 4  # serves subscribers


class Reason(IntEnum):
    """Why a connection ends. FORMAT: the value of a BYE. Counted by name."""

    DONE = 0  # drained, or nothing more is wanted
    GARBAGE = 1  # bytes that the protocol does not allow
    LIES = 2  # about lanes, epochs, credit or channels
    SILENT = 3  # nothing heard for the silence limit
    STALLED = 4  # a message begun and not finished, or nothing read, for the stall limit
    VERSION = 5  # of the protocol
    REFUSED = 6  # its name is not among the peers, or the frames do not fit
    CROWDED = 7  # more connections than allowed
    LOST = 8  # the connection broke; never sent
    FAILED = 9  # this side cannot go on; the words say why
    FLOOD = 10  # more control messages than a link can have use for


class WireError(PeerProtocolError):
    """The peer broke the protocol: close the connection, say why, count it. ``reason``: as what."""

    def __init__(self, words: str, reason: Reason = Reason.GARBAGE) -> None:
        super().__init__(words)
        self.reason = reason


HEAD_FIELDS: Final = (
    Field(0, "I", "crc", "sender", "CRC32C of bytes 4 to 24, and of the body unless it is a piece of a frame"),
    Field(4, "I", "size", "sender", "bytes of the body"),
    Field(8, "B", "kind", "sender", "see Kind"),
    Field(9, "B", "reserved", "sender", "zero"),
    Field(10, "H", "channel", "sender", "which worker of the worker host; 0 where it means nothing"),
    Field(12, "I", "reserved_2", "sender", "zero"),
    Field(16, "Q", "value", "sender", "see Kind"),
)
HEAD_SIZE: Final = 24
_HEAD: Final = codec(HEAD_FIELDS, HEAD_SIZE)
_CRC: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
GREETING_FIELDS: Final = (
    Field(0, "8s", "magic", "sender", "HDADLNK1"),
    Field(8, "H", "version", "sender", "1"),
    Field(10, "H", "role", "sender", "see Role"),
    Field(12, "I", "silence_ms", "sender", "it gives up a peer that was not heard for so long"),
    Field(16, "16s", "node", "sender", "identity of the process: random, new with each start"),
    Field(32, "16s", "log_uuid", "sender", "of the log it writes; zero: it knows none"),
    Field(48, "I", "frame_bytes_max", "sender", "the largest frame it makes or takes"),
    Field(52, "I", "workers", "sender", "of a worker host: channels it may open"),
    Field(56, "64s", "name", "sender", "of the host, UTF-8, ends with zeros"),
    Field(120, "8s", "reserved", "sender", "zero"),
)
GREETING_SIZE: Final = 128
_GREETING: Final = codec(GREETING_FIELDS, GREETING_SIZE)
NAME_BYTES_MAX: Final = 64
SUBSCRIPTION_FIELDS: Final = (
    Field(0, "B", "start", "reader", "0 the oldest there is, 1 an LSN, 2 a time, 3 the end, 4 after the position"),
    Field(1, "B", "flags", "reader", "1 follow, 2 only after the position, 4 go around damage, 8 only the lane named"),
    Field(2, "H", "name_size", "reader", "bytes of the lane's name, which follows"),
    Field(4, "I", "reserved", "reader", "zero"),
    Field(8, "Q", "from", "reader", "LSN, or wall clock in ns"),
    Field(16, "Q", "after_ms", "reader", "position in the lane"),
    Field(24, "Q", "after_seq", "reader", ""),
)
SUBSCRIPTION_SIZE: Final = 32
_SUBSCRIPTION: Final = codec(SUBSCRIPTION_FIELDS, SUBSCRIPTION_SIZE)
PIECES: Final = frozenset((Kind.FRAME, Kind.LOG))
_KINDS: Final = {int(kind): kind for kind in Kind}
GONE_CREDIT: Final = 4096  # ring bytes that the news of a death takes


class Head(NamedTuple):
    """A message head that is right, its CRC included unless the body is needed for that."""

    crc: int
    size: int
    kind: Kind
    channel: int
    value: int


class Greeting(NamedTuple):
    """Who is there, and what fits."""

    role: Role
    silence_ms: int
    node: bytes
    log_uuid: bytes
    frame_bytes_max: int
    workers: int
    name: str


class StartKind(IntEnum):
    """Where a subscription begins. FORMAT."""

    OLDEST = 0
    LSN = 1
    TIME = 2
    END = 3
    AFTER = 4


class Subscription(NamedTuple):
    """What a reader wants. ``from_``: an LSN or a wall clock in ns, as ``start`` says. ``lane`` None: all lanes."""

    start: StartKind
    from_: int = 0
    is_following: bool = False
    lane: bytes | None = None
    after: Position | None = None
    skips_damage: bool = False


def encode(kind: Kind, channel: int = 0, value: int = 0, body: bytes = b"") -> bytes:
    """A whole message that is no piece of a frame. Raises LocalProtocolError if the body is too long."""
    if len(body) > BODY_BYTES_MAX or kind in PIECES:
        raise LocalProtocolError(f"link: {kind.name} with a body of {len(body)} bytes; at most {BODY_BYTES_MAX}")
    head = _HEAD.pack(0, len(body), kind, 0, channel, 0, value)
    crc = crc32c(body, crc32c(head[4:])) if body else crc32c(head[4:])
    return _CRC.pack(crc) + head[4:] + body


def encode_piece(kind: Kind, channel: int, size: int, whole: int) -> bytes:
    """The head of a piece of a frame. ``whole``: bytes of the frame if this is its first piece, else 0."""
    head = _HEAD.pack(0, size, kind, 0, channel, 0, whole)
    return _CRC.pack(crc32c(head[4:])) + head[4:]


def decode_head(view: memoryview) -> Head:
    """The head at the start of ``view`` (HEAD_SIZE bytes). Raises WireError (I9). A body's CRC is looked at by ``check_body``."""
    crc, size, number, zero, channel, zero_2, value = _HEAD.unpack_from(view)
    kind = _KINDS.get(number)
    if kind is None or zero or zero_2:
        raise WireError(f"link: no message of kind {number}, reserved bytes {zero} and {zero_2}")
    limit = PIECE_BYTES_MAX if kind in PIECES else BODY_BYTES_MAX
    if size > limit:
        raise WireError(f"link: {kind.name} of {size} bytes; at most {limit}")
    if channel >= CHANNELS_MAX:
        raise WireError(f"link: channel {channel}; there are {CHANNELS_MAX}")
    if kind in PIECES and (not size or crc32c(view[4:HEAD_SIZE]) != crc):
        raise WireError(f"link: the head of a {kind.name} of {size} bytes is not what was sent")
    return Head(crc, size, kind, channel, value)


def check_body(head: Head, message: memoryview) -> None:
    """``message``: head and body. Raises WireError if they are not what was sent."""
    if crc32c(message[4:]) != head.crc:
        raise WireError(f"link: a {head.kind.name} of {head.size} bytes is not what was sent")


def encode_greeting(greeting: Greeting) -> bytes:
    """The body of HELLO and WELCOME."""
    name = greeting.name.encode()[:NAME_BYTES_MAX]
    return _GREETING.pack(
        MAGIC, VERSION, greeting.role, greeting.silence_ms, greeting.node, greeting.log_uuid, greeting.frame_bytes_max, greeting.workers,
        name, bytes(8),
    )  # fmt: skip


def decode_greeting(body: memoryview | bytes) -> Greeting:
    """Raises WireError (I9)."""
    if len(body) < GREETING_SIZE:
        raise WireError(f"link: a greeting of {len(body)} bytes; it has {GREETING_SIZE}")
    magic, version, role, silence_ms, node, log_uuid, frame_bytes_max, workers, name, zeros = _GREETING.unpack_from(body)
    if magic != MAGIC:
        raise WireError("link: a greeting of something that is not hdad")
    if version != VERSION:
        raise WireError(f"link: the peer speaks version {version}; this program knows {VERSION}", Reason.VERSION)
    if len(body) != GREETING_SIZE or any(zeros) or not silence_ms or workers > CHANNELS_MAX or role not in Role.__members__.values():
        raise WireError(f"link: a greeting with role {role}, silence {silence_ms} ms, {workers} workers")
    return Greeting(Role(role), silence_ms, node, log_uuid, frame_bytes_max, workers, name.rstrip(b"\0").decode("utf-8", "replace"))


def encode_subscription(wanted: Subscription) -> bytes:
    """The body of SUBSCRIBE."""
    lane = wanted.lane if wanted.lane is not None else b""
    flags = wanted.is_following | (wanted.after is not None) << 1 | wanted.skips_damage << 2 | (wanted.lane is not None) << 3
    after = wanted.after if wanted.after is not None else ORIGIN
    return _SUBSCRIPTION.pack(wanted.start, flags, len(lane), 0, wanted.from_, *after) + lane


def decode_subscription(body: memoryview | bytes) -> Subscription:
    """Raises WireError (I9)."""
    if len(body) < SUBSCRIPTION_SIZE:
        raise WireError(f"link: a subscription of {len(body)} bytes")
    start, flags, name_size, zero, from_, ms, seq = _SUBSCRIPTION.unpack_from(body)
    lane = bytes(body[SUBSCRIPTION_SIZE:])
    if zero or flags > 15 or len(lane) != name_size or name_size > LANE_NAME_BYTES_MAX or start not in StartKind.__members__.values():
        raise WireError(f"link: a subscription from {start} with flags {flags} and a name of {name_size} bytes, {len(lane)} are there")
    has_lane, has_after = bool(flags & 8), bool(flags & 2)
    if (name_size and not has_lane) or (has_after and not has_lane) or (start == StartKind.AFTER and not has_after):
        raise WireError(f"link: a subscription with flags {flags}: a position is in a lane")
    after = Position(ms, seq) if has_after else None
    return Subscription(StartKind(start), from_, bool(flags & 1), lane if has_lane else None, after, bool(flags & 4))


def encode_number(number: int, words: str = "") -> bytes:
    """The body of LAPPED and DAMAGED."""
    return _U64.pack(number) + words.encode()[:REASON_BYTES_MAX]


def decode_number(body: memoryview | bytes) -> tuple[int, str]:
    """Body of LAPPED and DAMAGED: the number, and words or none. Raises WireError."""
    if len(body) < _U64.size:
        raise WireError(f"link: a number of {len(body)} bytes")
    return _U64.unpack_from(body)[0], decode_words(body[_U64.size :], REASON_BYTES_MAX)


def encode_bye(reason: Reason, words: str = "") -> bytes:
    """A BYE."""
    return encode(Kind.BYE, 0, reason, words.encode()[:REASON_BYTES_MAX])


def decode_reason(value: int) -> Reason:
    """Of a BYE; a number that is not known is FAILED."""
    return Reason(value) if value in Reason.__members__.values() else Reason.FAILED


def decode_words(body: memoryview | bytes, bytes_max: int) -> str:
    """Words for people. Raises WireError if they are too many."""
    if len(body) > bytes_max:
        raise WireError(f"link: {len(body)} bytes of words; at most {bytes_max}")
    return "".join(sign if sign.isprintable() else "?" for sign in bytes(body).decode("utf-8", "replace"))

"""The native core: rings in shared memory, records, and the scan of XREAD replies.

Used by every process of the daemon; the C is in hdad/native. Nothing here blocks, locks or makes threads, and an object belongs to one
thread at a time. Whatever is wrong in arguments, in shared memory or in a peer's bytes raises ValueError and never touches foreign
memory. A memoryview keeps alive what it shows.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Self, final

from _typeshed import ReadableBuffer, WriteableBuffer

from hdad.record import Position

@final
class Ring:
    """Bytes between one producer and one consumer process: a sealed memfd, data mapped twice in a row, so that nothing wraps.

    ``head`` and ``tail`` are absolute byte positions that only grow; a page-aligned position is page-aligned in memory. A side that is
    killed leaves the ring as it is: its successor goes on at tail or head. Every call that reads shared memory raises ValueError
    ("corrupt") when head and tail contradict each other.
    """

    @staticmethod
    def create(capacity: int, name: str = "hdad-ring") -> Ring:
        """A new, empty ring; capacity in bytes is a power of two from 64 KiB to 1 GiB. ValueError, OSError."""

    @staticmethod
    def attach(fd: int) -> Ring:
        """A second mapping of the ring behind ``fd``, which the caller keeps. ValueError if it is none of this version; OSError."""

    @property
    def fd(self) -> int:
        """The memfd, close-on-exec. Closed with the object that ``create`` returned."""

    @property
    def capacity(self) -> int:
        """Bytes of data."""

    @property
    def head(self) -> int:
        """First byte not released, as it is in shared memory, unchecked."""

    @property
    def tail(self) -> int:
        """First byte not published, as it is in shared memory, unchecked."""

    def claim(self, n: int, /) -> memoryview | None:
        """Producer: ``n`` writable bytes at tail; None if there is less room. Ends the producer's sleep. ValueError if n > capacity."""

    def publish(self, n: int, /) -> bool:
        """Producer: make the first ``n`` claimed bytes readable; the rest stays claimed. True: the consumer sleeps, ring his bell."""

    def poll(self) -> memoryview:
        """Consumer: everything from head to tail, writable, possibly empty."""

    def view(self, position: int, size: int, /) -> memoryview:
        """Consumer: ``size`` writable bytes from an absolute position; ValueError unless they lie between head and tail."""

    def release(self, n: int, /) -> bool:
        """Consumer: free ``n`` bytes from head on. True: the producer sleeps and has by now the room he waits for, ring his bell."""

    def consumer_sleep(self, seen: int, /) -> bool:
        """Consumer: from now on ``publish`` returns True. Returns True if tail is beyond ``seen`` by now: do not sleep then.

        The flag stays set until ``consumer_awake``, so that a producer killed before he rang loses no wake-up.
        """

    def announce(self) -> bool:
        """Producer: a publish follows at once, it ends this. True: the consumer sleeps, ring his bell early. A hint, never relied on."""

    @property
    def is_announced(self) -> bool:
        """Consumer: a hint that the producer is about to publish."""

    def consumer_awake(self) -> None:
        """Consumer: awake; ``publish`` returns False again."""

    def producer_sleep(self, n: int, /) -> bool:
        """Producer: from now on ``release`` returns True once ``n`` bytes are free. Returns True if they are by now: do not sleep."""

    def producer_awake(self) -> None:
        """Producer: awake; ``release`` returns False again."""

@final
class XReadReply:
    """One reply of XREAD at a time, RESP2 or RESP3, taken in as it arrives; each byte is scanned once.

    ``recv_into(reply.space())``, then ``commit``; when it says True, look at ``kind``, ``pack`` the streams, and ``reset``. Pushes and
    attributes before a reply are skipped. A reply of another shape is walked to its end and is ``"other"``. IndexError for a stream or
    entry that is not there; ValueError for looking into a reply that is not complete.
    """

    def __init__(self, bytes_max: int) -> None:
        """``bytes_max``: hard bound of buffered bytes, 1024 to 2 GiB - 1."""

    def space(self, hint: int = 65536, /) -> memoryview:
        """All free room behind what is buffered, at least ``hint`` bytes if the bound allows.

        OverflowError as soon as it is known that the reply is larger than ``bytes_max``; ``partial_id`` may then tell which entry.
        """

    def commit(self, n: int, /) -> bool:
        """``n`` bytes were written to the space. True: a complete reply is buffered. ValueError on what is not RESP: close the
        connection, then ``clear``."""

    @property
    def kind(self) -> str:
        """Of a complete reply: "streams", "nil" (no data), "error" or "other"."""

    @property
    def buffered(self) -> int:
        """Bytes buffered: those of the reply as far as it is there, and what follows it."""

    @property
    def error(self) -> bytes:
        """The text of an error reply, else empty."""

    @property
    def streams(self) -> list[tuple[bytes, int, int, int, int, int]]:
        """(name, entry_count, first_ms, first_seq, last_ms, last_seq) each; a stream without entries has zeros."""

    def pack(self, stream: int, skip: int, out: WriteableBuffer, entry_bytes_max: int, /) -> tuple[int, int, int, int]:
        """Pack records of a stream's entries from ``skip`` on: (entries_packed, bytes_used, last_ms, last_seq).

        Stops when ``out`` is full or before an entry whose body is larger than ``entry_bytes_max``; bytes of ``out`` beyond
        ``bytes_used`` may have been written over.
        """

    def pack_frame(
        self,
        stream: int,
        skip: int,
        out: memoryview,
        entry_bytes_max: int,
        block: int,
        kind: int,
        lane: tuple[int, int],
        from_: tuple[int, int],
        lost: int,
        worker: int,
        label_ns: int,
        /,
    ) -> tuple[int, int, Position | None]:
        """A whole frame of a stream's entries from ``skip`` on: (entries_packed, size in whole blocks, last position).

        ``lane``: id and epoch. Packs as ``pack`` does; then come header, payload CRC and the zeros behind. 0 entries: nothing was built.
        """

    def entry_size(self, stream: int, index: int, /) -> int:
        """Bytes of the record of one entry: 24 and its body."""

    def records(self, stream: int, name: str, skip: int = 0, /) -> list[Record]:
        """A stream's entries from ``skip`` on, as records of ``name``. Their bytes stay in the reply until asked for; they keep its memory
        until ``detach_records``, and ``reset`` and ``clear`` leave it to them."""

    def partial_id(self) -> tuple[bytes, int, int] | None:
        """(stream name, ms, seq) of the reply's first entry, also of an incomplete reply, if its id is there."""

    def reset(self) -> None:
        """Forget the complete reply and keep what follows it; ``commit(0)`` looks whether that is a complete reply already.

        Does nothing while the reply is incomplete."""

    def clear(self) -> None:
        """Forget everything, as for a new connection."""

@final
class RecordIterator(Iterator[tuple[int, int, int, memoryview]]):
    """The records of a payload, one at a time: (ms, seq, kind, body). ValueError on bad bytes, when it comes to them."""

    def __init__(self, payload: ReadableBuffer) -> None: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> tuple[int, int, int, memoryview]: ...

def pack_values(out: WriteableBuffer, records: Iterable[Record | tuple[int, int, int, ReadableBuffer]], /) -> tuple[int, int]:
    """Pack records, or (ms, seq, kind, body) each, until ``out`` is full: (records_packed, bytes_used). ValueError, OverflowError."""

def unpack_records(payload: ReadableBuffer, /) -> list[tuple[int, int, int, memoryview]]:
    """All records of a payload, bodies as views of it. ValueError on bad bytes."""

def check_records(payload: ReadableBuffer, count: int, /) -> None:
    """ValueError unless the payload is exactly ``count`` records: whole, known kinds, zero reserved bytes, entry bodies well formed,
    positions that never go back."""

def encode_entry(pairs: Iterable[tuple[ReadableBuffer, ReadableBuffer]], /) -> bytes:
    """The body of an entry record."""

def single_value(body: bytes | bytearray | memoryview, /) -> bytes | None:
    """The value of an entry with exactly one field; None when it has none or more. Raises ValueError for bad bytes."""

def decode_entry(body: ReadableBuffer, /) -> list[tuple[bytes, bytes]]:
    """The field-value pairs of an entry body. ValueError on bad bytes."""

@final
class RingFrame:
    """A frame as its worker built it, whole, its payload CRC right. ``view``: its blocks in the ring, writable if the ring's view is."""

    @property
    def kind(self) -> int: ...
    @property
    def lane_id(self) -> int: ...
    @property
    def lane_epoch(self) -> int: ...
    @property
    def from_(self) -> Position: ...
    @property
    def to(self) -> Position: ...
    @property
    def record_count(self) -> int: ...
    @property
    def entry_count(self) -> int: ...
    @property
    def committed_count(self) -> int:
        """Entries of which at least one record is here, dead letters not counted."""

    @property
    def stored_size(self) -> int: ...
    @property
    def filtered_count(self) -> int: ...
    @property
    def dead_count(self) -> int: ...
    @property
    def lost_count(self) -> int: ...
    @property
    def view(self) -> memoryview: ...
    @property
    def payload(self) -> memoryview: ...
    @property
    def size(self) -> int:
        """Bytes of ``view``."""

def scan_frames(view: memoryview, block: int, bytes_max: int, /) -> list[RingFrame]:
    """The frames that lie one after the other in ``view``, each of whole blocks: all of them, or the first ones until ``bytes_max`` bytes
    are passed. ValueError when there is no frame where one should be, one is cut, or a payload is not what its CRC says (I9)."""

def seal_frame(
    out: memoryview,
    block: int,
    kind: int,
    stored_size: int,
    lane: tuple[int, int],
    from_: tuple[int, int],
    to: tuple[int, int],
    record_count: int,
    entry_count: int,
    lost: int,
    filtered: int,
    dead: int,
    worker: int,
    label_ns: int,
    /,
) -> int:
    """Make a frame around a payload that is in its place in ``out``: header, payload CRC, zeros behind. Returns its size."""

def build_header(
    out: WriteableBuffer,
    kind: int,
    payload_crc: int,
    lane: tuple[int, int],
    from_: tuple[int, int],
    to: tuple[int, int],
    record_count: int,
    entry_count: int,
    stored_size: int,
    raw_size: int,
    label_ns: int,
    lost: int,
    filtered: int,
    dead: int,
    worker: int,
    /,
) -> None:
    """A worker's part of a frame's header; the writer's part and what is reserved are zero. ValueError, OverflowError."""

def stamp_header(
    out: memoryview, uuid: bytes, lsn: int, durable_lsn: int, address: int, writer_epoch: int, predecessor_crc: int, /
) -> int:
    """The writer's part, and the header's CRC, which it returns."""

@final
class Record:
    """One record: an entry as Redis had it (``fields``), or a value that a stage made (``value``). Part of the public API.

    ``ms`` and ``seq`` are the entry's ID. Records are values: ``with_value`` and ``with_fields`` make new ones. Bytes are decoded when
    asked for, once: a stage that only looks at one field pays for one.
    """

    def __init__(self, stream: str, position: tuple[int, int], kind: int, body: bytes) -> None:
        """An entry as Redis had it: ``body`` is as ``encode_entry`` makes it. Others are made of it."""

    @property
    def stream(self) -> str: ...
    @property
    def origin(self) -> Record:
        """The entry as it came from Redis: the very object, whatever was made of it."""

    @property
    def kind(self) -> int:
        """0 entry, 1 value, 2 dead letter."""

    @property
    def ms(self) -> int:
        """The first part of the entry's ID."""

    @property
    def seq(self) -> int:
        """The second part of the entry's ID."""

    @property
    def position(self) -> Position:
        """The entry's ID."""

    @property
    def body(self) -> bytes:
        """The bytes that go into the log. Raises TypeError if a stage's value has no JSON (orjson)."""

    @property
    def fields(self) -> dict[bytes, bytes]:
        """The entry's fields. Of a field that stands there twice, the last. Empty for a value."""

    @property
    def value(self) -> bytes | None:
        """The bytes that a stage made; None for an entry."""

    @property
    def data(self) -> Any:
        """The decoded content. Raises ValueError if it should be JSON and is not.

        Of a value: its JSON. Of an entry with one field: the JSON in it, if it begins like an object or array. Of any other entry: a
        dict of text, field by field (bytes that are not UTF-8 become U+FFFD).
        """

    def with_value(self, value: Any, /) -> Record:
        """The same entry with a new value: bytes as they are, text as UTF-8, anything else as JSON (orjson), encoded once, at the end."""

    def with_fields(self, fields: dict[bytes, bytes], /) -> Record:
        """The same entry with other fields."""

def detach_records(records: list[Record], /) -> None:
    """Copy the bytes of those that are referred to by others than this list out of the reply they came in."""

def count_fitting(records: list[Record], start: int, room: int, /) -> int:
    """How many records from ``start`` on fill ``room`` bytes of a frame; the last of them may be more than fits. IndexError, TypeError."""

def gather_records(made: Iterable[object], among: Iterable[Record], /) -> tuple[list[Record], bool, object]:
    """What a stage made, without what is None; whether each comes from an entry of ``among``, in their order; and what is no Record, if
    anything (then nothing behind it was looked at)."""

def encode_records(records: Iterable[Record], /) -> None:
    """Make every body now. TypeError for a value that has no JSON."""

def measure_records(records: Iterable[Record | tuple[int, int, int, bytes]], /) -> tuple[int, int]:
    """(bytes that they take in a frame, from how many different entries they come: those of one entry lie together)."""

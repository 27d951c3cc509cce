"""Every decoder that is written in Python, or reached from it, under atheris: bytes in; a value or one of hdad's own errors out.

    python -m tests.fuzz.decoders TARGET [libFuzzer options] [corpus folders]
    python -m tests.fuzz.decoders --replay      every input of the corpus once, without atheris
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hdad._core import XReadReply, check_records, decode_entry, encode_entry, pack_values, unpack_records
from hdad.config import load
from hdad.control.protocol import Failure, decode_request
from hdad.errors import HdadError
from hdad.exchange.backring import Message, MessageType, decode, encode
from hdad.exchange.link.machine import Connection, FrameBegun, Greeted, State, Told
from hdad.exchange.link.scrutiny import check_header, read_hello, seal
from hdad.exchange.link.wire import (
    Greeting,
    Kind,
    Reason,
    Role,
    StartKind,
    Subscription,
    decode_number,
    decode_subscription,
    encode_bye,
    encode_greeting,
    encode_number,
    encode_piece,
    encode_subscription,
)
from hdad.exchange.link.wire import encode as encode_message
from hdad.fabric import devicemapper, multipathd
from hdad.fabric.facts import Facts
from hdad.fabric.facts import Path as FabricPath
from hdad.fabric.facts import decode as decode_facts
from hdad.fabric.facts import encode as encode_facts
from hdad.fabric.health import Expectations, judge
from hdad.fabric.trends import Trends
from hdad.log.format import FRAME_HEADER_SIZE, Expectation, FrameKind, broken_rules, build_frame_header, decode_header, is_of_log, stamp
from hdad.log.geometry import Geometry
from hdad.log.lanes import LaneRow, decode_rows, encode_rows
from hdad.log.superblock import Lease, Superblock, choose, decode_lease, decode_superblock, encode_lease, encode_superblock
from hdad.record import Position

CORPUS: Final = Path(__file__).parent / "corpus"
UUID: Final = bytes(range(16))


def frame(data: bytes) -> None:
    """A frame header on the device."""
    if len(data) < FRAME_HEADER_SIZE:
        return
    view = memoryview(data)
    header = decode_header(view)
    expected = Expectation(UUID, 1 << 20, 7, 5, 3, 2 << 20, 512)
    broken_rules(view, header, expected)
    is_of_log(view, UUID, 1 << 20)


def superblock(data: bytes) -> None:
    """A superblock copy."""
    if len(data) >= 4096:
        choose([decode_superblock(data[:4096])])


def lease(data: bytes) -> None:
    """A lease block."""
    if len(data) >= 4096:
        decode_lease(data[:4096], UUID)


def lane_table(data: bytes) -> None:
    """The payload of a segment head or LANES frame."""
    decode_rows(data)


def back_ring(data: bytes) -> None:
    """Messages from the writer to a worker; what was understood is written again as it was."""
    messages = decode(data)
    assert all(decode(encode(message)) == [message] for message in messages)


def link(data: bytes) -> None:
    """What another host says: to each side of a link and of a feed, in pieces."""
    if len(data) < 2:
        return
    role, step, rest = list(Role)[data[0] % 4], 1 + data[1], data[2:]
    greeting = Greeting(Role.WRITER, 1000, UUID, UUID, 65536, 1, "fuzz")
    machine = Connection(greeting, (role,), is_caller=role in (Role.WRITER, Role.FEED), frame_bytes_max=65536, now_ns=0)
    for start in range(0, len(rest), step):
        piece = rest[start : start + step]
        received = 0
        for space in machine.spaces():
            part = piece[received : received + len(space)]
            space[: len(part)] = part
            received += len(part)
        machine.received(received, start)
        while (event := machine.next_event()) is not None:
            if isinstance(event, FrameBegun):
                machine.place(memoryview(bytearray(event.size)))
                if event.kind is Kind.FRAME:
                    check_header(event.header, event.size)
            elif isinstance(event, Greeted) and machine.state is State.GREETING:
                machine.welcome(greeting)
            elif isinstance(event, Told) and event.kind is Kind.SUBSCRIBE:
                decode_subscription(event.body)
            elif isinstance(event, Told) and event.kind in (Kind.LAPPED, Kind.DAMAGED):
                decode_number(event.body)
            elif isinstance(event, Told) and event.kind is Kind.BACK:
                decode(event.body)


def remote_hello(data: bytes) -> None:
    """The HELLO of a worker on another host: whatever is understood, the writer can use."""
    content = read_hello(memoryview(data))
    assert all(len(name.encode("latin-1")) <= 384 and len(values) == 3 for name, values in content.get("streams", {}).items())


def records(data: bytes) -> None:
    """The payload of a data frame."""
    try:
        found = unpack_records(data)
    except ValueError:
        return
    for _, _, _, body in found:
        try:
            decode_entry(body)
        except ValueError:
            pass
    try:
        check_records(data, len(found))
    except ValueError:
        pass


def reply(data: bytes) -> None:
    """What Redis says, in pieces."""
    if not data:
        return
    step, rest = 1 + data[0], data[1:]
    parser = XReadReply(65536)
    try:
        for start in range(0, len(rest), step):
            piece = rest[start : start + step]
            parser.space(len(piece))[: len(piece)] = piece
            if parser.commit(len(piece)):
                for index in range(len(parser.streams)):
                    for record in parser.records(index, "s"):
                        decode_entry(record.body)
                return
    except (ValueError, OverflowError):
        return


def config(data: bytes) -> None:
    """A configuration file."""
    with tempfile.NamedTemporaryFile(suffix=".toml") as file:
        file.write(data)
        file.flush()
        load(file.name)


def control(data: bytes) -> None:
    """A line that came over the control socket."""
    try:
        decode_request(data)
    except Failure:
        pass


def multipath(data: bytes) -> None:
    """What multipathd says, in pieces, and what it means."""
    if not data:
        return
    decoder, rest = multipathd.ReplyDecoder(), data[1:]
    for start in range(0, len(rest), 1 + data[0]):
        text = decoder.feed(rest[start : start + 1 + data[0]])
        if text is not None:
            multipathd.parse_failures(text)
            multipathd.parse_polling(text)
            multipathd.merge(Facts("/dev/x"), multipathd.parse_map(text))
            return


def device_mapper(data: bytes) -> None:
    """A line of dmsetup."""
    target = devicemapper.parse_target(data[1:].decode("utf-8", "replace"), is_status=bool(data[:1] > b"a"))
    devicemapper.merge(Facts("/dev/x"), target, target)


def survey(data: bytes) -> None:
    """A survey on a pipe; what was understood is judged, and written again as it was."""
    facts = decode_facts(data)
    judge(facts, Expectations(takeover_s=10, needs_keys=True, block_size=512), Trends())
    assert decode_facts(encode_facts(facts)) == facts


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    target.__name__: target for target in (
        frame, superblock, lease, lane_table, back_ring, link, remote_hello, records, reply, config, control, multipath, device_mapper,
        survey,
    )
}


def examples() -> dict[str, list[bytes]]:
    """Valid inputs to begin with."""
    header = bytearray(4096)
    build_frame_header(
        memoryview(header), kind=FrameKind.DATA, lane_id=1, lane_epoch=2, from_=Position(0, 0), to=Position(5, 0), record_count=1,
        entry_count=1, stored_size=0, payload_crc=0, label_ns=1, lost_count=0, filtered_count=0, dead_count=0, worker=0,
    )  # fmt: skip
    stamp(memoryview(header), uuid=UUID, lsn=7, durable_lsn=6, address=1 << 20, writer_epoch=3, predecessor_crc=5)
    geometry = Geometry(64 << 20, 512, 1 << 20, 60)
    rows = [LaneRow.new(1, b"orders", Position(1, 2), 3), LaneRow.new(2, b"\xff\x00", Position(0, 0), 0)]
    message = Message(MessageType.ASSIGN, 1, 2, Position(3, 4), 5, b"orders")
    out = bytearray(4096)
    _, used = pack_values(out, [(1, 2, 0, encode_entry([(b"f", b"v")])), (1, 3, 1, b"value")])
    xread = b"*1\r\n*2\r\n$1\r\ns\r\n*2\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\nf\r\n$1\r\nv\r\n*2\r\n$3\r\n1-2\r\n*-1\r\n"
    example = Path(__file__).parents[2] / "etc" / "hdad.toml"
    return {
        "frame": [bytes(header)],
        "superblock": [bytes(encode_superblock(Superblock(UUID, 1, 1, geometry, 1)))],
        "lease": [bytes(encode_lease(Lease(0, UUID, UUID, 1, 2, 3, 4, "host")))],
        "lane_table": [bytes(encode_rows(1, rows))],
        "back_ring": [encode(message), encode(message) * 2],
        "link": [bytes([role, step]) + part for role, part in _link_examples() for step in (3, 255)],
        "remote_hello": [b'{"generation":1,"is_first":true,"streams":{"a":[1,2,3]}}', b'{"generation":1,"lost":[1,2,3,4,5]}'],
        "records": [bytes(out[:used])],
        "reply": [bytes([9]) + xread, b"\x03*-1\r\n", b"\xff%1\r\n$1\r\ns\r\n*0\r\n", b"\x20-ERR no\r\n"],
        "config": [example.read_bytes()],
        "multipath": [
            b"\x07" + multipathd.encode_command(
                '{"map":{"name":"x","queueing":"12 chk","path_groups":[{"pri":50,"paths":[{"dev":"sda","dm_st":"active"}]}]}}'
            ),
            b"\xff" + multipathd.encode_command("sda|1|active|ready\n"), b"\xff" + multipathd.encode_command("fail"),
        ],
        "device_mapper": [
            b"a0 8 multipath 1 queue_if_no_path 1 alua 1 1 service-time 0 2 1 8:0 1 8:16 1",
            b"b0 8 multipath 2 0 0 0 1 1 A 0 2 0 8:0 A 0 8:16 F 3",
        ],
        "survey": [encode_facts(Facts("/dev/x", "multipath", paths=(FabricPath("sda", transport="fc", host="host1"),)))],
        "control": [b'{"jsonrpc":"2.0","id":1,"method":"status"}\n'],
    }


def _link_examples() -> list[tuple[int, bytes]]:
    """(number of the role among Role, what it says)."""
    frame = bytearray(4096)
    build_frame_header(
        memoryview(frame), kind=FrameKind.DATA, lane_id=1, lane_epoch=2, from_=Position(0, 0), to=Position(5, 0), record_count=0,
        entry_count=0, stored_size=100, payload_crc=0, label_ns=1, lost_count=0, filtered_count=0, dead_count=0, worker=0,
    )  # fmt: skip
    seal(memoryview(frame))
    size = FRAME_HEADER_SIZE + 100
    pieces = encode_piece(Kind.FRAME, 0, 200, size) + frame[:200] + encode_piece(Kind.FRAME, 0, size - 200, 0) + frame[200:size]

    def greet(kind: Kind, role: Role) -> bytes:
        return encode_message(kind, body=encode_greeting(Greeting(role, 1000, UUID, UUID, 65536, 1, "x")))

    opened = encode_message(Kind.OPEN) + pieces + encode_message(Kind.PING, 0, 7)
    workers = greet(Kind.HELLO, Role.WORKERS) + opened + encode_bye(Reason.DONE)
    back = encode(Message(MessageType.ASSIGN, 1, 2, Position(3, 4), 5, b"orders"))
    writer = greet(Kind.WELCOME, Role.WRITER) + encode_message(Kind.OPENED, 0, 4096) + encode_message(Kind.BACK, body=back)
    wanted = Subscription(StartKind.AFTER, 0, True, b"orders", Position(1, 2))
    reader = greet(Kind.HELLO, Role.READER) + encode_message(Kind.SUBSCRIBE, body=encode_subscription(wanted))
    log = encode_message(Kind.LANE, 0, 1, b"orders") + encode_piece(Kind.LOG, 0, size, size) + frame[:size]
    feed = greet(Kind.WELCOME, Role.FEED) + log + encode_message(Kind.LAPPED, 0, 5, encode_number(7)) + encode_message(Kind.END, 0, 9)
    return [(list(Role).index(Role.WORKERS), workers), (list(Role).index(Role.READER), reader), (list(Role).index(Role.WRITER), writer),
            (list(Role).index(Role.FEED), feed)]  # fmt: skip


def allowed(target: Callable[[bytes], None], data: bytes) -> None:
    """Run it; hdad's own errors, which name what is wrong, are fine."""
    try:
        target(data)
    except HdadError as error:
        assert str(error), "an error without words"


def replay() -> int:
    """All inputs that are kept, once each. Returns how many."""
    count = 0
    for name, target in TARGETS.items():
        for data in [*examples()[name], *(path.read_bytes() for path in sorted((CORPUS / name).glob("*")))]:
            allowed(target, data)
            count += 1
    return count


def main() -> None:
    if sys.argv[1:] == ["--replay"]:
        print(f"{replay()} inputs replayed")
        return
    import atheris

    name = sys.argv.pop(1)
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(examples()[name]):
            (Path(folder) / f"example-{number}").write_bytes(data)
        atheris.instrument_all()
        atheris.Setup([*sys.argv, folder], lambda data: allowed(TARGETS[name], bytes(data)))
        atheris.Fuzz()


if __name__ == "__main__":
    main()

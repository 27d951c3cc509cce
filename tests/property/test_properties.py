"""Properties that hold for all inputs: rings against a deque, codecs both ways, any chunking equals one chunk, any cut is seen."""

from __future__ import annotations

import itertools
import json
from collections import deque

import orjson
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hdad._core import Ring, XReadReply, check_records, decode_entry, encode_entry, pack_values, unpack_records
from hdad.errors import FormatError, LocalProtocolError, PeerProtocolError
from hdad.exchange.backring import Message, MessageType, decode, encode
from hdad.fabric import devicemapper, multipathd
from hdad.fabric.facts import Facts, Group, HostPort, RemotePort, compact, from_plain
from hdad.fabric.facts import Path as FabricPath
from hdad.fabric.health import Expectations, condition, summary
from hdad.fabric.health import judge as judge_paths
from hdad.fabric.tree import clean
from hdad.fabric.trends import History
from hdad.log.format import FRAME_HEADER_SIZE, build_frame_header, decode_header, stamp
from hdad.log.lanes import LaneRow, decode_rows, encode_rows
from hdad.record import Position
from hdad.source.cursor import Finding, StreamInfo, examine
from hdad.writer.admission import Verdict, judge

CAPACITY = 65536
u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)
positions = st.builds(Position, u64, u64)
pairs = st.lists(st.tuples(st.binary(max_size=40), st.binary(max_size=200)), max_size=8)


class RingAgainstDeque(RuleBasedStateMachine):
    """A ring is a queue of bytes with a bound; either side may be replaced at any moment by one that attaches anew."""

    def __init__(self) -> None:
        super().__init__()
        self.owner = Ring.create(CAPACITY)
        self.producer = self.consumer = self.owner
        self.model: deque[int] = deque()
        self.count = 0

    @rule(size=st.integers(1, CAPACITY), published=st.floats(0, 1))
    def produce(self, size: int, published: float) -> None:
        view = self.producer.claim(size)
        if view is None:
            assert size > CAPACITY - len(self.model)
            return
        assert size <= CAPACITY - len(self.model)
        content = bytes((self.count + index) & 0xFF for index in range(size))
        view[:size] = content
        kept = int(size * published)
        self.producer.publish(kept)
        self.model.extend(content[:kept])
        self.count += kept

    @rule(share=st.floats(0, 1))
    def consume(self, share: float) -> None:
        view = self.consumer.poll()
        assert bytes(view) == bytes(self.model)
        size = int(len(view) * share)
        self.consumer.release(size)
        for _ in range(size):
            self.model.popleft()

    @rule()
    def producer_dies_while_it_has_claimed(self) -> None:
        self.producer.claim(min(100, CAPACITY - len(self.model)) or 1)
        self.producer = Ring.attach(self.owner.fd)

    @rule()
    def consumer_dies(self) -> None:
        self.consumer = Ring.attach(self.owner.fd)

    @precondition(lambda self: self.model)
    @rule()
    def a_sleeping_consumer_sees_what_is_there(self) -> None:
        assert self.consumer.consumer_sleep(self.consumer.head)
        self.consumer.consumer_awake()

    @invariant()
    def sizes_agree(self) -> None:
        assert self.owner.tail - self.owner.head == len(self.model) <= CAPACITY


TestRingAgainstDeque = RingAgainstDeque.TestCase
TestRingAgainstDeque.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(pairs)
def test_entries_read_as_they_were_written(content: list[tuple[bytes, bytes]]) -> None:
    assert decode_entry(encode_entry(content)) == content


@given(st.lists(st.tuples(u64, u64, pairs), max_size=10))
def test_payloads_read_as_they_were_written_and_every_cut_is_seen(items: list[tuple[int, int, list[tuple[bytes, bytes]]]]) -> None:
    records = [(ms, seq, 0, encode_entry(content)) for ms, seq, content in sorted(items, key=lambda item: item[:2])]
    out = bytearray(sum(24 + len(body) for _, _, _, body in records))
    assert pack_values(out, records) == (len(records), len(out))
    assert [(ms, seq, kind, bytes(body)) for ms, seq, kind, body in unpack_records(out)] == records
    check_records(out, len(records))
    for size in range(0, len(out), max(1, len(out) // 20)):
        try:
            check_records(out[:size], len(records))
        except ValueError:
            continue
        raise AssertionError(f"a payload cut to {size} bytes passed")


def xread_reply(streams: list[tuple[bytes, list[tuple[int, int, list[tuple[bytes, bytes]]]]]], resp3: bool) -> bytes:
    def bulk(text: bytes) -> bytes:
        return b"$%d\r\n%s\r\n" % (len(text), text)

    parts = [b"%%%d\r\n" % len(streams) if resp3 else b"*%d\r\n" % len(streams)]
    for name, entries in streams:
        parts.append(bulk(name) if resp3 else b"*2\r\n" + bulk(name))
        parts.append(b"*%d\r\n" % len(entries))
        for ms, seq, content in entries:
            flat = b"".join(bulk(item) for pair in content for item in pair)
            parts.append(b"*2\r\n" + bulk(b"%d-%d" % (ms, seq)) + b"*%d\r\n" % (2 * len(content)) + flat)
    return b"".join(parts)


some_entries = st.lists(st.tuples(u64, u64, pairs.filter(bool)), min_size=1, max_size=4, unique_by=lambda item: item[:2]).map(
    lambda entries: sorted(entries, key=lambda item: item[:2])  # the IDs of a stream grow
)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=10), some_entries), min_size=1, max_size=3),
    st.booleans(),
    st.lists(st.integers(1, 200)),
)
def test_a_reply_in_any_pieces_is_the_reply_in_one(
    streams: list[tuple[bytes, list[tuple[int, int, list[tuple[bytes, bytes]]]]]], resp3: bool, cuts: list[int]
) -> None:
    data = xread_reply(streams, resp3)
    reply = XReadReply(1 << 20)
    offset, is_complete = 0, False
    for size in [*cuts, len(data)]:
        piece = data[offset : offset + size]
        reply.space(max(1, len(piece)))[: len(piece)] = piece
        is_complete = reply.commit(len(piece))
        offset += len(piece)
        assert is_complete == (offset == len(data))
        if is_complete:
            break
    assert is_complete and reply.kind == "streams"
    assert [item[0] for item in reply.streams] == [name for name, _ in streams]
    for index, (_, entries) in enumerate(streams):
        assert [(record.ms, record.seq, decode_entry(record.body)) for record in reply.records(index, "s")] == entries


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_bytes_that_are_no_reply_are_refused_or_waited_for(data: bytes) -> None:
    reply = XReadReply(4096)
    try:
        reply.space(max(1, len(data)))[: len(data)] = data
        if reply.commit(len(data)):
            assert reply.kind in ("streams", "nil", "error", "other")
    except ValueError:
        pass


rows = st.builds(LaneRow, st.integers(1, 1000), st.binary(max_size=60), u64, positions, u64, u64, u64, u64, u64, u64, u64, st.booleans())


@given(u64, st.lists(rows, max_size=5))
def test_lane_tables_read_as_they_were_written(sequence: int, table: list[LaneRow]) -> None:
    assert decode_rows(encode_rows(sequence, table)) == (sequence, table)


@given(st.binary(max_size=400))
def test_bytes_that_are_no_lane_table_are_refused(data: bytes) -> None:
    try:
        sequence, table = decode_rows(data)
    except FormatError:
        return
    assert encode_rows(sequence, table) == data


@given(st.binary(max_size=300))
def test_bytes_that_are_no_messages_are_refused(data: bytes) -> None:
    try:
        decode(data)
    except LocalProtocolError:
        pass


@given(st.lists(st.builds(Message, st.sampled_from(MessageType), u64, u64, positions, u64, st.binary(max_size=50)), max_size=5))
def test_messages_read_as_they_were_written(messages: list[Message]) -> None:
    assert decode(b"".join(map(encode, messages))) == messages


@given(st.binary(min_size=16, max_size=16), u64, u64, u64, u64, u32, positions, positions, st.binary(max_size=50))
def test_headers_read_as_they_were_written(
    uuid: bytes, lsn: int, durable: int, address: int, epoch: int, predecessor: int, from_: Position, to: Position, payload: bytes
) -> None:
    view = bytearray(FRAME_HEADER_SIZE)
    build_frame_header(
        memoryview(view), kind=1, lane_id=1, lane_epoch=epoch, from_=from_, to=to, record_count=1, entry_count=2, stored_size=len(payload),
        payload_crc=crc32c(payload), label_ns=lsn, lost_count=durable, filtered_count=3, dead_count=4, worker=5,
    )  # fmt: skip
    crc = stamp(memoryview(view), uuid=uuid, lsn=lsn, durable_lsn=durable, address=address, writer_epoch=epoch, predecessor_crc=predecessor)
    header = decode_header(view)
    assert (header.uuid, header.lsn, header.durable_lsn, header.address, header.writer_epoch) == (uuid, lsn, durable, address, epoch)
    assert (header.predecessor_crc, header.from_, header.to, header.header_crc) == (predecessor, from_, to, crc)


small = st.builds(Position, st.integers(0, 5), st.integers(0, 3))


@given(st.lists(st.tuples(small, small, st.integers(1, 3)), max_size=30))
def test_whatever_is_sent_the_admitted_frames_of_a_lane_are_contiguous(frames: list[tuple[Position, Position, int]]) -> None:
    position, epoch, log = Position(0, 0), 2, []
    for from_, to, frame_epoch in frames:
        if judge(position, epoch, frame_epoch, from_, to) is Verdict.ADMIT:
            log.append((from_, to))
            position = to
    assert all(before[1] == after[0] for before, after in itertools.pairwise(log))
    assert all(from_ < to for from_, to in log)


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_entries_trimmed_before_they_were_read_are_counted_exactly(read: int, added_since: int, trimmed: int) -> None:
    """A stream of entries 1-0, 2-0, …: of ``read + added_since`` the oldest ``trimmed`` are gone."""
    added = read + added_since
    trimmed = min(trimmed, added)
    first = Position(trimmed + 1, 0) if trimmed < added else None
    found = examine(Position(read, 0), read, StreamInfo(added - trimmed, added, Position(added, 0), first))
    assert found.lost == max(0, trimmed - read)
    assert (found.finding is Finding.LOST) == (trimmed > read)


# -- fabric: what multipathd, dmsetup and sysfs say is untrusted ---------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(
        ["map", "name", "sysfs", "queueing", "path_groups", "paths", "dev", "pri", "dm_st", "chk_st", "marginal_st", "selector"]
    ), inner, max_size=6),
    max_leaves=40,
)  # fmt: skip


@given(text=st.text(max_size=300), cuts=st.lists(st.integers(1, 40), max_size=40))
def test_any_chunking_of_multipathds_reply_equals_one(text: str, cuts: list[int]) -> None:
    text = text.rstrip("\0")
    data = multipathd.encode_command(text)
    decoder, found = multipathd.ReplyDecoder(), []
    while data:
        size = cuts.pop() if cuts else len(data)
        found.append(decoder.feed(data[:size]))
        data = data[size:]
    assert found == [None] * (len(found) - 1) + [text]


@given(data=st.binary(max_size=200))
def test_any_bytes_from_multipathd_are_a_reply_or_refused(data: bytes) -> None:
    decoder = multipathd.ReplyDecoder()
    for index in range(len(data)):
        try:
            if decoder.feed(data[index : index + 1]) is not None:
                return
        except PeerProtocolError:
            return


@given(value=json_values, raw=st.text(max_size=100))
def test_any_json_from_multipathd_is_a_map_or_refused(value: object, raw: str) -> None:
    for text in (json.dumps(value), json.dumps({"map": value}), raw):
        try:
            report = multipathd.parse_map(text)
        except PeerProtocolError:
            continue
        assert all(part.isprintable() for part in (report.name, report.queueing, *(path.name for path in report.paths)))
        multipathd.merge(Facts("/dev/x"), report)
    multipathd.parse_failures(raw)
    multipathd.parse_polling(raw)


words = st.lists(st.sampled_from(["0", "1", "2", "3", "-1", "multipath", "A", "F", "E", "8:0", "8:16", "round-robin", "x"]), max_size=30)


@given(found=words, is_status=st.booleans())
def test_any_line_of_dmsetup_is_a_target_or_refused(found: list[str], is_status: bool) -> None:
    try:
        target = devicemapper.parse_target(" ".join(["0", "8", "multipath", *found]), is_status)
    except PeerProtocolError:
        return
    devicemapper.merge(Facts("/dev/x"), target, target)


@given(data=st.binary(max_size=5000))
def test_what_a_driver_says_is_one_printable_line(data: bytes) -> None:
    assert clean(data).isprintable()


conditions = st.sampled_from(["", "running", "offline", "blocked", "transport-offline", "live", "connecting", "quiesce", "x"])
some_paths = st.lists(
    st.builds(
        FabricPath,
        st.text("abc", min_size=1, max_size=3),
        transport=st.sampled_from(["", "fc", "iscsi", "nvme-tcp"]),
        host=st.sampled_from(["", "host1", "host2"]),
        remote=st.sampled_from(["", "r1"]),
        device_state=conditions,
        remote_state=st.sampled_from(["", "Online", "Blocked", "Not Present"]),
        access=st.sampled_from(["", "active/optimized", "standby"]),
        in_map=st.booleans(),
        dm_state=st.sampled_from(["", "active", "failed"]),
        is_marginal=st.booleans(),
        recovery_s=st.none() | st.integers(0, 1000),
        size=st.none() | st.integers(0, 9),
        key=st.none() | st.sampled_from(["", "0x1"]),
    ),
    max_size=6,
)
some_facts = st.builds(
    Facts,
    st.just("/dev/x"),
    kind=st.sampled_from(["multipath", "nvme", "single", "file", "missing"]),
    queueing=st.sampled_from(["", "on", "off", "3 checks", "9 s", "4 s left", "odd"]),
    polling_s=st.none() | st.integers(0, 9),
    paths=some_paths.map(tuple),
    groups=st.just((Group(1, paths=("a", "b", "nowhere")),)),
    hosts=st.just((HostPort("host1", port_name="0x1", port_state="Online", speed="odd", supported_speeds="16 Gbit, odd"),)),
    remote_ports=st.tuples(
        st.builds(RemotePort, st.just("r1"), dev_loss_s=st.none() | st.integers(0, 99), fast_io_fail_s=st.none() | st.integers(0, 99))
    ),
    is_suspended=st.booleans(),
    has_states=st.booleans(),
)


@given(facts=some_facts, takeover_s=st.none() | st.floats(0, 100))
def test_any_facts_are_judged_and_told(facts: Facts, takeover_s: float | None) -> None:
    history = History(condition)
    history.feed(facts)
    trends = history.feed(facts)
    for verdict in judge_paths(facts, Expectations(takeover_s=takeover_s, needs_keys=True, block_size=1), trends):
        assert verdict.level in ("error", "warning") and verdict.text and verdict.remedy
    assert "\n" not in summary(facts)
    assert from_plain(orjson.loads(orjson.dumps(compact(facts)))) == facts

"""The log on a real file with direct I/O: writing, reading beside the writer, proving, and every kind of damage."""

from __future__ import annotations

import random
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from harness import wait_until
from logs import Writing

from hdad import LogReader, Position
from hdad.errors import CorruptionError, DeviceBusyError, DeviceError, ForeignDeviceError, FormatError, GeometryMismatchError, LappedError
from hdad.log.appender import AppendResult
from hdad.log.create import format_log
from hdad.log.format import FrameHeader, FrameKind, is_of_log
from hdad.log.inspect import inspect, verify

pytestmark = pytest.mark.integration
Frames = list[tuple[int, int, FrameHeader]]  # address, bytes, header


@pytest.fixture(params=[512, 4096])
def path(request: pytest.FixtureRequest, folder: Path) -> str:
    name = str(folder / "l")
    format_log(name, size=16 << 20, segment_size=1 << 20, block_size=request.param, label="test")
    return name


def frames_of(path: str) -> Frames:
    """Every frame that lies on the device, found by looking at every block."""
    data = Path(path).read_bytes()
    uuid_ = uuid.UUID(inspect(path)["uuid"]).bytes
    found = []
    for address in range(1 << 20, len(data), 512):
        header = is_of_log(memoryview(data)[address : address + 192], uuid_, address)
        if header is not None:
            found.append((address, -(-(192 + header.stored_size) // 512) * 512, header))
    return sorted(found, key=lambda item: item[2].lsn)


def change(path: str, address: int, content: bytes) -> None:
    with Path(path).open("r+b") as file:
        file.seek(address)
        file.write(content)


def numbers(path: str, **options: object) -> list[int]:
    with LogReader(path, **options) as reader:  # type: ignore[arg-type]
        return [int(dict(record.fields)[b"n"]) for record in reader.records()]


def test_what_was_written_is_read_over_several_writers_and_segments(path: str) -> None:
    for _ in range(3):
        with Writing(path) as writing:
            writing.add("a", 200, 3, text="x" * 3000)
            writing.flush()
            writing.add("b", 5)
    assert numbers(path, lane="a") == list(range(1, 1801))
    assert numbers(path, lane="b") == list(range(1, 16))
    report = verify(path)
    assert report.ok and report.entries == report.committed == 1815 and report.segments > 3, report.violations
    assert inspect(path)["writer_epoch"] == 3


def test_verify_of_an_unharmed_log_is_fine_and_one_altered_bit_anywhere_in_a_frame_is_not(path: str) -> None:
    with Writing(path) as writing:
        writing.add("a", 400, 2, text="y" * 1000)
    assert verify(path).ok
    rng = random.Random(11)
    whole = Path(path).read_bytes()
    frames = [frame for frame in frames_of(path) if frame[2].kind != FrameKind.PADDING]
    for address, _, header in rng.sample(frames, 25):
        offset = address + rng.randrange(192 + header.stored_size)
        change(path, offset, bytes([whole[offset] ^ 1 << rng.randrange(8)]))
        assert not verify(path).ok, f"bit at {offset - address} of LSN {header.lsn} (kind {header.kind})"
        change(path, offset, whole[offset : offset + 1])
    assert verify(path).ok


def test_verify_sees_a_frame_that_is_dropped_repeated_or_put_elsewhere(path: str) -> None:
    with Writing(path) as writing:
        writing.add("a", 50, 2)
    whole = Path(path).read_bytes()
    data = [(address, size) for address, size, header in frames_of(path) if header.kind == FrameKind.DATA]
    for index in (0, 20, 49):  # dropped, the last one too: a lease block calls it durable
        address, size = data[index]
        change(path, address, bytes(size))
        assert any("I5" in text for text in verify(path).violations), index
        change(path, address, whole[address : address + size])
    (first, size), (second, _) = data[10:12]
    change(path, second, whole[first : first + size])  # repeated over its successor
    assert not verify(path).ok
    change(path, second, whole[second : second + size])
    tail = data[-1][0] + data[-1][1]
    change(path, tail, whole[first : first + size])  # repeated behind the end: it does not become part of the log
    report = verify(path)
    assert report.ok and report.entries == 100 and numbers(path) == list(range(1, 101))


def test_every_byte_range_of_a_log_zeroed_is_told_by_verify_inspect_and_reader_without_a_traceback(path: str) -> None:
    with Writing(path) as writing:
        writing.add("a", 300, 2, text="z" * 2000)
    whole = Path(path).read_bytes()
    rng = random.Random(5)
    used = frames_of(path)[-1][0]
    for _ in range(60):
        start, size = rng.randrange(used) // 512 * 512, rng.choice((512, 4096, 65536))
        change(path, start, bytes(size))
        for look in (lambda: verify(path), lambda: inspect(path), lambda: numbers(path), lambda: numbers(path, on_damage="skip")):
            try:
                look()
            except (CorruptionError, ForeignDeviceError, LappedError):
                pass
        change(path, start, whole[start : start + size])
    assert verify(path).ok


# -- reading -----------------------------------------------------------------------------------------------------------------------------


def test_reading_begins_at_an_lsn_a_time_a_position_or_the_end(path: str) -> None:
    with Writing(path) as writing:
        writing.add("a", 100, 1, text="x" * 30_000)
        writing.add("b", 3)
    everything = []
    with LogReader(path) as reader:
        everything = [(record.lsn, record.position.ms) for record in reader.records() if record.lane == "a"]
    for lsn, ms in everything[:: len(everything) // 7]:
        assert numbers(path, start=lsn, lane="a") == list(range(ms, 101))
        assert numbers(path, lane="a", after=Position(ms, 0)) == list(range(ms + 1, 101))
        assert numbers(path, start=datetime.fromtimestamp(ms, UTC), lane="a") == list(range(ms, 101))
    assert numbers(path, start="end") == []
    with pytest.raises(LappedError):
        LogReader(path, 0)


def test_a_reader_beside_a_running_writer_sees_everything_once_in_order_and_nothing_torn(path: str) -> None:
    total, seen, done = 3000, [], threading.Event()
    with Writing(path) as writing, LogReader(path) as reader:

        def read() -> None:
            for record in reader.records(follow=True, timeout_s=30):
                seen.append(record.position.ms)
                if len(seen) == total:
                    break
            done.set()

        thread = threading.Thread(target=read)
        thread.start()
        for start in range(0, total, 10):
            writing.add("a", 1, 10, text="x" * (start % 700))
            writing.flush()
            if start % 100 == 0:
                writing.appender.tick_lease()
        writing.appender.tick_lease()
        thread.join(60)
        assert done.is_set()
    assert seen == list(range(1, total + 1)) and reader.damaged == []


def test_what_is_written_but_not_known_durable_is_not_given_out(path: str) -> None:
    with Writing(path) as writing:
        writing.add("a", 5)
        writing.flush()
        with LogReader(path) as reader:
            assert list(reader.records()) == []  # neither a lease nor a later frame calls them durable yet
            writing.appender.tick_lease()
            assert [record.position.ms for record in reader.records()] == [1, 2, 3, 4, 5]


def test_a_reader_that_is_lapped_is_told_with_the_oldest_lsn(path: str) -> None:
    with Writing(path) as writing:
        writing.add("a", 10)
        writing.flush()
        writing.appender.tick_lease()
        with LogReader(path) as reader:
            records = reader.records()
            next(records)
            for _ in range(40):
                writing.add("a", 20, 1, text="x" * 40_000)
                writing.flush()
            writing.appender.tick_lease()
            with pytest.raises(LappedError) as caught:
                list(records)
        assert caught.value.oldest_lsn > caught.value.wanted_lsn
        got = numbers(path, start=caught.value.oldest_lsn)
        assert got == list(range(got[0], 811))
    assert verify(path).ok


def test_a_reader_goes_around_damage_and_says_where_or_stops(path: str) -> None:
    with Writing(path) as writing:
        writing.add("a", 100, 1)
    address, _, header = next(frame for frame in frames_of(path) if frame[2].kind == FrameKind.DATA and frame[2].to == Position(50, 0))
    change(path, address + 200, b"\xff\xff")
    with pytest.raises(CorruptionError, match=f"LSN {header.lsn}"):
        numbers(path)
    with LogReader(path, on_damage="skip") as reader:
        got = [record.position.ms for record in reader.records()]
        assert got == [*range(1, 50), *range(51, 101)]
        assert [damage.first_lsn for damage in reader.damaged] == [header.lsn]


# -- opening -----------------------------------------------------------------------------------------------------------------------------


def test_a_damaged_log_is_not_opened_until_it_is_accepted_and_then_only_once_asked(path: str) -> None:
    with Writing(path) as writing:
        writing.add("a", 30)
    address, _, header = frames_of(path)[-5]
    change(path, address + 10, b"\0\0\0\0")
    with pytest.raises(CorruptionError, match=f"LSN {header.lsn}"):
        Writing(path)
    with Writing(path, accept_damage=True) as writing:
        assert writing.appender.lanes[1].position == Position(30, 0)
        writing.add("a", 5)
    with Writing(path) as writing:
        writing.add("a", 5)
    assert numbers(path, on_damage="skip")[-10:] == list(range(31, 41))


def test_a_torn_tail_ends_the_log_and_does_not_come_back(path: str) -> None:
    with Writing(path) as writing:
        writing.add("a", 10)
        writing.flush()
        writing.appender.tick_lease()
        writing.add("a", 5)
        torn = None
        while (gather := writing.appender.take()) is not None:  # the write tears: its first block is missing
            torn = gather
            writing.appender.device.write(gather.address, [b"".join(gather.buffers)[:0]] if False else gather.buffers)
        assert torn is not None
        change(path, torn.address, bytes(512))
        writing.appender.completed(torn)
        writing.appender.device.close()
        writing.appender.tick_lease = lambda: None  # type: ignore[method-assign]  # the writer is dead
    with Writing(path) as writing:
        assert writing.appender.lanes[1].position == Position(10, 0)
        writing.add("a", 1)
    assert numbers(path) == list(range(1, 12))
    assert verify(path).ok


def test_two_writers_at_once_are_refused(path: str) -> None:
    with Writing(path), pytest.raises(DeviceBusyError, match="another hdad"):
        Writing(path)


def test_a_file_that_grew_or_shrank_is_refused(path: str) -> None:
    with Path(path).open("ab") as file:
        file.write(bytes(4096))
    with pytest.raises((GeometryMismatchError, ForeignDeviceError)):
        Writing(path)


def test_an_old_superblock_copy_never_wins(path: str) -> None:
    first = Path(path).read_bytes()[:4096]
    with Writing(path):
        pass
    change(path, 0, first)
    assert inspect(path)["writer_epoch"] == 1
    with Writing(path) as writing:
        assert writing.appender.epoch == 2


def test_block_retention_says_full_and_takes_up_again_after_room(path: str) -> None:
    with Writing(path, on_full="block") as writing:
        results = []
        for _ in range(600):
            results.append(writing.add("a", 1, 1, text="x" * 60_000))
            writing.flush()
        assert AppendResult.FULL in results and results[0] is AppendResult.OK
        assert results == sorted(results), "once full, it stays full"
    got = numbers(path)
    assert got == list(range(1, results.count(AppendResult.OK) + 1))


# -- formatting --------------------------------------------------------------------------------------------------------------------------


def test_an_hdad_log_is_given_up_only_by_its_uuid(path: str) -> None:
    with Writing(path) as writing:
        writing.add("a", 3)
    with pytest.raises(ForeignDeviceError, match="--force-uuid"):
        format_log(path)
    with pytest.raises(ForeignDeviceError, match="--force-uuid"):
        format_log(path, force_uuid=str(uuid.uuid4()))
    format_log(path, force_uuid=inspect(path)["uuid"])
    assert numbers(path) == [] and verify(path).ok


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x00" * 0x438 + b"\x53\xef", "ext2/3/4"),
        (b"LUKS\xba\xbe", "LUKS"),
        (b"\x00" * 512 + b"EFI PART", "GPT"),
        (b"hello", "something else in it"),
    ],
)
def test_a_file_with_something_in_it_is_never_formatted(folder: Path, content: bytes, words: str) -> None:
    path = folder / "x"
    path.write_bytes(content.ljust(16 << 20, b"\0"))
    before = path.read_bytes()
    with pytest.raises(ForeignDeviceError, match=words):
        format_log(str(path))
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda path: None, FormatError),
        (lambda path: path.mkdir(), DeviceError),
        (lambda path: path.write_bytes(bytes(1000)), FormatError),
        (lambda path: path.symlink_to("/dev/null"), DeviceError),
    ],
)
def test_what_cannot_be_a_log_is_refused_in_words(folder: Path, make: Callable[[Path], object], error: type[Exception]) -> None:
    path = folder / "x"
    make(path)
    with pytest.raises(error, match=str(path)):
        format_log(str(path))


def test_a_log_that_lost_its_only_head_is_called_damaged_not_unformatted(folder: Path) -> None:
    path = str(folder / "x")
    format_log(path, size=16 << 20)
    whole = Path(path).read_bytes()
    change(path, 1 << 20, bytes(4096))  # superblocks are there, the first head is not
    with pytest.raises(CorruptionError, match="do not format"):
        Writing(path)
    change(path, 1 << 20, whole[1 << 20 : (1 << 20) + 4096])
    with Writing(path):
        pass


def test_a_write_error_is_final(path: str) -> None:
    """I8: after a failed write nothing is written through this descriptor any more, though the device would take it."""
    with Writing(path) as writing:
        writing.add("a", 3)
        writing.flush()
        writing.appender.tick_lease()
        device = writing.appender.device
        with pytest.raises(DeviceError):
            device.write(512 * 3 + 1, [bytes(512)])  # not aligned: EINVAL
        with pytest.raises(DeviceError, match="not used again"):
            device.write(1 << 20, [bytes(512)])
        with pytest.raises(DeviceError, match="not used again"):
            writing.appender.tick_lease()
        writing.appender.tick_lease = lambda: None  # type: ignore[method-assign]
    assert numbers(path) == [1, 2, 3]
    wait_until(lambda: verify(path).ok, "the log is whole")

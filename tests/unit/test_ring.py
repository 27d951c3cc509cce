"""The ring as one process sees it; two processes meet in it in tests/native and in the integration tests."""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
import struct
import weakref

import pytest

from hdad._core import Ring

CAPACITY = 64 * 1024
HEADER_SIZE = 4096
HEAD_AT, TAIL_AT = 128, 256


@pytest.fixture
def ring() -> Ring:
    return Ring.create(CAPACITY)


def put(ring: Ring, data: bytes) -> bool:
    view = ring.claim(len(data))
    assert view is not None
    view[:] = data
    return ring.publish(len(data))


def poke(ring: Ring, offset: int, value: int) -> None:
    os.pwrite(ring.fd, struct.pack("<Q", value), offset)


@pytest.mark.parametrize("capacity", [0, -1, 4096, 32 * 1024, 65_535, 65_537, 96 * 1024, 2**31, 2**64, 2**70])
def test_create_with_impossible_capacity_raises(capacity: int) -> None:
    with pytest.raises(ValueError, match="allowed"):
        Ring.create(capacity)


def test_create_with_impossible_name_raises() -> None:
    with pytest.raises(ValueError, match="name"):
        Ring.create(CAPACITY, "a\0b")
    with pytest.raises(ValueError, match="name"):
        Ring.create(CAPACITY, "x" * 201)


def test_ring_and_iterator_classes_cannot_be_made_half() -> None:
    with pytest.raises(TypeError):
        Ring()


def test_new_ring_is_empty(ring: Ring) -> None:
    assert (ring.capacity, ring.head, ring.tail, len(ring.poll())) == (CAPACITY, 0, 0, 0)
    assert fcntl.fcntl(ring.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


def test_published_bytes_are_polled_and_released(ring: Ring) -> None:
    assert put(ring, b"one") is False
    put(ring, b"two")
    assert bytes(ring.poll()) == b"onetwo"
    assert ring.release(3) is False
    assert bytes(ring.poll()) == b"two"
    assert (ring.head, ring.tail) == (3, 6)


def test_claim_shows_nothing_to_the_consumer_until_published(ring: Ring) -> None:
    view = ring.claim(100)
    assert view is not None and not view.readonly and len(view) == 100
    view[:] = b"x" * 100
    assert len(ring.poll()) == 0
    ring.publish(0)
    assert len(ring.poll()) == 0


def test_claim_without_room_returns_none_and_with_more_than_capacity_raises(ring: Ring) -> None:
    put(ring, bytes(CAPACITY - 10))
    assert ring.claim(11) is None
    assert ring.claim(10) is not None
    for n in (CAPACITY + 1, -1):
        with pytest.raises(ValueError, match="not possible"):
            ring.claim(n)


def test_publish_more_than_claimed_raises_and_publishes_nothing(ring: Ring) -> None:
    ring.claim(10)
    for n in (11, -1):
        with pytest.raises(ValueError, match="claimed 10"):
            ring.publish(n)
    assert ring.tail == 0


def test_publish_in_parts_keeps_the_rest_claimed(ring: Ring) -> None:
    view = ring.claim(10)
    assert view is not None
    view[:] = b"0123456789"
    ring.publish(4)
    ring.publish(6)
    assert bytes(ring.poll()) == b"0123456789"
    with pytest.raises(ValueError, match="not possible"):
        ring.publish(1)


def test_publish_after_another_producer_published_raises(ring: Ring) -> None:
    other = Ring.attach(ring.fd)
    ring.claim(10)
    other.claim(5)
    other.publish(5)
    with pytest.raises(ValueError, match="corrupt"):
        ring.publish(10)


def test_release_more_than_published_raises(ring: Ring) -> None:
    put(ring, b"abc")
    for n in (4, -1):
        with pytest.raises(ValueError, match="not possible"):
            ring.release(n)
    assert ring.head == 0


def test_bytes_across_the_seam_are_contiguous(ring: Ring) -> None:
    put(ring, bytes(CAPACITY - 3))
    ring.release(CAPACITY - 3)
    put(ring, b"straddling")
    assert bytes(ring.poll()) == b"straddling"
    assert bytes(ring.view(CAPACITY - 3, 10)) == b"straddling"
    assert os.pread(ring.fd, 3, HEADER_SIZE + CAPACITY - 3) == b"str"
    assert os.pread(ring.fd, 7, HEADER_SIZE) == b"addling"


def test_full_ring_is_polled_whole(ring: Ring) -> None:
    put(ring, bytes(5))
    ring.release(5)
    data = os.urandom(CAPACITY)
    put(ring, data)
    assert ring.claim(1) is None
    assert bytes(ring.poll()) == data


def test_poll_and_view_are_writable(ring: Ring) -> None:
    put(ring, b"abcdef")
    ring.poll()[0] = ord("A")
    ring.view(2, 2)[:] = b"XY"
    assert bytes(ring.poll()) == b"AbXYef"


@pytest.mark.parametrize(
    ("position", "size"), [(9, 1), (10, 91), (111, 0), (110, 1), (-1, 1), (10, -1), (2**64 - 1, 1), (2**64, 1), (11, 2**62)]
)
def test_view_outside_head_and_tail_raises(ring: Ring, position: int, size: int) -> None:
    put(ring, bytes(100))
    ring.release(10)
    put(ring, bytes(0))
    with pytest.raises(ValueError, match="not possible"):
        ring.view(position, size)


def test_view_inside_head_and_tail_is_given(ring: Ring) -> None:
    put(ring, bytes(range(100)))
    ring.release(10)
    assert bytes(ring.view(10, 90)) == bytes(range(10, 100))
    assert len(ring.view(100, 0)) == 0


def test_positions_grow_beyond_capacity(ring: Ring) -> None:
    for index in range(20):
        put(ring, bytes([index]) * 50_000)
        assert bytes(ring.view(index * 50_000, 50_000)) == bytes([index]) * 50_000
        ring.release(50_000)
    assert ring.head == ring.tail == 1_000_000


def test_page_aligned_position_is_page_aligned_in_memory(ring: Ring, tmp_path: object) -> None:
    """O_DIRECT takes the memory only if it is aligned; pwrite from both sides of the seam proves it where the file system can."""
    put(ring, bytes(CAPACITY - 4096))
    ring.release(CAPACITY - 4096)
    put(ring, b"a" * 4096 + b"b" * 4096)
    path = f"{tmp_path}/direct"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    try:
        assert os.pwrite(fd, ring.poll(), 0) == 8192
    finally:
        os.close(fd)
    with open(path, "rb") as file:
        assert file.read() == b"a" * 4096 + b"b" * 4096


# --- sleeping ---


def test_publish_rings_only_while_the_consumer_sleeps(ring: Ring) -> None:
    assert put(ring, b"a") is False
    assert ring.consumer_sleep(1) is False
    assert put(ring, b"b") is True
    assert put(ring, b"c") is True, "the flag stays: a killed producer must not take the wake-up with him"
    ring.consumer_awake()
    assert put(ring, b"d") is False


def test_consumer_sleep_with_unseen_data_says_do_not_sleep(ring: Ring) -> None:
    put(ring, b"abc")
    assert ring.consumer_sleep(0) is True
    assert ring.consumer_sleep(2) is True
    assert ring.consumer_sleep(3) is False


@pytest.mark.parametrize("seen", [4, -1, 2**64, 2**64 - 1])
def test_consumer_sleep_beyond_tail_raises(ring: Ring, seen: int) -> None:
    put(ring, b"abc")
    with pytest.raises(ValueError, match="not possible"):
        ring.consumer_sleep(seen)


def test_release_rings_only_once_there_is_the_room_wanted(ring: Ring) -> None:
    put(ring, bytes(CAPACITY))
    assert ring.release(10) is False
    assert ring.producer_sleep(100) is False
    assert ring.release(89) is False
    assert ring.release(1) is True
    assert ring.release(1) is True
    ring.producer_awake()
    assert ring.release(1) is False


def test_producer_sleep_with_room_says_do_not_sleep(ring: Ring) -> None:
    assert ring.producer_sleep(CAPACITY) is True


@pytest.mark.parametrize("n", [0, -1, CAPACITY + 1])
def test_producer_sleep_for_what_never_comes_raises(ring: Ring, n: int) -> None:
    with pytest.raises(ValueError, match="not possible"):
        ring.producer_sleep(n)


def test_successful_claim_ends_the_producers_sleep(ring: Ring) -> None:
    put(ring, bytes(CAPACITY))
    ring.producer_sleep(10)
    assert ring.release(10) is True
    assert ring.claim(10) is not None
    assert ring.release(10) is False


# --- attach ---


def test_attached_ring_shows_the_same_bytes_and_goes_on(ring: Ring) -> None:
    put(ring, b"before")
    other = Ring.attach(ring.fd)
    assert (other.capacity, other.fd, bytes(other.poll())) == (CAPACITY, ring.fd, b"before")
    other.release(3)
    put(other, b" after")
    assert bytes(ring.poll()) == b"ore after"


def test_attached_ring_does_not_close_the_descriptor(ring: Ring) -> None:
    other = Ring.attach(ring.fd)
    del other
    gc.collect()
    assert os.fstat(ring.fd).st_size == HEADER_SIZE + CAPACITY


def sealed_file(content: bytes, size: int, seals: int = fcntl.F_SEAL_SHRINK) -> int:
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    os.pwrite(fd, content, 0)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


def header(magic: bytes = b"HDADRNG1", version: int = 2, header_size: int = HEADER_SIZE, capacity: int = CAPACITY) -> bytes:
    return struct.pack("<8sIIQ", magic, version, header_size, capacity)


def test_attach_to_a_ring_made_by_hand_works() -> None:
    fd = sealed_file(header(), HEADER_SIZE + CAPACITY)
    assert Ring.attach(fd).capacity == CAPACITY
    os.close(fd)


@pytest.mark.parametrize(
    ("content", "size", "seals"),
    [
        (header(magic=b"HDADRNG2"), HEADER_SIZE + CAPACITY, fcntl.F_SEAL_SHRINK),
        (header(version=1), HEADER_SIZE + CAPACITY, fcntl.F_SEAL_SHRINK),
        (header(header_size=8192), HEADER_SIZE + CAPACITY, fcntl.F_SEAL_SHRINK),
        (header(capacity=CAPACITY * 2), HEADER_SIZE + CAPACITY, fcntl.F_SEAL_SHRINK),
        (header(capacity=CAPACITY - 1), HEADER_SIZE + CAPACITY - 1, fcntl.F_SEAL_SHRINK),
        (header(capacity=2**63), HEADER_SIZE + CAPACITY, fcntl.F_SEAL_SHRINK),
        (header(), HEADER_SIZE + CAPACITY + 1, fcntl.F_SEAL_SHRINK),
        (header()[:16], 16, fcntl.F_SEAL_SHRINK),
        (b"", 0, fcntl.F_SEAL_SHRINK),
        (header(), HEADER_SIZE + CAPACITY, 0),
    ],
    ids=["magic", "version", "header-size", "capacity", "not-a-power", "huge", "size", "short", "empty", "may-shrink"],
)
def test_attach_to_something_else_raises(content: bytes, size: int, seals: int) -> None:
    fd = sealed_file(content, size, seals)
    try:
        with pytest.raises(ValueError, match="not a ring"):
            Ring.attach(fd)
    finally:
        os.close(fd)


def test_attach_to_a_pipe_raises_value_error_and_to_a_closed_descriptor_os_error() -> None:
    reader, writer = os.pipe()
    with pytest.raises(ValueError, match="not a ring"):
        Ring.attach(reader)
    os.close(reader)
    os.close(writer)
    with pytest.raises(OSError, match=r"[Bb]ad file"):
        Ring.attach(reader)


def test_ring_cannot_be_shrunk_under_a_process_that_maps_it(ring: Ring) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(ring.fd, 4096)


# --- hostile shared memory ---


@pytest.mark.parametrize(("head", "tail"), [(1, 0), (0, CAPACITY + 1), (2**63, 0), (0, 2**64 - 1)])
def test_contradicting_positions_raise_in_every_call(ring: Ring, head: int, tail: int) -> None:
    poke(ring, HEAD_AT, head)
    poke(ring, TAIL_AT, tail)
    calls = [
        lambda: ring.claim(1),
        ring.poll,
        lambda: ring.view(head, 1),
        lambda: ring.release(1),
        lambda: ring.consumer_sleep(head),
        lambda: ring.producer_sleep(1),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="corrupt"):
            call()


def test_positions_at_the_end_of_u64_still_count_right(ring: Ring) -> None:
    start = 2**64 - 4096
    poke(ring, HEAD_AT, start)
    poke(ring, TAIL_AT, start)
    put(ring, b"x" * 4000)
    assert bytes(ring.view(start, 4000)) == b"x" * 4000
    assert ring.tail == start + 4000


# --- lifetime ---


def test_memoryview_outlives_the_ring_object() -> None:
    ring = Ring.create(CAPACITY)
    put(ring, b"still here")
    view, claimed = ring.poll(), ring.claim(3)
    assert claimed is not None
    del ring
    gc.collect()
    claimed[:] = b"abc"
    assert bytes(view) == b"still here"
    assert view.obj is not None


def test_descriptor_is_closed_with_the_ring() -> None:
    ring = Ring.create(CAPACITY)
    fd = ring.fd
    del ring
    gc.collect()
    with pytest.raises(OSError, match=r"[Bb]ad file"):
        os.fstat(fd)


def test_ring_shows_no_bytes_of_its_own_accord(ring: Ring) -> None:
    with pytest.raises(BufferError):
        memoryview(ring)  # type: ignore[arg-type]
    ring.poll()
    with pytest.raises(BufferError):
        memoryview(ring)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        weakref.ref(ring)


def test_forked_child_and_parent_share_the_ring(ring: Ring) -> None:
    put(ring, b"from the parent")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if bytes(ring.poll()) == b"from the parent":
                ring.release(15)
                put(ring, b"from the child")
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert bytes(ring.poll()) == b"from the child"
    assert ring.head == 15


def test_page_size_is_what_the_header_assumes() -> None:
    assert mmap.PAGESIZE == HEADER_SIZE

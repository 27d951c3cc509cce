"""hdad's ring alone, one producer and one consumer process, beside multiprocessing.Queue, faster-fifo and iceoryx2. Records of 200 bytes.

ring            as hdad uses it: entries of an XREAD reply are packed natively, record by record, into frames of FRAME records in the ring,
                CRC32C over each frame by the producer, checked by the consumer as the writer does
ring_objects    Python to Python: the producer packs a list of bytes objects, the consumer unpacks every record into an object
faster_fifo     put_many and get_many of FRAME bytes objects, not pickled
mp_queue        put and get, a record each
mp_queue_lists  put and get of lists of FRAME records
iceoryx2        publish and subscribe, a record a sample; blocking when the subscriber's buffer is full
iceoryx2_frames the same with FRAME records in one sample, copied in at once: nothing is packed and no byte is looked at, unlike in ring

Each is a program of its own (programs.Peer) that forks its consumer. Arguments: mode, records.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import mmap
import multiprocessing
import os
import select
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from hdad._core import Ring, XReadReply, pack_values, scan_frames, seal_frame, unpack_records
from hdad.exchange.slots import RING_BLOCK, create_bell, ring_bell
from hdad.log.format import FRAME_HEADER_SIZE, FrameKind

RECORD_BYTES: Final = 200
FRAME: Final = 2000
RING_BYTES: Final = 16 << 20
FRAME_ROOM: Final = FRAME_HEADER_SIZE + FRAME * 256
RECORDS: Final = {
    "ring": 30_000_000, "ring_objects": 6_000_000, "faster_fifo": 3_000_000, "mp_queue": 200_000, "mp_queue_lists": 3_000_000,
    "iceoryx2": 1_000_000, "iceoryx2_frames": 200_000_000,
}  # fmt: skip
NEEDS: Final = {"faster_fifo": "faster_fifo", "iceoryx2": "iceoryx2", "iceoryx2_frames": "iceoryx2"}
BODIES: Final = [b"%07d" % index + b"x" * (RECORD_BYTES - 7) for index in range(FRAME)]
_IOX_BUFFER: Final = 1000
TIMES: Final = memoryview(mmap.mmap(-1, 4096)).cast("Q")  # both processes': when the first record was sent, and the last one was received
BEGAN: Final = 0
ENDED: Final = 1


def missing(mode: str) -> str:
    """Why ``mode`` cannot be measured here; "" if it can."""
    try:
        importlib.import_module(NEEDS.get(mode, "os"))
    except ImportError as error:
        return f"not installed: {error}"
    return ""


def _reply() -> XReadReply:
    """A reply of XREAD with FRAME entries of one field, RECORD_BYTES in all."""
    entries = b"".join(
        b"*2\r\n$15\r\n1795564942%03d-%d\r\n*2\r\n$1\r\nd\r\n$%d\r\n%s\r\n" % (index // 10, index % 10, len(body) - 9, body[9:])
        for index, body in enumerate(BODIES)
    )
    data = b"*1\r\n*2\r\n$7\r\nbench:0\r\n*%d\r\n%s" % (FRAME, entries)
    reply = XReadReply(1 << 24)
    view = reply.space(len(data))
    view[: len(data)] = data
    assert reply.commit(len(data)) and reply.kind == "streams"
    return reply


class Rings:
    """A ring with its two bells; either side sleeps when it can do nothing."""

    def __init__(self) -> None:
        self.ring = Ring.create(RING_BYTES, "bench-ring")
        self.bell, self.back_bell = create_bell(), create_bell()

    def claim(self, size: int) -> memoryview:
        """Producer: so much room."""
        while (view := self.ring.claim(size)) is None:
            if not self.ring.producer_sleep(size):
                _sleep(self.back_bell)
            self.ring.producer_awake()
        return view

    def publish(self, size: int) -> None:
        """Producer: one whole frame."""
        if self.ring.publish(size):
            ring_bell(self.bell)

    def poll(self) -> memoryview:
        """Consumer: all frames that are here, at least one."""
        while not len(view := self.ring.poll()):
            if not self.ring.consumer_sleep(self.ring.head):
                _sleep(self.bell)
            self.ring.consumer_awake()
        return view

    def release(self, size: int) -> None:
        """Consumer: done with so many bytes."""
        if self.ring.release(size):
            ring_bell(self.back_bell)


def hush(bell: int) -> None:
    """Reset the bell: a plain poll sees its level."""
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(bell)


def _sleep(bell: int) -> None:
    poller = select.poll()
    poller.register(bell, select.POLLIN)
    poller.poll(1000)
    hush(bell)


def _ring(records: int) -> tuple[Callable[[], None], Callable[[], None]]:
    rings = Rings()
    reply = _reply()

    def produce() -> None:
        for _ in range(records // FRAME):
            view = rings.claim(FRAME_ROOM)
            packed, size, _ = reply.pack_frame(0, 0, view, 1 << 20, RING_BLOCK, FrameKind.DATA, (1, 1), (0, 0), 0, 0, 1)
            assert packed == FRAME
            rings.publish(size)

    def consume() -> None:
        done = 0
        while done < records:
            view = rings.poll()
            for frame in scan_frames(view, RING_BLOCK, len(view)):
                done += frame.record_count
            rings.release(len(view))

    return produce, consume


def _ring_objects(records: int) -> tuple[Callable[[], None], Callable[[], None]]:
    rings = Rings()
    batch = [(1, index, 1, body) for index, body in enumerate(BODIES)]

    def produce() -> None:
        for _ in range(records // FRAME):
            view = rings.claim(FRAME_ROOM)
            packed, used = pack_values(view[FRAME_HEADER_SIZE:], batch)
            size = seal_frame(view, RING_BLOCK, FrameKind.DATA, used, (1, 1), (0, 0), (1, 1), packed, packed, 0, 0, 0, 0, 1)
            rings.publish(size)

    def consume() -> None:
        done = 0
        while done < records:
            view = rings.poll()
            for frame in scan_frames(view, RING_BLOCK, len(view)):
                done += len(unpack_records(frame.payload))
            rings.release(len(view))

    return produce, consume


def _faster_fifo(records: int) -> tuple[Callable[[], None], Callable[[], None]]:
    from faster_fifo import Queue

    queue = Queue(max_size_bytes=RING_BYTES, loads=bytes, dumps=lambda body: body)

    def produce() -> None:
        for _ in range(records // FRAME):
            queue.put_many(BODIES, timeout=10)

    def consume() -> None:
        done = 0
        while done < records:
            done += len(queue.get_many(timeout=10, max_messages_to_get=FRAME))

    return produce, consume


def _mp_queue(records: int) -> tuple[Callable[[], None], Callable[[], None]]:
    queue: Any = multiprocessing.get_context("fork").Queue()

    def produce() -> None:
        for _ in range(records // FRAME):
            for body in BODIES:
                queue.put(body)
        queue.close()
        queue.join_thread()

    def consume() -> None:
        for _ in range(records // FRAME * FRAME):
            queue.get()

    return produce, consume


def _mp_queue_lists(records: int) -> tuple[Callable[[], None], Callable[[], None]]:
    queue: Any = multiprocessing.get_context("fork").Queue(64)

    def produce() -> None:
        for _ in range(records // FRAME):
            queue.put(BODIES)
        queue.close()
        queue.join_thread()

    def consume() -> None:
        for _ in range(records // FRAME):
            assert len(queue.get()) == FRAME

    return produce, consume


def _iceoryx2(records: int, per_sample: int = 1) -> tuple[Callable[[], None], Callable[[], None]]:
    import iceoryx2 as iox2

    name = f"hdad-bench-{os.getpid()}"
    size = RECORD_BYTES * per_sample
    ready = os.eventfd(0)
    blocking = iox2.BackpressureStrategy.RetryUntilDelivered

    def service() -> Any:
        iox2.set_log_level(iox2.LogLevel.Error)
        node = iox2.NodeBuilder.new().create(iox2.ServiceType.Ipc)
        builder = node.service_builder(iox2.ServiceName.new(name)).publish_subscribe(iox2.Slice[ctypes.c_uint8])
        depth = _IOX_BUFFER if per_sample == 1 else 32
        return node, builder.enable_safe_overflow(False).subscriber_max_buffer_size(depth).open_or_create()

    def produce() -> None:
        node, opened = service()
        publisher = opened.publisher_builder().initial_max_slice_len(size).backpressure_strategy(blocking).create()
        os.eventfd_read(ready)  # the subscriber is there
        TIMES[BEGAN] = time.monotonic_ns()  # to make and to end a node takes seconds, which are not what is measured
        source = (ctypes.c_uint8 * size).from_buffer_copy(b"".join(BODIES[:per_sample]))
        address = ctypes.addressof(source)
        for _ in range(records // per_sample):
            sample = publisher.loan_slice_uninit(size)
            ctypes.memmove(sample.payload_ptr, address, size)
            sample.assume_init().send()
        del node

    def consume() -> None:
        node, opened = service()
        subscriber = opened.subscriber_builder().buffer_size(_IOX_BUFFER if per_sample == 1 else 32).create()
        os.eventfd_write(ready, 1)
        done = 0
        while done < records:
            sample = subscriber.receive()
            if sample is not None:
                done += per_sample
                sample.delete()
        TIMES[ENDED] = time.monotonic_ns()
        del node

    return produce, consume


MODES: Final[dict[str, Callable[[int], tuple[Callable[[], None], Callable[[], None]]]]] = {
    "ring": _ring, "ring_objects": _ring_objects, "faster_fifo": _faster_fifo, "mp_queue": _mp_queue, "mp_queue_lists": _mp_queue_lists,
    "iceoryx2": _iceoryx2, "iceoryx2_frames": lambda records: _iceoryx2(records, FRAME),
}  # fmt: skip


def main() -> None:
    """See the module."""
    mode, records = sys.argv[1], int(sys.argv[2]) // FRAME * FRAME
    produce, consume = MODES[mode](records)
    print("READY", flush=True)
    sys.stdin.readline()
    TIMES[BEGAN] = time.monotonic_ns()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            consume()
            status = 0
        finally:
            os._exit(status)
    produce()
    if os.waitpid(pid, 0)[1]:
        sys.exit(1)
    elapsed = ((TIMES[ENDED] or time.monotonic_ns()) - TIMES[BEGAN]) / 1e9
    print(json.dumps({"entries": records, "seconds": elapsed, "per_s": records / elapsed}))


if __name__ == "__main__":
    main()

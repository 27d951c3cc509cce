# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=False, binding=False
"""The native core as Python sees it: rings in shared memory, records, and the scan of XREAD replies.

Owns nothing but the binding: arguments are checked here, the work is in hdad/native. Used by every process of the daemon.
Invariant: no argument and no bytes in shared memory or from a peer can make these classes touch memory that is not theirs; what is
wrong raises ValueError. A memoryview keeps alive what it shows. Does not lock, nor release the GIL:
one call is at most a reply or a frame long, and the data path has one thread per process.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetFromErrno
from cpython.list cimport PyList_GET_ITEM
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.ref cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset
from posix.unistd cimport close

from cython import final

from crc32c import crc32c as _crc32c
from orjson import dumps as _dumps, loads as _loads

from hdad.record import Position as _Position

cdef object _new_tuple = tuple.__new__

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *)

cdef extern from "stdbool.h":
    ctypedef int c_bool "bool"

cdef extern from "native/ring.h":
    uint64_t HDAD_RING_CAPACITY_MIN, HDAD_RING_CAPACITY_MAX
    cdef struct hdad_ring:
        void *header
        uint8_t *data
        uint64_t capacity
        uint64_t claim_size
    cdef enum hdad_ring_status:
        HDAD_RING_OK
        HDAD_RING_FULL
        HDAD_RING_CORRUPT
        HDAD_RING_ARGUMENT
        HDAD_RING_SYSTEM
        HDAD_RING_NOT_A_RING
    hdad_ring_status hdad_ring_create(hdad_ring *, uint64_t, const char *, int *)
    hdad_ring_status hdad_ring_attach(hdad_ring *, int)
    void hdad_ring_unmap(hdad_ring *)
    hdad_ring_status hdad_ring_claim(hdad_ring *, uint64_t, uint8_t **)
    hdad_ring_status hdad_ring_publish(hdad_ring *, uint64_t, c_bool *)
    hdad_ring_status hdad_ring_poll(const hdad_ring *, uint8_t **, uint64_t *)
    hdad_ring_status hdad_ring_view(const hdad_ring *, uint64_t, uint64_t, uint8_t **)
    hdad_ring_status hdad_ring_release(hdad_ring *, uint64_t, c_bool *)
    hdad_ring_status hdad_ring_consumer_sleep(hdad_ring *, uint64_t, c_bool *)
    c_bool hdad_ring_announce(hdad_ring *)
    c_bool hdad_ring_is_announced(const hdad_ring *)
    void hdad_ring_consumer_awake(hdad_ring *)
    hdad_ring_status hdad_ring_producer_sleep(hdad_ring *, uint64_t, c_bool *)
    void hdad_ring_producer_awake(hdad_ring *)
    uint64_t hdad_ring_head(const hdad_ring *)
    uint64_t hdad_ring_tail(const hdad_ring *)

cdef extern from "native/pack.h":
    size_t HDAD_RECORD_HEADER_SIZE
    int HDAD_RECORD_KIND_ENTRY, HDAD_RECORD_KIND_MAX
    cdef struct hdad_record:
        uint64_t ms
        uint64_t seq
        const uint8_t *body
        uint32_t body_size
        uint8_t kind
    uint32_t hdad_load_u32(const uint8_t *)
    void hdad_store_u32(uint8_t *, uint32_t)
    void hdad_record_header(uint8_t *, uint32_t, uint8_t, uint64_t, uint64_t)
    const char *hdad_record_next(const uint8_t *, size_t, size_t *, hdad_record *)
    const char *hdad_records_check(const uint8_t *, size_t, uint64_t, size_t *)
    const char *hdad_body_check(uint8_t, const uint8_t *, size_t)
    c_bool hdad_string_next(const uint8_t *, size_t, size_t *, const uint8_t **, uint32_t *)

cdef extern from "native/frame.h":
    size_t HDAD_FRAME_HEADER_SIZE
    cdef struct hdad_frame:
        uint64_t lane_epoch, from_ms, from_seq, to_ms, to_seq, label_ns, lost_count
        uint32_t payload_crc, lane_id, record_count, entry_count, stored_size, raw_size, filtered_count, dead_count, worker
        uint8_t kind
    cdef struct hdad_stamp:
        const uint8_t *uuid
        uint64_t lsn, durable_lsn, address, writer_epoch
        uint32_t predecessor_crc
    void hdad_frame_build(uint8_t *, const hdad_frame *)
    void hdad_frame_stamp(uint8_t *, const hdad_stamp *)
    const char *hdad_frame_load(const uint8_t *, size_t, hdad_frame *)

cdef extern from "native/resp.h":
    uint64_t HDAD_RESP_BUFFER_MAX
    cdef enum hdad_resp_status:
        HDAD_RESP_MORE
        HDAD_RESP_DONE
        HDAD_RESP_BAD
        HDAD_RESP_NO_MEMORY
    cdef enum hdad_resp_kind:
        HDAD_RESP_STREAMS
        HDAD_RESP_NIL
        HDAD_RESP_ERROR
        HDAD_RESP_OTHER
    cdef struct hdad_resp_stream:
        uint32_t name
        uint32_t name_size
        uint32_t first_entry
        uint32_t entry_count
    cdef struct hdad_resp_entry:
        uint64_t ms
        uint64_t seq
        uint32_t body_size
    cdef struct hdad_resp:
        size_t start
        size_t position
        size_t need
        hdad_resp_kind kind
        c_bool failed
        const char *wrong
        uint32_t error
        uint32_t error_size
        uint32_t stream_count
        uint32_t entry_count
        hdad_resp_stream *streams
        hdad_resp_entry *entries
    cdef struct hdad_resp_packed:
        uint32_t entry_count
        size_t size
        uint64_t last_ms
        uint64_t last_seq
    void hdad_resp_init(hdad_resp *)
    void hdad_resp_free(hdad_resp *)
    void hdad_resp_next(hdad_resp *)
    hdad_resp_status hdad_resp_scan(hdad_resp *, uint8_t *, size_t)
    uint64_t hdad_resp_record_size(const hdad_resp_entry *)
    void hdad_resp_pack_body(const hdad_resp_entry *, const uint8_t *, uint8_t *)
    const uint8_t *hdad_resp_only_value(const hdad_resp_entry *, const uint8_t *, uint32_t *)
    hdad_resp_packed hdad_resp_pack(const hdad_resp *, const uint8_t *, size_t, uint32_t, uint32_t, uint8_t *, size_t, uint64_t)


cdef class _Window:
    """Memory that is shown through memoryviews, a part at a time; each view holds a reference, so the memory outlives it."""

    cdef uint8_t *_window
    cdef Py_ssize_t _window_size

    cdef object _show(self, uint8_t *window, uint64_t size):
        # Through the buffer protocol, since PyMemoryView_FromMemory would not keep self alive.
        self._window = window
        self._window_size = <Py_ssize_t>size
        try:
            return PyMemoryView_FromObject(self)
        finally:
            self._window = NULL

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self._window == NULL:
            raise BufferError("bytes are shown by claim, poll, view and space only")
        PyBuffer_FillInfo(buffer, self, self._window, self._window_size, 0, flags)


cdef inline object _as_bytes(const uint8_t *data, size_t size):
    return PyBytes_FromStringAndSize(<const char *>data, <Py_ssize_t>size)


# --- rings ------------------------------------------------------------------------------------------------------------------------


cdef class Ring(_Window):
    """A ring of bytes in a memfd, between one producer and one consumer process. See the stub file and native/ring.h."""

    cdef hdad_ring _ring
    cdef int _fd
    cdef bint _owns_fd

    def __cinit__(self):
        self._fd = -1

    def __init__(self):
        raise TypeError("use Ring.create or Ring.attach")

    def __dealloc__(self):
        hdad_ring_unmap(&self._ring)
        if self._owns_fd and self._fd >= 0:
            close(self._fd)

    @staticmethod
    def create(capacity, str name="hdad-ring"):
        cdef Ring self = Ring.__new__(Ring)
        cdef bytes encoded = name.encode()
        if not HDAD_RING_CAPACITY_MIN <= capacity <= HDAD_RING_CAPACITY_MAX:
            raise ValueError(f"ring of {capacity} bytes; allowed: {HDAD_RING_CAPACITY_MIN} to {HDAD_RING_CAPACITY_MAX}")
        if b"\0" in encoded or len(encoded) > 200:
            raise ValueError("a ring's name has at most 200 bytes and no NUL")
        cdef hdad_ring_status status = hdad_ring_create(&self._ring, <uint64_t>capacity, encoded, &self._fd)
        if status == HDAD_RING_ARGUMENT:
            raise ValueError(f"ring of {capacity} bytes; allowed: a power of two and whole pages")
        if status != HDAD_RING_OK:
            PyErr_SetFromErrno(OSError)
        self._owns_fd = True
        return self

    @staticmethod
    def attach(int fd):
        cdef Ring self = Ring.__new__(Ring)
        cdef hdad_ring_status status = hdad_ring_attach(&self._ring, fd)
        if status == HDAD_RING_NOT_A_RING:
            raise ValueError(f"descriptor {fd} is not a ring of this version")
        if status != HDAD_RING_OK:
            PyErr_SetFromErrno(OSError)
        self._fd = fd
        return self

    cdef object _raise(self, hdad_ring_status status):
        if status == HDAD_RING_CORRUPT:
            raise ValueError(f"corrupt ring: head {self.head}, tail {self.tail}, capacity {self.capacity}")
        raise ValueError(f"not possible in this ring: head {self.head}, tail {self.tail}, claimed {self._ring.claim_size}")

    @property
    def fd(self):
        return self._fd

    @property
    def capacity(self):
        return self._ring.capacity

    @property
    def head(self):
        return hdad_ring_head(&self._ring)

    @property
    def tail(self):
        return hdad_ring_tail(&self._ring)

    def claim(self, Py_ssize_t n):
        cdef uint8_t *at
        cdef hdad_ring_status status = HDAD_RING_ARGUMENT if n < 0 else hdad_ring_claim(&self._ring, <uint64_t>n, &at)
        if status == HDAD_RING_OK:
            return self._show(at, <uint64_t>n)
        if status == HDAD_RING_FULL:
            return None
        self._raise(status)

    def publish(self, Py_ssize_t n):
        cdef c_bool wake = False
        cdef hdad_ring_status status = HDAD_RING_ARGUMENT if n < 0 else hdad_ring_publish(&self._ring, <uint64_t>n, &wake)
        if status != HDAD_RING_OK:
            self._raise(status)
        return True if wake else False

    def poll(self):
        cdef uint8_t *at
        cdef uint64_t size
        cdef hdad_ring_status status = hdad_ring_poll(&self._ring, &at, &size)
        if status != HDAD_RING_OK:
            self._raise(status)
        return self._show(at, size)

    def view(self, position, Py_ssize_t size):
        cdef uint8_t *at
        cdef hdad_ring_status status = HDAD_RING_ARGUMENT
        if size >= 0 and 0 <= position <= 0xFFFFFFFFFFFFFFFF:
            status = hdad_ring_view(&self._ring, <uint64_t>position, <uint64_t>size, &at)
        if status != HDAD_RING_OK:
            self._raise(status)
        return self._show(at, <uint64_t>size)

    def release(self, Py_ssize_t n):
        cdef c_bool wake = False
        cdef hdad_ring_status status = HDAD_RING_ARGUMENT if n < 0 else hdad_ring_release(&self._ring, <uint64_t>n, &wake)
        if status != HDAD_RING_OK:
            self._raise(status)
        return True if wake else False

    def consumer_sleep(self, seen):
        cdef c_bool ready = False
        cdef hdad_ring_status status = HDAD_RING_ARGUMENT
        if 0 <= seen <= 0xFFFFFFFFFFFFFFFF:
            status = hdad_ring_consumer_sleep(&self._ring, <uint64_t>seen, &ready)
        if status != HDAD_RING_OK:
            self._raise(status)
        return True if ready else False

    def announce(self):
        return True if hdad_ring_announce(&self._ring) else False

    @property
    def is_announced(self):
        return True if hdad_ring_is_announced(&self._ring) else False

    def consumer_awake(self):
        hdad_ring_consumer_awake(&self._ring)

    def producer_sleep(self, Py_ssize_t n):
        cdef c_bool ready = False
        cdef hdad_ring_status status = HDAD_RING_ARGUMENT if n < 0 else hdad_ring_producer_sleep(&self._ring, <uint64_t>n, &ready)
        if status != HDAD_RING_OK:
            self._raise(status)
        return True if ready else False

    def producer_awake(self):
        hdad_ring_producer_awake(&self._ring)


# --- records ----------------------------------------------------------------------------------------------------------------------


cdef class _Bytes:
    """The bytes of any object with a buffer, held for the time of a call."""

    cdef Py_buffer _buffer
    cdef bint _held
    cdef uint8_t *data
    cdef size_t size

    def __dealloc__(self):
        if self._held:
            PyBuffer_Release(&self._buffer)


cdef _Bytes _hold(object source, bint writable=False):
    cdef _Bytes held = _Bytes.__new__(_Bytes)
    PyObject_GetBuffer(source, &held._buffer, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
    held._held = True
    held.data = <uint8_t *>held._buffer.buf
    held.size = <size_t>held._buffer.len
    return held


cdef object _refuse(const char *wrong, size_t offset, size_t size):
    raise ValueError(f"{wrong.decode()} (byte {offset} of {size})")


def pack_values(out, records):
    cdef _Bytes target = _hold(out, True)
    cdef _Bytes source
    cdef size_t used = 0
    cdef Py_ssize_t packed = 0
    cdef uint64_t ms, seq
    cdef int kind
    cdef bytes content
    for item in records:
        if type(item) is Record:
            ms, seq, kind, body = (<Record>item)._at.ms, (<Record>item)._at.seq, (<Record>item).kind, (<Record>item)._bytes()
        else:
            ms, seq, kind, body = item
        if not 0 <= kind <= <int>HDAD_RECORD_KIND_MAX:
            raise ValueError(f"record kind {kind}; allowed: 0 to {HDAD_RECORD_KIND_MAX}")
        if type(body) is bytes:
            content = body
            if not _pack_one(target, &used, ms, seq, <uint8_t>kind, <const uint8_t *>PyBytes_AS_STRING(content), <size_t>PyBytes_GET_SIZE(content)):
                break
        else:
            source = _hold(body)
            if not _pack_one(target, &used, ms, seq, <uint8_t>kind, source.data, source.size):
                break
        packed += 1
    return packed, used


cdef bint _pack_one(_Bytes target, size_t *used, uint64_t ms, uint64_t seq, uint8_t kind, const uint8_t *body, size_t size) except -1:
    if size > 0xFFFFFFFFU:
        raise ValueError(f"record body of {size} bytes; a record's size has 32 bits")
    if target.size - used[0] < HDAD_RECORD_HEADER_SIZE or target.size - used[0] - HDAD_RECORD_HEADER_SIZE < size:
        return False
    hdad_record_header(target.data + used[0], <uint32_t>size, kind, ms, seq)
    if size > 0:
        memmove(target.data + used[0] + HDAD_RECORD_HEADER_SIZE, body, size)
    used[0] += HDAD_RECORD_HEADER_SIZE + size
    return True


cdef class RecordIterator:
    """The records of a payload, one at a time: (ms, seq, kind, body)."""

    cdef _Bytes _payload
    cdef object _view
    cdef size_t _offset

    def __init__(self, payload):
        view = memoryview(payload)
        if view.format != "B" or view.ndim != 1:
            view = view.cast("B")
        self._view = view
        self._payload = _hold(view)
        self._offset = 0

    def __iter__(self):
        return self

    def __next__(self):
        cdef hdad_record record
        cdef size_t end
        if self._payload is None:
            raise TypeError("RecordIterator was not initialized")
        if self._offset == self._payload.size:
            raise StopIteration
        cdef const char *wrong = hdad_record_next(self._payload.data, self._payload.size, &self._offset, &record)
        if wrong != NULL:
            _refuse(wrong, self._offset, self._payload.size)
        end = self._offset
        return record.ms, record.seq, <int>record.kind, self._view[end - record.body_size : end]


def unpack_records(payload):
    return list(RecordIterator(payload))


def check_records(payload, count):
    cdef _Bytes source = _hold(payload)
    cdef size_t offset = 0
    if not 0 <= count <= 0xFFFFFFFFFFFFFFFF:
        raise ValueError(f"record count {count}")
    cdef const char *wrong = hdad_records_check(source.data, source.size, <uint64_t>count, &offset)
    if wrong != NULL:
        _refuse(wrong, offset, source.size)


def encode_entry(pairs):
    cdef bytes text
    cdef list parts = [b""]
    cdef uint8_t size_bytes[4]
    cdef uint64_t count = 0
    for field, value in pairs:
        for item in (field, value):
            text = bytes(memoryview(item))
            if PyBytes_GET_SIZE(text) > <Py_ssize_t>0xFFFFFFFFU:
                raise ValueError("a string of an entry has a size of 32 bits")
            hdad_store_u32(size_bytes, <uint32_t>PyBytes_GET_SIZE(text))
            parts.append(_as_bytes(size_bytes, 4))
            parts.append(text)
        count += 1
    if count > 0xFFFFFFFFU:
        raise ValueError("an entry's pair count has 32 bits")
    hdad_store_u32(size_bytes, <uint32_t>count)
    parts[0] = _as_bytes(size_bytes, 4)
    return b"".join(parts)


def decode_entry(body):
    cdef _Bytes source = _hold(body)
    cdef const char *wrong = hdad_body_check(<uint8_t>HDAD_RECORD_KIND_ENTRY, source.data, source.size)
    if wrong != NULL:
        _refuse(wrong, 0, source.size)
    cdef uint32_t left = hdad_load_u32(source.data)
    cdef size_t offset = 4
    cdef const uint8_t *text
    cdef uint32_t text_size
    cdef list pairs = []
    while left > 0:
        hdad_string_next(source.data, source.size, &offset, &text, &text_size)
        field = _as_bytes(text, text_size)
        hdad_string_next(source.data, source.size, &offset, &text, &text_size)
        pairs.append((field, _as_bytes(text, text_size)))
        left -= 1
    return pairs


def single_value(body):
    cdef _Bytes source = _hold(body)
    return _single_value(source.data, source.size)


cdef object _single_value(const uint8_t *body, size_t size):
    cdef size_t offset = 4
    cdef const uint8_t *text
    cdef uint32_t text_size
    if size < 4 or hdad_load_u32(body) != 1:
        return None
    cdef const char *wrong = hdad_body_check(<uint8_t>HDAD_RECORD_KIND_ENTRY, body, size)
    if wrong != NULL:
        _refuse(wrong, 0, size)
    hdad_string_next(body, size, &offset, &text, &text_size)
    hdad_string_next(body, size, &offset, &text, &text_size)
    return _as_bytes(text, text_size)


cdef class _Block(_Window)


include "_record.pxi"


# --- frames -----------------------------------------------------------------------------------------------------------------------


cdef size_t _whole_blocks(uint64_t stored_size, size_t block):
    return <size_t>((HDAD_FRAME_HEADER_SIZE + stored_size + block - 1) // block * block)


cdef size_t _seal(_Bytes target, object out, size_t block, hdad_frame *frame) except 0:
    """Header, CRC and the zeros behind a payload that is in its place. Returns the frame's size."""
    cdef size_t size = _whole_blocks(frame.stored_size, block)
    cdef size_t end = HDAD_FRAME_HEADER_SIZE + frame.stored_size
    if size > target.size:
        raise ValueError(f"a frame of {size} bytes in {target.size}")
    frame.payload_crc = _crc32c(out[HDAD_FRAME_HEADER_SIZE:end])
    hdad_frame_build(target.data, frame)
    memset(target.data + end, 0, size - end)
    return size


def seal_frame(out, size_t block, int kind, stored_size, lane, from_, to, record_count, entry_count, lost, filtered, dead, worker, label_ns):
    cdef _Bytes target = _hold(out, True)
    cdef hdad_frame frame
    if block < HDAD_FRAME_HEADER_SIZE or block & (block - 1) or not 0 <= stored_size <= 0xFFFFFFFFU:
        raise ValueError(f"a frame of {stored_size} bytes in blocks of {block}")
    frame.kind = <uint8_t>kind
    frame.stored_size = frame.raw_size = stored_size
    frame.lane_id, frame.lane_epoch = lane
    frame.from_ms, frame.from_seq = from_
    frame.to_ms, frame.to_seq = to
    frame.record_count, frame.entry_count = record_count, entry_count
    frame.lost_count, frame.filtered_count, frame.dead_count = lost, filtered, dead
    frame.worker, frame.label_ns = worker, label_ns
    return _seal(target, out, block, &frame)


def build_header(out, int kind, payload_crc, lane, from_, to, record_count, entry_count, stored_size, raw_size, label_ns, lost, filtered,
                 dead, worker):
    cdef _Bytes target = _hold(out, True)
    cdef hdad_frame frame
    if target.size < HDAD_FRAME_HEADER_SIZE:
        raise ValueError(f"a header in {target.size} bytes")
    frame.kind, frame.payload_crc = <uint8_t>kind, payload_crc
    frame.lane_id, frame.lane_epoch = lane
    frame.from_ms, frame.from_seq = from_
    frame.to_ms, frame.to_seq = to
    frame.record_count, frame.entry_count = record_count, entry_count
    frame.stored_size, frame.raw_size = stored_size, raw_size
    frame.lost_count, frame.filtered_count, frame.dead_count = lost, filtered, dead
    frame.worker, frame.label_ns = worker, label_ns
    hdad_frame_build(target.data, &frame)


def stamp_header(out, bytes uuid, lsn, durable_lsn, address, writer_epoch, predecessor_crc):
    cdef _Bytes target = _hold(out, True)
    cdef hdad_stamp stamp
    if target.size < HDAD_FRAME_HEADER_SIZE or PyBytes_GET_SIZE(uuid) != 16:
        raise ValueError("a stamp needs a whole header and a uuid of 16 bytes")
    stamp.uuid = <const uint8_t *>PyBytes_AS_STRING(uuid)
    stamp.lsn, stamp.durable_lsn, stamp.address = lsn, durable_lsn, address
    stamp.writer_epoch, stamp.predecessor_crc = writer_epoch, predecessor_crc
    hdad_frame_stamp(target.data, &stamp)
    crc = _crc32c(out[4:HDAD_FRAME_HEADER_SIZE])
    hdad_store_u32(target.data, crc)
    return crc


cdef class RingFrame:
    """One frame in a ring. See the stub file."""

    cdef readonly int kind
    cdef readonly uint32_t lane_id, record_count, entry_count, stored_size, filtered_count, dead_count
    cdef readonly uint64_t lane_epoch, lost_count
    cdef readonly object from_, to, view

    @property
    def size(self):
        return len(self.view)

    @property
    def payload(self):
        return self.view[HDAD_FRAME_HEADER_SIZE : HDAD_FRAME_HEADER_SIZE + self.stored_size]

    @property
    def committed_count(self):
        return self.entry_count - self.filtered_count - self.dead_count


def scan_frames(view, size_t block, size_t bytes_max):
    cdef _Bytes source = _hold(view)
    cdef size_t offset = 0
    cdef size_t size
    cdef hdad_frame found
    cdef RingFrame frame
    cdef const char *wrong
    cdef list frames = []
    if block < HDAD_FRAME_HEADER_SIZE or block & (block - 1):
        raise ValueError(f"blocks of {block} bytes")
    while offset < source.size and (offset == 0 or offset < bytes_max):
        wrong = hdad_frame_load(source.data + offset, source.size - offset, &found)
        if wrong != NULL:
            _refuse(wrong, offset, source.size)
        size = _whole_blocks(found.stored_size, block)
        if size > source.size - offset:
            _refuse("a frame goes beyond what is there", offset, source.size)
        frame = RingFrame.__new__(RingFrame)
        frame.view = view[offset : offset + size]
        if _crc32c(view[offset + HDAD_FRAME_HEADER_SIZE : offset + HDAD_FRAME_HEADER_SIZE + found.stored_size]) != found.payload_crc:
            _refuse("a payload is not what its worker packed", offset, source.size)
        frame.kind, frame.lane_id, frame.lane_epoch = found.kind, found.lane_id, found.lane_epoch
        frame.record_count, frame.entry_count, frame.stored_size = found.record_count, found.entry_count, found.stored_size
        frame.filtered_count, frame.dead_count, frame.lost_count = found.filtered_count, found.dead_count, found.lost_count
        frame.from_ = _position(found.from_ms, found.from_seq)
        frame.to = _position(found.to_ms, found.to_seq)
        frames.append(frame)
        offset += size
    return frames


cdef object _position(uint64_t ms, uint64_t seq):
    return _new_tuple(_Position, (ms, seq))


# --- replies ----------------------------------------------------------------------------------------------------------------------


cdef class _Block(_Window):
    """The bytes of a reply. A larger block replaces it when it is full; views of the old one stay valid and show nothing new."""

    cdef uint8_t *data
    cdef size_t capacity

    def __cinit__(self, size_t capacity):
        self.data = <uint8_t *>PyMem_RawMalloc(capacity)
        if self.data == NULL:
            raise MemoryError
        self.capacity = capacity

    def __dealloc__(self):
        PyMem_RawFree(self.data)


cdef size_t _BLOCK_SIZE = 65536
cdef tuple _KINDS = ("streams", "nil", "error", "other")


cdef class XReadReply:
    """One reply of XREAD, taken in as it arrives. See the stub file and native/resp.h."""

    cdef hdad_resp _parser
    cdef _Block _block
    cdef size_t _size
    cdef size_t _bytes_max
    cdef bint _complete
    cdef bint _has_lent  # records that lie in the block

    def __cinit__(self):
        hdad_resp_init(&self._parser)

    def __init__(self, bytes_max):
        if not 1024 <= bytes_max <= HDAD_RESP_BUFFER_MAX:
            raise ValueError(f"replies of at most {bytes_max} bytes; allowed: 1024 to {HDAD_RESP_BUFFER_MAX}")
        self._bytes_max = bytes_max
        self._block = _Block(min(_BLOCK_SIZE, self._bytes_max))
        self._size = 0
        self._complete = False
        hdad_resp_next(&self._parser)

    def __dealloc__(self):
        hdad_resp_free(&self._parser)

    cdef object _ready(self):
        if self._block is None:
            raise TypeError("XReadReply was not initialized")

    def space(self, Py_ssize_t hint=65536):
        self._ready()
        if hint < 1:
            raise ValueError(f"hint of {hint} bytes; allowed: 1 and more")
        if self._size >= self._bytes_max or (not self._complete and self._parser.need > self._bytes_max):
            raise OverflowError(f"a reply is larger than {self._bytes_max} bytes")
        cdef size_t wanted = min(self._size + <size_t>hint, self._bytes_max)
        cdef size_t capacity = self._block.capacity
        cdef _Block larger
        if capacity < wanted:
            while capacity < wanted:
                capacity *= 2
            larger = _Block(min(capacity, self._bytes_max))
            memcpy(larger.data, self._block.data, self._size)
            self._block = larger
        return self._block._show(self._block.data + self._size, self._block.capacity - self._size)

    def commit(self, Py_ssize_t n):
        self._ready()
        if n < 0 or <size_t>n > self._block.capacity - self._size:
            raise ValueError(f"commit of {n} bytes; there is space for {self._block.capacity - self._size}")
        self._size += <size_t>n
        if self._complete:
            return True
        cdef hdad_resp_status status = hdad_resp_scan(&self._parser, self._block.data, self._size)
        if status == HDAD_RESP_DONE:
            self._complete = True
            return True
        if status == HDAD_RESP_BAD:
            raise ValueError(f"{self._parser.wrong.decode()} (byte {self._parser.position} of the reply)")
        if status == HDAD_RESP_NO_MEMORY:
            raise MemoryError
        if self._parser.start > 0 and self._parser.position == self._parser.start:
            self._forget(self._parser.start)  # pushes before the reply: done with, and they must not count towards bytes_max
        return False

    cdef hdad_resp_stream *_stream(self, Py_ssize_t stream) except NULL:
        self._ready()
        if not self._complete:
            raise ValueError("the reply is not complete")
        if stream < 0 or <size_t>stream >= self._parser.stream_count:
            raise IndexError(f"stream {stream} of {self._parser.stream_count}")
        return &self._parser.streams[stream]

    cdef object _name(self, const hdad_resp_stream *row):
        return _as_bytes(self._block.data + row.name, row.name_size)

    @property
    def kind(self):
        self._ready()
        if not self._complete:
            raise ValueError("the reply is not complete")
        return _KINDS[<int>self._parser.kind]

    @property
    def buffered(self):
        return self._size

    @property
    def error(self):
        self._ready()
        if not self._complete or self._parser.kind != HDAD_RESP_ERROR:
            return b""
        return _as_bytes(self._block.data + self._parser.error, self._parser.error_size)

    @property
    def streams(self):
        self._ready()
        cdef list rows = []
        cdef hdad_resp_stream *row
        cdef hdad_resp_entry *first
        cdef hdad_resp_entry *last
        cdef uint32_t index
        if not self._complete:
            raise ValueError("the reply is not complete")
        for index in range(self._parser.stream_count):
            row = &self._parser.streams[index]
            if row.entry_count == 0:
                rows.append((self._name(row), 0, 0, 0, 0, 0))
                continue
            first = &self._parser.entries[row.first_entry]
            last = first + (row.entry_count - 1)
            rows.append((self._name(row), row.entry_count, first.ms, first.seq, last.ms, last.seq))
        return rows

    def pack(self, Py_ssize_t stream, Py_ssize_t skip, out, uint64_t entry_bytes_max):
        cdef hdad_resp_stream *row = self._stream(stream)
        if skip < 0 or <size_t>skip > row.entry_count:
            raise IndexError(f"entry {skip} of {row.entry_count}")
        cdef _Bytes target = _hold(out, True)
        cdef hdad_resp_packed packed = hdad_resp_pack(
            &self._parser, self._block.data, self._size, <uint32_t>stream, <uint32_t>skip, target.data, target.size, entry_bytes_max
        )
        return packed.entry_count, packed.size, packed.last_ms, packed.last_seq

    def pack_frame(self, Py_ssize_t stream, Py_ssize_t skip, out, uint64_t entry_bytes_max, size_t block, int kind, lane, from_, lost, worker, label_ns):
        cdef hdad_resp_stream *row = self._stream(stream)
        if skip < 0 or <size_t>skip > row.entry_count:
            raise IndexError(f"entry {skip} of {row.entry_count}")
        cdef _Bytes target = _hold(out, True)
        if block < HDAD_FRAME_HEADER_SIZE or block & (block - 1) or target.size < block:
            raise ValueError(f"a frame in {target.size} bytes, in blocks of {block}")
        cdef hdad_frame frame
        cdef hdad_resp_packed packed = hdad_resp_pack(
            &self._parser, self._block.data, self._size, <uint32_t>stream, <uint32_t>skip, target.data + HDAD_FRAME_HEADER_SIZE,
            target.size // block * block - HDAD_FRAME_HEADER_SIZE, entry_bytes_max
        )
        if packed.entry_count == 0:
            return 0, 0, None
        memset(&frame, 0, sizeof(frame))
        frame.kind = <uint8_t>kind
        frame.stored_size = frame.raw_size = <uint32_t>packed.size
        frame.lane_id, frame.lane_epoch = lane
        frame.from_ms, frame.from_seq = from_
        frame.to_ms, frame.to_seq = packed.last_ms, packed.last_seq
        frame.record_count = frame.entry_count = packed.entry_count
        frame.lost_count, frame.worker, frame.label_ns = lost, worker, label_ns
        return packed.entry_count, _seal(target, out, block, &frame), _position(packed.last_ms, packed.last_seq)

    def entry_size(self, Py_ssize_t stream, Py_ssize_t index):
        cdef hdad_resp_stream *row = self._stream(stream)
        if index < 0 or <size_t>index >= row.entry_count:
            raise IndexError(f"entry {index} of {row.entry_count}")
        return hdad_resp_record_size(&self._parser.entries[row.first_entry + <uint32_t>index])

    def records(self, Py_ssize_t stream, str name, Py_ssize_t skip=0):
        cdef hdad_resp_stream *row = self._stream(stream)
        cdef uint32_t index
        cdef list found = []
        if skip < 0:
            raise IndexError(f"entry {skip} of {row.entry_count}")
        self._has_lent = True
        for index in range(<uint32_t>min(<size_t>skip, <size_t>row.entry_count), row.entry_count):
            found.append(_record_of(name, &self._parser.entries[row.first_entry + index], self._block))
        return found

    def partial_id(self):
        self._ready()
        cdef hdad_resp_stream *row
        cdef uint32_t index
        for index in range(self._parser.stream_count):
            row = &self._parser.streams[index]
            if row.entry_count > 0:
                return self._name(row), self._parser.entries[row.first_entry].ms, self._parser.entries[row.first_entry].seq
        return None

    def reset(self):
        self._ready()
        if self._parser.failed:
            raise ValueError("the reply is not RESP; only clear() goes on")
        if self._complete:
            self._forget(self._parser.position)

    def clear(self):
        self._ready()
        self._forget(self._size)

    cdef object _forget(self, size_t count):
        cdef _Block other = self._block
        if self._has_lent and Py_REFCNT(<PyObject *>other) > 2:  # somebody holds a record, whose bytes must stay
            self._block = _Block(other.capacity)
        self._has_lent = False
        self._size -= count
        if self._size > 0:
            memmove(self._block.data, other.data + count, self._size)
        self._complete = False
        hdad_resp_next(&self._parser)

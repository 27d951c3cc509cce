# What a pipeline stage sees of one entry, and the walks over many of them that Python would be too slow for. Included by _core.pyx.

cdef object _UNSET = object()
cdef int _ENTRY = HDAD_RECORD_KIND_ENTRY
cdef int _VALUE = 1


@final
cdef class Record:
    """One record. See the stub file."""

    cdef readonly str stream
    cdef readonly int kind
    cdef hdad_resp_entry _at  # its ID; of what is in a reply, where
    cdef Record _entry  # the one it was made from, as it came from Redis; None: it is that one
    cdef bytes _body  # None: it is in a reply still, or is to be made of _data
    cdef object _data
    cdef dict _fields
    cdef _Block _block  # of that reply; None: not in one

    def __init__(self, str stream, position, int kind, bytes body not None):
        if not 0 <= kind <= <int>HDAD_RECORD_KIND_MAX:
            raise ValueError(f"record kind {kind}; allowed: 0 to {HDAD_RECORD_KIND_MAX}")
        self.stream, self.kind, self._body, self._data = stream, kind, body, _UNSET
        self._entry = self._block = self._fields = None
        self._at.ms, self._at.seq = position

    cdef Record _made(self, int kind):
        cdef Record made = Record.__new__(Record)
        made.stream, made.kind, made._data = self.stream, kind, _UNSET
        made._at.ms, made._at.seq = self._at.ms, self._at.seq
        made._entry = self._origin()
        return made

    cdef Record _origin(self):
        return self if self._entry is None else self._entry

    @property
    def origin(self):
        return self._origin()

    @property
    def ms(self):
        return self._at.ms

    @property
    def seq(self):
        return self._at.seq

    @property
    def position(self):
        return _position(self._at.ms, self._at.seq)

    cdef bytes _bytes(self):
        if self._body is None:
            if self._block is None:
                self._body = _dumps(self._data)
            else:
                self._detach()
        return self._body

    cdef object _detach(self):
        """Take the body out of the reply, which is free to go then."""
        self._body = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>self._at.body_size)
        hdad_resp_pack_body(&self._at, self._block.data, <uint8_t *>PyBytes_AS_STRING(self._body))
        self._block = None

    @property
    def body(self):
        return self._bytes()

    @property
    def fields(self):
        if self._fields is None:
            self._fields = dict(decode_entry(self._bytes())) if self.kind == _ENTRY else {}
        return self._fields

    @property
    def value(self):
        return self._bytes() if self.kind == _VALUE else None

    @property
    def data(self):
        if self._data is _UNSET:
            self._data = self._decode()
        return self._data

    cdef object _decode(self):
        if self.kind == _VALUE:
            return _loads(self._bytes())
        only = self._only_value()
        if only is not None and PyBytes_GET_SIZE(only) > 0 and PyBytes_AS_STRING(only)[0] in (b'{', b'['):
            return _loads(only)
        return {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in self.fields.items()}

    cdef object _only_value(self):
        """The value of an entry with one field; None when it has none or more."""
        cdef const uint8_t *value
        cdef uint32_t size
        if self._block is None:
            return _single_value(<const uint8_t *>PyBytes_AS_STRING(self._body), <size_t>PyBytes_GET_SIZE(self._body))
        value = hdad_resp_only_value(&self._at, self._block.data, &size)
        return _as_bytes(value, size) if value != NULL else None

    def with_value(self, value):
        cdef Record made = self._made(_VALUE)
        if isinstance(value, (bytes, bytearray)):
            made._body = bytes(value)
        elif isinstance(value, str):
            made._body = (<str>value).encode()
        else:
            made._data = value
        return made

    def with_fields(self, fields):
        cdef Record made = self._made(_ENTRY)
        made._body = encode_entry(fields.items())
        return made

    def __repr__(self):
        content = self.fields if self.kind == _ENTRY else self._bytes()[:40]
        return f"Record({self.stream!r}, {self.position}, {('ENTRY', 'VALUE', 'DEAD_LETTER')[self.kind]}, {content!r})"


cdef Record _record_of(str stream, const hdad_resp_entry *entry, _Block block):
    cdef Record record = Record.__new__(Record)
    record.stream, record.kind, record._data = stream, _ENTRY, _UNSET
    record._at, record._block = entry[0], block
    return record


def detach_records(list records):
    cdef Py_ssize_t index = 0
    cdef Record record
    while index < len(records):  # looked at each time: an allocation may run anybody's code
        if Py_REFCNT(PyList_GET_ITEM(records, index)) > 1:  # not only here
            record = <Record?>records[index]
            if record._block is not None:
                record._detach()
        index += 1


def count_fitting(list records, Py_ssize_t start, size_t room):
    cdef Py_ssize_t index = start
    cdef size_t size
    cdef Record record
    if start < 0:
        raise IndexError(f"record {start} of {len(records)}")
    while index < len(records):
        record = <Record?>records[index]
        size = record._at.body_size if record._block is not None else <size_t>PyBytes_GET_SIZE(record._bytes())
        size += HDAD_RECORD_HEADER_SIZE
        index += 1
        if size >= room:
            break
        room -= size
    return index - start


def gather_records(made, among):
    cdef list batch = list(among)
    cdef list found = []
    cdef bint is_in_order = True
    cdef Py_ssize_t index = 0
    cdef Py_ssize_t count = len(batch)
    cdef Record origin
    for item in made:
        if item is None:
            continue
        if type(item) is not Record:
            return found, False, item
        found.append(item)
        if is_in_order:
            origin = (<Record>item)._origin()
            while index < count and (<Record?>batch[index])._origin() is not origin:
                index += 1
            is_in_order = index < count
    return found, is_in_order, None


def encode_records(records):
    cdef Record record
    for record in records:
        record._bytes()


def measure_records(records):
    cdef Record record
    cdef size_t size = 0
    cdef Py_ssize_t origins = 0
    cdef Record last = None
    for item in records:
        if type(item) is not Record:
            size += HDAD_RECORD_HEADER_SIZE + <size_t>len(item[3])
            origins += 1
            continue
        record = <Record>item
        size += HDAD_RECORD_HEADER_SIZE + <size_t>PyBytes_GET_SIZE(record._bytes())
        if record._origin() is not last:
            origins += 1
            last = record._origin()
    return size, origins

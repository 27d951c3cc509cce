# What a pipeline stage sees of one entry, and the walks over many of them that Python would be too slow for. Included by _core.pyx.

cdef object _UNSET = object()
cdef int _ENTRY = HDAD_RECORD_KIND_ENTRY
cdef int _VALUE = 1


@final
cdef class Record:
    """One record. See the stub file."""

    cdef readonly str stream
    cdef readonly tuple origin
    cdef readonly int kind
    cdef object _body
    cdef object _data
    cdef dict _fields

    def __init__(self, str stream, tuple origin, int kind, body, data=_UNSET):
        if not 0 <= kind <= <int>HDAD_RECORD_KIND_MAX:
            raise ValueError(f"record kind {kind}; allowed: 0 to {HDAD_RECORD_KIND_MAX}")
        self.stream, self.origin, self.kind, self._body, self._data = stream, origin, kind, body, data

    @property
    def ms(self):
        return self.origin[0]

    @property
    def seq(self):
        return self.origin[1]

    @property
    def position(self):
        return _new_tuple(_Position, self.origin[:2])

    cdef bytes _bytes(self):
        if self._body is None:
            self._body = _dumps(self._data)
        return self._body

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
        cdef bytes body = self._bytes()
        if self.kind == _VALUE:
            return _loads(body)
        only = _single_value(<const uint8_t *>PyBytes_AS_STRING(body), <size_t>PyBytes_GET_SIZE(body))
        if only is not None and PyBytes_GET_SIZE(only) > 0 and PyBytes_AS_STRING(only)[0] in (b'{', b'['):
            return _loads(only)
        return {name.decode("utf-8", "replace"): value.decode("utf-8", "replace") for name, value in self.fields.items()}

    def with_value(self, value):
        cdef Record made = Record.__new__(Record)
        made.stream, made.origin, made.kind, made._data = self.stream, self.origin, _VALUE, _UNSET
        if isinstance(value, (bytes, bytearray)):
            made._body = bytes(value)
        elif isinstance(value, str):
            made._body = (<str>value).encode()
        else:
            made._data = value
        return made

    def with_fields(self, fields):
        return Record(self.stream, self.origin, _ENTRY, encode_entry(fields.items()))

    def __repr__(self):
        content = self.fields if self.kind == _ENTRY else self._bytes()[:40]
        return f"Record({self.stream!r}, {self.position}, {('ENTRY', 'VALUE', 'DEAD_LETTER')[self.kind]}, {content!r})"


def make_records(str stream, list entries):
    cdef list records = []
    cdef Record record
    for entry in entries:
        record = Record.__new__(Record)
        record.stream, record.origin, record.kind, record._body, record._data = stream, entry, _ENTRY, (<tuple>entry)[2], _UNSET
        records.append(record)
    return records


def come_in_order(list records, among):
    cdef list batch = list(among)
    cdef Py_ssize_t index = 0
    cdef Py_ssize_t count = len(batch)
    for record in records:
        if not isinstance(record, Record):
            raise TypeError(f"a {type(record).__name__}")
        while index < count and (<Record?>batch[index]).origin is not (<Record>record).origin:
            index += 1
        if index == count:
            return False
    return True


def encode_records(records):
    cdef Record record
    for record in records:
        record._bytes()


def measure_records(records):
    cdef Record record
    cdef size_t size = 0
    cdef Py_ssize_t origins = 0
    cdef tuple last = None
    for item in records:
        if type(item) is not Record:
            size += HDAD_RECORD_HEADER_SIZE + <size_t>len(item[3])
            origins += 1
            continue
        record = <Record>item
        size += HDAD_RECORD_HEADER_SIZE + <size_t>PyBytes_GET_SIZE(record._bytes())
        if record.origin is not last:
            origins += 1
            last = record.origin
    return size, origins

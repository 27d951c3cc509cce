/* One reply of XREAD, scanned as its bytes arrive and then packed as records.
 *
 * Owns the walk over RESP2 and RESP3 and the index of entries. Used by workers. Knows nothing of Python or sockets; the buffer is the
 * caller's, who keeps it contiguous and may move it between calls (only offsets are kept). Never trusts a length: memory grows with
 * what has arrived, not with what is announced.
 *
 * Each byte is scanned once, whatever the chunks are, except a length line that was cut (at most HDAD_RESP_LENGTH_LINE_MAX bytes).
 *
 * The scan rewrites finished strings in place, so that packing parses nothing: "$5\r\nhello\r\n" is at least 4 bytes longer than its
 * text, in front of which go 4 bytes of its size, as in a packed entry; the byte after the text tells how far the next one's size is.
 *
 * A reply of any other shape than XREAD's is walked to its end, and its kind is "other". Pushes (>) and attributes (|) between replies
 * are skipped.
 */
#ifndef HDAD_RESP_H
#define HDAD_RESP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HDAD_RESP_DEPTH_MAX 16u                        /* LIMIT: nesting */
#define HDAD_RESP_STRING_MAX UINT64_C(0x7fffff00)      /* LIMIT: one announced string */
#define HDAD_RESP_COUNT_MAX UINT64_C(0x7fffffff)       /* LIMIT: announced elements of one aggregate */
#define HDAD_RESP_BUFFER_MAX UINT64_C(0x7fffffff)      /* LIMIT: buffered bytes, so that offsets fit 32 bits */
#define HDAD_RESP_LENGTH_LINE_MAX 24u                  /* type, sign, 20 digits, CR, LF */

enum hdad_resp_status {
    HDAD_RESP_MORE = 0, /* the reply is not complete */
    HDAD_RESP_DONE,     /* complete; later bytes are untouched */
    HDAD_RESP_BAD,      /* not RESP, or not what Redis may say; parser->wrong tells; final */
    HDAD_RESP_NO_MEMORY /* the index could not grow; the same call may be tried again */
};

enum hdad_resp_kind { HDAD_RESP_STREAMS = 0, HDAD_RESP_NIL, HDAD_RESP_ERROR, HDAD_RESP_OTHER };

struct hdad_resp_stream {
    uint32_t name; /* offset of the name's bytes */
    uint32_t name_size;
    uint32_t first_entry; /* index */
    uint32_t entry_count; /* that have an id already */
};

struct hdad_resp_entry {
    uint64_t ms;
    uint64_t seq;
    uint32_t strings; /* offset of the first string's size */
    uint32_t body_size;
    uint32_t pair_count;
    uint32_t reserved;
};

struct hdad_resp {
    size_t start;    /* where the reply begins: behind what was skipped */
    size_t position; /* first byte not scanned */
    size_t searched; /* no line feed between position and here */
    size_t need;     /* the scan cannot go on with less than this many bytes */
    int state;
    enum hdad_resp_kind kind;
    bool map;          /* RESP3: names and entries alternate */
    bool failed;       /* BAD was returned */
    const char *wrong; /* constant text */
    uint64_t streams_left, entries_left, strings_left;
    uint32_t string_end; /* end of the last string of this entry, 0 before the first */
    uint32_t error, error_size;
    uint32_t depth; /* of what is walked without looking at its shape */
    bool skipping;  /* a push or attribute before the reply */
    uint64_t left[HDAD_RESP_DEPTH_MAX];
    struct hdad_resp_stream *streams;
    struct hdad_resp_entry *entries;
    uint32_t stream_count, stream_capacity, entry_count, entry_capacity;
};

struct hdad_resp_packed {
    uint32_t entry_count;
    size_t size;
    uint64_t last_ms, last_seq; /* of the last entry packed; 0 if none */
};

void hdad_resp_init(struct hdad_resp *parser);
void hdad_resp_free(struct hdad_resp *parser);

/* Ready for the next reply, which begins at offset 0 of the buffer. Keeps the index's memory. */
void hdad_resp_next(struct hdad_resp *parser);

/* Goes on where the last call stopped; size counts all bytes of the buffer from its beginning. Rewrites scanned bytes. */
enum hdad_resp_status hdad_resp_scan(struct hdad_resp *parser, uint8_t *data, size_t size);

/* Record bytes of an entry: header and body. */
uint64_t hdad_resp_record_size(const struct hdad_resp_entry *entry);

/* Copies an entry's body (body_size bytes) to out. size: all readable bytes of data. */
void hdad_resp_pack_body(const struct hdad_resp_entry *entry, const uint8_t *data, uint8_t *out);

/* The value of an entry with one field, in data, and its size; NULL for an entry with none or more. */
const uint8_t *hdad_resp_only_value(const struct hdad_resp_entry *entry, const uint8_t *data, uint32_t *size);

/* Packs records of entries [skip..] of a stream until out is full or an entry's body is larger than body_max. The reply is DONE. */
struct hdad_resp_packed hdad_resp_pack(const struct hdad_resp *parser, const uint8_t *data, size_t size, uint32_t stream, uint32_t skip,
                                       uint8_t *out, size_t out_size, uint64_t body_max);

#endif

/* Records and entries as bytes: what a frame's payload is made of.
 *
 * Owns both layouts. Pure: bytes in, bytes or a verdict out; no memory of its own, no Python. Used by workers (packing), readers and
 * verify (checking).
 *
 * FORMAT: a record, little-endian, no padding:
 *   0 u32 body_size | 4 u8 kind | 5 u8[3] zero | 8 u64 ms | 16 u64 seq | 24 body
 * FORMAT: body of kind 0 (entry): u32 pair_count, then for each field and each value: u32 size, bytes.
 *         body of kind 1 (value): any bytes.
 *         body of kind 2 (dead letter): u32 json_size, json, entry body (possibly empty or cut).
 */
#ifndef HDAD_PACK_H
#define HDAD_PACK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define HDAD_RECORD_HEADER_SIZE 24u
#define HDAD_RECORD_KIND_ENTRY 0u
#define HDAD_RECORD_KIND_VALUE 1u
#define HDAD_RECORD_KIND_DEAD_LETTER 2u
#define HDAD_RECORD_KIND_MAX 2u

struct hdad_record {
    uint64_t ms;
    uint64_t seq;
    const uint8_t *body;
    uint32_t body_size;
    uint8_t kind;
};

static inline uint32_t hdad_load_u32(const uint8_t *from)
{
    uint32_t value;
    memcpy(&value, from, sizeof value);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = __builtin_bswap32(value);
#endif
    return value;
}

static inline uint64_t hdad_load_u64(const uint8_t *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof value);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = __builtin_bswap64(value);
#endif
    return value;
}

static inline void hdad_store_u32(uint8_t *to, uint32_t value)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = __builtin_bswap32(value);
#endif
    memcpy(to, &value, sizeof value);
}

static inline void hdad_store_u64(uint8_t *to, uint64_t value)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = __builtin_bswap64(value);
#endif
    memcpy(to, &value, sizeof value);
}

/* Writes the 24 bytes before a body. */
static inline void hdad_record_header(uint8_t *out, uint32_t body_size, uint8_t kind, uint64_t ms, uint64_t seq)
{
    hdad_store_u32(out, body_size);
    hdad_store_u32(out + 4, kind); /* kind and the three zero bytes */
    hdad_store_u64(out + 8, ms);
    hdad_store_u64(out + 16, seq);
}

/* Reads the record at *offset and moves *offset behind it. NULL: fine; otherwise what is wrong (a constant text). */
const char *hdad_record_next(const uint8_t *payload, size_t size, size_t *offset, struct hdad_record *record);

/* NULL if the payload is exactly count valid records whose positions never go back; otherwise what is wrong, at *offset. */
const char *hdad_records_check(const uint8_t *payload, size_t size, uint64_t count, size_t *offset);

/* NULL if the body of this kind is well formed to its last byte; otherwise what is wrong. */
const char *hdad_body_check(uint8_t kind, const uint8_t *body, size_t size);

/* Reads a sized string at *offset and moves *offset behind it. False if it does not fit. */
bool hdad_string_next(const uint8_t *body, size_t size, size_t *offset, const uint8_t **bytes, uint32_t *bytes_size);

#endif

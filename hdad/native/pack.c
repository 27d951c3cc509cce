#include "pack.h"

const char *hdad_record_next(const uint8_t *payload, size_t size, size_t *offset, struct hdad_record *record)
{
    const size_t left = size - *offset;
    if (left < HDAD_RECORD_HEADER_SIZE)
        return "cut in a record's header";
    const uint8_t *header = payload + *offset;
    record->body_size = hdad_load_u32(header);
    record->kind = header[4];
    record->ms = hdad_load_u64(header + 8);
    record->seq = hdad_load_u64(header + 16);
    record->body = header + HDAD_RECORD_HEADER_SIZE;
    if (record->kind > HDAD_RECORD_KIND_MAX)
        return "unknown record kind";
    if ((header[5] | header[6] | header[7]) != 0)
        return "reserved bytes of a record are not zero";
    if (record->body_size > left - HDAD_RECORD_HEADER_SIZE)
        return "a record's body goes beyond the payload";
    *offset += HDAD_RECORD_HEADER_SIZE + record->body_size;
    return NULL;
}

bool hdad_string_next(const uint8_t *body, size_t size, size_t *offset, const uint8_t **bytes, uint32_t *bytes_size)
{
    const size_t left = size - *offset;
    if (left < 4)
        return false;
    const uint32_t length = hdad_load_u32(body + *offset);
    if (length > left - 4)
        return false;
    *bytes = body + *offset + 4;
    *bytes_size = length;
    *offset += 4 + (size_t)length;
    return true;
}

const char *hdad_body_check(uint8_t kind, const uint8_t *body, size_t size)
{
    const uint8_t *bytes;
    uint32_t bytes_size;
    size_t offset = 0;
    if (kind == HDAD_RECORD_KIND_DEAD_LETTER)
        return hdad_string_next(body, size, &offset, &bytes, &bytes_size) ? NULL : "a dead letter's reason goes beyond its body";
    if (kind != HDAD_RECORD_KIND_ENTRY)
        return NULL;
    if (size < 4)
        return "an entry without a pair count";
    offset = 4;
    /* LIMIT: a pair takes at least 8 bytes, so a false count ends the loop at the end of the body. */
    for (uint64_t strings = 2 * (uint64_t)hdad_load_u32(body); strings > 0; strings--)
        if (!hdad_string_next(body, size, &offset, &bytes, &bytes_size))
            return "an entry's fields go beyond its body";
    return offset == size ? NULL : "bytes after an entry's last value";
}

const char *hdad_records_check(const uint8_t *payload, size_t size, uint64_t count, size_t *offset)
{
    uint64_t ms = 0, seq = 0, found = 0;
    *offset = 0;
    while (*offset < size) {
        struct hdad_record record;
        const size_t start = *offset;
        const char *wrong = hdad_record_next(payload, size, offset, &record);
        if (wrong == NULL)
            wrong = hdad_body_check(record.kind, record.body, record.body_size);
        if (wrong == NULL && (record.ms < ms || (record.ms == ms && record.seq < seq)))
            wrong = "a record's position is before its predecessor's";
        if (wrong == NULL && found == count)
            wrong = "more records than the header says";
        if (wrong != NULL) {
            *offset = start;
            return wrong;
        }
        ms = record.ms;
        seq = record.seq;
        found++;
    }
    return found == count ? NULL : "fewer records than the header says";
}

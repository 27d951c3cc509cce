/* The header of a frame: what a worker fills, what the writer stamps, what the writer reads of a frame in a ring.
 *
 * Owns no offset: they come from frame_layout.h, which is made from the table in hdad/log/format.py. Pure: bytes in, bytes or a verdict
 * out; no memory of its own, no Python. Validity of frames on a device is hdad/log/format.py's; here is only what the hot path needs.
 */
#ifndef HDAD_FRAME_H
#define HDAD_FRAME_H

#include <stddef.h>
#include <stdint.h>

#include "frame_layout.h"

/* What a worker knows of its frame. raw_size: as stored_size, but for padding. */
struct hdad_frame {
    uint64_t lane_epoch;
    uint64_t from_ms, from_seq;
    uint64_t to_ms, to_seq;
    uint64_t label_ns;
    uint64_t lost_count;
    uint32_t payload_crc;
    uint32_t lane_id;
    uint32_t record_count;
    uint32_t entry_count;
    uint32_t stored_size;
    uint32_t raw_size;
    uint32_t filtered_count;
    uint32_t dead_count;
    uint32_t worker;
    uint8_t kind;
};

/* What the writer adds. */
struct hdad_stamp {
    const uint8_t *uuid; /* 16 bytes */
    uint64_t lsn;
    uint64_t durable_lsn;
    uint64_t address;
    uint64_t writer_epoch;
    uint32_t predecessor_crc;
};

/* Fills HDAD_FRAME_HEADER_SIZE bytes; what the writer stamps and what is reserved is zero. */
void hdad_frame_build(uint8_t *header, const struct hdad_frame *frame);

/* Fills what is the writer's. The header CRC (over all behind it) is then the caller's to store. */
void hdad_frame_stamp(uint8_t *header, const struct hdad_stamp *stamp);

/* Reads what a worker filled. NULL: fine; otherwise what is wrong (a constant text). size: bytes that are there. */
const char *hdad_frame_load(const uint8_t *header, size_t size, struct hdad_frame *frame);

#endif

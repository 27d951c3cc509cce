#include "frame.h"

#include <assert.h>
#include <string.h>

#include "pack.h"

static_assert(HDAD_FRAME_VERSION == 1, "FORMAT: this file fills and reads version 1");

void hdad_frame_build(uint8_t *header, const struct hdad_frame *frame)
{
    memset(header, 0, HDAD_FRAME_HEADER_SIZE);
    memcpy(header + HDAD_FRAME_MAGIC_AT, HDAD_FRAME_MAGIC, sizeof HDAD_FRAME_MAGIC - 1);
    header[HDAD_FRAME_VERSION_AT] = HDAD_FRAME_VERSION; /* u16, little-endian, below 256 */
    header[HDAD_FRAME_KIND_AT] = frame->kind;
    hdad_store_u32(header + HDAD_FRAME_PAYLOAD_CRC_AT, frame->payload_crc);
    hdad_store_u32(header + HDAD_FRAME_LANE_ID_AT, frame->lane_id);
    hdad_store_u64(header + HDAD_FRAME_LANE_EPOCH_AT, frame->lane_epoch);
    hdad_store_u64(header + HDAD_FRAME_FROM_MS_AT, frame->from_ms);
    hdad_store_u64(header + HDAD_FRAME_FROM_SEQ_AT, frame->from_seq);
    hdad_store_u64(header + HDAD_FRAME_TO_MS_AT, frame->to_ms);
    hdad_store_u64(header + HDAD_FRAME_TO_SEQ_AT, frame->to_seq);
    hdad_store_u32(header + HDAD_FRAME_RECORD_COUNT_AT, frame->record_count);
    hdad_store_u32(header + HDAD_FRAME_ENTRY_COUNT_AT, frame->entry_count);
    hdad_store_u32(header + HDAD_FRAME_STORED_SIZE_AT, frame->stored_size);
    hdad_store_u32(header + HDAD_FRAME_RAW_SIZE_AT, frame->raw_size);
    hdad_store_u64(header + HDAD_FRAME_LABEL_NS_AT, frame->label_ns);
    hdad_store_u64(header + HDAD_FRAME_LOST_COUNT_AT, frame->lost_count);
    hdad_store_u32(header + HDAD_FRAME_FILTERED_COUNT_AT, frame->filtered_count);
    hdad_store_u32(header + HDAD_FRAME_DEAD_COUNT_AT, frame->dead_count);
    hdad_store_u32(header + HDAD_FRAME_WORKER_AT, frame->worker);
}

void hdad_frame_stamp(uint8_t *header, const struct hdad_stamp *stamp)
{
    memcpy(header + HDAD_FRAME_UUID_AT, stamp->uuid, 16);
    hdad_store_u64(header + HDAD_FRAME_LSN_AT, stamp->lsn);
    hdad_store_u64(header + HDAD_FRAME_DURABLE_LSN_AT, stamp->durable_lsn);
    hdad_store_u64(header + HDAD_FRAME_ADDRESS_AT, stamp->address);
    hdad_store_u64(header + HDAD_FRAME_WRITER_EPOCH_AT, stamp->writer_epoch);
    hdad_store_u32(header + HDAD_FRAME_PREDECESSOR_CRC_AT, stamp->predecessor_crc);
}

const char *hdad_frame_load(const uint8_t *header, size_t size, struct hdad_frame *frame)
{
    if (size < HDAD_FRAME_HEADER_SIZE)
        return "less than a frame's header";
    if (memcmp(header + HDAD_FRAME_MAGIC_AT, HDAD_FRAME_MAGIC, sizeof HDAD_FRAME_MAGIC - 1) != 0)
        return "no frame: wrong magic";
    if (header[HDAD_FRAME_VERSION_AT] != HDAD_FRAME_VERSION || header[HDAD_FRAME_VERSION_AT + 1] != 0)
        return "a frame of another version";
    frame->kind = header[HDAD_FRAME_KIND_AT];
    frame->payload_crc = hdad_load_u32(header + HDAD_FRAME_PAYLOAD_CRC_AT);
    frame->lane_id = hdad_load_u32(header + HDAD_FRAME_LANE_ID_AT);
    frame->lane_epoch = hdad_load_u64(header + HDAD_FRAME_LANE_EPOCH_AT);
    frame->from_ms = hdad_load_u64(header + HDAD_FRAME_FROM_MS_AT);
    frame->from_seq = hdad_load_u64(header + HDAD_FRAME_FROM_SEQ_AT);
    frame->to_ms = hdad_load_u64(header + HDAD_FRAME_TO_MS_AT);
    frame->to_seq = hdad_load_u64(header + HDAD_FRAME_TO_SEQ_AT);
    frame->record_count = hdad_load_u32(header + HDAD_FRAME_RECORD_COUNT_AT);
    frame->entry_count = hdad_load_u32(header + HDAD_FRAME_ENTRY_COUNT_AT);
    frame->stored_size = hdad_load_u32(header + HDAD_FRAME_STORED_SIZE_AT);
    frame->raw_size = hdad_load_u32(header + HDAD_FRAME_RAW_SIZE_AT);
    frame->label_ns = hdad_load_u64(header + HDAD_FRAME_LABEL_NS_AT);
    frame->lost_count = hdad_load_u64(header + HDAD_FRAME_LOST_COUNT_AT);
    frame->filtered_count = hdad_load_u32(header + HDAD_FRAME_FILTERED_COUNT_AT);
    frame->dead_count = hdad_load_u32(header + HDAD_FRAME_DEAD_COUNT_AT);
    frame->worker = hdad_load_u32(header + HDAD_FRAME_WORKER_AT);
    return NULL;
}

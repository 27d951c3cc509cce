#define _GNU_SOURCE
/* The native core under sanitizers: random and hostile bytes for the parser and the record walk, two threads on a ring.
 *
 * Usage: stress parse SEED ROUNDS | stress ring SEED MEGABYTES. Ends with 0 and one line of what was done, or dies where the sanitizer says.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../hdad/native/frame.h"
#include "../../hdad/native/pack.h"
#include "../../hdad/native/resp.h"
#include "../../hdad/native/ring.h"

static uint64_t state;

static uint64_t next_random(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static uint32_t below(uint32_t limit) { return (uint32_t)(next_random() % limit); }

static void must(bool condition, const char *what)
{
    if (!condition) {
        fprintf(stderr, "stress: %s\n", what);
        abort();
    }
}

/* A valid XREAD reply of random size; returns its length. */
static size_t make_reply(char *out, size_t room, uint32_t *entry_count)
{
    size_t size = 0;
    uint32_t streams = 1 + below(4);
    bool map = below(2) == 1;
    *entry_count = 0;
    size += (size_t)snprintf(out + size, room - size, map ? "%%%u\r\n" : "*%u\r\n", streams);
    for (uint32_t s = 0; s < streams; s++) {
        uint32_t entries = below(20);
        if (!map)
            size += (size_t)snprintf(out + size, room - size, "*2\r\n");
        size += (size_t)snprintf(out + size, room - size, "$3\r\ns:%u\r\n*%u\r\n", s, entries);
        for (uint32_t e = 0; e < entries; e++) {
            uint32_t pairs = 1 + below(4);
            char id[48];
            int id_size = snprintf(id, sizeof id, "%u-%u", e + 1, below(100));
            size += (size_t)snprintf(out + size, room - size, "*2\r\n$%d\r\n%s\r\n*%u\r\n", id_size, id, 2 * pairs);
            for (uint32_t p = 0; p < 2 * pairs; p++) {
                uint32_t length = below(60);
                size += (size_t)snprintf(out + size, room - size, "$%u\r\n", length);
                for (uint32_t i = 0; i < length; i++)
                    out[size++] = (char)next_random();
                out[size++] = '\r';
                out[size++] = '\n';
            }
            ++*entry_count;
        }
    }
    return size;
}

/* Scan in random chunks; each chunk lies at the end of an allocation of just its size, so that reading past it is seen. */
static enum hdad_resp_status scan(struct hdad_resp *parser, const char *bytes, size_t size, uint8_t **data_out)
{
    size_t have = 0;
    uint8_t *data = NULL;
    enum hdad_resp_status status = HDAD_RESP_MORE;
    while (have < size && status == HDAD_RESP_MORE) {
        size_t step = 1 + below(200);
        if (step > size - have)
            step = size - have;
        uint8_t *larger = malloc(have + step);
        must(larger != NULL, "memory");
        if (have)
            memcpy(larger, data, have);
        memcpy(larger + have, bytes + have, step);
        free(data);
        data = larger;
        have += step;
        status = hdad_resp_scan(parser, data, have);
    }
    *data_out = data;
    if (have < size && status == HDAD_RESP_DONE)
        must(parser->position <= have, "the reply ends within what was scanned");
    return status;
}

static void pack_all(const struct hdad_resp *parser, const uint8_t *data, size_t size)
{
    for (uint32_t s = 0; s < parser->stream_count; s++) {
        uint32_t skip = 0;
        while (skip < parser->streams[s].entry_count) {
            size_t room = 24 + below(3000);
            uint8_t *out = malloc(room);
            must(out != NULL, "memory");
            struct hdad_resp_packed packed = hdad_resp_pack(parser, data, size, s, skip, out, room, 1u << 20);
            size_t offset = 0;
            const char *wrong = hdad_records_check(out, packed.size, packed.entry_count, &offset);
            must(wrong == NULL || strstr(wrong, "position") != NULL, "packed records are well formed");
            free(out);
            skip += packed.entry_count ? packed.entry_count : (room > 2900);
        }
    }
}

/* A header in a block of exactly its size: what was built is loaded again, and no damage of it is read beyond its end. */
static void frames(void)
{
    uint8_t *header = malloc(HDAD_FRAME_HEADER_SIZE), uuid[16] = {1, 2, 3};
    struct hdad_frame frame, loaded;
    memset(&frame, 0, sizeof frame);
    memset(&loaded, 0, sizeof loaded);
    frame.kind = (uint8_t)below(256);
    frame.lane_id = (uint32_t)next_random();
    frame.lane_epoch = next_random();
    frame.from_ms = next_random();
    frame.to_seq = next_random();
    frame.stored_size = (uint32_t)next_random();
    frame.lost_count = next_random();
    frame.worker = (uint32_t)next_random();
    const struct hdad_stamp stamp = {uuid, next_random(), next_random(), next_random(), next_random(), (uint32_t)next_random()};
    must(header != NULL, "memory");
    hdad_frame_build(header, &frame);
    hdad_frame_stamp(header, &stamp);
    must(hdad_frame_load(header, HDAD_FRAME_HEADER_SIZE, &loaded) == NULL, "a frame that was built is one");
    must(loaded.kind == frame.kind && loaded.lane_id == frame.lane_id && loaded.lane_epoch == frame.lane_epoch &&
             loaded.from_ms == frame.from_ms && loaded.to_seq == frame.to_seq && loaded.stored_size == frame.stored_size &&
             loaded.lost_count == frame.lost_count && loaded.worker == frame.worker, "a header says what it was built from");
    must(hdad_frame_load(header, below(HDAD_FRAME_HEADER_SIZE), &loaded) != NULL, "half a header is none");
    header[HDAD_FRAME_MAGIC_AT + below(8)] ^= 0x40;
    must(hdad_frame_load(header, HDAD_FRAME_HEADER_SIZE, &loaded) != NULL, "without its magic it is none");
    free(header);
}

static int parse(uint64_t rounds)
{
    static char bytes[1 << 20];
    uint64_t valid = 0, refused = 0, entries = 0;
    for (uint64_t round = 0; round < rounds; round++) {
        uint32_t expected;
        size_t size = make_reply(bytes, sizeof bytes, &expected);
        bool hostile = below(3) != 0;
        if (hostile)
            for (uint32_t flips = 1 + below(4); flips; flips--)
                bytes[below((uint32_t)size)] = below(2) ? (char)next_random() : "*$%+-:\r\n0123456789"[below(18)];
        struct hdad_resp parser;
        hdad_resp_init(&parser);
        uint8_t *data = NULL;
        enum hdad_resp_status status = scan(&parser, bytes, size, &data);
        if (!hostile) {
            must(status == HDAD_RESP_DONE && parser.entry_count == expected, "a valid reply is read whole");
            entries += expected;
        }
        if (status == HDAD_RESP_DONE && parser.kind == HDAD_RESP_STREAMS)
            pack_all(&parser, data, parser.position);
        valid += status == HDAD_RESP_DONE;
        refused += status == HDAD_RESP_BAD;
        free(data);
        hdad_resp_free(&parser);

        size_t noise = below(300);
        uint8_t *payload = malloc(noise ? noise : 1);
        must(payload != NULL, "memory");
        for (size_t i = 0; i < noise; i++)
            payload[i] = below(3) ? (uint8_t)below(5) : (uint8_t)next_random();
        size_t offset = 0;
        struct hdad_record record;
        while (offset < noise && hdad_record_next(payload, noise, &offset, &record) == NULL)
            (void)hdad_body_check(record.kind, record.body, record.body_size);
        (void)hdad_body_check((uint8_t)below(4), payload, noise);
        free(payload);
        frames();
    }
    printf("parse: %llu rounds, %llu whole, %llu refused, %llu entries of valid replies\n", (unsigned long long)rounds,
           (unsigned long long)valid, (unsigned long long)refused, (unsigned long long)entries);
    return 0;
}

static struct hdad_ring producer_ring, consumer_ring;
static uint64_t total;

static void *produce(void *unused)
{
    uint64_t sent = 0, seed = state;
    (void)unused;
    while (sent < total) {
        seed = seed * 6364136223846793005u + 1;
        uint64_t size = 1 + (seed >> 40) % 9000;
        if (size > total - sent)
            size = total - sent;
        uint8_t *out;
        bool wake, ready;
        enum hdad_ring_status status = hdad_ring_claim(&producer_ring, size, &out);
        if (status == HDAD_RING_FULL) {
            must(hdad_ring_producer_sleep(&producer_ring, size, &ready) == HDAD_RING_OK, "producer sleep");
            hdad_ring_producer_awake(&producer_ring);
            continue;
        }
        must(status == HDAD_RING_OK, "claim");
        for (uint64_t i = 0; i < size; i++)
            out[i] = (uint8_t)((sent + i) * 31 >> 3);
        must(hdad_ring_publish(&producer_ring, size, &wake) == HDAD_RING_OK, "publish");
        sent += size;
    }
    return NULL;
}

static int ring(uint64_t megabytes)
{
    int fd;
    pthread_t thread;
    total = megabytes << 20;
    must(hdad_ring_create(&producer_ring, HDAD_RING_CAPACITY_MIN, "stress", &fd) == HDAD_RING_OK, "create");
    /* One mapping for both sides: a sanitizer of data races knows addresses, not that two of them are one page. */
    consumer_ring = producer_ring;
    must(pthread_create(&thread, NULL, produce, NULL) == 0, "thread");
    uint64_t got = 0, waits = 0;
    while (got < total) {
        uint8_t *data;
        uint64_t size;
        bool wake, ready;
        must(hdad_ring_poll(&consumer_ring, &data, &size) == HDAD_RING_OK, "poll");
        if (!size) {
            waits++;
            must(hdad_ring_consumer_sleep(&consumer_ring, hdad_ring_head(&consumer_ring), &ready) == HDAD_RING_OK, "consumer sleep");
            hdad_ring_consumer_awake(&consumer_ring);
            continue;
        }
        for (uint64_t i = 0; i < size; i++)
            must(data[i] == (uint8_t)((got + i) * 31 >> 3), "bytes come out as they went in");
        must(hdad_ring_release(&consumer_ring, size, &wake) == HDAD_RING_OK, "release");
        got += size;
    }
    pthread_join(thread, NULL);
    hdad_ring_unmap(&producer_ring);
    printf("ring: %llu MiB in order, %llu waits\n", (unsigned long long)megabytes, (unsigned long long)waits);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: stress parse|ring SEED COUNT\n");
        return 2;
    }
    state = strtoull(argv[2], NULL, 10) * 2654435761u + 88172645463325252u;
    uint64_t count = strtoull(argv[3], NULL, 10);
    return strcmp(argv[1], "ring") == 0 ? ring(count) : parse(count);
}

/* The bench's C readers: what hand-written C makes of the same streams, and what the server gives at most.
 *
 *   drain group ADDRESS PREFIX STREAMS COUNT ENTRIES FILE    XREADGROUP, records to FILE, durable, XACK
 *   drain xread ADDRESS PREFIX STREAMS COUNT ENTRIES         XREAD by position, bytes thrown away: the ceiling
 *
 * group is what a careful C programmer would write: one XREADGROUP for all streams, the next one sent before the batch in hand is
 * written, so that server and device work at the same time; records with a 24-byte header into an aligned buffer; one O_DIRECT | O_DSYNC
 * write a batch to a file that was written before (over and over in a circle); XACK only after it. Its group was made by the bench.
 *
 * xread first reads everything once, to learn the positions and the size of each reply; what is measured is a second pass that sends the
 * same requests, always two of them on their way, and looks at no byte of what comes.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/stat.h>

#include "wire.h"

#define BLOCK 4096u
#define HEADER 24u

struct source {
    unsigned streams;
    unsigned count;
    uint64_t entries;
    char (*names)[64];
    char (*positions)[48]; /* xread: the last ID that was read */
};

static void add_streams(struct bytes *out, const struct source *source, bool by_position)
{
    bytes_text(out, "STREAMS");
    for (unsigned index = 0; index < source->streams; index++)
        bytes_text(out, source->names[index]);
    for (unsigned index = 0; index < source->streams; index++)
        bytes_text(out, by_position ? source->positions[index] : ">");
}

/* -- group ---------------------------------------------------------------------------------------------------------------------------- */

/* Acknowledgements of one batch are collected while it is packed, and sent once it is durable. */
struct batch {
    struct bytes acks;
    size_t ack_replies;
    size_t size;
    uint64_t entries;
};

static uint64_t id_part(const char **at, const char *end)
{
    uint64_t value = 0;
    for (; *at < end && **at != '-'; ++*at)
        value = value * 10 + (uint64_t)(**at - '0');
    ++*at;
    return value;
}

static void pack_entry(struct walk *walk, char **out, struct bytes *acks)
{
    size_t size, id_size;
    walk_number(walk, '*');
    const char *id = walk_bulk(walk, &id_size);
    const char *at = id, *end = id + id_size;
    uint64_t ms = id_part(&at, end), seq = id_part(&at, end);
    bytes_bulk(acks, id, id_size);
    char *record = *out, *body = record + HEADER;
    for (long long fields = walk_number(walk, '*'); fields > 0; fields--) {
        const char *field = walk_bulk(walk, &size);
        uint32_t length = (uint32_t)size;
        memcpy(body, &length, sizeof length);
        memcpy(body + sizeof length, field, size);
        body += sizeof length + size;
    }
    uint64_t header[3] = {(uint64_t)(body - record), ms, seq};
    memcpy(record, header, sizeof header);
    *out = body;
}

/* The reply to one XREADGROUP becomes records in out and XACKs in the batch. */
static void pack(const char *reply, size_t reply_size, char *out, size_t capacity, const char *group, struct batch *batch)
{
    struct walk walk = {reply, reply_size, 0};
    char *start = out;
    batch->acks.size = 0;
    batch->entries = batch->ack_replies = 0;
    if (capacity < reply_size * 2 + BLOCK)
        die("a reply larger than the buffer");
    for (long long streams = walk_number(&walk, '*'); streams > 0; streams--) {
        size_t name_size;
        walk_number(&walk, '*');
        const char *name = walk_bulk(&walk, &name_size);
        long long count = walk_number(&walk, '*');
        bytes_array(&batch->acks, (size_t)count + 3);
        bytes_text(&batch->acks, "XACK");
        bytes_bulk(&batch->acks, name, name_size);
        bytes_text(&batch->acks, group);
        batch->entries += (uint64_t)count;
        batch->ack_replies++;
        for (; count > 0; count--)
            pack_entry(&walk, &out, &batch->acks);
    }
    batch->size = ((size_t)(out - start) + BLOCK - 1) / BLOCK * BLOCK;
    memset(out, 0, (size_t)(start + batch->size - out));
}

static uint64_t group(int fd, struct source *source, const char *path)
{
    const char *name = "c";
    struct reader reader = {.fd = fd};
    struct bytes request = {0};
    struct batch batch = {0};
    size_t capacity = 64u << 20, reply_size;
    char *out = aligned_alloc(BLOCK, capacity);
    int file = open(path, O_WRONLY | O_DIRECT | O_DSYNC | O_CLOEXEC);
    struct stat status;
    if (file < 0 || out == NULL || fstat(file, &status) != 0)
        die(path);
    memset(out, 0, capacity);
    bytes_array(&request, 7 + 2 * source->streams);
    bytes_text(&request, "XREADGROUP");
    bytes_text(&request, "GROUP");
    bytes_text(&request, name);
    bytes_text(&request, "c");
    bytes_text(&request, "COUNT");
    bytes_number(&request, source->count);
    add_streams(&request, source, false);
    wait_for_go();
    uint64_t done = 0;
    size_t acks[2] = {0, 0}; /* answers still to come: to the XACKs sent before the read that is awaited, and after it */
    off_t offset = 0;
    wire_send(fd, request.data, request.size);
    while (done < source->entries) {
        for (; acks[0]; acks[0]--)
            reader_next(&reader, &reply_size);
        const char *reply = reader_next(&reader, &reply_size);
        if (reply[1] == '-')
            die("the streams are empty too early");
        pack(reply, reply_size, out, capacity, name, &batch);
        done += batch.entries;
        if (done < source->entries)
            wire_send(fd, request.data, request.size);
        if (offset + (off_t)batch.size > status.st_size)
            offset = 0;
        if (pwrite(file, out, batch.size, offset) != (ssize_t)batch.size)
            die("pwrite");
        offset += (off_t)batch.size;
        wire_send(fd, batch.acks.data, batch.acks.size);
        acks[0] = acks[1];
        acks[1] = batch.ack_replies;
    }
    for (size_t left = acks[0] + acks[1]; left; left--)
        reader_next(&reader, &reply_size);
    printf("{");
    return done;
}

/* -- xread ---------------------------------------------------------------------------------------------------------------------------- */

struct step {
    char *request;
    size_t request_size, reply_size;
    uint64_t entries;
};

/* Takes the last ID of each stream from a reply. Returns how many entries it holds. */
static uint64_t note_positions(const char *reply, size_t reply_size, struct source *source)
{
    struct walk walk = {reply, reply_size, 0};
    uint64_t total = 0;
    if (reply[1] == '-')
        return 0;
    unsigned index = 0;
    for (long long streams = walk_number(&walk, '*'); streams > 0; streams--) {
        size_t size;
        walk_number(&walk, '*');
        const char *name = walk_bulk(&walk, &size);
        while (strlen(source->names[index]) != size || memcmp(source->names[index], name, size) != 0)
            index++; /* in the order in which they were asked for */
        for (long long count = walk_number(&walk, '*'); count > 0; count--, total++) {
            walk_number(&walk, '*');
            const char *id = walk_bulk(&walk, &size);
            memcpy(source->positions[index], id, size);
            source->positions[index][size] = 0;
            for (long long fields = walk_number(&walk, '*'); fields > 0; fields--)
                walk_bulk(&walk, &size);
        }
    }
    return total;
}

static struct step *learn(int fd, struct source *source, size_t *steps_count)
{
    struct reader reader = {.fd = fd};
    struct step *steps = NULL;
    uint64_t total = 0, found = 1;
    for (*steps_count = 0; found && total < source->entries; ++*steps_count) {
        struct bytes request = {0};
        bytes_array(&request, 4 + 2 * source->streams);
        bytes_text(&request, "XREAD");
        bytes_text(&request, "COUNT");
        bytes_number(&request, source->count);
        add_streams(&request, source, true);
        wire_send(fd, request.data, request.size);
        size_t size;
        const char *reply = reader_next(&reader, &size);
        total += found = note_positions(reply, size, source);
        steps = realloc(steps, (*steps_count + 1) * sizeof *steps);
        if (steps == NULL)
            die("out of memory");
        steps[*steps_count] = (struct step){request.data, request.size, size, found};
    }
    return steps;
}

static uint64_t xread(int fd, struct source *source)
{
    size_t steps_count, capacity = 1u << 20;
    struct step *steps = learn(fd, source, &steps_count);
    char *buffer = malloc(capacity);
    uint64_t total = 0, bytes = 0;
    if (buffer == NULL)
        die("out of memory");
    wait_for_go();
    for (size_t ahead = 0, index = 0; index < steps_count; index++) {
        for (; ahead < steps_count && ahead < index + 2; ahead++)
            wire_send(fd, steps[ahead].request, steps[ahead].request_size);
        for (size_t left = steps[index].reply_size; left;) {
            ssize_t count = recv(fd, buffer, left < capacity ? left : capacity, 0);
            if (count <= 0)
                die("recv");
            left -= (size_t)count;
        }
        total += steps[index].entries;
        bytes += steps[index].reply_size;
    }
    printf("{\"reply_bytes\": %llu, ", (unsigned long long)bytes);
    return total;
}

int main(int argc, char **argv)
{
    if (argc < 7)
        return 2;
    int fd = wire_open(argv[2]);
    struct source source = {(unsigned)atoi(argv[4]), (unsigned)atoi(argv[5]), (uint64_t)atoll(argv[6]), NULL, NULL};
    if (source.streams < 1 || source.streams > STREAMS_MAX)
        return 2;
    source.names = calloc(source.streams, sizeof *source.names);
    source.positions = calloc(source.streams, sizeof *source.positions);
    if (source.names == NULL || source.positions == NULL)
        die("out of memory");
    for (unsigned index = 0; index < source.streams; index++) {
        snprintf(source.names[index], sizeof *source.names, "%s%u", argv[3], index);
        strcpy(source.positions[index], "0-0");
    }
    bool grouped = strcmp(argv[1], "group") == 0;
    if (grouped && argc < 8)
        return 2;
    uint64_t done = grouped ? group(fd, &source, argv[7]) : xread(fd, &source);
    printf("\"entries\": %llu, \"seconds\": %.6f, \"cpu_s\": %.6f}\n", (unsigned long long)done, (double)(monotonic_ns() - started_ns) / 1e9,
           (double)(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - started_cpu_ns) / 1e9);
    return 0;
}

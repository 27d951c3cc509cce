/* The bench's producer: fills streams as fast as the server takes it, or adds entries at a steady rate, open loop.
 *
 *   produce fill ADDRESS PREFIX STREAMS ENTRIES VALUE_BYTES
 *   produce rate ADDRESS PREFIX STREAMS RATE SECONDS VALUE_BYTES
 *   produce flat ADDRESS PREFIX STREAMS SECONDS VALUE_BYTES          as fast as it goes for SECONDS, stamped as rate does
 *
 * Entry i goes to stream PREFIX i%STREAMS and has field d, VALUE_BYTES of JSON. At a rate it has field t too: the monotonic clock, ns, 19
 * digits, read just before the entry is handed to the kernel. Commands are encoded beforehand, and only numbers in them are changed.
 * A rate is kept by absolute times: entries that are due go out together, at most every PACE_NS, whether or not earlier ones were answered.
 */
#define _GNU_SOURCE
#include <sys/prctl.h>

#include "wire.h"

#define PACE_NS 200000u /* at 100,000/s twenty entries a send, so that the producer costs little of a core */
#define BATCH 512u
#define TEMPLATES 64u

static const char *const WORDS[] = {
    "accepted", "connection", "from", "upstream", "timeout", "while", "reading", "response", "header", "client", "request", "sensor", "value",
    "above", "limit", "retry", "in", "seconds", "cache", "miss", "for", "key", "session", "opened", "closed", "user", "root", "by", "kernel",
    "link", "is", "up", "down", "port", "queue", "depth", "written", "blocks", "checkpoint", "complete", "temperature", "pressure", "rack"};

struct command {
    char *data;
    size_t size;
    size_t id;    /* offset of seven digits in the JSON */
    size_t stamp; /* offset of nineteen digits, 0: none */
};

static uint32_t random_state = 2463534242u;

static uint32_t random_next(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}

static size_t write_json(char *out, size_t size, unsigned index)
{
    const char *level = index % 4 == 0 ? "debug" : "info";
    double value = index * 0.25;
    size_t at = size < 100 ? (size_t)sprintf(out, "{\"id\":%07u,\"host\":\"n%02u\",\"level\":\"%s\",\"value\":%.1f", 1000000u, index % 40, level, value)
                           : (size_t)sprintf(out, "{\"id\":%07u,\"host\":\"node-%03u\",\"level\":\"%s\",\"value\":%.2f,\"text\":\"", 1000000u,
                                             index % 40, level, value);
    if (size >= 100) {
        while (at + 16 < size) {
            if (random_next() % 4 == 0)
                at += (size_t)sprintf(out + at, "%u ", random_next() % 100000);
            else
                at += (size_t)sprintf(out + at, "%s ", WORDS[random_next() % (sizeof WORDS / sizeof *WORDS)]);
            if (at + 16 >= size)
                break;
        }
        if (at > size - 2)
            at = size - 2;
        while (at < size - 2)
            out[at++] = '.';
        out[at++] = '"';
    }
    out[at++] = '}';
    while (at < size)
        out[at++] = ' ';
    return at;
}

/* One XADD for each stream and each of a few bodies. */
static struct command *make_commands(const char *prefix, unsigned streams, size_t size, bool stamped, size_t *count)
{
    unsigned bodies = streams >= TEMPLATES ? 1 : TEMPLATES / streams;
    *count = (size_t)streams * bodies;
    struct command *commands = calloc(*count, sizeof *commands);
    char *json = malloc(size + 256), name[128];
    if (commands == NULL || json == NULL)
        die("out of memory");
    for (unsigned index = 0; index < *count; index++) {
        struct bytes text = {0};
        bytes_array(&text, stamped ? 7 : 5);
        bytes_text(&text, "XADD");
        snprintf(name, sizeof name, "%s%u", prefix, index % streams);
        bytes_text(&text, name);
        bytes_text(&text, "*");
        bytes_text(&text, "d");
        size_t body = write_json(json, size, index / streams + index % streams), start = text.size;
        bytes_bulk(&text, json, body);
        commands[index].id = (size_t)((char *)memmem(text.data + start, text.size - start, "\"id\":", 5) - text.data) + 5;
        if (stamped) {
            bytes_text(&text, "t");
            commands[index].stamp = text.size + 5;
            bytes_text(&text, "0000000000000000000");
        }
        commands[index].data = text.data;
        commands[index].size = text.size;
    }
    free(json);
    return commands;
}

static void put_digits(char *at, int width, uint64_t value)
{
    for (int index = width - 1; index >= 0; index--, value /= 10)
        at[index] = (char)('0' + value % 10);
}

static void add_entry(struct bytes *out, struct command *commands, size_t count, uint64_t index, const char *stamp)
{
    struct command *command = &commands[index % count];
    char *at = bytes_room(out, command->size);
    memcpy(at, command->data, command->size);
    put_digits(at + command->id, 7, 1000000 + index % 9000000);
    if (command->stamp)
        memcpy(at + command->stamp, stamp, 19);
    out->size += command->size;
}

/* Counts answers in what has arrived: each is one bulk string, two lines. Returns how many answers are whole. */
static uint64_t drain(int fd, int flags, uint64_t *lines)
{
    static char buffer[1 << 16];
    static char last = '\n';
    ssize_t count = recv(fd, buffer, sizeof buffer, flags);
    if (count < 0 && (errno == EAGAIN || errno == EINTR))
        return *lines / 2;
    if (count <= 0)
        die("recv");
    bool is_error = (last == '\n' && buffer[0] == '-') || memmem(buffer, (size_t)count, "\n-", 2) != NULL;
    last = buffer[count - 1];
    if (is_error) {
        fprintf(stderr, "bench: the server says: %.*s\n", (int)(count > 200 ? 200 : count), buffer);
        exit(1);
    }
    for (const char *at = buffer; (at = memchr(at, '\n', (size_t)(buffer + count - at))) != NULL; at++)
        ++*lines;
    return *lines / 2;
}

static void fill(int fd, struct command *commands, size_t count, uint64_t total, uint64_t deadline_ns)
{
    struct bytes out = {0};
    uint64_t sent = 0, lines = 0;
    char stamp[20] = "";
    while (sent < total && (!deadline_ns || monotonic_ns() < deadline_ns)) {
        out.size = 0;
        put_digits(stamp, 19, monotonic_ns());
        for (unsigned index = 0; index < BATCH && sent < total; index++)
            add_entry(&out, commands, count, sent++, stamp);
        wire_send(fd, out.data, out.size);
        while (drain(fd, MSG_DONTWAIT, &lines) + 2 * BATCH < sent)
            drain(fd, 0, &lines);
    }
    while (lines / 2 < sent)
        drain(fd, 0, &lines);
    printf("{\"entries\": %llu, ", (unsigned long long)sent);
}

static void at_rate(int fd, struct command *commands, size_t count, double rate, double seconds)
{
    struct bytes out = {0};
    uint64_t total = (uint64_t)(rate * seconds), sent = 0, lines = 0, late_max = 0, start = monotonic_ns();
    char stamp[20] = "";
    prctl(PR_SET_TIMERSLACK, 1);
    while (sent < total) {
        uint64_t now = monotonic_ns(), due = (uint64_t)((double)(now - start) * rate / 1e9) + 1;
        if (due > total)
            due = total;
        if (due > sent) {
            uint64_t late = now - start - (uint64_t)((double)sent * 1e9 / rate);
            late_max = late > late_max ? late : late_max;
            out.size = 0;
            put_digits(stamp, 19, now);
            while (sent < due)
                add_entry(&out, commands, count, sent++, stamp);
            wire_send(fd, out.data, out.size);
            drain(fd, MSG_DONTWAIT, &lines);
        }
        uint64_t next = start + (uint64_t)((double)sent * 1e9 / rate);
        if (next < now + PACE_NS)
            next = now + PACE_NS;
        struct timespec until = {(time_t)(next / 1000000000u), (long)(next % 1000000000u)};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    }
    while (lines / 2 < sent)
        drain(fd, 0, &lines);
    printf("{\"entries\": %llu, \"late_max_us\": %llu, ", (unsigned long long)sent, (unsigned long long)late_max / 1000);
}

int main(int argc, char **argv)
{
    if (argc < 7)
        return 2;
    bool filling = strcmp(argv[1], "fill") == 0, flat = strcmp(argv[1], "flat") == 0;
    int fd = wire_open(argv[2]);
    unsigned streams = (unsigned)atoi(argv[4]);
    size_t size = (size_t)atoll(argv[filling || flat ? 6 : 7]), count;
    if (size < 64 || streams < 1 || streams > STREAMS_MAX)
        return 2;
    struct command *commands = make_commands(argv[3], streams, size, !filling, &count);
    wait_for_go();
    if (filling)
        fill(fd, commands, count, (uint64_t)atoll(argv[5]), 0);
    else if (flat)
        fill(fd, commands, count, UINT64_MAX, started_ns + (uint64_t)(atof(argv[5]) * 1e9));
    else
        at_rate(fd, commands, count, atof(argv[5]), atof(argv[6]));
    printf("\"seconds\": %.6f, \"cpu_s\": %.6f}\n", (double)(monotonic_ns() - started_ns) / 1e9,
           (double)(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - started_cpu_ns) / 1e9);
    return 0;
}

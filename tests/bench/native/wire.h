/* One connection to a Redis-compatible server, for the C programs of the bench: connect, send, take in one reply, walk it.
 *
 * Included by each program, which is one translation unit. Trusts the server it talks to, which the bench has started itself; whatever is
 * odd ends the program with a line on stderr and status 1. RESP2 only.
 */
#ifndef BENCH_WIRE_H
#define BENCH_WIRE_H

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define STREAMS_MAX 65536

static inline void die(const char *what)
{
    fprintf(stderr, "bench: %s: %s\n", what, errno ? strerror(errno) : "unexpected");
    exit(1);
}

static inline uint64_t clock_ns(clockid_t id)
{
    struct timespec now;
    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline uint64_t monotonic_ns(void)
{
    return clock_ns(CLOCK_MONOTONIC);
}

static uint64_t started_ns, started_cpu_ns;

/* The bench reads its clocks between the two lines, and so does the program: what it did to get ready is not measured. */
static inline void wait_for_go(void)
{
    char line[16];
    puts("READY");
    fflush(stdout);
    if (fgets(line, sizeof line, stdin) == NULL)
        exit(1);
    started_ns = monotonic_ns();
    started_cpu_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
}

/* address: "unix:/path" or "tcp:port" (on the loopback). */
static inline int wire_open(const char *address)
{
    int fd;
    if (strncmp(address, "unix:", 5) == 0) {
        struct sockaddr_un to = {.sun_family = AF_UNIX};
        if (strlen(address + 5) >= sizeof to.sun_path)
            die("the socket's path is too long");
        strcpy(to.sun_path, address + 5);
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) != 0)
            die(address);
        return fd;
    }
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(address + 4))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int on = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof to) != 0)
        die(address);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static inline void wire_send(int fd, const char *data, size_t size)
{
    while (size) {
        ssize_t count = send(fd, data, size, MSG_NOSIGNAL);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            die("send");
        data += count;
        size -= (size_t)count;
    }
}

/* Bytes that grow. */
struct bytes {
    char *data;
    size_t size, capacity;
};

static inline char *bytes_room(struct bytes *bytes, size_t size)
{
    if (bytes->capacity - bytes->size < size) {
        bytes->capacity = (bytes->size + size) * 2;
        bytes->data = realloc(bytes->data, bytes->capacity);
        if (bytes->data == NULL)
            die("out of memory");
    }
    return bytes->data + bytes->size;
}

static inline void bytes_add(struct bytes *bytes, const void *data, size_t size)
{
    memcpy(bytes_room(bytes, size), data, size);
    bytes->size += size;
}

static inline void bytes_bulk(struct bytes *bytes, const void *data, size_t size)
{
    char *at = bytes_room(bytes, size + 32);
    int head = sprintf(at, "$%zu\r\n", size);
    memcpy(at + head, data, size);
    memcpy(at + head + size, "\r\n", 2);
    bytes->size += (size_t)head + size + 2;
}

static inline void bytes_text(struct bytes *bytes, const char *text)
{
    bytes_bulk(bytes, text, strlen(text));
}

static inline void bytes_array(struct bytes *bytes, size_t count)
{
    bytes->size += (size_t)sprintf(bytes_room(bytes, 32), "*%zu\r\n", count);
}

static inline void bytes_number(struct bytes *bytes, uint64_t value)
{
    char text[24];
    bytes_bulk(bytes, text, (size_t)sprintf(text, "%llu", (unsigned long long)value));
}

/* A reader takes in one reply at a time; each byte is scanned once, since only values still missing are counted. */
struct reader {
    int fd;
    struct bytes in;
    size_t start; /* where the reply begins */
    size_t at;    /* up to where it was scanned */
    size_t missing;
};

/* The number behind a type byte at *at, which then stands behind its line. False: the line is not whole. */
static inline bool line_number(const char *data, size_t size, size_t *at, long long *out)
{
    const char *end = memchr(data + *at, '\n', size - *at);
    if (end == NULL)
        return false;
    const char *digit = data + *at + 1;
    bool negative = *digit == '-';
    long long value = 0;
    for (digit += negative; *digit >= '0' && *digit <= '9'; digit++)
        value = value * 10 + (*digit - '0');
    *out = negative ? -value : value;
    *at = (size_t)(end - data) + 1;
    return true;
}

static inline bool reader_scan(struct reader *reader)
{
    const char *data = reader->in.data;
    size_t size = reader->in.size;
    while (reader->missing) {
        if (reader->at >= size)
            return false;
        size_t at = reader->at;
        long long value;
        char type = data[at];
        if (!line_number(data, size, &at, &value))
            return false;
        if (type == '-') {
            fprintf(stderr, "bench: the server says: %.*s\n", (int)(at - reader->at), data + reader->at);
            exit(1);
        }
        if (type == '$' && value >= 0) {
            if (size - at < (size_t)value + 2)
                return false;
            at += (size_t)value + 2;
        } else if (type == '*' && value > 0) {
            reader->missing += (size_t)value;
        }
        reader->missing--;
        reader->at = at;
    }
    return true;
}

/* The next reply, whole: its first byte; *size: how many. Valid until the next call. Blocks. */
static inline const char *reader_next(struct reader *reader, size_t *size)
{
    struct bytes *in = &reader->in;
    if (reader->start && reader->start == in->size)
        in->size = reader->start = reader->at = 0;
    reader->missing = 1;
    while (!reader_scan(reader)) {
        if (reader->start && in->capacity - in->size < 65536) {
            memmove(in->data, in->data + reader->start, in->size - reader->start);
            in->size -= reader->start;
            reader->at -= reader->start;
            reader->start = 0;
        }
        char *room = bytes_room(in, 65536);
        ssize_t count = recv(reader->fd, room, in->capacity - in->size, 0);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            die("recv");
        in->size += (size_t)count;
    }
    const char *reply = in->data + reader->start;
    *size = reader->at - reader->start;
    reader->start = reader->at;
    return reply;
}

/* A cursor over a reply that is whole. */
struct walk {
    const char *data;
    size_t size, at;
};

static inline long long walk_number(struct walk *walk, char type)
{
    long long value = 0;
    if (walk->at >= walk->size || walk->data[walk->at] != type || !line_number(walk->data, walk->size, &walk->at, &value))
        die("a reply of another shape");
    return value;
}

static inline const char *walk_bulk(struct walk *walk, size_t *size)
{
    *size = (size_t)walk_number(walk, '$');
    const char *start = walk->data + walk->at;
    walk->at += *size + 2;
    return start;
}

#endif

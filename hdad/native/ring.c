#define _GNU_SOURCE
#include "ring.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static_assert(sizeof(struct hdad_ring_header) == 640, "FORMAT: ring header");
static_assert(offsetof(struct hdad_ring_header, head) == 128, "FORMAT: head on its own pair of lines");
static_assert(offsetof(struct hdad_ring_header, tail) == 256, "FORMAT: tail on its own pair of lines");
static_assert(offsetof(struct hdad_ring_header, consumer_sleeping) == 384, "FORMAT: consumer's flag");
static_assert(offsetof(struct hdad_ring_header, producer_sleeping) == 512, "FORMAT: producer's flag");
static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "atomics between processes must be lock-free");

/* memfd_create(2) and sealing since Linux 3.17. Shrinking a mapped file is SIGBUS for who touches it, so it is sealed. */
#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static bool capacity_is_possible(uint64_t capacity)
{
    return capacity >= HDAD_RING_CAPACITY_MIN && capacity <= HDAD_RING_CAPACITY_MAX && (capacity & (capacity - 1)) == 0;
}

static enum hdad_ring_status map(struct hdad_ring *ring, int fd, uint64_t capacity)
{
    const size_t span = HDAD_RING_HEADER_SIZE + 2 * (size_t)capacity;
    const int protection = PROT_READ | PROT_WRITE;
    const size_t file_size = HDAD_RING_HEADER_SIZE + (size_t)capacity;

    /* Reserve the whole span first: MAP_FIXED then replaces only addresses that are ours. */
    uint8_t *base = mmap(NULL, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED)
        return HDAD_RING_SYSTEM;
    if (mmap(base, file_size, protection, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ||
        mmap(base + file_size, (size_t)capacity, protection, MAP_SHARED | MAP_FIXED, fd, HDAD_RING_HEADER_SIZE) == MAP_FAILED) {
        const int saved = errno;
        munmap(base, span);
        errno = saved;
        return HDAD_RING_SYSTEM;
    }
    ring->header = (struct hdad_ring_header *)(void *)base;
    ring->data = base + HDAD_RING_HEADER_SIZE;
    ring->capacity = capacity;
    ring->claim_position = 0;
    ring->claim_size = 0;
    return HDAD_RING_OK;
}

enum hdad_ring_status hdad_ring_create(struct hdad_ring *ring, uint64_t capacity, const char *name, int *fd_out)
{
    memset(ring, 0, sizeof *ring);
    *fd_out = -1;
    if (!capacity_is_possible(capacity) || capacity % (uint64_t)sysconf(_SC_PAGESIZE) != 0)
        return HDAD_RING_ARGUMENT;
    const int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0)
        return HDAD_RING_SYSTEM;
    enum hdad_ring_status status = HDAD_RING_SYSTEM;
    if (ftruncate(fd, (off_t)(HDAD_RING_HEADER_SIZE + capacity)) == 0 && fcntl(fd, F_ADD_SEALS, SEALS) == 0)
        status = map(ring, fd, capacity);
    if (status != HDAD_RING_OK) {
        const int saved = errno;
        close(fd);
        errno = saved;
        return status;
    }
    /* A new memfd is all zero: head, tail and flags are right. Nobody else knows the descriptor yet, so plain stores do. */
    memcpy(ring->header->magic, HDAD_RING_MAGIC, sizeof ring->header->magic);
    ring->header->version = HDAD_RING_VERSION;
    ring->header->header_size = HDAD_RING_HEADER_SIZE;
    ring->header->capacity = capacity;
    *fd_out = fd;
    return HDAD_RING_OK;
}

enum hdad_ring_status hdad_ring_attach(struct hdad_ring *ring, int fd)
{
    memset(ring, 0, sizeof *ring);
    struct stat stat;
    if (fstat(fd, &stat) != 0)
        return HDAD_RING_SYSTEM;
    const int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0 || (seals & F_SEAL_SHRINK) == 0)
        return HDAD_RING_NOT_A_RING; /* EINVAL: not a memfd at all */
    struct hdad_ring_header header;
    const ssize_t got = pread(fd, &header, sizeof header, 0);
    if (got < 0)
        return HDAD_RING_SYSTEM;
    if ((size_t)got != sizeof header || memcmp(header.magic, HDAD_RING_MAGIC, sizeof header.magic) != 0 ||
        header.version != HDAD_RING_VERSION || header.header_size != HDAD_RING_HEADER_SIZE || !capacity_is_possible(header.capacity) ||
        (uint64_t)stat.st_size != HDAD_RING_HEADER_SIZE + header.capacity)
        return HDAD_RING_NOT_A_RING;
    return map(ring, fd, header.capacity);
}

void hdad_ring_unmap(struct hdad_ring *ring)
{
    if (ring->header != NULL)
        munmap(ring->header, HDAD_RING_HEADER_SIZE + 2 * (size_t)ring->capacity);
    memset(ring, 0, sizeof *ring);
}

static uint8_t *at(const struct hdad_ring *ring, uint64_t position)
{
    return ring->data + (position & (ring->capacity - 1));
}

uint64_t hdad_ring_head(const struct hdad_ring *ring)
{
    /* SYNC: acquire; pairs with the store to head in hdad_ring_release. */
    return atomic_load_explicit(&ring->header->head, memory_order_acquire);
}

uint64_t hdad_ring_tail(const struct hdad_ring *ring)
{
    /* SYNC: acquire; pairs with the store to tail in hdad_ring_publish. */
    return atomic_load_explicit(&ring->header->tail, memory_order_acquire);
}

enum hdad_ring_status hdad_ring_claim(struct hdad_ring *ring, uint64_t size, uint8_t **out)
{
    if (size > ring->capacity)
        return HDAD_RING_ARGUMENT; /* would never fit: waiting for room would never end */
    /* SYNC: relaxed; tail is the producer's own word, a predecessor's store was made before it died and we were forked. */
    const uint64_t tail = atomic_load_explicit(&ring->header->tail, memory_order_relaxed);
    /* SYNC: acquire; pairs with release of head in hdad_ring_release: its reads of these bytes are over before we write them. */
    const uint64_t head = atomic_load_explicit(&ring->header->head, memory_order_acquire);
    if (tail - head > ring->capacity)
        return HDAD_RING_CORRUPT;
    if (ring->capacity - (tail - head) < size)
        return HDAD_RING_FULL;
    hdad_ring_producer_awake(ring); /* who claims is awake; else every later release would ring in vain */
    ring->claim_position = tail;
    ring->claim_size = size;
    *out = at(ring, tail);
    return HDAD_RING_OK;
}

enum hdad_ring_status hdad_ring_publish(struct hdad_ring *ring, uint64_t size, bool *wake)
{
    if (size > ring->claim_size)
        return HDAD_RING_ARGUMENT;
    /* SYNC: relaxed; tail is the producer's own word. */
    if (atomic_load_explicit(&ring->header->tail, memory_order_relaxed) != ring->claim_position)
        return HDAD_RING_CORRUPT; /* somebody else published: there are two producers */
    ring->claim_position += size;
    ring->claim_size -= size;
    /* SYNC: seq_cst store of tail, then seq_cst load of the flag; pairs with the store of the flag, then load of tail, in
     * hdad_ring_consumer_sleep: in the single total order one of the two sees the other's store, so no wake-up is lost. It is a
     * release too: pairs with the acquire of tail in hdad_ring_poll, which then sees the bytes.
     * The flag stays set: who is killed between here and the doorbell must not have taken the wake-up with him. */
    atomic_store_explicit(&ring->header->tail, ring->claim_position, memory_order_seq_cst);
    *wake = atomic_load_explicit(&ring->header->consumer_sleeping, memory_order_seq_cst) != 0;
    return HDAD_RING_OK;
}

enum hdad_ring_status hdad_ring_poll(const struct hdad_ring *ring, uint8_t **out, uint64_t *size)
{
    /* SYNC: relaxed; head is the consumer's own word. */
    const uint64_t head = atomic_load_explicit(&ring->header->head, memory_order_relaxed);
    const uint64_t tail = hdad_ring_tail(ring);
    if (tail - head > ring->capacity)
        return HDAD_RING_CORRUPT;
    *out = at(ring, head);
    *size = tail - head;
    return HDAD_RING_OK;
}

enum hdad_ring_status hdad_ring_view(const struct hdad_ring *ring, uint64_t position, uint64_t size, uint8_t **out)
{
    /* SYNC: relaxed; head is the consumer's own word. */
    const uint64_t head = atomic_load_explicit(&ring->header->head, memory_order_relaxed);
    const uint64_t tail = hdad_ring_tail(ring);
    if (tail - head > ring->capacity)
        return HDAD_RING_CORRUPT;
    const uint64_t offset = position - head; /* huge when position < head: u64 arithmetic is modular */
    if (offset > tail - head || size > tail - head - offset)
        return HDAD_RING_ARGUMENT;
    *out = at(ring, position);
    return HDAD_RING_OK;
}

enum hdad_ring_status hdad_ring_release(struct hdad_ring *ring, uint64_t size, bool *wake)
{
    /* SYNC: relaxed; head is the consumer's own word. */
    const uint64_t head = atomic_load_explicit(&ring->header->head, memory_order_relaxed);
    const uint64_t tail = hdad_ring_tail(ring);
    if (tail - head > ring->capacity)
        return HDAD_RING_CORRUPT;
    if (size > tail - head)
        return HDAD_RING_ARGUMENT;
    /* SYNC: seq_cst store of head, then seq_cst loads; pairs with the store of the flag, then load of head, in
     * hdad_ring_producer_sleep: one of the two sees the other's store. It is a release too: pairs with the acquire of head in
     * hdad_ring_claim, so that the producer does not overwrite what we still read. */
    atomic_store_explicit(&ring->header->head, head + size, memory_order_seq_cst);
    const uint64_t wanted = atomic_load_explicit(&ring->header->producer_sleeping, memory_order_seq_cst);
    *wake = false;
    if (wanted != 0) {
        /* SYNC: seq_cst load of tail, after the flag: a sleeping producer's tail was stored before its flag and stays. */
        const uint64_t used = atomic_load_explicit(&ring->header->tail, memory_order_seq_cst) - (head + size);
        *wake = used > ring->capacity || ring->capacity - used >= wanted;
    }
    return HDAD_RING_OK;
}

enum hdad_ring_status hdad_ring_consumer_sleep(struct hdad_ring *ring, uint64_t seen, bool *ready)
{
    /* SYNC: seq_cst store of the flag, then seq_cst load of tail; pairs with store of tail, load of flag in hdad_ring_publish. */
    atomic_store_explicit(&ring->header->consumer_sleeping, 1, memory_order_seq_cst);
    const uint64_t tail = atomic_load_explicit(&ring->header->tail, memory_order_seq_cst);
    /* SYNC: relaxed; head is the consumer's own word. */
    const uint64_t head = atomic_load_explicit(&ring->header->head, memory_order_relaxed);
    if (tail - head > ring->capacity)
        return HDAD_RING_CORRUPT;
    if (seen - head > tail - head && seen >= head)
        return HDAD_RING_ARGUMENT; /* seen beyond tail: the caller would sleep over data to come */
    *ready = tail > seen;
    return HDAD_RING_OK;
}

bool hdad_ring_announce(struct hdad_ring *ring)
{
    /* SYNC: relaxed, all of it; a hint, nothing is ordered by it. Tail is the producer's own word. */
    const uint64_t tail = atomic_load_explicit(&ring->header->tail, memory_order_relaxed);
    atomic_store_explicit(&ring->header->announced, tail + 1, memory_order_relaxed);
    return atomic_load_explicit(&ring->header->consumer_sleeping, memory_order_relaxed) != 0;
}

bool hdad_ring_is_announced(const struct hdad_ring *ring)
{
    /* SYNC: relaxed; a hint, see hdad_ring_announce. */
    return atomic_load_explicit(&ring->header->announced, memory_order_relaxed) >
           atomic_load_explicit(&ring->header->tail, memory_order_relaxed);
}

void hdad_ring_consumer_awake(struct hdad_ring *ring)
{
    /* SYNC: relaxed; a publish that still sees 1 rings once in vain. Nothing is ordered by clearing. */
    atomic_store_explicit(&ring->header->consumer_sleeping, 0, memory_order_relaxed);
}

enum hdad_ring_status hdad_ring_producer_sleep(struct hdad_ring *ring, uint64_t size, bool *ready)
{
    if (size == 0 || size > ring->capacity)
        return HDAD_RING_ARGUMENT; /* 0 means awake; more than capacity would never be free */
    /* SYNC: seq_cst store of the flag, then seq_cst load of head; pairs with store of head, load of flag in hdad_ring_release. */
    atomic_store_explicit(&ring->header->producer_sleeping, size, memory_order_seq_cst);
    const uint64_t head = atomic_load_explicit(&ring->header->head, memory_order_seq_cst);
    /* SYNC: relaxed; tail is the producer's own word. */
    const uint64_t tail = atomic_load_explicit(&ring->header->tail, memory_order_relaxed);
    if (tail - head > ring->capacity)
        return HDAD_RING_CORRUPT;
    *ready = ring->capacity - (tail - head) >= size;
    return HDAD_RING_OK;
}

void hdad_ring_producer_awake(struct hdad_ring *ring)
{
    /* SYNC: relaxed; a release that still sees the flag rings once in vain. The load spares the line when it is clear already. */
    if (atomic_load_explicit(&ring->header->producer_sleeping, memory_order_relaxed) != 0)
        atomic_store_explicit(&ring->header->producer_sleeping, 0, memory_order_relaxed);
}

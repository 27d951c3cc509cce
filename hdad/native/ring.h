/* A ring of bytes in shared memory between one producer and one consumer process.
 *
 * Owns the layout of the shared header and the order of the atomics. Used by every process that maps a ring: the supervisor makes
 * it, the children inherit the mapping. Knows nothing of Python, of frames, or of doorbells.
 *
 * Invariants: capacity is a power of two and a multiple of the page size; head and tail only grow; tail - head <= capacity; only the
 * consumer writes head and consumer_sleeping, only the producer writes tail, announced and producer_sleeping. No lock and no memory of its own
 * beyond the mapping, so kill -9 of a side at any instruction leaves a ring on which its successor goes on at head or tail.
 *
 * Memory map of one ring:   | header page | data | the same data again |   so that no run of bytes up to capacity ever wraps.
 */
#ifndef HDAD_RING_H
#define HDAD_RING_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define HDAD_RING_MAGIC "HDADRNG1"
#define HDAD_RING_VERSION 2u
#define HDAD_RING_HEADER_SIZE 4096u
#define HDAD_RING_CAPACITY_MIN (UINT64_C(64) << 10)
#define HDAD_RING_CAPACITY_MAX (UINT64_C(1) << 30)

/* FORMAT: shared between processes of one daemon; a change needs a new version. 128 bytes apart: a cache line and the neighbour
 * that the adjacent-line prefetcher drags along. */
struct hdad_ring_header {
    char magic[8];
    uint32_t version;
    uint32_t header_size;
    uint64_t capacity;
    uint8_t reserved_0[104];
    _Atomic uint64_t head; /* first byte not yet released; written by the consumer */
    uint8_t reserved_1[120];
    _Atomic uint64_t tail; /* first byte not yet published; written by the producer */
    _Atomic uint64_t announced; /* beyond tail: the producer is about to publish; written by the producer */
    uint8_t reserved_2[112];
    _Atomic uint64_t consumer_sleeping; /* 1: ring the doorbell after publish; written by the consumer */
    uint8_t reserved_3[120];
    _Atomic uint64_t producer_sleeping; /* bytes the producer waits for, 0: awake; written by the producer */
    uint8_t reserved_4[120];
};

/* What one process knows of a ring. Not shared. */
struct hdad_ring {
    struct hdad_ring_header *header;
    uint8_t *data;
    uint64_t capacity;
    uint64_t claim_position; /* tail at the last claim */
    uint64_t claim_size;     /* bytes of it that are not yet published */
};

enum hdad_ring_status {
    HDAD_RING_OK = 0,
    HDAD_RING_FULL,      /* flow control: no room */
    HDAD_RING_CORRUPT,   /* head and tail in shared memory contradict each other */
    HDAD_RING_ARGUMENT,  /* the caller's numbers are not possible */
    HDAD_RING_SYSTEM,    /* errno says what */
    HDAD_RING_NOT_A_RING /* magic, version, capacity, size or seals are wrong */
};

/* Makes a sealed memfd and maps it. On OK *fd_out is the caller's to close. */
enum hdad_ring_status hdad_ring_create(struct hdad_ring *ring, uint64_t capacity, const char *name, int *fd_out);

/* Maps an existing ring; the descriptor stays the caller's. */
enum hdad_ring_status hdad_ring_attach(struct hdad_ring *ring, int fd);

/* Unmaps; harmless on a ring that is not mapped. */
void hdad_ring_unmap(struct hdad_ring *ring);

/* Producer: size contiguous writable bytes at tail. FULL when there is less room. */
enum hdad_ring_status hdad_ring_claim(struct hdad_ring *ring, uint64_t size, uint8_t **out);

/* Producer: the first size bytes of what is claimed become readable. *wake: the consumer sleeps. */
enum hdad_ring_status hdad_ring_publish(struct hdad_ring *ring, uint64_t size, bool *wake);

/* Consumer: everything from head to tail, contiguous. */
enum hdad_ring_status hdad_ring_poll(const struct hdad_ring *ring, uint8_t **out, uint64_t *size);

/* Consumer: the bytes [position, position + size), which must lie between head and tail. */
enum hdad_ring_status hdad_ring_view(const struct hdad_ring *ring, uint64_t position, uint64_t size, uint8_t **out);

/* Consumer: size bytes from head on are free again. *wake: the producer sleeps and what it waits for is free. */
enum hdad_ring_status hdad_ring_release(struct hdad_ring *ring, uint64_t size, bool *wake);

/* Consumer: from now on publish says wake. *ready: data beyond the position seen is there by now, do not sleep. */
enum hdad_ring_status hdad_ring_consumer_sleep(struct hdad_ring *ring, uint64_t seen, bool *ready);
/* Producer: something will be published in some 10 us. The next publish ends it. Returns whether the consumer sleeps: wake him early. A
 * hint in both directions: nothing is lost if it comes too late, or if the producer dies before he publishes. */
bool hdad_ring_announce(struct hdad_ring *ring);

/* Consumer: whether the producer has announced something that he has not published yet. */
bool hdad_ring_is_announced(const struct hdad_ring *ring);

void hdad_ring_consumer_awake(struct hdad_ring *ring);

/* Producer: from now on release says wake once size bytes are free. *ready: they are by now, do not sleep. */
enum hdad_ring_status hdad_ring_producer_sleep(struct hdad_ring *ring, uint64_t size, bool *ready);
void hdad_ring_producer_awake(struct hdad_ring *ring);

/* The positions as they are in shared memory, unchecked. */
uint64_t hdad_ring_head(const struct hdad_ring *ring);
uint64_t hdad_ring_tail(const struct hdad_ring *ring);

#endif

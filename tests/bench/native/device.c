/* What the device and the memory give at most.
 *
 *   device write FILE BYTES WRITE_BYTES DEPTH   O_DIRECT | O_DSYNC writes, DEPTH threads that take turns over a file written before
 *   device memcpy BYTES CHUNK_BYTES             copies of CHUNK_BYTES from one buffer to another, BYTES in all, one thread
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>

#include "wire.h"

#define ALIGNMENT 4096u

static struct {
    int fd;
    size_t total, size;
    _Atomic size_t next;
} job;

static char *buffer_of(size_t size)
{
    char *buffer = aligned_alloc(ALIGNMENT, size);
    if (buffer == NULL)
        die("out of memory");
    for (size_t index = 0; index < size; index++)
        buffer[index] = (char)(index * 31 + (index >> 9)); /* no zeros, for devices that see them */
    return buffer;
}

static void *write_some(void *buffer)
{
    for (;;) {
        size_t offset = atomic_fetch_add(&job.next, job.size);
        if (offset + job.size > job.total)
            return NULL;
        if (pwrite(job.fd, buffer, job.size, (off_t)offset) != (ssize_t)job.size)
            die("pwrite");
    }
}

static void write_all(const char *path, unsigned depth)
{
    pthread_t threads[64];
    char *buffers[64];
    if (depth < 1 || depth > 64 || (job.fd = open(path, O_WRONLY | O_DIRECT | O_DSYNC | O_CLOEXEC)) < 0)
        die(path);
    for (unsigned index = 0; index < depth; index++)
        buffers[index] = buffer_of(job.size);
    wait_for_go();
    for (unsigned index = 0; index < depth; index++)
        if (pthread_create(&threads[index], NULL, write_some, buffers[index]) != 0)
            die("pthread_create");
    for (unsigned index = 0; index < depth; index++)
        pthread_join(threads[index], NULL);
}

static void copy_all(void)
{
    char *from = buffer_of(job.size), *to = buffer_of(job.size);
    wait_for_go();
    for (size_t done = 0; done < job.total; done += job.size) {
        memcpy(to, from, job.size);
        __asm__ volatile("" : : "r"(to) : "memory"); /* the copy is not thought away */
    }
}

int main(int argc, char **argv)
{
    if (argc == 6 && strcmp(argv[1], "write") == 0) {
        job.total = (size_t)atoll(argv[3]);
        job.size = (size_t)atoll(argv[4]);
        write_all(argv[2], (unsigned)atoi(argv[5]));
    } else if (argc == 4 && strcmp(argv[1], "memcpy") == 0) {
        job.total = (size_t)atoll(argv[2]);
        job.size = (size_t)atoll(argv[3]);
        copy_all();
    } else {
        return 2;
    }
    double seconds = (double)(monotonic_ns() - started_ns) / 1e9;
    printf("{\"seconds\": %.6f, \"cpu_s\": %.6f, \"bytes_per_s\": %.0f}\n", seconds,
           (double)(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - started_cpu_ns) / 1e9, (double)job.total / seconds);
    return 0;
}

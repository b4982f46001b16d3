/* Pass frames from one process to another through shared memory and do nothing else: the limit a lane is measured against.
 *
 * usage: ring BYTES SECONDS        prints: frames a second
 *
 * A byte ring of CAPACITY with one producer and one consumer: record = length (8 bytes) and frame, aligned to 8. The producer
 * copies a frame in, the consumer copies it out. Indices run freely, each on a cache line of its own with a cached copy of the
 * far one, and are published once a batch. The memory is mapped twice in a row, so every record is contiguous.
 *
 * Sleep and wake, both ways: the sleeper sets its flag, fences, looks again, blocks on its eventfd; the other side publishes,
 * fences, reads the flag, and writes the eventfd only if it is set. A waiting producer is woken when half the ring is free. */
#define _GNU_SOURCE
#include <err.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { CAPACITY = 4 << 20, BATCH = 32, PAGE = 4096, FRAME_MAX = 65536 };

struct shared {
    _Alignas(64) _Atomic uint64_t written;
    _Alignas(64) _Atomic uint64_t taken;
    _Alignas(64) _Atomic int consumer_sleeps;
    _Alignas(64) _Atomic int producer_sleeps;
};

static struct shared *shared;
static char *data;
static int to_consumer, to_producer;
static char frame[FRAME_MAX];

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void make(void) {
    int fd = memfd_create("ring", 0);
    if (fd < 0 || ftruncate(fd, PAGE + CAPACITY)) err(1, "memfd");
    char *base = mmap(NULL, PAGE + 2 * (size_t)CAPACITY, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int how = MAP_SHARED | MAP_FIXED | MAP_POPULATE, allowed = PROT_READ | PROT_WRITE;
    if (mmap(base, PAGE + CAPACITY, allowed, how, fd, 0) == MAP_FAILED ||
        mmap(base + PAGE + CAPACITY, CAPACITY, allowed, how, fd, PAGE) == MAP_FAILED)
        err(1, "mmap");
    shared = (struct shared *)base;
    data = base + PAGE;
    if ((to_consumer = eventfd(0, 0)) < 0 || (to_producer = eventfd(0, 0)) < 0) err(1, "eventfd");
}

static void ring_bell(int bell) {
    uint64_t one = 1;
    if (write(bell, &one, 8) != 8) err(1, "eventfd");
}

static void hear_bell(int bell) {
    uint64_t count;
    if (read(bell, &count, 8) != 8) err(1, "eventfd");
}

static void produce(uint64_t bytes) {
    uint64_t record = (8 + bytes + 7) & ~7ull, written = 0, taken = 0;
    for (;;) {
        for (int i = 0; i < BATCH; i++) {
            if (written + record - taken > CAPACITY) {
                atomic_store_explicit(&shared->written, written, memory_order_release);
                taken = atomic_load_explicit(&shared->taken, memory_order_acquire);
                if (written + record - taken > CAPACITY) break;
            }
            char *at = data + (written & (CAPACITY - 1));
            memcpy(at, &bytes, 8);
            memcpy(at + 8, frame, bytes);
            written += record;
        }
        atomic_store_explicit(&shared->written, written, memory_order_release);
        atomic_thread_fence(memory_order_seq_cst);
        if (atomic_load_explicit(&shared->consumer_sleeps, memory_order_relaxed)) {
            atomic_store_explicit(&shared->consumer_sleeps, 0, memory_order_relaxed);
            ring_bell(to_consumer);
        }
        if (written + record - taken <= CAPACITY) continue;
        atomic_store_explicit(&shared->producer_sleeps, 1, memory_order_relaxed);
        atomic_thread_fence(memory_order_seq_cst);
        taken = atomic_load_explicit(&shared->taken, memory_order_acquire);
        if (written - taken <= CAPACITY / 2) atomic_store_explicit(&shared->producer_sleeps, 0, memory_order_relaxed);
        else hear_bell(to_producer);
        taken = atomic_load_explicit(&shared->taken, memory_order_acquire);
    }
}

static uint64_t consume(double seconds, double *took) {
    uint64_t written = 0, taken = 0, frames = 0, bytes;
    double begin = 0, time = 0;
    while (!frames || time < begin + seconds) {
        if (taken == written) {
            written = atomic_load_explicit(&shared->written, memory_order_acquire);
            if (taken == written) {
                atomic_store_explicit(&shared->consumer_sleeps, 1, memory_order_relaxed);
                atomic_thread_fence(memory_order_seq_cst);
                written = atomic_load_explicit(&shared->written, memory_order_acquire);
                if (taken == written) hear_bell(to_consumer);
                else atomic_store_explicit(&shared->consumer_sleeps, 0, memory_order_relaxed);
                continue;
            }
        }
        if (!frames) begin = now();
        for (int i = 0; i < BATCH && taken != written; i++) {
            const char *at = data + (taken & (CAPACITY - 1));
            memcpy(&bytes, at, 8);
            memcpy(frame, at + 8, bytes);
            __asm__ volatile("" ::"r"(frame) : "memory"); /* the copy out is the point: it shall not be left out */
            taken += (8 + bytes + 7) & ~7ull;
            frames++;
        }
        atomic_store_explicit(&shared->taken, taken, memory_order_release);
        atomic_thread_fence(memory_order_seq_cst);
        if (atomic_load_explicit(&shared->producer_sleeps, memory_order_relaxed) &&
            atomic_load_explicit(&shared->written, memory_order_relaxed) - taken <= CAPACITY / 2) {
            atomic_store_explicit(&shared->producer_sleeps, 0, memory_order_relaxed);
            ring_bell(to_producer);
        }
        time = now();
    }
    *took = time - begin;
    return frames;
}

int main(int count, char **argument) {
    if (count != 3) errx(2, "usage: ring BYTES SECONDS");
    uint64_t bytes = strtoull(argument[1], NULL, 10);
    if (bytes < 1 || bytes > FRAME_MAX) errx(2, "%s bytes: 1 to %d", argument[1], FRAME_MAX);
    make();
    memset(frame, 0x5a, sizeof frame);
    pid_t producer = fork();
    if (producer < 0) err(1, "fork");
    if (!producer) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        produce(bytes);
    }
    double took;
    uint64_t frames = consume(atof(argument[2]), &took);
    kill(producer, SIGKILL);
    waitpid(producer, NULL, 0);
    printf("%.0f\n", frames / took);
}

/* Send or count Ethernet frames through a vhost-user back end: the driver of a virtio-net card, with no guest around it.
 *
 * usage: vhostgen send PATH SECONDS BYTES     prints: sent seconds
 *        vhostgen sink PATH                   prints: received seconds bad
 *
 * PATH is a unix socket at which the back end listens, or will within PATIENCE_S. The rest is as in framegen.c. Both sides sleep when the
 * other has to go on, as a guest does, and ring only when asked (event index), so the back end is not measured against a spinning core. */
#define _GNU_SOURCE
#include <err.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { SIZE = 256, BUFFER = 2048, LONGEST = 65536, HEADER = 12, BATCH = 64, IDLE_MS = 400, PATIENCE_S = 5, ETHERTYPE = 0x88b5 };
enum { RECEIVE, TRANSMIT, RINGS };
enum { GET_FEATURES = 1, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 5, SET_VRING_NUM = 8, SET_VRING_ADDR, SET_VRING_BASE,
       SET_VRING_KICK = 12, SET_VRING_CALL, GET_PROTOCOL_FEATURES = 15, SET_PROTOCOL_FEATURES, SET_VRING_ENABLE = 18 };
/* GUEST_CSUM, GUEST_TSO4, MRG_RXBUF, EVENT_IDX, protocol features, VERSION_1 */
static const uint64_t WANTED = 1 << 1 | 1 << 7 | 1 << 15 | 1 << 29 | 1 << 30 | 1ull << 32;

static const uint8_t SENDER[6] = {2, 0, 0, 0, 0, 1}, SINK[6] = {2, 0, 0, 0, 0, 2}, EVERYBODY[6] = {255, 255, 255, 255, 255, 255};

struct descriptor { uint64_t address; uint32_t len; uint16_t flags, next; };
struct ring {
    struct descriptor *table;
    volatile uint16_t *available, *used; /* flags, index, ring, event */
    uint16_t next, done;                 /* made available, seen back */
    int kick, call;
};

static struct ring rings[RINGS];
static uint8_t *memory;
static const size_t MEMORY = (size_t)SIZE * LONGEST + (4 << 20);
static const uint64_t GUEST = 1ull << 32;
static int line;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void dial(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    for (double end = now() + PATIENCE_S;;) {
        if ((line = socket(AF_UNIX, SOCK_STREAM, 0)) < 0) err(1, "socket");
        if (!connect(line, (void *)&address, sizeof address)) return;
        if ((errno != ENOENT && errno != ECONNREFUSED) || now() > end) err(1, "%s", path);
        close(line);
        usleep(2000);
    }
}

static void say(uint32_t request, const void *payload, uint32_t size, int fd) {
    uint32_t head[3] = {request, 1, size};
    struct iovec parts[2] = {{head, sizeof head}, {(void *)payload, size}};
    union { struct cmsghdr head; char room[CMSG_SPACE(sizeof(int))]; } control = {0};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (fd >= 0) {
        message.msg_control = &control, message.msg_controllen = sizeof control;
        control.head.cmsg_len = CMSG_LEN(sizeof fd), control.head.cmsg_level = SOL_SOCKET, control.head.cmsg_type = SCM_RIGHTS;
        memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
    }
    if (sendmsg(line, &message, MSG_NOSIGNAL) != (ssize_t)(sizeof head + size)) err(1, "request %u", request);
}

static uint64_t ask(uint32_t request) {
    struct { uint32_t head[3]; uint64_t value; } __attribute__((packed)) answer;
    say(request, "", 0, -1);
    if (recv(line, &answer, sizeof answer, MSG_WAITALL) != sizeof answer) err(1, "request %u", request);
    return answer.value;
}

static void attach(const char *path) {
    int file = memfd_create("guest", 0);
    if (file < 0 || ftruncate(file, MEMORY)) err(1, "memfd_create");
    memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file, 0);
    if (memory == MAP_FAILED) err(1, "mmap");
    dial(path);
    uint64_t features = ask(GET_FEATURES) & WANTED, none = 0;
    say(SET_FEATURES, &features, 8, -1);
    if (features & 1 << 30) ask(GET_PROTOCOL_FEATURES), say(SET_PROTOCOL_FEATURES, &none, 8, -1);
    say(SET_OWNER, "", 0, -1);
    struct { uint32_t count, padding; uint64_t guest, size, user, offset; } table = {1, 0, GUEST, MEMORY, (uintptr_t)memory, 0};
    say(SET_MEM_TABLE, &table, sizeof table, file);
    for (uint32_t n = 0; n < RINGS; n++) {
        uint8_t *at = memory + n * (1 << 20);
        struct ring *ring = &rings[n];
        *ring = (struct ring){(void *)at, (void *)(at + (64 << 10)), (void *)(at + (128 << 10)), 0, 0, eventfd(0, 0), eventfd(0, EFD_NONBLOCK)};
        uint32_t size[2] = {n, SIZE}, base[2] = {n, 0}, enable[2] = {n, 1};
        uint64_t which = n;
        struct { uint32_t ring, flags; uint64_t table, used, available, log; } where = {
            n, 0, (uintptr_t)ring->table, (uintptr_t)ring->used, (uintptr_t)ring->available, 0};
        say(SET_VRING_NUM, size, 8, -1);
        say(SET_VRING_BASE, base, 8, -1);
        say(SET_VRING_ADDR, &where, sizeof where, -1);
        say(SET_VRING_CALL, &which, 8, ring->call);
        say(SET_VRING_KICK, &which, 8, ring->kick);
        if (features & 1 << 30) say(SET_VRING_ENABLE, enable, 8, -1);
    }
    ask(GET_FEATURES); /* answered once all of this was heard */
}

static uint8_t *buffer(int n) { return memory + (4 << 20) + (size_t)n * LONGEST; }

static uint16_t used_index(struct ring *ring) { return __atomic_load_n(&ring->used[1], __ATOMIC_ACQUIRE); }

/* Show what was made available since `before`, and ring if the device asked for it. */
static void show(struct ring *ring, uint16_t before) {
    __atomic_store_n(&ring->available[1], ring->next, __ATOMIC_RELEASE);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    uint16_t event = ring->used[2 + SIZE * 4];
    if ((uint16_t)(ring->next - event - 1) < (uint16_t)(ring->next - before) && eventfd_write(ring->kick, 1)) err(1, "eventfd");
}

/* Sleep until `count` more chains came back; 0 where none did for so long. */
static int sleep_for(struct ring *ring, uint16_t count, int ms) {
    eventfd_t value;
    ring->available[2 + SIZE] = ring->done + count - 1;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if ((uint16_t)(used_index(ring) - ring->done) >= count) return 1;
    struct pollfd bell = {ring->call, POLLIN, 0};
    int woken = poll(&bell, 1, ms) > 0;
    eventfd_read(ring->call, &value);
    return woken || used_index(ring) != ring->done;
}

static void put_frame(uint8_t *at, const uint8_t *to, const uint8_t *from) {
    memset(at, 0, HEADER);
    memcpy(at + HEADER, to, 6), memcpy(at + HEADER + 6, from, 6);
    at[HEADER + 12] = ETHERTYPE >> 8, at[HEADER + 13] = ETHERTYPE & 255;
}

static void offer(struct ring *ring, int n, size_t len, uint16_t flags) {
    ring->table[n] = (struct descriptor){GUEST + (buffer(n) - memory), len, flags, 0};
    ring->available[2 + ring->next++ % SIZE] = n;
}

static void send_for(double seconds, size_t bytes) {
    struct ring *ring = &rings[TRANSMIT];
    uint64_t sent = 0;
    double begin = now(), end = begin + seconds;
    for (int n = 0; n < SIZE; n++) put_frame(buffer(n), SINK, SENDER);
    while (now() < end) {
        ring->done = used_index(ring);
        int room = SIZE - (uint16_t)(ring->next - ring->done);
        if (!room) {
            sleep_for(ring, SIZE / 2, 100);
            continue;
        }
        uint16_t before = ring->next;
        for (int n = 0; n < room && n < BATCH; n++) offer(ring, ring->next % SIZE, HEADER + bytes, 0), sent++;
        show(ring, before);
    }
    sent -= (uint16_t)(ring->next - used_index(ring));
    printf("%lu %f\n", (unsigned long)sent, now() - begin);
}

static void sink(void) {
    struct ring *ring = &rings[RECEIVE];
    uint64_t received = 0, bad = 0;
    size_t expected = 0;
    double begin = 0, end = 0;
    for (int n = 0; n < SIZE; n++) offer(ring, n, BUFFER, 2);
    show(ring, 0);
    put_frame(buffer(0) + BUFFER, EVERYBODY, SINK);
    rings[TRANSMIT].table[0] = (struct descriptor){GUEST + (buffer(0) + BUFFER - memory), HEADER + 60, 0, 0};
    rings[TRANSMIT].next = 1;
    show(&rings[TRANSMIT], 0);
    while (!used_index(&rings[TRANSMIT])) usleep(1000);
    puts("ready"), fflush(stdout);
    for (int patience = 1000 * PATIENCE_S;;) {
        uint16_t index = used_index(ring), before = ring->next;
        if (index == ring->done) {
            if (!sleep_for(ring, 1, patience)) break;
            continue;
        }
        size_t len = 0;
        int merged = 0;
        for (; ring->done != index; ring->done++) {
            volatile uint32_t *entry = (volatile uint32_t *)(ring->used + 2) + 2 * (ring->done % SIZE);
            uint8_t *at = buffer(entry[0]);
            if (!merged) merged = at[10] | at[11] << 8, len = -(size_t)HEADER;
            len += entry[1];
            if (!--merged && at[HEADER + 5] != 255) {
                if (!expected) expected = len, begin = now();
                received++, bad += len != expected, patience = IDLE_MS;
            }
            offer(ring, entry[0], BUFFER, 2);
        }
        show(ring, before);
        end = now();
    }
    printf("%lu %f %lu\n", (unsigned long)received, end - begin, (unsigned long)bad);
}

int main(int count, char **words) {
    if (count == 5 && !strcmp(words[1], "send")) {
        size_t bytes = atol(words[4]);
        if (bytes < 60 || bytes > LONGEST - HEADER) errx(2, "%s: 60 to %d bytes", words[4], LONGEST - HEADER);
        attach(words[2]);
        send_for(atof(words[3]), bytes);
    } else if (count == 3 && !strcmp(words[1], "sink")) {
        attach(words[2]);
        sink();
    } else {
        errx(2, "usage: vhostgen send PATH SECONDS BYTES | sink PATH");
    }
    return 0;
}

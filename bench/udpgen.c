/* Send or count UDP datagrams as fast as the kernel takes them, or at a rate.
 *
 * usage: udpgen send ADDRESS PORT SECONDS BYTES [RATE]     prints: sent seconds
 *        udpgen sink PORT [IDLE_MS]                        prints: received seconds lost late longest_gap_ms highest
 *
 * BYTES is the length of the Ethernet frame without its checksum. Each datagram carries a number. The sink says "ready", counts
 * from the first datagram, and ends when none came for IDLE_MS (400): its seconds are those from the first to the last. `lost` are
 * numbers never seen below the highest one, `late` came after a higher one. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 64, HEADERS = 14 + 20 + 8, PAYLOAD_MAX = 1472, BUFFER = 16 << 20 };

static char payload[BATCH][PAYLOAD_MAX];
static struct iovec vector[BATCH];
static struct mmsghdr message[BATCH];

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void sleep_until(double when) {
    struct timespec time = {.tv_sec = (time_t)when, .tv_nsec = (long)((when - (time_t)when) * 1e9)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
}

static void prepare(size_t length) {
    for (int i = 0; i < BATCH; i++) {
        vector[i] = (struct iovec){payload[i], length};
        message[i].msg_hdr = (struct msghdr){.msg_iov = &vector[i], .msg_iovlen = 1};
    }
}

static int udp_socket(void) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0) err(1, "socket");
    return fd;
}

static void send_all(const char *address, int port, double seconds, long bytes, double rate) {
    if (bytes < HEADERS + 8 || bytes > HEADERS + PAYLOAD_MAX) errx(2, "%ld bytes: %d to %d", bytes, HEADERS + 8, HEADERS + PAYLOAD_MAX);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, address, &to.sin_addr) != 1) errx(2, "%s: not an IPv4 address", address);
    int fd = udp_socket();
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) err(1, "%s", address);
    prepare(bytes - HEADERS);

    double begin = now(), end = begin + seconds, time = begin;
    uint64_t number = 0;
    while (time < end) {
        int wanted = BATCH;
        if (rate > 0) {
            double due = (time - begin) * rate + 1 - number;
            if (due < 1) {
                sleep_until(begin + number / rate);
                time = now();
                continue;
            }
            wanted = due < BATCH ? (int)due : BATCH;
        }
        for (int i = 0; i < wanted; i++) {
            uint64_t mark = number + i;
            memcpy(payload[i], &mark, sizeof mark);
        }
        int sent = sendmmsg(fd, message, wanted, 0);
        if (sent < 0 && errno != ENOBUFS && errno != ECONNREFUSED && errno != EAGAIN) err(1, "send");
        if (sent > 0) number += sent;
        time = now();
    }
    printf("%llu %.6f\n", (unsigned long long)number, time - begin);
}

static void sink(int port, int idle_ms) {
    int fd = udp_socket(), buffer = BUFFER;
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer)) err(1, "receive buffer");
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (bind(fd, (struct sockaddr *)&here, sizeof here)) err(1, "port %d", port);
    prepare(PAYLOAD_MAX);
    puts("ready");
    fflush(stdout);

    struct timeval idle = {.tv_sec = idle_ms / 1000, .tv_usec = idle_ms % 1000 * 1000};
    uint64_t received = 0, late = 0, next = 0, lowest = UINT64_MAX;
    double first = 0, last = 0, gap = 0;
    for (;;) {
        int count = recvmmsg(fd, message, BATCH, MSG_WAITFORONE, NULL);
        if (count < 0) {
            if (errno == EAGAIN) break;
            err(1, "receive");
        }
        double time = now();
        if (!received) {
            first = time;
            setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &idle, sizeof idle);
        } else if (time - last > gap) {
            gap = time - last;
        }
        last = time;
        for (int i = 0; i < count; i++) {
            uint64_t mark;
            memcpy(&mark, payload[i], sizeof mark);
            if (mark < lowest) lowest = mark;
            if (mark < next) late++;
            else next = mark + 1;
        }
        received += count;
    }
    uint64_t span = next - lowest;
    printf("%llu %.6f %lld %llu %.3f %llu\n", (unsigned long long)received, last - first, (long long)(span - received),
           (unsigned long long)late, gap * 1e3, (unsigned long long)next - 1);
}

int main(int count, char **argument) {
    if (count >= 6 && !strcmp(argument[1], "send"))
        send_all(argument[2], atoi(argument[3]), atof(argument[4]), atol(argument[5]), count > 6 ? atof(argument[6]) : 0);
    else if (count >= 3 && !strcmp(argument[1], "sink"))
        sink(atoi(argument[2]), count > 3 ? atoi(argument[3]) : 400);
    else
        errx(2, "usage: udpgen send ADDRESS PORT SECONDS BYTES [RATE] | udpgen sink PORT [IDLE_MS]");
}

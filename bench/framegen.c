/* Send or count Ethernet frames in QEMU's stream framing: a big-endian length of four bytes, then the frame.
 *
 * usage: framegen send TARGET SECONDS BYTES     prints: sent seconds
 *        framegen sink TARGET                   prints: received seconds bad
 *
 * TARGET is unix:PATH or tcp:ADDRESS:PORT, where a switch listens, or will within PATIENCE_S. The sink first sends a frame of its own, so that a learning
 * switch knows where it is, then says "ready"; it counts from the first frame and ends when none came for IDLE_MS. Both sides
 * write and read many frames a call, so what is measured is the switch. `bad` are frames of another length than the first. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 256 << 10, IDLE_MS = 400, PATIENCE_S = 5, ETHERTYPE = 0x88b5 /* IEEE 802: for local experiments */ };

static const uint8_t SENDER[6] = {2, 0, 0, 0, 0, 1}, SINK[6] = {2, 0, 0, 0, 0, 2}, EVERYBODY[6] = {255, 255, 255, 255, 255, 255};
static char buffer[BUFFER];

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static int join(int family, const void *address, socklen_t size, const char *target) {
    for (double end = now() + PATIENCE_S;;) {
        int fd = socket(family, SOCK_STREAM, 0);
        if (fd < 0) err(1, "socket");
        if (!connect(fd, address, size)) return fd;
        if ((errno != ENOENT && errno != ECONNREFUSED) || now() > end) err(1, "%s", target);
        close(fd);
        usleep(2000);
    }
}

static int dial(const char *target) {
    if (!strncmp(target, "unix:", 5)) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        strncpy(address.sun_path, target + 5, sizeof address.sun_path - 1);
        return join(AF_UNIX, &address, sizeof address, target);
    }
    char host[64];
    int port, on = 1;
    if (sscanf(target, "tcp:%63[^:]:%d", host, &port) != 2) errx(2, "%s: unix:PATH or tcp:ADDRESS:PORT", target);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) errx(2, "%s: not an IPv4 address", host);
    int fd = join(AF_INET, &address, sizeof address, target);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static size_t put_frame(char *at, size_t bytes, const uint8_t *to, const uint8_t *from) {
    uint32_t length = htonl(bytes);
    uint16_t type = htons(ETHERTYPE);
    memset(at, 0, 4 + bytes);
    memcpy(at, &length, 4);
    memcpy(at + 4, to, 6);
    memcpy(at + 10, from, 6);
    memcpy(at + 16, &type, 2);
    return 4 + bytes;
}

static void write_all(int fd, const char *at, size_t length) {
    while (length) {
        ssize_t done = write(fd, at, length);
        if (done <= 0) err(1, "write");
        at += done;
        length -= done;
    }
}

static void send_all(const char *target, double seconds, size_t bytes) {
    if (bytes < 14 || bytes > 65536) errx(2, "%zu bytes: 14 to 65536", bytes);
    int fd = dial(target);
    size_t length = 0, frames = 0;
    while (length + 4 + bytes <= BUFFER / 4) {
        length += put_frame(buffer + length, bytes, SINK, SENDER);
        frames++;
    }
    double begin = now(), time = begin;
    unsigned long long sent = 0;
    while (time < begin + seconds) {
        write_all(fd, buffer, length);
        sent += frames;
        time = now();
    }
    printf("%llu %.6f\n", sent, time - begin);
    fflush(stdout);
    /* What is still inside the switch shall reach the sink before the port goes down. */
    usleep(IDLE_MS * 1000);
}

static void sink(const char *target) {
    int fd = dial(target);
    write_all(fd, buffer, put_frame(buffer, 60, EVERYBODY, SINK));
    puts("ready");
    fflush(stdout);
    struct timeval idle = {.tv_usec = IDLE_MS * 1000};
    unsigned long long received = 0, bad = 0;
    uint32_t usual = 0;
    size_t filled = 0;
    double first = 0, last = 0;
    for (;;) {
        ssize_t length = read(fd, buffer + filled, sizeof buffer - filled);
        if (length <= 0) {
            if (length < 0 && errno != EAGAIN) err(1, "read");
            break;
        }
        last = now();
        if (!first) {
            first = last;
            setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &idle, sizeof idle);
        }
        filled += length;
        size_t at = 0;
        uint32_t frame;
        while (filled - at >= 4) {
            memcpy(&frame, buffer + at, 4);
            frame = ntohl(frame);
            if (frame < 14 || frame > 65536 + 22) errx(1, "a frame of %u bytes: out of step", frame);
            if (filled - at < 4 + frame) break;
            if (!usual) usual = frame;
            bad += frame != usual;
            received++;
            at += 4 + frame;
        }
        memmove(buffer, buffer + at, filled - at);
        filled -= at;
    }
    printf("%llu %.6f %llu\n", received, last - first, bad);
}

int main(int count, char **argument) {
    if (count == 5 && !strcmp(argument[1], "send")) send_all(argument[2], atof(argument[3]), atol(argument[4]));
    else if (count == 3 && !strcmp(argument[1], "sink")) sink(argument[2]);
    else errx(2, "usage: framegen send TARGET SECONDS BYTES | framegen sink TARGET");
}

/* Time UDP round trips of 64-byte frames, one at a time.
 *
 * usage: pingpong echo PORT
 *        pingpong ask ADDRESS PORT SECONDS        prints: p50_us p99_us round_trips lost
 *
 * A reply that takes longer than LOST_MS counts as lost and not as a time. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { PAYLOAD = 64 - 42, LOST_MS = 200, KEEP = 1 << 20 };

static uint32_t took_ns[KEEP];

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static int ascending(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static void echo(int port) {
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (bind(fd, (struct sockaddr *)&address, sizeof address)) err(1, "port %d", port);
    puts("ready");
    fflush(stdout);
    for (;;) {
        char datagram[PAYLOAD];
        socklen_t size = sizeof address;
        ssize_t length = recvfrom(fd, datagram, sizeof datagram, 0, (struct sockaddr *)&address, &size);
        if (length < 0) err(1, "receive");
        sendto(fd, datagram, length, 0, (struct sockaddr *)&address, size);
    }
}

static void ask(const char *address, int port, double seconds) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, address, &to.sin_addr) != 1) errx(2, "%s: not an IPv4 address", address);
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct timeval patience = {.tv_usec = LOST_MS * 1000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) err(1, "%s", address);

    size_t count = 0, lost = 0;
    uint64_t end = now_ns() + (uint64_t)(seconds * 1e9);
    for (uint64_t number = 0; now_ns() < end && count < KEEP; number++) {
        char datagram[PAYLOAD] = {0};
        memcpy(datagram, &number, sizeof number);
        uint64_t begin = now_ns(), answer = 0;
        send(fd, datagram, sizeof datagram, 0);
        ssize_t length;
        do /* an answer to a question given up on is no answer to this one */
            if ((length = recv(fd, datagram, sizeof datagram, 0)) > 0) memcpy(&answer, datagram, sizeof answer);
        while (length > 0 && answer != number);
        if (length <= 0) lost++;
        else took_ns[count++] = now_ns() - begin;
    }
    if (!count) errx(1, "%s: no answer to %zu datagrams", address, lost);
    qsort(took_ns, count, sizeof *took_ns, ascending);
    printf("%.1f %.1f %zu %zu\n", took_ns[count / 2] / 1e3, took_ns[count * 99 / 100] / 1e3, count, lost);
}

int main(int count, char **argument) {
    if (count == 3 && !strcmp(argument[1], "echo")) echo(atoi(argument[2]));
    else if (count == 5 && !strcmp(argument[1], "ask")) ask(argument[2], atoi(argument[3]), atof(argument[4]));
    else errx(2, "usage: pingpong echo PORT | pingpong ask ADDRESS PORT SECONDS");
}

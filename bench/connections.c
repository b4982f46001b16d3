/* TCP connections: many, short, or one that asks and waits.
 *
 * usage: connections serve PORT                      says "ready", then answers
 *        connections crr ADDRESS PORT SECONDS        prints: connections seconds
 *        connections ask ADDRESS PORT SECONDS        prints: p50_us p99_us round_trips
 *        connections open ADDRESS PORT COUNT LIMIT   prints: seconds answered, says "ready", keeps them all until it is killed
 *
 * A message is MESSAGE bytes. The server sends each back, and closes after one that begins with LAST. `crr` connects, asks once,
 * reads the answer and the end, closes; one at a time. `open` connects COUNT times, PENDING at a time, asks on each, and once all
 * are there asks on all of them again: `answered` is how many answered that within LIMIT seconds. */
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
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGE = 64, LAST = 'L', MORE = 'M', PENDING = 128, EVENTS = 256, PATIENCE_S = 5, BACKLOG = 4096, KEEP = 1 << 20 };

static uint32_t took_ns[KEEP];

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static double since(uint64_t begin) {
    return (now_ns() - begin) / 1e9;
}

static int stream(int flags) {
    int fd = socket(AF_INET, SOCK_STREAM | flags, 0), on = 1;
    if (fd < 0) err(1, "socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static void watch(int epoll, int fd, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll, operation, fd, &event)) err(1, "epoll");
}

static void serve(int port) {
    int listener = stream(SOCK_NONBLOCK), epoll = epoll_create1(0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, BACKLOG)) err(1, "port %d", port);
    watch(epoll, listener, EPOLLIN, EPOLL_CTL_ADD);
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(epoll, events, EVENTS, -1);
        for (int n = 0; n < count; n++) {
            int fd = events[n].data.fd;
            if (fd == listener) {
                while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                    watch(epoll, fd, EPOLLIN, EPOLL_CTL_ADD);
                }
                continue;
            }
            char message[MESSAGE];
            ssize_t length = recv(fd, message, sizeof message, 0);
            if (length > 0) send(fd, message, length, MSG_NOSIGNAL);
            if (length == 0 || (length < 0 && errno != EAGAIN) || (length > 0 && message[0] == LAST)) close(fd);
        }
    }
}

static struct sockaddr_in far(const char *address, const char *port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    if (inet_pton(AF_INET, address, &to.sin_addr) != 1) errx(2, "%s: not an IPv4 address", address);
    return to;
}

/* Connect and wait for it, with PATIENCE_S for every answer. */
static int join(const struct sockaddr_in *to) {
    int fd = stream(0);
    struct timeval patience = {.tv_sec = PATIENCE_S};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(fd, (const struct sockaddr *)to, sizeof *to)) err(1, "connect");
    return fd;
}

static void exchange(int fd, char first) {
    char message[MESSAGE] = {first};
    if (send(fd, message, sizeof message, MSG_NOSIGNAL) != MESSAGE) err(1, "send");
    for (ssize_t got = 0, length; got < MESSAGE; got += length)
        if ((length = recv(fd, message, MESSAGE - got, 0)) <= 0) err(1, "no answer");
}

static void crr(const struct sockaddr_in *to, double seconds) {
    uint64_t begin = now_ns();
    unsigned long count = 0;
    for (; since(begin) < seconds; count++) {
        int fd = join(to);
        char rest;
        exchange(fd, LAST);
        if (recv(fd, &rest, 1, 0) != 0) err(1, "no end");
        close(fd);
    }
    printf("%lu %.6f\n", count, since(begin));
}

static int ascending(const void *left, const void *right) {
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static void ask(const struct sockaddr_in *to, double seconds) {
    int fd = join(to);
    size_t count = 0;
    for (uint64_t begin = now_ns(); since(begin) < seconds && count < KEEP; count++) {
        uint64_t asked = now_ns();
        exchange(fd, MORE);
        took_ns[count] = now_ns() - asked;
    }
    qsort(took_ns, count, sizeof *took_ns, ascending);
    printf("%.1f %.1f %zu\n", took_ns[count / 2] / 1e3, took_ns[count * 99 / 100] / 1e3, count);
}

/* Wait for some of what is awaited: how many answered or failed, and of these the latter in `failed`. */
static int answers(int epoll, int *failed) {
    struct epoll_event events[EVENTS];
    char message[MESSAGE] = {MORE};
    int count = epoll_wait(epoll, events, EVENTS, 100), answered = 0;
    for (int n = 0; n < count; n++) {
        int fd = events[n].data.fd;
        if (events[n].events & EPOLLOUT && !(events[n].events & EPOLLERR)) { /* connected */
            send(fd, message, sizeof message, MSG_NOSIGNAL);
            watch(epoll, fd, EPOLLIN, EPOLL_CTL_MOD);
            continue;
        }
        if (recv(fd, message, sizeof message, 0) != MESSAGE) {
            watch(epoll, fd, 0, EPOLL_CTL_DEL);
            ++*failed;
        }
        answered++;
    }
    return answered;
}

static void open_many(const struct sockaddr_in *to, int count, double limit) {
    int *fds = calloc(count, sizeof *fds), epoll = epoll_create1(0), begun = 0, open = 0, answered = 0, failed = 0;
    char message[MESSAGE] = {MORE};
    uint64_t begin = now_ns();
    while (open < count && since(begin) < limit) {
        for (; begun < count && begun - open < PENDING; begun++) {
            fds[begun] = stream(SOCK_NONBLOCK);
            if (connect(fds[begun], (const struct sockaddr *)to, sizeof *to) && errno != EINPROGRESS) err(1, "connect");
            watch(epoll, fds[begun], EPOLLOUT, EPOLL_CTL_ADD);
        }
        open += answers(epoll, &failed);
    }
    for (int n = 0; open == count && n < count; n++) send(fds[n], message, sizeof message, MSG_NOSIGNAL);
    int missed = failed;
    while (open == count && answered + missed < count && since(begin) < limit) answered += answers(epoll, &failed);
    printf("%.6f %d ready\n", since(begin), answered - (failed - missed));
    fflush(stdout);
    pause();
}

int main(int count, char **argument) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    if (count == 3 && !strcmp(argument[1], "serve")) serve(atoi(argument[2]));
    if (count < 5) errx(2, "usage: connections serve PORT | crr|ask ADDRESS PORT SECONDS | open ADDRESS PORT COUNT LIMIT");
    struct sockaddr_in to = far(argument[2], argument[3]);
    if (count == 5 && !strcmp(argument[1], "crr")) crr(&to, atof(argument[4]));
    else if (count == 5 && !strcmp(argument[1], "ask")) ask(&to, atof(argument[4]));
    else if (count == 6 && !strcmp(argument[1], "open")) open_many(&to, atoi(argument[4]), atof(argument[5]));
    else errx(2, "%s: neither serve nor crr nor ask nor open", argument[1]);
}

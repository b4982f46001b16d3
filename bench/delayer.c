/* Carry frames between two TAP interfaces, each one so late, and lose some: what a link with delay and loss is held against.
 *
 * usage: delayer TAP TAP DELAY_US LOSS_PPM
 *
 * Both directions alike. A frame waits in a queue of its direction, which holds HELD_MOST bytes; the process sleeps until the first one
 * is due. With losses the TAPs hand over no super-frames, so that each frame has its own fate; without, those cross uncut. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum { BURST = 64, VNET_HEADER = 10, FRAME_MAX = VNET_HEADER + 18 + 65536, HELD_MOST = 256 << 20 };

#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

struct held {
    struct held *next;
    uint64_t due_ns;
    ssize_t length;
    char frame[];
};

static struct { struct held *first, **last; size_t bytes; } queue[2];

static int open_tap(const char *name, int whole) {
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    if (fd < 0) err(1, "/dev/net/tun");
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | (whole ? 0 : IFF_VNET_HDR)};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(fd, TUNSETIFF, &request)) err(1, "%s", name);
    if (whole) return fd;
    int size = VNET_HEADER;
    if (ioctl(fd, TUNSETVNETHDRSZ, &size)) err(1, "%s: header of %d bytes", name, size);
    unsigned offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    if (ioctl(fd, TUNSETOFFLOAD, offloads | TUN_F_USO4 | TUN_F_USO6) && ioctl(fd, TUNSETOFFLOAD, offloads))
        err(1, "%s: offloads", name);
    return fd;
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static uint32_t dice(void) { /* xorshift64*: Vigna, 2016 */
    static uint64_t state = 88172645463325252ull;
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return state * 2685821657736338717ull >> 32;
}

int main(int count, char **argument) {
    if (count != 5) errx(2, "usage: delayer TAP TAP DELAY_US LOSS_PPM");
    uint64_t delay_ns = strtoull(argument[3], NULL, 10) * 1000;
    uint64_t loss = (strtoull(argument[4], NULL, 10) << 32) / 1000000;
    struct pollfd taps[2];
    for (int side = 0; side < 2; side++) {
        taps[side] = (struct pollfd){.fd = open_tap(argument[1 + side], loss != 0), .events = POLLIN};
        queue[side].last = &queue[side].first;
    }
    static char frame[FRAME_MAX];
    puts("ready");
    fflush(stdout);
    for (;;) {
        uint64_t now = now_ns(), due = UINT64_MAX;
        for (int side = 0; side < 2; side++) {
            struct held *held;
            while ((held = queue[side].first) && held->due_ns <= now) {
                if (write(taps[!side].fd, held->frame, held->length) < 0) { /* lost, as on a wire */ }
                if (!(queue[side].first = held->next)) queue[side].last = &queue[side].first;
                queue[side].bytes -= held->length;
                free(held);
            }
            if (held && held->due_ns < due) due = held->due_ns;
        }
        struct timespec left = {0};
        if (due != UINT64_MAX && due > (now = now_ns())) left = (struct timespec){(due - now) / 1000000000, (due - now) % 1000000000};
        if (ppoll(taps, 2, due == UINT64_MAX ? NULL : &left, NULL) < 0) err(1, "ppoll");
        now = now_ns();
        for (int side = 0; side < 2; side++) {
            if (!(taps[side].revents & POLLIN)) continue;
            for (int turn = 0; turn < BURST; turn++) {
                ssize_t length = read(taps[side].fd, frame, sizeof frame);
                if (length <= 0) break;
                if (dice() < loss || queue[side].bytes + length > HELD_MOST) continue;
                struct held *held = malloc(sizeof *held + length);
                if (!held) err(1, "malloc");
                *held = (struct held){NULL, now + delay_ns, length};
                memcpy(held->frame, frame, length);
                *queue[side].last = held;
                queue[side].last = &held->next;
                queue[side].bytes += length;
            }
        }
    }
}

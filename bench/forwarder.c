/* Carry frames between two TAP interfaces and do nothing else: the limit of the mechanism.
 *
 * usage: forwarder TAP TAP
 *
 * The virtio-net header goes along unread, so a super-frame crosses uncut and a partial checksum stays partial. One process
 * carries both directions: poll, then up to BURST frames from whichever side has some. No table, no counters, no second copy. */
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { BURST = 64, VNET_HEADER = 10, FRAME_MAX = VNET_HEADER + 18 + 65536 };

#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#define TUN_F_USO6 0x40
#endif

static int open_tap(const char *name) {
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    if (fd < 0) err(1, "/dev/net/tun");
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (ioctl(fd, TUNSETIFF, &request)) err(1, "%s", name);
    int size = VNET_HEADER;
    if (ioctl(fd, TUNSETVNETHDRSZ, &size)) err(1, "%s: header of %d bytes", name, size);
    unsigned offloads = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
    if (ioctl(fd, TUNSETOFFLOAD, offloads | TUN_F_USO4 | TUN_F_USO6) && ioctl(fd, TUNSETOFFLOAD, offloads))
        err(1, "%s: offloads", name);
    return fd;
}

int main(int count, char **argument) {
    if (count != 3) errx(2, "usage: forwarder TAP TAP");
    struct pollfd taps[2] = {{.fd = open_tap(argument[1]), .events = POLLIN}, {.fd = open_tap(argument[2]), .events = POLLIN}};
    static char frame[FRAME_MAX];
    puts("ready");
    fflush(stdout);
    for (;;) {
        if (poll(taps, 2, -1) < 0) err(1, "poll");
        for (int side = 0; side < 2; side++) {
            if (!(taps[side].revents & POLLIN)) continue;
            for (int turn = 0; turn < BURST; turn++) {
                ssize_t length = read(taps[side].fd, frame, sizeof frame);
                if (length <= 0) break;
                /* An interface that is down refuses the frame, and so does nothing else: lost, as on a wire. */
                if (write(taps[!side].fd, frame, length) < 0) continue;
            }
        }
    }
}

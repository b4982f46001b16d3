/* A guest of a stream port: a TAP whose frames go to a switch in QEMU's stream framing (a big-endian length of four bytes before
 * each), and back.
 *
 * usage: tapstream TAP PATH
 *
 * The TAP has no offloads, as a guest of such a port has none. Frames are written and read many a call, so what is measured is
 * the switch. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { BUFFER = 256 << 10, FRAME = 65536 + 22, PREFIX = 4 };

static char out[BUFFER], in[BUFFER];

static int attach(const char *name) {
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    strncpy(request.ifr_name, name, IFNAMSIZ - 1);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request)) err(1, "%s", name);
    return fd;
}

static int dial(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) || fcntl(fd, F_SETFL, O_NONBLOCK)) err(1, "%s", path);
    return fd;
}

/* Read frames of the TAP behind one another, each with its length before it. */
static size_t gather(int tap) {
    size_t filled = 0;
    while (BUFFER - filled >= PREFIX + FRAME) {
        ssize_t length = read(tap, out + filled + PREFIX, FRAME);
        if (length <= 0) break;
        uint32_t prefix = htonl(length);
        memcpy(out + filled, &prefix, PREFIX);
        filled += PREFIX + length;
    }
    return filled;
}

/* Write the whole frames among `filled` bytes to the TAP; how many bytes those were. */
static size_t scatter(int tap, size_t filled) {
    size_t at = 0;
    while (filled - at >= PREFIX) {
        uint32_t length;
        memcpy(&length, in + at, PREFIX);
        length = ntohl(length);
        if (length > FRAME) errx(1, "a frame of %u bytes: out of step", length);
        if (filled - at < PREFIX + length) break;
        if (write(tap, in + at + PREFIX, length) < 0 && errno != EINVAL && errno != EIO) err(1, "TAP"); /* too short, or not up yet */
        at += PREFIX + length;
    }
    return at;
}

int main(int count, char **argument) {
    if (count != 3) errx(2, "usage: tapstream TAP PATH");
    int tap = attach(argument[1]), socket = dial(argument[2]);
    size_t sent = 0, to_send = 0, filled = 0;
    for (;;) {
        struct pollfd ready[2] = {{tap, to_send ? 0 : POLLIN, 0}, {socket, POLLIN | (to_send ? POLLOUT : 0), 0}};
        if (poll(ready, 2, -1) < 0) err(1, "poll");
        if (!to_send && ready[0].revents & POLLIN) to_send = gather(tap);
        if (to_send) {
            ssize_t length = send(socket, out + sent, to_send - sent, MSG_NOSIGNAL);
            if (length < 0 && errno != EAGAIN) err(1, "%s", argument[2]);
            if (length > 0) sent += length;
            if (sent == to_send) sent = to_send = 0;
        }
        if (ready[1].revents & (POLLIN | POLLHUP)) {
            ssize_t length = read(socket, in + filled, BUFFER - filled);
            if (length == 0) return 0;
            if (length < 0 && errno != EAGAIN) err(1, "%s", argument[2]);
            if (length > 0) {
                filled += length;
                size_t done = scatter(tap, filled);
                memmove(in, in + done, filled - done);
                filled -= done;
            }
        }
    }
}

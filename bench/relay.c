/* Pass bytes between two unix stream sockets and do nothing else: the limit of a switch of stream ports.
 *
 * usage: relay PATH PATH
 *
 * It listens at both, takes one client at each, and writes to one what it reads from the other, a full buffer at a time, without
 * looking for frames in it. A writer waits until all is written, as a relay of traffic that goes one way at a time may. */
#include <err.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { BUFFER = 256 << 10 };

static int listen_at(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 1)) err(1, "%s", path);
    return fd;
}

int main(int count, char **argument) {
    if (count != 3) errx(2, "usage: relay PATH PATH");
    struct pollfd door[2] = {{.fd = listen_at(argument[1]), .events = POLLIN}, {.fd = listen_at(argument[2]), .events = POLLIN}};
    struct pollfd side[2] = {{.fd = -1, .events = POLLIN}, {.fd = -1, .events = POLLIN}};
    static char buffer[BUFFER];
    for (int here = 0; side[0].fd < 0 || side[1].fd < 0; here = !here) {
        if (poll(&door[here], 1, 10) > 0 && side[here].fd < 0 && (side[here].fd = accept(door[here].fd, NULL, NULL)) < 0) err(1, "accept");
    }
    for (;;) {
        if (poll(side, 2, -1) < 0) err(1, "poll");
        for (int from = 0; from < 2; from++) {
            if (!side[from].revents) continue;
            ssize_t length = read(side[from].fd, buffer, sizeof buffer);
            if (length <= 0) return 0;
            for (ssize_t done = 0, more; done < length; done += more)
                if ((more = write(side[!from].fd, buffer + done, length - done)) <= 0) err(1, "write");
        }
    }
}

"""Room in a socket's buffers: beyond the system's limit with privileges, up to it without."""

import socket

SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33  # asm-generic/socket.h


def make(any_socket: socket.socket, receive: int | None = None, send: int | None = None) -> None:
    """Ask for so many bytes of what is received and of what is sent (SO_RCVBUF and SO_SNDBUF of socket(7)); None leaves it as it is."""
    for forced, plain, size in (
        (SO_RCVBUFFORCE, socket.SO_RCVBUF, receive),
        (SO_SNDBUFFORCE, socket.SO_SNDBUF, send),
    ):
        if size is None:
            continue
        try:
            any_socket.setsockopt(socket.SOL_SOCKET, forced, size)
        except PermissionError:
            any_socket.setsockopt(socket.SOL_SOCKET, plain, size)

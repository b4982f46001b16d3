"""TFTP without sockets, threads or clocks: datagrams in, datagrams out, the time passed in."""

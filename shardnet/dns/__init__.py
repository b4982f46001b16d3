"""The DNS service as bytes in and bytes out, the time handed in; `sockets` alone touches what its name says."""

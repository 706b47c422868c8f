"""The API's socket, bound before anything else is touched, without the weight of the web framework."""

import errno
import socket

from node.config import HostPort
from node.errors import ConfigError

TAKEN_WITHIN = 30.0
"""Seconds in which a client has to take some of what it is sent; else the system ends its connection. The server itself
would wait for as long as the client likes."""


def bind_api(address: HostPort) -> socket.socket:
    """A listening socket of this machine alone; raises `ConfigError` naming the address when it is taken.

    Port 0 lets the system choose; ``url_of`` tells which.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections have it from their listener
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(TAKEN_WITHIN * 1000))
        listener.bind((address.host, address.port))
        listener.listen(100)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        why = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigError(f"api: cannot serve on {address}: {why}") from None
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()
    return f"http://{host}:{port}"

"""The API's socket, bound before anything else is touched, without the weight of the web framework."""

import errno
import socket
from ipaddress import ip_address

from node.config import HostPort
from node.errors import ConfigError

TAKEN_WITHIN = 30.0
"""Seconds in which a client has to take some of what it is sent; else the system ends its connection. The server itself
would wait for as long as the client likes."""


def bind_api(address: HostPort) -> socket.socket:
    """A listening socket; raises `ConfigError` naming the address when it is taken.

    Port 0 lets the system choose; ``url_of`` tells which.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections have it from their listener
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(TAKEN_WITHIN * 1000))
        listener.bind((address.host, address.port))
        listener.listen(100)
        listener.setblocking(False)
    except (OSError, UnicodeError) as error:
        listener.close()
        if not isinstance(error, OSError):
            raise ConfigError(f"api: {address.host!r} is no host name") from None
        why = "the port is in use" if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigError(f"api: cannot serve on {address}: {why}") from None
    return listener


def host_of(listener: socket.socket) -> str:
    """Where programs of this machine reach it, in the form of a URL's host."""
    address = ip_address(listener.getsockname()[0])
    if address.version == 4:
        return "127.0.0.1" if address.is_unspecified else str(address)
    return "[::1]" if address.is_unspecified else f"[{address}]"


def url_of(listener: socket.socket, *, tls: bool = False) -> str:
    return f"{'https' if tls else 'http'}://{host_of(listener)}:{listener.getsockname()[1]}"

"""Where carriers come from: TCP, or TCP through a SOCKS5 proxy, which also reaches onion addresses."""

from __future__ import annotations

import ipaddress
import os
import socket
from typing import Protocol

import trio
from attrs import frozen

from node.causes import leaves
from protocols.errors import LocalError

_LISTEN_BACKLOG = 1024


class Carriers(Protocol):
    """Both raise OSError; `dial` also LocalError, for a kind of address that is not reached this way."""

    async def dial(self, host: str, port: int) -> trio.abc.Stream:
        """A name is looked up anew each time."""
        ...

    async def listen(self, host: str, port: int) -> tuple[list[trio.abc.Listener[trio.abc.Stream]], tuple[str, int]]:
        """Listeners, and the address that they listen on: port 0 is any that is free."""
        ...


class Tcp(Carriers):
    """Directly, without delay (TCP_NODELAY)."""

    async def dial(self, host: str, port: int) -> trio.abc.Stream:
        if host.endswith(".onion"):
            raise LocalError("onion_needs_proxy", f"{host}: onion addresses are reached through a SOCKS5 proxy only")
        return await trio.open_tcp_stream(host, port)

    async def listen(self, host: str, port: int) -> tuple[list[trio.abc.Listener[trio.abc.Stream]], tuple[str, int]]:
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=_LISTEN_BACKLOG)
        where = listeners[0].socket.getsockname()
        return list(listeners), (where[0], where[1])


TCP: Carriers = Tcp()


@frozen
class Socks5(Tcp):
    """Dials through a SOCKS5 proxy (RFC 1928), which looks names up as well; listens directly.

    `only_onions`: everything else is dialled directly.
    """

    host: str
    port: int
    only_onions: bool = False

    async def dial(self, host: str, port: int) -> trio.abc.Stream:
        if self.only_onions and not host.endswith(".onion"):
            return await super().dial(host, port)
        from python_socks import ProxyError, ProxyType  # a fiftieth of a second that most nodes need not spend
        from python_socks.async_.trio import Proxy

        try:
            # the time limit is the caller's, as everywhere: the proxy's own must not come before it
            proxy = Proxy(ProxyType.SOCKS5, self.host, self.port, rdns=True)
            return trio.SocketStream(await proxy.connect(host, port, timeout=float("inf")))
        except ProxyError as error:
            raise OSError(f"the proxy at {self.host}:{self.port} says: {error}") from None
        except OSError as error:
            raise OSError(f"the proxy at {self.host}:{self.port} cannot be used: {why(error)}") from None


def origin(carrier: trio.abc.Stream) -> str | None:
    """Where a stranger comes from, as far as it can choose that: its IPv4 address, or the /64 of its IPv6 address."""
    if not isinstance(carrier, trio.SocketStream):
        return None
    try:
        address = ipaddress.ip_address(carrier.socket.getpeername()[0].partition("%")[0])
    except (OSError, ValueError):
        return None  # it is gone already
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is None:
        return str(ipaddress.IPv6Network((address, 64), strict=False))
    return str(getattr(address, "ipv4_mapped", None) or address)


def why(error: OSError) -> str:
    """The reason alone; trio wraps it in sentences with addresses."""
    causes = list(leaves(error.__cause__)) if isinstance(error.__cause__, Exception) else []
    first = next((cause for cause in causes if isinstance(cause, OSError)), error)
    if first.errno is None or isinstance(first, socket.gaierror):
        return (first.strerror or str(first)).lower()
    return os.strerror(first.errno).lower()

"""The two ends that `scripts/bench transport` measures: a server process and a client process of each kind.

One module a kind. What is done with them is the same for all (`work`), on anyio, since gRPC runs on asyncio and the
others on trio.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from attrs import frozen

HOST = "127.0.0.1"


@frozen
class Address:
    port: int
    key: str = ""
    """Whatever else the client must know of the server."""


class Talk(Protocol):
    """One stream: of a connection, or a connection of its own for the kinds that have no streams."""

    async def send(self, data: bytes) -> None: ...

    async def receive(self) -> bytes:
        """Some bytes, in pieces as they come; empty at the end."""
        ...

    async def aclose(self) -> None: ...


class Link(Protocol):
    """One connection, as a client has it."""

    async def open(self) -> Talk: ...

    async def aclose(self) -> None: ...


Handler = Callable[[Talk], Awaitable[None]]


class Kind(Protocol):
    """Made once in each process. All its calls run under `running`."""

    asynchronous: str
    """``trio`` or ``asyncio``."""
    one_stream: bool
    """Whether each stream is a connection of its own."""

    def running(self) -> AbstractAsyncContextManager[None]: ...

    async def listen(self, handler: Handler) -> Address: ...

    async def connect(self, address: Address) -> Link:
        """A new connection, also when there is one already; ready for the first stream."""
        ...

"""TCP and TLS as trio has them: one connection for each stream."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import trio
from attrs import frozen

from scripts.benches._transport import HOST, Address, Handler, Link, Talk, certificate

_READ_BYTES = 128 * 1024


@frozen
class _Talk(Talk):
    stream: trio.abc.Stream

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def receive(self) -> bytes:
        return bytes(await self.stream.receive_some(_READ_BYTES))

    async def aclose(self) -> None:
        await self.stream.aclose()


class Tcp:
    asynchronous = "trio"
    one_stream = True

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as self._nursery:
            yield
            self._nursery.cancel_scope.cancel()

    async def listen(self, handler: Handler) -> Address:
        async def serve(stream: trio.SocketStream) -> None:
            try:
                async with self._accepted(stream) as accepted:
                    await handler(_Talk(accepted))
            except trio.BrokenResourceError:
                pass  # it hung up

        listeners = await trio.open_tcp_listeners(0, host=HOST, backlog=1024)
        self._nursery.start_soon(partial(trio.serve_listeners, serve, listeners, handler_nursery=self._nursery))
        return Address(listeners[0].socket.getsockname()[1], self._key())

    async def connect(self, address: Address) -> Link:
        return _Link(self, address, await self.dial(address))

    def _key(self) -> str:
        return ""

    def _accepted(self, stream: trio.SocketStream) -> trio.abc.Stream:
        return stream

    async def dial(self, address: Address) -> trio.abc.Stream:
        return await trio.open_tcp_stream(HOST, address.port)


class _Link(Link):
    """The first stream has the connection that was made; every further one makes its own."""

    def __init__(self, kind: Tcp, address: Address, first: trio.abc.Stream) -> None:
        self._kind, self._address = kind, address
        self._first: trio.abc.Stream | None = first

    async def open(self) -> Talk:
        stream, self._first = self._first, None
        return _Talk(stream or await self._kind.dial(self._address))

    async def aclose(self) -> None:
        if self._first is not None:
            await trio.aclose_forcefully(self._first)


class Tls(Tcp):
    """TLS 1.3, with a certificate that the client knows; the client shows none."""

    def __init__(self) -> None:
        self._server: ssl.SSLContext | None = None
        self._client: ssl.SSLContext | None = None
        self._certificate = ""

    def _key(self) -> str:
        secret, pem = certificate.made()
        self._server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with TemporaryDirectory() as directory:
            both = Path(directory, "both.pem")
            both.write_bytes(secret + pem)
            self._server.load_cert_chain(both)
        return pem.decode()

    def _accepted(self, stream: trio.SocketStream) -> trio.abc.Stream:
        assert self._server is not None
        return trio.SSLStream(stream, self._server, server_side=True, https_compatible=True)

    async def dial(self, address: Address) -> trio.abc.Stream:
        if self._client is None:
            self._client = ssl.create_default_context(cadata=address.key)
        tcp = await trio.open_tcp_stream(HOST, address.port)
        stream = trio.SSLStream(tcp, self._client, server_hostname=HOST, https_compatible=True)
        await stream.do_handshake()
        return stream

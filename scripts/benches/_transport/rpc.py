"""grpcio (asyncio): a stream is a call that streams bytes both ways. In the clear, and by TLS as it has it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]  # in the bench's environment only
from attrs import frozen

from scripts.benches._transport import HOST, Address, Handler, Link, Talk, certificate

_METHOD = "/bench/Talk"
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]


@frozen
class _ClientTalk(Talk):
    call: Any

    async def send(self, data: bytes) -> None:
        await self.call.write(data)

    async def receive(self) -> bytes:
        message = await self.call.read()
        return b"" if message is grpc.aio.EOF else message

    async def aclose(self) -> None:
        await self.call.done_writing()
        await self.receive()


@frozen
class _ServerTalk(Talk):
    context: Any

    async def send(self, data: bytes) -> None:
        await self.context.write(data)

    async def receive(self) -> bytes:
        message = await self.context.read()
        return b"" if message is grpc.aio.EOF else message

    async def aclose(self) -> None:
        pass


@frozen
class _Link(Link):
    channel: Any

    async def open(self) -> Talk:
        return _ClientTalk(self.channel.stream_stream(_METHOD)())

    async def aclose(self) -> None:
        await self.channel.close()


class Grpc:
    asynchronous = "asyncio"
    one_stream = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    async def listen(self, handler: Handler) -> Address:
        async def talk(requests: Any, context: Any) -> None:
            await handler(_ServerTalk(context))

        self._server = grpc.aio.server(options=_OPTIONS)
        methods = {"Talk": grpc.stream_stream_rpc_method_handler(talk)}
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("bench", methods)])
        address = self._bound()
        await self._server.start()
        return address

    async def connect(self, address: Address) -> Link:
        channel = self._channel(address)
        await channel.channel_ready()
        return _Link(channel)

    def _bound(self) -> Address:
        return Address(self._server.add_insecure_port(f"{HOST}:0"))

    def _channel(self, address: Address) -> Any:
        return grpc.aio.insecure_channel(f"{HOST}:{address.port}", options=_OPTIONS)


class GrpcTls(Grpc):
    """With a certificate that the client knows; the client shows none."""

    def _bound(self) -> Address:
        secret, pem = certificate.made()
        credentials = grpc.ssl_server_credentials([(secret, pem)])
        return Address(self._server.add_secure_port(f"{HOST}:0", credentials), pem.decode())

    def _channel(self, address: Address) -> Any:
        credentials = grpc.ssl_channel_credentials(address.key.encode())
        return grpc.aio.secure_channel(f"{HOST}:{address.port}", credentials, options=_OPTIONS)

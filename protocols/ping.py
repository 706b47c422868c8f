"""``/cfd/ping/1``: 32 bytes there and the same back, any number of times on one stream."""

from __future__ import annotations

from attrs import field, frozen

from protocols.codec import Codec, Message, Protocol, exactly
from protocols.dialogue import Ask, Send, receive
from protocols.errors import PeerGone, RemoteProtocolError

SIZE = 32
EVERY = 30.0
"""Seconds between two pings."""


@frozen
class Ping(Message):
    nonce: bytes = field(validator=exactly(SIZE))


@frozen
class Pong(Message):
    nonce: bytes = field(validator=exactly(SIZE))


PROTOCOL = Protocol("/cfd/ping/1", Codec(Ping, Pong, limit=256))


@frozen
class NextNonce(Ask[bytes | None]):
    """When it is time: 32 fresh bytes for the next ping, or None to end."""


@frozen
class Answered(Ask[None]):
    """Tells whoever runs the dialogue that the pong came."""


async def opener() -> None:
    """Ping whenever the host says so. Raises RemoteProtocolError if other bytes come back."""
    while (nonce := await NextNonce()) is not None:
        await Send(Ping(nonce))
        pong = await receive(Pong, within=EVERY)
        if pong.nonce != nonce:
            raise RemoteProtocolError("wrong_pong", "the pong's nonce differs from the ping's")
        await Answered()


async def listener() -> None:
    """Answer pings until the peer ends its side."""
    while True:
        try:
            ping = await receive(Ping, within=10 * EVERY)
        except PeerGone:
            return
        await Send(Pong(ping.nonce))

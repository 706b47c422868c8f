"""``/cfd/identify/1``: who is there, once on each connection, in both directions by a stream each."""

from __future__ import annotations

import re
from enum import Enum

from attrs import field, frozen
from attrs.validators import in_, matches_re, max_len

from protocols.codec import Codec, Message, Protocol
from protocols.dialogue import Send, receive
from protocols.errors import RemoteProtocolError

NETWORKS = ("mainnet", "signet", "testnet4", "regtest")


class PeerRole(Enum):
    MAKER = "maker"
    TAKER = "taker"
    OBSERVER = "observer"  # looks, and trades nothing


_WORD = re.compile(r"[A-Za-z0-9._+-]{1,40}")


@frozen
class Identity(Message):
    agent: str = field(validator=matches_re(_WORD))
    version: str = field(validator=matches_re(_WORD))
    protocols: tuple[str, ...] = field(validator=max_len(64))
    """The paths spoken here, sorted."""
    network: str = field(validator=in_(NETWORKS))
    role: PeerRole

    def __attrs_post_init__(self) -> None:
        for path in self.protocols:
            if not re.fullmatch(r"/[a-z0-9_/]{1,60}", path):
                raise ValueError(f"protocols: {path[:80]!r} is no protocol's path")


PROTOCOL = Protocol("/cfd/identify/1", Codec(Identity, limit=8192))


async def listener(own: Identity) -> None:
    await Send(own)


async def opener(network: str) -> Identity:
    """The peer's identity. Raises RemoteProtocolError if it lives on another network."""
    identity = await receive(Identity, within=5)
    if identity.network != network:
        raise RemoteProtocolError("wrong_network", f"the peer is on {identity.network}, this node on {network}")
    return identity

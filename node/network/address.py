"""Who a peer is (its x25519 public key) and where it can be dialled."""

from __future__ import annotations

import ipaddress
import re

from attrs import field, frozen

from protocols.errors import LocalError
from protocols.transport.handshake import KEY_BYTES, public_key

_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_ONION = re.compile(r"[a-z2-7]{56}\.onion")
_HEX_KEY = re.compile(r"[0-9a-f]{64}")
_PORT = re.compile(r"[1-9][0-9]{0,4}")


@frozen(order=True)
class PeerId:
    """A peer's public key, 32 bytes. `str` is 64 hex digits, `short` the 16 that people see."""

    key: bytes = field()

    @key.validator
    def _size(self, _: object, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise LocalError("bad_peer_id", f"a peer id has {KEY_BYTES} bytes, not {len(key)}")

    @classmethod
    def parse(cls, text: str) -> PeerId:
        """From 64 hex digits; LocalError otherwise."""
        if not _HEX_KEY.fullmatch(text.lower()):
            raise LocalError("bad_peer_id", f"peer id {_shown(text)}: must be 64 hex digits")
        return cls(bytes.fromhex(text))

    @property
    def short(self) -> str:
        return self.key[:8].hex()

    def __str__(self) -> str:
        return self.key.hex()

    def __repr__(self) -> str:
        return f"PeerId({self.short}…)"


@frozen
class Identity:
    """Our own key pair: `secret` is the x25519 secret (32 bytes), `public` what peers know us by."""

    secret: bytes = field(repr=False, eq=False)
    public: PeerId = field(init=False)

    def __attrs_post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise LocalError("bad_key", f"an identity's secret has {KEY_BYTES} bytes, not {len(self.secret)}")
        object.__setattr__(self, "public", PeerId(public_key(self.secret)))


@frozen
class PeerAddress:
    """``<64 hex digits>@host:port``; the host is an IPv4 address, an IPv6 address (in brackets), or a name."""

    peer: PeerId
    host: str
    """Without brackets, in lower case."""
    port: int

    @classmethod
    def parse(cls, text: str) -> PeerAddress:
        """LocalError `bad_address` names the part that is wrong."""
        key, at, place = text.strip().partition("@")
        if not at:
            raise _bad(f"{_shown(text)} has no @: must be <64 hex digits>@host:port")
        if not _HEX_KEY.fullmatch(key.lower()):
            raise _bad(f"key {_shown(key)} must be 64 hex digits, has {len(key)} characters")
        host, colon, port = place.rpartition(":")
        if not colon or (host.startswith("[") and not host.endswith("]")):
            raise _bad(f"{_shown(place)} has no port: must be host:port")
        if not _PORT.fullmatch(port) or int(port) > 65535:
            raise _bad(f"port {_shown(port)} must be a number from 1 to 65535")
        return cls(PeerId(bytes.fromhex(key)), _host(host), int(port))

    @property
    def onion(self) -> bool:
        return self.host.endswith(".onion")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.peer}@{host}:{self.port}"


def _host(text: str) -> str:
    host = text.lower()
    if host.startswith("["):
        try:
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise _bad(f"host {_shown(text)} is no IPv6 address in brackets") from None
    if ":" in host:
        raise _bad(f"host {_shown(text)}: an IPv6 address must stand in brackets")
    if host.endswith(".onion"):
        if not _ONION.fullmatch(host):
            raise _bad(f"host {_shown(text)}: an onion name has 56 letters a–z and digits 2–7")
        return host
    labels = host.removesuffix(".").split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise _bad(f"host {_shown(text)} is neither an address nor a name")
    if labels[-1].isdigit():
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            raise _bad(f"host {_shown(text)} is no IPv4 address") from None
    return host


def _bad(sentence: str) -> LocalError:
    return LocalError("bad_address", f"peer address: {sentence}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "…")

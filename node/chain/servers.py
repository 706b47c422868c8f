"""The Electrum servers of the configuration: their addresses, how to reach one, whose turn it is."""

import hashlib
import re
import ssl
from collections.abc import Iterator, Sequence

import trio
from attrs import frozen

from protocols.errors import LocalError, WorldError

CONNECT_TIMEOUT = 10.0

_ADDRESS = re.compile(
    r"(?:(?P<scheme>tcp|ssl)://)?"
    r"(?:\[(?P<ip6>[0-9a-fA-F:.]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})"
    r"(?:#(?P<pin>[0-9a-fA-F]{64}))?"
)


@frozen
class ServerAddress:
    """``host:port``, ``ssl://host:port``, or ``ssl://host:port#<SHA-256 of the certificate, 64 hex digits>``.

    Most public servers sign their certificates themselves: with a fingerprint that very certificate is asked for,
    without one the system's authorities decide.
    """

    host: str
    port: int
    tls: bool = False
    pin: bytes | None = None

    @classmethod
    def parse(cls, text: str) -> "ServerAddress":
        """The address that `text` writes; a `LocalError` shows the text and what is allowed."""
        match = _ADDRESS.fullmatch(text)
        port = int(match["port"]) if match else 0
        tls = match is not None and match["scheme"] == "ssl"
        if match is None or not 0 < port < 2**16 or (match["pin"] and not tls):
            raise LocalError(
                "bad_electrum_address",
                f"electrum server {text!r}: write host:port, ssl://host:port or ssl://host:port#<64 hex digits of its"
                " certificate's SHA-256>, with a port of 1 to 65535",
            )
        pin = bytes.fromhex(match["pin"]) if match["pin"] else None
        return cls(match["ip6"] or match["host"], port, tls, pin)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'ssl://' if self.tls else ''}{host}:{self.port}"

    async def connect(self) -> trio.abc.Stream:
        """A stream to the server, or a `WorldError` that names it and says what is in the way."""
        try:
            with trio.fail_after(CONNECT_TIMEOUT):
                tcp = await trio.open_tcp_stream(self.host, self.port)
                return await self._secure(tcp) if self.tls else tcp
        except trio.TooSlowError:
            reason = f"no connection within {CONNECT_TIMEOUT:g} seconds"
        except OSError as error:
            reason = str(error)
        except trio.BrokenResourceError as error:
            reason = f"TLS failed: {error.__cause__ or error}"
        raise WorldError("server_unreachable", f"electrum server {self}: {reason}")

    async def _secure(self, tcp: trio.SocketStream) -> trio.abc.Stream:
        context = ssl.create_default_context()
        if self.pin is not None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE  # the fingerprint is checked below instead
        stream = trio.SSLStream(tcp, context, server_hostname=self.host, https_compatible=True)
        try:
            await stream.do_handshake()
            if self.pin is not None:
                certificate: bytes = stream.getpeercert(binary_form=True)
                found = hashlib.sha256(certificate).digest()
                if found != self.pin:
                    raise WorldError(
                        "server_certificate",
                        f"electrum server {self}: its certificate's SHA-256 is {found.hex()}, the configuration asks"
                        f" for {self.pin.hex()}",
                    )
        except BaseException:
            await trio.aclose_forcefully(tcp)
            raise
        return stream


class Servers:
    """The servers in the order in which they are tried. It outlives connections and remembers whose turn it is, and
    what is wrong with whom: when a connection to one ends, whatever the reason, the next one is asked first."""

    def __init__(self, addresses: Sequence[str]) -> None:
        if not addresses:
            raise LocalError("no_electrum_server", "electrum: at least one server is needed, as host:port")
        self.addresses = tuple(ServerAddress.parse(text) for text in addresses)
        self.troubles: dict[str, str] = {}
        """By address: a sentence on each server that did not answer, lied or lagged when it was asked last."""
        self._turn = 0

    @property
    def next(self) -> ServerAddress:
        """Whose turn it is."""
        return self.addresses[self._turn % len(self.addresses)]

    def in_turn(self) -> Iterator[ServerAddress]:
        for _ in self.addresses:
            address = self.addresses[self._turn]
            self._turn = (self._turn + 1) % len(self.addresses)
            yield address

    def others(self, present: ServerAddress) -> tuple[ServerAddress, ...]:
        return tuple(address for address in self.addresses if address != present)

    def prefer(self, address: ServerAddress) -> None:
        """Ask this one first when the present connection is over."""
        self._turn = self.addresses.index(address)

    def trouble(self) -> str:
        """What is wrong with any of them, in the order of the configuration; empty if nothing is known."""
        known = (self.troubles.get(str(address)) for address in self.addresses)
        return "; ".join(dict.fromkeys(filter(None, known)))

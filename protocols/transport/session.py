"""One encrypted, multiplexed connection without its socket: bytes in, events and bytes out.

    handshake (Noise XK) → records → guard → streams (HTTP/2)

The two sides differ only in the handshake: the initiator knows the peer's key beforehand and speaks first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from protocols.errors import LocalError, RemoteProtocolError
from protocols.transport.events import Established, Event
from protocols.transport.handshake import Handshake, public_key
from protocols.transport.http2 import SessionLimits
from protocols.transport.records import MAX_CIPHERTEXT, TAG_BYTES, Cutter, framed, pieces
from protocols.transport.streams import Streams

_SHORTEST_RECORD = TAG_BYTES + 1


class Session:
    """Feed `receive`, send what `data_to_send` returns after every call; the rest is about streams.

    `receive` raises RemoteProtocolError when the peer breaks the protocol: the session is over then, `data_to_send`
    may hold a last word, and every further `receive` is a LocalError. Calls about streams that are gone do nothing,
    since a peer may reset a stream at any moment.
    """

    def __init__(
        self,
        *,
        secret: bytes,
        ephemeral: bytes,
        peer: bytes | None = None,
        limits: SessionLimits | None = None,
    ) -> None:
        """`secret`: our static x25519 secret. `ephemeral`: 32 random bytes, never used before. `peer`: the public
        key that we dial (then we are the initiator), or None when we were dialled."""
        self._initiator = peer is not None
        self._handshake = Handshake(secret=secret, ephemeral=ephemeral, peer=peer)
        self._streams = Streams(limits or SessionLimits(), initiator=self._initiator, own=public_key(secret), peer=peer)
        self._cutter = Cutter()
        self._outgoing = bytearray()
        self._established = False
        self._over = False
        self._seal: Callable[[Sequence[bytes | memoryview]], bytearray]
        self._open: Callable[[Sequence[memoryview]], bytes | bytearray]
        if self._initiator:
            self._outgoing += framed(self._handshake.write())

    @property
    def streams(self) -> Streams:
        """To open, send, end, reset: usable from `Established` on."""
        return self._streams

    @property
    def established(self) -> bool:
        return self._established

    @property
    def handshake_messages(self) -> int:
        """How many of the three messages are through; one is enough to show that the peer knows our key."""
        return self._handshake.messages

    @property
    def peer(self) -> bytes:
        """The peer's public key; LocalError before the handshake is finished."""
        return self._handshake.peer

    @property
    def over(self) -> bool:
        """The peer broke the protocol or said farewell, or we did."""
        return self._over

    def receive(self, data: bytes | bytearray | memoryview, now: float) -> list[Event]:
        """Take bytes from the carrier, cut anywhere. `now`: seconds of a clock that does not run backwards."""
        if self._over:
            raise LocalError("session_over", "the session is over, it takes no more bytes")
        try:
            return self._receive(data, now)
        except RemoteProtocolError as error:
            self._over = True
            if self.established:
                self._streams.go_away(1, error.code.encode())  # PROTOCOL_ERROR
            raise

    def _receive(self, data: bytes | bytearray | memoryview, now: float) -> list[Event]:
        self._cutter.feed(data)
        events: list[Event] = []
        while not self._established:
            message = self._cutter.next(*self._handshake.size_allowed())
            if message is None:
                return events
            events += self._greet(bytes(message), now)
            del message
        records: list[memoryview] = []
        while (record := self._cutter.next(_SHORTEST_RECORD, MAX_CIPHERTEXT)) is not None:
            records.append(record)
        if records:
            events += self._streams.receive(self._open(records), now)
            self._over = self._streams.farewell_heard
        return events

    def _greet(self, message: bytes, now: float) -> list[Event]:
        payload = self._handshake.read(message)
        if self._handshake.messages == 1:
            self._outgoing += framed(self._handshake.write(self._streams.take()))
            return []
        if not self._initiator:
            self._establish()
            self._streams.peer = self._handshake.peer
        events = self._streams.receive(payload, now)
        if not self._streams.settings_heard:
            raise RemoteProtocolError("bad_handshake", "the handshake carries no HTTP/2 settings")
        if self._initiator:
            self._outgoing += framed(self._handshake.write(self._streams.take()))
            self._establish()
        return [Established(self._handshake.peer), *events]

    def _establish(self) -> None:
        sending, receiving = self._handshake.ciphers()
        self._seal, self._open = sending.records, receiving.plaintext
        self._established = True

    @property
    def unsent(self) -> int:
        """Bytes that wait in here, before encryption."""
        return len(self._outgoing) + (self._streams.unsent if self.established else 0)

    def data_to_send(self) -> bytearray:
        """Take what is to go to the peer now, in whole records; the caller may change it."""
        data, self._outgoing = self._outgoing, bytearray()
        if self.established and (plaintext := self._streams.take()):
            records = self._seal(pieces(plaintext))
            data = data + records if data else records
        return data

    def go_away(self, code: int, reason: bytes = b"") -> None:
        """Say farewell (GOAWAY): nothing more is sent, nothing more is taken."""
        if self.established:
            self._streams.go_away(code, reason)
        self._over = True

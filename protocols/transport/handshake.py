"""Noise XK: who the responder is must be known before it says a word; who the initiator is shows in message 3.

`Noise_XK_25519_ChaChaPoly_SHA256` with prologue ``cfd/1`` (network.md, "Handshake"):

    initiator → e, es              32 + 16 bytes, no payload
    responder → e, ee, payload     32 + 16 + at most 256 bytes
    initiator → s, se, payload     48 + 16 + at most 256 bytes

Message 1 cannot be made without the responder's public key, so a port answers nobody who does not have it.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from noise.backends.default.keypairs import KeyPair25519
from noise.connection import Keypair, NoiseConnection

from protocols.errors import LocalError, RemoteProtocolError
from protocols.transport.records import Cipher

NAME = b"Noise_XK_25519_ChaChaPoly_SHA256"
PROLOGUE = b"cfd/1"
KEY_BYTES = 32
MAX_PAYLOAD = 256
"""Bytes of payload in message 2 or 3."""

_TAG_BYTES = 16
_MESSAGES = (
    (KEY_BYTES + _TAG_BYTES, 0),
    (KEY_BYTES + _TAG_BYTES, MAX_PAYLOAD),
    (KEY_BYTES + _TAG_BYTES + _TAG_BYTES, MAX_PAYLOAD),
)
"""Of each message: its size without a payload, and the largest payload."""


def public_key(secret: bytes) -> bytes:
    """The x25519 public key (32 bytes) of a secret (32 bytes, any: it is clamped)."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


class Handshake:
    """One side of one handshake, then the two ciphers that come out of it.

    `ephemeral` is a fresh secret of 32 random bytes, passed in because this package has no entropy of its own;
    using one twice gives the session's secrecy away. Every failure of `read` is the peer's (RemoteProtocolError) and
    final: the object must be dropped.
    """

    def __init__(self, *, secret: bytes, ephemeral: bytes, peer: bytes | None) -> None:
        """`peer` is the responder's public key, which makes this the initiator; None makes it the responder."""
        for name, key in (("secret", secret), ("ephemeral", ephemeral), ("peer", peer)):
            if key is not None and len(key) != KEY_BYTES:
                raise LocalError("bad_key", f"handshake: {name} has {len(key)} bytes, must have {KEY_BYTES}")
        self._noise = NoiseConnection.from_name(NAME)
        self._noise.set_prologue(PROLOGUE)
        self._noise.set_keypair_from_private_bytes(Keypair.STATIC, secret)
        if peer is None:
            self._noise.set_as_responder()
        else:
            self._noise.set_as_initiator()
            self._noise.set_keypair_from_public_bytes(Keypair.REMOTE_STATIC, peer)
        self._noise.start_handshake()
        # Set on the state and not through the connection, which warns that only tests do so.
        self._state = self._noise.noise_protocol.handshake_state
        self._state.e = KeyPair25519.from_private_bytes(ephemeral)
        self._messages = 0
        self._peer: bytes | None = None
        self._ciphers: tuple[Cipher, Cipher] | None = None

    @property
    def finished(self) -> bool:
        return self._messages == len(_MESSAGES)

    @property
    def messages(self) -> int:
        """How many of the three messages were written or read."""
        return self._messages

    @property
    def peer(self) -> bytes:
        """The other side's public key, authenticated once the handshake is finished."""
        if self._peer is None:
            raise LocalError("handshake_unfinished", "the peer's key is known when the handshake is finished")
        return self._peer

    def size_allowed(self) -> tuple[int, int]:
        """The smallest and the largest size of the next message."""
        fixed, payload = _MESSAGES[self._messages]
        return fixed, fixed + payload

    def write(self, payload: bytes = b"") -> bytes:
        """The next message, with a payload that only the peer reads."""
        allowed = _MESSAGES[self._messages][1]
        if len(payload) > allowed:
            raise LocalError("payload_too_long", f"handshake payload of {len(payload)} bytes, at most {allowed}")
        try:
            message = bytes(self._noise.write_message(payload))
        except ValueError as error:  # from the curve: the peer's key is of low order, so there is no shared secret
            raise RemoteProtocolError("bad_handshake", "handshake: the peer's key is of low order") from error
        self._step()
        return message

    def read(self, message: bytes | bytearray) -> bytes:
        """Take the peer's next message; returns its payload."""
        smallest, largest = self.size_allowed()
        number = self._messages + 1
        if not smallest <= len(message) <= largest:
            raise RemoteProtocolError(
                "bad_handshake",
                f"handshake message {number} has {len(message)} bytes, allowed are {smallest} to {largest}",
            )
        try:
            payload = bytes(self._noise.read_message(message))
        except InvalidTag as error:
            raise RemoteProtocolError("bad_handshake", f"handshake message {number} is not for us") from error
        except ValueError as error:
            raise RemoteProtocolError("bad_handshake", "handshake: the peer's key is of low order") from error
        self._step()
        return payload

    def _step(self) -> None:
        self._messages += 1
        if self.finished:
            # The library forgets its state now, and with it the peer's key; the ephemeral secret should go too.
            self._peer = self._state.rs.public_bytes
            protocol = self._noise.noise_protocol
            self._ciphers = Cipher(protocol.cipher_state_encrypt.k), Cipher(protocol.cipher_state_decrypt.k)
            self._noise._next_fn = None  # a method of itself: they would go only when the collector finds them
            del self._state, self._noise

    def ciphers(self) -> tuple[Cipher, Cipher]:
        """What encrypts to the peer, and what decrypts what comes from it, once the handshake is finished."""
        if self._ciphers is None:
            raise LocalError("handshake_unfinished", "there are ciphers when the handshake is finished")
        return self._ciphers

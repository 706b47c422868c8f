"""The outermost layer: length-prefixed messages, 2 bytes big-endian and then that many bytes of ciphertext."""

from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from protocols.errors import RemoteProtocolError
from protocols.transport.guard import HEADER_BYTES

LENGTH_BYTES = 2
TAG_BYTES = 16
MAX_CIPHERTEXT = 0xFFFF
MAX_PLAINTEXT = MAX_CIPHERTEXT - TAG_BYTES
"""65 519 bytes: what a record can carry."""


class Cipher:
    """One direction after the handshake: ChaCha20-Poly1305 with a nonce that counts (Noise section 5.1 and 12.3)."""

    def __init__(self, key: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)
        self._count = 0

    def _nonce(self) -> bytes:
        # At a million records a second the 2**64 nonces last for half a million years.
        nonce = b"\0\0\0\0" + self._count.to_bytes(8, "little")
        self._count += 1
        return nonce

    def records(self, plaintexts: Sequence[bytes | memoryview]) -> bytearray:
        """Each plaintext as a whole record, length first, one behind the other."""
        sealed = bytearray(sum(map(len, plaintexts)) + len(plaintexts) * (LENGTH_BYTES + TAG_BYTES))
        start = 0
        with memoryview(sealed) as view:
            for plaintext in plaintexts:
                size = len(plaintext) + TAG_BYTES
                body = start + LENGTH_BYTES
                sealed[start], sealed[start + 1] = size >> 8, size & 0xFF
                start = body + size
                self._aead.encrypt_into(self._nonce(), plaintext, None, view[body:start])
        return sealed

    def encrypt(self, plaintext: bytes | memoryview) -> bytes:
        """16 bytes longer than its plaintext."""
        return self._aead.encrypt(self._nonce(), plaintext, None)

    def decrypt(self, ciphertext: bytes | memoryview) -> bytes:
        try:
            return self._aead.decrypt(self._nonce(), ciphertext, None)
        except InvalidTag as error:
            raise RemoteProtocolError("bad_record", "a record fails its authentication") from error


class Cutter:
    """Cuts a byte stream into messages, whatever pieces it arrives in; holds at most the message under way."""

    def __init__(self) -> None:
        self._source: bytes | bytearray = b""
        self._position = 0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Every message that `next` gave must have been let go of."""
        if not self._source:
            self._source = bytes(data)  # no copy if it is bytes, as from a socket
            return
        if isinstance(self._source, bytes):
            self._source = bytearray(memoryview(self._source)[self._position :])
        else:
            del self._source[: self._position]
        self._position = 0
        self._source += data

    def next(self, smallest: int, largest: int) -> memoryview | None:
        """The next whole message, or None. A length outside the bounds is refused as soon as it is seen."""
        source, start = self._source, self._position + LENGTH_BYTES
        if len(source) < start:
            return None
        length = source[start - 2] << 8 | source[start - 1]
        if not smallest <= length <= largest:
            raise RemoteProtocolError("bad_length", f"record length {length}, allowed here are {smallest} to {largest}")
        end = start + length
        if len(source) < end:
            return None
        self._position = end
        if end == len(source):
            self._source, self._position = b"", 0
        return memoryview(source)[start:end]


def framed(message: bytes) -> bytes:
    """The message behind its length."""
    return len(message).to_bytes(LENGTH_BYTES, "big") + message


def pieces(frames: bytes) -> list[bytes | memoryview]:
    """The plaintext in parts that each fit one record, cut between frames: a frame in one record is decrypted, and
    handed on, in one piece."""
    if len(frames) <= MAX_PLAINTEXT:
        return [frames]
    found: list[bytes | memoryview] = []
    view = memoryview(frames)
    start = end = 0
    while end < len(frames):
        frame_end = end + HEADER_BYTES + int.from_bytes(view[end : end + 3], "big")
        if frame_end - start > MAX_PLAINTEXT:
            found.append(view[start:end])
            start = end
        end = frame_end
    found.append(view[start:])
    return found

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
        """RemoteProtocolError if it was not encrypted so, here too."""
        try:
            return self._aead.decrypt(self._nonce(), ciphertext, None)
        except InvalidTag as error:
            raise RemoteProtocolError("bad_record", "a record fails its authentication") from error

    def plaintext(self, records: Sequence[memoryview]) -> bytes | bytearray:
        """What the ciphertexts of records carry, in one piece."""
        if len(records) == 1:
            return self.decrypt(records[0])
        opened = bytearray(sum(map(len, records)) - len(records) * TAG_BYTES)
        start = 0
        with memoryview(opened) as view:
            for record in records:
                end = start + len(record) - TAG_BYTES
                try:
                    self._aead.decrypt_into(self._nonce(), record, None, view[start:end])
                except InvalidTag as error:
                    raise RemoteProtocolError("bad_record", "a record fails its authentication") from error
                start = end
        return opened


class Cutter:
    """Cuts a byte stream into messages, whatever pieces it arrives in; holds at most the message under way."""

    def __init__(self) -> None:
        self._begun = bytearray()
        """Of a message that came in several pieces."""
        self._source: bytes | bytearray | memoryview = b""
        self._position = 0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """`next` has returned None before, for what was fed until now; `data` must not change until it does again."""
        self._source, self._position = data, 0

    def next(self, smallest: int, largest: int) -> memoryview | None:
        """The next whole message, or None. A length outside the bounds is refused as soon as it is seen."""
        if self._begun:
            return self._rest_of_begun(smallest, largest)
        source, start = self._source, self._position + LENGTH_BYTES
        if len(source) >= start:
            end = start + _checked(source[start - 2] << 8 | source[start - 1], smallest, largest)
            if len(source) >= end:
                self._position = end
                return memoryview(source)[start:end]
        self._begun = bytearray(memoryview(source)[self._position :])
        self._source, self._position = b"", 0
        return None

    def _rest_of_begun(self, smallest: int, largest: int) -> memoryview | None:
        if not self._take(LENGTH_BYTES):
            return None
        length = _checked(int.from_bytes(self._begun[:LENGTH_BYTES], "big"), smallest, largest)
        if not self._take(LENGTH_BYTES + length):
            return None
        whole, self._begun = self._begun, bytearray()
        return memoryview(whole)[LENGTH_BYTES:]

    def _take(self, count: int) -> bool:
        """Whether that much of the message that was begun is there now."""
        missing = max(0, count - len(self._begun))
        more = memoryview(self._source)[self._position : self._position + missing]
        self._begun += more
        self._position += len(more)
        if len(more) < missing:
            self._source, self._position = b"", 0
        return len(more) == missing


def _checked(length: int, smallest: int, largest: int) -> int:
    if not smallest <= length <= largest:
        raise RemoteProtocolError("bad_length", f"record length {length}, allowed here are {smallest} to {largest}")
    return length


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

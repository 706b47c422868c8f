"""The outermost layer: length-prefixed messages, 2 bytes big-endian and then that many bytes of ciphertext."""

from collections.abc import Iterator

from protocols.errors import RemoteProtocolError

LENGTH_BYTES = 2
TAG_BYTES = 16
MAX_CIPHERTEXT = 0xFFFF
MAX_PLAINTEXT = MAX_CIPHERTEXT - TAG_BYTES
"""65 519 bytes: what a record can carry."""


class Cutter:
    """Cuts a byte stream into messages, whatever pieces it arrives in; holds at most the message under way."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        self._buffer += data

    def next(self, smallest: int, largest: int) -> bytes | None:
        """The next whole message, or None. A length outside the bounds is refused as soon as it is seen."""
        buffer = self._buffer
        if len(buffer) < LENGTH_BYTES:
            return None
        length = buffer[0] << 8 | buffer[1]
        if not smallest <= length <= largest:
            raise RemoteProtocolError("bad_length", f"record length {length}, allowed here are {smallest} to {largest}")
        end = LENGTH_BYTES + length
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view:
            message = bytes(view[LENGTH_BYTES:end])
        del buffer[:end]
        return message


def framed(message: bytes) -> bytes:
    """The message behind its length."""
    return len(message).to_bytes(LENGTH_BYTES, "big") + message


def pieces(plaintext: bytes) -> Iterator[bytes]:
    """The plaintext in parts that each fit one record."""
    if len(plaintext) <= MAX_PLAINTEXT:
        yield plaintext
        return
    for start in range(0, len(plaintext), MAX_PLAINTEXT):
        yield plaintext[start : start + MAX_PLAINTEXT]

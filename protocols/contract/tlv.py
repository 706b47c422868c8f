"""Type-length-value records of the DLC specification (dlcspecs, Messaging.md; BOLT 1 for bigsize), read strictly.

All integers are big-endian. A reader never looks beyond its data and never makes more of it than it has, so the size of
the data bounds everything; every refusal is a `ValueError` that names the field.
"""

import unicodedata


class Reader:
    """Fields one after another; `end` when they are all read. Since only the shortest forms are allowed, writing what
    was read gives the same bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._at = 0

    @property
    def done(self) -> bool:
        return self._at == len(self.data)

    def take(self, length: int, field: str) -> bytes:
        """The next `length` bytes."""
        if length > len(self.data) - self._at:
            raise ValueError(f"{field} is cut short: {length} bytes are wanted, {len(self.data) - self._at} are left")
        self._at += length
        return self.data[self._at - length : self._at]

    def uint(self, size: int, field: str) -> int:
        """u16 or u32: `size` bytes."""
        return int.from_bytes(self.take(size, field), "big")

    def int32(self, field: str) -> int:
        return int.from_bytes(self.take(4, field), "big", signed=True)

    def flag(self, field: str) -> bool:
        value = self.take(1, field)[0]
        if value > 1:
            raise ValueError(f"{field} is {value}, allowed is 0 or 1")
        return value == 1

    def bigsize(self, field: str) -> int:
        """One byte below 0xfd, else 0xfd, 0xfe or 0xff and 2, 4 or 8 bytes; only the shortest form is allowed."""
        first = self.take(1, field)[0]
        if first < 0xFD:
            return first
        value = self.uint(2 << (first - 0xFD), field)
        if bigsize(value)[0] != first:
            raise ValueError(f"{field} is {value} in more bytes than it needs")
        return value

    def text(self, field: str) -> str:
        """A string: UTF-8 in normal form C, its length in front."""
        data = self.take(self.bigsize(f"{field}'s length"), field)
        try:
            value = data.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{field} is not UTF-8") from None
        if not unicodedata.is_normalized("NFC", value):
            raise ValueError(f"{field} is not in Unicode's normal form C")
        return value

    def record(self, kind: int, field: str) -> "Reader":
        """The value of the next record, which must be of type `kind`."""
        found = self.bigsize(f"{field}'s type")
        if found != kind:
            raise ValueError(f"{field} has type {found}, allowed is {kind}")
        return Reader(self.take(self.bigsize(f"{field}'s length"), field))

    def end(self, field: str) -> None:
        if not self.done:
            raise ValueError(f"{field} has {len(self.data) - self._at} bytes too many")


def bigsize(value: int) -> bytes:
    if value < 0xFD:
        return value.to_bytes(1, "big")
    size = 2 if value < 1 << 16 else 4 if value < 1 << 32 else 8
    return bytes([0xFB + size.bit_length()]) + value.to_bytes(size, "big")


def text(value: str) -> bytes:
    data = unicodedata.normalize("NFC", value).encode()
    return bigsize(len(data)) + data


def record(kind: int, value: bytes) -> bytes:
    return bigsize(kind) + bigsize(len(value)) + value

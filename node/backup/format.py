"""What a backup's file holds, and how it is sealed. Pure: bytes in, bytes out.

    file   = header ‖ ChaCha20-Poly1305(key, header; plain)
    header = "cfdbackup" ‖ version (1 byte) ‖ seed's mark (8) ‖ salt (32)
    plain  = MessagePack [head, zlib(MessagePack body)]

The key is drawn from the seed and the salt, which is random and new in every file: no key seals two files, and so the
cipher's nonce may be zero. The header is authenticated. Only its mark is the same in all files of one seed: it tells a
file of another seed from a damaged one. Of the seed nothing is inside.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import msgpack
from attrs import field, frozen
from cattrs.errors import BaseValidationError
from cattrs.preconf.msgpack import make_converter
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from protocols.contract.numbers import tagged_hash
from protocols.errors import WorldError

MAGIC = b"cfdbackup"
VERSION = 1
MARK, SALT = 8, 32
HEADER = len(MAGIC) + 1 + MARK + SALT
SUFFIX = ".cfdbackup"
LEVEL = 1
"""Of zlib. Most of a record are signatures, which nothing makes smaller."""
_NONCE = bytes(12)


class BadBackup(WorldError):
    """What cannot be restored: codes ``backup_damaged``, ``backup_of_another_seed``, ``backup_too_new``."""


@frozen
class Kept:
    """An event as it was recorded."""

    name: str
    version: int
    data: bytes = field(repr=False)
    recorded_at: float
    """Seconds since 1970."""


@frozen
class Record:
    """A position: all its events in order, and those of the peer's signatures that are not pruned, by kind."""

    order_id: bytes
    events: tuple[Kept, ...]
    blobs: dict[str, bytes] = field(repr=False)


@frozen
class Head:
    """What can be told of a file without unpacking all of it."""

    network: str
    role: str
    made_at: float
    """Seconds since 1970."""
    versions: dict[bytes, int]
    """By order id how many events there are."""


@frozen
class Contents:
    head: Head
    records: tuple[Record, ...]
    pieces: dict[bytes, bytes] = field(repr=False)
    """By their SHA-256 what events share: announcements."""


@frozen
class _Body:
    records: tuple[Record, ...]
    pieces: dict[bytes, bytes]


_converter = make_converter(forbid_extra_keys=True)


@frozen
class Seal:
    """Seals and opens the files of one seed."""

    seed: bytes = field(repr=False)
    """64 bytes."""

    def name(self, order_id: bytes) -> str:
        """The file of a position; tells nothing of it to others."""
        return tagged_hash("cfd/backup/name", self.seed + order_id)[:16].hex() + SUFFIX

    def close(self, contents: Contents, entropy: Callable[[int], bytes]) -> bytes:
        """The file's bytes. `entropy` is asked for the salt."""
        header = MAGIC + bytes((VERSION,)) + self._mark + entropy(SALT)
        body = msgpack.packb(_converter.unstructure(_Body(contents.records, contents.pieces)))
        plain = msgpack.packb([_converter.unstructure(contents.head), zlib.compress(body, LEVEL)])
        return header + ChaCha20Poly1305(self._key(header)).encrypt(_NONCE, plain, header)

    def open(self, data: bytes) -> Contents:
        """Raises `BadBackup`."""
        plain, body = self._plain(data)
        try:
            unpacked = _converter.structure(msgpack.unpackb(zlib.decompress(body)), _Body)
        except (BaseValidationError, ValueError, TypeError, LookupError, zlib.error) as error:
            raise _damaged(type(error).__name__) from None
        head = _head(plain)
        if any(sha256(piece).digest() != name for name, piece in unpacked.pieces.items()):
            raise _damaged("a piece is not what its name says")
        if {record.order_id: len(record.events) for record in unpacked.records} != head.versions:
            raise _damaged("it does not hold what it says")
        return Contents(head, unpacked.records, unpacked.pieces)

    def head(self, data: bytes) -> Head:
        """Checks all of the file, and unpacks no more than its head. Raises `BadBackup`."""
        return _head(self._plain(data)[0])

    def ours(self, data: bytes) -> bool:
        """Whether it was made with this seed, by what its header says."""
        return data.startswith(MAGIC) and data[len(MAGIC) + 1 :].startswith(self._mark)

    @property
    def _mark(self) -> bytes:
        return tagged_hash("cfd/backup/seed", self.seed)[:MARK]

    def _key(self, header: bytes) -> bytes:
        return tagged_hash("cfd/backup", self.seed + header[-SALT:])

    def _plain(self, data: bytes) -> tuple[Any, bytes]:
        if len(data) < HEADER or not data.startswith(MAGIC):
            raise _damaged("it is no backup's file, or cut off")
        if (version := data[len(MAGIC)]) > VERSION:
            raise BadBackup("backup_too_new", f"it has version {version}; this program knows version {VERSION}")
        if not self.ours(data):
            raise BadBackup("backup_of_another_seed", "it was made with another seed")
        header = data[:HEADER]
        try:
            plain = ChaCha20Poly1305(self._key(header)).decrypt(_NONCE, data[HEADER:], header)
            head, body = msgpack.unpackb(plain)
        except InvalidTag:
            raise _damaged("its bytes are not those that were written") from None
        except (ValueError, TypeError) as error:
            raise _damaged(type(error).__name__) from None
        return head, body


def _head(plain: Any) -> Head:
    try:
        return _converter.structure(plain, Head)
    except (BaseValidationError, ValueError, TypeError, LookupError) as error:
        raise _damaged(type(error).__name__) from None


def _damaged(how: str) -> BadBackup:
    return BadBackup("backup_damaged", f"it is damaged: {how}")

"""Seed words (BIP39, English, no passphrase): the one secret from which the node's coins, contract keys and identity
follow, and the file that keeps it."""

import contextlib
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import bdkpython as bdk
from attrs import field, frozen

from protocols.contract.numbers import tagged_hash
from protocols.errors import LocalError

ENTROPY_BYTES = 16
"""128 bits, 12 words: as strong as the curve that the keys live on, and half as much to write down as 24."""


@frozen
class Seed:
    """A checked BIP39 phrase and the 64 bytes that follow from it. Neither shows in ``repr``."""

    words: str = field(repr=False)
    """Lower case, one space between words."""
    secret: bytes = field(init=False, repr=False)
    """The 64 bytes of BIP39: what BIP32's master key and `protocols.contract.keys` are derived from."""

    def __attrs_post_init__(self) -> None:
        try:
            bdk.Mnemonic.from_string(self.words)
        except bdk.Bip39Error as error:
            raise LocalError("bad_seed_words", f"seed words: {_fault(error)}") from None
        # The English list is ASCII, so BIP39's NFKD changes nothing.
        stretched = hashlib.pbkdf2_hmac("sha512", self.words.encode("ascii"), b"mnemonic", 2048)
        object.__setattr__(self, "secret", stretched)

    @classmethod
    def generate(cls, entropy: Callable[[int], bytes] = os.urandom) -> "Seed":
        """New words from 16 bytes that `entropy` is asked for."""
        return cls(str(bdk.Mnemonic.from_entropy(entropy(ENTROPY_BYTES))))

    @classmethod
    def from_words(cls, text: str) -> "Seed":
        """The seed of words that a person typed; case and white space do not matter.

        Raises `LocalError` (``bad_seed_words``) with the position of the wrong word, never with a word.
        """
        ascii_only = text.encode("ascii", errors="replace").decode()  # standard input may hold anything
        return cls(" ".join(ascii_only.lower().split()))

    @classmethod
    def read(cls, path: Path) -> "Seed":
        """The seed kept in `path`.

        Raises `LocalError`: ``no_seed`` if there is no such file, ``seed_exposed`` if others of this machine may read
        it, ``bad_seed_words`` if it holds no phrase, ``seed_unreadable`` for what the system says.
        """
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                content = file.read(4096)
        except FileNotFoundError:
            raise LocalError(
                "no_seed", f"{path}: there is no seed; `cfdnode seed new` or `seed import` makes one"
            ) from None
        except OSError as error:
            raise LocalError("seed_unreadable", f"{path}: {error.strerror}") from error
        if mode & 0o077:
            raise LocalError(
                "seed_exposed", f"{path}: the mode is {mode:04o}, so others may read the seed; `chmod 600` it"
            )
        try:
            return cls.from_words(content.decode("ascii", errors="replace"))
        except LocalError as error:
            raise LocalError(error.code, f"{path}: {error.sentence}") from None

    def write(self, path: Path) -> None:
        """Keep the words in `path`, readable by the owner alone (0600), on disk when this returns.

        The whole file appears or none does. A file that is there is never replaced: `LocalError` (``seed_exists``).
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:  # a file that is in the way, too
            raise LocalError(
                "seed_unwritable", f"{path.parent}: cannot be made a directory: {error.strerror}"
            ) from error
        try:
            descriptor, name = tempfile.mkstemp(prefix=".seed-", dir=path.parent)  # created with mode 0600
            try:
                with open(descriptor, "w", encoding="ascii") as file:
                    file.write(self.words + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                os.link(name, path)  # unlike a rename, fails if `path` exists
            finally:
                os.unlink(name)
            _sync_directory(path.parent)
        except FileExistsError:
            raise LocalError("seed_exists", f"{path}: there is a seed already; it was left as it is") from None
        except OSError as error:
            raise LocalError("seed_unwritable", f"{path}: {error.strerror}") from error

    def node_identity(self) -> bytes:
        """The node's x25519 secret, 32 bytes (network.md, "Addresses and identities")."""
        return tagged_hash("cfd/identity", self.secret)


def _fault(error: bdk.Bip39Error) -> str:
    """What is wrong with a phrase, without a word of it."""
    match error:
        case bdk.Bip39Error.BadWordCount():
            return f"{error.word_count} words were given; 12, 15, 18, 21 or 24 are allowed"
        case bdk.Bip39Error.UnknownWord():
            return f"word {error.index + 1} is not in the English list of BIP39"
        case bdk.Bip39Error.InvalidChecksum():
            return "each word is in the list, but the checksum does not match: one is wrong or out of place"
        case _:
            return "they are not an English phrase of BIP39"


def _sync_directory(path: Path) -> None:
    """Make a new name in a directory survive a power cut; some file systems cannot, and say so."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The password for people, kept as its Argon2id hash in the data directory (0600). The token goes on working beside it.

Hashing takes a fraction of a second and 64 MiB: from the event loop it is called in a thread. Nothing here is fast to
import but `argon2`, which is left until it is needed.
"""

from __future__ import annotations

from pathlib import Path

from node import files
from node.errors import FieldError

SHORTEST, LONGEST = 10, 1000
"""Characters."""


def set_password(data: Path, password: str) -> None:
    """From now on this is the password of the node on that data directory; whoever was signed in is so no more.

    Raises `FieldError` for one that is too short or too long, `OSError`.
    """
    if not SHORTEST <= len(password) <= LONGEST:
        raise FieldError(
            "password", f"password: it has {len(password)} characters, allowed are {SHORTEST} to {LONGEST}"
        )
    from argon2 import PasswordHasher

    files.write_private(files.password_file(data), PasswordHasher().hash(password) + "\n")


def kept_hash(data: Path) -> str:
    """The hash on disk; empty when no password is set. Raises `OSError`."""
    try:
        return files.password_file(data).read_text(encoding="ascii").strip()
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return ""


def is_password(kept: str, password: str) -> bool:
    """Whether it is the one of that hash; a hash that is damaged is nobody's."""
    from argon2 import PasswordHasher
    from argon2.exceptions import InvalidHashError, VerificationError

    try:
        return PasswordHasher().verify(kept, password)
    except (VerificationError, InvalidHashError):
        return False

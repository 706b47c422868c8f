"""One process per data directory."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from node.errors import NeedsUser


@contextlib.contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, which ends with the process at the latest.

    Two nodes of one seed and one store would each give away what the other relies on. Raises `NeedsUser`
    (`data_in_use`) when another process, or this one, holds it; `OSError` when the directory cannot be written.
    """
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(directory, descriptor) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def refuse_if_locked(directory: Path) -> None:
    """For a process that is about to start: raises as `lock_directory` does, and touches nothing."""
    try:
        descriptor = os.open(directory / "lock", os.O_RDONLY)
    except OSError:
        return  # nobody was here; what cannot be opened is told by who needs it
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(directory, descriptor) from None
    finally:
        os.close(descriptor)


def _in_use(directory: Path, descriptor: int) -> NeedsUser:
    holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
    return NeedsUser(
        f"{directory} is in use by process {holder or '(unknown)'}",
        "stop that process, or start this one with a data directory of its own",
        code="data_in_use",
    )

"""Where a backup's files lie: a directory, or memory in a simulation. Blocking calls.

`WorldError` (``backup_failed``) names path and reason.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from attrs import Factory, define, frozen

from node.backup.format import SUFFIX
from protocols.errors import WorldError

UNFINISHED = ".unfinished"
"""What the name of a file that is being written ends with; nobody reads it."""
TRIED = 64 * 1024
"""Bytes that are written to see whether there is room: a large position's file, about."""


class Files(Protocol):
    """Each file is whole: it holds what the last `write` that returned gave it, or what the next one was giving it."""

    @property
    def place(self) -> str:
        """For people."""
        ...

    def prepare(self) -> None:
        """Make the place if there is none, and clear away what was left half written."""
        ...

    def names(self) -> list[str]: ...

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, data: bytes) -> None:
        """On disk when it returns, under its name as well."""
        ...

    def remove(self, name: str) -> None:
        """One that is not there is no error."""
        ...

    def try_out(self, name: str) -> None:
        """See whether a position's file could be written. Nothing under `name` is read by anybody."""
        ...


@frozen
class Folder:
    path: Path

    @property
    def place(self) -> str:
        return str(self.path)

    def prepare(self) -> None:
        with self._trouble():
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left in self.path.glob(f"*{SUFFIX}{UNFINISHED}"):
                left.unlink(missing_ok=True)

    def names(self) -> list[str]:
        with self._trouble():
            return sorted(name for name in os.listdir(self.path) if name.endswith(SUFFIX))

    def read(self, name: str) -> bytes:
        with self._trouble():
            return (self.path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        with self._trouble():
            write_whole(self.path / name, data)

    def remove(self, name: str) -> None:
        with self._trouble():
            (self.path / name).unlink(missing_ok=True)
            _sync(self.path)

    def try_out(self, name: str) -> None:
        tried = self.path / (name + UNFINISHED)
        with self._trouble():
            try:
                _put(tried, bytes(TRIED))
            finally:
                tried.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _trouble(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WorldError("backup_failed", f"{self.path}: {error.strerror or error}") from error


@define
class MemoryFiles:
    place: str = "memory"
    kept: dict[str, bytes] = Factory(dict)

    def prepare(self) -> None:
        pass

    def names(self) -> list[str]:
        return sorted(self.kept)

    def read(self, name: str) -> bytes:
        return self.kept[name]

    def write(self, name: str, data: bytes) -> None:
        self.kept[name] = data

    def remove(self, name: str) -> None:
        self.kept.pop(name, None)

    def try_out(self, name: str) -> None:
        pass


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file at once: whoever reads, at whatever moment the power goes, finds the old one or the new one."""
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        _put(unfinished, data)
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _put(path: Path, data: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def on_one_disk(first: Path, second: Path) -> bool:
    """Whether both paths, or the folders in which they will be made, are on one file system."""
    return _device(first) == _device(second)


def _device(path: Path) -> int | None:
    for folder in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            return folder.stat().st_dev
    return None


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some file systems cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)

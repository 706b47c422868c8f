"""The service `backup`: one sealed file for each position that can still matter, in a directory."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
import trio
from attrs import define, field, frozen

from node.backup.files import Files, write_whole
from node.backup.format import BadBackup, Contents, Head, Record, Seal
from node.clock import Clock
from node.eventstore.interface import RunBlocking
from node.health import UNREPORTED, Report
from protocols.errors import LocalError, WorldError

R = TypeVar("R")

_log = structlog.get_logger(__name__)


@frozen
class Owner:
    """Whose backup it is; a file says so."""

    network: str
    role: str


@frozen
class Status:
    """What is in place."""

    place: str
    positions: int
    size: int
    """Bytes of all files together."""
    newest: float | None
    """When the newest was written, seconds since 1970."""


@define(eq=False)
class Backup:
    """The API of the service. What it says is in place was read, or written, in this life."""

    files: Files
    seal: Seal
    owner: Owner
    clock: Clock
    entropy: Callable[[int], bytes]
    run_blocking: RunBlocking = trio.to_thread.run_sync
    strange: dict[str, str] = field(factory=dict)
    """Files that cannot be read, with the reason. They are left alone."""
    _heads: dict[bytes, Head] = field(factory=dict)
    _sizes: dict[bytes, int] = field(factory=dict)

    async def open(self) -> None:
        """Make the place, and see what is there. Raises `WorldError`."""
        await self.run_blocking(self._open)

    def version(self, order_id: bytes) -> int | None:
        """How many events of a position are in place; None without a file."""
        head = self._heads.get(order_id)
        return None if head is None else head.versions[order_id]

    def order_ids(self) -> frozenset[bytes]:
        return frozenset(self._heads)

    async def write(self, record: Record, pieces: dict[bytes, bytes]) -> None:
        """Put this in the place of what there is of the position. Raises `WorldError` (``backup_failed``): then what
        was in place still is."""
        contents = self._contents([record], pieces)
        data = self.seal.close(contents, self.entropy)
        await self.run_blocking(partial(self.files.write, self.seal.name(record.order_id), data))
        self._heads[record.order_id] = contents.head
        self._sizes[record.order_id] = len(data)

    async def remove(self, order_id: bytes) -> None:
        await self.run_blocking(partial(self.files.remove, self.seal.name(order_id)))
        self._heads.pop(order_id, None)
        self._sizes.pop(order_id, None)

    async def check(self) -> None:
        """Forget files that somebody took away: they are behind then, and written again."""
        names = set(await self.run_blocking(self.files.names))
        for order_id in [each for each in self._heads if self.seal.name(each) not in names]:
            _log.warning("a file of the backup is gone", order=order_id.hex())
            del self._heads[order_id], self._sizes[order_id]

    async def write_all(self, path: Path, records: Iterable[Record], pieces: dict[bytes, bytes]) -> int:
        """One file of all these positions; returns its size in bytes. One that is there is not replaced."""
        data = self.seal.close(self._contents(records, pieces), self.entropy)
        await self.run_blocking(partial(write_new, path, data))
        return len(data)

    def status(self) -> Status:
        newest = max((head.made_at for head in self._heads.values()), default=None)
        return Status(self.files.place, len(self._heads), sum(self._sizes.values()), newest)

    def _contents(self, records: Iterable[Record], pieces: dict[bytes, bytes]) -> Contents:
        records = tuple(records)
        versions = {record.order_id: len(record.events) for record in records}
        head = Head(self.owner.network, self.owner.role, self.clock.now(), versions)
        return Contents(head, records, pieces)

    def _open(self) -> None:
        self.files.prepare()
        for name in self.files.names():
            data = self.files.read(name)
            try:
                head = self.seal.head(data)
            except BadBackup as error:
                if error.code != "backup_of_another_seed":
                    _log.warning("a file of the backup cannot be read", file=name, reason=error.sentence)
                self.strange[name] = error.sentence
                continue
            for order_id in head.versions:
                if name == self.seal.name(order_id):  # not what somebody put there with all positions
                    self._heads[order_id], self._sizes[order_id] = head, len(data)


def write_new(path: Path, data: bytes) -> None:
    if not path.is_absolute():
        raise LocalError("bad_path", f"{path}: give the whole path, from / on")
    if path.exists():
        raise LocalError("file_exists", f"{path}: there is a file already; it was left as it is")
    try:
        write_whole(path, data)
    except OSError as error:
        raise WorldError("backup_failed", f"{path}: {error.strerror or error}") from error


async def run_backup(
    backup: Backup,
    *,
    report: Report = UNREPORTED,
    task_status: trio.TaskStatus[Backup] = trio.TASK_STATUS_IGNORED,
) -> None:
    """The service: up once it has seen what is there. It writes when it is asked to, and is asked again; meanwhile it
    sees whether its place still answers."""
    await backup.open()
    task_status.started(backup)
    while True:
        with contextlib.suppress(WorldError):  # the keeper tells of it
            await backup.run_blocking(backup.files.names)
        report.beat()
        await trio.sleep(report.beat_every)

"""The service `backup`: one sealed file for each position that can still matter, in a directory.

A place that hangs (a network's disk whose server is away) refuses as one that is full does, after `WITHIN` seconds. The
thread that hangs there cannot be ended, and what it was told to write may come to stand there at any later time. So
there is one thread for all that is done with the place, also by later lives: nothing is begun before what hangs has
come back, and no file is ever replaced by an older one. The file that comes late says more than happened, which harms
nobody (:mod:`node.backup.keeping`), and it is written anew, or removed, as soon as the place answers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
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

TOGETHER = 50
"""Files that are looked at in one go."""
WITHIN = 20.0
"""Seconds in which the place has to answer."""
LOOK_EVERY = 30.0
"""Seconds after which a place that takes nothing any more, or somebody's hand in it, is noticed, at the latest."""
REMEDY = "make room at the backup's path, or give another with [backup] path"
UNSURE = -1
"""The version of what stands in a file when nobody knows: less than any."""


def one_thread() -> RunBlocking:
    """Runs one function after the other. Whoever waits may be cancelled; the next begins when the last has ended."""
    lane = trio.CapacityLimiter(1)

    async def run(function: Callable[[], R], /) -> R:
        return await trio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=lane)

    return run


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
    run_blocking: RunBlocking = field(factory=one_thread)
    """One at a time, and in order; may be left when it hangs."""
    trouble: WorldError | None = None
    """Why the place took nothing when it was last given something."""
    strange: dict[str, str] = field(factory=dict)
    """Files that cannot be read, with the reason. They are left alone."""
    _heads: dict[bytes, Head] = field(factory=dict)
    _sizes: dict[bytes, int] = field(factory=dict)
    _unsure: set[bytes] = field(factory=set)
    """Positions whose file is being written or removed, or may still be."""

    async def open(self) -> None:
        """Make the place, and see what is there. Raises `WorldError`."""
        await self._do(self.files.prepare)
        names = list(await self._do(self.files.names))
        for at in range(0, len(names), TOGETHER):
            await self._do(partial(self._look, names[at : at + TOGETHER]))

    async def _do(self, function: Callable[[], R]) -> R:
        """Raises `WorldError` (``backup_failed``) also when it takes longer than `WITHIN`: it may still be done."""
        with trio.move_on_after(WITHIN):
            return await self.run_blocking(function)
        raise WorldError("backup_failed", f"{self.files.place}: it has not answered for {WITHIN:g} seconds")

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        try:
            yield
        except WorldError as error:
            self.trouble = error
            raise
        self.trouble = None

    def check_writable(self) -> None:
        """Raises `WorldError` when the place took nothing lately: whoever would need it had better not begin."""
        if self.trouble is not None:
            raise WorldError(self.trouble.code, f"the backup cannot be written: {self.trouble.sentence}")

    async def try_out(self) -> None:
        """See whether the place takes anything. Raises `WorldError`."""
        with self._trying():
            await self._do(partial(self.files.try_out, self.seal.name(b"")))

    def version(self, order_id: bytes) -> int | None:
        """How many events of a position are in place; None without a file, `UNSURE` when that is not known."""
        if order_id in self._unsure:
            return UNSURE
        head = self._heads.get(order_id)
        return None if head is None else head.versions[order_id]

    def order_ids(self) -> frozenset[bytes]:
        return frozenset(self._heads)

    async def read(self, order_ids: Collection[bytes]) -> list[Contents]:
        """What is in place of these positions; what has become unreadable is left out. Raises `WorldError`."""
        found: list[Contents] = []
        for order_id in sorted(order_ids):
            name = self.seal.name(order_id)
            try:
                found.append(self.seal.open(await self._do(partial(self.files.read, name))))
            except BadBackup as error:
                self.strange[name] = error.sentence
        return found

    async def write(self, record: Record, pieces: dict[bytes, bytes]) -> None:
        """Put this in the place of what there is of the position. Raises `WorldError` (``backup_failed``): then what
        was in place still is, or this comes to stand there later."""
        contents = self._contents([record], pieces)
        data = self.seal.close(contents, self.entropy)
        self._unsure.add(record.order_id)
        with self._trying():
            await self._do(partial(self.files.write, self.seal.name(record.order_id), data))
        self._unsure.discard(record.order_id)
        self._heads[record.order_id] = contents.head
        self._sizes[record.order_id] = len(data)

    async def remove(self, order_id: bytes) -> None:
        self._unsure.add(order_id)
        await self._do(partial(self.files.remove, self.seal.name(order_id)))
        self._unsure.discard(order_id)
        self._heads.pop(order_id, None)
        self._sizes.pop(order_id, None)

    async def check(self) -> None:
        """Forget files that somebody took away: they are behind then, and written again."""
        names = set(await self._do(self.files.names))
        for order_id in [each for each in self._heads if self.seal.name(each) not in names]:
            _log.warning("a file of the backup is gone", order=order_id.hex())
            del self._heads[order_id], self._sizes[order_id]

    async def write_all(self, path: Path, records: Iterable[Record], pieces: dict[bytes, bytes]) -> int:
        """One file of all these positions; returns its size in bytes. One that is there is not replaced."""
        data = self.seal.close(self._contents(records, pieces), self.entropy)
        await self._do(partial(write_new, path, data))
        return len(data)

    def status(self) -> Status:
        newest = max((head.made_at for head in self._heads.values()), default=None)
        return Status(self.files.place, len(self._heads), sum(self._sizes.values()), newest)

    def _contents(self, records: Iterable[Record], pieces: dict[bytes, bytes]) -> Contents:
        records = tuple(records)
        versions = {record.order_id: len(record.events) for record in records}
        head = Head(self.owner.network, self.owner.role, self.clock.now(), versions)
        return Contents(head, records, pieces)

    def _look(self, names: Sequence[str]) -> None:
        for name in names:
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
    sees whether its place still takes anything. Whoever keeps the positions in it says when all is well again."""
    await backup.open()
    task_status.started(backup)
    while True:
        try:
            await backup.try_out()
        except WorldError as error:
            report.degraded(f"nothing can be written: {error.sentence}", REMEDY)
        report.beat()
        await trio.sleep(min(LOOK_EVERY, report.beat_every))

"""Allow and block lists: files that are read again whenever they change."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

import structlog
import trio
from attrs import define, field

from node.health import UNREPORTED, Report
from node.network.address import PeerId
from protocols.errors import LocalError

log = structlog.get_logger("network")

LARGEST = 1024 * 1024
"""Bytes of a list: 15 000 peers."""


class Admits(Protocol):
    """What the lists are for: an `Endpoint`."""

    def admit(self, allow: frozenset[PeerId] | None, block: frozenset[PeerId]) -> None: ...


def read_peers(text: str) -> frozenset[PeerId]:
    """One peer id a line, 64 hex digits; what follows a ``#`` is for people. LocalError names the line."""
    peers = set()
    for number, line in enumerate(text.splitlines(), start=1):
        if name := line.partition("#")[0].strip():
            try:
                peers.add(PeerId.parse(name))
            except LocalError as error:
                raise LocalError("bad_peer_list", f"line {number}: {error.sentence}") from None
    return frozenset(peers)


@define(eq=False)
class _File:
    path: Path
    last: frozenset[PeerId] = frozenset()
    """As of the last time that it could be read."""
    seen: tuple[int, int, int] | None = None
    """By what a change is known: inode, size, time."""

    async def look(self) -> bool:
        """Whether it holds something else than last time. Raises LocalError and OSError; nothing has changed then."""
        found = await trio.to_thread.run_sync(self._read)
        if found is None:
            return False
        changed, self.last = found != self.last, found
        return changed

    def _read(self) -> frozenset[PeerId] | None:
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            stamp = status.st_ino, status.st_size, status.st_mtime_ns
            if stamp == self.seen:
                return None
            if status.st_size > LARGEST:
                raise LocalError("bad_peer_list", f"it has {status.st_size} bytes, at most {LARGEST} are read")
            peers = read_peers(file.read(LARGEST).decode())
        self.seen = stamp
        return peers


@define(eq=False)
class PeerLists:
    """Who may dial us by the file `allow` (None: everybody), but those in the file `block`.

    A file that cannot be read counts as it was when it last could; before that, `allow` allows nobody.
    """

    allow_file: Path | None = None
    block_file: Path | None = None
    every: float = 2.0
    """Seconds between two looks."""
    _allow: _File | None = field(init=False, default=None)
    _block: _File | None = field(init=False, default=None)

    def __attrs_post_init__(self) -> None:
        self._allow = None if self.allow_file is None else _File(self.allow_file)
        self._block = None if self.block_file is None else _File(self.block_file)

    @property
    def allow(self) -> frozenset[PeerId] | None:
        return None if self._allow is None else self._allow.last

    @property
    def block(self) -> frozenset[PeerId]:
        return frozenset() if self._block is None else self._block.last

    async def look(self) -> tuple[bool, list[str]]:
        """Read what has changed: whether anything did, and a sentence for each file that cannot be read."""
        changed, problems = False, []
        for file in filter(None, (self._allow, self._block)):
            try:
                changed |= await file.look()
            except UnicodeDecodeError:
                problems.append(f"{file.path}: it is no text in UTF-8")
            except LocalError as error:
                problems.append(f"{file.path}: {error.sentence}")
            except OSError as error:
                problems.append(f"{file.path}: {(error.strerror or str(error)).lower()}")
        return changed, problems

    async def run(
        self,
        endpoint: Admits,
        *,
        report: Report = UNREPORTED,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keep the endpoint's lists as the files say; started when they have been read once."""
        told: list[str] = []
        started = False
        while True:
            changed, problems = await self.look()
            if changed or not started:
                endpoint.admit(self.allow, self.block)
            if changed:
                log.info(
                    "peer lists", allowed="all" if self.allow is None else len(self.allow), blocked=len(self.block)
                )
            if problems != told:
                told = problems
                if problems:
                    report.degraded("; ".join(problems), "correct the file; it is read again by itself")
                else:
                    report.recovered()
            if not problems:
                report.fresh()
            if not started:
                started = True
                task_status.started()
            report.beat()
            await trio.sleep(self.every)

"""What a node has on record, read from its disk: nothing that was there before it was killed may be gone afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from pathlib import Path

from attrs import Factory, define, frozen

from node.position.events import STREAM
from node.regtest.processes import Failed, Node


@frozen
class Row:
    """One event; `digest` is the SHA-256 of its data."""

    stream: str
    position: int
    name: str
    digest: bytes


@define(eq=False)
class Records:
    """Of one node: what was seen on its disk, and what its API acknowledged."""

    node: Node
    _seen: dict[int, Row] = Factory(dict)
    """By the event's id."""
    _acknowledged: set[tuple[str, str]] = Factory(set)
    """Streams and names of events."""

    def acknowledged(self, order_id: str, event: str) -> None:
        """The API answered that this is on record."""
        self._acknowledged.add((STREAM + order_id, event))

    def check(self) -> None:
        """Raises `Failed` when something is missing. The node may be running, or just have been killed."""
        rows, archived = _read(self.node.data / "events.sqlite")
        for id_, row in self._seen.items():
            if rows.get(id_) != row and row.stream not in archived:
                raise Failed(f"{self.node.name}: event {id_}, {row.name} of {row.stream}, was on record and is not now")
        there = {(row.stream, row.name) for row in rows.values()}
        for stream, name in self._acknowledged - there:
            if stream not in archived:
                raise Failed(f"{self.node.name}: {name} of {stream} was acknowledged and is not on record")
        self._seen |= rows


def _read(path: Path) -> tuple[dict[int, Row], frozenset[str]]:
    """All events, and the streams that are archived."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        connection.execute("BEGIN")
        rows = {
            id_: Row(stream, position, name, hashlib.sha256(data).digest())
            for id_, stream, position, name, data in connection.execute(
                "SELECT id, stream, position, name, data FROM events"
            )
        }
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        archived = connection.execute("SELECT stream FROM archive").fetchall() if "archive" in tables else []
    return rows, frozenset(stream for (stream,) in archived)

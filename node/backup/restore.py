"""From a backup to an event store, and from a store to a backup's file, while no node runs on it. Blocking.

What is restored is *recovered* (design.md, rule 7): nobody knows what the node that is lost gave away after the backup
was made, so no commit of it is published but by the user's word.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from attrs import evolve as changed
from attrs import field, frozen

from node.backup.format import SUFFIX, BadBackup, Contents, Head, Kept, Record, Seal
from node.backup.keeping import matters, needed, recorded_of, stream_of
from node.backup.pruning import pruned
from node.backup.service import Backup, write_new
from node.eventstore.codec import BadEvent
from node.eventstore.interface import Backend, Blob, NewEvent
from node.eventstore.sqlite import SqliteBackend
from node.position.commands import recover
from node.position.events import CODEC, signatures_blob
from node.position.evolve import replay
from node.position.state import Position
from protocols.errors import LocalError, WorldError

RESTORING = ".restoring"
"""What the name of a store ends with that is not whole yet."""


@frozen
class Found:
    """What a backup holds, put together."""

    network: str
    role: str
    records: dict[bytes, tuple[Record, float]] = field(repr=False)
    """By order id the longest record, and when it was made."""
    pieces: dict[bytes, bytes] = field(repr=False)
    damaged: dict[str, str]
    """By file what is wrong with it."""


@frozen
class Restored:
    positions: tuple[bytes, ...]
    """Their order ids."""
    newest: float
    """When the newest of the files was made, seconds since 1970."""
    damaged: Mapping[str, str]
    """Files that were passed over, with the reason."""


def read_backup(place: Path, seed: bytes, *, skip_damaged: bool = False) -> Found:
    """The backup in a directory, or in one file, of this seed (64 bytes).

    Raises LocalError: ``no_backup``; ``wrong_seed`` when no file was made with it; ``backup_damaged`` naming the files,
    unless these are to be passed over; ``mixed_backup`` for files of different networks or roles.
    """
    try:
        paths = sorted(place.glob(f"*{SUFFIX}")) if place.is_dir() else [place]
        files = {path.name: path.read_bytes() for path in paths}
    except OSError as error:
        raise LocalError("no_backup", f"{place}: {error.strerror or error}") from None
    if not files:
        raise LocalError("no_backup", f"{place}: there is no file of a backup in it")
    return put_together(files, str(place), seed, skip_damaged=skip_damaged)


def put_together(files: Mapping[str, bytes], place: str, seed: bytes, *, skip_damaged: bool = False) -> Found:
    """What these files hold, by name; as `read_backup`."""
    good: list[Contents] = []
    damaged: dict[str, str] = {}
    foreign = 0
    for name, data in files.items():
        try:
            contents = Seal(seed).open(data)
            for record in contents.records:
                _replayed(record, contents.pieces)
            good.append(contents)
        except BadBackup as error:
            foreign += error.code == "backup_of_another_seed"
            damaged[name] = error.sentence
        except BadEvent as error:
            damaged[name] = error.sentence
    if foreign == len(files):
        raise LocalError("wrong_seed", f"{place}: this backup was made with another seed; check the words")
    if (damaged and not skip_damaged) or not good:
        named = "; ".join(f"{name}: {why}" for name, why in sorted(damaged.items()))
        raise LocalError("backup_damaged", f"{place}: {named}; the other files can be restored with --skip-damaged")
    heads = {(contents.head.network, contents.head.role) for contents in good}
    if len(heads) > 1:
        raise LocalError("mixed_backup", f"{place}: its files are of different nodes: {sorted(heads)}")
    network, role = heads.pop()
    records: dict[bytes, tuple[Record, float]] = {}
    pieces: dict[bytes, bytes] = {}
    for contents in good:
        pieces |= contents.pieces
        for record in contents.records:
            known = records.get(record.order_id)
            if known is None or len(known[0].events) < len(record.events):
                records[record.order_id] = record, contents.head.made_at
    return Found(network, role, records, pieces, damaged)


def restore_into(
    store: Path,
    place: Path,
    seed: bytes,
    network: str,
    role: str,
    *,
    skip_damaged: bool = False,
    aside: Callable[[Path], object] | None = None,
) -> Restored:
    """Make a store of a backup. A store that is there is moved aside first, by `aside`; without it, that is refused.

    The store appears whole under its name or not at all. Raises LocalError (`read_backup`; ``store_exists``;
    ``other_node`` for a backup of another network or role) or WorldError; then all is as it was.
    """
    found = read_backup(place, seed, skip_damaged=skip_damaged)
    if (found.network, found.role) != (network, role):
        raise LocalError(
            "other_node",
            f"{place}: it is the backup of a {found.role} on {found.network}, not of a {role} on {network}",
        )
    if store.exists() and aside is None:
        raise LocalError("store_exists", f"{store}: there is a store already; it was left as it is")
    made = store.with_name(store.name + RESTORING)
    _remove(made)
    try:
        now = 0.0

        def at(moment: float) -> None:
            nonlocal now
            now = moment

        with contextlib.closing(SqliteBackend(made, lambda: now)) as backend:
            write_records(backend, found, at)
        if store.exists() and aside is not None:
            aside(store)
        os.replace(made, store)
    except OSError as error:
        raise WorldError("restore_failed", f"{store}: {error.strerror or error}") from error
    finally:
        _remove(made)
    newest = max((made_at for _, made_at in found.records.values()), default=0.0)
    return Restored(tuple(sorted(found.records)), newest, found.damaged)


def write_records(backend: Backend, found: Found, at: Callable[[float], None]) -> None:
    """Into an empty store, whose clock `at` sets to when each event was recorded."""

    def append(stream: str, version: int, new: NewEvent, recorded_at: float) -> None:
        at(recorded_at)
        backend.append(stream, version, [new], None)

    for order_id, (record, made_at) in sorted(found.records.items()):
        stream = stream_of(order_id)
        blobs = tuple(Blob(kind, data) for kind, data in record.blobs.items())
        writes = []
        for version, recorded in enumerate(recorded_of(record)):
            shared = tuple(found.pieces[each] for each in sorted(CODEC.needs(recorded)))
            new = NewEvent(recorded.name, recorded.version, recorded.data, () if version else blobs, shared)
            writes.append(partial(append, stream, version, new, recorded.recorded_at))
        when = datetime.fromtimestamp(made_at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        for event in recover(f"restored from a backup of {when}")(_replayed(record, found.pieces)):
            writes.append(partial(append, stream, len(record.events), CODEC.encode(event), time.time()))
        for result in backend.write(writes):
            result.unwrap()


def _replayed(record: Record, pieces: Mapping[bytes, bytes]) -> Position:
    recorded = recorded_of(record)
    events = [CODEC.decode(each, pieces) for each in recorded]
    return replay(record.order_id, events, [each.recorded_at for each in recorded])


async def lost_positions(backup: Backup, known: Collection[bytes]) -> list[Position]:
    """Those that the backup holds and the store does not: nobody restored them, and yet they are ours."""
    found = []
    for contents in await backup.read(backup.order_ids() - set(known)):
        for record in contents.records:
            with contextlib.suppress(BadEvent):  # a newer program's
                found.append(_replayed(record, contents.pieces))
    return found


def _remove(path: Path) -> None:
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        with contextlib.suppress(OSError):
            path.with_name(name).unlink(missing_ok=True)


def export(store: Path, seed: bytes, network: str, role: str, target: Path) -> int:
    """One file of all positions in a store that nobody uses; returns how many there are."""
    if not store.exists():
        raise LocalError("no_store", f"{store}: there is no store to make a backup of")
    from node.position.events import STREAM

    backend = SqliteBackend(store, time.time)
    try:
        records = []
        pieces: dict[bytes, bytes] = {}
        for stream in backend.streams():
            if not stream.startswith(STREAM):
                continue
            order_id = bytes.fromhex(stream.removeprefix(STREAM))
            events = tuple(
                Kept(each.name, each.version, each.data, each.recorded_at) for each in backend.load(stream, 0)
            )
            record = Record(order_id, events, {})
            pieces |= backend.contents(needed(record) - pieces.keys())
            position = _replayed(record, pieces)
            record = changed(record, events=pruned(position, events))
            if matters(position):
                kinds = [signatures_blob(attempt.index) for attempt in position.attempts]
                found = {kind: backend.blob(stream, kind) for kind in kinds}
                blobs = {kind: data for kind, data in found.items() if data is not None}
                records.append(changed(record, blobs=blobs))
        wanted = frozenset().union(*map(needed, records))
    finally:
        backend.close()
    head = Head(network, role, time.time(), {record.order_id: len(record.events) for record in records})
    write_new(
        target, Seal(seed).close(Contents(head, tuple(records), {each: pieces[each] for each in wanted}), os.urandom)
    )
    return len(records)

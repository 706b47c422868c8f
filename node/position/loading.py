"""Positions as the store has them: from their snapshots and what happened since, in few calls for many of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence

import structlog
import trio
from attrs import frozen

from node.eventstore.codec import BadEvent
from node.eventstore.interface import EventStore, Recorded, Unreadable
from node.position import snapshots
from node.position.events import CODEC, STREAM, Event, order_of, points_of, stream_of
from node.position.evolve import evolve, replay
from node.position.snapshots import BadSnapshot, Snapshot
from node.position.state import Position
from node.supervision import Service

_log = structlog.get_logger(__name__)

AT_ONCE = 100
"""Positions that are read together."""


@frozen
class Loaded:
    """One position as it is on disk."""

    position: Position
    points: frozenset[bytes]
    """All that its events named."""
    kept: int = 0
    """The version that its snapshot is of; 0 without one."""


@frozen
class _Kept:
    version: int
    snapshot: Snapshot


@frozen
class Broken:
    order_id: bytes
    reason: str


async def load_all(store: Service[EventStore]) -> AsyncGenerator[Loaded | Broken, None]:
    """Every position that is not archived, by order id. A snapshot that is of no use is as good as none."""
    kept = await _snapshots(store)
    contents: dict[bytes, bytes] = {}  # one copy of what they have in common
    streams = [stream for stream in await store.call(EventStore.streams) if stream.startswith(STREAM)]
    for first in range(0, len(streams), AT_ONCE):
        some = streams[first : first + AT_ONCE]
        read = {stream: each for stream in some if (each := kept.pop(stream, None)) is not None}
        try:
            after = {stream: read[stream].version if stream in read else 0 for stream in some}
            tails = await store.call(EventStore.tails, after)
            needs = {each for kept_one in read.values() for each in kept_one.snapshot.needs}
            needs |= _needs(recorded for tail in tails.values() for recorded in tail)
            contents |= await store.call(EventStore.contents, needs - contents.keys())
        except Unreadable:  # in one of them: which one, is found one by one
            tails = {}
        for stream in some:
            await trio.lowlevel.checkpoint()  # the page is served meanwhile
            order_id = order_of(stream)
            try:
                loaded = None
                if stream in tails:
                    loaded = _loaded(order_id, read.get(stream), tails[stream], contents)
                yield loaded or await load_one(store, order_id)
            except (BadEvent, Unreadable) as error:
                yield Broken(order_id, error.sentence)


async def load_one(store: Service[EventStore], order_id: bytes) -> Loaded:
    """By its events alone. Raises `BadEvent` or `Unreadable`."""
    recorded = await store.call(EventStore.load, stream_of(order_id))
    return _replayed(order_id, recorded, await store.call(EventStore.contents, _needs(recorded)))


async def _snapshots(store: Service[EventStore]) -> dict[str, _Kept]:
    """By stream, those that this program version made."""
    try:
        those = await store.call(EventStore.snapshots, STREAM)
    except Unreadable as error:
        _log.warning("no snapshot can be read", reason=error.sentence)
        return {}
    read: dict[str, _Kept] = {}
    for each in those:
        if each.form == snapshots.FORM:
            try:
                read[each.stream] = _Kept(each.position, snapshots.decode(each.data))
            except BadSnapshot as error:
                _log.warning("a snapshot is of no use", stream=each.stream, reason=error.sentence)
            await trio.lowlevel.checkpoint()
    return read


def _needs(recorded: Iterable[Recorded]) -> set[bytes]:
    return {name for event in recorded for name in CODEC.needs(event)}


def _replayed(order_id: bytes, recorded: Sequence[Recorded], contents: Mapping[bytes, bytes]) -> Loaded:
    events: list[Event] = [CODEC.decode(each, contents) for each in recorded]
    position = replay(order_id, events, [each.recorded_at for each in recorded])
    return Loaded(position, frozenset(points_of(events)))


def _loaded(
    order_id: bytes, kept: _Kept | None, recorded: Sequence[Recorded], contents: Mapping[bytes, bytes]
) -> Loaded | None:
    """None when its snapshot is of no use. Raises `BadEvent`."""
    if kept is None:
        return _replayed(order_id, recorded, contents)
    try:
        position = kept.snapshot.position(contents)
    except BadSnapshot as error:
        _log.warning("a snapshot is of no use", order=order_id.hex(), reason=error.sentence)
        return None
    if (position.id, position.version) != (order_id, kept.version):
        _log.warning("a snapshot is of no use", order=order_id.hex(), reason="it is another one's")
        return None
    events: list[Event] = [CODEC.decode(each, contents) for each in recorded]
    for event, each in zip(events, recorded, strict=True):
        position = evolve(position, event, each.recorded_at)
    return Loaded(position, kept.snapshot.points.union(points_of(events)), kept.version)

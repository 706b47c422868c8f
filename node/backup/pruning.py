"""What a backup's record leaves out: it must hardly grow with each rollover, and a position may roll over for long.

A contract that both sides have revoked is claimed by no attestation and published by nobody honest. If the peer
publishes it all the same, what punishes needs its keys, its terms and the peer's revocation, and nothing else: 0.4 kB.
It names the oracle's events of the contract that stands, in the place of its own. Of rollovers that came to nothing not
even that is needed: the one that was made stands in their place. So there are as many events as in the store, of the
same names, and a store can be compared with a record (:mod:`node.backup.behind`).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256
from typing import TypeAlias

from attrs import evolve

from node.backup.format import Kept
from node.eventstore.interface import Recorded
from node.position.events import CODEC, RolloverBegun, RolloverHeld, RolloverSigned, SetupStarted
from node.position.state import Position

_Event: TypeAlias = SetupStarted | RolloverBegun | RolloverHeld | RolloverSigned
_NAMES = frozenset(CODEC.name(kind) for kind in (SetupStarted, RolloverBegun, RolloverHeld, RolloverSigned))


def pruned(position: Position, events: Iterable[Kept]) -> tuple[Kept, ...]:
    """The same events; those of contracts by which nobody can claim, without what only a claim needs.

    Raises `BadEvent`.
    """
    events = tuple(events)
    revoked = min(position.own_revoked, len(position.peer_secrets))
    made = _made(position, events)
    named = tuple(sha256(each).digest() for each in position.attempts[revoked].announcements) if revoked else ()

    def one(kept: Kept) -> Kept:
        if kept.name not in _NAMES:
            return kept
        event = _bare(kept.name, kept.version, kept.data)
        index = 0 if isinstance(event, SetupStarted) else event.index
        if isinstance(event, RolloverBegun):
            kept = evolve(made[index], recorded_at=kept.recorded_at)
        return _pruned(kept, named) if index < revoked else kept

    return tuple(map(one, events))


def is_pruned(kept: Kept, whole: Recorded) -> bool:
    """Whether this may be what `pruned` made of that event."""
    if kept.name != whole.name or kept.name not in _NAMES:
        return False
    event, before = (_bare(each.name, each.version, each.data) for each in (kept, whole))
    if isinstance(event, RolloverBegun) and isinstance(before, RolloverBegun):
        return event.index == before.index
    return event in (before, _without_signature(before))


def _made(position: Position, events: Iterable[Kept]) -> dict[int, Kept]:
    """By index the rollover that was made of those that were begun; while none is, the last."""
    made: dict[int, Kept] = {}
    found: set[int] = set()
    for kept in events:
        if kept.name == CODEC.name(RolloverBegun):
            event = _bare(kept.name, kept.version, kept.data)
            assert isinstance(event, RolloverBegun)
            if event.index not in found:
                made[event.index] = kept
            if event.index < len(position.attempts) and position.attempts[event.index].own.points == event.own:
                found.add(event.index)
    return made


def _pruned(kept: Kept, named: tuple[bytes, ...]) -> Kept:
    event = _without_signature(_bare(kept.name, kept.version, kept.data))
    if isinstance(event, SetupStarted):
        event = evolve(event, announcements=named)
    elif isinstance(event, RolloverBegun | RolloverHeld) and event.following is not None:
        event = evolve(event, following=evolve(event.following, announcements=named))
    new = CODEC.encode(event)
    return Kept(new.name, new.version, new.data, kept.recorded_at)


def _without_signature(event: _Event) -> _Event:
    """Ours would be made again with the same bytes; the peer's completes a commit that we never publish."""
    return evolve(event, commit_signature=b"") if isinstance(event, RolloverHeld | RolloverSigned) else event


@lru_cache(maxsize=4096)
def _bare(name: str, version: int, data: bytes) -> _Event:
    event: _Event = CODEC.bare(Recorded(0, "", 0, name, version, data, 0.0))
    return event

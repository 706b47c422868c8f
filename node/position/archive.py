"""Positions that are over leave the memory: their events go to the archive, and what people ask of them to a summary.

What must be known of them for ever stays in the store as *marks*: the points that they named, since one pair of points
carries one set of terms, and their order ids, since an id stands for one order.
"""

from __future__ import annotations

import json
from typing import Any

from attrs import frozen

from node.eventstore.interface import ArchivedStream
from node.position.events import order_of
from node.position.state import Position

BURIED_FOR = 3600.0
"""Seconds after which a buried position is archived: whatever waits for its end has seen it by then."""
FAILED_FOR = 24 * 3600.0
"""Seconds after which an order that was refused, or a setup that failed, is archived."""

View = dict[str, Any]


def archivable(position: Position, now: float) -> bool:
    """Whether nothing can happen to it any more: its end is buried, or it never came to hold anything of ours."""
    if position.buried:
        return now >= position.changed_at + BURIED_FOR
    return position.over and now >= position.changed_at + FAILED_FOR


@frozen
class Archived:
    """A position in the archive."""

    id: int
    """Of its place there; they rise."""
    order_id: bytes
    archived_at: float
    """Seconds since 1970."""
    view: View
    """As the API showed it last."""
    scripts: frozenset[bytes]
    """Ours, where its payouts and change went."""

    @classmethod
    def read(cls, stream: ArchivedStream) -> Archived:
        said = json.loads(stream.summary)
        scripts = frozenset(map(bytes.fromhex, said["scripts"]))
        return cls(stream.id, order_of(stream.stream), stream.archived_at, said["view"], scripts)


def summary(position: Position, view: View) -> bytes:
    owns = [attempt.own for attempt in position.attempts]
    scripts = {script.hex() for own in owns for script in (own.payout_script, own.change_script)}
    return json.dumps({"view": view, "scripts": sorted(scripts)}).encode()


def shown(position: Position) -> View:
    """The least there is to say."""
    return {"order_id": position.id.hex(), "state": position.state.value}

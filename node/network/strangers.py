"""Those who dialled us and have not yet shown who they are: how many at once, and who has to go for the next one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import trio
from attrs import define, field

from protocols.transport.session import Session


@define(eq=False)
class Stranger:
    """One handshake under way; `scope` ends it."""

    session: Session
    origin: str | None
    scope: trio.CancelScope
    crowded_out: bool = False
    """Whether it had to go for another one."""


@define(eq=False)
class Strangers:
    """At most `per_origin` from one origin and `in_all` together; a further one is always let in, and another one goes.

    Who has sent a valid first message knows our key and is about to finish, so a silent one goes before: the oldest of
    its origin, or, when there are too many in all, of the origin that has the most.
    """

    in_all: int
    per_origin: int
    within: float
    """Seconds that a handshake may take."""
    _under_way: dict[Stranger, None] = field(init=False, factory=dict)

    def __len__(self) -> int:
        return len(self._under_way)

    @contextmanager
    def admitted(self, session: Session, origin: str | None) -> Iterator[Stranger]:
        """A place for one handshake. The block is cancelled when its time is over, or its place is taken."""
        self._make_room(origin)
        stranger = Stranger(session, origin, trio.CancelScope(deadline=trio.current_time() + self.within))
        self._under_way[stranger] = None
        try:
            with stranger.scope:
                yield stranger
        finally:
            self._under_way.pop(stranger, None)

    def _make_room(self, origin: str | None) -> None:
        origins = Counter(stranger.origin for stranger in self._under_way)
        if origin is not None and origins[origin] >= self.per_origin:
            crowd = [stranger for stranger in self._under_way if stranger.origin == origin]
        elif len(self._under_way) >= self.in_all:
            crowd = list(self._under_way)
        else:
            return
        # of equal ones min finds the first, which is the oldest
        first = min(crowd, key=lambda each: (each.session.handshake_messages > 0, -origins[each.origin]))
        del self._under_way[first]
        first.crowded_out = True
        first.scope.cancel()

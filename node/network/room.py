"""How many dialogues of one kind a node holds at once."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import define, field

from node.network.errors import Refuse

RETRY_AFTER = 60.0
"""Seconds."""


@define(eq=False)
class Room:
    """Places for `per_peer` dialogues of one peer, and for `in_all` of all peers together."""

    name: str
    """What is held, in the plural."""
    per_peer: int
    in_all: int
    _taken: Counter[bytes] = field(init=False, factory=Counter)

    @contextmanager
    def taken(self, peer: bytes) -> Iterator[None]:
        """Take a place. Raises `Refuse` (429) when there is none left."""
        if self._taken[peer] >= self.per_peer or self._taken.total() >= self.in_all:
            raise Refuse(429, f"too many {self.name} at once", retry_after=RETRY_AFTER)
        self._taken[peer] += 1
        try:
            yield
        finally:
            self._taken[peer] -= 1
            if not self._taken[peer]:
                del self._taken[peer]

"""How much of one kind peers may have under way at once: each takes memory, and some take coins, for minutes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from attrs import define, field

from node.network.errors import Refuse


@define
class Turns:
    what: str
    """As the peer is told: "setups"."""
    per_peer: int
    in_all: int
    _taken: Counter[bytes] = field(init=False, factory=Counter)

    @contextmanager
    def one(self, peer: bytes) -> Iterator[None]:
        """Raises `Refuse` (429) when there are too many."""
        if self._taken[peer] >= self.per_peer or self._taken.total() >= self.in_all:
            raise Refuse(429, f"too many {self.what} at once", retry_after=60)
        self._taken[peer] += 1
        try:
            yield
        finally:
            self._taken[peer] -= 1
            if not self._taken[peer]:
                del self._taken[peer]

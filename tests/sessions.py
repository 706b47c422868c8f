"""Two sessions joined in memory, without sockets, clock or event loop."""

from __future__ import annotations

import os

from attrs import define, evolve, field

from protocols.transport.events import Event
from protocols.transport.handshake import public_key
from protocols.transport.http2 import SessionLimits
from protocols.transport.session import Session

DIALLER = bytes(range(1, 33))
LISTENER = bytes(range(33, 65))

SEEDS = int(os.environ.get("TRANSPORT_SEEDS", "50"))
"""Cases that each property of the transport is tried on."""


@define
class Pair:
    """`a` dials `b`. Bytes travel only when `carry` or `settle` says so."""

    a: Session
    b: Session
    under_way: dict[str, bytearray] = field(factory=lambda: {"a": bytearray(), "b": bytearray()})
    """By receiver."""
    heard: dict[str, list[Event]] = field(factory=lambda: {"a": [], "b": []})
    now: float = 0.0

    def side(self, name: str) -> Session:
        return self.a if name == "a" else self.b

    def carry(self, to: str, count: int | None = None) -> list[Event]:
        """Let `count` bytes (None: all) arrive at one side; returns, and keeps, what it makes of them."""
        sender = self.b if to == "a" else self.a
        self.under_way[to] += sender.data_to_send()
        count = len(self.under_way[to]) if count is None else count
        data = bytes(self.under_way[to][:count])
        del self.under_way[to][:count]
        events = self.side(to).receive(data, self.now) if data else []
        self.heard[to] += events
        return events

    def settle(self) -> None:
        """Until nothing is under way."""
        while True:
            before = (len(self.heard["a"]), len(self.heard["b"]))
            busy = [to for to in ("b", "a") if self._waiting(to)]
            for to in busy:
                self.carry(to)
            if not busy and before == (len(self.heard["a"]), len(self.heard["b"])):
                return

    def _waiting(self, to: str) -> bool:
        sender = self.b if to == "a" else self.a
        return bool(self.under_way[to]) or sender.unsent > 0

    def take(self, name: str) -> list[Event]:
        """What one side has heard since the last call."""
        events, self.heard[name] = self.heard[name], []
        return events


REFERENCE = False
"""Whether both sides speak HTTP/2 by h2."""


def fresh(limits: SessionLimits | None = None) -> Pair:
    """Before the first byte."""
    limits = evolve(limits or SessionLimits(), reference=REFERENCE)
    a = Session(secret=DIALLER, ephemeral=bytes([7]) * 32, peer=public_key(LISTENER), limits=limits)
    b = Session(secret=LISTENER, ephemeral=bytes([9]) * 32, limits=limits)
    return Pair(a, b)


def established(limits: SessionLimits | None = None) -> Pair:
    """After the handshake; what was heard during it is forgotten."""
    pair = fresh(limits)
    pair.settle()
    assert pair.a.established
    assert pair.b.established
    pair.take("a")
    pair.take("b")
    return pair

"""What is counted on the network: by connection and by protocol, and over all connections that there ever were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from attrs import define, field

OTHER = "other"
"""Stands for all protocols that are not spoken here: a peer must not be able to make up names for us to remember."""


@define(eq=False)
class ProtocolCounts:
    """Of one protocol, both roles together."""

    opened: int = 0
    """Substreams, by either side."""
    refused: Counter[int] = field(factory=Counter)
    """By status, by either side."""
    resets: Counter[int] = field(factory=Counter)
    """By HTTP/2 error code (14: any that does not exist), by either side; the orderly end of a stream that is still
    sent on is one with code 0."""
    sent: int = 0
    """Bytes of messages."""
    received: int = 0

    def add(self, other: ProtocolCounts) -> None:
        self.opened += other.opened
        self.refused += other.refused
        self.resets += other.resets
        self.sent += other.sent
        self.received += other.received


@define(eq=False)
class ConnectionCounts:
    """Of one connection, or of several together."""

    sent: int = 0
    """Bytes on the carrier, as encrypted; of the handshake, what leaves with the first bytes behind it."""
    received: int = 0
    protocols: dict[str, ProtocolCounts] = field(factory=dict)

    def of(self, path: str, spoken: Collection[str]) -> ProtocolCounts:
        """To be counted up. What is opened by a peer and not in `spoken` is the protocol `OTHER`."""
        name = path if path in spoken or path in self.protocols else OTHER
        counts = self.protocols.get(name)
        if counts is None:
            counts = self.protocols[name] = ProtocolCounts()
        return counts

    def add(self, other: ConnectionCounts) -> None:
        self.sent += other.sent
        self.received += other.received
        for path, counts in other.protocols.items():
            self.protocols.setdefault(path, ProtocolCounts()).add(counts)


@define(eq=False)
class EndpointCounts:
    """Of one endpoint, from its beginning."""

    ended: ConnectionCounts = field(factory=ConnectionCounts)
    """All connections that are over, together."""
    connections: int = 0
    """That came up."""
    handshakes_failed: Counter[str] = field(factory=Counter)
    """By cause, of those who dialled us: the code of what they did wrong, `hung_up`, `too_slow`, `crowded_out`,
    `forbidden`, `busy`."""
    dials_failed: Counter[str] = field(factory=Counter)
    """By the error's code."""
    offences: Counter[str] = field(factory=Counter)
    """Connections that ended because the peer broke the protocol, by code; `frame_flood`, `bad_frame` and
    `answers_unread` are the guard's."""

    def total(self, up: Iterator[ConnectionCounts]) -> ConnectionCounts:
        """Those that are over and those that are `up` together."""
        total = ConnectionCounts()
        total.add(self.ended)
        for counts in up:
            total.add(counts)
        return total

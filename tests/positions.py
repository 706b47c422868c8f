"""Positions in every state: a real setup's facts, real transactions, and views of a chain that a test draws up."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256

from attrs import Factory, define, field, frozen

from node.chain.monitor import Seen, View
from node.eventstore.interface import NewEvent, Recorded
from node.position.commands import Command, place_order
from node.position.due import due
from node.position.events import CODEC, Event
from node.position.evolve import evolve
from node.position.facts import command_of
from node.position.state import Position, State
from protocols.contract.oracle import OLIVIA, Attestation, parse_attestation
from protocols.contract.signing import Signatures
from protocols.contract.terms import Role
from protocols.contract_setup import AttemptBegun, SignaturesHeld
from protocols.dialogue import Fact
from tests.setups import (
    ANNOUNCEMENT_SECRET,
    ATTESTATION_SECRET,
    MAKER,
    TAKER,
    Trader,
    announcement,
    nonces,
    order,
    setup_pair,
)

PEER = {Role.MAKER: bytes([1]) * 32, Role.TAKER: bytes([2]) * 32}
"""By our own role the counterparty's identity."""
TRADER: Mapping[Role, Trader] = {Role.MAKER: MAKER, Role.TAKER: TAKER}
ORDER_ID = order().order_id


@lru_cache(maxsize=1)
def facts() -> dict[Role, tuple[Fact, ...]]:
    """What both sides of one setup persist."""
    taking, making = setup_pair().run()
    assert (taking.error, making.error) == (None, None)
    return {Role.TAKER: tuple(taking.facts), Role.MAKER: tuple(making.facts)}


def fact(role: Role, kind: type[Fact]) -> Fact:
    return next(each for each in facts()[role] if isinstance(each, kind))


def commands(role: Role) -> list[Command]:
    """All commands of a setup, in order."""
    placed = [place_order(order(), role, PEER[role])] if role is Role.TAKER else []
    return placed + [command_of(each, PEER[role])[1] for each in facts()[role]]


@define
class History:
    """A position with all its events, as commands decide them."""

    role: Role
    position: Position = Factory(lambda: Position(id=ORDER_ID))
    events: list[Event] = field(factory=list)

    def do(self, *given: Command) -> list[Event]:
        """Each command in turn; returns the new events."""
        fresh: list[Event] = []
        for command in given:
            for event in command(self.position):
                self.position = evolve(self.position, event)
                fresh.append(event)
        self.events += fresh
        return fresh

    def state(self) -> State:
        return self.position.state


def history(role: Role, steps: int = 5) -> History:
    """After so many commands of the setup; all of them unless said otherwise."""
    made = History(role)
    made.do(*commands(role)[:steps])
    return made


def signatures(role: Role) -> Signatures:
    """The peer's, as this role holds them."""
    held = fact(role, SignaturesHeld)
    assert isinstance(held, SignaturesHeld)
    return held.signatures


def attestation(event: int, price: int) -> Attestation:
    """The oracle's word on one of the contract's events."""
    begun = fact(Role.MAKER, AttemptBegun)
    assert isinstance(begun, AttemptBegun)
    announced = announcement(begun.announcements[event].id)
    raw = OLIVIA.attest(announced.id, nonces(announced.id), ATTESTATION_SECRET, ANNOUNCEMENT_SECRET, price)
    attested = parse_attestation(raw, announced)
    assert attested is not None
    return attested


LAST = 24
"""The event that settles, of 25."""
LIQUIDATING, CALM = 44_000, 54_000
"""A price at which the long (the taker) has nothing left, and one that no event before the last pays out at."""


@frozen
class Chain:
    """A chain that a test draws up: heights by transaction, None for the mempool."""

    tip: int
    transactions: Mapping[bytes, tuple[bytes, int | None]] = field(factory=dict)

    def view(self) -> View:
        seen = {
            txid: Seen(txid, raw, height, None if height is None else block(height))
            for txid, (raw, height) in self.transactions.items()
        }
        return View(self.tip, block(self.tip), seen)


def block(height: int) -> bytes:
    return height.to_bytes(32, "big")


def wanted(made: History) -> dict[bytes, bytes]:
    """What is due, with everything at hand."""
    return due(made.position, TRADER[made.role].seed, signatures(made.role))


def view(tip: int, *placed: tuple[dict[bytes, bytes], int | None]) -> View:
    """A view at a tip; each of `placed` are transactions (id → bytes) and the height that they stand at."""
    return Chain(tip, {txid: (raw, at) for each, at in placed for txid, raw in each.items()}).view()


def recorded(new: NewEvent) -> Recorded:
    return Recorded(1, "position/00", 1, new.name, new.version, new.data, 0.0)


def shared(new: NewEvent) -> dict[bytes, bytes]:
    """What the store keeps of it beside it."""
    return {sha256(piece).digest(): piece for piece in new.contents}


def reread(event: Event) -> Event:
    """As it comes back from a store."""
    new = CODEC.encode(event)
    read: Event = CODEC.decode(recorded(new), shared(new))
    return read

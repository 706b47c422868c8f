"""Positions in the middle of a rollover or a close: facts of real dialogues, and what either side can publish then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from itertools import count
from typing import Any

from attrs import frozen
from bitcoin.core import CTransaction

from node.position.closing import punish
from node.position.commands import Command
from node.position.due import punishment
from node.position.events import Event
from node.position.facts import command_of
from node.position.observing import observe
from node.position.punishing import punishing
from protocols import settlement
from protocols.contract.schedule import HOUR
from protocols.contract.signing import complete_commit
from protocols.contract.terms import Role
from protocols.dialogue import Fact
from protocols.settlement import CheckClose, Contract, DecideClose, FetchAttestations, FindContract, FindPublished
from protocols.testing import End, Pair
from tests.positions import LAST, PEER, TRADER, History, attestation, history, view, wanted
from tests.rollovers import NOW, Node, Nodes, each
from tests.setups import secret

LOCKED = 200
"""The lock's height."""
SEEN = 210
"""That of what spends it."""
CLOSING = "60000"
ATTESTED = 60_000

Raw = dict[bytes, bytes]
"""Transactions by id."""


@frozen
class Rollovers:
    """So many rollovers, one after another, and what each side persisted in each."""

    nodes: Nodes
    facts: Mapping[Role, tuple[tuple[Fact, ...], ...]]

    def node(self, role: Role) -> Node:
        return self.nodes.maker if role is Role.MAKER else self.nodes.taker

    def records(self, role: Role, index: int = 0) -> list[Fact]:
        """Those of one rollover one by one, whether or not they were written together: R0 to R4."""
        return [part for fact in self.facts[role][index] for part in each(fact)]

    def commit(self, publisher: Role, index: int) -> Raw:
        """A contract's complete commit, as that side publishes it."""
        node, other = self.node(publisher), self.node(publisher.other)
        raw = complete_commit(node.plan(index), publisher, node.keys(index), other.given_signature(index))
        return identified(raw)


@lru_cache
def rollovers(times: int = 1) -> Rollovers:
    nodes = Nodes()
    facts: dict[Role, list[tuple[Fact, ...]]] = {role: [] for role in Role}
    for index in range(times):
        for node in nodes.both:
            node.now = NOW + index * 2 * HOUR
        pair = nodes.roll(index)
        assert (pair.a.error, pair.b.error) == (None, None)
        facts[Role.TAKER].append(tuple(pair.a.facts))
        facts[Role.MAKER].append(tuple(pair.b.facts))
    return Rollovers(nodes, {role: tuple(those) for role, those in facts.items()})


def identified(raw: bytes) -> Raw:
    return {CTransaction.deserialize(raw).GetTxid(): raw}


@lru_cache
def lock() -> Raw:
    return wanted(history(Role.MAKER))


def opened(role: Role) -> History:
    """The contract of the setup, its lock in a block."""
    made = history(role)
    see(made, tip=LOCKED)
    return made


def command(role: Role, fact: Fact) -> Command:
    return command_of(fact, PEER[role])[1]


def do(made: History, *facts: Fact) -> list[Event]:
    return made.do(*(command(made.role, fact) for fact in facts))


def rolled(role: Role, records: int | None = None, *, index: int = 0) -> History:
    """Open, and so many facts of the rollover of contract `index` on record; those before it are whole."""
    made = opened(role)
    run = rollovers(index + 1)
    for before in range(index):
        do(made, *run.facts[role][before])
    do(made, *run.facts[role][index][:records])
    return made


def see(
    made: History, raw: Raw | None = None, height: int | None = None, *, tip: int = SEEN, more: Raw | None = None
) -> list[Event]:
    """A look at a chain whose tip has this height: the lock is in its block, `raw` at `height` or in a mempool, and
    `more` in the mempool."""
    placed: list[tuple[Raw, int | None]] = [(lock(), LOCKED)]
    placed += [(raw, height)] if raw else []
    placed += [(more, None)] if more else []
    return made.do(observe(view(tip, *placed)))


def punished(made: History, fee: int = 1_000) -> Raw:
    """Sign the punishment of the commit that is out, as the keeper does; what is to be handed in then."""
    raw = punishing(made.position, TRADER[made.role].seed, fee)
    made.do(punish(CTransaction.deserialize(raw).GetTxid(), raw))
    return punishment(made.position)


# --- settlements ------------------------------------------------------------------------------------------------------


def _entropy(role: Role) -> Callable[[int], bytes]:
    draws = count()
    return lambda size: secret("entropy", role, next(draws))[:size]


def _settle(
    opener: Callable[[Contract], Any], index: int, answers: Mapping[Any, Any]
) -> Mapping[Role, tuple[Fact, ...]]:
    run = rollovers(index) if index else rollovers(1)
    contracts = {role: Contract(run.node(role).plan(index), run.node(role).keys(index).fund) for role in Role}
    found = {FindContract: lambda _: contracts[Role.MAKER], FindPublished: lambda _: contracts[Role.MAKER]}
    taking = End("taker", opener(contracts[Role.TAKER]), answers=answers)
    making = End("maker", settlement.maker(_entropy(Role.MAKER)), answers={**found, **answers})
    Pair(settlement.PROTOCOL.codec, taking, making).run()
    assert (taking.error, making.error) == (None, None)
    return {Role.TAKER: tuple(taking.facts), Role.MAKER: tuple(making.facts)}


@lru_cache
def close(price: str = CLOSING, index: int = 0) -> Mapping[Role, tuple[Fact, ...]]:
    """What each side persists while they close contract `index`."""
    agreed = {CheckClose: lambda _: None, DecideClose: lambda _: None}
    return _settle(lambda contract: settlement.taker_close(contract, price, _entropy(Role.TAKER)), index, agreed)


@lru_cache
def spend() -> Mapping[Role, tuple[Fact, ...]]:
    """While they spend the commit of contract 0 together, at the last event's price."""
    attested = tuple(attestation(LAST, ATTESTED) if event == LAST else None for event in range(LAST + 1))
    return _settle(settlement.taker_spend, 0, {FetchAttestations: lambda _: attested})


def completed(facts: Mapping[Role, tuple[Fact, ...]]) -> Raw:
    """The transaction that both signed."""
    made = facts[Role.TAKER][-1]
    assert isinstance(made, settlement.CloseComplete | settlement.SpendComplete)
    return identified(made.transaction)

"""Two sides of one open contract, what each wrote down, and settlements between them in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

from attrs import define, field

from protocols import settlement
from protocols.contract.oracle import Attestation
from protocols.contract.signing import transactions_of
from protocols.contract.terms import Role
from protocols.dialogue import Fact
from protocols.errors import LocalError
from protocols.settlement import (
    PROTOCOL,
    CheckClose,
    CloseSigned,
    Contract,
    DecideClose,
    FetchAttestations,
    FindContract,
    FindPublished,
)
from protocols.testing import End, Pair

from .deals import Deal, attestation, deal, digest
from .opened import PRICE, TERMS

DEAL = deal(TERMS)
PLAN = DEAL.plan
TRANSACTIONS = transactions_of(PLAN)
CLOSING = "60000"
"""The price that both take."""
ATTESTED: tuple[Attestation | None, ...] = (None, attestation(1, PRICE))


@define
class Trader:
    """One side's node: its facts, and the rules by which its position takes them."""

    role: Role
    facts: list[Fact] = field(factory=list)
    drawn: list[bytes] = field(factory=list)
    _draws: count[int] = field(factory=count)
    deal: Deal = DEAL
    attested: tuple[Attestation | None, ...] = ATTESTED

    def entropy(self, size: int) -> bytes:
        self.drawn.append(digest("entropy", self.role, next(self._draws)))
        return self.drawn[-1][:size]

    @property
    def closing(self) -> CloseSigned | None:
        return next((fact for fact in self.facts if isinstance(fact, CloseSigned)), None)

    def persist(self, fact: Fact) -> None:
        """One close; the same again is nothing new."""
        if isinstance(fact, CloseSigned) and (signed := self.closing):
            if (fact.price, fact.txid) != (signed.price, signed.txid):
                raise LocalError("other_close", "another close is signed")
        else:
            self.facts.append(fact)

    @property
    def contract(self) -> Contract:
        return Contract(self.deal.plan, self.deal.keys[self.role].fund, self.closing)

    def answers(self) -> dict[Any, Callable[[Any], Any]]:
        """What this node says to each question, if all is well."""
        plan = self.deal.plan
        published = plan.order_id, transactions_of(plan).commit_txid
        return {
            FindContract: lambda ask: self.contract if ask.order_id == plan.order_id else None,
            FindPublished: lambda ask: self.contract if (ask.order_id, ask.commit_txid) == published else None,
            DecideClose: lambda _: None,
            CheckClose: lambda _: None,
            FetchAttestations: lambda _: self.attested,
        }


@define
class Two:
    """Both sides; every settlement between them is a new pair, as after a crash."""

    taker: Trader = field(factory=lambda: Trader(Role.TAKER))
    maker: Trader = field(factory=lambda: Trader(Role.MAKER))

    def each(self) -> tuple[Trader, Trader]:
        return self.taker, self.maker

    def close(self, price: str = CLOSING, **answers: Mapping[Any, Any]) -> Pair:
        """A close about to begin; `taker` and `maker` replace single answers."""
        return self._pair(settlement.taker_close(self.taker.contract, price, self.taker.entropy), answers)

    def spend(self, **answers: Mapping[Any, Any]) -> Pair:
        return self._pair(settlement.taker_spend(self.taker.contract), answers)

    def _pair(self, opener: Any, answers: Mapping[str, Mapping[Any, Any]]) -> Pair:
        dialogues = {Role.TAKER: opener, Role.MAKER: settlement.maker(self.maker.entropy)}
        taking, making = (
            End(
                trader.role.value,
                dialogues[trader.role],
                answers={**trader.answers(), **answers.get(trader.role.value, {})},
                persist=trader.persist,
            )
            for trader in self.each()
        )
        return Pair(PROTOCOL.codec, taking, making)

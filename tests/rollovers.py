"""Two nodes that hold one contract, and rollovers between them in memory. What a node knows follows from its facts."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

from attrs import define, evolve, field

from protocols import rollover
from protocols.contract.keys import AttemptKeys, Points, attempt_keys
from protocols.contract.schedule import HOUR
from protocols.contract.signing import Signatures, sign_commit
from protocols.contract.terms import Role
from protocols.contract.transactions import ContractPlan
from protocols.contract_setup import Attempt, FetchAnnouncements, KnownPoints, Now, SetupComplete, SignaturesHeld
from protocols.dialogue import Fact
from protocols.errors import LocalError
from protocols.rollover import (
    PROTOCOL,
    Conditions,
    DecideRollover,
    FeedPrice,
    FindStanding,
    Progress,
    RevocationHeld,
    RevocationLeaves,
    RolloverBegun,
    RolloverComplete,
    RolloverHeld,
    Standing,
    Together,
)
from protocols.testing import End, Pair
from tests.setups import MAKER, ORACLE, TAKER, Trader, announcement, order, secret, setup_pair

TRADERS: dict[Role, Trader] = {Role.MAKER: MAKER, Role.TAKER: TAKER}
ORDER_ID = order().order_id
CONDITIONS = Conditions(funding_rate="-0.0005", price="54321.5")
FEED = Fraction(54_000)
MAX_RATE = "0.005"


@lru_cache
def contract() -> tuple[ContractPlan, dict[Role, tuple[Fact, ...]]]:
    """Contract 0, and what each side wrote down at its setup."""
    taker, maker = setup_pair().run()
    assert taker.result == maker.result
    return taker.result, {Role.TAKER: tuple(taker.facts), Role.MAKER: tuple(maker.facts)}


EXPIRY = contract()[0].announcements[-1].time
HOURS = 4
NOW = EXPIRY - (24 - HOURS) * HOUR - 1_000
"""A rollover begun now moves the expiry by HOURS."""


def each(fact: Fact) -> Iterator[Fact]:
    """A fact's parts, each a fact of its own."""
    if isinstance(fact, Together):
        for part in fact.facts:
            yield from each(part)
    else:
        yield fact


@define(eq=False)
class Node:
    """One side: its seed and its facts are all that a crash leaves."""

    role: Role
    facts: list[Fact] = field(factory=list)
    """Of rollovers, one by one."""
    now: int = NOW
    answers: dict[Any, Any] = field(factory=dict)
    """Instead of what the node would say."""
    _drawn: int = 0

    # what follows from the facts

    def about(self, index: int) -> Progress:
        """Of the rollover of contract `index`."""
        progress = Progress()
        for fact in self.facts:
            match fact:
                case RolloverBegun() if fact.index == index + 1:
                    progress = evolve(progress, begun=(*progress.begun, fact))
                case RolloverHeld() if fact.index == index + 1:
                    progress = evolve(progress, held=fact)
                case RolloverComplete() if fact.index == index + 1:
                    progress = evolve(progress, complete=fact)
                case RevocationLeaves() if fact.index == index:
                    progress = evolve(progress, leaves=fact)
                case RevocationHeld() if fact.index == index:
                    progress = evolve(progress, revocation=fact)
                case _:
                    pass
        return progress

    def records(self, index: int = 0) -> str:
        """Which of R0 to R4 are on disk."""
        progress = self.about(index)
        parts = (progress.begun, progress.held, progress.complete, progress.leaves, progress.revocation)
        return "".join(str(number) for number, part in enumerate(parts) if part)

    def plan(self, index: int) -> ContractPlan:
        """Of a contract whose signatures are held."""
        if index == 0:
            return contract()[0]
        held = self.about(index - 1).held
        assert held is not None
        return held.next.plan

    @property
    def index(self) -> int:
        """Of the last complete contract."""
        return sum(isinstance(fact, RolloverComplete) for fact in self.facts)

    def keys(self, index: int) -> AttemptKeys:
        if index == 0:
            return TRADERS[self.role].attempt(ORDER_ID).keys
        begun = self.about(index - 1).attempt(self.plan(index).party(self.role).points)
        return self.attempt(index, begun.salt).keys

    def signatures(self, index: int) -> Signatures:
        """The peer's refund and CET signatures."""
        if index == 0:
            return next(fact.signatures for fact in contract()[1][self.role] if isinstance(fact, SignaturesHeld))
        held = self.about(index - 1).held
        assert held is not None
        return held.signatures

    def commit_signature(self, index: int) -> bytes:
        """The peer's."""
        if index == 0:
            return next(fact.commit_signature for fact in contract()[1][self.role] if isinstance(fact, SetupComplete))
        complete = self.about(index - 1).complete
        assert complete is not None
        return complete.commit_signature

    def given_signature(self, index: int) -> bytes:
        """Of the commit, by us."""
        if index == 0:
            return sign_commit(self.plan(0), self.role, self.keys(0).fund)
        held = self.about(index - 1).held
        assert held is not None
        return held.commit_signature

    def standing(self, index: int) -> Standing:
        return Standing(
            plan=self.plan(index),
            keys=self.keys(index),
            oracle=ORACLE,
            predecessor_revoked=index == 0 or self.about(index - 1).revocation is not None,
            progress=self.about(index),
        )

    @property
    def points(self) -> frozenset[bytes]:
        """Every point that took part in any attempt."""
        plans = [contract()[0]]
        owns: list[Points] = []
        for fact in self.facts:
            if isinstance(fact, RolloverBegun):
                owns.append(fact.own)
            if isinstance(fact, RolloverBegun | RolloverHeld) and fact.next:
                plans.append(fact.next.plan)
        owns += [party.points for plan in plans for party in (plan.maker, plan.taker)]
        return frozenset(point for points in owns for _, point in points.each())

    # what a node does for a dialogue

    def _known(self, ask: KnownPoints) -> frozenset[bytes]:
        seen = {point[1:] for point in self.points}
        return frozenset(point for _, point in ask.points.each() if point[1:] in seen)

    def begin(self, standing: Standing) -> Attempt:
        self._drawn += 1
        index = standing.plan.index + 1
        return self.attempt(index, secret(TRADERS[self.role].name, "salt", index, self._drawn))

    def attempt(self, index: int, salt: bytes) -> Attempt:
        trader = TRADERS[self.role]
        setup_salt = trader.attempt(ORDER_ID).salt
        return Attempt(
            salt, attempt_keys(trader.seed, setup_salt=setup_salt, salt=salt, order_id=ORDER_ID, index=index)
        )

    def persist(self, fact: Fact) -> None:
        """As a position's commands would: one attempt is signed, a revocation leaves when its successor is complete."""
        facts = list(each(fact))
        for new in facts:
            match new:
                case RolloverHeld() if self.about(new.index - 1).held is not None:
                    raise LocalError("already_signed", "an attempt is signed")
                case RevocationLeaves() if self.about(new.index).complete is None:
                    raise LocalError("not_complete", "what follows is not complete")
                case _:
                    pass
        assert not any(old == new for old in self.facts for new in facts), "written twice"
        self.facts += facts

    def end(self, dialogue: Any) -> End:
        def find(ask: FindStanding) -> Standing | None:
            known = ask.order_id == ORDER_ID and self.index - 1 <= ask.index <= self.index
            return self.standing(ask.index) if known else None

        answers: dict[Any, Any] = {
            Now: lambda _: self.now,
            FindStanding: find,
            DecideRollover: lambda _: CONDITIONS,
            FeedPrice: lambda _: FEED,
            FetchAnnouncements: lambda ask: tuple(announcement(event) for event in ask.event_ids),
            KnownPoints: self._known,
        }
        return End(self.role.value, dialogue, answers={**answers, **self.answers}, persist=self.persist)


@define(eq=False)
class Nodes:
    """Both sides of one position, and each message that ever left either."""

    taker: Node = field(factory=lambda: Node(Role.TAKER))
    maker: Node = field(factory=lambda: Node(Role.MAKER))
    max_rate: str = MAX_RATE
    sent: dict[tuple[str, str, bytes], set[bytes]] = field(factory=dict)
    """By sender, kind of message and the taker's publish point of the attempt: its bytes."""

    @property
    def both(self) -> tuple[Node, Node]:
        return self.taker, self.maker

    def pair(self, index: int = 0) -> Pair:
        """A rollover of contract `index` about to begin, or to be resumed from what is on disk."""
        return Pair(
            PROTOCOL.codec,
            self.taker.end(rollover.taker(self.taker.standing(index), self.taker.begin, self.max_rate)),
            self.maker.end(rollover.maker(self.maker.begin)),
        )

    def note(self, pair: Pair) -> None:
        """Remember what left in a dialogue that is over."""
        if pair.a.sent:
            publish = pair.a.sent[0].publish  # type: ignore[attr-defined]  # the first message is the proposal
            for end in (pair.a, pair.b):
                for message in end.sent:
                    key = (end.name, type(message).__name__, publish)
                    self.sent.setdefault(key, set()).add(pair.codec.encode(message))

    def roll(self, index: int = 0) -> Pair:
        """A whole rollover, without faults."""
        pair = self.pair(index)
        pair.run()
        self.note(pair)
        return pair

"""What a rollover needs of its node, in either role: what is on record, the answers to its questions, and when nothing
more may be signed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction

import structlog
from attrs import field, frozen

from node.network.conversation import Host
from node.position.book import Positions
from node.position.commands import RefusedCommand
from node.position.deadlines import BEFORE_EXPIRY
from node.position.rolling import check_rollable
from node.position.standing import following, in_question, index_to_roll, standing
from node.position.state import Position
from node.prices import Feed
from node.setup import Answers, Refusal, SetupNode
from protocols import rollover
from protocols.codec import Rejected
from protocols.contract.keys import attempt_keys
from protocols.contract.numbers import parse_price
from protocols.contract.rolling import default_rate_bound
from protocols.contract.terms import Role
from protocols.contract.transactions import ContractPlan
from protocols.contract_setup import Attempt
from protocols.dialogue import Dialogue, Fact
from protocols.errors import Declined, LocalError, WorldError
from protocols.rollover import (
    Conditions,
    DecideRollover,
    FeedPrice,
    FindStanding,
    RolloverBegun,
    RolloverHeld,
    Standing,
    Together,
)

ORACLE_LATE = 600
"""Seconds of the calendar for which a rollover waits for an event that is past to be attested."""
BEGIN_EVERY = 60
"""Seconds of the calendar between two attempts at a rollover that a maker begins: each is kept for ever."""

log = structlog.get_logger("rollover")

Decide = Callable[[Position, ContractPlan], Awaitable[Conditions | Rejected]]


@frozen
class RolloverNode:
    """The services that a rollover asks are those of a setup; and the quotes, by symbol."""

    setup: SetupNode
    feeds: Mapping[str, Feed]
    _under_way: set[bytes] = field(init=False, factory=set)
    """Orders whose position a dialogue is about; a position has one at a time."""
    _begun_at: dict[bytes, int] = field(init=False, factory=dict)
    """By order the calendar's time at which the last attempt was begun."""

    @contextmanager
    def alone(self, order_id: bytes) -> Iterator[None]:
        """Raises `Declined` (busy) while another dialogue rolls this position over."""
        self._take(order_id)
        try:
            yield
        finally:
            self._under_way.discard(order_id)

    def _take(self, order_id: bytes) -> None:
        if order_id in self._under_way:
            raise Declined("busy", "a rollover of this position is under way already")
        self._under_way.add(order_id)

    def under_way(self, order_id: bytes) -> bool:
        return order_id in self._under_way

    def check_ready(self, symbol: str) -> None:
        """Raises WorldError or LocalError saying why the taker cannot begin a rollover now."""
        self.setup.check_oracle()
        self.setup.check_answering()
        self.setup.check_backup()
        self.feeds[symbol].fresh()

    def _check_oracle(self) -> None:
        """Raises `Declined` while our oracle does not answer; what it says of that is not for the peer."""
        try:
            self.setup.check_answering()
        except WorldError as silent:
            raise Declined("oracle_silent", "the oracle does not answer the maker at present") from silent

    # --- the two roles ------------------------------------------------------------------------------------------------

    async def taker(self, position: Position, max_rate: str | None) -> tuple[Dialogue[ContractPlan], Host]:
        """A rollover of this position, to be begun or to be finished; within `alone`.

        `max_rate`: the largest |funding rate| per 24 h that is accepted; None: by what it was opened at. Raises
        LocalError naming why there can be none, or WorldError.
        """
        if not position.rolling:
            contract = check_rollable(position)
            plan = position.plan(contract.index)
            await self.setup.check_undecided(plan, LocalError, late=ORACLE_LATE)  # before anything is on record
        assert position.offer is not None
        symbol = position.offer.symbol
        found = await self.standing(position, index_to_roll(position))
        bound = max_rate or default_rate_bound(position.offer.funding_rate)

        async def feed_price(_: FeedPrice) -> Fraction:
            quote = self.feeds[symbol].fresh()
            return (parse_price(quote.bid) + parse_price(quote.ask)) / 2

        host = self._host(position.peer, LocalError, {FeedPrice: feed_price})
        return rollover.taker(found, self.begin, bound), host

    @contextmanager
    def maker(self, peer: bytes, decide: Decide) -> Iterator[tuple[Dialogue[ContractPlan], Host]]:
        """The answer to one proposal of `peer`, of which it says the order on the way."""
        taken: list[bytes] = []

        async def find(ask: FindStanding) -> Standing | None:
            position = self._position(ask.order_id)
            if position is None or (position.peer, position.role) != (peer, Role.MAKER):
                return None
            if not in_question(position, ask.index):
                return None
            if following(position, ask.index) is None:
                _check_rollable(position)
                self._check_oracle()
            self._take(ask.order_id)
            taken.append(ask.order_id)
            return await self.standing(position, ask.index)

        async def decide_rollover(ask: DecideRollover) -> Conditions | Rejected:
            position = self._position(ask.plan.order_id)
            assert position is not None, "no position is forgotten until it was over for a while"
            return await decide(position, ask.plan)

        try:
            yield (
                rollover.maker(self._begin_in_turn),
                self._host(peer, Declined, {FindStanding: find, DecideRollover: decide_rollover}),
            )
        finally:
            self._under_way.difference_update(taken)

    # --- what is on record --------------------------------------------------------------------------------------------

    async def standing(self, position: Position, index: int) -> Standing:
        """Contract `index`, and what is on record of the one that follows. Raises WorldError."""
        signatures = None
        if following(position, index) is not None:
            signatures = await self.setup.positions.call(Positions.signatures, position.id, index + 1)
        return standing(position, index, signatures, seed=self.setup.seed, oracle=self.setup.oracle_keys)

    def begin(self, found: Standing) -> Attempt:
        """A salt, drawn anew, and the keys of the contract that follows; `fund` stays the setup's."""
        position = self._position(found.plan.order_id)
        assert position is not None, "no position is forgotten until it was over for a while"
        salt = self.setup.entropy(32)
        keys = attempt_keys(
            self.setup.seed,
            setup_salt=position.attempts[0].salt,
            salt=salt,
            order_id=position.id,
            index=found.plan.index + 1,
        )
        return Attempt(salt, keys)

    def _begin_in_turn(self, found: Standing) -> Attempt:
        """Raises `Declined` while the last attempt was begun just now."""
        last = self._begun_at.get(found.plan.order_id)
        if last is not None and (left := last + BEGIN_EVERY - self.setup.clock.calendar()) > 0:
            raise Declined("too_often", f"another rollover of this position may be begun in {left} s")
        return self.begin(found)

    def _position(self, order_id: bytes) -> Position | None:
        with self.setup.positions.lent() as positions:
            return positions.get(order_id)
        raise AssertionError("a recalled loan raises")

    # --- the host -----------------------------------------------------------------------------------------------------

    def _host(self, peer: bytes, refusal: Refusal, more: Answers) -> Host:
        async def persist(fact: Fact) -> None:
            for part in fact.facts if isinstance(fact, Together) else (fact,):
                if isinstance(part, RolloverHeld):
                    await self._check_in_time(part, refusal)
            await self.setup.positions.call(Positions.remember, fact, peer)
            if isinstance(fact, RolloverBegun):
                self._begun_at[fact.order_id] = self.setup.clock.calendar()

        return Host(answers={**self.setup.answers, **more}, persist=persist, compute=self.setup.compute)

    async def _check_in_time(self, held: RolloverHeld, refusal: Refusal) -> None:
        """Refuse to sign the next contract once the peer may know what either of the two pays out, or once there is no
        time left to finish."""
        self.setup.check_oracle()
        position = self._position(held.order_id)
        assert position is not None, "no position is forgotten until it was over for a while"
        old = position.plan(held.index - 1)
        left = old.announcements[-1].time - self.setup.clock.calendar()
        if left < BEFORE_EXPIRY:
            raise refusal("too_late", f"the contract expires in {left} s: too little to finish its rollover in")
        for plan in (old, held.next.plan):
            await self.setup.check_undecided(plan, refusal, late=ORACLE_LATE)


def _check_rollable(position: Position) -> None:
    """Raises `Declined`. That a record may be old is not for the peer to know: it could publish what is revoked."""
    try:
        check_rollable(position)
    except RefusedCommand as refusal:
        if refusal.code == "recovered":
            raise
        raise Declined(refusal.code, refusal.sentence) from refusal

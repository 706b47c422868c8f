"""What a settlement needs of its node, in either role: the contract that is to end, and what the oracle attested."""

from __future__ import annotations

import contextlib
from typing import Any

import trio
from attrs import frozen

from node.network.conversation import Host
from node.oracle.client import OracleClient, ask_of_each
from node.position.book import Positions
from node.position.closing import check_closable, check_spendable, fail_close
from node.position.commands import RefusedCommand
from node.position.state import Position
from node.setup import Answers, SetupNode
from protocols.contract.oracle import Attestation
from protocols.dialogue import Ask, Fact
from protocols.errors import CodedError, Declined
from protocols.settlement import CloseSigned, Contract, FetchAttestations, FindContract, FindPublished

CATCH_UP_WITHIN = 20.0
"""Seconds that a peer's proposal waits for a commit of ours to confirm in our own view: its block may come later."""

OTHER_CONTRACT = (
    "the taker holds another contract than we do: one of us has a record from before the last rollover. Who has the"
    " newer one may force close; that pays both"
)
SPEND_OFF = "cooperative_spend_off"
"""The code of who spends no commit together with its peers."""


@frozen
class SettlementNode:
    """Answers for the dialogues of `protocols.settlement`."""

    base: SetupNode
    """The services, the seed and the randomness."""
    cooperative_spend: bool = True
    """Whether this node spends published commits together with its peers."""

    def host(self, peer: bytes, more: Answers | None = None) -> Host:
        """The host of a settlement with `peer`; `more` are the answers that differ by role."""

        async def persist(fact: Fact) -> None:
            await self.base.positions.call(Positions.remember, fact, peer)

        async def find_contract(ask: FindContract) -> Contract | None:
            position = self.find(ask.order_id, peer)
            return None if position is None else self.to_close(position)

        async def find_published(ask: FindPublished) -> Contract | None:
            if not self.cooperative_spend:
                raise Declined(SPEND_OFF, "this node spends no commit together with a peer")
            position = await self._published(ask, peer)
            return None if position is None else self.to_spend(position)

        answers: dict[type[Ask[Any]], Any] = {
            FindContract: find_contract,
            FindPublished: find_published,
            FetchAttestations: self._attestations,
        }
        return Host(answers={**answers, **(more or {})}, persist=persist, compute=self.base.compute)

    def find(self, order_id: bytes, peer: bytes) -> Position | None:
        """Our position of this order with this peer; nobody learns of another's."""
        with self.base.positions.lent() as positions:
            position = positions.get(order_id)
        return None if position is None or position.peer != peer else position

    def to_close(self, position: Position) -> Contract:
        """Raises `Declined` when the position's state allows no close."""
        try:
            attempt = check_closable(position)
        except RefusedCommand as refusal:
            raise Declined(refusal.code, refusal.sentence) from refusal
        signed = position.closing
        closing = None if signed is None else CloseSigned(position.id, signed.price, signed.txid, position.close_raw)
        return Contract(position.plan(attempt.index), self._fund(position), closing)

    def to_spend(self, position: Position) -> Contract:
        """Of the commit that is confirmed. Raises `Declined` when it may not be spent together."""
        try:
            attempt = check_spendable(position)
        except RefusedCommand as refusal:
            raise Declined(refusal.code, refusal.sentence) from refusal
        if position.commit is None:
            raise Declined("commit_unconfirmed", "the commit has no confirmation yet")
        return Contract(position.plan(attempt.index), self._fund(position))

    async def note(self, order_id: bytes, error: CodedError) -> None:
        """Have it on record, once, that a taker refused its own close since one of the two records is old."""
        if error.code == "other_contract":
            refusal = fail_close(error.code, OTHER_CONTRACT, rejected=True)
            with contextlib.suppress(CodedError):
                await self.base.positions.call(Positions.record, order_id, refusal)

    def _fund(self, position: Position) -> bytes:
        return position.keys(0, self.base.seed).fund  # the same in every contract of a position

    async def _published(self, ask: FindPublished, peer: bytes) -> Position | None:
        """The position with this commit, once our own view of the chain shows a block with it, or shows none."""
        position = self.find(ask.order_id, peer)
        if position is None or ask.commit_txid not in {position.commit_txid(each) for each in position.claimable}:
            return None
        with self.base.positions.lent() as positions, trio.move_on_after(CATCH_UP_WITHIN):
            async for _ in positions.changed.changes():
                position = self.find(ask.order_id, peer)
                if position is None or position.commit is not None:
                    break
        return position

    async def _attestations(self, ask: FetchAttestations) -> tuple[Attestation | None, ...]:
        """Asks the oracle about past events alone, all at once."""
        now = self.base.clock.calendar()
        past = tuple(announcement for announcement in ask.announcements if announcement.time <= now)
        found = dict(zip(past, await ask_of_each(self.base.oracle, OracleClient.attestation, past), strict=True))
        return tuple(found.get(announcement) for announcement in ask.announcements)

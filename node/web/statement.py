"""The wallet's transactions, page by page, and which of them belong to a position."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import trio
from attrs import define, field

from node.core import Core
from node.position.book import Positions
from node.position.state import EndingKind, Position
from node.projections import Kept, Known, Projections
from node.wallet.interface import Statement, Transaction
from node.web.outlook import transactions_view
from node.web.paging import page_of
from protocols.errors import WorldError

View = dict[str, Any]
Uses = dict[str, View]
"""By transaction id, as people write it: the position's order id, and which of its transactions it is."""

ARCHIVED = 500
"""Positions of the archive, the newest, whose transactions are known as theirs."""


@define(eq=False)
class Ledger:
    """What the wallet's transactions are for. A position is looked at again when it is another one."""

    core: Core
    projections: Projections
    _live: dict[bytes, tuple[Position, Uses]] = field(factory=dict)
    _newest: int | None = None
    _archive: Uses = field(factory=dict)
    _archived: Kept[Uses] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._archived = Kept(self.core.clock, self._ask_archive)

    async def page(self, before: str | None, limit: int) -> View:
        """At most `limit` of the transactions, those behind `before` (an id in hex); `next` is the `before` of the page
        after, null on the last one. Raises FieldError for an id that is none of them, WorldError if nothing was ever
        known of the wallet."""
        known = await self.projections.statement.read()
        found = known.value.transactions
        chosen, following = page_of(found, lambda each: _shown(each.txid), limit, before, field="before")
        uses = await self._uses() if chosen else {}
        return {
            "transactions": [_transaction_view(each, known, uses) for each in chosen],
            "next": following,
            **known.age(self.core.clock.now()),
        }

    async def _uses(self) -> Uses:
        """What cannot be learned now is left out: the wallet's own part is worth showing without it."""
        uses: Uses = {}
        with suppress(WorldError):
            uses |= (await self._archived.read()).value
        try:
            positions = (await self.projections.positions.read()).value
        except WorldError:
            return uses
        live: dict[bytes, tuple[Position, Uses]] = {}
        for position in positions:
            known = self._live.get(position.id)
            if known is None or known[0] is not position:
                known = position, uses_of(position)
                await trio.lowlevel.checkpoint()  # they may be many, and others have something to do
            live[position.id] = known
            uses |= known[1]
        self._live = live
        return uses

    async def _ask_archive(self) -> Uses:
        newest = await self.core.positions.call(Positions.archived, None, 1)
        if newest and newest[0].id != self._newest:
            self._archive = {}
            for each in reversed(await self.core.positions.call(Positions.archived, None, ARCHIVED)):
                self._archive |= archived_uses(each.view)
            self._newest = newest[0].id
        return self._archive


def uses_of(position: Position) -> Uses:
    """By id, what the transactions of a position are."""
    return {each["txid"]: _use(position.id.hex(), each["kind"]) for each in transactions_view(position)}


def archived_uses(view: Mapping[str, Any]) -> Uses:
    """The same of one in the archive, from how it was shown last."""
    contract, paid = view.get("contract"), view.get("paid")
    if contract is None:
        return {}
    settlement = view.get("settlement") or {}
    named = {contract["lock_txid"]: "lock", contract["commit_txid"]: "commit"}
    if settlement.get("spend_txid"):
        named[settlement["spend_txid"]] = EndingKind.SPEND.value
    if paid is not None:
        named[paid["txid"]] = paid["kind"]
    return {txid: _use(view["order_id"], kind) for txid, kind in named.items()}


def _use(order_id: str, kind: str) -> View:
    return {"order_id": order_id, "kind": kind}


def _transaction_view(transaction: Transaction, known: Known[Statement], uses: Uses) -> View:
    txid, height = _shown(transaction.txid), transaction.height
    return {
        "txid": txid,
        "received": transaction.received,
        "spent": transaction.spent,
        "amount": transaction.received - transaction.spent,
        "fee": transaction.fee,
        "confirmations": 0 if height is None else known.value.height - height + 1,
        "height": height,
        "time": transaction.time,
        "of": uses.get(txid),
    }


def _shown(txid: bytes) -> str:
    return txid[::-1].hex()

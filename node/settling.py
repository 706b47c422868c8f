"""A taker's closes and cooperative spends: begun at its user's word, finished whatever happens in between."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio
from attrs import Factory, define, frozen

from node.close_price import closing_price, closing_quote, is_worse, worst_price
from node.errors import Conflict, Disconnected, FieldError, NotFound
from node.health import UNREPORTED, UP, Beating, Report, State
from node.network.connection import Connection
from node.network.conversation import speak
from node.oracle.client import OracleClient
from node.position.book import Positions
from node.position.closing import check_closable, fail_close, propose_close
from node.position.commands import RefusedCommand
from node.position.state import Position
from node.position.state import State as PositionState
from node.prices import Feed
from node.settlement import SPEND_OFF, SettlementNode
from node.setup import RECORD_WITHIN
from node.supervision import Service
from protocols import settlement
from protocols.contract.numbers import BadNumber
from protocols.errors import CodedError, LocalError, Refused, WorldError
from protocols.settlement import CheckClose

if TYPE_CHECKING:
    from node.taker import MakerLink

AGAIN = 60.0
"""Seconds until what the peer did not finish is proposed to it again; at once when it comes back before."""
MOVED = "price_moved"
RETRIES, RETRY_AFTER = 3, 1.0
"""Of a close whose price had moved, and after how many seconds each."""
DOWN = tuple(set(State) - set(UP))
INTERRUPTED = LocalError("interrupted", "the close was interrupted")

log = structlog.get_logger("settlement")


@frozen
class Proposed:
    """A close as the maker is asked for it; both USD."""

    price: str
    limit: str


@define(eq=False)
class Settler:
    """A service of the taker, whose started value is where its dialogues run."""

    node: SettlementNode
    feeds: Mapping[str, Feed]
    links: Mapping[bytes, Service[MakerLink]]
    """By the maker's identity."""
    close_band: str
    """The part of the price by which a close may be worse than the newest quote."""
    leave_liar: bool = True
    """Whether every open position is to be closed once the oracle has contradicted itself."""
    _turns: defaultdict[bytes, trio.Lock] = Factory(lambda: defaultdict(trio.Lock))
    """By order id: one settlement of a position at a time."""
    _unwanted: set[bytes] = Factory(set)
    """Positions whose maker spends no commit together with us."""

    async def run(
        self, *, report: Report = UNREPORTED, task_status: trio.TaskStatus[trio.Nursery] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Until cancelled. A close that was asked for and not signed in an earlier life is over: the price is old."""
        with self.node.base.positions.lent() as positions:
            for position in positions.all():
                if position.proposed is not None and position.closing is None and position.close_refusal is None:
                    await positions.execute(
                        position.id, fail_close(INTERRUPTED.code, INTERRUPTED.sentence, rejected=False)
                    )
            tended: set[bytes] = set()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._leave_liar, positions, nursery)
                task_status.started(nursery)
                async for _ in Beating(report, positions.changed.changes()):
                    for position in positions.all():
                        if position.id not in tended and self._unfinished(position) is not None:
                            tended.add(position.id)
                            nursery.start_soon(self._tend, positions, position.id, tended)

    # --- at the user's word -------------------------------------------------------------------------------------------

    def position(self, order_id: bytes) -> Position:
        with self.node.base.positions.lent() as positions:
            position = positions.get(order_id)
        if position is None:
            raise NotFound("no_such_position", f"there is no position {order_id.hex()}")
        return position

    def proposal(self, position: Position, limit: str | None = None) -> Proposed:
        """What a close would be proposed at now: by a fresh quote, or as it is signed already.

        Raises `Conflict` that says why there can be none, or `FieldError` for a limit that is no price.
        """
        try:
            check_closable(position)
        except RefusedCommand as refusal:
            raise Conflict(refusal.code, refusal.sentence) from refusal
        if position.closing is not None:
            signed = position.closing.price
            return Proposed(signed, position.proposed.limit if position.proposed is not None else signed)
        side = position.side
        assert position.offer is not None
        price = closing_price(side, closing_quote(self.feeds[position.offer.symbol]))
        if limit is None:
            return Proposed(price, worst_price(side, price, self.close_band))
        try:
            worse = is_worse(side, price, limit)
        except BadNumber as error:
            raise FieldError(error.field, str(error)) from error
        if worse:
            raise Conflict("beyond_limit", f"the closing price is {price} now, worse than the limit {limit}")
        return Proposed(price, limit)

    def link(self, position: Position) -> Service[MakerLink]:
        """Raises `Conflict` when the position's maker is not configured any more."""
        link = self.links.get(position.peer)
        if link is None:
            raise Conflict(
                "no_such_maker", f"maker {position.peer.hex()} is not configured; force close works without it"
            )
        return link

    def under_way(self, order_id: bytes) -> bool:
        return order_id in self._turns and self._turns[order_id].locked()

    async def close(
        self, order_id: bytes, limit: str | None, *, task_status: trio.TaskStatus[Proposed] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Close a position, at the quote's price that favours the maker or, if it is signed already, at that.

        Started once it is on record. Until then it raises `NotFound`, `Conflict`, `FieldError` or a `WorldError`;
        what becomes of it afterwards is the position's.
        """
        position, turn = self.position(order_id), self._turns[order_id]
        proposed, link = self.proposal(position, limit), self.link(position)
        with link.lent():
            pass  # a close on record that nobody can be asked for helps nobody
        try:
            turn.acquire_nowait()
        except trio.WouldBlock:
            raise Conflict("close_under_way", "the maker is being asked already") from None
        try:
            if position.closing is None:
                try:
                    position = await self.node.base.positions.call(
                        Positions.execute, order_id, propose_close(proposed.price, proposed.limit)
                    )
                except RefusedCommand as refusal:
                    raise Conflict(refusal.code, refusal.sentence) from refusal
            task_status.started(proposed)
            await self._carry_out(position, self._close)
            for _ in range(RETRIES):
                if not await self._moved(order_id, proposed.limit):
                    break
        finally:
            turn.release()

    async def _moved(self, order_id: bytes, limit: str) -> bool:
        """Whether the close broke because the price had moved, and was tried again at the present one, within the
        limit that the user gave or was shown."""
        await trio.sleep(RETRY_AFTER)  # both sides' quotes are of the same moment then
        position = self.position(order_id)
        if position.closing is not None or position.close_refusal is None or position.close_refusal[0] != MOVED:
            return False
        try:
            proposed = self.proposal(position, limit)
            position = await self.node.base.positions.call(
                Positions.execute, order_id, propose_close(proposed.price, proposed.limit)
            )
        except CodedError:
            return False  # why the first one failed is on record
        await self._carry_out(position, self._close)
        return True

    # --- until it is finished -----------------------------------------------------------------------------------------

    def _unfinished(self, position: Position) -> Callable[[Position], Awaitable[None]] | None:
        """What is to be proposed to the maker of a position, however often."""
        if position.peer not in self.links:
            return None
        if position.closing is not None and position.close_raw is None:
            try:
                check_closable(position)
            except RefusedCommand:
                pass
            else:
                return self._close
        if (
            self.node.cooperative_spend
            and position.commit is not None
            and position.attested is not None
            and not position.cheated
            and not position.cet_timelock_expired
            and position.spend_raw is None
            and position.ending is None
            and position.id not in self._unwanted
        ):
            return self._spend
        return None

    async def _tend(self, positions: Positions, order_id: bytes, tended: set[bytes]) -> None:
        """Propose until it is finished: every `AGAIN` seconds, and as soon as the maker is back."""
        asked = self.under_way(order_id)
        while (position := positions.get(order_id)) is not None and self._unfinished(position) is not None:
            link = self.links[position.peer]
            if asked:
                with trio.move_on_after(AGAIN):
                    await link.until(*DOWN)
            await link.until(*UP)
            async with self._turns[order_id]:
                position = positions.get(order_id)
                if position is not None and (settle := self._unfinished(position)) is not None:
                    await self._carry_out(position, settle)
            asked = True
        tended.discard(order_id)

    async def _leave_liar(self, positions: Positions, nursery: trio.Nursery) -> None:
        """Once the oracle contradicted itself, standing still would let the peer choose what it attests: offer closes.

        Proposed anew every `AGAIN` seconds until the maker takes them, or the contract is attested.
        """
        while self.leave_liar:
            try:
                await self.node.base.oracle.call(OracleClient.wait_distrusted)
            except Disconnected:
                await self.node.base.oracle.until(*UP)
                continue
            for position in positions.all():
                if position.state is PositionState.OPEN and not self.under_way(position.id):
                    nursery.start_soon(self._offer_close, position.id)
            await trio.sleep(AGAIN)

    async def _offer_close(self, order_id: bytes) -> None:
        log.warning("offering a close: the oracle contradicted itself", order=order_id.hex())
        try:
            await self.close(order_id, None)
        except CodedError as error:
            log.warning("no close can be offered", order=order_id.hex(), code=error.code, reason=error.sentence)

    async def _carry_out(self, position: Position, settle: Callable[[Position], Awaitable[None]]) -> None:
        try:
            await settle(position)
        except Exception:  # a bug that one settlement met must not take the others down
            log.exception("bug in a settlement", order=position.id.hex())

    async def _close(self, position: Position) -> None:
        """One close, whose failure is on record however it ends."""
        failure: CodedError | None = INTERRUPTED
        try:
            contract, connection = self.node.to_close(position), self._connection(position)
            price = position.closing.price if position.closing is not None else _proposed(position)
            dialogue = settlement.taker_close(contract, price, self.node.base.entropy)
            host = self.node.host(position.peer, {CheckClose: partial(self._check, position)})
            await speak(connection, settlement.PROTOCOL, dialogue, host)
            failure = None
            log.info("close signed", order=position.id.hex(), price=price)
        except CodedError as error:
            failure = error
            log.info("close ended", order=position.id.hex(), code=error.code, reason=error.sentence)
        finally:
            if failure is not None:
                with trio.move_on_after(RECORD_WITHIN, shield=True):
                    await self._failed(position.id, failure)

    async def _failed(self, order_id: bytes, error: CodedError) -> None:
        """While the store is away nothing can be recorded; the positions are gone through when it is back (`run`)."""
        rejected = isinstance(error, Refused)
        try:
            await self.node.base.positions.call(
                Positions.record, order_id, fail_close(error.code, error.sentence, rejected=rejected)
            )
        except WorldError as down:
            log.warning("a failed close is not on record yet", order=order_id.hex(), reason=down.sentence)

    async def _check(self, position: Position, ask: CheckClose) -> None:
        """The user's limit was looked at before the price was proposed. The market may move while the maker thinks."""
        side = position.side
        newest = closing_price(side, closing_quote(self.feeds[ask.terms.symbol]))
        allowed = worst_price(side, newest, self.close_band)
        if is_worse(side, ask.price, allowed):
            raise LocalError(
                "price_moved", f"the price moved: it is {newest} now, the close was to be at {ask.price}; close anew"
            )

    async def _spend(self, position: Position) -> None:
        """One try to spend the commit together; without it the CET pays the same when its lock is over."""
        try:
            connection = self._connection(position)
            dialogue = settlement.taker_spend(self.node.to_spend(position))
            await speak(connection, settlement.PROTOCOL, dialogue, self.node.host(position.peer))
            log.info("commit spent together", order=position.id.hex())
        except CodedError as error:
            log.info("cooperative spend ended", order=position.id.hex(), code=error.code, reason=error.sentence)
            if isinstance(error, Refused) and error.code == SPEND_OFF:
                self._unwanted.add(position.id)

    def _connection(self, position: Position) -> Connection:
        with self.link(position).lent() as link:
            return link.connection
        raise AssertionError("a recalled loan raises")


def _proposed(position: Position) -> str:
    assert position.proposed is not None, "a close is proposed at a price that is on record"
    return position.proposed.price

"""What a position is worth now, what happens to it next, and its transactions: for people."""

from __future__ import annotations

from typing import Any

from attrs import define, field

from node.clock import Clock
from node.close_price import brings, closing_price
from node.core import Core
from node.position.state import EndingKind, Placed, Position, State
from node.prices import Feed, Quote
from protocols.contract.terms import Role

View = dict[str, Any]

WORTH = frozenset({State.OPEN, State.ROLLING_OVER, State.CLOSING, State.FORCE_CLOSING, State.COMMITTED})
"""The states in which the market's price moves what the position pays."""
EACH = 0.005
"""Seconds of pause for each position after all were looked at: many must not keep the node busy."""


def value_view(position: Position, feed: Feed | None) -> View | None:
    """What closing at the last quote would bring our side, in satoshis; None where that moves nothing any more.

    `payout` is the contract's: margin + account + pnl; `paid` holds what comes back of the fees as well."""
    if feed is None or feed.quote is None or position.contract is None or position.state not in WORTH:
        return None
    taker_side = position.side if position.role is Role.TAKER else position.side.other
    price = closing_price(taker_side, feed.quote)
    found = brings(position.plan(position.contract.index), position.role, price)
    return {
        "price": price,
        "as_of": feed.quote.since,
        "pnl": found.pnl,
        "account": found.account,
        "payout": found.payout,
        "fees_back": found.fees_back,
        "paid": found.paid,
    }


@define(eq=False)
class Values:
    """The `value_view` of every position that has one, made anew when the position or its quote is another one."""

    core: Core
    _last: dict[bytes, tuple[Position, Quote | None, View | None]] = field(factory=dict)
    _again_at: float = 0.0

    def by_id(self, positions: tuple[Position, ...]) -> dict[str, View]:
        now = self.core.clock.now()
        if self._again_at <= now or self._again_at > now + 60:  # the clock may have been set
            self._look(positions)
            self._again_at = now + EACH * len(positions)
        return {order_id.hex(): view for order_id, (_, _, view) in self._last.items() if view is not None}

    def _look(self, positions: tuple[Position, ...]) -> None:
        last, self._last = self._last, {}
        for position in positions:
            if position.offer is None or position.ended:
                continue
            feed = self.core.feeds.get(position.offer.symbol)
            quote = feed.quote if feed is not None else None
            known = last.get(position.id)
            if known is None or known[0] is not position or known[1] is not quote:
                known = position, quote, value_view(position, feed)
            self._last[position.id] = known


def transactions_view(position: Position) -> list[View]:
    """In the order of the position's life: kind, id, and the height of the block that it is in, if it is in one."""
    if position.contract is None:
        return []
    found = [_transaction("lock", position.transactions(0).lock_txid, position.lock)]
    if position.closing is not None:
        found.append(_transaction("close", position.closing.txid, None))
    if position.commit_seen is not None or position.publishing is not None:
        commit = position.transactions().commit_txid
        found.append(_transaction("commit", commit, position.commit))
    if position.spend is not None:
        found.append(_transaction("spend", position.spend.txid, None))
    if position.ending is not None:
        ending = position.ending
        found = [each for each in found if each["txid"] != ending.txid[::-1].hex()]
        found.append(_transaction(ending.kind.value, ending.txid, ending.confirmed))
        if ending.kind is not EndingKind.CLOSE:  # what was signed and is spent otherwise never comes
            found = [each for each in found if each["kind"] != "close"]
    return found


def _transaction(kind: str, txid: bytes, placed: Placed | None) -> View:
    return {"kind": kind, "txid": txid[::-1].hex(), "height": placed.height if placed is not None else None}


def next_view(position: Position, clock: Clock, rollover: View | None = None) -> View:
    """What happens next, in words, and when if that is known (seconds since 1970, on the wall clock)."""
    sentence, calendar = _next(position, rollover or {})
    at = None if calendar is None else round(clock.now() + clock.wall_seconds(calendar - clock.calendar()))
    return {"sentence": sentence, "at": at}


def _next(position: Position, rollover: View) -> tuple[str, int | None]:
    """With the moment in the oracle's calendar."""
    expiry = position.plan(position.present.index).announcements[-1].time if position.present is not None else None
    if position.unknown_commit is not None and position.ending is None:
        return (
            "a newer contract of it is out, which its record does not know: the peer's node publishes the payout",
            None,
        )
    if position.recovered and not position.ended:
        return "it was restored from a backup: the peer's word or yours decides how it goes on", None
    match position.state:
        case State.ORDERED:
            return "the maker answers the order", None
        case State.SETTING_UP:
            return "both sides sign the contract; no coin has moved yet", None
        case State.OPENING:
            return "the lock confirms in a block; then the position is open", None
        case State.ABANDONING:
            return "the lock came to nothing: a coin of it is spent back, and after six blocks all are free again", None
        case State.OPEN if rollover.get("next_try") is not None:
            return "it rolls over by itself as soon as it may; else it settles at expiry", rollover.get("from")
        case State.OPEN:
            return "it settles at expiry, at the oracle's price, unless it is rolled over or closed before", expiry
        case State.ROLLING_OVER:
            return "the rollover is being finished; both contracts hold until it is", expiry
        case State.CLOSING:
            half = position.close_raw is None and position.ending is None
            return "the maker signs the close" if half else "the close confirms in a block, and pays both sides", None
        case State.FORCE_CLOSING:
            return "the commit confirms in a block; then the oracle's price at expiry decides", expiry
        case State.COMMITTED:
            return "the oracle attests the price at expiry; then the payout follows", expiry
        case State.SETTLING:
            sentence = "the payout confirms in a block" if position.ending is not None else _waits_for_lock(position)
            return sentence, None
        case State.REFUNDING:
            return "the refund confirms in a block", None
        case State.PUNISHING:
            return "the peer published a revoked commit: all of it is taken", None
        case _:
            return "nothing: it is over", None


def _waits_for_lock(position: Position) -> str:
    assert position.terms is not None
    if position.commit is None:
        return "the price is attested: the commit confirms, and the payout follows once its lock is over"
    return (
        f"the payout goes out together with the peer, or by itself up to {position.terms.timelocks.settlement} blocks "
        "after the commit"
    )

"""Offers and positions as the API shows them: amounts in satoshis, prices and rates as decimal strings, ids in hex."""

from __future__ import annotations

from typing import Any

from attrs import asdict

from node.chain.broadcast import Attempt
from node.close_price import brings
from node.network.connection import Connection
from node.position.archive import Archived
from node.position.deadlines import CLOSE_WITHIN
from node.position.state import Ending, EndingKind, Position
from node.prices import Feed
from protocols.contract.outcomes import covering, liquidation_price
from protocols.contract.payout import Payout
from protocols.contract.terms import Role, Terms
from protocols.offers import STALE_AFTER, Offer


def offer_view(offer: Offer) -> dict[str, Any]:
    return {
        "id": offer.id.hex(),
        "symbol": offer.symbol,
        "maker_side": offer.side.value,
        "taker_side": offer.side.other.value,
        "price": offer.price,
        "min_quantity": offer.min_quantity,
        "max_quantity": offer.max_quantity,
        "lot": offer.lot,
        "leverages": list(offer.leverages),
        "maker_leverage": offer.maker_leverage,
        "opening_fee": offer.opening_fee,
        "funding_rate": offer.funding_rate,
        "fee_rate": offer.fee_rate,
        "timelocks": asdict(offer.timelocks),
        "oracle": offer.oracle.scheme,
        "tolerance_near": offer.tolerance_near,
        "tolerance_far": offer.tolerance_far,
        "created": offer.created,
        "stale_at": offer.created + STALE_AFTER,
    }


def quote_view(feed: Feed, now: float) -> dict[str, Any]:
    """Prices in USD, times in seconds since 1970; `reason` says why no price may be made from it now."""
    quote, problem = feed.quote, feed.problem()
    return {
        "symbol": feed.symbol,
        "bid": quote.bid if quote else None,
        "ask": quote.ask if quote else None,
        "at": quote.at if quote else None,
        "received_at": quote.received_at if quote else None,
        "age": max(0.0, now - quote.since) if quote else None,
        "stale": problem is not None,
        "stale_at": feed.stale_at if quote else None,
        "reason": problem,
    }


def peer_view(connection: Connection) -> dict[str, Any]:
    """A peer that is connected now; `latency` in seconds, of the last sign of life that was asked for."""
    return {"identity": str(connection.peer), "dialled": connection.dialled, "latency": connection.latency}


def position_view(position: Position, broadcasts: dict[bytes, Attempt]) -> dict[str, Any]:
    """One position from this node's side."""
    offer = position.offer
    assert offer is not None
    view: dict[str, Any] = {
        "order_id": position.id.hex(),
        "state": position.state.value,
        "placed_at": position.placed_at,
        "changed_at": position.changed_at,
        "role": position.role.value,
        "counterparty": position.peer.hex(),
        "symbol": offer.symbol,
        "side": position.side.value,
        "quantity": position.quantity,
        "price": offer.price,
        "taker_leverage": position.leverage,
        "refusal": None,
        "contract": None,
        "rollover": None,
        "closing": None,
        "settlement": None,
        "paid": None,
        "recovered": position.recovered,
        "overridden": position.overridden,
    }
    view["refusal"] = _refusal_view(position.refusal)
    if position.terms is not None:
        terms = position.terms
        view |= {
            "margin": terms.margin(position.role),
            "pool": terms.pool,
            "account": terms.account(position.role),
            "liquidation_price": liquidation_price(terms, position.side),
        }
    if position.contract is not None:
        view["contract"] = _contract_view(position, broadcasts)
        view["rollover"] = _rollover_view(position)
        view["closing"] = _closing_view(position)
        view["settlement"] = _settlement_view(position)
    if position.ending is not None:
        view["paid"] = _ending_view(position, position.ending)
    return view


def archived_view(archived: Archived) -> dict[str, Any]:
    """One that is in the archive, as it was shown last."""
    return {**archived.view, "archived_at": archived.archived_at}


def _contract_view(position: Position, broadcasts: dict[bytes, Attempt]) -> dict[str, Any]:
    transactions = position.transactions()
    settles = transactions.plan.announcements[-1]
    kept = {"lock": transactions.lock_txid, "commit": transactions.commit_txid}
    if position.closing is not None:
        kept["close"] = position.closing.txid
    if position.spend is not None:
        kept["spend"] = position.spend.txid
    return {
        "index": transactions.plan.index,
        "expiry": settles.time,
        "event": settles.id,
        "oracle": settles.scheme,
        "cets": len(transactions.outcomes),
        "terms": _terms_view(transactions.plan.terms),
        "lock_txid": _hex(transactions.lock_txid),
        "lock_height": position.lock.height if position.lock else None,
        "commit_txid": _hex(transactions.commit_txid),
        "commit_height": position.commit.height if position.commit else None,
        "commit_reason": position.publishing.reason if position.publishing else None,
        "broadcasts": {
            name: {"at": broadcasts[txid].at, "refused": broadcasts[txid].reason}
            for name, txid in kept.items()
            if txid in broadcasts
        },
    }


def _rollover_view(position: Position) -> dict[str, Any]:
    """What is under way, and why the last one did not come about."""
    contract = position.contract
    assert contract is not None
    return {
        "contracts": contract.index + 1,
        "funding_rate": contract.funding_rate or None,
        "under_way": position.attempts[-1].index if position.rolling and not position.ended else None,
        "own_revoked": position.own_revoked,
        "peer_revoked": len(position.peer_secrets),
        "refusal": None if position.ended else _refusal_view(position.rollover_refusal),
    }


def _closing_view(position: Position) -> dict[str, Any] | None:
    """What was proposed, and how far it came: `asked`, or `refused` with its reason; `half signed` once our signature
    left, from where on there is no other close and the taker proposes this one again; `signed` once we hold both
    sides'. What it pays us is in satoshis. At `commit_at` the commit goes out if nothing spent the lock until then."""
    if position.proposed is None and position.closing is None:
        return None
    signed, proposed, refusal = position.closing, position.proposed, position.close_refusal
    if signed is not None:
        stage = "half signed" if position.close_raw is None else "signed"
    else:
        stage = "asked" if refusal is None else "refused"
    price = signed.price if signed is not None else proposed.price if proposed is not None else ""
    waits = signed is not None and position.publishing is None and position.ending is None and not position.recovered
    assert position.contract is not None
    return {
        "stage": stage,
        "price": price,
        "limit": proposed.limit if proposed is not None else None,
        "pays": brings(position.plan(position.contract.index), position.role, price).paid,
        "commit_at": position.closing_since + CLOSE_WITHIN if waits else None,
        "signed_at": position.closing_since if signed is not None else None,
        "txid": _hex(signed.txid) if signed is not None else None,
        "refusal": _refusal_view(refusal) if stage != "signed" else None,
    }


def _refusal_view(refusal: tuple[str, str] | None) -> dict[str, str] | None:
    return None if refusal is None else {"code": refusal[0], "sentence": refusal[1]}


def _terms_view(terms: Terms) -> dict[str, Any]:
    """All that the payouts follow from, so that anyone can compute them again."""
    return {
        "symbol": terms.symbol,
        "quantity": terms.quantity,
        "price": terms.price,
        "maker_side": terms.maker_side.value,
        "maker_leverage": terms.maker_leverage,
        "taker_leverage": terms.taker_leverage,
        "maker_account": terms.maker_account,
        "fee_rate": terms.fee_rate,
        "timelocks": asdict(terms.timelocks),
        "reference": terms.reference,
        "tolerance_near": terms.tolerance_near,
        "tolerance_far": terms.tolerance_far,
    }


def _settlement_view(position: Position) -> dict[str, Any] | None:
    """What the contract says for the attested price, before any of it is on the chain.

    Without a price, when the peer's CET told of the outcome before the oracle did.
    """
    attested, transactions = position.attested, position.transactions()
    if attested is not None:
        outcome = covering(transactions.outcomes, attested.event, attested.price)
    elif position.ending is not None and position.ending.kind is EndingKind.CET:
        cet = position.ending.txid
        outcome = next((each for each in transactions.outcomes if transactions.cet(each).GetTxid() == cet), None)
    else:
        return None
    if outcome is None:
        return None
    terms = transactions.plan.terms
    payouts = Payout(terms).split(outcome.long)
    return {
        "event": transactions.plan.announcements[outcome.event].id,
        "price": attested.price if attested is not None else None,
        "prices": [outcome.low, outcome.high],
        "maker_payout": payouts[Role.MAKER],
        "taker_payout": payouts[Role.TAKER],
        "liquidated": next((terms.side(role).value for role in Role if payouts[role] == 0), None),
        "cet_txid": _hex(transactions.cet(outcome).GetTxid()),
        "spend_txid": _hex(position.spend.txid) if position.spend is not None else None,
    }


def _ending_view(position: Position, ending: Ending) -> dict[str, Any]:
    return {
        "kind": ending.kind.value,
        "txid": _hex(ending.txid),
        "maker_payout": ending.maker_payout,
        "taker_payout": ending.taker_payout,
        "payout": ending.payout(position.role),
        "final": ending.confirmed is not None,
        "height": ending.confirmed.height if ending.confirmed else None,
    }


def _hex(txid: bytes) -> str:
    """A transaction id as people and chain servers write it."""
    return txid[::-1].hex()

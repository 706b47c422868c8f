"""Closing a position together with its peer, in the API: takers close, makers answer."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from node.close_price import brings
from node.errors import Conflict, Disconnected
from node.position.state import Position
from node.taker import Taker
from node.web.node_api import HexId


class CloseIn(BaseModel):
    """A close to propose."""

    model_config = ConfigDict(extra="forbid", strict=True)

    limit: str | None = Field(
        default=None,
        description="USD, the worst price that is good enough; a little worse than the present one unless given",
    )


def taker_close_router(taker: Taker) -> APIRouter:
    router = APIRouter(prefix="/api/v1")
    settler = taker.settler

    @router.get("/positions/{order_id}/close")
    async def preview(order_id: HexId) -> dict[str, Any]:
        """At what the position would be closed now, and what that brings us; or the `problem`, why it cannot be."""
        position = settler.position(bytes.fromhex(order_id))
        view: dict[str, Any] = {"price": None, "limit": None, "problem": None, **_age(position)}
        try:
            proposed = settler.proposal(position)
            view |= {"price": proposed.price, "limit": proposed.limit, **_brings(position, proposed.price)}
            with settler.link(position).lent():
                pass
            if settler.under_way(position.id):
                raise Conflict("close_under_way", "the maker is being asked already")
        except (Conflict, Disconnected) as error:
            view["problem"] = {"code": error.code, "sentence": error.sentence}
        return view

    @router.post("/positions/{order_id}/close", status_code=202)
    async def close(order_id: HexId, said: CloseIn | None = None) -> dict[str, Any]:
        """Propose it. It is on record when this answers; what becomes of it is the position's `closing`."""
        proposed = await taker.close(bytes.fromhex(order_id), said.limit if said is not None else None)
        return {
            "order_id": order_id,
            "position": f"/api/v1/positions/{order_id}",
            "price": proposed.price,
            "limit": proposed.limit,
        }

    def _age(position: Position) -> dict[str, Any]:
        """Of which moment the price is: of the quote's, or of the signature that left for it."""
        assert position.offer is not None
        feed = taker.core.feeds.get(position.offer.symbol)
        quote = feed.quote if feed is not None else None
        at = position.closing_since if position.closing is not None else quote.since if quote is not None else None
        return {"as_of": at, "age": max(0.0, taker.core.clock.now() - at) if at is not None else None}

    return router


def maker_close_router() -> APIRouter:
    router = APIRouter(prefix="/api/v1")

    @router.get("/positions/{order_id}/close")
    @router.post("/positions/{order_id}/close")
    async def close(order_id: HexId) -> None:
        raise Conflict("takers_close", "closes are proposed by takers; a maker answers them, and may force close")

    @router.post("/positions/{order_id}/rollover")
    async def roll_over(order_id: HexId) -> None:
        raise Conflict("takers_roll_over", "rollovers are proposed by takers; a maker answers them")

    return router


def _brings(position: Position, price: str) -> dict[str, Any]:
    """In satoshis, of our side; payout = margin + account + pnl, and what the close pays us = payout + fees_back."""
    assert position.contract is not None
    found = brings(position.plan(position.contract.index), position.role, price)
    return {
        "margin": found.margin,
        "account": found.account,
        "pnl": found.pnl,
        "payout": found.payout,
        "fees_back": found.fees_back,
        "fee": found.fee,
        "paid": found.paid,
    }

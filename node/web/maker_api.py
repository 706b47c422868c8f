"""The maker's part of the API: what is at stake, offers set and withdrawn. Requests and policy: `desk_api`."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from node.errors import FieldError
from node.maker import Maker
from node.offer_book import OfferBook, Wish
from node.projections import Projections
from node.quoting import Quoted
from node.rules import exposure, stakes_of
from node.values import Symbol
from node.web.node_api import HexId
from node.web.views import offer_view
from protocols.contract.numbers import BadNumber
from protocols.contract.terms import SYMBOL, Side


class OfferIn(BaseModel):
    """An offer to set. It replaces the one that stands for the same symbol and side, and stands for ten minutes."""

    model_config = ConfigDict(extra="forbid", strict=True)

    symbol: Symbol = SYMBOL
    side: Literal["long", "short"] = Field(description="the maker's side")
    price: str | None = Field(default=None, description="USD, a decimal string with at most 2 places")
    spread: str | None = Field(
        default=None,
        description="in the place of a price, the part of it by which the offer stays away from the market's quote, "
        "such as 0.0025; the offer then follows the market until it is withdrawn",
    )
    min_quantity: int | None = Field(default=None, description="contracts; the lot unless said otherwise")
    max_quantity: int | None = Field(default=None, description="contracts; the policy's most unless said otherwise")
    leverages: list[int] | None = Field(default=None, description="the taker's choices")
    opening_fee: int = Field(default=0, description="satoshis, taker to maker")
    funding_rate: str = Field(default="0", description="per 24 h; positive: long pays short")
    tolerance_near: str = "0.002"
    tolerance_far: str = "0.01"


def maker_router(maker: Maker, projections: Projections) -> APIRouter:
    router = APIRouter(prefix="/api/v1")
    core = maker.core

    @router.get("/maker")
    async def about() -> dict[str, Any]:
        """The address for takers, what is at stake over all positions, and by symbol why no offer stands if so."""
        known = await projections.positions.read()
        exposed = exposure(stakes_of(known.value))
        return {
            "address": str(maker.address),
            "exposure": {symbol: exposed[symbol] for symbol in core.feeds},
            "max_exposure": maker.desk.policy.max_exposure,
            "quoted": [quoted_view(quoted) for quoted in maker.quoting.all()],
            "withdrawn": dict(maker.board.held),
            **known.age(core.clock.now()),
        }

    @router.get("/offers")
    async def offers() -> list[dict[str, Any]]:
        return [offer_view(offer) for offer in maker.board.standing()]

    @router.post("/offers", status_code=201)
    async def set_offer(said: OfferIn) -> dict[str, Any]:
        """The offer, or for a spread: the offer that follows the market, with the reason if it cannot stand now."""
        core.setup.check_ready()  # who cannot serve an order offers nothing
        wish = Wish(
            symbol=said.symbol,
            side=Side(said.side),
            min_quantity=said.min_quantity,
            max_quantity=said.max_quantity,
            leverages=tuple(said.leverages) if said.leverages is not None else None,
            opening_fee=said.opening_fee,
            funding_rate=said.funding_rate,
            tolerance_near=said.tolerance_near,
            tolerance_far=said.tolerance_far,
        )
        try:
            if said.spread is not None and said.price is None:
                return quoted_view(await maker.offers.call(OfferBook.follow, wish, said.spread))
            if said.price is not None and said.spread is None:
                return offer_view(await maker.offers.call(OfferBook.put, wish, said.price))
        except BadNumber as error:
            raise FieldError(error.field, str(error)) from error
        raise FieldError("price", "price: an offer has either a price or a spread")

    @router.delete("/offers/{offer_id}")
    async def withdraw(offer_id: HexId) -> dict[str, Any]:
        """An offer that follows the market does not come back."""
        return offer_view(await maker.offers.call(OfferBook.withdraw, bytes.fromhex(offer_id)))

    @router.delete("/quoted/{symbol}/{side}")
    async def stop_quoting(symbol: str, side: Side) -> dict[str, Any]:
        """No offer of this symbol and maker's side follows the market any more; the one that stands is withdrawn."""
        return quoted_view(await maker.offers.call(OfferBook.drop, symbol, side))

    return router


def quoted_view(quoted: Quoted) -> dict[str, Any]:
    return {
        "symbol": quoted.pattern.symbol,
        "maker_side": quoted.pattern.side.value,
        "spread": quoted.spread,
        "offer": offer_view(quoted.offer) if quoted.offer is not None else None,
        "reason": quoted.reason,
    }

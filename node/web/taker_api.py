"""The taker's part of the API: what makers offer, and orders."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field, model_validator

from node.preview import order_view
from node.projections import Projections
from node.taker import Taker
from node.values import Symbol
from node.web.node_api import HexId
from protocols.contract.terms import Side
from protocols.errors import WorldError
from protocols.offers import STALE_AFTER, Offer


class MakerIn(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    address: str = Field(max_length=400, description="64 hex digits, @, host and port: what the maker tells its takers")


class OrderIn(BaseModel):
    """An order: from the offer of that id, or from the best one there is for that symbol and side.

    An offer's id changes whenever it is priced anew; symbol, side and limit stay what the user meant."""

    model_config = ConfigDict(extra="forbid", strict=True)

    offer_id: str | None = Field(default=None, pattern="^[0-9a-f]{32}$")
    symbol: Symbol | None = None
    side: Literal["long", "short"] | None = Field(default=None, description="ours")
    limit: str | None = Field(default=None, description="USD, the worst price of an offer that is good enough")
    maker: str | None = Field(default=None, pattern="^[0-9a-f]{64}$", description="whose offer; may be left out")
    quantity: int = Field(description="contracts", ge=1, le=10**12)
    leverage: int = Field(description="ours, one of the offer's choices", ge=1, le=1000)

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        named = [name for name in ("symbol", "side", "limit") if getattr(self, name) is not None]
        if (self.offer_id is None) != (len(named) == 3) or (self.offer_id is not None and named):
            raise ValueError("an order names either offer_id, or symbol, side and limit")
        return self


def taker_router(taker: Taker, projections: Projections) -> APIRouter:
    router = APIRouter(prefix="/api/v1")

    def find(order: OrderIn) -> tuple[bytes, Offer]:
        maker = bytes.fromhex(order.maker) if order.maker else None
        if order.offer_id is not None:
            return taker.offer(maker, bytes.fromhex(order.offer_id))
        assert order.symbol is not None
        assert order.limit is not None
        return taker.find(maker, order.symbol, Side(order.side), order.limit)

    @router.get("/makers")
    async def makers() -> list[dict[str, Any]]:
        """Every maker of the configuration, and what is known of it now."""
        return [maker_view(taker, identity) for identity in taker.links]

    @router.post("/makers", status_code=201)
    async def add_maker(said: MakerIn) -> dict[str, Any]:
        """Keep a link to a maker, from now on and after a restart."""
        try:
            identity = await taker.add_maker(said.address)
        except OSError as error:
            raise _not_kept(error) from error
        return maker_view(taker, identity)

    @router.delete("/makers/{identity}", status_code=204)
    async def remove_maker(identity: Annotated[str, Path(pattern="^[0-9a-f]{64}$")]) -> None:
        """Keep none any more; 409 while a position with that maker goes on."""
        try:
            await taker.remove_maker(bytes.fromhex(identity))
        except OSError as error:
            raise _not_kept(error) from error

    @router.get("/offers")
    async def offers() -> list[dict[str, Any]]:
        """All offers, as of when each maker's set arrived: of a maker that is gone the last known ones."""
        now = taker.core.clock.now()
        return [{**view, "age": max(0.0, now - view["as_of"])} for view in taker.offers_view().values()]

    @router.post("/positions/{order_id}/rollover", status_code=202)
    async def roll_over(order_id: HexId) -> dict[str, Any]:
        """Roll a position over now, or finish a rollover. What becomes of it is the position's `rollover`."""
        taker.roll_over(bytes.fromhex(order_id))
        return {"order_id": order_id, "position": f"/api/v1/positions/{order_id}"}

    @router.post("/orders/preview")
    async def preview(order: OrderIn) -> dict[str, Any]:
        """What an order would come to, in full, before it is placed: satoshis, with what is paid to us positive.

        Computed as the setup does, on the coins that are free now; `problem` says why it could not be paid for. The
        `curve` is our payout by price."""
        maker, offer = find(order)
        terms = taker.check(offer, order.quantity, order.leverage)
        money = await projections.money.read()
        with taker.core.positions.lent() as positions:
            held = positions.reserved() | taker.core.setup.holds.all()
        free = [coin.input for coin in money.value.coins if coin.spendable and coin.outpoint not in held]
        view = order_view(offer, terms, free)
        return {"offer_id": offer.id.hex(), "maker": maker.hex(), "stale_at": offer.created + STALE_AFTER, **view}

    @router.post("/orders", status_code=202)
    async def place(order: OrderIn) -> dict[str, Any]:
        """Place an order. It is on record when this answers; what becomes of it is its position's state."""
        taker.core.setup.check_ready()
        maker, offer = find(order)
        order_id = await taker.place(maker, offer.id, order.quantity, order.leverage)
        return {"order_id": order_id.hex(), "position": f"/api/v1/positions/{order_id.hex()}"}

    return router


def _not_kept(error: OSError) -> WorldError:
    return WorldError("not_written", f"the list of makers cannot be kept in the data directory: {error.strerror}")


def maker_view(taker: Taker, identity: bytes) -> dict[str, Any]:
    """A maker, and what is known of it now; `latency` in seconds."""
    service = taker.links[identity]
    view: dict[str, Any] = {"identity": identity.hex(), "state": service.state.value}
    view |= {"reason": service.health.reason, "addresses": list(map(str, taker.addresses(identity)))}
    if service.health.up:
        with service.lent() as link:
            view |= {
                "address": str(link.address),
                "agent": f"{link.identity.agent} {link.identity.version}",
                "protocols": list(link.identity.protocols),
                "latency": link.latency,
            }
    return view

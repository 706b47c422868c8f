"""The taker's part of the API: what makers offer, and orders."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from node.taker import Taker
from node.web.node_api import HexId


class OrderIn(BaseModel):
    """An order from an offer."""

    model_config = ConfigDict(extra="forbid", strict=True)

    offer_id: str = Field(pattern="^[0-9a-f]{32}$")
    maker: str | None = Field(default=None, pattern="^[0-9a-f]{64}$", description="whose offer; may be left out")
    quantity: int = Field(description="contracts")
    leverage: int = Field(description="ours, one of the offer's choices")


def taker_router(taker: Taker) -> APIRouter:
    router = APIRouter(prefix="/api/v1")

    @router.get("/makers")
    async def makers() -> list[dict[str, Any]]:
        """Every maker of the configuration, and what is known of it now."""
        return [maker_view(taker, identity) for identity in taker.links]

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

    @router.post("/orders", status_code=202)
    async def place(order: OrderIn) -> dict[str, Any]:
        """Place an order. It is on record when this answers; what becomes of it is its position's state."""
        maker = bytes.fromhex(order.maker) if order.maker else None
        order_id = await taker.place(maker, bytes.fromhex(order.offer_id), order.quantity, order.leverage)
        return {"order_id": order_id.hex(), "position": f"/api/v1/positions/{order_id.hex()}"}

    return router


def maker_view(taker: Taker, identity: bytes) -> dict[str, Any]:
    """A maker, and what is known of it now; `latency` in seconds."""
    service = taker.links[identity]
    view: dict[str, Any] = {"identity": identity.hex(), "state": service.state.value}
    view["reason"] = service.health.reason
    if service.health.up:
        with service.lent() as link:
            view |= {
                "address": str(link.address),
                "agent": f"{link.identity.agent} {link.identity.version}",
                "protocols": list(link.identity.protocols),
                "latency": link.latency,
            }
    return view

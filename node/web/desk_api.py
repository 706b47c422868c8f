"""The maker's desk in the API: what waits for a word, the policy, the funding rates. For a person, or a bot."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from node.desk import Desk, Request, Said, SetRate
from node.errors import FieldError, NotFound
from node.policy import Policy
from node.values import Rate, Symbol
from node.web.node_api import HexId
from node.web.views import offer_view


class Acceptance(BaseModel):
    """Of a rollover; what is left out is as the rules say."""

    model_config = ConfigDict(extra="forbid", strict=True)

    funding_rate: str | None = Field(default=None, description="per 24 h; positive: long pays short")
    price: str | None = Field(default=None, description="the present one, USD, as a decimal string")


class Refusal(BaseModel):
    """Why something is refused by hand."""

    model_config = ConfigDict(extra="forbid", strict=True)

    sentence: str = Field(default="the maker declined", min_length=1, max_length=200)


class RateIn(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    funding_rate: Rate = Field(description="per 24 h; positive: long pays short")


def desk_router(desk: Desk, configured: Policy) -> APIRouter:
    """`configured`: the policy that a restart begins with."""
    router = APIRouter(prefix="/api/v1")

    @router.get("/requests")
    async def requests(
        wait: Annotated[float, Query(ge=0, le=60, description="seconds that the answer may wait for news")] = 0,
        after: Annotated[
            int | None, Query(description="the number of an earlier answer: news is what came after")
        ] = None,
    ) -> dict[str, Any]:
        """What waits for a word, the oldest first, and the `number` of this answer; with `wait`, once there is news."""
        await desk.news(after, wait)
        return {"number": desk.number, "requests": [request_view(each) for each in desk.waiting.values()]}

    @router.post("/requests/{request_id}/accept")
    async def accept(request_id: HexId, said: Acceptance | None = None) -> dict[str, Any]:
        """409 if the rules no longer allow it: the request waits on."""
        words = Said() if said is None else Said(said.funding_rate, said.price)
        return request_view(desk.accept(bytes.fromhex(request_id), words))

    @router.post("/requests/{request_id}/reject")
    async def reject(request_id: HexId, refusal: Refusal | None = None) -> dict[str, Any]:
        return request_view(desk.reject(bytes.fromhex(request_id), _sentence(refusal)))

    @router.get("/orders")
    async def orders() -> list[dict[str, Any]]:
        """The orders among what waits."""
        return [request_view(each) for each in desk.waiting_orders()]

    @router.post("/orders/{order_id}/accept")
    async def accept_order(order_id: HexId) -> dict[str, Any]:
        return request_view(desk.accept(desk.waiting_order(bytes.fromhex(order_id)).id, Said()))

    @router.post("/orders/{order_id}/reject")
    async def reject_order(order_id: HexId, refusal: Refusal | None = None) -> dict[str, Any]:
        return request_view(desk.reject(desk.waiting_order(bytes.fromhex(order_id)).id, _sentence(refusal)))

    @router.get("/policy")
    async def policy() -> dict[str, Any]:
        """What is in force, and which parts of it the configuration says otherwise, so that a restart undoes them."""
        return policy_view(desk.policy, configured)

    @router.patch("/policy")
    async def change_policy(said: Policy) -> dict[str, Any]:
        """Changes what is named, until the node is restarted; of values by symbol, those symbols alone."""
        desk.policy = desk.policy.changed(said)
        return policy_view(desk.policy, configured)

    @router.get("/rates")
    async def rates() -> dict[str, Any]:
        """By symbol the funding rate that was set, with its age, or the configured one, or neither: then a position
        is rolled over at the rate that it opened with."""
        return {symbol: rate_view(desk, symbol) for symbol in desk.feeds}

    @router.put("/rates/{symbol}")
    async def set_rate(symbol: Symbol, said: RateIn) -> dict[str, Any]:
        """In force from now on, until it is `rate_max_age` old; then nothing is opened or rolled over before it is set
        anew, or withdrawn. A restart forgets it."""
        desk.rates[symbol] = SetRate(said.funding_rate, desk.clock.now())
        return rate_view(desk, symbol)

    @router.delete("/rates/{symbol}")
    async def withdraw_rate(symbol: Symbol) -> dict[str, Any]:
        if desk.rates.pop(symbol, None) is None:
            raise NotFound("no_such_rate", f"no funding rate of {symbol} was set")
        return rate_view(desk, symbol)

    return router


def _sentence(refusal: Refusal | None) -> str:
    sentence = (refusal or Refusal()).sentence
    if not sentence.isprintable():
        raise FieldError("sentence", "sentence must be one line of printable characters")
    return sentence


def request_view(request: Request[Any]) -> dict[str, Any]:
    order = request.order
    return {
        "id": request.id.hex(),
        "kind": request.kind.value,
        "order_id": order.order_id.hex(),
        "counterparty": request.peer.hex(),
        "symbol": order.offer.symbol,
        "side": request.side.value,
        "quantity": order.quantity,
        "leverage": order.leverage,
        "price": request.price,
        "funding_rate": request.funding_rate,
        "since": request.since,
        "answer_by": request.answer_by,
        "offer": offer_view(order.offer),
    }


def policy_view(policy: Policy, configured: Policy) -> dict[str, Any]:
    view, before = policy.model_dump(), configured.model_dump()
    return {**view, "until_restart": [name for name in view if view[name] != before[name]]}


def rate_view(desk: Desk, symbol: str) -> dict[str, Any]:
    said = desk.rates.get(symbol)
    if said is None:
        return {"funding_rate": desk.policy.funding_rate.get(symbol), "since": None, "stale_at": None, "stale": False}
    stale_at = said.since + desk.policy.rate_max_age
    return {
        "funding_rate": said.funding_rate,
        "since": said.since,
        "stale_at": stale_at,
        "stale": desk.clock.now() > stale_at,
    }

"""The maker's desk in the API: what waits for a word, the policy, the funding rates. For a person, or a bot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import trio
from attrs import evolve
from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from node.desk import Desk, Request, Said, SetRate
from node.errors import FieldError, NotFound
from node.policy import Kept, Policy
from node.values import Rate, Symbol
from node.web.node_api import HexId
from node.web.views import offer_view
from protocols.errors import WorldError

NOTHING_SAID = Kept()


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


def desk_router(desk: Desk, configured: Policy, data: Path | None = None, kept: Kept = NOTHING_SAID) -> APIRouter:
    """`configured`: the policy of the configuration. What is said goes to the data directory before it is in force;
    without one it lasts as long as the node. `kept` is what was there."""
    router = APIRouter(prefix="/api/v1")
    turn = trio.Lock()

    async def keep(said: Kept) -> None:
        nonlocal kept
        if data is not None:
            try:
                await trio.to_thread.run_sync(said.write, data)
            except OSError as error:
                sentence = f"it cannot be kept in the data directory, and is not in force: {error.strerror}"
                raise WorldError("not_written", sentence) from error
        kept = said

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
        """What is in force, and which parts of it were `changed`: the configuration says them otherwise."""
        return policy_view(desk.policy, configured)

    @router.patch("/policy")
    async def change_policy(said: Policy) -> dict[str, Any]:
        """Changes what is named, over restarts; of values by symbol, those symbols alone."""
        async with turn:
            await keep(evolve(kept, changes=kept.changes.changed(said)))
            desk.policy = configured.changed(kept.changes)
        return policy_view(desk.policy, configured)

    @router.delete("/policy")
    async def reset_policy() -> dict[str, Any]:
        """Back to the configuration's."""
        async with turn:
            await keep(evolve(kept, changes=Policy()))
            desk.policy = configured
        return policy_view(desk.policy, configured)

    @router.get("/rates")
    async def rates() -> dict[str, Any]:
        """By symbol the funding rate that was set, with its age, or the configured one, or neither: then a position
        is rolled over at the rate that it opened with."""
        return {symbol: rate_view(desk, symbol) for symbol in desk.feeds}

    @router.put("/rates/{symbol}")
    async def set_rate(symbol: Symbol, said: RateIn) -> dict[str, Any]:
        """In force from now on, until it is `rate_max_age` old; then nothing is opened or rolled over before it is set
        anew, or withdrawn; a restart changes nothing of that."""
        rate = SetRate(said.funding_rate, desk.clock.now())
        async with turn:
            await keep(evolve(kept, rates={**kept.rates, symbol: (rate.funding_rate, rate.since)}))
            desk.rates[symbol] = rate
        return rate_view(desk, symbol)

    @router.delete("/rates/{symbol}")
    async def withdraw_rate(symbol: Symbol) -> dict[str, Any]:
        async with turn:
            if symbol not in desk.rates:
                raise NotFound("no_such_rate", f"no funding rate of {symbol} was set")
            await keep(evolve(kept, rates={each: rate for each, rate in kept.rates.items() if each != symbol}))
            del desk.rates[symbol]
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
    return {**view, "changed": [name for name in view if view[name] != before[name]]}


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

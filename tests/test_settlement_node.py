"""Closes and cooperative spends between a maker and a taker as they are built for real, on a regtest world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.test_node import Market, market


async def open_position(this: Market) -> tuple[str, Any]:
    """Its order id, and the taker's view."""
    order_id = await this.order()
    _, taking = await this.both(order_id, "opening")
    await this.confirm(taking["contract"]["lock_txid"])
    _, taking = await this.both(order_id, "open")
    return order_id, taking


async def preview(this: Market, order_id: str) -> Any:
    """Of a close that could be proposed now."""

    async def without_a_problem() -> Any:
        shown = await this.taker.get(f"/positions/{order_id}/close")
        return shown if shown["problem"] is None else None

    return await this.taker.sees(without_a_problem)


async def test_a_close_pays_both_what_was_shown(tmp_path: Path) -> None:
    async with market(tmp_path, hour=3600.0) as this:
        order_id, _ = await open_position(this)
        shown = await preview(this, order_id)
        asked = await this.taker.done(f"/positions/{order_id}/close", limit=shown["limit"])
        assert asked["price"] == shown["price"]
        making, taking = await this.both(order_id, "closing")
        await this.confirm(taking["closing"]["txid"], 3)
        making, taking = await this.both(order_id, "closed")
        assert taking["paid"]["payout"] == shown["paid"]

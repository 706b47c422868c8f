"""Rollovers between a maker and a taker as they are built for real, in one process with a regtest world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.test_node import Market, market

HOUR = 4.0


async def opened(this: Market, **order: int) -> str:
    """A position that is open on both sides."""
    order_id = await this.order(**order)
    _, taking = await this.both(order_id, "opening")
    await this.confirm(taking["contract"]["lock_txid"])
    await this.both(order_id, "open")
    return order_id


async def rolled(this: Market, order_id: str, index: int) -> tuple[Any, Any]:
    """Both sides' view once contract `index` stands alone."""

    async def there() -> Any:
        views = [await node.position(order_id) for node in (this.maker, this.taker)]
        done = all(view["rollover"]["own_revoked"] >= index <= view["rollover"]["peer_revoked"] for view in views)
        return views if done else None

    making, taking = await this.taker.sees(there)
    return making, taking


async def test_a_position_rolls_over_by_itself_again_and_again(tmp_path: Path) -> None:
    async with market(tmp_path, hour=HOUR) as this:
        order_id = await opened(this)
        opening = await this.taker.position(order_id)
        making, taking = await rolled(this, order_id, 2)
        assert taking["contract"]["index"] >= 2
        assert taking["contract"]["expiry"] > opening["contract"]["expiry"]

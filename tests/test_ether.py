"""A trade of ETHUSD between a maker and a taker as they are built for real: quoted, opened, liquidated, paid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocols.contract.terms import REGTEST_TIMELOCKS
from tests.test_node import market, taker_on

SPREAD = "0.001"


@pytest.mark.slow
async def test_a_whole_trade_of_ether_beside_an_offer_of_bitcoin(tmp_path: Path) -> None:
    """Bitcoin's price and offer stay as they are all the while."""
    async with market(tmp_path) as this:
        ether = this.world.world.markets["ETHUSD"]
        ether.override = "2500.75"

        async def quoted() -> bool:
            prices = await this.maker.get("/prices")
            return bool((prices["BTCUSD"]["bid"], prices["ETHUSD"]["bid"]) == ("50000", "2500.75"))

        await this.maker.sees(quoted)
        said: dict[str, Any] = {"symbol": "ETHUSD", "side": "short", "opening_fee": 500, "funding_rate": "0.001"}
        following = await this.maker.done("/offers", spread=SPREAD, **said)
        # 2 500.80 and a thousandth, up to the next cent; lot and limits are ether's own
        offer = following["offer"]
        assert (offer["price"], offer["lot"], offer["max_quantity"]) == ("2503.31", 1, 1_000)
        refused = await this.maker.post("/offers", price="2503.31", max_quantity=1_001, **said)
        assert (refused.status_code, refused.json()["field"]) == (422, "max_quantity")
        unknown = await this.maker.post("/offers", price="1", side="short", symbol="XRPUSD")
        assert (unknown.status_code, "BTCUSD or ETHUSD" in unknown.json()["detail"]) == (422, True)

        async def both_offers() -> Any:
            seen = {each["symbol"]: each for each in await this.taker.get("/offers")}
            return seen if set(seen) == {"BTCUSD", "ETHUSD"} else None

        this.offer = (await this.taker.sees(both_offers))["ETHUSD"]
        (maker,) = await this.taker.get("/makers")
        async with taker_on(this.world.config, tmp_path / "other", maker["address"], symbols=["BTCUSD"]) as bitcoiner:
            await bitcoiner.healthy()
            await bitcoiner.sees(lambda: bitcoiner.get("/offers"))
            refusal = await bitcoiner.post("/orders", offer_id=offer["id"], quantity=1, leverage=1)
            assert (refusal.status_code, refusal.json()["code"]) == (409, "other_symbol")
        order_id = await this.order(quantity=21, leverage=3)
        making, taking = await this.both(order_id, "opening")
        contract = taking["contract"]
        # 100·21·2 503.31 sat, a third of it, and the funding of 24 h with the opening fee
        assert (making["margin"], taking["margin"]) == (5_256_951, 1_752_317)
        assert (making["account"], taking["symbol"], taking["price"]) == (500 + 5_257, "ETHUSD", "2503.31")
        # bankrupt 831.7 dollars below, where 1 746 560 sat are lost
        assert (taking["liquidation_price"], making["liquidation_price"]) == (1_671, 5_016)
        await this.confirm(contract["lock_txid"])
        await this.both(order_id, "open")
        assert (await this.maker.get("/maker"))["exposure"] == {"BTCUSD": 0, "ETHUSD": -21}

        ether.override = "1671.99"
        making, taking = await this.both(order_id, "settling")
        assert taking["settlement"] == making["settlement"]
        assert taking["settlement"]["price"] == 1_671
        await this.confirm(contract["commit_txid"], REGTEST_TIMELOCKS.liquidation)
        await this.confirm(taking["settlement"]["cet_txid"], 3)
        making, taking = await this.both(order_id, "settled")
        assert (making["paid"]["payout"], taking["paid"]["payout"]) == (5_256_951 + 1_752_317, 0)
        (bitcoin,) = [each for each in await this.maker.get("/offers") if each["symbol"] == "BTCUSD"]
        assert bitcoin["price"] == "50000"

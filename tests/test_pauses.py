"""Outside worlds that go away under a maker and a taker with an open position, seen through their APIs: trading from
them pauses with the reason and comes back by itself, and what runs stays safe."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
from attrs import define

from node.regtest.world import RunningWorld
from tests.faults.proxies import Proxy
from tests.test_node import MONEY, Api, Market, give, maker_on, nowhere, taker_on
from tests.worlds import running_world, until


@define(eq=False)
class Outside:
    """A world, and the ways to it."""

    world: RunningWorld
    config: Path
    chain: Proxy
    oracle: Proxy
    exchange: Proxy


@asynccontextmanager
async def outside(path: Path) -> AsyncIterator[Outside]:
    """Hours of eight seconds; quotes are stale after two."""
    async with running_world(path / "world", hour=8.0) as world, trio.open_nursery() as nursery:
        world.world.market.override = "50000"
        proxies, text = [], world.config.read_text()
        for name, url in (("chain", f"//{world.electrum}"), ("oracle", world.oracle), ("exchange", world.exchange)):
            place = urlsplit(url)
            assert place.port is not None
            proxy = Proxy(name, "127.0.0.1", place.port)
            await nursery.start(proxy.run)
            text = text.replace(place.netloc, f"127.0.0.1:{proxy.at}")
            proxies.append(proxy)
        config = path / "outside.toml"
        config.write_text(text.replace("[prices]\n", "[prices]\nstale_after = 2\n"))
        yield Outside(world, config, *proxies)
        nursery.cancel_scope.cancel()


async def refusal(node: Api, status: int, path: str, **body: Any) -> Any:
    """The problem that the API answers."""
    answer = await node.post(path, **body)
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.mark.slow
async def test_trading_pauses_while_the_oracle_or_the_exchange_is_away(tmp_path: Path) -> None:
    async with (
        outside(tmp_path) as there,
        maker_on(there.config, tmp_path / "maker", listen=nowhere(), max_quantity=5_000) as (maker, node),
    ):
        await until(lambda: node.listener.health.up)
        async with taker_on(there.config, tmp_path / "taker", str(node.address)) as taker:
            await maker.healthy()
            await taker.healthy()
            await give(there.world, maker, taker)

            async def offered() -> list[Any]:
                offers: list[Any] = await taker.get("/offers")
                return offers

            async def withdrawn() -> Any:
                return not await offered() and not await maker.get("/offers") and await reason()

            async def reason() -> Any:
                return (await maker.get("/maker"))["withdrawn"].get("BTCUSD")

            offer = await maker.done("/offers", side="short", price="50000")
            assert await taker.sees(offered)
            this = Market(there.world, maker, taker, offer)
            order_id = await this.order()
            _, taking = await this.both(order_id, "opening")
            await this.confirm(taking["contract"]["lock_txid"])
            await this.both(order_id, "open")

            with there.oracle.troubled("cut"):
                assert "trading from this oracle is paused" in await taker.sees(withdrawn)
                silent = (await refusal(maker, 503, "/offers", side="short", price="50000"))["detail"]
                assert silent.startswith("trading from this oracle is paused until it answers again: the oracle at ")

                async def refused() -> bool:
                    answer = await taker.post("/orders", offer_id=offer["id"], quantity=100, leverage=2)
                    return answer.status_code == 503 and "trading from this oracle is paused" in answer.json()["detail"]

                await taker.sees(refused)

                assert (await taker.service("oracle"))["remedy"]
                assert [len(await each.get("/positions")) for each in (maker, taker)] == [1, 1]
            assert await taker.sees(offered)  # by itself, and the same
            assert (await offered())[0]["id"] == offer["id"]
            assert await reason() is None

            with there.exchange.troubled("cut"):
                assert "older than 2 s" in await taker.sees(withdrawn)

                async def stale() -> bool:
                    return bool((await taker.get("/prices"))["BTCUSD"]["stale"])

                await taker.sees(stale)
                sentence = (await refusal(taker, 409, f"/positions/{order_id}/close"))["detail"]
                assert "older than 2 s" in sentence
                assert sentence.endswith("closing is paused, force close still works")
                prices = await taker.get("/prices")
                assert prices["BTCUSD"]["age"] > 2

                async def unreached() -> bool:
                    health = await taker.service("prices")
                    return health["state"] == "restarting" and f"127.0.0.1:{there.exchange.at}" in health["reason"]

                await taker.sees(unreached)
            assert await taker.sees(offered)

            with there.oracle.troubled("cut"), there.exchange.troubled("cut"):
                await taker.sees(withdrawn)
                answer = await taker.post(f"/positions/{order_id}/force-close")
                assert answer.status_code == 202
                await until(lambda: this.known(taking["contract"]["commit_txid"]))


async def test_a_node_that_starts_while_the_chain_is_away_shows_what_it_knows(tmp_path: Path) -> None:
    """And its wallet is looked through anew, and made anew, at the user's word."""
    async with outside(tmp_path) as there:
        async with taker_on(there.config, tmp_path / "taker") as taker:
            await taker.healthy()
            await give(there.world, taker)
            known = await taker.get("/wallet")
        with there.chain.troubled("cut"):
            async with taker_on(there.config, tmp_path / "taker") as taker:
                await taker.sees(lambda: _is(taker, "wallet", "degraded"))
                wallet = await taker.get("/wallet")
                assert (wallet["confirmed"], wallet["height"]) == (MONEY, known["height"])
                assert known["as_of"] <= wallet["as_of"] < (await taker.get("/health"))["time"]
                assert await taker.get("/positions") == []
                assert (await taker.service("wallet"))["reason"].startswith("the balance is that of ")
                order = await refusal(taker, 503, "/orders", offer_id="0" * 32, quantity=100, leverage=1)
                assert order["service"] == "chain"
                again = await refusal(taker, 503, "/services/wallet/repairs/resync")
                assert "chain" in again["detail"]
        async with taker_on(there.config, tmp_path / "taker") as taker:
            await taker.healthy()
            before = (await taker.get("/wallet"))["as_of"]
            repaired = await taker.done("/services/wallet/repairs/resync")
            assert [each["name"] for each in repaired["repairs"]] == ["resync", "rebuild"]
            assert (await taker.get("/wallet"))["as_of"] > before
            unsaid = await refusal(taker, 409, "/services/wallet/repairs/rebuild")
            assert (unsaid["code"], "the wallet is away" in unsaid["detail"]) == ("not_confirmed", True)
            await taker.done("/services/wallet/repairs/rebuild", confirm=True)
            await taker.sees(lambda: _is(taker, "wallet", "healthy"))
            assert (await taker.get("/wallet"))["confirmed"] == MONEY
            assert len(list((tmp_path / "taker").glob("wallet.sqlite.aside-*"))) >= 1


async def _is(node: Api, name: str, state: str) -> bool:
    return bool((await node.service(name))["state"] == state)

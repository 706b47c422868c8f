"""What a maker offers at a spread from the market is on record: it comes back after a restart, priced anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from node.offer_book import CODEC, OfferDropped, OfferFollowed, Wish
from protocols.contract.terms import Side
from tests.test_node import maker_on
from tests.test_pauses import Outside, outside, refusal
from tests.worlds import until

GOLDEN = Path(__file__).parent / "golden" / "offers"
EXAMPLES = (
    OfferFollowed(Wish("BTCUSD", Side.SHORT, None, 5_000, (1, 2), 200, "0.0003", "0.002", "0.01"), "0.0025"),
    OfferDropped("BTCUSD", Side.SHORT),
)


def test_the_bytes_of_an_event_never_change() -> None:
    for event in EXAMPLES:
        new = CODEC.encode(event)
        assert new.data.hex() == (GOLDEN / f"{new.name}.{new.version}.hex").read_text().strip()
    assert set(CODEC.names) == {CODEC.encode(event).name for event in EXAMPLES}


async def quoted(there: Outside, path: Path) -> tuple[list[Any], list[Any]]:
    """Starts the maker, and gives what follows the market and what stands once something does."""
    async with maker_on(there.config, path, max_quantity=5_000) as (maker, _):
        await maker.healthy()

        async def standing() -> Any:
            about = await maker.get("/maker")
            return about["quoted"] and about["quoted"][0]["offer"]

        await maker.sees(standing)
        return (await maker.get("/maker"))["quoted"], await maker.get("/offers")


async def test_what_follows_the_market_comes_back_and_what_has_a_price_does_not(tmp_path: Path) -> None:
    async with outside(tmp_path) as there:
        async with maker_on(there.config, tmp_path / "maker", max_quantity=5_000) as (maker, node):
            await maker.healthy()
            await until(lambda: node.core.feeds["BTCUSD"].problem() is None)
            for side, said in (("short", {"spread": "0.0025"}), ("long", {"spread": "0.003"})):
                await maker.done("/offers", side=side, opening_fee=200, max_quantity=4_000, **said)
            await maker.done("/offers", side="long", price="49000")
            before = (await maker.get("/maker"))["quoted"]
            assert [each["maker_side"] for each in before] == ["short"]
        there.world.world.market.override = "60000"
        followed, standing = await quoted(there, tmp_path / "maker")
        assert [(each["maker_side"], each["spread"]) for each in followed] == [("short", "0.0025")]
        (offer,) = standing
        assert (offer["opening_fee"], offer["max_quantity"]) == (200, 4_000)
        assert offer["id"] != before[0]["offer"]["id"]
        assert float(offer["price"]) > 60_000

        async with maker_on(there.config, tmp_path / "maker", max_quantity=5_000) as (maker, _):
            await maker.healthy()

            async def back() -> Any:
                return await maker.get("/offers")

            await maker.sees(back)
            (offer,) = await back()
            assert (await maker.http.delete(f"/offers/{offer['id']}")).status_code == 200
        async with maker_on(there.config, tmp_path / "maker", max_quantity=5_000) as (maker, _):
            await maker.healthy()
            assert (await maker.get("/maker"))["quoted"] == []


async def test_one_that_is_not_allowed_any_more_is_named(tmp_path: Path) -> None:
    async with outside(tmp_path) as there:
        async with maker_on(there.config, tmp_path / "maker", max_quantity=5_000) as (maker, node):
            await maker.healthy()
            await until(lambda: node.core.feeds["BTCUSD"].problem() is None)
            await maker.done("/offers", side="short", spread="0.0025", max_quantity=4_000)
        async with maker_on(there.config, tmp_path / "maker", max_quantity=1_000) as (maker, _):

            async def degraded() -> Any:
                health = await maker.service("offers")
                return health["state"] == "degraded" and health

            health = await maker.sees(degraded)
            assert "max_quantity is 4000, allowed is 1000" in health["reason"]
            assert health["remedy"] == "set these offers anew"


async def test_nothing_follows_the_market_that_is_not_on_record(tmp_path: Path) -> None:
    async with outside(tmp_path) as there, maker_on(there.config, tmp_path / "maker") as (maker, node):
        await maker.healthy()
        await until(lambda: node.core.feeds["BTCUSD"].problem() is None)
        node.core.supervisor["store"].stop()
        problem = await refusal(maker, 503, "/offers", side="short", spread="0.0025")
        assert "is not available" in problem["detail"]
        assert node.quoting.all() == ()

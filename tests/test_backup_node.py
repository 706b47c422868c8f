"""A taker whose data directory is gone: its words and its backup on a new machine, with the maker and the chain going
on."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import define

from node import cli, files
from node.clock import Clock
from node.regtest.world import RunningWorld
from node.wallet.bdk import BdkWallet
from node.wallet.interface import GAP_LIMIT
from node.wallet.seed import Seed
from tests.test_node import Api, give, maker_on, nowhere, taker_on
from tests.worlds import running_world, until

pytestmark = pytest.mark.slow


@define(eq=False)
class Restored:
    """An open position, whose taker lost everything and is back."""

    world: RunningWorld
    maker: Api
    taker: Api
    order_id: str
    confirmed: int
    """Satoshis that its wallet had before."""


async def use_up_scripts(data: Path) -> None:
    """As a thousand orders do that come to nothing: what is paid from now on is behind all that a scan looks at."""
    seed = Seed.generate()
    await trio.Path(data).mkdir()
    seed.write(files.seed_file(data))
    wallet = await BdkWallet.open(seed, "regtest", data / "wallet.sqlite", lambda: "127.0.0.1:1", clock=Clock())
    for _ in range(GAP_LIMIT + 30):
        await wallet.new_script()


@asynccontextmanager
async def restored(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Restored]:
    place = str(path / "elsewhere")
    async with (
        running_world(path / "world", hour=60.0) as world,
        maker_on(world.config, path / "maker", listen=nowhere(), max_quantity=5_000) as (maker, node),
    ):
        world.world.market.override = "50000"
        await until(lambda: node.listener.health.up)
        await use_up_scripts(path / "old")
        address = str(node.address)
        async with taker_on(world.config, path / "old", address, backup={"path": place}) as taker:
            await maker.healthy()
            await taker.healthy()
            await give(world, maker, taker)
            offer = await maker.done("/offers", side="short", price="50000", opening_fee=1_000, funding_rate="0.001")

            async def seen() -> bool:
                return bool(await taker.get("/offers"))

            await taker.sees(seen)
            order = await taker.done("/orders", offer_id=offer["id"], quantity=1_000, leverage=2)
            order_id = order["order_id"]
            await taker.comes_to(order_id, "opening", "open")
            await until(lambda: world.world.mempool.entries)
            await world.world.mine_many(1)
            await taker.comes_to(order_id, "open")
            status = await taker.get("/backup")
            assert (status["place"], status["positions"]) == (place, 1)
            assert 20_000 < status["size"] < 60_000
            await taker.seen_block(world)
            confirmed = (await taker.get("/wallet"))["confirmed"]
            assert confirmed > 0, "the change"
        words = path / "words"
        words.write_text((path / "old" / "seed").read_text())
        shutil.rmtree(path / "old")
        with words.open() as typed:
            monkeypatch.setattr("sys.stdin", typed)
            arguments = ["restore", "--data", str(path / "new"), "--backup", place]
            assert await trio.to_thread.run_sync(cli.main, arguments) == 0
        async with taker_on(world.config, path / "new", address, backup={"path": place}) as taker:
            await taker.healthy()
            yield Restored(world, maker, taker, order_id, confirmed)


async def test_the_words_and_the_backup_bring_a_position_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with restored(tmp_path, monkeypatch) as it:
        view = await it.taker.comes_to(it.order_id, "open")
        assert view["recovered"] is True
        refused = await it.taker.post(f"/positions/{it.order_id}/force-close")
        assert (refused.status_code, refused.json()["code"]) == (409, "recovered")
        risk = await it.taker.post(f"/positions/{it.order_id}/override")
        assert risk.status_code == 409
        assert "lets the peer take everything in it" in risk.json()["detail"]
        # the peer closes it alone, and we follow
        await it.maker.done(f"/positions/{it.order_id}/force-close")
        await until(lambda: it.world.world.mempool.entries)
        await it.world.world.mine_many(1)
        assert (await it.taker.comes_to(it.order_id, "committed", "settling"))["recovered"] is True


async def test_its_coins_are_found_and_they_close_it_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with restored(tmp_path, monkeypatch) as it:
        await it.taker.comes_to(it.order_id, "open")

        async def found() -> bool:
            return bool((await it.taker.get("/wallet"))["confirmed"] == it.confirmed)

        await it.taker.sees(found)

        async def asked() -> bool:
            return (await it.taker.post(f"/positions/{it.order_id}/close")).is_success

        await it.taker.sees(asked)
        await it.taker.comes_to(it.order_id, "closing")
        await until(lambda: it.world.world.mempool.entries)
        await it.world.world.mine_many(3)
        await it.taker.comes_to(it.order_id, "closed")

        async def paid() -> bool:
            return bool((await it.taker.get("/wallet"))["confirmed"] > it.confirmed)

        await it.taker.sees(paid)
        view = await it.taker.position(it.order_id)
        gained = (await it.taker.get("/wallet"))["confirmed"] - it.confirmed
        assert gained == view["paid"]["payout"] > 0, "on a script behind all that a scan looks at"


async def test_only_the_users_word_publishes_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with restored(tmp_path, monkeypatch) as it:
        await it.taker.comes_to(it.order_id, "open")
        done = await it.taker.done(f"/positions/{it.order_id}/override", confirm=True)
        assert (done["recovered"], done["overridden"]) == (True, True)
        await until(lambda: it.world.world.mempool.entries)
        await it.world.world.mine_many(1)
        await it.taker.comes_to(it.order_id, "committed", "settling")

"""A maker and a taker as they are built for real, in one process with a regtest world: their APIs on loopback, their
own stores and wallets, and in one trade their own worker processes. Hours take two seconds."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx2
import pytest
import trio
from attrs import define
from bitcoin.core import CTransaction

from node.config import MakerConfig, TakerConfig, load
from node.core import Core
from node.maker import Maker
from node.network.conversation import inline
from node.regtest.world import RunningWorld
from node.seams import MACHINE, Seams
from node.taker import Taker
from node.wallet.address import to_script
from node.web.position_answers import PositionAnswer
from node.web.sockets import bind_api, url_of
from protocols.contract.terms import REGTEST_TIMELOCKS
from tests.worlds import running_world, until

LOOPBACK = "127.0.0.1:0"
MONEY = 100_000_000


def nowhere() -> str:
    """An address that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@define(eq=False)
class Api:
    """A node as its user sees it."""

    core: Core
    http: httpx2.AsyncClient

    async def get(self, path: str) -> Any:
        answer = await self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def post(self, path: str, **body: Any) -> httpx2.Response:
        return await self.http.post(path, json=body)

    async def done(self, path: str, **body: Any) -> Any:
        answer = await self.post(path, **body)
        assert answer.is_success, answer.text
        return answer.json()

    async def position(self, order_id: str) -> Any:
        return await self.get(f"/positions/{order_id}")

    async def comes_to(self, order_id: str, *states: str) -> Any:
        async def there() -> Any:
            answer = await self.http.get(f"/positions/{order_id}")
            view = answer.json()
            if answer.status_code != 200:  # not heard of it yet, or a service is away
                return None
            PositionAnswer.model_validate(view)  # as the API describes it, in whatever state
            if view["state"] in states:
                return view
            assert view["refusal"] is None, view["refusal"]
            return None

        return await self.sees(there)

    async def sees(self, question: Callable[[], Awaitable[Any]], within: float = 30) -> Any:
        """Ask until the answer is one."""
        with trio.fail_after(within):
            while not (answer := await question()):  # noqa: ASYNC110  the other side is HTTP
                await trio.sleep(0.02)
        return answer

    async def service(self, name: str) -> Any:
        (found,) = [each for each in (await self.get("/health"))["services"] if each["name"] == name]
        return found

    async def script(self) -> bytes:
        """A fresh one of its wallet."""
        return to_script((await self.done("/wallet/addresses"))["address"], "regtest")

    async def seen_block(self, world: RunningWorld) -> None:
        """Until the wallet knows the tip."""

        async def there() -> bool:
            return bool((await self.get("/wallet"))["height"] == world.world.chain.height)

        await self.sees(there)

    async def healthy(self) -> None:
        await until(lambda: all(each.state.value == "healthy" for each in self.core.supervisor.services), within=40)

    def bugs(self) -> dict[str, str]:
        return {each.name: each.last_error for each in self.core.supervisor.health() if each.bugs}


@asynccontextmanager
async def running(core: Core, api_socket: socket.socket) -> AsyncIterator[Api]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(core.supervisor.run)
        await until(lambda: core.supervisor["api"].health.up)
        token = (core.config.data / "api.token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx2.AsyncClient(base_url=url_of(api_socket) + "/api/v1", headers=headers, timeout=20) as http:
            api = Api(core, http)
            yield api
            assert api.bugs() == {}
        nursery.cancel_scope.cancel()


def seams(workers: bool) -> Seams:
    """Starting worker processes takes longer than a trade: only where they are the matter."""
    return MACHINE if workers else attrs.evolve(MACHINE, compute=inline)


@asynccontextmanager
async def maker_on(
    config: Path, data: Path, *, workers: bool = False, **flags: object
) -> AsyncIterator[tuple[Api, Maker]]:
    flags = {"data": str(data), "api": LOOPBACK, "listen": LOOPBACK, **flags}
    settings = load(MakerConfig, paths=[config], environ={}, flags=flags)
    with bind_api(settings.api) as api_socket:
        maker = Maker.build(settings, api_socket, seams(workers))
        async with running(maker.core, api_socket) as api:
            yield api, maker


@asynccontextmanager
async def taker_on(
    config: Path, data: Path, *makers: str, workers: bool = False, **flags: object
) -> AsyncIterator[Api]:
    """Unless its flags say otherwise, positions are held to their expiry."""
    flags = {"data": str(data), "api": LOOPBACK, "makers": list(makers), "rollover.auto": False, **flags}
    settings = load(TakerConfig, paths=[config], environ={}, flags=flags)
    with bind_api(settings.api) as api_socket:
        taker = Taker.build(settings, api_socket, seams(workers))
        async with running(taker.core, api_socket) as api:
            yield api


@define(eq=False)
class Market:
    """A world with a maker and a taker on it, both funded, and one offer that the taker sees."""

    world: RunningWorld
    maker: Api
    taker: Api
    offer: Any

    async def order(self, quantity: int = 1_000, leverage: int = 2) -> str:
        order = await self.taker.done("/orders", offer_id=self.offer["id"], quantity=quantity, leverage=leverage)
        order_id: str = order["order_id"]
        return order_id

    async def both(self, order_id: str, *states: str) -> tuple[Any, Any]:
        return await self.maker.comes_to(order_id, *states), await self.taker.comes_to(order_id, *states)

    def known(self, txid: str) -> bool:
        wanted = bytes.fromhex(txid)[::-1]
        return wanted in self.world.world.mempool.entries or wanted in self.world.world.index.transactions

    async def confirm(self, txid: str, blocks: int = 1) -> None:
        await until(lambda: self.known(txid), within=40)
        await self.world.world.mine_many(blocks)

    def outputs(self, txid: str) -> dict[bytes, int]:
        """What a confirmed transaction pays, by script."""
        raw = self.world.world.index.transactions[bytes.fromhex(txid)[::-1]].raw
        return {bytes(out.scriptPubKey): out.nValue for out in CTransaction.deserialize(raw).vout}

    async def liquidate(self) -> None:
        """A price at which the long has nothing left, from the next hour on."""
        self.world.world.market.override = "20000"


async def give(world: RunningWorld, *nodes: Api) -> None:
    """A coin for each, that it knows of."""
    for node in nodes:
        world.world.treasury.pay(await node.script(), MONEY)
    world.world.mine()
    for node in nodes:
        await node.seen_block(world)


@asynccontextmanager
async def market(
    path: Path, *, hour: float = 2.0, roll: bool = False, workers: bool = False, **flags: object
) -> AsyncIterator[Market]:
    flags = {"listen": nowhere(), "max_quantity": 5_000, **flags}
    async with (
        running_world(path / "world", hour=hour) as world,
        maker_on(world.config, path / "maker", workers=workers, **flags) as (maker, node),
    ):
        world.world.market.override = "50000"
        await until(lambda: node.listener.health.up)
        rolling: dict[str, object] = {"rollover.auto": roll}
        async with taker_on(world.config, path / "taker", str(node.address), workers=workers, **rolling) as taker:
            await maker.healthy()
            await taker.healthy()
            await give(world, maker, taker)
            offer = await maker.done("/offers", side="short", price="50000", opening_fee=1_000, funding_rate="0.001")

            async def seen() -> bool:
                return bool(await taker.get("/offers"))

            await taker.sees(seen)
            yield Market(world, maker, taker, offer)


# --- a trade ----------------------------------------------------------------------------------------------------------


async def test_a_whole_trade_from_an_offer_to_both_payouts_on_the_chain(tmp_path: Path) -> None:
    """And what is refused on the way: an order above the limit, a leverage that is not offered, an unknown offer."""
    async with market(tmp_path, workers=True) as this:
        (offer,) = await this.taker.get("/offers")
        assert (offer["taker_side"], offer["price"], offer["max_quantity"]) == ("long", "50000", 5_000)
        for body, field in (
            ({"quantity": 6_000, "leverage": 2}, "quantity"),
            ({"quantity": 150, "leverage": 2}, "quantity"),
            ({"quantity": 1_000, "leverage": 99}, "leverage"),
            ({"quantity": "many", "leverage": 2}, "quantity"),
        ):
            refusal = await this.taker.post("/orders", offer_id=offer["id"], **body)
            assert (refusal.status_code, refusal.json()["field"]) == (422, field)
            assert str(body[field]) in refusal.json()["detail"] or body[field] == "many"
        assert (await this.taker.post("/orders", offer_id="0" * 32, quantity=1_000, leverage=2)).status_code == 404
        assert await this.taker.get("/positions") == await this.maker.get("/positions") == []

        order_id = await this.order()
        making, taking = await this.both(order_id, "opening")
        contract = taking["contract"]
        assert contract == making["contract"] | {"broadcasts": contract["broadcasts"]}
        assert (making["side"], taking["side"]) == ("short", "long")
        assert making["margin"] + taking["margin"] == taking["pool"] == making["pool"]
        assert making["account"] == -taking["account"] == 1_000 + 2_000  # opening fee, 24 h of funding
        early = await this.taker.post(f"/positions/{order_id}/force-close")
        assert (early.status_code, early.json()["code"]) == (409, "not_open")

        await this.confirm(contract["lock_txid"])
        await this.both(order_id, "open")
        wallet = await this.taker.get("/wallet")
        assert wallet["margin_locked"] == taking["margin"]

        await this.liquidate()
        making, taking = await this.both(order_id, "settling")
        assert taking["settlement"] == making["settlement"]
        assert taking["settlement"]["price"] == 20_000
        await this.confirm(contract["commit_txid"], REGTEST_TIMELOCKS.liquidation)
        cet = taking["settlement"]["cet_txid"]
        await this.confirm(cet, 3)
        making, taking = await this.both(order_id, "settled")

        for view, payout in ((making, making["pool"]), (taking, 0)):
            assert (view["paid"]["txid"], view["paid"]["final"], view["paid"]["payout"]) == (cet, True, payout)
            assert (view["paid"]["maker_payout"], view["paid"]["taker_payout"]) == (
                view["settlement"]["maker_payout"],
                view["settlement"]["taker_payout"],
            )
        assert list(this.outputs(cet).values()) == [making["pool"]]

        async def paid() -> bool:
            return bool((await this.maker.get("/wallet"))["confirmed"] > MONEY)

        await this.maker.sees(paid)
        assert (await this.taker.get("/wallet"))["margin_locked"] == 0
        assert (await this.maker.get("/maker"))["exposure"]["BTCUSD"] == 0
        late = await this.maker.post(f"/positions/{order_id}/force-close")
        assert (late.status_code, late.json()["code"]) == (409, "already_committed")


@pytest.mark.slow
async def test_a_trade_that_is_held_to_its_expiry_pays_both_sides(tmp_path: Path) -> None:
    async with market(tmp_path, hour=1.0) as this:
        order_id = await this.order()
        _, taking = await this.both(order_id, "opening")
        await this.confirm(taking["contract"]["lock_txid"])
        await this.both(order_id, "open")
        this.world.world.market.override = "60000"
        with trio.fail_after(60):
            await until(lambda: this.known(taking["contract"]["commit_txid"]), within=60)
        making, taking = await this.both(order_id, "settling")
        assert taking["settlement"]["event"] == taking["contract"]["event"]
        await this.confirm(taking["contract"]["commit_txid"], REGTEST_TIMELOCKS.settlement)
        cet = taking["settlement"]["cet_txid"]
        await this.confirm(cet, 3)
        making, taking = await this.both(order_id, "settled")
        paid = taking["paid"]
        assert list(this.outputs(cet).values()) == [paid["maker_payout"], paid["taker_payout"]]
        assert paid["maker_payout"] + paid["taker_payout"] == taking["pool"]
        assert paid["taker_payout"] > taking["margin"] > 0
        assert making["paid"] == paid | {"payout": paid["maker_payout"]}


@pytest.mark.slow
async def test_services_that_die_in_the_middle_of_a_trade_are_made_up_for(tmp_path: Path) -> None:
    """Each step with services of both nodes restarted under it."""
    async with market(tmp_path) as this:

        async def shaken(*names: str) -> None:
            for node in (this.maker, this.taker):
                for name in names:
                    node.core.supervisor[name].restart()
            for node in (this.maker, this.taker):
                await node.healthy()

        order_id = await this.order()
        _, taking = await this.both(order_id, "opening")
        await shaken("chain", "store")
        await this.confirm(taking["contract"]["lock_txid"])
        await this.both(order_id, "open")
        await shaken("positions", "network", "wallet")
        await this.liquidate()
        await this.both(order_id, "settling")
        await shaken("contracts", "broadcaster", "chain-monitor")
        await this.confirm(taking["contract"]["commit_txid"], REGTEST_TIMELOCKS.liquidation)
        await shaken("oracle", "attestations")
        _, taking = await this.both(order_id, "settling")
        await this.confirm(taking["settlement"]["cet_txid"], 3)
        making, taking = await this.both(order_id, "settled")
        assert making["paid"]["payout"] == taking["pool"]


@pytest.mark.slow
async def test_nodes_that_were_both_killed_settle_when_they_are_back(tmp_path: Path) -> None:
    """And nobody kept watch while the oracle spoke and blocks came."""
    listen = nowhere()
    async with running_world(tmp_path / "world", hour=2.0) as world:
        world.world.market.override = "50000"

        @asynccontextmanager
        async def both_up(offer: Any = None) -> AsyncIterator[Market]:
            async with (
                maker_on(world.config, tmp_path / "maker", listen=listen) as (maker, node),
                taker_on(world.config, tmp_path / "taker", str(node.address)) as taker,
            ):
                yield Market(world, maker, taker, offer)

        async with both_up() as this:
            await this.maker.healthy()
            await this.taker.healthy()
            await give(world, this.maker, this.taker)
            this.offer = await this.maker.done("/offers", side="long", price="50000")

            async def seen() -> bool:
                return bool(await this.taker.get("/offers"))

            await this.taker.sees(seen)
            order_id = await this.order()
            _, taking = await this.both(order_id, "opening")
        assert (taking["side"], taking["liquidation_price"]) == ("short", 100_096)
        await this.confirm(taking["contract"]["lock_txid"])
        world.world.market.override = "150000"
        await trio.sleep(4.5)  # hours in which nobody is there
        async with both_up() as this:
            await this.both(order_id, "settling")
        await this.confirm(taking["contract"]["commit_txid"], REGTEST_TIMELOCKS.liquidation)
        async with both_up() as this:
            _, taking = await this.both(order_id, "settling")
            await this.confirm(taking["settlement"]["cet_txid"], 3)
            making, _ = await this.both(order_id, "settled")
            assert making["paid"]["payout"] == taking["pool"]


# --- orders by hand and by policy -------------------------------------------------------------------------------------


async def test_orders_wait_for_the_operators_word(tmp_path: Path) -> None:
    async with market(tmp_path, accept="manual") as this:

        async def waiting() -> Any:
            return await this.maker.get("/orders")

        refused = await this.order(quantity=2_000)
        (order,) = await this.maker.sees(waiting)
        assert (order["order_id"], order["quantity"], order["leverage"]) == (refused, 2_000, 2)
        assert order["counterparty"] == this.taker.core.identity.public.key.hex()
        assert (await this.taker.position(refused))["state"] == "ordered"
        await this.maker.done(f"/orders/{refused}/reject", sentence="not on a Sunday")
        view = await this.taker.comes_to(refused, "rejected")
        assert view["refusal"] == {"code": "declined_by_hand", "sentence": "not on a Sunday"}
        assert (await this.maker.post(f"/orders/{refused}/accept")).status_code == 404
        assert await this.maker.get("/positions") == []

        accepted = await this.order()
        (order,) = await this.maker.sees(waiting)
        await this.maker.done(f"/orders/{accepted}/accept")
        await this.both(accepted, "opening")
        assert await this.maker.get("/orders") == []
        states = [each["state"] for each in await this.taker.get("/positions")]
        assert states == ["rejected", "opening"]


async def test_what_the_maker_does_not_take_is_refused_with_its_reason(tmp_path: Path) -> None:
    async with market(tmp_path, max_exposure=1_500) as this:
        first = await this.order()
        await this.both(first, "opening")
        view = await this.taker.comes_to(await this.order(), "rejected", "opening")
        assert view["refusal"]["code"] == "max_exposure"
        assert (await this.maker.get("/maker"))["exposure"]["BTCUSD"] == -1_000

        this.world.world.market.override = "50600"  # of which 50 000 is less than 99 %
        feed = this.maker.core.feeds["BTCUSD"]
        await until(lambda: feed.quote is not None and feed.quote.bid == "50600")
        view = await this.taker.comes_to(await this.order(quantity=500), "rejected", "opening")
        assert view["refusal"]["code"] == "price_moved"
        await this.maker.http.patch("/policy", json={"price_band": "0.02"})
        view = await this.taker.comes_to(await this.order(quantity=5_000), "rejected", "opening")
        assert view["refusal"]["code"] == "max_exposure"

        gone = this.offer["id"]
        answer = await this.maker.http.delete(f"/offers/{gone}")
        assert answer.status_code == 200

        async def none() -> bool:
            return not await this.taker.get("/offers")

        await this.taker.sees(none)
        late = await this.taker.post("/orders", offer_id=gone, quantity=1_000, leverage=2)
        assert (late.status_code, late.json()["code"]) == (404, "no_such_offer")
        assert len(await this.maker.get("/positions")) == 1


async def test_an_order_that_a_wallet_cannot_pay_for_fails_and_frees_everything(tmp_path: Path) -> None:
    """The maker, who is asked first, says that it has no free coins, and not how many; the taker's own user is told."""
    async with market(tmp_path) as this:
        first = await this.order()
        _, taking = await this.both(first, "opening")
        view = await this.taker.comes_to(await this.order(), "rejected")
        assert view["refusal"]["code"] == "no_free_coins"
        assert not any(letter.isdigit() for letter in view["refusal"]["sentence"])
        await this.confirm(taking["contract"]["lock_txid"])
        await this.both(first, "open")

        await give(this.world, this.maker)
        await this.taker.seen_block(this.world)
        second = await this.order()
        await this.both(second, "opening")
        third = await this.order()
        view = await this.taker.comes_to(third, "rejected")
        assert view["refusal"]["code"] == "insufficient_funds"
        view = await this.maker.comes_to(third, "setup failed")
        assert view["refusal"]["code"] == "declined"
        wallet = await this.maker.get("/wallet")
        assert wallet["confirmed"] - wallet["reserved"] >= MONEY  # the coin that the third order had is free again


# --- a world that is not there ----------------------------------------------------------------------------------------


async def test_a_node_starts_without_chain_oracle_and_maker_and_says_what_is_missing(tmp_path: Path) -> None:
    electrum, oracle, peer = nowhere(), nowhere(), f"{'11' * 31}3f@{nowhere()}"
    config = tmp_path / "world.toml"
    config.write_text(
        f'network = "regtest"\nelectrum = "{electrum}"\n[oracle]\nurl = "http://{oracle}"\n'
        f'announcement_key = "{"22" * 32}"\nattestation_key = "{"33" * 32}"\n'
    )
    async with taker_on(config, tmp_path / "taker", peer) as taker:
        for name, said in (("chain", electrum), ("oracle", oracle), (f"maker-{peer[:16]}", peer.partition("@")[2])):

            async def says(name: str = name, said: str = said) -> bool:
                return said in (await taker.service(name))["reason"]

            await taker.sees(says)
        assert (await taker.service("wallet"))["state"] == "starting"
        assert (await taker.service("store"))["state"] == "healthy"
        assert (await taker.service("positions"))["state"] == "healthy"
        assert await taker.get("/positions") == []
        wallet = await taker.http.get("/wallet")
        assert (wallet.status_code, wallet.json()["service"]) == (503, "wallet")
        order = await taker.post("/orders", offer_id="0" * 32, quantity=100, leverage=1)
        assert (order.status_code, order.json()["service"]) == (503, "chain")


async def test_a_maker_whose_port_is_taken_is_up_and_listens_when_it_is_free(tmp_path: Path) -> None:
    async with running_world(tmp_path / "world") as world:
        taken = socket.create_server(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        async with maker_on(world.config, tmp_path / "maker", listen=where) as (maker, node):
            with taken:

                async def says() -> bool:
                    return where in (await maker.service("listener"))["reason"]

                await maker.sees(says)
                assert (await maker.get("/maker"))["address"].endswith(where)
            node.listener.restart()
            await maker.healthy()

"""What the page asks of real nodes before and beside a trade: previews, makers, coins sent, the feed's topics."""

from __future__ import annotations

from pathlib import Path

from node.maker import Maker
from node.regtest.world import RunningWorld
from node.wallet.address import to_address
from protocols.contract.scripts import p2tr
from tests.test_node import MONEY, Api, maker_on, taker_on
from tests.test_projections import feed_of
from tests.worlds import fund, running_world, unspent

ELSEWHERE = p2tr(bytes.fromhex("79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"))


async def test_the_page_before_a_trade(tmp_path: Path) -> None:
    async with (
        running_world(tmp_path / "world", hour=2) as world,
        maker_on(world.config, tmp_path / "maker") as (maker, node),
    ):
        await maker.healthy()
        async with taker_on(world.config, tmp_path / "taker", str(node.address)) as taker:
            await taker.healthy()
            await _before_a_trade(world, maker, node, taker)


async def _before_a_trade(world: RunningWorld, maker: Api, node: Maker, taker: Api) -> None:
    for api in (maker, taker):
        fund(world, await api.script(), MONEY)
    await maker.seen_block(world)
    await taker.seen_block(world)
    price = (await taker.get("/prices"))["BTCUSD"]["ask"]
    offer = await maker.done("/offers", side="short", price=price, max_quantity=5000)

    # the ticket: by the offer's id, and by what stays when it is priced anew
    async def offered() -> bool:
        return [each["id"] for each in await taker.get("/offers")] == [offer["id"]]

    await taker.sees(offered)
    by_id = await taker.done("/orders/preview", offer_id=offer["id"], quantity=1000, leverage=2)
    asked = {"symbol": "BTCUSD", "side": "long", "quantity": 1000, "leverage": 2}
    assert await taker.done("/orders/preview", **asked, limit=price) == by_id
    assert (by_id["side"], by_id["price"], by_id["problem"]) == ("long", price, None)
    assert by_id["total"] == by_id["margin"] + by_id["fees"]["total"]
    for limit, status, code in (("1", 409, "price_moved"), ("x", 422, "bad_value")):
        worse = await taker.post("/orders", **asked, limit=limit)
        assert (worse.status_code, worse.json()["code"]) == (status, code)
    both = await taker.post("/orders", **asked, limit=price, offer_id=offer["id"])
    assert both.status_code == 422
    too_large = await taker.post("/orders/preview", **{**asked, "quantity": 6000}, limit=price)
    assert (too_large.status_code, too_large.json()["field"]) == (422, "quantity")

    # coins
    (coin,) = (await taker.get("/wallet/coins"))["coins"]
    assert (coin["value"], coin["spendable"], coin["held_by"]) == (MONEY, True, None)
    behind = await taker.get(f"/wallet/coins?limit=1&after={coin['outpoint']}")
    assert (behind["coins"], behind["next"]) == ([], None)
    await _sends(taker)
    await _states(taker)
    world.world.mine()
    assert [paid.value for paid in unspent(world, ELSEWHERE)] == [1_000_000]

    # makers
    (known,) = await taker.get("/makers")
    assert known["addresses"] == [str(node.address)]
    ((peer,), (other,)) = await taker.get("/peers"), await maker.get("/peers")
    assert (peer["identity"], peer["dialled"], other["dialled"]) == (known["identity"], True, False)
    gone = await taker.http.delete(f"/makers/{known['identity']}")
    assert (gone.status_code, await taker.get("/makers")) == (204, [])
    assert (await taker.http.delete(f"/makers/{known['identity']}")).status_code == 404
    bad = await taker.post("/makers", address="nobody")
    assert (bad.status_code, bad.json()["field"]) == (422, "address")
    again = await taker.post("/makers", address=str(node.address))
    assert (again.status_code, again.json()["identity"]) == (201, known["identity"])
    await taker.sees(offered)

    about = await taker.get("/node")
    assert (about["role"], about["explorer"]) == ("taker", None)
    assert about["versions"]["store_schema"] >= 2
    assert (await taker.get("/prices/BTCUSD/history?resolution=10s"))["candles"]
    assert (await taker.http.get("/positions/history.csv")).text.startswith("order_id,")
    assert "lines" in await taker.get("/log?lines=5")

    # the feed has what the page shows
    common = {"health", "tip", "wallet", "prices", "clock", "oracle", "backup", "offers", "peers"}
    for api, more in ((maker, {"policy", "rates", "maker"}), (taker, {"makers"})):
        topics = common | more

        async def shown(api: Api = api, topics: frozenset[str] = frozenset(topics)) -> bool:
            async with feed_of(api) as feed:
                _, state = await feed.next()
                return bool(topics <= state["topics"].keys())

        await api.sees(shown)


async def _sends(taker: Api) -> None:
    address = to_address(ELSEWHERE, "regtest")
    preview = await taker.done("/wallet/send", address=address, amount_sat=1_000_000, preview=True)
    assert preview["txid"] is None
    wrong = await taker.post("/wallet/send", address="bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", amount_sat=1000)
    assert (wrong.status_code, wrong.json()["field"]) == (422, "address")
    much = await taker.post("/wallet/send", address=address, amount_sat=MONEY)
    assert (much.status_code, much.json()["code"]) == (409, "insufficient_funds")
    key = {"Idempotency-Key": "once"}
    said = {"address": address, "amount_sat": 1_000_000}
    sent = await taker.http.post("/wallet/send", json=said, headers=key)
    assert sent.status_code == 200, sent.text
    assert (await taker.http.post("/wallet/send", json=said, headers=key)).json() == sent.json()
    assert {**sent.json(), "txid": None, "raw": None} == preview
    (change,) = (await taker.get("/wallet/coins"))["coins"]
    assert (change["value"], change["confirmations"]) == (preview["change"], 0)


async def _states(taker: Api) -> None:
    """The statement of a payment in and one out, which has no block yet."""
    told = await taker.get("/wallet/transactions")
    went, came = told["transactions"]
    assert (told["next"], told["stale"], told["reason"]) == (None, False, None)
    assert (came["received"], came["spent"], came["amount"], came["fee"]) == (MONEY, 0, MONEY, None)
    assert came["confirmations"] >= 1
    assert came["time"] > 1_500_000_000
    assert went["amount"] == went["received"] - went["spent"] == -1_000_000 - went["fee"]
    assert (went["confirmations"], went["height"], went["time"], went["of"]) == (0, None, None, None)
    first = await taker.get("/wallet/transactions?limit=1")
    assert (first["transactions"], first["next"]) == ([went], went["txid"])
    rest = await taker.get(f"/wallet/transactions?limit=1&before={first['next']}")
    assert (rest["transactions"], rest["next"]) == ([came], None)
    last = await taker.get(f"/wallet/transactions?before={came['txid']}")
    assert (last["transactions"], last["next"]) == ([], None)
    for asked, field in ((f"before={'00' * 32}", "before"), ("before=x", "before"), ("limit=501", "limit")):
        wrong = await taker.http.get(f"/wallet/transactions?{asked}")
        assert (wrong.status_code, wrong.json()["field"]) == (422, field)
    # away, the last known ones are told, with their age
    assert (await taker.post("/services/wallet/stop")).status_code in (200, 202)
    away = await taker.get("/wallet/transactions")
    assert (away["transactions"], away["stale"]) == (told["transactions"], True)
    assert "wallet" in away["reason"]
    assert (await taker.post("/services/wallet/start")).status_code in (200, 202)
    await taker.healthy()

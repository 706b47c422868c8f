"""The desk over HTTP, as a person or a bot meets it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
import trio.testing

from node import files
from node.clock import Clock
from node.config import HostPort
from node.desk import Desk
from node.policy import Kept, Policy
from node.web.desk_api import desk_router
from node.web.server import create_app, serve
from node.web.sockets import bind_api, url_of
from protocols.codec import Rejected
from protocols.contract.numbers import parse_rate
from protocols.contract.terms import SYMBOL, Role
from protocols.rollover import Conditions
from scripts import desk_bot
from tests.feeds import HandFed
from tests.positions import PEER, history
from tests.setups import order

CONFIGURED = Policy(max_quantity={SYMBOL: 5_000}, max_exposure={SYMBOL: 50_000}).changed(
    Policy(accept_orders="manual", accept_rollovers="manual", accept_closes="manual")
)
OPEN = history(Role.MAKER).position


class Bot:
    """A desk, and its user."""

    def __init__(self, http: httpx2.AsyncClient, desk: Desk, feed: HandFed) -> None:
        self.http, self.desk, self.feed = http, desk, feed

    async def ask(self, method: str, path: str, **body: Any) -> httpx2.Response:
        return await self.http.request(method, path, json=body or None)

    async def get(self, path: str) -> Any:
        answer = await self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def told(self, method: str, path: str, **body: Any) -> tuple[int, str, str | None]:
        """Status, code and field of a problem."""
        answer = await self.ask(method, path, **body)
        problem = answer.json()
        return answer.status_code, problem["code"], problem.get("field")


@asynccontextmanager
async def a_bot(data: Path | None = None) -> AsyncIterator[Bot]:
    clock, ids = Clock(), iter(range(1, 100))
    feed = HandFed(clock)
    feed.tell("54000")
    desk = Desk(CONFIGURED, {SYMBOL: feed}, clock, lambda size: next(ids).to_bytes(size, "big"))
    with bind_api(HostPort("127.0.0.1", 0)) as listener:
        async with trio.open_nursery() as nursery:
            app = create_app([desk_router(desk, CONFIGURED, data)], token="t", sockets=[listener])
            await nursery.start(serve, app, [listener])
            headers = {"Authorization": "Bearer t"}
            async with httpx2.AsyncClient(base_url=url_of(listener) + "/api/v1", headers=headers) as http:
                yield Bot(http, desk, feed)
            nursery.cancel_scope.cancel()


async def test_a_bot_answers_what_comes(nursery: trio.Nursery) -> None:
    """The loop of docs/maker.md: wait for news, answer, wait for what comes next."""
    async with a_bot() as bot:
        answers: dict[str, object] = {}

        async def ask_all() -> None:
            peer = PEER[Role.MAKER]
            answers["order"] = await bot.desk.decide_order(order(), peer, ())
            answers["rollover"] = await bot.desk.decide_rollover(OPEN, OPEN.plan())
            answers["close"] = await bot.desk.decide_close(OPEN, "54000")

        nursery.start_soon(ask_all)
        for kind, body in (("order", {}), ("rollover", {"funding_rate": "0.0002", "price": "54001"}), ("close", {})):
            news = await bot.get("/requests?wait=20")
            (request,) = news["requests"]
            assert (request["kind"], request["order_id"]) == (kind, OPEN.id.hex())
            assert (request["counterparty"], request["symbol"]) == (PEER[Role.MAKER].hex(), SYMBOL)
            assert (request["side"], request["quantity"], request["price"]) == ("short", 3_500, "54000")
            assert request["answer_by"] - request["since"] in {25, 55}
            if kind == "close":
                answer = await bot.ask("POST", f"/requests/{request['id']}/reject", sentence="not now")
            else:
                answer = await bot.ask("POST", f"/requests/{request['id']}/accept", **body)
            assert (answer.status_code, answer.json()) == (200, request)
            assert await bot.told("POST", f"/requests/{request['id']}/accept") == (404, "no_such_request", None)
        await trio.testing.wait_all_tasks_blocked()
        assert answers == {
            "order": None,
            "rollover": Conditions("0.0002", "54001"),
            "close": Rejected("declined_by_hand", "not now"),
        }
        after = (await bot.get("/requests"))["number"]
        assert await bot.get(f"/requests?wait=0.05&after={after}") == {"number": after, "requests": []}


async def test_what_the_rules_no_longer_allow_waits_on(nursery: trio.Nursery) -> None:
    async with a_bot() as bot:
        nursery.start_soon(bot.desk.decide_close, OPEN, "54000")
        (request,) = (await bot.get("/requests?wait=20"))["requests"]
        accept = f"/requests/{request['id']}/accept"
        bot.feed.tell("50000")
        assert await bot.told("POST", accept) == (409, "price_moved", None)
        assert await bot.told("POST", accept, price="54000") == (422, "bad_value", "price")
        assert await bot.told("POST", accept, colour="blue") == (422, "malformed", "colour")
        reject = f"/requests/{request['id']}/reject"
        assert await bot.told("POST", reject, sentence="two\nlines") == (422, "bad_value", "sentence")
        assert [each["id"] for each in (await bot.get("/requests"))["requests"]] == [request["id"]]


async def test_the_policy_is_seen_and_changed() -> None:
    async with a_bot() as bot:
        before = await bot.get("/policy")
        assert before["changed"] == []
        assert (before["price_band"], before["close_band"], before["max_margin"]) == ("0.01", "0.001", None)
        answer = await bot.ask("PATCH", "/policy", max_exposure={SYMBOL: 70}, price_band="0.02", max_margin=10**8)
        after = {**before, "max_exposure": {SYMBOL: 70}, "price_band": "0.02", "max_margin": 10**8}
        assert answer.json() == {**after, "changed": ["max_exposure", "max_margin", "price_band"]}
        assert await bot.get("/policy") == answer.json()
        assert bot.desk.policy.max_quantity == {SYMBOL: 5_000}
        await bot.ask("PATCH", "/policy", max_margin=None)
        assert bot.desk.policy.max_margin is None
        assert (await bot.ask("DELETE", "/policy")).json() == before


async def test_what_the_operator_said_is_kept(tmp_path: Path) -> None:
    assert Kept.read(tmp_path) == Kept()
    async with a_bot(tmp_path) as bot:
        await bot.ask("PATCH", "/policy", max_exposure={SYMBOL: 70}, max_margin=None)
        await bot.ask("PATCH", "/policy", price_band="0.02")
        set_rate = (await bot.ask("PUT", f"/rates/{SYMBOL}", funding_rate="0.0003")).json()
        kept = Kept.read(tmp_path)
        assert CONFIGURED.changed(kept.changes) == bot.desk.policy
        assert kept.changes.model_fields_set == {"max_exposure", "max_margin", "price_band"}
        assert kept.rates == {SYMBOL: ("0.0003", set_rate["since"])}
        await bot.ask("DELETE", f"/rates/{SYMBOL}")
        assert Kept.read(tmp_path).rates == {}
        files.policy_file(tmp_path).write_text('{"policy": {"price_band": "9"}, "rates": {}}')
        with pytest.raises(ValueError, match="price_band"):
            Kept.read(tmp_path)


async def test_what_cannot_be_kept_is_not_in_force(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with a_bot(tmp_path / "file") as bot:
        assert await bot.told("PATCH", "/policy", price_band="0.03") == (503, "not_written", None)
        assert await bot.told("PUT", f"/rates/{SYMBOL}", funding_rate="0.1") == (503, "not_written", None)
        assert bot.desk.policy == CONFIGURED
        assert bot.desk.rates == {}


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"price_band": "0.6"}, "price_band"),
        ({"close_band": 0.001}, "close_band"),
        ({"close_band": "-0.1"}, "close_band"),
        ({"max_exposure": {SYMBOL: 0}}, f"max_exposure.{SYMBOL}"),
        ({"max_exposure": {SYMBOL: True}}, f"max_exposure.{SYMBOL}"),
        ({"max_exposure": {"DOGEUSD": 5}}, "max_exposure.DOGEUSD.[key]"),
        ({"funding_rate": {SYMBOL: "2"}}, f"funding_rate.{SYMBOL}"),
        ({"rate_max_age": 0}, "rate_max_age"),
        ({"accept_closes": "never"}, "accept_closes"),
        ({"colour": "blue"}, "colour"),
    ],
)
async def test_what_a_policy_cannot_be_is_named_and_nothing_changes(said: dict[str, Any], field: str) -> None:
    async with a_bot() as bot:
        assert await bot.told("PATCH", "/policy", max_margin=7, **said) == (422, "malformed", field)
        assert bot.desk.policy == CONFIGURED


async def test_a_rate_is_set_read_and_withdrawn() -> None:
    async with a_bot() as bot:
        nothing = {"funding_rate": None, "since": None, "stale_at": None, "stale": False}
        assert await bot.get("/rates") == {SYMBOL: nothing}
        assert await bot.told("DELETE", f"/rates/{SYMBOL}") == (404, "no_such_rate", None)
        answer = (await bot.ask("PUT", f"/rates/{SYMBOL}", funding_rate="0.0003")).json()
        assert (answer["funding_rate"], answer["stale"]) == ("0.0003", False)
        assert answer["stale_at"] - answer["since"] == 86_400
        assert await bot.get("/rates") == {SYMBOL: answer}
        assert bot.desk.rate(SYMBOL, "0") == "0.0003"
        assert await bot.told("PUT", f"/rates/{SYMBOL}", funding_rate="3") == (422, "malformed", "funding_rate")
        assert await bot.told("PUT", "/rates/DOGEUSD", funding_rate="0") == (422, "malformed", "symbol")
        assert (await bot.ask("DELETE", f"/rates/{SYMBOL}")).json() == nothing
        assert bot.desk.rate(SYMBOL, "0") == "0"


@pytest.mark.parametrize(
    ("exposure", "rate"),
    [(0, "0"), (50_000, "-0.0005"), (-50_000, "0.0005"), (-25_000, "0.00025"), (1, "-0.00000001"), (-100_000, "0.001")],
)
def test_the_bots_rate_leans_against_the_exposure(exposure: int, rate: str) -> None:
    assert desk_bot.leaning(exposure, 50_000) == rate
    parse_rate(rate)


async def test_the_example_bot_answers(nursery: trio.Nursery, capsys: pytest.CaptureFixture[str]) -> None:
    async with a_bot() as bot:
        nursery.start_soon(desk_bot.answer_requests, bot.http)
        peer = PEER[Role.MAKER]
        with trio.fail_after(20):
            assert await bot.desk.decide_order(order(quantity=1_000), peer, ()) is None
            refused = await bot.desk.decide_order(order(quantity=1_100), peer, ())
            assert refused == Rejected("declined_by_hand", "at most 1000 contracts at a time")
            assert isinstance(await bot.desk.decide_rollover(OPEN, OPEN.plan()), Conditions)
            assert await bot.desk.decide_close(OPEN, "54000") is None
        nursery.cancel_scope.cancel()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()][:3] == ["order", "order", "rollover"]

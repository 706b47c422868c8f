"""Offers that follow the market: their price, when it changes, and when they are gone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from node.clock import Clock
from node.config import HostPort, MakerConfig, load
from node.errors import ConfigError, Conflict, Disconnected
from node.health import all_healthy
from node.maker import Maker
from node.offers import OfferBoard
from node.prices import STALE_AFTER, Feeds, Quote
from node.quoting import LOOK_EVERY, NOT_RUNNING, REFRESH_AFTER, Quoting, quoted_price
from node.regtest.exchange import Exchange, Mode
from node.supervision import Supervisor
from node.web.sockets import bind_api
from protocols.contract.numbers import BadNumber, format_decimal
from protocols.contract.terms import Side
from tests.setups import NOW, OFFER
from tests.worlds import running_world, until

SHORT, LONG = ("BTCUSD", Side.SHORT), ("BTCUSD", Side.LONG)
SPREAD = "0.0025"


def quote(bid: str, ask: str) -> Quote:
    return Quote("BTCUSD", bid, ask, 0.0, 0.0)


class TestPrice:
    def test_a_maker_bids_below_and_asks_above_the_quote(self) -> None:
        market = quote("54000", "54000.5")
        assert quoted_price(market, Side.LONG, "0.0025") == 53865
        assert format_decimal(quoted_price(market, Side.SHORT, "0.0025"), 2) == "54135.51"  # 54135.50125
        assert quoted_price(market, Side.LONG, "0") == 54000
        assert quoted_price(market, Side.SHORT, "0") == Fraction(108001, 2)

    @given(st.integers(1, 10**8), st.integers(0, 10**4), st.integers(0, 5 * 10**7))
    def test_it_is_less_than_a_cent_off_and_never_to_the_makers_loss(self, cents: int, width: int, part: int) -> None:
        bid, ask = Fraction(cents, 100), Fraction(cents + width, 100)
        market, spread = quote(format_decimal(bid, 2), format_decimal(ask, 2)), Fraction(part, 10**8)
        text = format_decimal(spread, 8)
        assert 0 <= bid * (1 - spread) - quoted_price(market, Side.LONG, text) < Fraction(1, 100)
        assert 0 <= quoted_price(market, Side.SHORT, text) - ask * (1 + spread) < Fraction(1, 100)

    @pytest.mark.parametrize("spread", ["", "-0.1", "0.51", "1", "0.000000001", "0.10", "1e-3", "x"])
    def test_bad_spreads_are_named(self, spread: str) -> None:
        with pytest.raises(BadNumber, match="spread is"):
            quoted_price(quote("1", "2"), Side.LONG, spread)


class Desk:
    """A maker's board, and quoting on it from an exchange in memory. The wall clock begins where `OFFER` was made."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.market = "54000"
        self.fee_rate = 2
        self.down: str | None = None
        """A service that an order would need."""
        self.clock = Clock(wall=lambda: NOW + trio.current_time())
        self.exchange = Exchange(lambda _: self.market, self.clock.now)
        self.feeds = Feeds("ws://exchange.example/realtime", self.clock, dial=self._dial)
        self.feed = self.feeds["BTCUSD"]
        self.board = OfferBoard(self.clock)
        self.ids = iter(bytes([n]) * 16 for n in range(1, 256))
        self.quoting = Quoting(
            self.feeds,
            self.board,
            self.clock,
            step="0.001",
            check_ready=self._check_ready,
            fee_rate=self._ask_fee_rate,
            entropy=lambda _: next(self.ids),
        )
        self.supervisor = Supervisor(clock=self.clock, raise_bugs=True)
        self.prices = self.supervisor.service("prices", self._run_feed)
        self.service = self.supervisor.service("quoting", self.quoting.run)

    async def _dial(self) -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.exchange.talk, theirs)
        return ours

    async def _run_feed(self, *, task_status: trio.TaskStatus[None]) -> None:
        await self.feeds.run(task_status=task_status)

    def _check_ready(self) -> None:
        if self.down is not None:
            raise Disconnected(self.down, "restarting")

    async def _ask_fee_rate(self) -> int:
        return self.fee_rate

    def follow(self, side: Side = Side.SHORT, **changes: Any) -> Any:
        return self.quoting.follow(evolve(OFFER, side=side, **changes), SPREAD)

    def price(self, side: Side = Side.SHORT) -> str | None:
        """Of what stands."""
        return next((offer.price for offer in self.board.standing() if offer.side is side), None)

    async def settle(self) -> None:
        """Long enough for a price to reach the board."""
        await trio.sleep(2 * LOOK_EVERY + 0.6)


@pytest.fixture
async def desk(autojump_clock: MockClock) -> AsyncIterator[Desk]:
    async with trio.open_nursery() as nursery:
        desk = Desk(nursery)
        await nursery.start(desk.supervisor.run)
        await desk.feed.after(None)
        yield desk
        nursery.cancel_scope.cancel()


class TestQuoting:
    async def test_both_sides_stand_at_once_around_the_quote(self, desk: Desk, autojump_clock: MockClock) -> None:
        asked, bid = desk.follow(), desk.follow(Side.LONG)
        assert (desk.price(Side.SHORT), desk.price(Side.LONG)) == ("54135.51", "53865")
        assert (asked.reason, bid.reason) == (None, None)
        assert asked.offer == evolve(OFFER, id=asked.offer.id, price="54135.51", created=asked.offer.created)
        assert asked.offer.created == int(desk.clock.now())

    async def test_a_small_move_leaves_the_offer_and_a_larger_one_makes_a_new_one(
        self, desk: Desk, autojump_clock: MockClock
    ) -> None:
        first = desk.follow().offer
        desk.market = "54053"  # 0.98 thousandths
        await desk.settle()
        assert desk.board.standing() == (first,)
        desk.market = "54055"
        await desk.settle()
        (second,) = desk.board.standing()
        assert (second.price, second.id != first.id) == ("54190.64", True)
        desk.market = "53990"
        await desk.settle()
        assert desk.price() == "54125.48"
        assert desk.board.find(first.id) is desk.board.find(second.id) is None

    async def test_a_wild_market_makes_no_more_than_a_price_each_look(
        self, desk: Desk, autojump_clock: MockClock
    ) -> None:
        desk.follow()
        seen: set[bytes] = set()
        for n in range(100):
            desk.market = str(50_000 + 1_000 * (n % 7))
            seen.update(offer.id for offer in desk.board.standing())
            await trio.sleep(0.1)
        assert 10 < len(seen) <= 10 / LOOK_EVERY + 1

    async def test_an_offer_is_made_anew_each_minute_and_pays_the_fees_of_its_time(
        self, desk: Desk, autojump_clock: MockClock
    ) -> None:
        first = desk.follow(fee_rate=7).offer
        assert first.fee_rate == 7  # as was asked for just now
        desk.fee_rate = 9
        await trio.sleep(REFRESH_AFTER - 1)
        assert desk.board.standing() == (first,)
        await trio.sleep(1 + 2 * LOOK_EVERY)
        (second,) = desk.board.standing()
        assert second == evolve(first, id=second.id, fee_rate=9, created=first.created + int(REFRESH_AFTER))
        assert second.id != first.id
        for _ in range(11):  # longer than an offer may stand
            await trio.sleep(60)
            assert desk.price() == "54135.51"

    async def test_no_offer_stands_at_a_stale_quote_and_it_comes_back_by_itself(
        self, desk: Desk, autojump_clock: MockClock
    ) -> None:
        quoted = desk.follow()
        desk.exchange.mode = Mode.STALL
        last = desk.feed.quote
        assert last is not None
        await trio.sleep(last.since + STALE_AFTER - desk.clock.now() - 0.1)
        assert desk.price() == "54135.51"
        await trio.sleep(0.2 + LOOK_EVERY)
        assert desk.board.standing() == ()
        assert quoted.offer is None
        assert "older than 120 s" in quoted.reason
        desk.exchange.mode, desk.market = Mode.NORMAL, "60000"
        await desk.feed.after(last)
        await desk.settle()
        assert (desk.price(), quoted.reason) == ("60150.51", None)

    async def test_a_dropped_line_or_a_lie_leaves_the_last_good_price_until_it_is_stale(
        self, desk: Desk, autojump_clock: MockClock
    ) -> None:
        quoted = desk.follow()
        for mode in (Mode.CROSSED, Mode.ABSURD, Mode.DROP):
            desk.exchange.mode = mode
            await trio.sleep(30)
            assert desk.price() == "54135.51"
        await trio.sleep(40)
        assert desk.board.standing() == ()
        assert "older than 120 s" in quoted.reason

    async def test_nothing_is_offered_while_an_order_could_not_be_served(
        self, desk: Desk, autojump_clock: MockClock
    ) -> None:
        quoted = desk.follow()
        desk.down = "wallet"
        await desk.settle()
        assert desk.board.standing() == ()
        assert quoted.reason == "wallet is not available: restarting"
        desk.down = None
        await desk.settle()
        assert desk.price() == "54135.51"

    async def test_a_price_that_no_offer_can_have_is_a_reason(self, desk: Desk, autojump_clock: MockClock) -> None:
        quoted = desk.follow()
        desk.market = "1048000"
        await desk.settle()
        assert (desk.board.standing(), quoted.offer) == ((), None)
        assert quoted.reason.startswith("price is '1050620.51'")
        desk.market = "54000"
        await desk.settle()
        assert desk.price() == "54135.51"

    async def test_when_quoting_ends_its_offers_are_withdrawn(self, desk: Desk, autojump_clock: MockClock) -> None:
        quoted, by_hand = desk.follow(), evolve(OFFER, id=bytes(16), side=Side.LONG)
        desk.board.put(by_hand)
        desk.service.stop()
        await trio.testing.wait_all_tasks_blocked()
        assert desk.board.standing() == (by_hand,)
        assert quoted.reason == NOT_RUNNING
        desk.follow()
        assert desk.board.standing() == (by_hand,)
        desk.service.start()
        await desk.settle()
        assert desk.price() == "54135.51"

    async def test_what_is_forgotten_does_not_come_back(self, desk: Desk, autojump_clock: MockClock) -> None:
        desk.follow()
        desk.follow(Side.LONG)
        desk.quoting.forget(*SHORT)
        await trio.sleep(2 * REFRESH_AFTER)
        assert (desk.price(Side.SHORT), desk.price(Side.LONG)) == (None, "53865")
        desk.quoting.forget(*SHORT)  # once more does nothing
        assert [quoted.pattern.side for quoted in desk.quoting.all()] == [Side.LONG]

    async def test_following_replaces_what_stood_even_while_it_cannot_stand_itself(
        self, desk: Desk, autojump_clock: MockClock
    ) -> None:
        desk.board.put(evolve(OFFER, created=int(desk.clock.now())))
        desk.service.stop()
        await trio.testing.wait_all_tasks_blocked()
        assert desk.follow().reason == NOT_RUNNING
        assert desk.board.standing() == ()

    async def test_without_any_quote_there_is_nothing_to_check_an_offer_with(
        self, desk: Desk, autojump_clock: MockClock
    ) -> None:
        blind = Quoting(
            Feeds(None, desk.clock),
            desk.board,
            desk.clock,
            step="0",
            check_ready=desk._check_ready,
            fee_rate=desk._ask_fee_rate,
            entropy=bytes,
        )
        with pytest.raises(Conflict, match="no price feed is configured"):
            blind.price("BTCUSD", Side.LONG, SPREAD)


@asynccontextmanager
async def maker_api(folder: Path, *files: Path) -> AsyncIterator[tuple[Maker, httpx2.AsyncClient]]:
    """A maker that is configured by these files, and its API."""
    with bind_api(HostPort("127.0.0.1", 0)) as listener:
        config = load(MakerConfig, paths=files, environ={}, flags={"data": str(folder), "listen": "127.0.0.1:0"})
        maker = Maker.build(config, listener)
        async with trio.open_nursery() as nursery:
            await nursery.start(maker.core.supervisor.run)
            headers = {"Authorization": f"Bearer {(folder / 'api.token').read_text().strip()}"}
            base = (folder / "api.url").read_text().strip() + "/api/v1"
            async with httpx2.AsyncClient(base_url=base, headers=headers) as http:
                yield maker, http
            nursery.cancel_scope.cancel()


class TestApi:
    async def test_offers_with_a_spread(self, tmp_path: Path) -> None:
        async with (
            running_world(tmp_path / "world") as world,
            maker_api(tmp_path / "maker", world.config) as (maker, http),
        ):
            world.world.market.override = "54000"
            feed = maker.core.feeds["BTCUSD"]
            await until(lambda: all_healthy(maker.core.supervisor.health()))
            await until(lambda: feed.quote is not None and feed.quote.bid == "54000")
            shown = (await http.get("/prices")).json()["BTCUSD"]
            assert (shown["symbol"], shown["bid"], shown["ask"]) == ("BTCUSD", "54000", "54000.5")
            assert 0 <= shown["age"] < 10
            assert (shown["stale"], shown["reason"]) == (False, None)

            said = {"side": "short", "spread": SPREAD, "max_quantity": 1000}
            answer = await http.post("/offers", json=said)
            assert answer.status_code == 201, answer.text
            quoted = answer.json()
            assert (quoted["maker_side"], quoted["spread"], quoted["reason"]) == ("short", SPREAD, None)
            assert (quoted["offer"]["price"], quoted["offer"]["max_quantity"]) == ("54135.51", 1000)
            assert (await http.get("/offers")).json() == [quoted["offer"]]
            assert (await http.get("/maker")).json()["quoted"] == [quoted]

            gone = await http.delete(f"/offers/{quoted['offer']['id']}")
            assert gone.json() == quoted["offer"]
            assert (await http.get("/maker")).json()["quoted"] == []

            await http.post("/offers", json=said)
            stopped = await http.delete("/quoted/BTCUSD/short")
            assert stopped.json() == {**quoted, "offer": None, "reason": "no longer quoted"}
            assert (await http.delete("/quoted/BTCUSD/short")).status_code == 404

            await http.post("/offers", json=said)
            fixed = (await http.post("/offers", json={"side": "short", "price": "70000"})).json()
            assert (await http.get("/offers")).json() == [fixed]
            assert (await http.get("/maker")).json()["quoted"] == []

            for body, field in (
                ({"side": "long"}, "price"),
                ({"side": "long", "price": "1", "spread": "0"}, "price"),
                ({"side": "long", "spread": "0.9"}, "spread"),
                ({"side": "long", "spread": "0.1", "min_quantity": 7}, "min_quantity"),
            ):
                refused = await http.post("/offers", json=body)
                assert (refused.status_code, refused.json()["field"]) == (422, field)

    async def test_without_a_feed(self, tmp_path: Path) -> None:
        path = tmp_path / "config.toml"
        path.write_text(TestConfig.WORLD.replace("[prices]", ""))
        async with maker_api(tmp_path / "maker", path) as (_, http):
            assert (await http.get("/prices")).json()["BTCUSD"]["reason"] == "no price feed is configured"
            services = (await http.get("/health")).json()["services"]
            assert "prices" not in {service["name"] for service in services}


class TestConfig:
    WORLD = f"""
        network = "regtest"
        electrum = "127.0.0.1:1"
        [oracle]
        url = "http://127.0.0.1:2"
        announcement_key = "{"11" * 32}"
        attestation_key = "{"22" * 32}"
        [prices]
        """

    def config(self, folder: Path, prices: str, **environ: str) -> MakerConfig:
        path = folder / "config.toml"
        path.write_text(self.WORLD + prices)
        return load(MakerConfig, paths=[path], environ={"CFDNODE_" + name: text for name, text in environ.items()})

    def test_a_feed_is_configured_by_its_address(self, tmp_path: Path) -> None:
        config = self.config(tmp_path, 'url = "wss://ws.bitmex.com/realtime"')
        assert config.prices is not None
        assert (config.prices.stale_after, config.quote_step) == (STALE_AFTER, "0.0005")
        stricter = self.config(tmp_path, 'url = "ws://[::1]:80/realtime"', PRICES__STALE_AFTER="5", QUOTE_STEP="0.01")
        assert stricter.prices is not None
        assert (stricter.prices.stale_after, stricter.quote_step) == (5.0, "0.01")

    @pytest.mark.parametrize(
        ("prices", "environ", "said"),
        [
            ('url = "https://ws.bitmex.com/"', {}, "prices.url: 'https://ws.bitmex.com/' is not ws://host"),
            ('url = "ws://a:99999/"', {}, "prices.url: 'ws://a:99999/' is not ws://host"),
            ('url = "ws://user@a/"', {}, "prices.url: 'ws://user@a/' is not ws://host"),
            ("stale_after = 5", {}, "prices.url is needed and not set"),
            ('url = "ws://a"\nstale_after = 121', {}, "prices.stale_after: 121"),
            (
                'url = "ws://a"',
                {"QUOTE_STEP": "0.2"},
                "CFDNODE_QUOTE_STEP: '0.2' is not a decimal string from 0 to 0.1",
            ),
            ('url = "ws://a"', {"QUOTE_STEP": "5e-4"}, "CFDNODE_QUOTE_STEP: '5e-4' is not a decimal string"),
        ],
    )
    def test_mistakes_are_named(self, tmp_path: Path, prices: str, environ: dict[str, str], said: str) -> None:
        with pytest.raises(ConfigError) as refused:
            self.config(tmp_path, prices, **environ)
        assert said in refused.value.sentence

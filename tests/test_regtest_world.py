"""The world in a box: its configuration file, control, oracle, prices, and what survives a restart."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio

from node.clock import Clock
from node.config import TakerConfig, WorldConfig, load
from node.errors import NotFound
from node.oracle.server import AHEAD, AttestedPrices, Oracle, OracleKeys
from node.regtest.consensus import Chain
from node.regtest.index import Index, script_hash
from node.regtest.mempool import Mempool
from node.regtest.prices import HIGHEST, LOWEST, STEP, RandomWalk, RecordedPath, decimal
from node.regtest.treasury import Treasury
from node.regtest.world import FIRST_BLOCKS, RunningWorld, run_world
from node.wallet.address import to_address
from protocols.contract.numbers import parse_price
from protocols.contract.oracle import (
    DLC,
    OLIVIA,
    Announcement,
    Scheme,
    opening_scalar,
    parse_announcement,
    parse_attestation,
)
from protocols.contract.symbols import SYMBOLS
from protocols.errors import LocalError, WorldError

SOMEONE = b"\x00\x14" + bytes(range(20))
BASE = 1_700_000_400  # a few minutes after a full hour


class Wall:
    """A wall clock that tests push."""

    def __init__(self, now: float = BASE) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def running(config: WorldConfig, wall: Callable[[], float] | None = None) -> AsyncIterator[RunningWorld]:
    options: dict[str, Any] = {} if wall is None else {"wall": wall}
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[RunningWorld]) -> None:
            await run_world(config, task_status=task_status, **options)

        yield await nursery.start(run)
        nursery.cancel_scope.cancel()


class TestWorld:
    async def test_nodes_read_its_configuration_and_find_everything(self, tmp_path: Path) -> None:
        async with running(WorldConfig(data=tmp_path)) as world:
            taker = load(TakerConfig, paths=[world.config], environ={}, flags={"data": str(tmp_path / "taker")})
            assert (taker.network, taker.electrum) == ("regtest", (world.electrum,))
            assert taker.make_clock() == world.clock
            assert taker.regtest is not None
            assert taker.oracle.announcement_key == world.announcement_key.hex()
            async with httpx2.AsyncClient() as http:
                state = (await http.get(f"{taker.regtest.control}/state")).json()
                event = DLC.event_id("BTCUSD", (world.clock.calendar() // 3600 + 24) * 3600)
                answer = await http.get(taker.oracle.url + DLC.path(event))
            assert state["height"] == FIRST_BLOCKS
            announcement = parse_announcement(
                answer.content,
                announcement_key=bytes.fromhex(taker.oracle.announcement_key),
                attestation_key=bytes.fromhex(taker.oracle.attestation_key),
                scheme=taker.oracle.scheme,
            )
            assert announcement.id == event
            host, _, port = world.electrum.partition(":")
            await (await trio.open_tcp_stream(host, int(port))).aclose()

    async def test_hours_pass_blocks_come_and_prices_are_attested(self, tmp_path: Path) -> None:
        async with running(WorldConfig(data=tmp_path, hour=1.0)) as world, httpx2.AsyncClient() as http:
            event = (world.clock.calendar() // 3600 + 2) * 3600
            height = world.world.chain.height
            with trio.fail_after(30):
                while True:
                    answer = await http.get(world.oracle + OLIVIA.path(OLIVIA.event_id("BTCUSD", event)))
                    if answer.json()["attestation"] is not None:
                        break
                    await trio.sleep(0.1)
            assert world.world.chain.height > height
            price = world.world.market.at(event)
            attested = (tmp_path / "oracle.attested").read_text()
            assert f"{event} {int(parse_price(price))}\n" in attested

    async def test_control(self, tmp_path: Path) -> None:
        async with (
            running(WorldConfig(data=tmp_path)) as world,
            httpx2.AsyncClient(base_url=world.control) as http,
        ):
            address = to_address(SOMEONE, "regtest")
            funded = (await http.post("/fund", json={"address": address, "amount_sat": 123_456})).json()["txid"]
            waiting = (await http.get(f"/tx/{funded}")).json()
            assert (waiting["confirmations"], waiting["block"]) == (0, None)
            assert (await http.get("/state")).json()["mempool"] == [funded]
            mined = (await http.post("/mine", json={"blocks": 2})).json()
            assert mined["height"] == FIRST_BLOCKS + 2
            found = (await http.get(f"/tx/{funded}")).json()
            assert (found["confirmations"], found["height"]) == (2, FIRST_BLOCKS + 1)
            (coin,) = world.world.index.unspent(script_hash(SOMEONE)).values()
            assert coin.output.value == 123_456
            spent = world.world.index.blocks[1][0][::-1].hex()
            assert (await http.get(f"/spender/{spent}/0")).json() == {"txid": funded}
            assert (await http.get(f"/spender/{funded}/0")).json() == {"txid": None}

            back = (await http.post("/reorganise", json={"depth": 2})).json()
            assert back["height"] == FIRST_BLOCKS + 3
            assert (await http.get("/state")).json()["mempool"] == [funded]
            await http.post("/mine", json={"address": address})
            assert len(world.world.index.unspent(script_hash(SOMEONE))) == 2

            assert (await http.post("/price", json={"price": "61234.5"})).json()["price"] == "61234.5"
            state = (await http.get("/state")).json()
            assert (state["price"], state["price_overridden"]) == ("61234.5", True)
            said = (await http.post("/price", json={"symbol": "ETHUSD", "price": "2500.75"})).json()
            assert said == {"symbol": "ETHUSD", "price": "2500.75"}
            assert (await http.get("/state")).json()["prices"] == {"BTCUSD": "61234.5", "ETHUSD": "2500.75"}
            unknown = await http.post("/price", json={"symbol": "XRPUSD", "price": "1"})
            assert "allowed is BTCUSD or ETHUSD" in unknown.text
            assert (await http.post("/price", json={"price": None})).json()["price"] != "61234.5"
            assert (await http.post("/schedule", json={"on": False})).json() == {"scheduled": False}
            assert (await http.get("/state")).json()["scheduled"] is False

    async def test_blocks_take_only_what_pays_their_floor(self, tmp_path: Path) -> None:
        async with (
            running(WorldConfig(data=tmp_path)) as world,
            httpx2.AsyncClient(base_url=world.control) as http,
        ):
            fund = {"address": to_address(SOMEONE, "regtest"), "amount_sat": 10_000}
            poor = (await http.post("/fund", json=fund)).json()["txid"]
            assert (await http.post("/fees", json={"sat_per_vb": 30, "floor": 20})).json() == {
                "sat_per_vb": 30,
                "floor": 20,
            }
            await http.post("/mine", json={})
            assert (await http.get("/state")).json()["mempool"] == [poor]
            rich = (await http.post("/fund", json=fund)).json()["txid"]
            await http.post("/mine", json={})
            state = (await http.get("/state")).json()
            assert (state["mempool"], state["fees"]) == ([poor], {"sat_per_vb": 30, "floor": 20})
            assert (await http.get(f"/tx/{rich}")).json()["confirmations"] == 1
            assert (await http.post("/fees", json={"sat_per_vb": 2})).json() == {"sat_per_vb": 2, "floor": 20}
            await http.post("/fees", json={"sat_per_vb": 2, "floor": 0})
            await http.post("/mine", json={})
            assert (await http.get("/state")).json()["mempool"] == []

    async def test_bad_requests_are_problems_that_name_the_field(self, tmp_path: Path) -> None:
        good = to_address(SOMEONE, "regtest")
        requests: list[tuple[str, dict[str, object] | None, int, str]] = [
            ("/fund", {"address": "bc1qqqqq", "amount_sat": 1000}, 400, "address 'bc1qqqqq'"),
            ("/fund", {"address": good, "amount_sat": 100}, 400, "amount_sat is 100, allowed is 294 or more"),
            ("/fund", {"address": good, "amount_sat": 20_000_000 * 10**8}, 400, "allowed is at most"),
            ("/fund", {"address": good, "amount_sat": -1}, 422, "amount_sat"),
            ("/fund", {"address": good, "amount_sat": "1000"}, 422, "amount_sat"),
            ("/fund", {"address": good}, 422, "amount_sat"),
            ("/mine", {"blocks": 1001}, 422, "blocks"),
            ("/mine", {"bocks": 1}, 422, "bocks"),
            ("/price", {"price": "1e5"}, 400, "price is '1e5'"),
            ("/schedule", {"on": "yes"}, 422, "on"),
            ("/reorganise", {"depth": 0}, 422, "depth"),
            ("/tx/00", None, 400, "txid is '00'"),
            ("/tx/" + 64 * "0", None, 404, "in no block"),
            ("/nothing", None, 404, "/nothing"),
        ]
        async with running(WorldConfig(data=tmp_path)) as world, httpx2.AsyncClient(base_url=world.control) as http:
            for path, body, status, said in requests:
                answer = await (http.get(path) if body is None else http.post(path, json=body))
                assert (path, answer.status_code) == (path, status)
                assert answer.headers["content-type"] == "application/problem+json"
                assert said in answer.json()["detail"]
            assert world.world.chain.height == FIRST_BLOCKS
            assert not world.world.mempool.entries

    async def test_survives_a_restart(self, tmp_path: Path) -> None:
        config, wall = WorldConfig(data=tmp_path, seed=7), Wall(time.time())
        async with running(config, wall) as first, httpx2.AsyncClient() as http:
            await http.post(
                f"{first.control}/fund", json={"address": to_address(SOMEONE, "regtest"), "amount_sat": 5000}
            )
            await http.post(f"{first.control}/mine", json={})
            event = DLC.path(DLC.event_id("BTCUSD", (first.clock.calendar() // 3600 + 2) * 3600))
            announced = (await http.get(first.oracle + event)).content
            await http.post(f"{first.control}/price", json={"price": "77777.77"})
            wall.now += 3600 * 3
            attested = (await http.get(first.oracle + event)).content
            assert attested != announced
            tip = first.world.chain.tip
        async with running(config, wall) as second, httpx2.AsyncClient() as http:
            assert (second.electrum, second.oracle, second.control) == (first.electrum, first.oracle, first.control)
            assert (second.world.chain.tip, second.clock.anchor) == (tip, first.clock.anchor)
            assert second.clock.calendar() == first.clock.calendar()
            assert (second.announcement_key, second.attestation_key) == (
                first.announcement_key,
                first.attestation_key,
            )
            # the price that was attested stays, though nobody overrides the path any more
            assert (await http.get(second.oracle + event)).content == attested
            assert len(second.world.index.unspent(script_hash(SOMEONE))) == 1

    async def test_what_it_cannot_run_on_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(LocalError, match=r"hour is 0\.5"):
            await run_world(WorldConfig(data=tmp_path / "a", hour=0.5))
        with pytest.raises(LocalError, match=r"cannot read .*nowhere"):
            await run_world(WorldConfig(data=tmp_path / "a", prices=tmp_path / "nowhere"))
        assert not (tmp_path / "a").exists()
        async with running(WorldConfig(data=tmp_path / "b")) as world:
            port = int(world.control.rpartition(":")[2])
            with pytest.raises(WorldError, match="already held by process"):
                await run_world(WorldConfig(data=tmp_path / "b"))
            with pytest.raises(WorldError, match=f"cannot listen on 127.0.0.1:{port}"):
                await run_world(WorldConfig(data=tmp_path / "c", control_port=port))
            assert not (tmp_path / "c").exists()
        with pytest.raises(LocalError, match="runs at 3600 seconds an hour"):
            await run_world(WorldConfig(data=tmp_path / "b", hour=2))
        (tmp_path / "b" / "world.toml").write_text("[clock]\nhour = 'x'")
        with pytest.raises(LocalError, match="start in a new directory"):
            await run_world(WorldConfig(data=tmp_path / "b"))


class TestTreasury:
    def test_pays_from_many_coins_and_from_its_change(self, tmp_path: Path) -> None:
        with Chain(tmp_path) as chain:
            mempool = Mempool(chain, index := Index(chain))
            treasury = Treasury(chain, mempool)
            with pytest.raises(LocalError, match="mine more blocks"):
                treasury.pay(SOMEONE, 10**6)
            chain.mine_many(103, script=treasury.script)
            large = treasury.pay(SOMEONE, 120 * 10**8)
            assert len(mempool.entries[large].transaction.vin) == 3
            # one coin is left to mature coinbases: the rest comes from unconfirmed change
            for _ in range(3):
                treasury.pay(SOMEONE, 5 * 10**8)
            assert all(entry.fee >= 3 * entry.vsize for entry in mempool.entries.values())
            chain.mine(mempool.block_template(), script=treasury.script)
            assert not mempool.entries
            held = sum(coin.output.value for coin in index.unspent(script_hash(SOMEONE)).values())
            assert held == 135 * 10**8


class TestOracle:
    def oracle(self, tmp_path: Path, wall: Wall, market: Callable[[str, int], str] = lambda *_: "49262.8") -> Oracle:
        keys = OracleKeys.load(tmp_path / "secret")
        prices = AttestedPrices(tmp_path / "attested")
        return Oracle(keys, prices, Clock(wall=wall), since=BASE, market=market)

    def announced(self, oracle: Oracle, scheme: Scheme, raw: bytes) -> Announcement:
        announcement, attestation = oracle.keys.public(scheme)
        return parse_announcement(raw, announcement_key=announcement, attestation_key=attestation, scheme=scheme.name)

    @pytest.mark.parametrize("scheme", [DLC, OLIVIA], ids=lambda scheme: scheme.name)
    def test_announces_for_two_days_and_attests_when_the_time_comes(self, tmp_path: Path, scheme: Scheme) -> None:
        wall = Wall()
        oracle = self.oracle(tmp_path, wall)
        first = -(-BASE // 3600) * 3600
        for event in (first, (BASE + AHEAD) // 3600 * 3600):
            raw = oracle.answer(scheme, scheme.event_id("BTCUSD", event))
            announcement = self.announced(oracle, scheme, raw)
            assert (announcement.time, parse_attestation(raw, announcement)) == (event, None)
            wall.now = event - 1
            assert oracle.answer(scheme, announcement.id) == raw
            wall.now = event
            attestation = parse_attestation(oracle.answer(scheme, announcement.id), announcement)
            assert attestation is not None
            assert attestation.price == 49262
            assert len(opening_scalar(attestation, announcement, "0000")) == 32
            wall.now = BASE

    def test_schemes_attest_the_same_price_under_keys_and_nonces_of_their_own(self, tmp_path: Path) -> None:
        """Two scalars of one nonce, s = p + r and s = r + e·p, would give p away."""
        wall = Wall(BASE + 7200)
        prices = iter(["50000", "60000"])
        oracle = self.oracle(tmp_path, wall, market=lambda *_: next(prices))
        event = BASE // 3600 * 3600 + 3600
        answers = {scheme: oracle.answer(scheme, scheme.event_id("BTCUSD", event)) for scheme in (DLC, OLIVIA)}
        announcements = {scheme: self.announced(oracle, scheme, raw) for scheme, raw in answers.items()}
        attested = {scheme: parse_attestation(raw, announcements[scheme]) for scheme, raw in answers.items()}
        assert [each and each.price for each in attested.values()] == [50_000, 50_000]
        public = [x for each in announcements.values() for x in (each.key, *each.nonces)]
        assert len(set(public)) == 42

    @pytest.mark.parametrize(
        "name",
        [
            "nonsense",
            "/x/BitMEX/BXBT/nonsense",
            BASE // 3600 * 3600,  # before the world began
            (BASE + AHEAD) // 3600 * 3600 + 3600,
            BASE // 3600 * 3600 + 5400,
        ],
    )
    @pytest.mark.parametrize("scheme", [DLC, OLIVIA], ids=lambda scheme: scheme.name)
    def test_other_events_are_not_announced(self, tmp_path: Path, scheme: Scheme, name: str | int) -> None:
        with pytest.raises(NotFound):
            self.oracle(tmp_path, Wall()).answer(
                scheme, name if isinstance(name, str) else scheme.event_id("BTCUSD", name)
            )

    def test_a_price_is_decided_once(self, tmp_path: Path) -> None:
        wall = Wall(BASE + 7200)
        event = DLC.event_id("BTCUSD", BASE // 3600 * 3600 + 3600)
        attested = self.oracle(tmp_path, wall).answer(DLC, event)
        # killed while writing the next one
        with (tmp_path / "attested").open("a") as file:
            file.write("BTCUSD 17000")
        again = self.oracle(tmp_path, wall, market=lambda *_: "1")
        assert again.answer(DLC, event) == attested
        later = DLC.event_id("BTCUSD", BASE // 3600 * 3600 + 7200)
        assert again.answer(DLC, later) == self.oracle(tmp_path, wall).answer(DLC, later)

    async def test_prices_are_decided_when_the_hour_comes(
        self, tmp_path: Path, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
    ) -> None:
        prices = iter(["50000", "3000", "60000.99", "3100.5", "70000"])
        keys, attested = OracleKeys.load(tmp_path / "secret"), AttestedPrices(tmp_path / "attested")
        clock = Clock(hour=60.0, anchor=BASE, wall=lambda: BASE + trio.current_time())
        oracle = Oracle(keys, attested, clock, since=BASE, market=lambda *_: next(prices))
        nursery.start_soon(oracle.run)
        await trio.sleep(60.0 * 2 + 1)
        first = BASE // 3600 * 3600 + 3600
        assert (tmp_path / "attested").read_text() == (
            f"BTCUSD {first} 50000\nETHUSD {first} 3000\nBTCUSD {first + 3600} 60000\nETHUSD {first + 3600} 3100\n"
        )

    def test_a_damaged_secret_is_named_and_not_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(b"short")
        with pytest.raises(WorldError, match="has 5 bytes, not 32"):
            OracleKeys.load(tmp_path / "secret")

    def test_its_secret_is_the_owners_alone_and_never_shown(self, tmp_path: Path) -> None:
        keys = OracleKeys.load(tmp_path / "secret", lambda n: bytes(range(n)))
        assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
        assert repr(keys) == "OracleKeys()"
        assert OracleKeys.load(tmp_path / "secret") == keys
        secrets = [keys.announcement_secret(OLIVIA), *(keys.attestation_secret(each) for each in (DLC, OLIVIA))]
        for each in (DLC, OLIVIA):
            for symbol, moment in product(SYMBOLS, (3600, 7200)):
                secrets += keys.nonces(each, each.event_id(symbol, moment))
        assert len(set(secrets)) == 163


class TestPrices:
    def test_a_walk_is_the_same_for_its_seed_and_keeps_to_its_range(self) -> None:
        walk, again, other = RandomWalk(1), RandomWalk(1), RandomWalk(2)
        late = again.price(STEP * 5000)
        prices = [walk.price(STEP * n) for n in range(5001)]
        assert prices[-1] == late != other.price(STEP * 5000)
        assert (walk.price(-5), walk.price(STEP - 1)) == ("50000", "50000")
        assert all(LOWEST <= 100 * parse_price(price) <= HIGHEST for price in prices)
        assert len(set(prices)) > 4500
        edge = RandomWalk(3, start=HIGHEST)
        assert {parse_price(edge.price(STEP * n)) <= HIGHEST // 100 for n in range(50)} == {True}

    def test_a_recorded_path_holds_each_price_until_the_next(self, tmp_path: Path) -> None:
        file = tmp_path / "prices.csv"
        file.write_text("seconds,price\n# a fall\n0,50000\n\n3600, 45000.5\n7200,40000\n")
        path = RecordedPath.read(file)
        assert [path.price(at) for at in (-1, 0, 3599, 3600, 7200, 10**9)] == [
            "50000",
            "50000",
            "50000",
            "45000.5",
            "40000",
            "40000",
        ]

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("0,50000,1\n", "line 1: '0,50000,1' is not seconds,price"),
            ("0,50000\nx,1\n", "line 2: seconds 'x'"),
            ("0,50000\n0,1\n", "line 2: seconds 0 is not later"),
            ("0,5e4\n", "line 1: price is '5e4'"),
            ("0,0\n", "line 1: price is '0'"),
            ("# nothing\n", "has no rows"),
        ],
    )
    def test_a_bad_file_is_named_with_its_line(self, tmp_path: Path, text: str, said: str) -> None:
        file = tmp_path / "prices.csv"
        file.write_text(text)
        with pytest.raises(LocalError, match="prices: ") as refused:
            RecordedPath.read(file)
        assert said in refused.value.sentence

    def test_cents_are_written_canonically(self) -> None:
        assert [decimal(cents) for cents in (5_000_000, 5_000_010, 5_000_001)] == ["50000", "50000.1", "50000.01"]
        for cents in range(100, 1000):
            assert parse_price(decimal(cents)) * 100 == cents

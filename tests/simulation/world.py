"""What there is in a run: the chain, the oracle, prices, and the nodes over all their lives.

An hour of the calendar is a minute of the clock. Nothing leaves the process, and nothing is drawn but from the seed.
"""

from __future__ import annotations

import atexit
import hashlib
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from pathlib import Path
from typing import Any

import httpx2
import structlog
import trio
from attrs import Factory, define, field, frozen

from node.backup.files import MemoryFiles
from node.backup.format import Seal
from node.backup.service import Backup, Owner, run_backup
from node.chain.electrum import ElectrumClient
from node.clock import Clock
from node.config import MakerConfig, NodeConfig, TakerConfig
from node.errors import NotFound
from node.eventstore.memory import MemoryBackend, run_memory_store
from node.eventstore.memory import inline as at_once
from node.health import Report
from node.maker import Maker
from node.network.address import Identity
from node.network.conversation import inline
from node.network.endpoint import Endpoint
from node.oracle.server import AttestedPrices, Mode, Oracle, OracleKeys
from node.position.state import Position
from node.prices import Feed, Quote
from node.regtest.consensus import Chain
from node.regtest.electrum_methods import Json, Methods
from node.regtest.electrum_server import ElectrumServer
from node.regtest.index import Index, script_hash
from node.regtest.mempool import Mempool
from node.regtest.treasury import Treasury
from node.seams import Seams
from node.supervision import ReportingRun
from node.taker import Taker
from node.wallet.bip86 import RECEIVE, Account
from node.wallet.interface import Wallet
from node.wallet.pure import ChainView, PureWallet
from node.wallet.seed import Seed
from protocols.contract.oracle import DLC, Scheme
from protocols.contract.transactions import txid as txid_of
from tests.simulation.disk import Disk
from tests.simulation.faults import Faults
from tests.simulation.wire import CarriersOf, Network, ServersInMemory, substreams
from tests.wallets import Tip

HOUR = 60.0
"""Seconds that an hour of the calendar takes."""
EPOCH = 1_599_998_400.0 + 600
"""Ten minutes past a full hour, long ago: the kernel takes no blocks of the future."""
BLOCK_EVERY = HOUR / 6
COINS, COIN = 6, 30_000_000
"""How many coins each wallet begins with, and the satoshis in each."""
MAKERS, TAKERS = ("maker", "maker-2"), ("taker", "taker-2", "taker-3")
"""Who has coins on the chain that every run begins with."""
ELECTRUM = "electrum", 50001
ORACLE = OracleKeys(bytes([5]) * 32)
SCHEME = DLC


class _Account(Account):
    """Scripts are derived once for all runs."""

    def __init__(self, seed: bytes) -> None:
        super().__init__(seed, "regtest")
        self._scripts: dict[tuple[int, int], bytes] = {}

    def script(self, chain: int, index: int) -> bytes:
        if (chain, index) not in self._scripts:
            self._scripts[chain, index] = super().script(chain, index)
        return self._scripts[chain, index]


@cache
def seed_of(name: str) -> Seed:
    return Seed.generate(lambda count: hashlib.sha256(name.encode()).digest()[:count])


@cache
def account_of(name: str) -> _Account:
    return _Account(seed_of(name).secret)


@cache
def _first_chain() -> Path:
    """A chain on which everybody has coins; every run begins with a copy."""
    folder = Path(tempfile.mkdtemp(prefix="cfd-simulation-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with Chain(folder / "chain", wall=lambda: EPOCH - 86_400) as chain:
        mempool = Mempool(chain, Index(chain))
        treasury = Treasury(chain, mempool)
        chain.mine_many(102, script=treasury.script)
        for name in MAKERS + TAKERS:
            for index in range(COINS):
                treasury.pay(account_of(name).script(RECEIVE, index), COIN)
            chain.mine(mempool.block_template())
    return folder / "chain"


@contextmanager
def copied_chain(wall: Callable[[], float]) -> Iterator[Chain]:
    first = _first_chain()
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=first.parent))
    try:
        shutil.copytree(first, folder / "chain")
        with Chain(folder / "chain", wall=wall) as chain:
            yield chain
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Attested(AttestedPrices):
    """In memory."""

    def __init__(self) -> None:
        self._prices = {}

    def decide(self, symbol: str, time: int, price: int) -> int:
        return self._prices.setdefault((symbol, time), price)

    @property
    def prices(self) -> Mapping[tuple[str, int], int]:
        return self._prices


@cache
def _announce(scheme: Scheme, event_id: str) -> bytes:
    attestation, announcement = ORACLE.attestation_secret(scheme), ORACLE.announcement_secret(scheme)
    return scheme.announce(event_id, ORACLE.nonces(scheme, event_id), attestation, announcement)


class _Oracle(Oracle):
    """Announces the same in all runs, so that it is made once; and remembers where it contradicted itself."""

    contradicted: dict[tuple[str, int], int]
    """By symbol and time, what it attested besides."""

    def answer(self, scheme: Scheme, event_id: str) -> bytes:
        symbol, time = scheme.parse_event(event_id)
        if self.behaviour.mode is Mode.CONTRADICT and time <= self._clock.calendar():
            said = self.behaviour.attests(time, self._decide(symbol, time), self._clock.calendar())
            assert said is not None
            self.contradicted[symbol, time] = said
        return super().answer(scheme, event_id)

    def _announce(self, scheme: Scheme, event_id: str) -> bytes:
        return _announce(scheme, event_id)


@frozen
class _Body(httpx2.AsyncByteStream):
    data: bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        await trio.lowlevel.checkpoint()
        yield self.data


@frozen
class _OracleInMemory(httpx2.AsyncBaseTransport):
    oracle: Oracle

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await trio.lowlevel.checkpoint()
        event = request.url.path.removeprefix("/dlc/")
        if self.oracle.behaviour.mode is Mode.SILENT:
            await trio.sleep_forever()
        try:
            return httpx2.Response(200, stream=_Body(self.oracle.answer(SCHEME, event)))
        except NotFound as error:
            return httpx2.Response(404, content=error.sentence.encode())


class FeedInMemory(Feed):
    """Quotes the world's price at every moment, a dollar wide, until it is stopped."""

    def __init__(self, world: World, symbol: str, clock: Clock) -> None:
        super().__init__("memory", clock, symbol=symbol)
        self._world, self._symbol = world, symbol
        self.stopped: Quote | None = None

    @property
    def quote(self) -> Quote:
        if self._world.feed_stopped_at is None:
            self.stopped = None
        elif self.stopped is not None:
            return self.stopped
        price, now = self._world.price(self._symbol), self._clock.now()
        at = now if self._world.feed_stopped_at is None else self._world.feed_stopped_at
        quote = Quote(self._symbol, str(price), str(price + 1), at, at)
        if self._world.feed_stopped_at is not None:
            self.stopped = quote
        return quote

    @property
    def stale_at(self) -> float:
        return self.quote.since + self.stale_after

    def problem(self) -> str | None:
        return None if self._clock.now() <= self.stale_at else "the last quote is stale"


class _Methods(Methods):
    """One node's Electrum server, that remembers what the node hands in."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world.chain, world.index, world.mempool)
        self._world, self._name = world, name

    def estimate_fee(self, number: object, mode: object = None) -> Json:
        return self._world.fee_rate / 10**5

    def broadcast(self, raw_tx: object) -> Json:
        self._world.handed_in(self._name, str(raw_tx))
        return super().broadcast(raw_tx)

    def broadcast_package(self, raw_txs: object, verbose: object = False) -> Json:
        for raw in raw_txs if isinstance(raw_txs, list) else []:
            self._world.handed_in(self._name, str(raw))
        return super().broadcast_package(raw_txs, verbose)


class WalletInMemory(PureWallet):
    """Asks the world about the chain, and keeps on the node's disk which scripts it gave out."""

    def __init__(self, life: Life) -> None:
        player = life.player
        super().__init__(player.seed.secret, "regtest", player.world, clock=life.clock, revealed=player.revealed, gap=2)
        self._account = account_of(player.name)
        self._life = life

    async def _reveal(self, chain: int) -> bytes:
        script = await super()._reveal(chain)
        if self._life.alive:
            self._life.player.revealed = self.revealed
        return script


@define(eq=False)
class Life:
    """A node from its start to its crash."""

    player: Player
    number: int
    alive: bool = True
    scope: trio.CancelScope = Factory(trio.CancelScope)
    clock: Clock = field(init=False)
    node: Maker | Taker = field(init=False)

    def __attrs_post_init__(self) -> None:
        player, world = self.player, self.player.world
        self.clock = Clock(hour=HOUR, anchor=EPOCH, wall=lambda: world.now() + player.skew)
        draw = random.Random(f"{world.seed}/{player.name}/{self.number}")
        carriers = CarriersOf(world.network, self)
        disk = Disk(player.platters, self, world.faults)

        async def open_wallet(seed: Seed, clock: Clock, client: ElectrumClient) -> Wallet:
            return WalletInMemory(self)

        def run_store(config: NodeConfig, clock: Clock) -> ReportingRun[Any]:
            return partial(run_memory_store, disk)

        salts = random.Random(f"backup/{world.seed}/{player.name}/{self.number}").randbytes

        async def run_backup_in_memory(*, report: Report, task_status: trio.TaskStatus[Backup]) -> None:
            seal = Seal(player.seed.secret)
            backup = Backup(player.backup, seal, Owner("regtest", player.config.role), self.clock, salts, at_once)
            await run_backup(backup, report=report, task_status=task_status)

        def endpoint(identity: Identity, _: NodeConfig) -> Endpoint:
            kind = substreams(self, world.faults)
            return Endpoint(identity, entropy=draw.randbytes, carriers=carriers, substream=kind)

        seams = Seams(
            open_data=lambda _: player.seed,
            clock=lambda _: self.clock,
            entropy=draw.randbytes,
            jitter=draw,
            run_store=run_store,
            backup=lambda *_: run_backup_in_memory,
            electrum=lambda _: ServersInMemory(player.electrum[0], player.electrum[1], carriers),
            wallet=open_wallet,
            oracle=_OracleInMemory(world.oracle),
            feeds=world.feeds,
            endpoint=endpoint,
            compute=inline,
            raise_bugs=True,
        )
        config = player.config
        build = Maker.build if isinstance(config, MakerConfig) else Taker.build
        self.node = build(config, None, seams)  # type: ignore[arg-type]  # each with its own

    @property
    def name(self) -> str:
        return self.player.name

    async def run(self) -> None:
        _speaking.set(f"{self.name} #{self.number}")
        try:
            with self.scope:
                await self.node.core.supervisor.run()
        except Exception as error:  # noqa: BLE001  # a check tells of it
            if self.alive:
                self.player.world.bugs.append(f"{self.name}: {error!r}")
                self.alive = False
                self.player.world.network.leave(self)

    def crash(self) -> None:
        """As by a power cut: what it still does reaches nothing. It begins anew a little later."""
        if self.alive:
            self.end()
            self.player.world.nursery.start_soon(self.player.begin_again)

    def end(self) -> None:
        self.alive = False
        self.player.world.network.leave(self)
        self.scope.cancel()


@define(eq=False)
class Player:
    """A node over all its lives: what is on its disk, and the life that it has now."""

    world: World
    name: str
    config: MakerConfig | TakerConfig
    platters: MemoryBackend
    backup: MemoryFiles = Factory(MemoryFiles)
    revealed: Sequence[int] = (COINS, 0)
    skew: float = 0.0
    """Seconds by which its clock is ahead."""
    life: Life | None = None
    lives: int = 0
    off: bool = False
    """Whether it is switched off: it does not begin again by itself."""

    @property
    def seed(self) -> Seed:
        return seed_of(self.name)

    @property
    def electrum(self) -> tuple[str, int]:
        return f"{ELECTRUM[0]}-{self.name}", ELECTRUM[1]

    @property
    def maker(self) -> Maker:
        assert self.life is not None
        assert isinstance(self.life.node, Maker)
        return self.life.node

    @property
    def taker(self) -> Taker:
        assert self.life is not None
        assert isinstance(self.life.node, Taker)
        return self.life.node

    @property
    def up(self) -> bool:
        """Whether it can answer for its positions."""
        return self.life is not None and self.life.alive and self.life.node.core.positions.health.up

    def positions(self) -> tuple[Position, ...]:
        assert self.life is not None
        with self.life.node.core.positions.lent() as positions:
            return positions.all()

    def begin(self) -> None:
        self.off = False
        if self.life is not None and self.life.alive:
            return
        self.life = Life(self, self.lives)
        self.lives += 1
        self.world.nursery.start_soon(self.life.run)

    def switch_off(self) -> None:
        """Until `begin`."""
        self.off = True
        if self.life is not None:
            self.life.end()

    async def begin_again(self) -> None:
        await trio.sleep(self.world.draw.uniform(0.5, 20.0))
        if not self.world.over and not self.off:
            self.begin()


class World(ChainView):
    """Everything but the nodes; the pure wallets ask it about the chain."""

    def __init__(self, seed: int, chain: Chain, nursery: trio.Nursery, faults: Faults, started: float) -> None:
        self.seed, self.chain, self.nursery, self.faults = seed, chain, nursery, faults
        self.draw = random.Random(seed)
        self._started = started
        self.index = Index(chain)
        self.mempool = Mempool(chain, self.index)
        self.first_coins = dict(self.index.coins)
        self.first_height = chain.height
        self.network = Network()
        self.fee_rate = 2
        """What the Electrum servers estimate, sat/vB."""
        self.floor = 0
        """What blocks ask for, sat/vB."""
        self._prices: dict[str, list[tuple[int, int]]] = {"BTCUSD": [(0, 54_000)], "ETHUSD": [(0, 3_000)]}
        self.feed_stopped_at: float | None = None
        self.attested = _Attested()
        clock = Clock(hour=HOUR, anchor=EPOCH, wall=self.now)
        self.clock = clock
        self.oracle = _Oracle(ORACLE, self.attested, clock, since=int(EPOCH) - 7_200, market=self._market)
        self.oracle.contradicted = {}
        self.players: dict[str, Player] = {}
        self.broadcasts: list[tuple[float, str, bytes]] = []
        """When who handed in which transaction for the first time."""
        self._handed_in: set[tuple[str, bytes]] = set()
        self.reorganised = False
        self.bugs: list[str] = []
        self.over = False
        self._last_busy = self.chain.height

    def now(self) -> float:
        return EPOCH + trio.current_time() - self._started

    # The market

    def price(self, symbol: str = "BTCUSD", at: int | None = None) -> int:
        """Whole USD at a time of the calendar."""
        at = self.clock.calendar() if at is None else at
        return next(price for since, price in reversed(self._prices[symbol]) if since <= at)

    def set_price(self, price: int, symbol: str = "BTCUSD") -> None:
        """From now on."""
        self._prices[symbol].append((self.clock.calendar(), price))

    def feeds(self, clock: Clock) -> Mapping[str, Feed]:
        return {symbol: FeedInMemory(self, symbol, clock) for symbol in self._prices}

    def _market(self, symbol: str, at: int) -> str:
        return str(self.price(symbol, at))

    # The chain, as the pure wallet asks

    @property
    def tip(self) -> Tip:
        return Tip(self.chain.height, self.chain.tip)

    async def history(self, script: bytes) -> Sequence[tuple[bytes, int]]:
        key = script_hash(script)
        confirmed = [(each.txid, each.height) for each in self.index.history(key)]
        return confirmed + [(each.txid, 0) for each in self.mempool.history(key)]

    async def transaction(self, txid: bytes) -> bytes:
        waiting = self.mempool.entries.get(txid)
        return waiting.raw if waiting else self.index.transactions[txid].raw

    # Blocks

    def mine(self) -> None:
        template = self.mempool.block_template(self.floor)
        if template:
            self._last_busy = self.chain.height + 1
        self.chain.mine(template)

    def reorganise(self, depth: int) -> None:
        """The last blocks are replaced by one more, empty ones: their transactions return to the mempool."""
        self.reorganised = True
        parent = self.chain.block_hash(self.chain.height - depth)
        for _ in range(depth + 1):
            parent = self.chain.submit(self.chain.build(parent=parent))

    async def mine_on_schedule(self) -> None:
        """A block every ten minutes of the calendar while anybody waits for one, else every hour."""
        ticks = 0
        while True:
            await trio.sleep(BLOCK_EVERY)
            ticks += 1
            if ticks % 6 == 0 or self._busy():
                self.mine()

    def _busy(self) -> bool:
        if self.mempool.entries or self.chain.height < self._last_busy + 4:
            return True
        return any(
            position.commit is not None and not position.ended
            for player in self.players.values()
            if player.up
            for position in player.positions()
        )

    def handed_in(self, name: str, raw: str) -> None:
        txid = txid_of_raw(raw)
        if (name, txid) not in self._handed_in:
            self._handed_in.add((name, txid))
            self.broadcasts.append((self.now(), name, txid))

    # Nodes

    def add(self, name: str, *makers: str, spend: bool = False, roll: bool = False) -> Player:
        """A taker of these makers, or a maker; it begins at once. `spend`: whether it spends commits together with its
        peer, `roll`: whether its positions roll over by themselves."""
        announcement_key, attestation_key = ORACLE.public(SCHEME)
        said: dict[str, Any] = {
            "network": "regtest",
            "data": "nowhere",
            "electrum": [f"{ELECTRUM[0]}-{name}:{ELECTRUM[1]}"],
            "oracle": {
                "url": "http://oracle",
                "announcement_key": announcement_key.hex(),
                "attestation_key": attestation_key.hex(),
                "scheme": SCHEME.name,
            },
            "api": "127.0.0.1:0",
            "clock": {"hour": HOUR, "anchor": EPOCH},
            "abandon_after": 100,
            "cooperative_spend": spend,
        }
        config: MakerConfig | TakerConfig
        if makers:
            addresses = [f"{Identity(seed_of(maker).node_identity()).public}@{maker}:9810" for maker in makers]
            config = TakerConfig.model_validate({**said, "makers": addresses, "rollover": {"auto": roll}})
        else:
            config = MakerConfig.model_validate({**said, "listen": f"{name}:9810"})
        player = Player(self, name, config, MemoryBackend(self.clock))
        server = ElectrumServer(_Methods(self, name), self.mempool)
        self.nursery.start_soon(trio.serve_listeners, server._serve, [self.network.listen(*player.electrum)])
        self.players[name] = player
        player.begin()
        return player


def txid_of_raw(raw: str) -> bytes:
    from bitcoin.core import CTransaction

    return txid_of(CTransaction.deserialize(bytes.fromhex(raw)))


_speaking: ContextVar[str] = ContextVar("speaking", default="")
"""Whose task it is."""


@contextmanager
def quiet_logs(keep: list[dict[str, Any]]) -> Iterator[None]:
    """Collect what is logged instead of printing it."""

    def collect(_: object, method: str, event: MutableMapping[str, Any]) -> Any:
        hours = trio.current_time() / HOUR
        keep.append({"hours": round(hours, 3), "node": _speaking.get(), "level": method, **event})
        raise structlog.DropEvent

    before = structlog.get_config()["processors"]
    structlog.configure(processors=[collect])
    try:
        yield
    finally:
        structlog.configure(processors=before)

"""A regtest world in this process, nodes with real services on it, and contracts between them."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import Factory, define, evolve, field, frozen

from node.chain.broadcast import Broadcaster
from node.chain.electrum import ElectrumClient, run_electrum
from node.chain.monitor import Monitor
from node.config import FeeRateTable, WorldConfig
from node.eventstore.interface import EventStore
from node.eventstore.memory import MemoryBackend, run_memory_store
from node.health import State
from node.networks import NETWORKS
from node.oracle.client import OracleClient, OracleConfig, run_oracle
from node.oracle.contradictions import OracleWatch
from node.oracle.records import Announcements
from node.position.abandon import LockKeeper
from node.position.book import Positions, run_positions
from node.position.commands import place_order
from node.position.keeper import AttestationKeeper, ChainKeeper
from node.position.state import Position
from node.regtest.index import script_hash
from node.regtest.world import RunningWorld, run_world
from node.setup import SetupNode
from node.supervision import Service, Supervisor
from node.wallet.bdk import BdkWallet
from node.wallet.interface import Wallet, run_wallet
from node.wallet.pure import PureWallet
from node.wallet.seed import Seed
from protocols.contract.funding import FundingInput
from protocols.contract.oracle import DLC
from protocols.contract.schedule import HOUR, first_event
from protocols.contract.scripts import p2tr
from protocols.contract.signing import sign_commit, sign_contract
from protocols.contract.terms import Role
from protocols.contract.transactions import ContractPlan, ContractTransactions, Party
from protocols.contract_setup import AttemptBegun, LockComplete, SetupComplete, SignaturesHeld
from protocols.dialogue import Fact
from protocols.offers import Offer, OracleKeys
from tests.positions import PEER, TRADER
from tests.setups import OFFER, Trader, order, secret, x_only

COIN = 20_000_000


@asynccontextmanager
async def running_world(
    path: Path, *, hour: float = 3600.0, wall: Callable[[], float] = time.time, scheduled: bool = False
) -> AsyncIterator[RunningWorld]:
    """A world whose blocks come on demand unless `scheduled`."""
    async with trio.open_nursery() as nursery:

        async def run(task_status: trio.TaskStatus[RunningWorld]) -> None:
            await run_world(WorldConfig(data=path, hour=hour), wall=wall, task_status=task_status)

        world: RunningWorld = await nursery.start(run)
        world.world.scheduled = scheduled
        yield world
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object], within: float = 20) -> None:
    """Wait for what other tasks are about to bring about."""
    with trio.fail_after(within):
        while not condition():  # noqa: ASYNC110  anything may be the condition
            await trio.sleep(0.005)


def unspent(world: RunningWorld, script: bytes) -> list[FundingInput]:
    """The confirmed coins of a script."""
    found = world.world.index.unspent(script_hash(script))
    return [
        FundingInput(outpoint.txid, outpoint.vout, coin.output.value, coin.output.script)
        for outpoint, coin in found.items()
    ]


def fund(world: RunningWorld, script: bytes, amount: int) -> FundingInput:
    """A new confirmed coin."""
    before = unspent(world, script)
    world.world.treasury.pay(script, amount)
    world.world.mine()
    (new,) = [coin for coin in unspent(world, script) if coin not in before]
    return new


@frozen
class _ReportTo:
    """A service that does not exist yet."""

    supervisor: Supervisor
    name: str

    beat_every = math.inf

    def beat(self) -> None: ...

    def degraded(self, reason: str, remedy: str = "", repairs: Sequence[str] = ()) -> None:
        self.supervisor[self.name].degraded(reason, remedy, repairs)

    def recovered(self) -> None:
        self.supervisor[self.name].recovered()

    def fresh(self) -> None:
        self.supervisor[self.name].fresh()


@define(eq=False, slots=False)
class Node:
    """The services of a node that keeps contracts and sets them up, over a memory that outlives it."""

    world: RunningWorld
    role: Role
    disk: MemoryBackend = Factory(MemoryBackend)
    fee_rates: FeeRateTable = Factory(FeeRateTable)
    bdk: Path | None = None
    """The file of a BDK wallet in the place of the pure one."""
    supervisor: Supervisor = field(init=False)

    def __attrs_post_init__(self) -> None:
        world, clock = self.world, self.world.clock
        supervisor = self.supervisor = Supervisor(clock=clock, raise_bugs=True)
        self.monitor, self.broadcaster = Monitor(), Broadcaster(clock)
        self.store: Service[EventStore] = supervisor.service("store", partial(run_memory_store, self.disk))
        self.chain: Service[ElectrumClient] = supervisor.service(
            "chain", partial(run_electrum, [world.electrum], NETWORKS["regtest"], clock=clock)
        )
        supervisor.service("monitor", self._run_monitor, [self.chain])
        supervisor.service("broadcaster", self._run_broadcaster, [self.chain])
        self.wallet: Service[Wallet] = supervisor.service("wallet", self._run_wallet, [self.chain])
        self.positions: Service[Positions] = supervisor.service(
            "positions", partial(run_positions, self.store), [self.store]
        )
        config = OracleConfig(world.oracle, world.announcement_key, world.attestation_key, world.scheme)
        announcements = Announcements(self.store)
        self.oracle: Service[OracleClient] = supervisor.service(
            "oracle", partial(run_oracle, config, clock=clock, store=announcements), [self.store]
        )
        self.setup = SetupNode(
            clock=clock,
            oracle_keys=OracleKeys(config.scheme, config.announcement_key, config.attestation_key),
            fee_rates=self.fee_rates,
            positions=self.positions,
            chain=self.chain,
            wallet=self.wallet,
            oracle=self.oracle,
            seed=self.trader.seed,
        )
        keeper = ChainKeeper(
            positions=self.positions,
            monitor=self.monitor,
            broadcaster=self.broadcaster,
            seed=self.trader.seed,
            clock=clock,
            report=_ReportTo(supervisor, "contracts"),
        )
        locks = LockKeeper(
            self.positions, self.monitor, self.wallet, clock, self.setup.fee_rate, report=_ReportTo(supervisor, "locks")
        )
        supervisor.service("locks", locks.run, [self.positions])
        supervisor.service("contracts", keeper.run, [self.positions])
        supervisor.service("attestations", AttestationKeeper(self.positions, self.oracle).run, [self.positions])
        watch = OracleWatch(self.positions, self.oracle, self.chain, clock, self.trader.seed)
        supervisor.service("oracle-watch", watch.run, [self.positions, self.oracle])

    @property
    def trader(self) -> Trader:
        return TRADER[self.role]

    async def _run_monitor(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self.chain.lent() as client:
            await self.monitor.run(client, task_status=task_status)

    async def _run_broadcaster(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self.chain.lent() as client:
            await self.broadcaster.run(client, task_status=task_status)

    async def _run_wallet(self, *, task_status: trio.TaskStatus[Wallet]) -> None:
        with self.chain.lent() as client:
            wallet: Wallet = PureWallet(self.trader.seed, "regtest", client, clock=self.world.clock)
            if self.bdk is not None:
                seed = Seed.generate()
                wallet = await BdkWallet.open(seed, "regtest", self.bdk, lambda: self.world.electrum)
            await run_wallet(wallet, task_status=task_status)

    @asynccontextmanager
    async def running(self, *without: str) -> AsyncIterator[Node]:
        """All services but those, which are stopped by their user. The wallet's first sync takes the longest."""
        for name in without:
            self.supervisor[name].stop()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.supervisor.run)
            for service in self.supervisor.services:
                if service.name not in without:
                    with trio.fail_after(20):
                        await service.until(State.HEALTHY)
            yield self
            nursery.cancel_scope.cancel()

    def position(self, order_id: bytes) -> Position:
        with self.positions.lent() as positions:
            position = positions.get(order_id)
        assert position is not None
        return position

    async def remember(self, given: tuple[Fact, ...]) -> None:
        for each in given:
            if isinstance(each, AttemptBegun) and self.role is Role.TAKER:
                placed = place_order(each.order, self.role, PEER[self.role])
                await self.positions.call(Positions.execute, each.order.order_id, placed)
            await self.positions.call(Positions.remember, each, PEER[self.role])


@frozen
class Deal:
    """A contract on real coins, and what each side has to remember of it."""

    plan: ContractPlan
    facts: Mapping[Role, tuple[Fact, ...]]

    @property
    def transactions(self) -> ContractTransactions:
        return ContractTransactions(self.plan)


def offer_on(world: RunningWorld, **changes: Any) -> Offer:
    oracle = OracleKeys(world.scheme, world.announcement_key, world.attestation_key)
    return evolve(OFFER, oracle=oracle, created=int(world.clock.now()), **changes)


async def deal(
    world: RunningWorld,
    node: Node,
    *,
    events: int = 2,
    name: str = "first",
    first: int | None = None,
    payouts: Mapping[Role, bytes] | None = None,
) -> Deal:
    """A contract over so many hours from the next full one on (or from the event at `first`), signed by both sides but
    on nobody's disk yet. `payouts` are the scripts that it pays to, of nobody's wallet unless given."""
    placed = order(order_id=secret("order", name)[:16], offer=offer_on(world))
    terms = placed.offer.check_order(placed.quantity, placed.leverage)
    first = first_event(world.clock.calendar()) if first is None else first
    ids = [DLC.event_id("BTCUSD", first + HOUR * each) for each in range(events)]
    announcements = tuple([await node.oracle.call(OracleClient.announcement, each) for each in ids])
    attempts = {role: TRADER[role].attempt(placed.order_id) for role in Role}
    parties: dict[Role, Party] = {}
    for role, trader in TRADER.items():
        coin = fund(world, p2tr(x_only(trader.coin_key)), COIN)
        payout = payouts[role] if payouts else trader.script(f"payout of {name}")
        parties[role] = Party(attempts[role].keys.points, (coin,), trader.script(f"change of {name}"), payout)
    plan = ContractPlan(placed.order_id, 0, terms, parties[Role.MAKER], parties[Role.TAKER], announcements)
    made = {role: sign_contract(plan, role, attempts[role].keys.fund) for role in Role}
    commits = {role: sign_commit(plan, role, attempts[role].keys.fund) for role in Role}
    witnesses = {role: TRADER[role].sign_lock(plan) for role in Role}
    remembered: dict[Role, tuple[Fact, ...]] = {}
    for role in Role:
        own, peer, making = parties[role], parties[role.other], role is Role.MAKER
        remembered[role] = (
            AttemptBegun(placed, role, terms, announcements, attempts[role].salt, own, None if making else peer),
            SignaturesHeld(placed.order_id, 0, peer, made[role.other]),
            SetupComplete(
                placed.order_id, commits[role.other], witnesses[role], witnesses[role.other] if making else None
            ),
            *(() if making else (LockComplete(placed.order_id, witnesses[role.other]),)),
        )
    return Deal(plan, remembered)

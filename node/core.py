"""What a maker and a taker have in common: the data directory, the services that every node runs, and their order."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING

import structlog
import trio
from attrs import frozen

from node import files
from node import prices as node_prices
from node.backup.service import Backup
from node.chain import electrum
from node.chain.broadcast import Broadcaster
from node.chain.electrum import ElectrumClient, run_electrum
from node.chain.monitor import Monitor
from node.chain.servers import Servers
from node.clock import Clock
from node.clock_check import EXCHANGE, ORACLE, ClockCheck
from node.config import NodeConfig
from node.eventstore.interface import EventStore
from node.health import Report
from node.network.address import Identity
from node.network.conversation import Host, answering
from node.network.endpoint import Endpoint
from node.network.lists import PeerLists
from node.networks import NETWORKS, Network
from node.notify import Notifier
from node.oracle import client as oracle_client
from node.oracle.client import OracleClient, OracleConfig, run_oracle
from node.oracle.contradictions import OracleWatch
from node.oracle.records import Announcements
from node.payments import Payments
from node.position.abandon import LockKeeper
from node.position.book import Positions, run_positions
from node.position.bumping import Bumper
from node.position.deadlines import DeadlineKeeper
from node.position.keeper import AttestationKeeper, ChainKeeper
from node.position.punishing import Punisher
from node.prices import Feed, Feeds
from node.seams import MACHINE, Seams
from node.setup import SetupNode
from node.start import Stage
from node.store_repairs import store_repairs
from node.supervision import ReportingRun, Service, Supervisor
from node.wallet.holds import CoinHolds
from node.wallet.interface import PATIENCE, Wallet, run_wallet
from node.wallet.seed import Seed
from node.wallet.service import bdk_wallet, next_tips
from node.web.views import position_view
from node.workers import in_worker_process, keep_warm
from protocols import identify, ping
from protocols.dialogue import Dialogue
from protocols.identify import PeerRole
from protocols.offers import OracleKeys

if TYPE_CHECKING:
    import httpx2
    from fastapi import APIRouter

VERSION = version("cfdnode")

log = structlog.get_logger("node")


@frozen
class Core:
    """The services of any node. Those of a maker or a taker are added to `supervisor` behind them."""

    config: NodeConfig
    clock: Clock
    identity: Identity
    supervisor: Supervisor
    chain: Service[ElectrumClient]
    broadcaster: Broadcaster
    wallet: Service[Wallet]
    backup: Service[Backup]
    positions: Service[Positions]
    oracle: Service[OracleClient]
    clocks: ClockCheck
    feeds: Mapping[str, Feed]
    """Of every symbol."""
    endpoint: Service[Endpoint]
    setup: SetupNode
    payments: Payments
    warnings: list[str]
    """What the user must know although no service is unwell."""


Routers = Callable[[Core], "Sequence[APIRouter]"]


def build(
    config: NodeConfig,
    api_socket: socket.socket | None,
    role: PeerRole,
    routers: Routers,
    seams: Seams = MACHINE,
    *,
    stage: Stage | None = None,
) -> Core:
    """The node, not yet running; without a socket it serves no API. With a `stage` it is built behind that one, whose
    services are running, and which its caller lets the routers in to.

    Raises LocalError when the seed or the data directory cannot be used.
    """
    core: Core
    if stage is None:
        clock = seams.clock(config)
        stage = Stage(Supervisor(clock=clock, jitter=seams.jitter, raise_bugs=seams.raise_bugs), clock)
        stage.seed = seams.open_data(config)
        if api_socket is not None:
            stage.serve(config, api_socket, lambda: routers(core))
    seed, clock, supervisor = stage.seed, stage.clock, stage.supervisor
    assert seed is not None, "the data directory is open"
    network = NETWORKS[config.network]
    if network.warning:
        log.warning(network.warning, network=network.name)
        stage.warnings.append(network.warning)
    identity = Identity(seed.node_identity())
    store = supervisor.reporting(
        "store",
        seams.run_store(config, clock),
        repairs=store_repairs(config, seed, clock, lambda: supervisor["store"]),
    )
    clocks = ClockCheck(clock)
    chain = _chain(supervisor, seams.electrum(config), network, clock)
    monitor, broadcaster = Monitor(), Broadcaster(clock)
    supervisor.reporting("chain-monitor", partial(chain.call, monitor.run), [chain])
    supervisor.reporting("broadcaster", partial(chain.call, broadcaster.run), [chain])
    if seams.wallet is None:
        wallet = bdk_wallet(supervisor, config.data / "wallet.sqlite", seed, chain, network=network.name, clock=clock)
    else:
        wallet = _wallet(supervisor, partial(seams.wallet, seed, clock), chain)
    backup = supervisor.reporting("backup", seams.backup(config, seed, clock))
    positions = supervisor.reporting("positions", _positions(store, backup, clock), [store])
    oracle_keys = OracleKeys(
        scheme=config.oracle.scheme,
        announcement_key=bytes.fromhex(config.oracle.announcement_key),
        attestation_key=bytes.fromhex(config.oracle.attestation_key),
    )
    asked = OracleConfig(
        config.oracle.url,
        oracle_keys.announcement_key,
        oracle_keys.attestation_key,
        oracle_keys.scheme,
        config.symbols,
    )
    oracle = _oracle(supervisor, clocks, asked, store, seams.oracle)
    holds = CoinHolds()
    payments = Payments(files.payments_folder(config.data), chain, broadcaster, holds, clock)
    core = Core(
        config=config,
        clock=clock,
        identity=identity,
        supervisor=supervisor,
        chain=chain,
        broadcaster=broadcaster,
        wallet=wallet,
        backup=backup,
        positions=positions,
        oracle=oracle,
        clocks=clocks,
        feeds=_feeds(supervisor, config, clocks) if seams.feeds is None else seams.feeds(clock),
        endpoint=_endpoint(supervisor, config, partial(seams.endpoint, identity, config), role),
        setup=SetupNode(
            clock=clock,
            oracle_keys=oracle_keys,
            fee_rates=config.fee_rate,
            positions=positions,
            chain=chain,
            wallet=wallet,
            oracle=oracle,
            seed=seed.secret,
            backup=backup,
            holds=holds,
            entropy=seams.entropy,
            compute=seams.compute,
        ),
        payments=payments,
        warnings=stage.warnings,
    )
    if stage.door is not None:  # without an API nobody sends
        supervisor.reporting("payments", payments.run)
    _watch_clock(core, network)
    _keep_contracts(core, seed, monitor)
    if config.notify.urls or config.notify.command:
        who = f"{config.role} on {config.network}"
        notifier = Notifier(config.notify, who, clock=clock, store=store, positions=positions, health=supervisor.health)
        supervisor.reporting("notifications", notifier.run, [store])
    if seams.compute is in_worker_process:
        supervisor.reporting("workers", keep_warm)
    return core


# --- services, each with what runs it ---------------------------------------------------------------------------------


def _chain(supervisor: Supervisor, servers: Servers, network: Network, clock: Clock) -> Service[ElectrumClient]:
    async def run(*, task_status: trio.TaskStatus[ElectrumClient]) -> None:
        await run_electrum(servers, network, clock=clock, report=chain, task_status=task_status)

    chain = supervisor.service("chain", run, patience=electrum.PATIENCE)
    return chain


def _wallet(
    supervisor: Supervisor,
    open_wallet: Callable[[ElectrumClient], Awaitable[Wallet]],
    chain: Service[ElectrumClient],
) -> Service[Wallet]:
    async def run(*, task_status: trio.TaskStatus[Wallet]) -> None:
        with chain.lent() as client:
            opened = await open_wallet(client)
            await run_wallet(opened, news=next_tips(chain), report=wallet, task_status=task_status)

    wallet = supervisor.service("wallet", run, [chain], patience=PATIENCE)
    return wallet


def _watch_clock(core: Core, network: Network) -> None:
    async def run(*, task_status: trio.TaskStatus[ClockCheck]) -> None:
        await core.clocks.run(core.chain, network, report=clock, task_status=task_status)

    clock = core.supervisor.service("clock", run, patience=PATIENCE)


def _positions(store: Service[EventStore], backup: Service[Backup], clock: Clock) -> ReportingRun[Positions]:
    return partial(run_positions, store, backup, clock=clock, show=partial(position_view, broadcasts={}))


def _oracle(
    supervisor: Supervisor,
    clocks: ClockCheck,
    asked: OracleConfig,
    store: Service[EventStore],
    transport: httpx2.AsyncBaseTransport | None,
) -> Service[OracleClient]:

    async def run(*, task_status: trio.TaskStatus[OracleClient]) -> None:
        await run_oracle(
            asked,
            clock=clocks.clock,
            store=Announcements(store),
            report=oracle,
            heard=clocks.listener(ORACLE),
            transport=transport,
            task_status=task_status,
        )

    oracle = supervisor.service("oracle", run, [store], patience=oracle_client.PATIENCE)
    return oracle


def _feeds(supervisor: Supervisor, config: NodeConfig, clocks: ClockCheck) -> Feeds:
    """The quotes that the node goes by; there never is one when no exchange is configured."""
    if config.prices is None:
        return Feeds(None, clocks.clock)
    feeds = Feeds(config.prices.url, clocks.clock, config.symbols, stale_after=config.prices.stale_after)

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        await feeds.run(report=prices, heard=clocks.listener(EXCHANGE), task_status=task_status)

    prices = supervisor.service("prices", run, patience=node_prices.PATIENCE)
    return feeds


def _endpoint(
    supervisor: Supervisor, config: NodeConfig, make: Callable[[], Endpoint], role: PeerRole
) -> Service[Endpoint]:
    lists = PeerLists(config.peers.allow, config.peers.block)

    async def run(*, report: Report, task_status: trio.TaskStatus[Endpoint]) -> None:
        endpoint = make()
        # as last read, from its first moment on; before they were, nobody is allowed who has to be on one
        endpoint.admit(lists.allow, lists.block)

        def who(_: object) -> tuple[Dialogue[object], Host]:
            own = identify.Identity("cfdnode", VERSION, endpoint.paths, config.network, role)
            return identify.listener(own), Host()

        endpoint.handle(ping.PROTOCOL.path, answering(ping.PROTOCOL, lambda _: (ping.listener(), Host())))
        endpoint.handle(identify.PROTOCOL.path, answering(identify.PROTOCOL, who))
        await endpoint.run(report=report, task_status=task_status)

    async def watch_lists(*, report: Report, task_status: trio.TaskStatus[None]) -> None:
        with network.lent() as endpoint:
            await lists.run(endpoint, report=report, task_status=task_status)

    network = supervisor.reporting("network", run)
    if config.peers.allow or config.peers.block:
        supervisor.reporting("peer-lists", watch_lists, [network])
    return network


def _keep_contracts(core: Core, seed: Seed, monitor: Monitor) -> None:
    """What sees to it that a contract comes to its end, whatever the peer does."""
    after = core.config.abandon_after

    async def run_contracts(*, report: Report, task_status: trio.TaskStatus[None]) -> None:
        keeper = ChainKeeper(
            core.positions, monitor, core.broadcaster, seed.secret, core.clock, report=report, after=after
        )
        await keeper.run(task_status=task_status)

    async def run_locks(*, report: Report, task_status: trio.TaskStatus[None]) -> None:
        keeper = LockKeeper(
            core.positions, monitor, core.wallet, core.clock, core.setup.fee_rate, report=report, after=after
        )
        await keeper.run(task_status=task_status)

    bumper = Bumper(core.positions, core.chain, core.wallet, core.broadcaster, core.setup.holds, core.config.fee_rate)

    async def run_punishing(*, report: Report, task_status: trio.TaskStatus[None]) -> None:
        punisher = Punisher(core.positions, core.chain, core.setup.fee_rate, seed.secret, report=report)
        await punisher.run(task_status=task_status)

    async def run_deadlines(*, report: Report, task_status: trio.TaskStatus[None]) -> None:
        keeper = DeadlineKeeper(core.positions, monitor, core.clock, report=report)
        await keeper.run(task_status=task_status)

    attestations = AttestationKeeper(core.positions, core.oracle)
    supervisor = core.supervisor
    supervisor.reporting("contracts", run_contracts, [core.positions])
    supervisor.reporting("locks", run_locks, [core.positions])
    supervisor.reporting("attestations", attestations.run, [core.positions, core.oracle])
    supervisor.reporting("deadlines", run_deadlines, [core.positions])
    supervisor.reporting("punishing", run_punishing, [core.positions, core.chain])
    watch = OracleWatch(core.positions, core.oracle, core.chain, core.clock, seed.secret)
    supervisor.reporting("oracle-watch", watch.run, [core.positions, core.oracle])
    supervisor.reporting("bumping", bumper.run, [core.positions, core.chain, core.wallet])

"""What a maker and a taker have in common: the data directory, the services that every node runs, and their order."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
import trio
from attrs import frozen

from node.backup.service import Backup
from node.chain.broadcast import Broadcaster
from node.chain.electrum import ElectrumClient, run_electrum
from node.chain.forward import Forwarder
from node.chain.monitor import Monitor
from node.clock import Clock
from node.config import NodeConfig
from node.eventstore.interface import EventStore
from node.network.address import Identity
from node.network.conversation import Host, answering
from node.network.endpoint import Endpoint
from node.networks import NETWORKS
from node.oracle.client import OracleClient, OracleConfig, run_oracle
from node.oracle.contradictions import OracleWatch
from node.oracle.records import Announcements
from node.position.abandon import LockKeeper
from node.position.book import Positions, run_positions
from node.position.bumping import Bumper
from node.position.deadlines import DeadlineKeeper
from node.position.keeper import AttestationKeeper, ChainKeeper
from node.position.punishing import Punisher
from node.prices import Feed, Feeds
from node.seams import MACHINE, Seams
from node.setup import SetupNode
from node.supervision import Service, Supervisor
from node.wallet.interface import Wallet, run_wallet
from node.wallet.seed import Seed
from node.workers import in_worker_process, keep_warm
from protocols import identify, ping
from protocols.dialogue import Dialogue
from protocols.identify import PeerRole
from protocols.offers import OracleKeys

if TYPE_CHECKING:
    import httpx2
    from fastapi import APIRouter

VERSION = "0.1.0"

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
    feeds: Mapping[str, Feed]
    """Of every symbol."""
    endpoint: Service[Endpoint]
    setup: SetupNode


Routers = Callable[[Core], "Sequence[APIRouter]"]


def build(
    config: NodeConfig, api_socket: socket.socket | None, role: PeerRole, routers: Routers, seams: Seams = MACHINE
) -> Core:
    """The node, not yet running; without a socket it serves no API.

    Raises LocalError when the seed or the data directory cannot be used.
    """
    seed = seams.open_data(config)
    network = NETWORKS[config.network]
    if network.warning:
        log.warning(network.warning, network=network.name)
    clock = seams.clock(config)
    identity = Identity(seed.node_identity())
    supervisor = Supervisor(clock=clock, jitter=seams.jitter, raise_bugs=seams.raise_bugs)
    core: Core
    if api_socket is not None:
        api_at = api_socket

        async def run_web(*, task_status: trio.TaskStatus[None]) -> None:
            from node.web.server import run_api

            await run_api(config.data, api_at, routers(core), task_status=task_status)

        supervisor.service("api", run_web)
    store = supervisor.service("store", seams.run_store(config, clock))
    chain = supervisor.service("chain", partial(run_electrum, seams.electrum(config), network, clock=clock))
    monitor, broadcaster = Monitor(), Broadcaster(clock)
    supervisor.service("chain-monitor", partial(chain.call, monitor.run), [chain])
    supervisor.service("broadcaster", partial(chain.call, broadcaster.run), [chain])
    if seams.wallet is None:
        wallet = _bdk_wallet(supervisor, config, clock, seed, chain)
    else:
        wallet = _wallet(supervisor, partial(seams.wallet, seed, clock), chain, [chain])
    backup = supervisor.service("backup", seams.backup(config, seed, clock))
    positions = _positions(supervisor, store, backup)
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
    oracle = _oracle(supervisor, clock, asked, store, seams.oracle)
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
        feeds=_feeds(supervisor, config, clock) if seams.feeds is None else seams.feeds(clock),
        endpoint=_endpoint(supervisor, config, partial(seams.endpoint, identity), role),
        setup=SetupNode(
            clock=clock,
            oracle_keys=oracle_keys,
            fee_rates=config.fee_rate,
            positions=positions,
            chain=chain,
            wallet=wallet,
            oracle=oracle,
            seed=seed.secret,
            entropy=seams.entropy,
            compute=seams.compute,
        ),
    )
    _keep_contracts(core, seed, monitor)
    if seams.compute is in_worker_process:
        supervisor.service("workers", keep_warm)
    return core


# --- services, each with what runs it ---------------------------------------------------------------------------------


def _bdk_wallet(
    supervisor: Supervisor, config: NodeConfig, clock: Clock, seed: Seed, chain: Service[ElectrumClient]
) -> Service[Wallet]:
    """The wallet, and before it the Electrum endpoint that BDK dials."""
    forwarder = Forwarder()
    forward = supervisor.service("wallet-chain", partial(chain.call, forwarder.run), [chain])

    async def bdk(_: ElectrumClient) -> Wallet:
        from node.wallet.bdk import BdkWallet

        wallet_file = config.data / "wallet.sqlite"
        return await BdkWallet.open(
            seed, config.network, wallet_file, lambda: f"127.0.0.1:{forwarder.port}", clock=clock
        )

    return _wallet(supervisor, bdk, chain, [chain, forward])


def _wallet(
    supervisor: Supervisor,
    open_wallet: Callable[[ElectrumClient], Awaitable[Wallet]],
    chain: Service[ElectrumClient],
    needs: Sequence[Service[Any]],
) -> Service[Wallet]:
    async def run(*, task_status: trio.TaskStatus[Wallet]) -> None:
        with chain.lent() as client:
            opened = await open_wallet(client)
            async with trio.open_nursery() as nursery:
                task_status.started(await nursery.start(partial(run_wallet, opened, report=wallet)))
                async for _ in client.tips():
                    await opened.sync()
                    wallet.fresh()

    wallet = supervisor.service("wallet", run, needs)
    return wallet


def _positions(supervisor: Supervisor, store: Service[EventStore], backup: Service[Backup]) -> Service[Positions]:
    async def run(*, task_status: trio.TaskStatus[Positions]) -> None:
        await run_positions(store, backup, report=positions, task_status=task_status)

    positions = supervisor.service("positions", run, [store])
    return positions


def _oracle(
    supervisor: Supervisor,
    clock: Clock,
    asked: OracleConfig,
    store: Service[EventStore],
    transport: httpx2.AsyncBaseTransport | None,
) -> Service[OracleClient]:

    async def run(*, task_status: trio.TaskStatus[OracleClient]) -> None:
        kept = Announcements(store)
        await run_oracle(asked, clock=clock, store=kept, report=oracle, transport=transport, task_status=task_status)

    oracle = supervisor.service("oracle", run, [store])
    return oracle


def _feeds(supervisor: Supervisor, config: NodeConfig, clock: Clock) -> Feeds:
    """The quotes that the node goes by; there never is one when no exchange is configured."""
    if config.prices is None:
        return Feeds(None, clock)
    feeds = Feeds(config.prices.url, clock, config.symbols, stale_after=config.prices.stale_after)

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        await feeds.run(report=prices, task_status=task_status)

    prices = supervisor.service("prices", run)
    return feeds


def _endpoint(
    supervisor: Supervisor, config: NodeConfig, make: Callable[[], Endpoint], role: PeerRole
) -> Service[Endpoint]:
    async def run(*, task_status: trio.TaskStatus[Endpoint]) -> None:
        endpoint = make()

        def who(_: object) -> tuple[Dialogue[object], Host]:
            own = identify.Identity("cfdnode", VERSION, endpoint.paths, config.network, role)
            return identify.listener(own), Host()

        endpoint.handle(ping.PROTOCOL.path, answering(ping.PROTOCOL, lambda _: (ping.listener(), Host())))
        endpoint.handle(identify.PROTOCOL.path, answering(identify.PROTOCOL, who))
        await endpoint.run(task_status=task_status)

    return supervisor.service("network", run)


def _keep_contracts(core: Core, seed: Seed, monitor: Monitor) -> None:
    """What sees to it that a contract comes to its end, whatever the peer does."""
    after = core.config.abandon_after

    async def run_contracts(*, task_status: trio.TaskStatus[None]) -> None:
        keeper = ChainKeeper(
            core.positions, monitor, core.broadcaster, seed.secret, core.clock, report=contracts, after=after
        )
        await keeper.run(task_status=task_status)

    async def run_locks(*, task_status: trio.TaskStatus[None]) -> None:
        keeper = LockKeeper(
            core.positions, monitor, core.wallet, core.clock, core.setup.fee_rate, report=locks, after=after
        )
        await keeper.run(task_status=task_status)

    bumper = Bumper(core.positions, core.chain, core.wallet, core.broadcaster, core.setup.holds, core.config.fee_rate)

    async def run_bumping(*, task_status: trio.TaskStatus[None]) -> None:
        await bumper.run(report=bumping, task_status=task_status)

    async def run_punishing(*, task_status: trio.TaskStatus[None]) -> None:
        punisher = Punisher(core.positions, core.chain, core.setup.fee_rate, seed.secret, report=punishing)
        await punisher.run(task_status=task_status)

    async def run_deadlines(*, task_status: trio.TaskStatus[None]) -> None:
        keeper = DeadlineKeeper(core.positions, monitor, core.clock, report=deadlines)
        await keeper.run(task_status=task_status)

    attestations = AttestationKeeper(core.positions, core.oracle)
    contracts = core.supervisor.service("contracts", run_contracts, [core.positions])
    locks = core.supervisor.service("locks", run_locks, [core.positions])
    core.supervisor.service("attestations", attestations.run, [core.positions, core.oracle])
    deadlines = core.supervisor.service("deadlines", run_deadlines, [core.positions])
    punishing = core.supervisor.service("punishing", run_punishing, [core.positions, core.chain])
    watch = OracleWatch(core.positions, core.oracle, core.chain, core.clock, seed.secret)
    core.supervisor.service("oracle-watch", watch.run, [core.positions, core.oracle])
    bumping = core.supervisor.service("bumping", run_bumping, [core.positions, core.chain, core.wallet])

"""What a maker and a taker have in common: the data directory, the services that every node runs, and their order."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio
from attrs import field, frozen

from node import files
from node.chain.broadcast import Broadcaster
from node.chain.electrum import ElectrumClient, run_electrum
from node.chain.forward import Forwarder
from node.chain.monitor import Monitor
from node.chain.servers import Servers
from node.clock import Clock
from node.config import NodeConfig
from node.eventstore.interface import EventStore
from node.eventstore.sqlite import run_store
from node.network.address import Identity
from node.network.conversation import Host, answering
from node.network.endpoint import Endpoint
from node.networks import NETWORKS
from node.oracle.client import OracleClient, OracleConfig, run_oracle
from node.oracle.records import Announcements
from node.position.abandon import LockKeeper
from node.position.book import Positions, run_positions
from node.position.bumping import Bumper
from node.position.keeper import AttestationKeeper, ChainKeeper
from node.prices import Feed
from node.setup import SetupNode
from node.supervision import Service, Supervisor
from node.wallet.holds import CoinHolds
from node.wallet.interface import Wallet, run_wallet
from node.wallet.seed import Seed
from node.workers import keep_warm
from protocols import identify, ping
from protocols.dialogue import Dialogue
from protocols.errors import LocalError
from protocols.identify import PeerRole
from protocols.offers import OracleKeys

if TYPE_CHECKING:
    from fastapi import APIRouter

VERSION = "0.1.0"

log = structlog.get_logger("node")


@frozen
class Core:
    """The services of any node. Those of a maker or a taker are added to `supervisor` behind them."""

    config: NodeConfig
    clock: Clock
    seed: Seed = field(repr=False)
    identity: Identity
    supervisor: Supervisor
    store: Service[EventStore]
    chain: Service[ElectrumClient]
    wallet: Service[Wallet]
    oracle: Service[OracleClient]
    positions: Service[Positions]
    endpoint: Service[Endpoint]
    feed: Feed
    setup: SetupNode
    broadcaster: Broadcaster


Routers = Callable[[Core], "Sequence[APIRouter]"]


def build(config: NodeConfig, api_socket: socket.socket, role: PeerRole, routers: Routers) -> Core:
    """The node, not yet running. Raises LocalError when the seed or the data directory cannot be used."""
    _claim(config)
    if warning := NETWORKS[config.network].warning:
        log.warning(warning, network=config.network)
    clock = config.make_clock()
    seed = _seed(config)
    identity = Identity(seed.node_identity())
    supervisor = Supervisor(clock=clock)
    monitor, broadcaster, forwarder = Monitor(), Broadcaster(clock), Forwarder()
    servers, holds = Servers(config.electrum), CoinHolds()
    core: Core

    async def run_web(*, task_status: trio.TaskStatus[None]) -> None:
        from node.web.server import run_api

        await run_api(config.data, api_socket, routers(core), task_status=task_status)

    supervisor.service("api", run_web)
    store = supervisor.service("store", partial(run_store, config.data / "events.sqlite", clock=clock))
    chain = supervisor.service("chain", partial(run_electrum, servers, NETWORKS[config.network], clock=clock))

    async def run_monitor(*, task_status: trio.TaskStatus[None]) -> None:
        with chain.lent() as client:
            await monitor.run(client, task_status=task_status)

    async def run_broadcaster(*, task_status: trio.TaskStatus[None]) -> None:
        with chain.lent() as client:
            await broadcaster.run(client, task_status=task_status)

    async def run_forwarder(*, task_status: trio.TaskStatus[int]) -> None:
        with chain.lent() as client:
            await forwarder.run(client, task_status=task_status)

    supervisor.service("chain-monitor", run_monitor, [chain])
    supervisor.service("broadcaster", run_broadcaster, [chain])
    forward = supervisor.service("wallet-chain", run_forwarder, [chain])

    async def run_bdk(*, task_status: trio.TaskStatus[Wallet]) -> None:
        from node.wallet.bdk import BdkWallet

        wallet_file = config.data / "wallet.sqlite"
        opened = await BdkWallet.open(
            seed, config.network, wallet_file, lambda: f"127.0.0.1:{forwarder.port}", clock=clock
        )
        with chain.lent() as client:
            async with trio.open_nursery() as nursery:
                task_status.started(await nursery.start(partial(run_wallet, opened, report=wallet)))
                async for _ in client.tips():
                    await opened.sync()
                    wallet.fresh()

    wallet = supervisor.service("wallet", run_bdk, [chain, forward])

    async def run_book(*, task_status: trio.TaskStatus[Positions]) -> None:
        await run_positions(store, report=positions, task_status=task_status)

    positions: Service[Positions] = supervisor.service("positions", run_book, [store])

    oracle_config = OracleConfig(
        url=config.oracle.url,
        announcement_key=bytes.fromhex(config.oracle.announcement_key),
        attestation_key=bytes.fromhex(config.oracle.attestation_key),
        scheme=config.oracle.scheme,
    )

    def report(reason: str | None) -> None:
        if reason is None:
            oracle.recovered()
        else:
            oracle.degraded(reason)

    oracle: Service[OracleClient] = supervisor.service(
        "oracle",
        partial(run_oracle, oracle_config, clock=clock, store=Announcements(store), report=report),
        [store],
    )

    feed = _feed(config, clock)

    async def run_prices(*, task_status: trio.TaskStatus[None]) -> None:
        await feed.run(report=prices, task_status=task_status)

    if feed.url is not None:
        prices = supervisor.service("prices", run_prices)

    async def run_contracts(*, task_status: trio.TaskStatus[None]) -> None:
        keeper = ChainKeeper(
            positions, monitor, broadcaster, seed.secret, clock, report=contracts, after=config.abandon_after
        )
        await keeper.run(task_status=task_status)

    contracts = supervisor.service("contracts", run_contracts, [positions])

    async def run_locks(*, task_status: trio.TaskStatus[None]) -> None:
        keeper = LockKeeper(positions, monitor, wallet, clock, setup.fee_rate, report=locks, after=config.abandon_after)
        await keeper.run(task_status=task_status)

    locks = supervisor.service("locks", run_locks, [positions])
    supervisor.service("attestations", AttestationKeeper(positions, oracle).run, [positions, oracle])

    bumper = Bumper(positions, chain, wallet, broadcaster, holds, config.fee_rate)

    async def run_bumping(*, task_status: trio.TaskStatus[None]) -> None:
        await bumper.run(report=bumping, task_status=task_status)

    bumping = supervisor.service("bumping", run_bumping, [positions, chain, wallet])

    async def run_endpoint(*, task_status: trio.TaskStatus[Endpoint]) -> None:
        endpoint = Endpoint(identity)
        endpoint.handle(ping.PROTOCOL.path, answering(ping.PROTOCOL, lambda _: (ping.listener(), Host())))

        def who(_: object) -> tuple[Dialogue[object], Host]:
            own = identify.Identity("cfdnode", VERSION, endpoint.paths, config.network, role)
            return identify.listener(own), Host()

        endpoint.handle(identify.PROTOCOL.path, answering(identify.PROTOCOL, who))
        await endpoint.run(task_status=task_status)

    endpoint = supervisor.service("network", run_endpoint)
    supervisor.service("workers", keep_warm)
    setup = SetupNode(
        clock=clock,
        oracle_keys=OracleKeys(oracle_config.scheme, oracle_config.announcement_key, oracle_config.attestation_key),
        fee_rates=config.fee_rate,
        positions=positions,
        chain=chain,
        wallet=wallet,
        oracle=oracle,
        seed=seed.secret,
        holds=holds,
    )
    core = Core(
        config=config,
        clock=clock,
        seed=seed,
        identity=identity,
        supervisor=supervisor,
        store=store,
        chain=chain,
        wallet=wallet,
        oracle=oracle,
        positions=positions,
        endpoint=endpoint,
        feed=feed,
        setup=setup,
        broadcaster=broadcaster,
    )
    return core


def _feed(config: NodeConfig, clock: Clock) -> Feed:
    """The quotes that the node goes by; there never is one when no exchange is configured."""
    if config.prices is None:
        return Feed(None, clock)
    return Feed(config.prices.url, clock, stale_after=config.prices.stale_after)


def _claim(config: NodeConfig) -> None:
    """Contracts and coins of one network make no sense on another, so a data directory belongs to one for good."""
    path = files.network_file(config.data)
    try:
        config.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.read_text(encoding="utf-8").strip() if path.exists() else ""
        if not found:
            path.write_text(f"{config.network}\n", encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LocalError("bad_data_directory", f"{path}: {error}") from None
    if found and found != config.network:
        raise LocalError(
            "data_of_another_network",
            f"{config.data}: this data directory belongs to {found[:20]}, this node to {config.network}; give each"
            " network a directory of its own",
        )


def _seed(config: NodeConfig) -> Seed:
    """The seed of the data directory; a node that has none yet makes one."""
    path = files.seed_file(config.data)
    try:
        return Seed.read(path)
    except LocalError as error:
        if error.code != "no_seed":
            raise
    seed = Seed.generate()
    seed.write(path)
    log.info("made a new seed; write its words down", file=str(path))
    return seed

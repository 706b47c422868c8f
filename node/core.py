"""What a maker and a taker have in common: the data directory, the services that every node runs, and their order."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio
from attrs import frozen

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
from node.oracle.contradictions import OracleWatch
from node.oracle.records import Announcements
from node.position.abandon import LockKeeper
from node.position.book import Positions, run_positions
from node.position.bumping import Bumper
from node.position.deadlines import DeadlineKeeper
from node.position.keeper import AttestationKeeper, ChainKeeper
from node.position.punishing import Punisher
from node.prices import Feed
from node.setup import SetupNode
from node.supervision import Service, Supervisor
from node.wallet.interface import Wallet, run_wallet
from node.wallet.seed import Seed
from node.workers import keep_warm
from protocols import identify, ping
from protocols.contract.terms import SYMBOL
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
    identity: Identity
    supervisor: Supervisor
    chain: Service[ElectrumClient]
    broadcaster: Broadcaster
    wallet: Service[Wallet]
    positions: Service[Positions]
    oracle: Service[OracleClient]
    feeds: Mapping[str, Feed]
    """By symbol."""
    endpoint: Service[Endpoint]
    setup: SetupNode


Routers = Callable[[Core], "Sequence[APIRouter]"]


def build(config: NodeConfig, api_socket: socket.socket, role: PeerRole, routers: Routers) -> Core:
    """The node, not yet running. Raises LocalError when the seed or the data directory cannot be used."""
    _claim(config)
    network = NETWORKS[config.network]
    if network.warning:
        log.warning(network.warning, network=network.name)
    clock = config.make_clock()
    seed = _seed(config)
    identity = Identity(seed.node_identity())
    supervisor = Supervisor(clock=clock)
    core: Core

    async def run_web(*, task_status: trio.TaskStatus[None]) -> None:
        from node.web.server import run_api

        await run_api(config.data, api_socket, routers(core), task_status=task_status)

    supervisor.service("api", run_web)
    store = supervisor.service("store", partial(run_store, config.data / "events.sqlite", clock=clock))
    chain = supervisor.service("chain", partial(run_electrum, Servers(config.electrum), network, clock=clock))
    monitor, broadcaster = Monitor(), Broadcaster(clock)
    supervisor.service("chain-monitor", partial(chain.call, monitor.run), [chain])
    supervisor.service("broadcaster", partial(chain.call, broadcaster.run), [chain])
    wallet = _wallet(supervisor, config, clock, seed, chain)
    positions = _positions(supervisor, store)
    oracle_keys = OracleKeys(
        scheme=config.oracle.scheme,
        announcement_key=bytes.fromhex(config.oracle.announcement_key),
        attestation_key=bytes.fromhex(config.oracle.attestation_key),
    )
    oracle = _oracle(supervisor, config, clock, oracle_keys, store)
    core = Core(
        config=config,
        clock=clock,
        identity=identity,
        supervisor=supervisor,
        chain=chain,
        broadcaster=broadcaster,
        wallet=wallet,
        positions=positions,
        oracle=oracle,
        feeds={SYMBOL: _feed(supervisor, config, clock)},
        endpoint=_endpoint(supervisor, config, identity, role),
        setup=SetupNode(
            clock=clock,
            oracle_keys=oracle_keys,
            fee_rates=config.fee_rate,
            positions=positions,
            chain=chain,
            wallet=wallet,
            oracle=oracle,
            seed=seed.secret,
        ),
    )
    _keep_contracts(core, seed, monitor)
    supervisor.service("workers", keep_warm)
    return core


# --- services, each with what runs it ---------------------------------------------------------------------------------


def _wallet(
    supervisor: Supervisor, config: NodeConfig, clock: Clock, seed: Seed, chain: Service[ElectrumClient]
) -> Service[Wallet]:
    """The wallet, and before it the Electrum endpoint that BDK dials."""
    forwarder = Forwarder()
    forward = supervisor.service("wallet-chain", partial(chain.call, forwarder.run), [chain])

    async def run(*, task_status: trio.TaskStatus[Wallet]) -> None:
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

    wallet = supervisor.service("wallet", run, [chain, forward])
    return wallet


def _positions(supervisor: Supervisor, store: Service[EventStore]) -> Service[Positions]:
    async def run(*, task_status: trio.TaskStatus[Positions]) -> None:
        await run_positions(store, report=positions, task_status=task_status)

    positions = supervisor.service("positions", run, [store])
    return positions


def _oracle(
    supervisor: Supervisor, config: NodeConfig, clock: Clock, keys: OracleKeys, store: Service[EventStore]
) -> Service[OracleClient]:
    asked = OracleConfig(config.oracle.url, keys.announcement_key, keys.attestation_key, keys.scheme)

    async def run(*, task_status: trio.TaskStatus[OracleClient]) -> None:
        kept = Announcements(store)
        await run_oracle(asked, clock=clock, store=kept, report=oracle, task_status=task_status)

    oracle = supervisor.service("oracle", run, [store])
    return oracle


def _feed(supervisor: Supervisor, config: NodeConfig, clock: Clock) -> Feed:
    """The quotes that the node goes by; there never is one when no exchange is configured."""
    if config.prices is None:
        return Feed(None, clock)
    feed = Feed(config.prices.url, clock, stale_after=config.prices.stale_after)

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        await feed.run(report=prices, task_status=task_status)

    prices = supervisor.service("prices", run)
    return feed


def _endpoint(supervisor: Supervisor, config: NodeConfig, identity: Identity, role: PeerRole) -> Service[Endpoint]:
    async def run(*, task_status: trio.TaskStatus[Endpoint]) -> None:
        endpoint = Endpoint(identity)

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


# --- the data directory -----------------------------------------------------------------------------------------------


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

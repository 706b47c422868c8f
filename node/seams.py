"""What a node stands on: its data directory, the system's clock and randomness, sockets, processes, services outside.

`Seams()` is the machine. A simulation puts something else in the place of each, so that nodes live in one process on a
clock that jumps, and a run is repeated by its seed (tests/simulation).
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import structlog
import trio
from attrs import Factory, frozen

from node import files
from node.backup.files import Folder
from node.backup.format import Seal
from node.backup.service import Backup, Owner, one_thread, run_backup
from node.chain.electrum import ElectrumClient
from node.chain.servers import Servers
from node.clock import Clock
from node.config import NodeConfig
from node.eventstore.interface import EventStore
from node.eventstore.sqlite import run_store
from node.health import UNREPORTED, Report
from node.network.address import Identity
from node.network.carriers import Socks5
from node.network.endpoint import Endpoint
from node.prices import Feed
from node.supervision import ReportingRun
from node.wallet.interface import Wallet
from node.wallet.seed import Seed
from node.workers import in_worker_process
from protocols.errors import LocalError

if TYPE_CHECKING:
    import httpx2

log = structlog.get_logger("node")


def open_data_directory(config: NodeConfig) -> Seed:
    """The seed of the node that lives there; a new one for a node that has none yet. Raises LocalError."""
    _claim(config)
    return _seed(config)


def _claim(config: NodeConfig) -> None:
    """Contracts and coins of one network make no sense on another, and a maker's positions need a maker to answer for
    them: a data directory belongs to one network and one role for good."""
    for path, ours, code in (
        (files.network_file(config.data), config.network, "data_of_another_network"),
        (files.role_file(config.data), config.role, "data_of_another_role"),
    ):
        try:
            config.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = path.read_text(encoding="utf-8").strip() if path.exists() else ""
            if not found:
                path.write_text(f"{ours}\n", encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LocalError("bad_data_directory", f"{path}: {error}") from None
        if found and found != ours:
            raise LocalError(
                code,
                f"{config.data}: this data directory belongs to {found[:20]}, this node to {ours}; give each a"
                " directory of its own",
            )


def _seed(config: NodeConfig) -> Seed:
    path = files.seed_file(config.data)
    try:
        return Seed.read(path)
    except LocalError as error:
        if error.code != "no_seed":
            raise
    store = files.store_file(config.data)
    if store.exists():
        raise LocalError("seed_lost", f"{path}: the seed is gone, and {store.name} beside it holds what needs that one")
    seed = Seed.generate()
    seed.write(path)
    log.warning("made a new seed; write its words down", file=str(path))
    return seed


def _run_sqlite(config: NodeConfig, clock: Clock) -> ReportingRun[EventStore]:
    return partial(run_store, config.data / "events.sqlite", clock=clock)


def _backup(config: NodeConfig, seed: Seed, clock: Clock) -> ReportingRun[Backup]:
    files, seal, owner = Folder(config.backup_folder), Seal(seed.secret), Owner(config.network, config.role)
    thread = one_thread()  # of all lives

    async def run(
        *, report: Report = UNREPORTED, task_status: trio.TaskStatus[Backup] = trio.TASK_STATUS_IGNORED
    ) -> None:
        opened = Backup(files, seal, owner, clock, secrets.token_bytes, thread)
        await run_backup(opened, report=report, task_status=task_status)

    return run


def _electrum(config: NodeConfig) -> Servers:
    return Servers(config.electrum)


def _endpoint(identity: Identity, config: NodeConfig) -> Endpoint:
    proxy = config.peers.proxy
    if proxy is None:
        return Endpoint(identity)
    return Endpoint(identity, carriers=Socks5(proxy.host, proxy.port, config.peers.proxy_for == "onions"))


@frozen(kw_only=True)
class Seams:
    """The defaults are a node on a machine of its own."""

    open_data: Callable[[NodeConfig], Seed] = open_data_directory
    clock: Callable[[NodeConfig], Clock] = NodeConfig.make_clock
    entropy: Callable[[int], bytes] = secrets.token_bytes
    """All random bytes that the node draws, but for those of a new seed."""
    jitter: random.Random = Factory(random.Random)
    """Of the pauses before a service is begun anew."""
    run_store: Callable[[NodeConfig, Clock], ReportingRun[EventStore]] = _run_sqlite
    backup: Callable[[NodeConfig, Seed, Clock], ReportingRun[Backup]] = _backup
    electrum: Callable[[NodeConfig], Servers] = _electrum
    wallet: Callable[[Seed, Clock, ElectrumClient], Awaitable[Wallet]] | None = None
    """None: BDK's, which dials the node's own Electrum endpoint."""
    oracle: httpx2.AsyncBaseTransport | None = None
    """What carries the questions to the oracle; None: TCP."""
    feeds: Callable[[Clock], Mapping[str, Feed]] | None = None
    """By symbol; None: the configured exchange's."""
    endpoint: Callable[[Identity, NodeConfig], Endpoint] = _endpoint
    compute: Callable[[Callable[..., Any], tuple[object, ...]], Awaitable[Any]] = in_worker_process
    """Where heavy pure functions run."""
    raise_bugs: bool = False
    """Whether an unexpected exception of a service ends the node."""


MACHINE = Seams()

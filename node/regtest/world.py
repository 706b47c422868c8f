"""``cfdnode regtest``: a chain, its Electrum server, an oracle and a market in one process, on this machine
alone.

Everything that is to survive a restart is in the data directory: the blocks, the oracle's secret and the
prices that it attested, and ``world.toml``, which makers and takers read as their configuration.
"""

import os
import socket
import time
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog
import trio
from attrs import field, frozen

from node.clock import Clock
from node.config import WorldConfig
from node.oracle.server import AttestedPrices, Oracle, OracleKeys, oracle_app
from node.regtest.consensus import COINBASE_MATURITY, GENESIS, Chain
from node.regtest.control import World, control_app
from node.regtest.electrum_methods import Methods, shown
from node.regtest.electrum_server import ElectrumServer
from node.regtest.index import Index
from node.regtest.mempool import Mempool
from node.regtest.prices import Market, PricePath, RandomWalk, RecordedPath
from node.regtest.treasury import Treasury
from node.web.problems import CrashGuard
from node.web.server import serve
from protocols.errors import LocalError, WorldError

FIRST_BLOCKS = COINBASE_MATURITY + 40
"""Mined before anyone is let in: forty coinbases of 50 BTC can be spent."""
BLOCKS_PER_HOUR = 6
SHORTEST_HOUR = 1.0
"""More than six blocks a second would push their times ahead of the clock, until the kernel refuses them."""

_log = structlog.get_logger(__name__)


@frozen
class RunningWorld:
    """Where a world is to be found, and the world itself for who runs in the same process."""

    config: Path
    """``world.toml``."""
    electrum: str
    """host:port"""
    oracle: str
    """URL"""
    control: str
    """URL"""
    announcement_key: bytes
    attestation_key: bytes
    clock: Clock
    world: World = field(repr=False)


async def run_world(
    config: WorldConfig,
    *,
    wall: Callable[[], float] = time.time,
    entropy: Callable[[int], bytes] = os.urandom,
    task_status: trio.TaskStatus[RunningWorld] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run until cancelled; the started value says where everything is.

    Raises `LocalError` for a configuration that does not fit the directory, `WorldError` for a directory or
    port in use.
    """
    if config.hour < SHORTEST_HOUR:
        raise LocalError("bad_hour", f"hour is {config.hour:g}, allowed are {SHORTEST_HOUR:g} seconds or more")
    path: PricePath = RandomWalk(config.seed) if config.prices is None else RecordedPath.read(config.prices)
    world_file = config.data / "world.toml"
    anchor = _anchor(world_file, config.hour)
    clock = Clock(hour=config.hour, anchor=float(int(wall())) if anchor is None else anchor, wall=wall)
    since = int(clock.anchor)
    market = Market(path, clock, since=since)

    with Chain(config.data / "chain", wall=wall) as chain:
        index = Index(chain)
        mempool = Mempool(chain, index)
        world = World(chain, index, mempool, Treasury(chain, mempool), market, clock)
        await world.mine_many(max(0, FIRST_BLOCKS - chain.height))
        keys = OracleKeys.load(config.data / "oracle.secret", entropy)
        attested = AttestedPrices(config.data / "oracle.attested")
        oracle = Oracle(keys, attested, clock, since=since, market=market.at)

        with _listen(config.oracle_port) as at_oracle, _listen(config.control_port) as at_control:
            async with trio.open_nursery() as nursery:
                server = ElectrumServer(Methods(chain, index, mempool), mempool)
                electrum_port = await nursery.start(partial(server.run, port=config.electrum_port))
                await nursery.start(serve, CrashGuard(oracle_app(oracle)), [at_oracle])
                await nursery.start(serve, CrashGuard(control_app(world)), [at_control])
                nursery.start_soon(oracle.run)
                nursery.start_soon(_mine_on_schedule, world)
                announcement_key, attestation_key = keys.public()
                running = RunningWorld(
                    config=world_file,
                    electrum=f"127.0.0.1:{electrum_port}",
                    oracle=_url(at_oracle),
                    control=_url(at_control),
                    announcement_key=announcement_key,
                    attestation_key=attestation_key,
                    clock=clock,
                    world=world,
                )
                _write(world_file, running)
                _log.info("the world is up", config=str(world_file), height=chain.height, control=running.control)
                task_status.started(running)


async def _mine_on_schedule(world: World) -> None:
    """A block every sixth of an hour while the schedule is on; blocks mined on demand do not move it."""
    while True:
        await trio.sleep(world.clock.hour / BLOCKS_PER_HOUR)
        if world.scheduled:
            world.mine()


def _anchor(world_file: Path, hour: float) -> float | None:
    """Where the calendar of a world that is run again began; None for a new one."""
    try:
        clock = tomllib.loads(world_file.read_text(encoding="utf-8"))["clock"]
        before, anchor = float(clock["hour"]), float(clock["anchor"])
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise LocalError("bad_world", f"data: cannot read {world_file}: {error!r}; start in a new directory") from error
    if before != hour:
        raise LocalError(
            "other_hour",
            f"hour is {hour:g}, but the world in {world_file.parent} runs at {before:g} seconds an hour and its "
            "calendar cannot change: give that hour, or a new data directory",
        )
    return anchor


def _write(world_file: Path, running: RunningWorld) -> None:
    """A whole file or none, so that who waits for it never reads half of it."""
    text = f"""\
# written by cfdnode regtest: cfdnode maker --config and cfdnode taker --config read it
network = "regtest"
genesis = "{shown(GENESIS)}"
electrum = "{running.electrum}"

[clock]
hour = {running.clock.hour!r}
anchor = {running.clock.anchor!r}

[oracle]
url = "{running.oracle}"
announcement_key = "{running.announcement_key.hex()}"
attestation_key = "{running.attestation_key.hex()}"
scheme = "olivia-v1"

[regtest]
control = "{running.control}"
"""
    new = world_file.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(world_file)


def _listen(port: int) -> socket.socket:
    try:
        listener = socket.create_server(("127.0.0.1", port), backlog=100)
    except OSError as error:
        raise WorldError("port_in_use", f"cannot listen on 127.0.0.1:{port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


def _url(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"

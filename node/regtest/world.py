"""``cfdnode regtest``: a chain, its Electrum server, an oracle, a market and its exchange in one process, on this
machine alone.

Everything that is to survive a restart is in the data directory: the blocks, the oracle's secret and the
prices that it attested, and ``world.toml``, which makers and takers read as their configuration.
"""

import os
import socket
import time
import tomllib
from collections.abc import Callable
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
from node.regtest.exchange import PATH as EXCHANGE_PATH
from node.regtest.exchange import Exchange
from node.regtest.index import Index
from node.regtest.mempool import Mempool
from node.regtest.prices import START, Market, PricePath, RandomWalk, RecordedPath
from node.regtest.treasury import Treasury
from node.web.problems import CrashGuard
from node.web.server import serve
from protocols.contract.oracle import DLC, OLIVIA
from protocols.contract.symbols import SYMBOLS
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
    exchange: str
    """WebSocket URL"""
    control: str
    """URL"""
    announcement_key: bytes
    attestation_key: bytes
    scheme: str
    """The oracle's default; the keys are those of this scheme."""
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
    paths = _paths(config)
    world_file = config.data / "world.toml"
    before = _Before.read(world_file, config.hour)
    anchor = float(int(wall())) if before.anchor is None else before.anchor
    clock = Clock(hour=config.hour, anchor=anchor, wall=wall)
    markets = {symbol: Market(path, clock, since=int(anchor)) for symbol, path in paths.items()}

    with (
        _listen(config.electrum_port, before.electrum) as at_electrum,
        _listen(config.oracle_port, before.oracle) as at_oracle,
        _listen(config.exchange_port, before.exchange) as at_exchange,
        _listen(config.control_port, before.control) as at_control,
        Chain(config.data / "chain", wall=wall) as chain,
    ):
        index = Index(chain)
        mempool = Mempool(chain, index)
        exchange = Exchange(lambda symbol: markets[symbol].now(), wall)
        methods = Methods(chain, index, mempool)
        keys = OracleKeys.load(config.data / "oracle.secret", entropy)
        attested = AttestedPrices(config.data / "oracle.attested")
        oracle = Oracle(keys, attested, clock, since=int(anchor), market=lambda symbol, time: markets[symbol].at(time))
        world = World(chain, index, mempool, Treasury(chain, mempool), markets, clock, exchange, methods, oracle)
        await world.mine_many(max(0, FIRST_BLOCKS - chain.height))
        announcement_key, attestation_key = keys.public(DLC)
        running = RunningWorld(
            config=world_file,
            electrum=f"127.0.0.1:{_port(at_electrum)}",
            oracle=f"http://127.0.0.1:{_port(at_oracle)}",
            exchange=f"ws://127.0.0.1:{_port(at_exchange)}{EXCHANGE_PATH}",
            control=f"http://127.0.0.1:{_port(at_control)}",
            announcement_key=announcement_key,
            attestation_key=attestation_key,
            scheme=DLC.name,
            clock=clock,
            world=world,
        )

        async with trio.open_nursery() as nursery:
            electrum = ElectrumServer(methods, mempool)
            nursery.start_soon(electrum.serve, [trio.SocketListener(trio.socket.from_stdlib_socket(at_electrum))])
            nursery.start_soon(exchange.serve, [trio.SocketListener(trio.socket.from_stdlib_socket(at_exchange))])
            await nursery.start(serve, CrashGuard(oracle_app(oracle)), [at_oracle])
            await nursery.start(serve, CrashGuard(control_app(world)), [at_control])
            nursery.start_soon(oracle.run)
            nursery.start_soon(_mine_on_schedule, world)
            _write(world_file, running, keys)
            _log.info("the world is up", config=str(world_file), height=chain.height, control=running.control)
            task_status.started(running)


def _paths(config: WorldConfig) -> dict[str, PricePath]:
    """The price path of each symbol. A file is bitcoin's."""
    paths: dict[str, PricePath] = {
        symbol: RandomWalk(config.seed + number, start=START[symbol]) for number, symbol in enumerate(SYMBOLS)
    }
    if config.prices is not None:
        paths["BTCUSD"] = RecordedPath.read(config.prices)
    return paths


async def _mine_on_schedule(world: World) -> None:
    """A block every sixth of an hour while the schedule is on; blocks mined on demand do not move it."""
    while True:
        await trio.sleep(world.clock.hour / BLOCKS_PER_HOUR)
        if world.scheduled:
            world.mine()


@frozen
class _Before:
    """What stays when a world is run again: its calendar, and its ports as far as they are still free."""

    anchor: float | None = None
    electrum: int = 0
    oracle: int = 0
    exchange: int = 0
    control: int = 0

    @classmethod
    def read(cls, world_file: Path, hour: float) -> "_Before":
        """From the file that the last run wrote, if there is one; raises `LocalError` if it ran at another hour."""
        try:
            told = tomllib.loads(world_file.read_text(encoding="utf-8"))
            clock = told["clock"]
            last, anchor = float(clock["hour"]), float(clock["anchor"])
            places = (told["electrum"], told["oracle"]["url"], told["prices"]["url"], told["regtest"]["control"])
            ports = [int(place.removesuffix(EXCHANGE_PATH).rpartition(":")[2]) for place in places]
        except FileNotFoundError:
            return cls()
        except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
            raise LocalError(
                "bad_world", f"data: cannot read {world_file}: {error!r}; start in a new directory"
            ) from error
        if last != hour:
            raise LocalError(
                "other_hour",
                f"hour is {hour:g}, but the world in {world_file.parent} runs at {last:g} seconds an hour and its "
                "calendar cannot change: give that hour, or a new data directory",
            )
        return cls(anchor, *ports)


def _write(world_file: Path, running: RunningWorld, keys: OracleKeys) -> None:
    """A whole file or none, so that who waits for it never reads half of it."""
    announcement_key, attestation_key = keys.public(OLIVIA)
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
scheme = "{running.scheme}"
# it speaks another scheme, too:
# announcement_key = "{announcement_key.hex()}"
# attestation_key = "{attestation_key.hex()}"
# scheme = "{OLIVIA.name}"

[prices]
url = "{running.exchange}"

[regtest]
control = "{running.control}"
"""
    new = world_file.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(world_file)


def _listen(port: int, before: int) -> socket.socket:
    """A socket on that port; for 0 on the port of the last run, so that nodes find the world again, or on any."""
    for wanted in (port,) if port else (before, 0):
        try:
            listener = socket.create_server(("127.0.0.1", wanted), backlog=100)
        except OSError as error:
            if wanted == before != port:
                continue
            raise WorldError("port_in_use", f"cannot listen on 127.0.0.1:{port}: {error.strerror}") from error
        listener.setblocking(False)
        return listener
    raise AssertionError("the system has a port for 0, or says why not")


def _port(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])

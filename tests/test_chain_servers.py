"""Several chain servers: who stays behind, lies or stands still is told of, and the heavier valid chain wins."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from node.chain import compare
from node.chain.chainsync import Tip
from node.chain.compare import Comparison
from node.chain.electrum import ElectrumClient, glance, run_electrum
from node.chain.headers import Headers
from node.chain.servers import ServerAddress, Servers
from node.clock import Clock
from node.health import State
from node.networks import NETWORKS
from node.supervision import Service
from protocols.errors import WorldError
from tests.electrums import CLOCK, OTHER, REGTEST, regtest, serve, until
from tests.test_regtest_mempool import World


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EVERY", "FIRST_AFTER", "GRACE"):
        monkeypatch.setattr(compare, name, 0.05)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with regtest(tmp_path / "one") as world:
        yield world


@pytest.fixture
def another(tmp_path: Path) -> Iterator[World]:
    """Parted from `world` right behind the genesis block."""
    with regtest(tmp_path / "two", OTHER) as world:
        yield world


def chain(nursery: trio.Nursery, servers: Servers) -> Service[ElectrumClient]:
    async def run(*, task_status: trio.TaskStatus[ElectrumClient]) -> None:
        await run_electrum(servers, REGTEST, clock=CLOCK, report=service, task_status=task_status)

    service: Service[ElectrumClient] = Service("chain", run, raise_bugs=True)
    nursery.start_soon(service.supervise)
    return service


def stands_still(world: World, height: int) -> Any:
    """What a server says that withholds every block after `height`."""

    def edit(method: str, message: dict[str, Any]) -> dict[str, Any] | None:
        if method != "blockchain.headers.subscribe":
            return message
        old = {"height": height, "hex": world.chain.header(height).hex()}
        return {**message, "result": old} if "id" in message else None

    return edit


@pytest.mark.parametrize("blocks", [5, 170], ids=["few", "more than a new connection asks for"])
async def test_a_server_that_withholds_blocks_is_left_for_one_that_shows_them(
    world: World, nursery: trio.Nursery, blocks: int
) -> None:
    withholding, honest = await serve(world, nursery), await serve(world, nursery)
    withholding.edit = stands_still(world, 120)
    world.chain.mine_many(blocks)
    service = chain(nursery, Servers([withholding.address, honest.address]))
    await service.until(State.HEALTHY)
    with service.lent() as client:
        assert (client.server, client.tip.height) == (withholding.address, 120)
    with trio.fail_after(10):
        await service.until(State.DEGRADED)
    with service.lent() as client:
        assert (client.server, client.tip.height) == (honest.address, 120 + blocks)
    assert f"electrum server {withholding.address} is {blocks} blocks behind {honest.address}" in service.health.reason
    assert f"{honest.address} is in use" in service.health.reason
    assert service.health.remedy
    withholding.edit = lambda _, message: message
    with trio.fail_after(10):
        await service.until(State.HEALTHY)


async def test_the_heavier_chain_wins_and_the_lighter_is_named(
    world: World, another: World, nursery: trio.Nursery
) -> None:
    """They parted before all that a new connection asks for."""
    light, heavy = await serve(world, nursery), await serve(another, nursery)
    world.chain.mine_many(2)
    another.chain.mine_many(30, script=OTHER)
    service = chain(nursery, Servers([light.address, heavy.address]))
    with trio.fail_after(10):
        await service.until(State.DEGRADED)
    with service.lent() as client:
        assert (client.server, client.tip.hash) == (heavy.address, another.chain.tip)
    assert light.address in service.health.reason
    await trio.sleep(0.5)
    assert service.health.failures == 1  # it stays there


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (
            lambda method, message: (
                {**message, "result": {"genesis_hash": NETWORKS["mainnet"].genesis_hex}}
                if method == "server.features"
                else message
            ),
            "is on mainnet, this node on regtest",
        ),
        (
            lambda method, message: (
                {**message, "result": {"count": 121, "max": 2016, "hex": "00" * 80 * 121}}
                if method == "blockchain.block.headers"
                else message
            ),
            "sent headers that cannot be",
        ),
        (lambda _, __: b"\x00garbage\n", "not JSON"),
        (lambda _, __: b"[" * 10_000 + b"\n", "not JSON"),
    ],
    ids=["genesis", "headers", "garbage", "brackets"],
)
@pytest.mark.parametrize("first", [True, False])
async def test_a_server_that_lies_is_named_and_the_next_one_used(
    world: World, nursery: trio.Nursery, edit: Any, named: str, first: bool
) -> None:
    lying, honest = await serve(world, nursery), await serve(world, nursery)
    lying.edit = edit
    service = chain(nursery, Servers([lying.address, honest.address][:: 1 if first else -1]))
    with trio.fail_after(10):
        await service.until(State.DEGRADED)
    with service.lent() as client:
        assert client.server == honest.address
    assert f"electrum server {lying.address}" in service.health.reason
    assert named in service.health.reason
    assert f"{honest.address} is in use" in service.health.reason
    assert service.health.remedy


async def test_servers_that_close_at_once_dribble_or_hang_do_not_hold_up_the_one_in_use(
    world: World, nursery: trio.Nursery
) -> None:
    async def closes(stream: trio.SocketStream) -> None:
        await stream.aclose()

    async def dribbles(stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"[")
                await trio.sleep(0.05)

    async def hangs(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    addresses = []
    for conduct in (closes, dribbles, hangs):
        [listener] = await nursery.start(partial(trio.serve_tcp, conduct, 0, host="127.0.0.1"))
        addresses.append(f"127.0.0.1:{listener.socket.getsockname()[1]}")
    honest = await serve(world, nursery)
    service = chain(nursery, Servers([honest.address, *addresses]))
    with trio.fail_after(10):
        await service.until(State.DEGRADED)
    assert addresses[0] in service.health.reason
    world.mine()
    with service.lent() as client, trio.fail_after(5):
        async for tip in client.tips():
            if tip.height == 121:
                break
    assert service.health.failures == 0


async def test_who_is_next_is_said_when_a_connection_is_lost(world: World, nursery: trio.Nursery) -> None:
    server, other = await serve(world, nursery), await serve(world, nursery)
    service = chain(nursery, Servers([server.address, other.address]))
    await service.until(State.HEALTHY)
    server.stop()
    with trio.fail_after(10):
        await service.until(State.RESTARTING)
        assert service.health.reason.endswith(f"{other.address} is next")
        await service.until(State.DEGRADED)
    assert server.address in service.health.reason
    await server.start()
    with trio.fail_after(10):
        await service.until(State.HEALTHY)


async def test_a_glance_shows_a_chain_and_leaves(world: World, nursery: trio.Nursery) -> None:
    server = await serve(world, nursery)
    headers = await glance(ServerAddress.parse(server.address), REGTEST, CLOCK, Headers(REGTEST))
    assert headers.hash(120) == world.chain.tip
    server.stop()
    await until(lambda: True)
    with pytest.raises(WorldError, match="server_unreachable"):
        await glance(ServerAddress.parse(server.address), REGTEST, CLOCK, Headers(REGTEST))


class _Present:
    """A connection to a mainnet whose tip is of that time."""

    def __init__(self, time: int) -> None:
        self.headers = Headers(NETWORKS["mainnet"])
        self.tip = Tip(800_000, bytes(32), bytes(68) + time.to_bytes(4, "little") + bytes(8))

    async def newest_tip(self) -> Tip:
        return self.tip

    def leave(self, sentence: str) -> None:
        raise AssertionError(sentence)


@pytest.mark.parametrize("name", ["mainnet", "regtest"])
async def test_blocks_that_stay_out_for_longer_than_chance_explains(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, name: str
) -> None:
    monkeypatch.undo()
    clock = Clock(wall=lambda: 1_800_000_000 + trio.current_time())

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        servers = Servers(["one:1"])
        present = _Present(1_800_000_000)
        task_status.started()
        await Comparison(
            servers, servers.next, present, _nobody, network=NETWORKS[name], clock=clock, report=service
        ).run()

    service: Service[None] = Service("chain", run, clock=clock, raise_bugs=True)
    nursery.start_soon(service.supervise)
    await service.until(State.HEALTHY)
    await trio.sleep(compare.STANDS_STILL - 70)
    assert service.state is State.HEALTHY
    await trio.sleep(140)
    if name == "regtest":  # where blocks come when somebody makes them
        assert service.state is State.HEALTHY
    else:
        assert "there is no block after height 800000, of 08:00 UTC" in service.health.reason
        assert "second chain server" in service.health.remedy


async def _nobody(address: ServerAddress) -> Headers:
    raise AssertionError(address)


def test_work_is_compared_from_the_fork_on(world: World, another: World) -> None:
    def headers(of: World) -> Headers:
        held = Headers(REGTEST)
        held.begin(0, b"".join(of.chain.header(height) for height in range(of.chain.height + 1)))
        return held

    ours, theirs = headers(world), headers(another)
    assert ours.lead(ours) == 0
    world.chain.mine_many(3)
    another.chain.mine_many(3, script=OTHER)
    assert headers(world).lead(headers(another)) == 0
    assert headers(world).fork(headers(another)) == 0
    longer = headers(world)
    assert (longer.lead(ours), ours.lead(longer), longer.lead(theirs), theirs.lead(longer)) == (3, -3, 3, -3)
    assert longer.fork(ours) == 120
    # of a chain that shows nothing in common as many headers count as of ours: it is not its height that weighs
    window = Headers(REGTEST)
    window.begin(121, b"".join(world.chain.header(height) for height in range(121, 124)))
    assert (theirs.fork(window), theirs.lead(window), window.lead(theirs)) == (None, 0, 0)

"""The monitor: every change seen, none invented, through reorganisations and lost connections."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from bitcoin.core import CTransaction

from node.chain import monitor as module
from node.chain.electrum import ElectrumClient, script_hash
from node.chain.monitor import Following, Monitor, View
from node.chain.session import ServerLost
from protocols.contract.scripts import ANCHOR_SCRIPT
from tests.electrums import OPEN, OTHER, Between, dial, give, regtest, serve, until
from tests.test_regtest_mempool import World, out, pay

NOBODYS = b"\x00\x20" + bytes(32)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with regtest(tmp_path) as world:
        yield world


@pytest.fixture
async def server(world: World, nursery: trio.Nursery) -> Between:
    return await serve(world, nursery)


async def live(monitor: Monitor, nursery: trio.Nursery, *servers: Between) -> ElectrumClient:
    """Let `monitor` live on a new connection."""
    client = await dial(nursery, *servers)

    async def run() -> None:
        with pytest.raises(ServerLost):
            await monitor.run(client)

    nursery.start_soon(run)
    return client


@pytest.fixture
async def monitor(server: Between, nursery: trio.Nursery) -> Monitor:
    monitor = Monitor()
    await live(monitor, nursery, server)
    return monitor


async def when(views: Following, condition: Callable[[View], object]) -> View:
    with trio.fail_after(10):
        async for view in views:
            if condition(view):
                return view
    raise AssertionError("views do not end")


def spend(transaction: CTransaction, value: int, *, script: bytes = OTHER) -> CTransaction:
    return pay(out(transaction), value, script=script, witness=(OPEN,))


def reorganise(world: World, depth: int, blocks: list[list[CTransaction]]) -> None:
    """Replace the last `depth` blocks by these, of which there must be more."""
    parent = world.chain.block_hash(world.chain.height - depth)
    for transactions in blocks:
        parent = world.chain.submit(world.chain.build(transactions, parent=parent))
    assert world.chain.tip == parent


async def test_a_life_of_a_lock(world: World, monitor: Monitor) -> None:
    with monitor.follow([OTHER]) as views:
        view = await anext(views)
        assert (view.tip_height, view.tip_hash, view.transactions) == (120, world.chain.tip, {})
        lock = give(world, 1, 50_000)
        txid = world.send(lock)
        view = await when(views, lambda view: txid in view.transactions)
        assert (view.confirmations(txid), view.transactions[txid].height) == (0, None)
        assert view.transactions[txid].raw == lock.serialize()
        assert view.spender(txid, 0) is None

        world.mine()
        view = await when(views, lambda view: view.confirmations(txid))
        assert (view.tip_height, view.confirmations(txid)) == (121, 1)
        assert view.transactions[txid].block_hash == world.chain.tip == view.tip_hash

        commit = spend(lock, 49_000)
        spent = world.send(commit)
        view = await when(views, lambda view: view.spender(txid, 0))
        spender = view.spender(txid, 0)
        assert spender is not None
        assert (spender.txid, spender.height, spender.tx.wit) == (spent, None, commit.wit)
        assert view.spender(txid, 1) is None
        world.mine()
        world.mine()
        view = await when(views, lambda view: view.confirmations(spent) == 2)
        assert view.confirmations(txid) == 3
        assert view.confirmations(bytes(32)) == 0


async def test_every_tip_is_a_view(world: World, monitor: Monitor) -> None:
    with monitor.follow([OTHER]) as views:
        assert (await anext(views)).tip_height == 120
        for height in (121, 122):
            world.mine()
            with trio.fail_after(5):
                assert (await anext(views)).tip_height == height


async def test_a_reorganisation_returns_a_transaction_to_the_mempool(world: World, monitor: Monitor) -> None:
    with monitor.follow([OTHER]) as views:
        txid = world.send(give(world, 1, 50_000))
        world.mine()
        await when(views, lambda view: view.confirmations(txid) == 1)
        reorganise(world, 1, [[], []])
        view = await when(views, lambda view: view.tip_height == 122 and txid in view.transactions)
        assert (view.confirmations(txid), view.transactions[txid].block_hash) == (0, None)


async def test_a_reorganisation_that_leaves_the_height_alone_changes_the_block(world: World, monitor: Monitor) -> None:
    """The server says nothing then, because its status covers heights and no blocks."""
    with monitor.follow([OTHER]) as views:
        lock = give(world, 1, 50_000)
        txid = world.send(lock)
        world.mine()
        before = await when(views, lambda view: view.confirmations(txid) == 1)
        reorganise(world, 1, [[lock], []])
        view = await when(views, lambda view: view.tip_height == 122)
        assert view.confirmations(txid) == 2
        assert view.transactions[txid].height == before.transactions[txid].height == 121
        assert view.transactions[txid].block_hash == world.chain.block_hash(121)
        assert view.transactions[txid].block_hash != before.transactions[txid].block_hash


async def test_a_reorganisation_in_which_a_conflict_wins(world: World, monitor: Monitor) -> None:
    with monitor.follow([OTHER]) as views:
        loser, winner = give(world, 1, 50_000), give(world, 1, 60_000)
        world.send(loser)
        world.mine()
        await when(views, lambda view: view.confirmations(loser.GetTxid()) == 1)
        reorganise(world, 1, [[winner], []])
        view = await when(views, lambda view: view.confirmations(winner.GetTxid()) == 2)
        assert set(view.transactions) == {winner.GetTxid()}


async def test_what_happened_while_there_was_no_connection(
    world: World, server: Between, monitor: Monitor, nursery: trio.Nursery
) -> None:
    with monitor.follow([OTHER]) as views:
        await anext(views)
        server.stop()
        lock = give(world, 1, 50_000)
        world.send(lock)
        world.mine()
        commit = spend(lock, 49_000)
        world.send(commit)
        with monitor.follow([NOBODYS]) as others:
            await until(lambda: monitor._client is None)
            with trio.move_on_after(0.05) as waiting:
                await anext(others)
            assert waiting.cancelled_caught
            await server.start()
            await live(monitor, nursery, server)
            view = await when(views, lambda view: view.transactions)
            assert view.confirmations(lock.GetTxid()) == 1
            assert view.spender(lock.GetTxid(), 0) is not None
            assert (await anext(others)).transactions == {}


async def test_nothing_new_after_a_reconnection_is_no_view(
    server: Between, monitor: Monitor, world: World, nursery: trio.Nursery
) -> None:
    with monitor.follow([OTHER]) as views:
        await anext(views)
        server.stop()
        await until(lambda: monitor._client is None)
        await server.start()
        await live(monitor, nursery, server)
        await until(lambda: server.asked.count("blockchain.scripthash.get_history") == 2)
        with trio.move_on_after(0.05) as waiting:
            await anext(views)
        assert waiting.cancelled_caught
        world.mine()
        assert (await when(views, lambda _: True)).tip_height == 121


async def test_many_share_one_subscription(
    world: World, server: Between, monitor: Monitor, nursery: trio.Nursery
) -> None:
    found: list[View] = []

    async def position() -> None:
        with monitor.follow([OTHER, NOBODYS]) as views:
            found.append(await when(views, lambda view: view.transactions))

    async with trio.open_nursery() as positions:
        for _ in range(50):
            positions.start_soon(position)
        await until(lambda: server.asked.count("blockchain.scripthash.get_history") == 2)
        assert server.asked.count("blockchain.scripthash.subscribe") == 2
        world.send(give(world, 1, 5000))
    assert len(found) == 50
    await until(lambda: server.asked.count("blockchain.scripthash.unsubscribe") == 2)
    assert not monitor._scripts


async def test_a_history_that_the_server_refuses_holds_up_nobody_else(
    world: World, server: Between, monitor: Monitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY", 0.02)

    refused = 0

    def refuse(method: str, message: dict[str, Any]) -> dict[str, Any]:
        nonlocal refused
        if method == "blockchain.scripthash.subscribe" and message.get("result", 0) is None and refused < 3:
            refused += 1
            return {"id": message["id"], "error": {"code": 1, "message": "history too large"}}
        return message

    with monitor.follow([OTHER]) as views:
        await anext(views)
        server.edit = refuse
        with monitor.follow([OTHER, NOBODYS]) as both:
            world.mine()
            assert (await when(views, lambda _: True)).tip_height == 121
            with trio.fail_after(5):
                assert (await anext(both)).tip_height == 121
    assert refused == 3


async def test_a_change_during_the_fetch_is_not_missed(world: World, server: Between, monitor: Monitor) -> None:
    """The transaction arrives after the history was answered and before the answer is read."""
    transaction = give(world, 1, 5000)
    sent: list[bytes] = []

    def late(method: str, message: dict[str, Any]) -> dict[str, Any]:
        if method == "blockchain.scripthash.get_history" and not sent:
            sent.append(world.send(transaction))
        return message

    server.edit = late
    with monitor.follow([OTHER]) as views:
        view = await when(views, lambda view: view.transactions)
    assert list(view.transactions) == sent


async def test_the_anchors_script_is_nobodys_to_follow(monitor: Monitor, server: Between) -> None:
    with pytest.raises(ValueError, match="everybody's"):
        monitor.follow([OTHER, ANCHOR_SCRIPT])
    assert not monitor._scripts
    assert script_hash(ANCHOR_SCRIPT) not in server.asked

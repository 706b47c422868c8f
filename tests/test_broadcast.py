"""Repeated broadcasts, and the inputs that a peer claims to have."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from attrs import evolve

from node.chain import broadcast as module
from node.chain.broadcast import Attempt, Broadcaster
from node.chain.electrum import BroadcastRejected, ElectrumClient, NoPackages
from node.chain.inputs import check_inputs
from node.chain.session import ServerLost
from protocols.contract.funding import FundingInput, OutPoint
from protocols.errors import RemoteProtocolError
from tests.electrums import CLOCK, OPEN, OTHER, Between, dial, give, regtest, serve, until
from tests.test_regtest_mempool import COIN, HOME, World, out, pay

BROADCAST = "blockchain.transaction.broadcast"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with regtest(tmp_path) as world:
        yield world


@pytest.fixture
async def server(world: World, nursery: trio.Nursery) -> Between:
    return await serve(world, nursery)


@pytest.fixture
async def client(server: Between, nursery: trio.Nursery) -> ElectrumClient:
    return await dial(nursery, server)


async def live(broadcaster: Broadcaster, client: ElectrumClient, nursery: trio.Nursery) -> None:
    async def run(task_status: trio.TaskStatus[None]) -> None:
        with pytest.raises(ServerLost):
            await broadcaster.run(client, task_status=task_status)

    await nursery.start(run)


@pytest.fixture
async def broadcaster(client: ElectrumClient, nursery: trio.Nursery) -> Broadcaster:
    broadcaster = Broadcaster(CLOCK)
    await live(broadcaster, client, nursery)
    return broadcaster


async def test_a_chain_of_transactions_goes_out_at_once_parents_first(world: World, broadcaster: Broadcaster) -> None:
    parent = give(world, 1, 50_000)
    child = pay(out(parent), 49_000, witness=(OPEN,))
    kept = {tx.GetTxid(): tx.serialize() for tx in (parent, child)}
    broadcaster.keep(b"position", kept)
    await until(lambda: world.pool() == set(kept))
    await until(lambda: len(broadcaster.status()) == 2)
    assert set(broadcaster.status().values()) == {Attempt(CLOCK.now(), None)}
    assert all(attempt.accepted for attempt in broadcaster.status().values())


async def test_what_is_refused_now_goes_out_when_its_time_comes(world: World, broadcaster: Broadcaster) -> None:
    """A relative lock of three blocks: refused until the third, and everybody else's transactions meanwhile pass."""
    parent = give(world, 1, 50_000)
    world.send(parent)
    world.mine()
    early = pay(out(parent), 49_000, witness=(OPEN,), sequence=3)
    txid = early.GetTxid()
    broadcaster.keep(b"early", {txid: early.serialize()})
    await until(lambda: txid in broadcaster.status())
    assert broadcaster.status()[txid].reason is not None
    assert "non-BIP68-final" in str(broadcaster.status()[txid].reason)
    other = give(world, 2, 50_000)
    broadcaster.keep(b"other", {other.GetTxid(): other.serialize()})
    await until(lambda: other.GetTxid() in world.pool())
    world.mine()
    assert txid not in world.pool()
    world.mine()
    await until(lambda: txid in world.pool())
    await until(lambda: broadcaster.status()[txid].accepted)


async def test_it_is_repeated_without_a_new_block(
    world: World, server: Between, client: ElectrumClient, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY", 0.02)
    broadcaster = Broadcaster(CLOCK)
    transaction = give(world, 1, 50_000)
    txid = transaction.GetTxid()
    broadcaster.keep(b"position", {txid: transaction.serialize()})
    await live(broadcaster, client, nursery)
    await until(lambda: server.asked.count(BROADCAST) > 3)
    assert broadcaster.status()[txid].accepted
    broadcaster.keep(b"position", {})
    assert broadcaster.status() == {}
    await trio.sleep(0.05)
    asked = server.asked.count(BROADCAST)
    await trio.sleep(0.05)
    assert server.asked.count(BROADCAST) == asked


async def test_it_goes_on_over_a_lost_connection(
    world: World, server: Between, broadcaster: Broadcaster, nursery: trio.Nursery
) -> None:
    transaction = give(world, 1, 50_000)
    raw, txid = transaction.serialize(), transaction.GetTxid()
    server.edit = lambda method, message: None if method == BROADCAST else message
    broadcaster.keep(b"position", {txid: raw})
    await until(lambda: BROADCAST in server.asked)
    server.stop()
    await server.start()
    server.edit = lambda _, message: message
    await live(broadcaster, await dial(nursery, server), nursery)
    await until(lambda: txid in broadcaster.status())
    assert world.pool() == {txid}


async def test_owners_do_not_touch_each_others_transactions(world: World, broadcaster: Broadcaster) -> None:
    transaction = give(world, 1, 50_000)
    raw, txid = transaction.serialize(), transaction.GetTxid()
    broadcaster.keep(b"a", {txid: raw})
    broadcaster.keep(b"b", {txid: raw})
    await until(lambda: txid in broadcaster.status())
    broadcaster.keep(b"a", {})
    assert txid in broadcaster.status()
    broadcaster.keep(b"b", {})
    assert txid not in broadcaster.status()


async def test_keeping_others_replaces_what_was_kept(world: World, server: Between, broadcaster: Broadcaster) -> None:
    first, second = give(world, 1, 50_000), give(world, 2, 50_000)
    broadcaster.keep(b"position", {first.GetTxid(): first.serialize()})
    await until(lambda: first.GetTxid() in broadcaster.status())
    broadcaster.keep(b"position", {second.GetTxid(): second.serialize()})
    await until(lambda: second.GetTxid() in broadcaster.status())
    assert set(broadcaster.status()) == {second.GetTxid()}
    asked = server.asked.count(BROADCAST)
    world.mine()
    await until(lambda: server.asked.count(BROADCAST) > asked)
    await trio.sleep(0.02)
    assert server.asked.count(BROADCAST) == asked + 1


# Packages

PACKAGE = "blockchain.transaction.broadcast_package"


def stuck(world: World) -> dict[bytes, bytes]:
    """A parent that pays no fee, and the child that pays for both."""
    parent = pay(world.coin(1), COIN, version=3)
    child = pay(out(parent), COIN - 1_000, version=3)
    return {tx.GetTxid(): tx.serialize() for tx in (parent, child)}


async def test_a_package_goes_out_as_one(world: World, server: Between, broadcaster: Broadcaster) -> None:
    kept = stuck(world)
    broadcaster.keep(b"position", kept, package=True)
    await until(lambda: world.pool() == set(kept))
    await until(lambda: len(broadcaster.status()) == 2)
    assert all(attempt.accepted for attempt in broadcaster.status().values())
    assert broadcaster.kept(b"position") == kept
    world.mempool.entries.clear()
    world.mempool._spenders.clear()
    broadcaster.keep(b"position", {})
    broadcaster.keep(b"position", kept)
    await until(lambda: BROADCAST in server.asked)
    await until(lambda: len(broadcaster.status()) == 2)
    assert not any(attempt.accepted for attempt in broadcaster.status().values())


async def test_a_server_without_packages_gets_them_one_by_one(world: World, nursery: trio.Nursery) -> None:
    server = await serve(world, nursery, newest=(1, 4, 3))
    client = await dial(nursery, server)
    assert not client.takes_packages
    broadcaster = Broadcaster(CLOCK)
    await live(broadcaster, client, nursery)
    parent = give(world, 1, 50_000)
    child = pay(out(parent), 49_000, witness=(OPEN,))
    kept = {tx.GetTxid(): tx.serialize() for tx in (parent, child)}
    broadcaster.keep(b"position", kept, package=True)
    await until(lambda: world.pool() == set(kept))
    assert PACKAGE not in server.asked
    with pytest.raises(NoPackages, match="takes no packages"):
        await client.broadcast_package(list(kept.values()))


async def test_what_a_server_says_of_a_package(world: World, server: Between, client: ElectrumClient) -> None:
    parent = pay(world.coin(1), COIN, version=3)
    poor, rich = (pay(out(parent), COIN - fee, version=3) for fee in (10, 1_000))
    raws = [parent.serialize(), poor.serialize()]
    refused = await client.broadcast_package(raws)
    assert list(refused) == [parent.GetTxid(), poor.GetTxid()]
    assert all("min relay fee not met" in reason for reason in refused.values())
    assert await client.broadcast_package([parent.serialize(), rich.serialize()]) == {}
    assert await client.broadcast_package([parent.serialize(), rich.serialize()]) == {}
    with pytest.raises(BroadcastRejected, match="package-not-child-with-parents"):
        await client.broadcast_package([give(world, 2, 50_000).serialize(), give(world, 3, 50_000).serialize()])

    known = [{"txid": tx.GetTxid()[::-1].hex(), "error": "txn-already-in-mempool"} for tx in (parent, rich)]
    for said, refusals in (
        ({"success": False, "errors": known}, {}),
        ({"success": False, "errors": [known[0], known[1] | {"error": "no\n"}]}, {rich.GetTxid(): "no"}),
    ):
        server.edit = lambda _, message, said=said: message | {"result": said}  # type: ignore[misc]
        assert await client.broadcast_package([parent.serialize(), rich.serialize()]) == refusals
    server.edit = lambda _, message: message | {"result": {"success": False, "errors": []}}
    with pytest.raises(BroadcastRejected, match="does not say why"):
        await client.broadcast_package(raws)


@pytest.mark.parametrize(
    "said", [None, [], {"success": 1}, {"success": False, "errors": [{"txid": "00", "error": ""}]}]
)
async def test_nonsense_about_a_package_ends_the_connection(
    world: World, server: Between, client: ElectrumClient, said: object
) -> None:
    server.edit = lambda _, message: message | {"result": said}
    with pytest.raises(ServerLost, match="malformed"):
        await client.broadcast_package(list(stuck(world).values()))


# Inputs


@pytest.fixture
def coin(world: World) -> FundingInput:
    transaction = give(world, 1, 50_000)
    world.send(transaction)
    world.mine()
    return FundingInput(transaction.GetTxid(), 0, 50_000, OTHER)


async def test_an_input_that_is_there(world: World, client: ElectrumClient, coin: FundingInput) -> None:
    await check_inputs(client, [coin])
    world.chain.mine_many(2)
    await until(lambda: client.tip.height == 123)
    await check_inputs(client, [coin], min_conf=3)
    mature = world.coin(24)
    await check_inputs(client, [coin, FundingInput(mature.txid, mature.vout, COIN, HOME)])


async def refusal(client: ElectrumClient, one: FundingInput, min_conf: int = 1) -> str:
    with pytest.raises(RemoteProtocolError) as refused:
        await check_inputs(client, [one], min_conf)
    assert refused.value.code == "bad_input"
    prefix = f"input {one.txid[::-1].hex()}:{one.vout} "
    assert refused.value.sentence.startswith(prefix)
    return refused.value.sentence.removeprefix(prefix)


async def test_inputs_that_are_not_as_stated(world: World, client: ElectrumClient, coin: FundingInput) -> None:
    for changed, reason in (
        (evolve(coin, txid=bytes(32)), "spends a transaction that the chain server does not know"),
        (evolve(coin, vout=2), "does not exist: its transaction has 2 outputs"),
        (evolve(coin, vout=-1), "does not exist: its transaction has 2 outputs"),
        (evolve(coin, value=50_001), "is said to hold 50001 sat and holds 50000"),
        (evolve(coin, script=HOME), f"is said to have the script {HOME.hex()} and has {OTHER.hex()}"),
    ):
        assert await refusal(client, changed) == reason
    assert await refusal(client, coin, min_conf=2) == "has 1 confirmations, it needs 2"


async def test_inputs_that_cannot_be_spent(world: World, client: ElectrumClient, coin: FundingInput) -> None:
    unconfirmed = give(world, 2, 50_000)
    world.send(unconfirmed)
    assert (
        await refusal(client, FundingInput(unconfirmed.GetTxid(), 0, 50_000, OTHER))
        == "has 0 confirmations, it needs 1"
    )
    # of height 23 the tip at 121 has 99 blocks
    young = world.coin(23)
    reason = await refusal(client, FundingInput(young.txid, 0, COIN, HOME))
    assert reason == "has 99 confirmations, a coinbase needs 100"
    spent = pay(OutPoint(coin.txid, coin.vout), 49_000, witness=(OPEN,))
    world.send(spent)
    assert await refusal(client, coin) == "is spent already"
    world.mine()
    assert await refusal(client, coin) == "is spent already"

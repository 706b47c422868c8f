"""What BDK's wallet does about servers that fail, databases that are not its own, and the wallets as services."""

import sqlite3
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import bdkpython as bdk
import pytest
import trio
import trio.testing

from node.chain.electrum import ElectrumClient, run_electrum
from node.chain.forward import Forwarder
from node.clock import Clock
from node.errors import NeedsUser
from node.health import State
from node.networks import NETWORKS
from node.supervision import Service
from node.wallet.bdk import BdkWallet
from node.wallet.interface import GAP_LIMIT, LOOKAHEAD, Balance, Wallet, run_wallet
from node.wallet.pure import PureWallet
from node.wallet.seed import Seed
from protocols.errors import WorldError
from tests.wallets import MINERS, World, script_of, signed

NOW = 1_800_000_000.0
CLOCK = Clock(wall=lambda: NOW)
NOWHERE = "127.0.0.1:1"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path / "chain") as world:
        yield world


async def open_wallet(path: Path, electrum: str = NOWHERE, *, seed: Seed | None = None) -> BdkWallet:
    return await BdkWallet.open(seed or Seed.generate(), "regtest", path, lambda: electrum, clock=CLOCK)


def aside(directory: Path) -> list[Path]:
    return list(directory.glob("wallet.aside-*"))


async def test_without_a_server_it_opens_and_sync_says_whom_it_cannot_reach(tmp_path: Path) -> None:
    wallet = await open_wallet(tmp_path / "wallet")
    await wallet.new_address()
    with pytest.raises(WorldError, match="electrum") as caught:
        await wallet.sync()
    assert NOWHERE in caught.value.sentence


async def test_a_server_that_goes_and_comes_back(world: World, tmp_path: Path) -> None:
    addresses = [NOWHERE]
    wallet = await BdkWallet.open(Seed.generate(), "regtest", tmp_path / "wallet", lambda: addresses[-1], clock=CLOCK)
    world.pay((await wallet.new_script(), 70_000))
    for _ in range(2):
        async with trio.open_nursery() as life:
            addresses.append(await world.serve(life))
            await wallet.sync()
            life.cancel_scope.cancel()
        seen = await wallet.balance()
        assert seen == Balance(70_000, 0, NOW, world.chain.height)
        world.mine()
        with pytest.raises(WorldError, match="electrum"):
            await wallet.sync()
        assert await wallet.balance() == seen


async def test_a_connection_that_ended_between_two_syncs_is_dialled_again(
    world: World, tmp_path: Path, nursery: trio.Nursery
) -> None:
    electrum = await world.serve(nursery)
    streams: list[trio.SocketStream] = []

    async def relay(near: trio.SocketStream) -> None:
        streams.append(near)
        host, port = electrum.split(":")
        far = await trio.open_tcp_stream(host, int(port))

        async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
            async for data in source:
                await sink.send_all(data)

        async with near, far, trio.open_nursery() as pumps:
            pumps.start_soon(pump, far, near)
            await pump(near, far)
            pumps.cancel_scope.cancel()

    [listener] = await nursery.start(partial(trio.serve_tcp, relay, 0, host="127.0.0.1"))
    wallet = await open_wallet(tmp_path / "wallet", f"127.0.0.1:{listener.socket.getsockname()[1]}")
    await wallet.sync()
    await wallet.sync()
    assert len(streams) == 1
    streams[0].socket.shutdown(trio.socket.SHUT_RDWR)
    await wallet.sync()
    assert len(streams) == 2


async def test_a_sync_can_be_cancelled_while_the_server_is_silent(
    world: World, tmp_path: Path, nursery: trio.Nursery
) -> None:
    called = trio.Event()

    async def silent(stream: trio.SocketStream) -> None:
        called.set()
        await trio.sleep_forever()

    [listener] = await nursery.start(partial(trio.serve_tcp, silent, 0, host="127.0.0.1"))
    addresses = [f"127.0.0.1:{listener.socket.getsockname()[1]}"]
    wallet = await BdkWallet.open(Seed.generate(), "regtest", tmp_path / "wallet", lambda: addresses[-1], clock=CLOCK)
    async with trio.open_nursery() as stuck:
        stuck.start_soon(wallet.sync)
        await called.wait()
        world.pay((await wallet.new_script(), 70_000))  # meanwhile the wallet serves
        stuck.cancel_scope.cancel()
    addresses.append(await world.serve(nursery))
    await wallet.sync()
    assert (await wallet.balance()).confirmed == 70_000


async def test_a_server_of_another_network_is_refused(world: World, tmp_path: Path, nursery: trio.Nursery) -> None:
    electrum = await world.serve(nursery)
    wallet = await BdkWallet.open(Seed.generate(), "signet", tmp_path / "wallet", lambda: electrum, clock=CLOCK)
    with pytest.raises(WorldError):
        await wallet.sync()
    with pytest.raises(WorldError, match="wallet_not_synced"):
        await wallet.balance()


async def test_the_database_is_the_owners_alone_and_holds_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "data" / "wallet"
    seed = Seed.generate()
    wallet = await open_wallet(path, seed=seed)
    await wallet.new_address()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    content = path.read_bytes()
    assert b"tpub" in content
    assert b"tprv" not in content
    assert not any(word.encode() in content for word in [seed.words, seed.secret.hex()])


async def test_a_database_of_another_seed_or_network_needs_the_user(tmp_path: Path) -> None:
    path, seed = tmp_path / "wallet", Seed.generate()
    await open_wallet(path, seed=seed)
    for other, network, told in (
        (Seed.generate(), "regtest", "belongs to another seed"),
        (Seed.generate(), "mainnet", "belongs to another seed"),
        (seed, "signet", "belongs to regtest, this node to signet"),
        (seed, "testnet4", "belongs to regtest, this node to testnet4"),
        (seed, "mainnet", "belongs to regtest, this node to mainnet"),
    ):
        with pytest.raises(NeedsUser) as caught:
            await BdkWallet.open(other, network, path, lambda: NOWHERE)
        assert caught.value.sentence == f"{path}: the wallet's database {told}"
        assert "tpub" not in str(caught.value)
    await open_wallet(path, seed=seed)


@pytest.mark.parametrize("damage", ["all", "middle", "empty"])
async def test_a_corrupt_database_is_moved_aside_and_rebuilt_from_the_seed(
    world: World, tmp_path: Path, nursery: trio.Nursery, damage: str
) -> None:
    path, seed = tmp_path / "wallet", Seed.generate()
    electrum = await world.serve(nursery)
    world.pay((await (await open_wallet(path, electrum, seed=seed)).new_script(), 70_000))
    content = path.read_bytes()
    damaged = {
        "all": b"SQLite format 4\0" * 64,
        "middle": content[:2000] + b"\xff" * (len(content) - 3000) + content[-1000:],
        "empty": b"",
    }[damage]
    path.write_bytes(damaged)
    rebuilt = await open_wallet(path, electrum, seed=seed)
    if damage == "empty":  # as good as lost
        assert rebuilt.aside is None
    else:
        assert rebuilt.aside is not None
        assert rebuilt.aside.read_bytes() == damaged
        assert await rebuilt.new_script() != b""
        path.write_bytes(damaged)  # and again in the same second
        rebuilt = await open_wallet(path, electrum, seed=seed)
        assert len(aside(tmp_path)) == 2
    await rebuilt.sync()
    assert (await rebuilt.balance()).confirmed == 70_000


async def test_a_sound_database_that_cannot_be_used_is_not_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the disk is full."""
    path, seed = tmp_path / "wallet", Seed.generate()
    await open_wallet(path, seed=seed)

    def full(*_: object) -> None:
        raise bdk.LoadWithPersistError.Persist("database or disk is full")

    with monkeypatch.context() as patch, pytest.raises(WorldError, match="wallet_disk"):
        patch.setattr(bdk.Wallet, "load", full)
        await open_wallet(path, seed=seed)
    assert not aside(tmp_path)
    assert (await open_wallet(path, seed=seed)).aside is None


async def test_scripts_that_events_name_are_found_beyond_the_gap(
    world: World, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """A hundred orders that come to nothing use up more scripts than a scan of a rebuilt wallet looks past."""
    path, seed = tmp_path / "wallet", Seed.generate()
    electrum = await world.serve(nursery)
    wallet = await open_wallet(path, electrum, seed=seed)
    scripts = [await wallet.new_script() for _ in range(GAP_LIMIT + 30)]
    world.pay((scripts[-1], 70_000))
    path.unlink()
    for rebuilt in (
        await open_wallet(path, electrum, seed=seed),
        PureWallet(seed.secret, "regtest", world, clock=CLOCK),
    ):
        await rebuilt.sync()
        assert (await rebuilt.balance()).confirmed == 0
        assert not await rebuilt.reach([MINERS])
        assert await rebuilt.reach([MINERS, scripts[-1], scripts[5]])
        assert not await rebuilt.reach([scripts[-1]])
        await rebuilt.sync()
        assert (await rebuilt.balance()).confirmed == 70_000
        assert await rebuilt.new_script() not in scripts


async def test_what_becomes_known_before_the_first_scan_is_found_by_it(
    world: World, tmp_path: Path, nursery: trio.Nursery
) -> None:
    """Events are read while the first scan waits for the chain; a scan ends at a gap."""
    seed = Seed.generate()
    electrum = await world.serve(nursery)
    wallet = await open_wallet(tmp_path / "old", electrum, seed=seed)
    scripts = [await wallet.new_script() for _ in range(GAP_LIMIT + 30)]
    world.pay((scripts[-1], 70_000))
    for number, look in enumerate((Wallet.sync, Wallet.rescan)):
        rebuilt = await open_wallet(tmp_path / str(number), electrum, seed=seed)
        assert await rebuilt.reach(scripts[-1:])
        await look(rebuilt)
        assert (await rebuilt.balance()).confirmed == 70_000


async def test_a_rescan_finds_what_another_node_of_the_same_seed_gave_out(
    world: World, tmp_path: Path, nursery: trio.Nursery
) -> None:
    seed = Seed.generate()
    electrum = await world.serve(nursery)
    other = PureWallet(seed.secret, "regtest", world, clock=CLOCK, revealed=(0, LOOKAHEAD + 40))
    for wallet in (
        await open_wallet(tmp_path / "wallet", electrum, seed=seed),
        PureWallet(seed.secret, "regtest", world, clock=CLOCK),
    ):
        await wallet.sync()
        before = (await wallet.balance()).confirmed
        world.pay((await other.new_script(), 70_000))
        await wallet.sync()
        assert (await wallet.balance()).confirmed == before
        await wallet.rescan()
        assert (await wallet.balance()).confirmed == before + 70_000


async def test_a_directory_that_cannot_be_used_is_the_worlds_fault(tmp_path: Path) -> None:
    path = tmp_path / "wallet"
    path.write_bytes(b"")
    with pytest.raises(WorldError, match="wallet_disk"):
        await open_wallet(path / "below a file")


async def test_a_script_that_cannot_be_remembered_is_not_given_out(tmp_path: Path) -> None:
    path = tmp_path / "wallet"
    seed = Seed.generate()
    wallet = await open_wallet(path, seed=seed)
    database = sqlite3.connect(path)
    database.execute(
        "CREATE TRIGGER full BEFORE INSERT ON bdk_descriptor_last_revealed BEGIN SELECT RAISE(FAIL, 'full'); END"
    )
    database.commit()
    with pytest.raises(WorldError, match="wallet_disk"):
        await wallet.new_script()
    database.execute("DROP TRIGGER full")
    database.commit()
    database.close()
    script = await wallet.new_script()
    assert await (await open_wallet(path, seed=seed)).new_script() != script


async def test_both_wallets_through_the_nodes_own_chain_client(
    world: World, tmp_path: Path, nursery: trio.Nursery
) -> None:
    electrum = await world.serve(nursery)
    client: ElectrumClient = await nursery.start(partial(run_electrum, [electrum], NETWORKS["regtest"], clock=Clock()))
    seed = Seed.generate()
    port = await nursery.start(Forwarder().run, client)
    bdk = await open_wallet(tmp_path / "wallet", f"127.0.0.1:{port}", seed=seed)
    pure = PureWallet(seed.secret, "regtest", client, clock=CLOCK)
    world.pay((await script_of(bdk), 70_000), (await bdk.new_script(), 50_000))
    world.send(world.payment((await bdk.new_script(), 20_000)))
    async for tip in client.tips():
        if tip.height == world.chain.height:
            break
    for wallet in (bdk, pure):
        await wallet.sync()
        assert await wallet.balance() == Balance(120_000, 20_000, NOW, world.chain.height)
    assert await bdk.coins() == await pure.coins()
    assert (await bdk.fund(60_000, 2)).inputs == (await pure.fund(60_000, 2)).inputs
    world.send(await signed(bdk, await pure.fund(60_000, 2), (MINERS, 60_000)))


class Unreliable(World):
    """A chain whose server can be gone."""

    gone = False

    async def history(self, script: bytes) -> Sequence[tuple[bytes, int]]:
        if self.gone:
            raise WorldError("electrum", "the chain server is gone")
        return await super().history(script)


@pytest.fixture
def unreliable(tmp_path: Path) -> Iterator[Unreliable]:
    with Unreliable(tmp_path / "chain") as world:
        yield world


async def test_as_a_service_it_is_up_once_it_has_seen_the_chain_and_keeps_looking(
    unreliable: Unreliable, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    world = unreliable
    clock = Clock(wall=trio.current_time)

    async def run(*, task_status: trio.TaskStatus[Wallet]) -> None:
        wallet = PureWallet(Seed.generate().secret, "regtest", world, clock=clock)
        await run_wallet(wallet, every=30, report=service, task_status=task_status)

    service: Service[Wallet] = Service("wallet", run, clock=clock, raise_bugs=True)
    world.gone = True
    nursery.start_soon(service.supervise)
    await service.until(State.RESTARTING)
    assert "the chain server is gone" in service.health.reason
    world.gone = False
    await service.until(State.HEALTHY)
    begun = trio.current_time()
    world.pay((await service.call(Wallet.new_script), 70_000))
    await trio.sleep(29)
    assert (await service.call(Wallet.balance)).confirmed == 0
    await trio.sleep(2)
    seen = await service.call(Wallet.balance)
    assert seen == Balance(70_000, 0, begun + 30, world.chain.height)
    world.gone = True
    await service.until(State.DEGRADED)
    assert service.health.reason.startswith("the balance is that of ")
    assert service.health.reason.endswith(" UTC: the chain server is gone")
    assert "chain server" in service.health.remedy
    assert await service.call(Wallet.balance) == seen
    world.gone = False
    await service.until(State.HEALTHY)
    assert (await service.call(Wallet.balance)).as_of == pytest.approx(begun + 90)

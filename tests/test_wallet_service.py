"""The wallet as a service of a node, through the node's own chain: what goes away, what comes back, what repairs."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import evolve, frozen

from node.backup.format import Contents
from node.chain.electrum import ElectrumClient, run_electrum
from node.clock import Clock
from node.health import State
from node.networks import NETWORKS
from node.position.state import Position
from node.supervision import Service, Supervisor
from node.wallet import service
from node.wallet.bdk import BdkWallet
from node.wallet.bip86 import CHANGE, Account
from node.wallet.interface import Wallet
from node.wallet.seed import Seed
from node.wallet.service import bdk_wallet
from protocols.contract.terms import Role
from tests.positions import history
from tests.wallets import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path / "chain") as world:
        yield world


async def test_while_the_chain_is_away_the_last_balance_is_shown_with_its_age(
    world: World, tmp_path: Path, nursery: trio.Nursery
) -> None:
    supervisor = Supervisor(raise_bugs=True)
    servers = trio.CancelScope()

    async def server(*, task_status: trio.TaskStatus[str]) -> None:
        async with trio.open_nursery() as serving:
            task_status.started(await world.serve(serving))

    async def serve(task_status: trio.TaskStatus[str]) -> None:
        with servers:
            await server(task_status=task_status)

    electrum = await nursery.start(serve)
    chain: Service[ElectrumClient] = supervisor.service(
        "chain", partial(run_electrum, [electrum], NETWORKS["regtest"], clock=Clock())
    )
    path, seed = tmp_path / "wallet.sqlite", Seed.generate()

    async def positions(*, task_status: trio.TaskStatus[Any]) -> None:
        task_status.started(_NoPositions())
        await trio.sleep_forever()

    supervisor.service("positions", positions)
    supervisor.service("backup", positions)
    wallet = bdk_wallet(supervisor, path, seed, chain, network="regtest", clock=Clock())
    nursery.start_soon(supervisor.run)
    with trio.fail_after(30):
        await wallet.until(State.HEALTHY)
        world.pay((await wallet.call(Wallet.new_script), 70_000))
        while (seen := await wallet.call(Wallet.balance)).confirmed == 0:  # noqa: ASYNC110  it looks by itself
            await trio.sleep(0.05)
        servers.cancel()
        await chain.until(State.RESTARTING)
        assert wallet.health.up
        assert (await wallet.call(Wallet.balance)).confirmed == 70_000
        assert (await wallet.call(Wallet.balance)).as_of >= seen.as_of
        address = await wallet.call(Wallet.new_address)
        seen = await wallet.call(Wallet.balance)
    # another life, in which no chain was ever there
    later = Supervisor(raise_bugs=True)
    away: Service[ElectrumClient] = later.service(
        "chain", partial(run_electrum, [electrum], NETWORKS["regtest"], clock=Clock())
    )
    later.service("positions", positions)
    later.service("backup", positions)
    again = bdk_wallet(later, path, seed, away, network="regtest", clock=Clock())
    wallet.stop()
    await wallet.until(State.STOPPED)
    nursery.start_soon(later.run)
    with trio.fail_after(30):
        await again.until(State.DEGRADED)
        assert again.health.reason.startswith("the balance is that of ")
        assert away.health.reason in again.health.reason
        assert again.health.remedy
        assert await again.call(Wallet.balance) == seen
        assert await again.call(Wallet.new_address) != address
    # and one that has nothing to show waits
    new = Supervisor(raise_bugs=True)
    never: Service[ElectrumClient] = new.service(
        "chain", partial(run_electrum, [electrum], NETWORKS["regtest"], clock=Clock())
    )
    new.service("positions", positions)
    new.service("backup", positions)
    empty = bdk_wallet(new, tmp_path / "new.sqlite", seed, never, network="regtest", clock=Clock())
    nursery.start_soon(new.run)
    with trio.fail_after(30):
        while "has not seen the chain yet" not in empty.health.reason:  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert empty.state is State.STARTING


@pytest.mark.parametrize("named", ["positions", "backup"])
async def test_scripts_that_an_event_or_only_a_backup_names_count_as_given_out(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """Far behind all that a scan would look for."""
    seed = Seed.generate()
    account = Account(seed.secret, "regtest")
    made = history(Role.TAKER).position
    far = account.script(CHANGE, 700)
    position = evolve(made, attempts=(evolve(made.attempts[0], own=evolve(made.attempts[0].own, payout_script=far)),))
    wallet = await BdkWallet.open(seed, "regtest", tmp_path / "wallet.sqlite", lambda: "127.0.0.1:1")
    assert not await wallet.is_mine(far)
    known, lost = ((position,), ()) if named == "positions" else ((), (position,))

    async def lost_positions(*_: object) -> Sequence[Position]:
        return lost

    async def run(api: object, *, task_status: trio.TaskStatus[Any]) -> None:
        task_status.started(api)
        await trio.sleep_forever()

    monkeypatch.setattr(service, "lost_positions", lost_positions)
    supervisor = Supervisor(raise_bugs=True)
    positions: Service[Any] = supervisor.service("positions", partial(run, _NoPositions(known)))
    backup: Service[Any] = supervisor.service("backup", partial(run, _NoPositions()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        await service.reach(wallet, positions, backup)
        nursery.cancel_scope.cancel()
    assert await wallet.is_mine(far)
    assert await wallet.new_script() == account.script(CHANGE, 701)


@frozen
class _NoPositions:
    known: tuple[Position, ...] = ()

    def all(self) -> tuple[Position, ...]:
        return self.known

    async def archived_scripts(self) -> frozenset[bytes]:
        return frozenset()

    def order_ids(self) -> frozenset[bytes]:
        return frozenset()

    async def read(self, _: object) -> list[Contents]:
        return []

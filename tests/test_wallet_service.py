"""The wallet as a service of a node, through the node's own chain: what goes away, what comes back, what repairs."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from node.chain.electrum import ElectrumClient, run_electrum
from node.clock import Clock
from node.health import State
from node.networks import NETWORKS
from node.supervision import Service, Supervisor
from node.wallet.interface import Wallet
from node.wallet.seed import Seed
from node.wallet.service import bdk_wallet
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

    held: Service[Any] = supervisor.service("positions", positions)
    wallet = bdk_wallet(supervisor, path, seed, chain, network="regtest", clock=Clock(), positions=lambda: held)
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
        assert await wallet.call(Wallet.new_address)


class _NoPositions:
    def all(self) -> tuple[()]:
        return ()

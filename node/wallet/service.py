"""The wallet as a service of a node: what it needs, what it repairs by itself, what the user can ask of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import partial
from pathlib import Path

import structlog
import trio

from node.backup.restore import lost_positions
from node.backup.service import Backup
from node.chain.chainsync import Tip
from node.chain.electrum import ElectrumClient
from node.chain.forward import Forwarder
from node.clock import Clock
from node.errors import Disconnected
from node.health import UP
from node.position.book import Positions
from node.position.state import Position
from node.supervision import Repair, Service, Supervisor
from node.wallet.interface import PATIENCE, REBUILD, RESYNC, Wallet, run_wallet
from node.wallet.seed import Seed
from protocols.errors import WorldError

HEAD_START = 3.0
"""Seconds that the chain has to be there before a wallet that knows something begins to show it."""

_log = structlog.get_logger(__name__)


def bdk_wallet(
    supervisor: Supervisor,
    path: Path,
    seed: Seed,
    chain: Service[ElectrumClient],
    *,
    network: str,
    clock: Clock,
) -> Service[Wallet]:
    """The wallet, and before it the Electrum endpoint that BDK dials. But for a new one, which has nothing to show yet,
    it needs no chain to be up: what it shows has its age. It asks the services `positions` and `backup`, which may be
    added later."""
    forwarder = Forwarder()
    forward = supervisor.reporting("wallet-chain", partial(chain.call, forwarder.run), [chain])
    rebuilding = False

    def endpoint() -> str:
        if not forward.health.up:
            raise Disconnected(chain.name, chain.health.reason or f"{forward.name} is {forward.state.value}")
        return f"127.0.0.1:{forwarder.port}"

    new_tip = next_tips(chain)

    async def news() -> None:
        await new_tip()
        await forward.until(*UP)

    async def run(*, task_status: trio.TaskStatus[Wallet]) -> None:
        nonlocal rebuilding
        from node.wallet.bdk import BdkWallet, move_aside

        if rebuilding:
            aside = await trio.to_thread.run_sync(move_aside, path, int(clock.now()))
            _log.warning("the wallet's database was moved aside at the user's word", to=str(aside))
            rebuilding = False
        opened = await BdkWallet.open(seed, network, path, endpoint, clock=clock)
        if opened.aside is not None:
            _log.warning("the wallet's database could not be read and is rebuilt from the seed", kept=str(opened.aside))
        if opened.as_of is None:
            wallet.degraded(f"it has not seen the chain yet, and waits for {forward.name}")
        while not forward.health.up:
            wallet.beat()
            with trio.move_on_after(HEAD_START if opened.as_of is not None else wallet.beat_every):
                await forward.until(*UP)
            if opened.as_of is not None:
                break
        wallet.recovered()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reach, opened, supervisor["positions"], supervisor["backup"])
            await run_wallet(opened, news=news, report=wallet, task_status=task_status)

    async def resync() -> None:
        await wallet.call(Wallet.rescan)
        wallet.fresh()

    async def rebuild() -> None:
        nonlocal rebuilding
        await trio.lowlevel.checkpoint()
        rebuilding = True
        wallet.restart()

    wallet = supervisor.service(
        "wallet",
        run,
        patience=PATIENCE,
        repairs=(
            Repair(RESYNC, "look through the whole chain for coins of this seed again", "", resync, always=True),
            Repair(
                REBUILD,
                "move the wallet's database aside and make a new one from the seed",
                "the wallet is away until it has looked through the chain, and gives out addresses anew from the last"
                " one that the chain or a contract shows",
                rebuild,
                always=True,
            ),
        ),
    )
    return wallet


def next_tips(chain: Service[ElectrumClient]) -> Callable[[], Awaitable[None]]:
    """What returns as soon as the chain has a tip that it has not returned for, over all connections."""
    seen: Tip | None = None

    async def news() -> None:
        nonlocal seen
        while True:
            await chain.until(*UP)
            try:
                with chain.lent() as client:
                    async for tip in client.tips():
                        if tip != seen:
                            seen = tip
                            return
            except WorldError:
                await trio.sleep(1)  # a connection that is over is soon known to be

    return news


async def reach(wallet: Wallet, positions: Service[Positions], backup: Service[Backup]) -> None:
    """Have the wallet know every script that an event or a backup names, and look at it."""
    try:
        await positions.until(*UP)
        with positions.lent() as known:
            await _learn(wallet, {*own_scripts(known.all()), *await known.archived_scripts()})
        await backup.until(*UP)
        with positions.lent() as known, backup.lent() as kept:
            await _learn(wallet, own_scripts(await lost_positions(kept, {each.id for each in known.all()})))
    except WorldError:
        return  # they went down at once; the next life asks again


async def _learn(wallet: Wallet, scripts: Collection[bytes]) -> None:
    if await wallet.reach(scripts):
        _log.warning("the wallet had forgotten scripts that contracts name, and looks at them")
        try:
            await wallet.sync()
        except WorldError as error:
            _log.info("these scripts are looked at with the next regular look", reason=error.sentence)


def own_scripts(positions: Iterable[Position]) -> Collection[bytes]:
    """The scripts of ours that events name: where payouts and change go."""
    return {
        script
        for position in positions
        for attempt in position.attempts
        for script in (attempt.own.payout_script, attempt.own.change_script)
    }

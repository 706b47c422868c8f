"""A lock that its peer keeps back: what was spent back and the peer's late broadcast, whichever wins (money rule 2)."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from node.clock import step
from node.position.abandon import LockKeeper
from node.position.state import State
from node.regtest.policy import Rejected
from protocols.contract.signing import complete_lock
from protocols.contract.terms import Role
from tests.positions import TRADER
from tests.test_attacks import WithCoins
from tests.worlds import Deal, deal, running_world, until


def whole_lock(made: Deal) -> bytes:
    """What the peer, who has all witnesses, may hand in at any time."""
    witnesses = [witness for role in Role for witness in TRADER[role].sign_lock(made.plan)]
    return complete_lock(made.plan, dict(enumerate(witnesses)))


@pytest.mark.parametrize("late", [False, True])
async def test_what_comes_of_an_abandoned_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, late: bool) -> None:
    monkeypatch.setattr("node.position.abandon.LOOK_EVERY", 0.05)
    async with running_world(tmp_path) as world:
        node = WithCoins(world, Role.TAKER)
        mempool, chain = world.world.mempool, world.world.chain
        async with node.running("locks", "attestations"):
            made = await deal(world, node)
            await node.remember(made.facts[Role.TAKER][:-1])  # the maker's witnesses never came
            order_id = made.plan.order_id
            held = node.position(order_id).inputs_held
            keeper = LockKeeper(node.positions, node.monitor, node.wallet, world.clock, node.setup.fee_rate, after=0.1)
            async with trio.open_nursery() as nursery:
                await nursery.start(keeper.run)
                await until(lambda: node.position(order_id).state is State.ABANDONING and mempool.entries)
                assert node.position(order_id).inputs_held == held
                lock = whole_lock(made)
                with pytest.raises(Rejected):
                    mempool.submit(lock)  # no mempool takes it in the place of what pays more
                if late:  # but a miner may
                    chain.submit(chain.build([lock], script=world.world.treasury.script))
                    await until(lambda: node.position(order_id).state is State.OPEN)
                    assert node.position(order_id).inputs_held == held
                else:
                    await world.world.mine_many(5)
                    await until(lambda: node.position(order_id).abandoned is not None)
                    assert node.position(order_id).state is State.ABANDONING
                    world.world.mine()
                    await until(lambda: node.position(order_id).state is State.SETUP_FAILED)
                    assert node.position(order_id).inputs_held == frozenset()
                    assert node.position(order_id).refusal is not None
                nursery.cancel_scope.cancel()


def test_pauses_can_be_seen_by_the_clock() -> None:
    """A pause below the clock's resolution ends at the moment at which it began, and would be made for ever."""
    now = 205.8
    assert now + 1e-14 == now
    assert now + step(1e-14, 30.0) > now
    assert [step(left, 30.0) for left in (12.5, 45.0, 0.0, -3.0)] == [12.5, 30.0, 30.0, 30.0]

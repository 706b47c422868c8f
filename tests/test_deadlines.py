"""What must not stay half done: a rollover and a close that the peer does not finish (money safety rules 3 and 4)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import trio

from node.clock import Clock
from node.health import State as Up
from node.position.book import Positions
from node.position.commands import recover
from node.position.deadlines import BEFORE_EXPIRY, DeadlineKeeper
from node.position.state import State
from protocols.contract.schedule import HOUR
from protocols.contract.terms import Role
from tests.keeping import Chained, Guarded, chained, closed, roll, settle_down
from tests.worlds import deal, running_world, until

BOTH = pytest.mark.parametrize("role", Role)
R1 = 2
"""So many facts of a rollover: our commit signature left."""
PRICE = "55000"


def publishing(this: Chained) -> int | None:
    """The contract whose commit goes out."""
    found = this.node.position(this.rolled.order_id).publishing
    return None if found is None else found.index


@BOTH
async def test_a_rollover_that_is_not_finished_in_time_ends_in_a_commit(tmp_path: Path, role: Role) -> None:
    """Of n by the taker, who can enforce nothing else yet; of n + 1 by the maker, who can."""
    async with chained(tmp_path, role, records=R1, roll_within=0.3) as this:
        await until(lambda: publishing(this) is not None)
        index = 0 if role is Role.TAKER else 1
        assert publishing(this) == index
        await until(lambda: this.rolled.txid(index) in this.pool)
        await this.mine()
        await until(lambda: this.state() is State.COMMITTED)


@pytest.mark.parametrize("records", [0, 1, None])
async def test_what_binds_nobody_or_is_finished_has_no_deadline(tmp_path: Path, records: int | None) -> None:
    async with chained(tmp_path, Role.TAKER, records=records, roll_within=0.0) as this:
        await settle_down()
        assert publishing(this) is None


async def test_an_unfinished_rollover_ends_before_its_old_contract_expires(tmp_path: Path) -> None:
    passed = 0.0
    async with running_world(tmp_path, wall=lambda: time.time() + passed) as world:
        node = Guarded(world, Role.TAKER, roll_within=1e9)
        async with node.running("wallet"):
            made = await deal(world, node)
            await node.remember(made.facts[Role.TAKER])
            await until(lambda: made.transactions.lock_txid in world.world.mempool.entries)
            this = Chained(world, node, await roll(made, node))
            await this.mine()
            await until(lambda: this.state() is State.OPEN)
            await node.remember(this.rolled.facts[Role.TAKER][:R1])
            left = made.plan.announcements[-1].time - BEFORE_EXPIRY - time.time()
            assert 0 < left < 2 * HOUR
            passed = left - 5
            await settle_down()
            assert publishing(this) is None
            passed = left + 1
            await until(lambda: publishing(this) == 0)


@BOTH
async def test_a_close_that_reaches_no_mempool_ends_in_a_commit(tmp_path: Path, role: Role) -> None:
    """Our signature is an option of the peer's until the lock is spent."""
    async with chained(tmp_path, role, records=0, close_within=0.3) as this:
        mempool = this.world.world.mempool
        mempool.min_relay = 1_000
        await this.node.remember(closed(this.rolled.made, PRICE)[role][:1])
        await until(lambda: publishing(this) == 0)
        mempool.min_relay = 1
        await this.mine()
        await until(lambda: this.pool)


@BOTH
async def test_a_close_that_a_mempool_shows_is_left_alone(tmp_path: Path, role: Role) -> None:
    async with chained(tmp_path, role, records=0, close_within=0.1) as this:
        facts = closed(this.rolled.made, PRICE)[role]
        await this.node.remember(facts)
        await until(lambda: this.pool)
        await trio.sleep(0.5)
        assert publishing(this) is None
        await this.mine(3)
        await until(lambda: this.state() is State.CLOSED)
        await until(lambda: not this.node.broadcaster.status())


async def test_a_chain_that_cannot_be_looked_at_holds_up_no_other_position(tmp_path: Path) -> None:
    """One position waits for a look at its lock; the other's deadline needs none."""
    async with chained(tmp_path, Role.TAKER, records=0, close_within=0.0) as this:
        other = await deal(this.world, this.node, name="other")
        rolling = await roll(other, this.node)
        await this.node.remember(other.facts[Role.TAKER])
        await until(lambda: other.transactions.lock_txid in this.pool)
        await this.mine()
        await until(lambda: this.node.position(rolling.order_id).state is State.OPEN)
        this.node.supervisor["deadlines"].stop()
        this.node.supervisor["monitor"].stop()
        await this.node.supervisor["monitor"].until(Up.STOPPED)
        await this.node.remember(closed(this.rolled.made, PRICE)[Role.TAKER][:1])
        await this.node.remember(rolling.facts[Role.TAKER][:R1])
        keeper = DeadlineKeeper(
            this.node.positions, this.node.monitor, this.world.clock, close_within=0.0, roll_within=0.0, every=0.05
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(keeper.run)
            await until(lambda: this.node.position(rolling.order_id).publishing)
            assert publishing(this) is None
            this.node.supervisor["monitor"].start()
            await until(lambda: publishing(this) == 0)
            nursery.cancel_scope.cancel()


async def test_a_clock_that_is_set_back_leaves_nothing_half_done_for_ever(tmp_path: Path) -> None:
    async with chained(tmp_path, Role.TAKER, records=R1) as this:
        a_year_ago = Clock(wall=lambda: time.time() - 365 * 86_400)
        keeper = DeadlineKeeper(this.node.positions, this.node.monitor, a_year_ago, roll_within=0.3, every=0.05)
        async with trio.open_nursery() as nursery:
            await nursery.start(keeper.run)
            await until(lambda: publishing(this) == 0)
            nursery.cancel_scope.cancel()


async def test_a_node_that_comes_back_late_first_lets_others_finish_what_is_half_done(tmp_path: Path) -> None:
    async with chained(tmp_path, Role.TAKER, records=R1) as this:
        keeper = DeadlineKeeper(this.node.positions, this.node.monitor, this.world.clock, roll_within=0.0, every=0.5)
        async with trio.open_nursery() as nursery:
            await nursery.start(keeper.run)
            await trio.sleep(0.2)
            assert publishing(this) is None
            await this.node.remember(this.rolled.facts[Role.TAKER][R1:])
            await trio.sleep(0.7)
            assert publishing(this) is None
            nursery.cancel_scope.cancel()


async def test_nothing_is_published_of_a_recovered_position(tmp_path: Path) -> None:
    async with chained(tmp_path, Role.TAKER, records=R1, roll_within=0.3) as this:
        await this.node.positions.call(Positions.execute, this.rolled.order_id, recover("restored from a backup"))
        await trio.sleep(0.5)
        assert publishing(this) is None

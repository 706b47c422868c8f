"""A revoked commit is punished: at once, after a restart, after days away, for more and more; on a chain that Bitcoin
Core's consensus code judges (money safety rule 6)."""

from __future__ import annotations

from pathlib import Path

import pytest

from node.position.punishing import HIGHEST_RATE, punish_fee
from node.position.state import State
from protocols.contract.numbers import DUST
from protocols.contract.terms import REGTEST_TIMELOCKS, Role
from protocols.contract.transactions import FINAL
from tests.keeping import Chained, Guarded, chained, output, settle_down
from tests.lives import punished as sign_punishment
from tests.lives import rolled, rollovers, see
from tests.worlds import until

BOTH = pytest.mark.parametrize("role", Role)


async def finish(this: Chained, role: Role, node: Guarded | None = None) -> int:
    """The punishment that a mempool shows, to its end. Returns what it pays to the wronged side."""
    node = node or this.node
    commit = this.rolled.txid(0)
    await until(lambda: this.spender(commit))
    entry = this.spender(commit)
    assert entry is not None
    assert entry.transaction.vin[0].nSequence == FINAL
    await this.mine(1, node)
    assert this.confirmed(entry.txid)
    await this.mine(2, node)
    await until(lambda: this.state(node) is State.PUNISHED)
    await until(lambda: not node.broadcaster.status())
    assert this.paid(role) == output(entry.raw)
    assert this.paid(role.other) == 0
    return this.paid(role)


@BOTH
async def test_a_revoked_commit_is_punished_before_it_is_in_a_block(tmp_path: Path, role: Role) -> None:
    async with chained(tmp_path, role) as this:
        this.publish(this.rolled.commit(role.other, 0))
        await until(lambda: this.spender(this.rolled.txid(0)))
        assert len(this.pool) == 2
        paid = await finish(this, role)
        position = this.node.position(this.rolled.order_id)
        assert paid == position.transactions().commit_value - punish_fee(position, 2, position.commit.height)  # type: ignore[union-attr]
        assert paid > position.plan().terms.pool * 99 // 100


async def test_a_commit_that_pays_too_little_is_brought_into_a_block_by_its_punishment(tmp_path: Path) -> None:
    """Nobody needs to wait for the cheat to pay for its own commit."""
    async with chained(tmp_path) as this:
        this.world.world.set_fees(40, 40)
        this.publish(this.rolled.commit(Role.TAKER, 0))
        await until(lambda: this.spender(this.rolled.txid(0)))
        await this.mine()
        assert this.confirmed(this.rolled.txid(0))
        await this.mine(2)
        await until(lambda: this.state() is State.PUNISHED)


async def test_a_mempool_that_dropped_the_revoked_commit_gets_it_again_with_its_punishment(tmp_path: Path) -> None:
    """A full one takes neither alone: the commit pays too little."""
    async with chained(tmp_path) as this:
        this.node.supervisor["punishing"].stop()
        mempool, commit = this.world.world.mempool, this.rolled.txid(0)
        this.publish(this.rolled.commit(Role.TAKER, 0))
        await until(lambda: this.state() is State.PUNISHING)
        mempool._remove(commit)
        mempool.min_relay = 5
        this.world.world.set_fees(20, 20)
        this.node.supervisor["punishing"].start()
        await until(lambda: this.spender(commit))
        await finish(this, Role.MAKER)


@pytest.mark.parametrize("blocks", [0, REGTEST_TIMELOCKS.liquidation - 1, REGTEST_TIMELOCKS.refund + 1])
async def test_a_revoked_commit_is_punished_by_a_node_that_was_away(tmp_path: Path, blocks: int) -> None:
    """Days, up to the last block in which only we can spend it: a scan on start finds it. Later is better than never,
    though all that its CETs and refund are claimed with is pruned."""
    async with chained(tmp_path) as this:
        for service in this.node.supervisor.services:
            service.stop()
        this.publish(this.rolled.commit(Role.TAKER, 0))
        await this.world.world.mine_many(1 + max(blocks - 1, 0))
        assert this.confirmed(this.rolled.txid(0))
        again = Guarded(this.world, Role.MAKER, disk=this.node.disk)
        async with again.running("wallet"):
            await until(lambda: this.spender(this.rolled.txid(0)))
            position = again.position(this.rolled.order_id)
            assert position.commit is not None
            height = this.world.world.chain.height
            paid = await finish(this, Role.MAKER, again)
            fee = position.transactions().commit_value - paid
            assert fee == punish_fee(position, 2, height)
            assert (fee > 1_000_000) == (blocks > 0)


async def test_a_restart_between_seeing_and_punishing_changes_nothing(tmp_path: Path) -> None:
    async with chained(tmp_path) as this:
        this.node.supervisor["punishing"].stop()
        this.publish(this.rolled.commit(Role.TAKER, 0))
        await until(lambda: this.state() is State.PUNISHING)
        for service in this.node.supervisor.services:
            service.stop()
        again = Guarded(this.world, Role.MAKER, disk=this.node.disk)
        async with again.running("wallet"):
            await finish(this, Role.MAKER, again)


async def test_a_punishment_pays_more_with_each_block_until_it_is_confirmed(tmp_path: Path) -> None:
    async with chained(tmp_path) as this:
        world = this.world.world
        commit = this.publish(this.rolled.commit(Role.TAKER, 0))
        await this.mine()
        assert this.confirmed(commit)
        world.floor = HIGHEST_RATE + 1  # whatever it pays, miners want more
        fees: list[int] = []

        def pays_as_wanted() -> bool:
            position, entry = this.node.position(this.rolled.order_id), this.spender(commit)
            return entry is not None and entry.fee == punish_fee(position, 2, world.chain.height)

        for _ in range(REGTEST_TIMELOCKS.liquidation - 1):
            await until(pays_as_wanted)
            entry = this.spender(commit)
            assert entry is not None
            fees.append(entry.fee)
            await this.mine()
        assert fees == sorted(fees)
        assert sorted(set(fees)) == [2 * 169, fees[REGTEST_TIMELOCKS.liquidation // 2], HIGHEST_RATE * 169]
        world.floor = 0
        await finish(this, Role.MAKER)


@BOTH
async def test_a_punishment_comes_back_after_a_reorganisation_of_the_commit(tmp_path: Path, role: Role) -> None:
    """Also when no mempool remembers either."""
    async with chained(tmp_path, role) as this:
        commit = this.publish(this.rolled.commit(role.other, 0))
        await until(lambda: this.spender(commit))
        await this.mine(2)
        await until(lambda: (ending := this.node.position(this.rolled.order_id).ending) and ending.txid)
        this.world.world.reorganise(2)
        for txid in list(this.pool)[::-1]:
            this.world.world.mempool._remove(txid)
        await this.seen()
        await finish(this, role)


async def test_what_is_not_revoked_is_not_punished(tmp_path: Path) -> None:
    async with chained(tmp_path) as this:
        this.publish(this.rolled.commit(Role.TAKER, 1))
        await this.mine(2)
        await until(lambda: this.state() is State.COMMITTED)
        await settle_down()
        assert this.spender(this.rolled.txid(1)) is None


def test_what_punishing_pays_at_each_height() -> None:
    """The estimate for half of the lock, then a share of everything, at most 10 000 sat/vB and never all but dust."""
    made = rolled(Role.MAKER)
    see(made, rollovers().commit(Role.TAKER, 0), 210)
    position, lock = made.position, REGTEST_TIMELOCKS.liquidation
    size = 126 + 43
    most = position.transactions().commit_value - DUST
    for passed in range(1, lock + 3):
        share = most * min(max(2 * passed - lock, 0), lock) // lock
        assert punish_fee(position, 3, 210 + passed - 1) == min(max(3 * size, share), HIGHEST_RATE * size, most)
    waiting = rolled(Role.MAKER)
    see(waiting, rollovers().commit(Role.TAKER, 0))
    assert punish_fee(waiting.position, 2, 300) == 2 * size  # the commit pays as much itself
    assert punish_fee(waiting.position, 12, 300) == 12 * size + 10 * 166
    assert len(sign_punishment(waiting)) == 2

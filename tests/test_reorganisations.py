"""What a reorganisation takes out of the chain comes back, whatever a position had come to, and pays the same."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import define

from node.position.abandon import LockKeeper
from node.position.book import Positions
from node.position.commands import force_close
from node.position.state import State
from node.regtest.world import RunningWorld
from protocols.contract import schnorr
from protocols.contract.closing import close_outputs
from protocols.contract.funding import FundingInput
from protocols.contract.payout import Payout
from protocols.contract.sighash import TxOut, signature_hash
from protocols.contract.terms import REGTEST_TIMELOCKS, Role
from protocols.contract.transactions import FINAL, completed, unsigned
from tests.keeping import Guarded, Rolled, closed, roll
from tests.positions import TRADER
from tests.test_attacks import WithCoins
from tests.worlds import Deal, deal, running_world, unspent, until

PRICE = "55000"
DEPTHS = pytest.mark.parametrize("depth", [1, 6, pytest.param(100, marks=pytest.mark.slow)])


@define(eq=False)
class Both:
    """A contract that both sides keep."""

    world: RunningWorld
    nodes: Mapping[Role, Guarded]
    made: Deal
    rolled: Rolled

    def states(self) -> set[State]:
        return {node.position(self.made.plan.order_id).state for node in self.nodes.values()}

    async def come_to(self, state: State, *, mining: bool = True) -> None:
        """Every node of this contract; blocks come as long as it takes."""
        for _ in range(300):
            await self.settle()
            if self.states() == {state} or not mining:
                break
            await self.mine()
        await until(lambda: self.states() == {state}, within=5)

    async def settle(self) -> None:
        """Until both nodes have seen the tip and handed in what is due."""
        chain = self.world.world.chain

        def seen() -> bool:
            for node in self.nodes.values():
                with node.chain.lent() as client:
                    if client.tip.hash != chain.tip:
                        return False
            return True

        await until(seen)

    async def mine(self, blocks: int = 1) -> None:
        await self.world.world.mine_many(blocks)
        await self.settle()

    async def execute(self, role: Role) -> None:
        await self.nodes[role].positions.call(Positions.execute, self.made.plan.order_id, force_close("by the user"))

    def paid(self) -> dict[Role, int]:
        parties = {role: self.made.plan.party(role) for role in Role}
        return {role: sum(coin.value for coin in unspent(self.world, parties[role].payout_script)) for role in Role}

    async def reorganise(self, depth: int) -> None:
        """Another branch, and mempools that forgot all of this contract that it left out."""
        world = self.world.world
        before = set(world.mempool.entries)
        world.reorganise(depth)
        wallets = {coin.txid for role in Role for coin in self.made.plan.party(role).inputs}
        for txid in reversed([each for each in world.mempool.entries if each not in before | wallets]):
            world.mempool._remove(txid)
        world.mempool._tell()
        await self.settle()


@asynccontextmanager
async def both(path: Path, *, depth: int = 0, rolled: bool = False) -> AsyncIterator[Both]:
    async with running_world(path) as world:
        await world.world.mine_many(depth)  # so that what pays for the coins is mature on either branch
        maker, taker = Guarded(world, Role.MAKER), Guarded(world, Role.TAKER)
        async with maker.running("wallet"), taker.running("wallet"):
            nodes = {Role.MAKER: maker, Role.TAKER: taker}
            made = await deal(world, maker)
            this = Both(world, nodes, made, await roll(made, maker))
            for role, node in nodes.items():
                await node.remember(made.facts[role])
            await until(lambda: made.transactions.lock_txid in world.world.mempool.entries)
            await this.mine()
            await this.come_to(State.OPEN)
            if rolled:
                for role, node in nodes.items():
                    await node.remember(this.rolled.facts[role])
            yield this


@DEPTHS
async def test_an_open_position(tmp_path: Path, depth: int) -> None:
    async with both(tmp_path, depth=depth, rolled=True) as this:
        await this.mine(max(depth - 1, 0) if depth < 100 else 90)
        await this.reorganise(depth)
        await this.come_to(State.OPEN)
        assert all(node.position(this.made.plan.order_id).contract.index == 1 for node in this.nodes.values())  # type: ignore[union-attr]


@DEPTHS
async def test_a_closed_position(tmp_path: Path, depth: int) -> None:
    async with both(tmp_path, depth=depth) as this:
        facts = closed(this.made, PRICE)
        for role, node in this.nodes.items():
            await node.remember(facts[role])
        await until(lambda: this.world.world.mempool.entries)
        await this.mine(3)
        await this.come_to(State.CLOSED)
        await this.mine(max(depth - 4, 0) if depth < 100 else 97)
        before = this.paid()
        outputs = close_outputs(this.made.plan, PRICE)
        assert sorted(before.values()) == sorted(each.value for each in outputs)
        for _ in range(2):
            await this.reorganise(depth)
            await this.come_to(State.CLOSED)
            assert this.paid() == before


@DEPTHS
async def test_a_commit_and_its_refund(tmp_path: Path, depth: int) -> None:
    async with both(tmp_path, depth=depth, rolled=True) as this:
        for node in this.nodes.values():
            node.supervisor["attestations"].stop()
        await this.execute(Role.TAKER)
        await until(lambda: this.rolled.txid(1) in this.world.world.mempool.entries)
        await this.mine(min(depth, 50))
        await this.come_to(State.COMMITTED, mining=False)
        await this.reorganise(depth)
        await until(lambda: this.rolled.txid(1) in this.world.world.mempool.entries or this.states() == {State.OPENING})
        await this.come_to(State.COMMITTED)
        await this.mine(REGTEST_TIMELOCKS.refund)
        await this.come_to(State.REFUNDED)
        assert this.paid() == Payout(this.rolled.plans[1].terms).refund()
        await this.reorganise(depth)
        await this.come_to(State.REFUNDED)
        assert this.paid() == Payout(this.rolled.plans[1].terms).refund()


@DEPTHS
async def test_a_punished_position(tmp_path: Path, depth: int) -> None:
    async with both(tmp_path, depth=depth, rolled=True) as this:
        nodes = dict(this.nodes)
        cheat = nodes[Role.TAKER]
        for service in cheat.supervisor.services:
            service.stop()
        this.nodes = {Role.MAKER: nodes[Role.MAKER]}
        world = this.world.world
        world.mempool.submit(this.rolled.commit(Role.TAKER, 0))
        await until(lambda: len(world.mempool.entries) == 2)
        await this.mine(3)
        await this.come_to(State.PUNISHED)
        await this.mine(max(depth - 4, 0) if depth < 100 else 80)
        before = this.paid()
        assert before[Role.TAKER] == 0
        await this.reorganise(depth)
        if depth == 100:  # the lock is gone as well: what the cheat published counts only if it comes back
            await this.come_to(State.OPEN)
            world.mempool.submit(this.rolled.commit(Role.TAKER, 0))
        await this.come_to(State.PUNISHED)
        assert this.paid()[Role.TAKER] == 0
        assert this.paid()[Role.MAKER] > before[Role.MAKER] * 9 // 10


async def test_a_lock_whose_coins_the_peer_spent_on_the_other_branch_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was open, and comes to nothing: one of our inputs is spent back, and then our coins are free (rule 2)."""
    monkeypatch.setattr("node.position.abandon.LOOK_EVERY", 0.05)
    async with running_world(tmp_path) as running:
        world, node = running.world, WithCoins(running, Role.TAKER)

        async def fee_rate() -> int:
            return 2

        async with node.running("locks", "attestations"):
            made = await deal(running, node)
            order_id, lock = made.plan.order_id, made.transactions.lock_txid
            keeper = LockKeeper(node.positions, node.monitor, node.wallet, running.clock, fee_rate, after=0.5)
            async with trio.open_nursery() as nursery:
                await nursery.start(keeper.run)
                await node.remember(made.facts[Role.TAKER])
                await until(lambda: lock in world.mempool.entries)
                world.mine()
                await until(lambda: node.position(order_id).state is State.OPEN)
                await trio.sleep(0.2)  # the keeper has seen so
                (coin,) = made.plan.maker.inputs
                raw = _spent(coin, TRADER[Role.MAKER].coin_key)
                parent = world.chain.block_hash(world.chain.height - 1)
                for transactions in ([raw], []):
                    parent = world.chain.submit(world.chain.build(transactions, parent=parent))
                await until(lambda: node.position(order_id).state is State.ABANDONING)
                assert node.position(order_id).inputs_held
                await until(lambda: world.mempool.entries)
                await world.mine_many(6)
                await until(lambda: node.position(order_id).state is State.SETUP_FAILED)
                assert node.position(order_id).inputs_held == frozenset()
                nursery.cancel_scope.cancel()


def _spent(coin: FundingInput, secret: bytes) -> bytes:
    tx = unsigned(2, [(coin.txid, coin.vout, FINAL)], [TxOut(coin.value - 1_000, coin.script)])
    signature = schnorr.sign(secret, signature_hash(tx, 0, [TxOut(coin.value, coin.script)]))
    return completed(tx, [(signature,)])

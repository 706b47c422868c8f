"""Fees are raised until what is due is confirmed: on an embedded chain whose blocks ask for more than was agreed on.

The contracts pay 2 sat/vB.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import define, evolve
from bitcoin.core import CTransaction

from node.config import FeeRateTable
from node.health import State as Up
from node.position import bumping as module
from node.position.book import Positions
from node.position.bumping import Bumper
from node.position.commands import force_close
from node.position.state import State
from node.regtest.electrum_methods import Methods
from node.regtest.electrum_server import ElectrumServer
from node.regtest.mempool import Entry
from node.regtest.world import RunningWorld
from node.wallet.bip86 import CHANGE, Account
from node.wallet.interface import Wallet
from protocols.contract.closing import Spend
from protocols.contract.funding import OutPoint
from protocols.contract.outcomes import covering
from protocols.contract.scripts import ANCHOR_SCRIPT
from protocols.contract.terms import REGTEST_TIMELOCKS, Role
from protocols.settlement import CloseComplete, SpendComplete, SpendSigned
from tests.keeping import closed, roll
from tests.positions import TRADER
from tests.worlds import Deal, Node, deal, fund, running_world, unspent, until

AGREED = 2
PAYOUTS = {role: Account(TRADER[role].seed, "regtest").script(CHANGE, 0) for role in Role}


@define(eq=False, slots=False)
class BumpingNode(Node):
    """A node that raises fees, too."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.bumper = Bumper(
            self.positions, self.chain, self.wallet, self.broadcaster, self.setup.holds, self.fee_rates
        )
        needs = (self.positions, self.chain, self.wallet)
        self.bumping = self.supervisor.service("bumping", self._run_bumping, needs)

    async def _run_bumping(self, *, task_status: trio.TaskStatus[None]) -> None:
        await self.bumper.run(report=self.bumping, task_status=task_status)

    async def own_coins(self, *values: int) -> list[OutPoint]:
        """New coins in the wallet, confirmed and seen."""
        coins = [fund(self.world, await self.wallet.call(Wallet.new_script), value) for value in values]
        await self.wallet.call(Wallet.sync)
        return [OutPoint(each.txid, each.vout) for each in coins]


@define(eq=False)
class Stuck:
    """A contract whose lock is confirmed, in a world where blocks have become dear."""

    world: RunningWorld
    node: BumpingNode
    deal: Deal

    @property
    def commit(self) -> bytes:
        return self.deal.transactions.commit_txid

    @property
    def hook(self) -> OutPoint:
        """The commit's anchor."""
        return OutPoint(self.commit, 1)

    def pool(self) -> dict[bytes, Entry]:
        return self.world.world.mempool.entries

    def child(self, of: OutPoint | None = None) -> Entry | None:
        """The unconfirmed transaction that spends an output, the anchor unless said otherwise."""
        return self.pool().get(self.world.world.mempool._spenders.get(of or self.hook, b""))

    def rate(self, of: OutPoint | None = None) -> float:
        """What a parent and its child pay together; 0 if it has none."""
        of, child = of or self.hook, self.child(of)
        parent = self.pool().get(of.txid)
        if child is None or parent is None:
            return 0
        return (parent.fee + child.fee) / (parent.vsize + child.vsize)

    def pays(self, rate: int) -> bool:
        return self.rate() == rate

    def looked_at(self) -> bool:
        """Whether its fee was looked at since the commit is due."""
        raised = self.node.bumper._raised.get(self.deal.plan.order_id)
        return raised is not None and raised.parent == self.commit

    def confirmed(self, txid: bytes) -> bool:
        return txid in self.world.world.index.transactions

    async def mine(self, blocks: int = 1, *nodes: Node) -> None:
        await self.world.world.mine_many(blocks)
        for node in nodes or (self.node,):
            await until(partial(self._at_tip, node))

    def _at_tip(self, node: Node) -> bool:
        with node.chain.lent() as client:
            return client.tip.hash == self.world.world.chain.tip

    async def force_close(self) -> None:
        order = self.deal.plan.order_id
        await until(lambda: self.node.position(order).state is State.OPEN)
        await self.node.positions.call(Positions.execute, order, force_close("a test"))

    def healthy(self) -> bool:
        return self.node.bumping.state is Up.HEALTHY


@asynccontextmanager
async def opened(
    path: Path,
    *coins: int,
    role: Role = Role.TAKER,
    estimate: int = 30,
    floor: int = 25,
    events: int = 24,
    hour: float = 3600.0,
    rates: FeeRateTable | None = None,
) -> AsyncIterator[Stuck]:
    """One side's node, with coins of these values; the other is away."""
    async with running_world(path, hour=hour) as world:
        node = BumpingNode(world, role, fee_rates=rates or FeeRateTable())
        async with node.running():
            await node.own_coins(*coins)
            this = Stuck(world, node, await deal(world, node, events=events, payouts=PAYOUTS))
            await node.remember(this.deal.facts[role])
            await until(lambda: this.deal.transactions.lock_txid in this.pool())
            await this.mine()
            world.world.set_fees(estimate, floor)
            yield this


async def test_a_commit_is_stuck_until_it_is_raised(tmp_path: Path) -> None:
    async with opened(tmp_path, 100_000) as this:
        this.node.bumping.stop()
        await this.force_close()
        await until(lambda: this.commit in this.pool())
        await this.mine(3)
        assert set(this.pool()) == {this.commit}
        this.node.bumping.start()
        await until(lambda: this.rate() == 30)
        child = this.child()
        assert child is not None
        assert child.vsize == 153
        assert child.spent[0].script == ANCHOR_SCRIPT
        await this.mine()
        assert this.confirmed(this.commit)
        assert this.confirmed(child.txid)
        await until(lambda: this.node.position(this.deal.plan.order_id).state is State.COMMITTED)
        await until(lambda: not this.node.broadcaster.status())
        assert this.node.setup.holds.all() == frozenset()
        # what the child gave back is the wallet's
        await this.node.wallet.call(Wallet.sync)
        balance = await this.node.wallet.call(Wallet.balance)
        assert balance.confirmed == 100_000 + 240 - child.fee
        assert this.healthy()


async def test_nothing_is_raised_that_pays_enough(tmp_path: Path) -> None:
    async with opened(tmp_path, 100_000, estimate=AGREED, floor=AGREED) as this:
        await this.force_close()
        await until(lambda: this.commit in this.pool())
        await until(this.looked_at)
        assert set(this.pool()) == {this.commit}
        await this.mine()
        assert this.confirmed(this.commit)


async def test_a_cet_is_raised_out_of_its_payout_and_so_is_its_commit_before(tmp_path: Path) -> None:
    async with opened(tmp_path, 100_000, events=2, hour=1.0) as this:
        this.world.world.market.override = "60000"
        await until(lambda: this.rate() == 30)
        await this.mine(REGTEST_TIMELOCKS.settlement)
        transactions = this.deal.transactions
        outcome = covering(transactions.outcomes, 1, 60_000)
        assert outcome is not None
        cet = transactions.cet(outcome)
        id_ = cet.GetTxid()
        hook = OutPoint(id_, [each.scriptPubKey for each in cet.vout].index(PAYOUTS[Role.TAKER]))
        payout = cet.vout[hook.vout].nValue
        await until(lambda: this.rate(hook) == 30)
        child = this.child(hook)
        assert child is not None
        assert len(child.spent) == 1
        await this.mine(3)
        assert this.confirmed(id_)
        assert this.confirmed(child.txid)
        await until(lambda: this.node.position(this.deal.plan.order_id).state is State.SETTLED)
        ending = this.node.position(this.deal.plan.order_id).ending
        assert ending is not None
        assert ending.payout(Role.TAKER) == payout  # what the contract owes; the fee is the owner's affair
        assert payout - child.fee in [coin.value for coin in unspent(this.world, PAYOUTS[Role.TAKER])]


@pytest.mark.slow
async def test_a_refund_is_raised(tmp_path: Path) -> None:
    async with opened(tmp_path, 100_000, estimate=AGREED, floor=0) as this:
        await this.force_close()
        await until(lambda: this.commit in this.pool())
        await this.mine()
        this.world.world.set_fees(30, 25)
        await this.mine(REGTEST_TIMELOCKS.refund - 1)
        refund = this.deal.transactions.refund
        hook = OutPoint(refund.GetTxid(), [each.scriptPubKey for each in refund.vout].index(PAYOUTS[Role.TAKER]))
        await until(lambda: this.rate(hook) == 30)
        await this.mine()
        assert this.confirmed(hook.txid)


async def test_the_loser_of_a_liquidation_pays_for_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path, 100_000, events=2, hour=1.0) as this:
        this.world.world.market.override = "44000"
        await until(lambda: this.commit in this.pool())
        await until(lambda: this.node.position(this.deal.plan.order_id).attested)
        await this.mine(4)
        assert set(this.pool()) == {this.commit}
        assert this.healthy()


async def test_a_higher_estimate_replaces_the_child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.05)
    async with opened(tmp_path, 100_000, 200_000) as this:
        await this.force_close()
        await until(lambda: this.rate() == 30)
        first = this.child()
        this.world.world.set_fees(200, 200)
        await until(lambda: this.rate() == 200)
        second = this.child()
        assert first is not None
        assert second is not None
        assert set(this.pool()) == {this.commit, second.txid}
        this.world.world.set_fees(100, 100)  # one that falls again gives nothing back
        await trio.sleep(0.2)
        assert this.child() == second
        # no more than the configuration allows
        this.world.world.set_fees(800, 400)
        await until(lambda: this.rate() == 500)
        await this.mine()
        assert this.confirmed(this.commit)


async def test_blocks_that_pass_without_it_raise_it_by_a_quarter(tmp_path: Path) -> None:
    """The estimate is wrong, or there is none."""
    async with opened(tmp_path, 100_000, estimate=1, floor=7) as this:
        await this.force_close()
        await until(this.looked_at)
        for wanted in (3, 4, 6, 8):
            await this.mine(module.SOON)
            await until(partial(this.pays, wanted))
        await this.mine()
        assert this.confirmed(this.commit)


async def test_after_a_restart_it_goes_on_with_the_child_that_the_mempool_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.05)
    async with opened(tmp_path, 100_000) as this:
        await this.force_close()
        await until(lambda: this.rate() == 30)
        first = this.child()
        assert first is not None
        for service in this.node.supervisor.services:
            service.stop()
        again = BumpingNode(this.world, Role.TAKER, disk=this.node.disk)
        async with again.running():
            await until(lambda: again.bumper._raised)
            await until(lambda: first.txid in again.broadcaster.status())
            assert this.child() == first
            [coin] = again.setup.holds.all()
            assert coin == OutPoint(first.transaction.vin[1].prevout.hash, first.transaction.vin[1].prevout.n)
            this.world.world.set_fees(60, 60)
            await until(lambda: this.rate() == 60)
            await this.mine(1, again)
            assert this.confirmed(this.commit)


async def test_both_sides_raise_one_commit_without_outbidding_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.05)
    async with opened(tmp_path, 100_000) as this:
        maker = BumpingNode(this.world, Role.MAKER)
        this.world.world.set_fees(AGREED, 0)
        async with maker.running():
            await maker.own_coins(150_000)
            await maker.remember(this.deal.facts[Role.MAKER])
            await this.mine(1, this.node, maker)
            this.world.world.set_fees(30, 25)
            order = this.deal.plan.order_id
            await until(lambda: maker.position(order).state is State.OPEN)
            await maker.positions.call(Positions.execute, order, force_close("a test"))
            await this.force_close()
            await until(lambda: this.rate() == 30)
            await until(lambda: maker.bumper._raised and this.node.bumper._raised)
            child = this.child()
            await trio.sleep(0.5)
            assert this.child() == child
            await this.mine(1, this.node, maker)
            assert this.confirmed(this.commit)
            await until(lambda: not maker.broadcaster.status() and not this.node.broadcaster.status())


async def test_coins_of_others_are_left_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as this:
        first, second = await this.node.own_coins(60_000, 50_000)
        this.node.setup.holds.hold(b"another setup", frozenset({OutPoint(*second)}))
        await this.force_close()
        await until(lambda: this.rate() == 30)
        child = this.child()
        assert child is not None
        assert [(each.prevout.hash, each.prevout.n) for each in child.transaction.vin] == [this.hook, first]


async def test_too_little_to_raise_it_with_is_said_and_what_there_is_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.05)
    async with opened(tmp_path, 5_000) as this:
        await this.force_close()
        await until(lambda: this.rate() > 10)
        assert this.rate() == (332 + 5_000 + 240 - 330) // 319
        await until(lambda: this.node.bumping.state is Up.DEGRADED)
        reason = this.node.bumping.health.reason
        assert reason.startswith(f"position {this.deal.plan.order_id.hex()}: there are ")
        assert "sat to raise a fee with" in reason
        await this.node.own_coins(50_000)
        await until(lambda: this.rate() == 30)
        await until(this.healthy)


async def test_a_server_without_packages_is_shown_and_served_one_by_one(tmp_path: Path) -> None:
    async with running_world(tmp_path) as running, trio.open_nursery() as nursery:
        world = running.world
        old = ElectrumServer(
            Methods(world.chain, world.index, world.mempool, fee_rate=30), world.mempool, newest=(1, 4, 3)
        )
        port = await nursery.start(old.run)
        node = BumpingNode(evolve(running, electrum=f"127.0.0.1:{port}"), Role.TAKER)
        for service in node.supervisor.services:
            nursery.start_soon(service.supervise)
        await until(lambda: node.bumping.state is Up.DEGRADED)
        assert "takes no packages" in node.bumping.health.reason
        await node.own_coins(100_000)
        this = Stuck(running, node, await deal(running, node, events=24, payouts=PAYOUTS))
        await node.remember(this.deal.facts[Role.TAKER])
        await until(lambda: this.deal.transactions.lock_txid in this.pool())
        await this.mine()
        world.floor = 25
        await this.force_close()
        await until(lambda: this.rate() == 30)
        nursery.cancel_scope.cancel()


# --- what else may wait for a block -----------------------------------------------------------------------------------


def hook(raw: bytes) -> OutPoint:
    """The taker's payout in a transaction."""
    tx = CTransaction.deserialize(raw)
    return OutPoint(tx.GetTxid(), [out.scriptPubKey for out in tx.vout].index(PAYOUTS[Role.TAKER]))


async def test_a_close_is_raised_out_of_its_payout(tmp_path: Path) -> None:
    async with opened(tmp_path) as this:
        order = this.deal.plan.order_id
        await until(lambda: this.node.position(order).state is State.OPEN)
        facts = closed(this.deal, "55000")[Role.TAKER]
        await this.node.remember(facts)
        complete = facts[-1]
        assert isinstance(complete, CloseComplete)
        payout = hook(complete.transaction)
        await until(lambda: this.rate(payout) == 30)
        await this.mine(3)
        await until(lambda: this.node.position(order).state is State.CLOSED)
        await until(lambda: not this.node.broadcaster.status())


async def test_a_commit_of_a_contract_that_was_rolled_over_is_raised(tmp_path: Path) -> None:
    async with opened(tmp_path, 100_000) as this:
        order = this.deal.plan.order_id
        await until(lambda: this.node.position(order).state is State.OPEN)
        rolled = await roll(this.deal, this.node)
        await this.node.remember(rolled.facts[Role.TAKER])
        await this.force_close()
        await until(lambda: this.rate(OutPoint(rolled.txid(1), 1)) == 30)
        await this.mine()
        assert this.confirmed(rolled.txid(1))


async def test_a_cooperative_spend_is_raised_out_of_its_payout(tmp_path: Path) -> None:
    async with opened(tmp_path, 100_000, events=2, hour=1.0) as this:
        this.world.world.market.override = "60000"
        await until(lambda: this.rate() == 30)
        await this.mine()
        order, plan = this.deal.plan.order_id, this.deal.plan
        await until(lambda: this.node.position(order).commit)
        outcome = covering(this.deal.transactions.outcomes, 1, 60_000)
        assert outcome is not None
        spend = Spend(plan, outcome)
        signatures = {role: spend.sign(TRADER[role].attempt(order).keys.fund) for role in Role}
        raw = spend.complete(Role.TAKER, signatures[Role.TAKER], signatures[Role.MAKER])
        signed = SpendSigned(order, this.commit, outcome.event, 60_000, spend.txid, None)
        await this.node.remember((signed, SpendComplete(order, raw)))
        await until(lambda: this.rate(hook(raw)) == 30)
        await this.mine(3)
        await until(lambda: this.node.position(order).state is State.SETTLED)

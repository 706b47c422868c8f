"""Contracts are kept: on a chain that Bitcoin Core's consensus code judges, by an oracle that attests when its hour
comes. Hours take a second; blocks come when a test says so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from attrs import define

from node.health import State as Up
from node.position.book import Positions
from node.position.commands import force_close
from node.position.state import State
from node.regtest.world import RunningWorld
from protocols.contract.outcomes import covering
from protocols.contract.payout import Payout
from protocols.contract.terms import REGTEST_TIMELOCKS, Role
from tests.worlds import Deal, Node, deal, running_world, unspent, until

HOUR = 1.0


@define(eq=False)
class Trade:
    """A world, both sides' nodes, a contract between them."""

    world: RunningWorld
    nodes: dict[Role, Node]
    deal: Deal

    @property
    def order_id(self) -> bytes:
        return self.deal.plan.order_id

    def state(self, role: Role) -> State:
        return self.nodes[role].position(self.order_id).state

    def has(self, txid: bytes) -> bool:
        """Whether a transaction is in the mempool or the chain."""
        return txid in self.world.world.mempool.entries or txid in self.world.world.index.transactions

    async def mine(self, blocks: int = 1) -> None:
        """Blocks, and time for every node to have seen them."""
        await self.world.world.mine_many(blocks)
        await self.seen(*self.nodes.values())

    async def come_to(self, state: State) -> None:
        """Every node of this trade."""
        await until(lambda: all(self.state(role) is state for role in self.nodes))

    async def seen(self, *nodes: Node) -> None:
        chain = self.world.world.chain

        def all_there() -> bool:
            for node in nodes:
                with node.chain.lent() as client:
                    if client.tip.hash != chain.tip:
                        return False
            return True

        await until(all_there)

    async def confirm(self, txid: bytes) -> None:
        await until(lambda: self.has(txid))
        await self.mine()
        assert txid in self.world.world.index.transactions

    def paid(self) -> dict[Role, int]:
        """What stands at both payout scripts on the chain."""
        parties = {role: self.deal.plan.party(role) for role in Role}
        return {role: sum(coin.value for coin in unspent(self.world, parties[role].payout_script)) for role in Role}

    def owed(self, event: int, price: int) -> dict[Role, int]:
        transactions = self.deal.transactions
        outcome = covering(transactions.outcomes, event, price)
        assert outcome is not None
        return Payout(self.deal.plan.terms).split(outcome.long)


@asynccontextmanager
async def trade(path: Path, *, price: str = "60000", events: int = 2) -> AsyncIterator[Trade]:
    """Both sides hold a signed contract; its lock is not out yet."""
    async with running_world(path, hour=HOUR) as world:
        world.world.market.override = price
        nodes = {role: Node(world, role) for role in Role}
        async with nodes[Role.MAKER].running("wallet"), nodes[Role.TAKER].running("wallet"):
            made = await deal(world, nodes[Role.MAKER], events=events)
            for role, node in nodes.items():
                await node.remember(made.facts[role])
            yield Trade(world, nodes, made)


async def test_a_contract_settles_at_the_attested_price(tmp_path: Path) -> None:
    async with trade(tmp_path) as this:
        transactions = this.deal.transactions
        await this.confirm(transactions.lock_txid)
        await this.come_to(State.OPEN)
        await this.come_to(State.SETTLING)
        await this.confirm(transactions.commit_txid)
        await this.mine(REGTEST_TIMELOCKS.settlement - 2)
        assert this.world.world.mempool.entries == {}
        outcome = covering(transactions.outcomes, 1, 60_000)
        assert outcome is not None
        await this.mine()
        await this.confirm(transactions.cet(outcome).GetTxid())
        await this.mine(2)
        await this.come_to(State.SETTLED)
        await until(lambda: not any(node.broadcaster.status() for node in this.nodes.values()))
        for role in Role:
            ending = this.nodes[role].position(this.order_id).ending
            assert ending is not None
            assert {each: ending.payout(each) for each in Role} == this.owed(1, 60_000)
        assert this.paid() == this.owed(1, 60_000)


async def test_a_liquidation_before_expiry_pays_at_once(tmp_path: Path) -> None:
    async with trade(tmp_path, price="44000", events=24) as this:
        await this.confirm(this.deal.transactions.lock_txid)
        await this.confirm(this.deal.transactions.commit_txid)
        await this.mine(REGTEST_TIMELOCKS.liquidation - 1)
        await until(lambda: this.world.world.mempool.entries)
        await this.mine(3)
        await this.come_to(State.SETTLED)
        for role in Role:
            attested = this.nodes[role].position(this.order_id).attested
            assert attested is not None
            assert attested.event == 0
        assert this.paid() == {Role.MAKER: this.deal.plan.terms.pool, Role.TAKER: 0}


async def test_a_refund_when_nothing_is_attested(tmp_path: Path) -> None:
    """The oracle is gone for good: one side publishes the commit, and each gets back what it put in."""
    async with trade(tmp_path, events=24) as this:
        for node in this.nodes.values():
            node.supervisor["attestations"].stop()
        transactions = this.deal.transactions
        await this.confirm(transactions.lock_txid)
        taker = this.nodes[Role.TAKER]
        await until(lambda: this.state(Role.TAKER) is State.OPEN)
        await taker.positions.call(Positions.execute, this.order_id, force_close("the oracle is gone"))
        await this.confirm(transactions.commit_txid)
        await until(lambda: this.state(Role.MAKER) is State.COMMITTED)
        await this.mine(REGTEST_TIMELOCKS.refund - 2)
        assert this.world.world.mempool.entries == {}
        await this.mine()
        await this.confirm(transactions.refund.GetTxid())
        await this.mine(2)
        await this.come_to(State.REFUNDED)
        assert this.paid() == Payout(this.deal.plan.terms).refund()


async def test_one_side_alone_settles_while_the_other_is_away_and_the_other_learns_of_it(tmp_path: Path) -> None:
    async with running_world(tmp_path, hour=HOUR) as world:
        world.world.market.override = "60000"
        maker, taker = Node(world, Role.MAKER), Node(world, Role.TAKER)
        async with maker.running("wallet"):
            made = await deal(world, maker)
            await maker.remember(made.facts[Role.MAKER])
            async with taker.running("wallet"):
                await taker.remember(made.facts[Role.TAKER])
            this = Trade(world, {Role.MAKER: maker}, made)
            await this.confirm(made.transactions.lock_txid)
            await this.confirm(made.transactions.commit_txid)
            await this.mine(REGTEST_TIMELOCKS.settlement - 1)
            await until(lambda: world.world.mempool.entries)
            await this.mine(3)
            await this.come_to(State.SETTLED)
        back = Node(world, Role.TAKER, disk=taker.disk)
        async with back.running("wallet"):
            await until(lambda: back.position(this.order_id).state is State.SETTLED)
            await until(lambda: not back.broadcaster.status())
        assert this.paid() == this.owed(1, 60_000)


async def test_a_node_that_is_killed_after_every_step_settles_all_the_same(tmp_path: Path) -> None:
    """One side alone, and a new life between any two steps: nothing but its disk is left of the last."""
    async with running_world(tmp_path, hour=HOUR) as world:
        world.world.market.override = "60000"
        first = Node(world, Role.TAKER)
        async with first.running("wallet", "contracts", "attestations"):
            made = await deal(world, first)
            await first.remember(made.facts[Role.TAKER])
        transactions = made.transactions
        outcome = covering(transactions.outcomes, 1, 60_000)
        assert outcome is not None
        cet = transactions.cet(outcome).GetTxid()
        for expected, blocks in (
            (transactions.lock_txid, 1),
            (transactions.commit_txid, REGTEST_TIMELOCKS.settlement),
            (cet, 3),
        ):
            node = Node(world, Role.TAKER, disk=first.disk)
            this = Trade(world, {Role.TAKER: node}, made)
            async with node.running("wallet"):
                await until(partial(this.has, expected))
            await world.world.mine_many(blocks)
        async with Node(world, Role.TAKER, disk=first.disk).running("wallet") as last:
            await until(lambda: last.position(made.plan.order_id).state is State.SETTLED)
        assert Trade(world, {}, made).paid() == Payout(made.plan.terms).split(outcome.long)


async def test_what_a_reorganisation_takes_out_of_the_chain_comes_back(tmp_path: Path) -> None:
    """Also when no mempool has it any more: whoever could publish it publishes it again."""
    async with trade(tmp_path) as this:
        world, transactions = this.world.world, this.deal.transactions
        await this.confirm(transactions.lock_txid)
        await this.confirm(transactions.commit_txid)
        await until(lambda: all(this.nodes[role].position(this.order_id).commit for role in Role))
        await until(lambda: not any(this.nodes[role].broadcaster.status() for role in Role))
        parent = world.chain.block_hash(world.chain.height - 2)
        for _ in range(3):  # another branch, without either, and a mempool that forgot them
            parent = world.chain.submit(world.chain.build(parent=parent, script=world.treasury.script))
        for txid in (transactions.commit_txid, transactions.lock_txid):
            if txid in world.mempool.entries:
                world.mempool._remove(txid)
        assert not this.has(transactions.lock_txid)
        await this.confirm(transactions.lock_txid)
        await this.confirm(transactions.commit_txid)
        await this.mine(REGTEST_TIMELOCKS.settlement - 1)
        await until(lambda: world.mempool.entries)
        await this.mine(3)
        await this.come_to(State.SETTLED)
        assert this.paid() == this.owed(1, 60_000)


async def test_a_lost_connection_is_made_up_for(tmp_path: Path) -> None:
    async with trade(tmp_path) as this:
        await this.confirm(this.deal.transactions.lock_txid)
        for name in ("chain", "store", "positions", "contracts", "attestations", "oracle"):
            for node in this.nodes.values():
                node.supervisor[name].restart()
        await until(
            lambda: all(
                service.health.up
                for node in this.nodes.values()
                for service in node.supervisor.services
                if service.name != "wallet"
            )
        )
        await this.confirm(this.deal.transactions.commit_txid)
        await until(lambda: this.nodes[Role.MAKER].position(this.order_id).commit)


async def test_broadcasts_go_on_while_the_keeper_is_down(tmp_path: Path) -> None:
    async with trade(tmp_path) as this:
        maker, taker = this.nodes[Role.MAKER], this.nodes[Role.TAKER]
        lock = this.deal.transactions.lock_txid
        await until(lambda: lock in maker.broadcaster.status() and lock in taker.broadcaster.status())
        maker.supervisor["contracts"].stop()
        await maker.supervisor["contracts"].until(Up.STOPPED)
        assert lock in maker.broadcaster.status()


async def test_a_damaged_record_is_shown_and_keeps_no_other_contract_from_settling(tmp_path: Path) -> None:
    async with running_world(tmp_path, hour=HOUR) as world:
        world.world.market.override = "60000"
        node = Node(world, Role.MAKER)
        async with node.running("wallet", "contracts"):
            broken = await deal(world, node, name="broken")
            sound = await deal(world, node, name="sound")
            for each in (broken, sound):
                await node.remember(each.facts[Role.MAKER])
            node.disk.prune(f"position/{broken.plan.order_id.hex()}", ["signatures/0"])
            node.supervisor["contracts"].start()
            this = Trade(world, {Role.MAKER: node}, sound)
            await until(lambda: this.has(sound.transactions.lock_txid) and this.has(broken.transactions.lock_txid))
            await this.mine()
            await until(lambda: this.has(sound.transactions.commit_txid) and this.has(broken.transactions.commit_txid))
            await this.mine(REGTEST_TIMELOCKS.settlement)
            await until(lambda: world.world.mempool.entries)
            await this.mine(3)
            await this.come_to(State.SETTLED)
            health = node.supervisor["contracts"].health
            assert broken.plan.order_id.hex() in health.reason
            assert health.bugs == 0


async def test_an_event_that_was_attested_while_a_contract_was_being_signed_counts(tmp_path: Path) -> None:
    async with trade(tmp_path, price="44000", events=1) as this:
        maker = this.nodes[Role.MAKER]
        late = await deal(this.world, maker, events=1, name="late", first=this.deal.plan.announcements[0].time)
        assert late.plan.announcements == this.deal.plan.announcements
        await until(lambda: maker.position(this.order_id).attested)
        await maker.remember(late.facts[Role.MAKER])
        await until(lambda: maker.position(late.plan.order_id).attested)

"""What it takes to try a node's keepers: contracts that were rolled over or closed on a real chain, and nodes that keep
to every deadline and punish, over a disk that outlives them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from attrs import define, evolve, frozen
from bitcoin.core import CTransaction

from node.oracle.client import OracleClient
from node.position.deadlines import DeadlineKeeper
from node.position.punishing import Punisher
from node.position.state import State
from node.regtest.mempool import Entry
from node.regtest.world import RunningWorld
from protocols import rollover, settlement
from protocols.contract.closing import Close, CloseNonce
from protocols.contract.funding import OutPoint
from protocols.contract.keys import AttemptKeys, attempt_keys
from protocols.contract.oracle import DLC
from protocols.contract.rolling import rolled_terms
from protocols.contract.schedule import HOUR
from protocols.contract.signing import complete_commit, sign_commit, sign_contract, transactions_of
from protocols.contract.terms import Role
from protocols.contract.transactions import ContractPlan
from protocols.dialogue import Fact
from tests.positions import TRADER
from tests.setups import secret
from tests.worlds import Deal, Node, deal, running_world, unspent, until

RATE = "0.001"


@define(eq=False, slots=False)
class Guarded(Node):
    """A node that punishes, too, and finishes what is half done."""

    close_within: float = 3600.0
    roll_within: float = 3600.0

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        punisher = Punisher(self.positions, self.chain, self.setup.fee_rate, self.trader.seed)
        deadlines = DeadlineKeeper(
            self.positions,
            self.monitor,
            self.world.clock,
            close_within=self.close_within,
            roll_within=self.roll_within,
            every=0.05,
        )
        self.supervisor.service("punishing", punisher.run, [self.positions, self.chain])
        self.supervisor.service("deadlines", deadlines.run, [self.positions])


@frozen
class Rolled:
    """One contract, rolled over: plans by index, and what each side writes down of the rollover."""

    made: Deal
    plans: tuple[ContractPlan, ...]
    keys: tuple[Mapping[Role, AttemptKeys], ...]
    facts: Mapping[Role, tuple[Fact, ...]]

    @property
    def order_id(self) -> bytes:
        return self.made.plan.order_id

    def commit(self, publisher: Role, index: int) -> bytes:
        """As that side publishes it, complete."""
        plan, keys = self.plans[index], self.keys[index]
        signature = sign_commit(plan, publisher.other, keys[publisher.other].fund)
        return complete_commit(plan, publisher, keys[publisher], signature)

    def txid(self, index: int) -> bytes:
        """Of the commit."""
        return transactions_of(self.plans[index]).commit_txid

    def refund(self, index: int) -> CTransaction:
        return transactions_of(self.plans[index]).refund


async def roll(made: Deal, node: Node, *, later: int = 1) -> Rolled:
    """Contract 1 after the contract that was made, its events so many hours later."""
    old = made.plan
    order_id, salts = old.order_id, {role: secret("salt", role, 1) for role in Role}
    keys: dict[Role, AttemptKeys] = {}
    before: dict[Role, AttemptKeys] = {}
    for role, trader in TRADER.items():
        attempt = trader.attempt(order_id)
        before[role] = attempt.keys
        keys[role] = attempt_keys(trader.seed, setup_salt=attempt.salt, salt=salts[role], order_id=order_id, index=1)
    ids = [DLC.event_id("BTCUSD", each.time + HOUR * later) for each in old.announcements]
    announcements = tuple([await node.oracle.call(OracleClient.announcement, each) for each in ids])
    terms = rolled_terms(old.terms, rate=RATE, price=old.terms.reference, hours=later)
    plan = evolve(
        old,
        index=1,
        terms=terms,
        announcements=announcements,
        maker=evolve(old.maker, points=keys[Role.MAKER].points),
        taker=evolve(old.taker, points=keys[Role.TAKER].points),
    )
    following = rollover.NextContract(plan, RATE)
    txid = transactions_of(plan).commit_txid
    facts: dict[Role, tuple[Fact, ...]] = {}
    for role in Role:
        peer = role.other
        begun = rollover.RolloverBegun(
            order_id, 1, salts[role], keys[role].points, following if role is Role.MAKER else None
        )
        own, theirs = (sign_commit(plan, each, keys[each].fund) for each in (role, peer))
        held = rollover.RolloverHeld(order_id, 1, following, sign_contract(plan, peer, keys[peer].fund), own, txid)
        complete = rollover.RolloverComplete(order_id, 1, theirs)
        leaves = rollover.RevocationLeaves(order_id, 0)
        received = rollover.RevocationHeld(order_id, 0, before[peer].revoke)
        facts[role] = (begun, held, complete, leaves, received)
        if role is Role.MAKER:
            facts[role] = (begun, rollover.Together((held, complete)), rollover.Together((leaves, received)))
    return Rolled(made, (old, plan), (before, keys), facts)


def closed(made: Deal, price: str) -> Mapping[Role, tuple[Fact, ...]]:
    """What each side writes down of a close of contract 0."""
    close, order_id = Close(made.plan, price), made.plan.order_id
    funds = {role: TRADER[role].attempt(order_id).keys.fund for role in Role}
    nonces = {role: CloseNonce(close, role, funds[role], os.urandom) for role in Role}
    sessions = {role: nonces[role].meet(nonces[role.other].public) for role in Role}
    partials = {role: sessions[role].sign(funds[role]) for role in Role}
    raw = sessions[Role.MAKER].complete(partials[Role.MAKER], partials[Role.TAKER])
    return {
        Role.MAKER: (settlement.CloseSigned(order_id, price, close.txid, raw),),
        Role.TAKER: (
            settlement.CloseSigned(order_id, price, close.txid, None),
            settlement.CloseComplete(order_id, raw),
        ),
    }


@define(eq=False)
class Chained:
    """A contract that was rolled over, its lock in a block, and what became of it on the chain."""

    world: RunningWorld
    node: Guarded
    rolled: Rolled

    @property
    def pool(self) -> Mapping[bytes, Entry]:
        return self.world.world.mempool.entries

    def state(self, node: Node | None = None) -> State:
        return (node or self.node).position(self.rolled.order_id).state

    def confirmed(self, txid: bytes) -> bool:
        return txid in self.world.world.index.transactions

    def spender(self, txid: bytes, vout: int = 0) -> Entry | None:
        """The unconfirmed transaction that spends an output."""
        return self.pool.get(self.world.world.mempool.spender(OutPoint(txid, vout)) or b"")

    def publish(self, raw: bytes) -> bytes:
        return self.world.world.mempool.submit(raw)

    async def mine(self, blocks: int = 1, *nodes: Node) -> None:
        """Blocks, and time for every node to have seen them."""
        await self.world.world.mine_many(blocks)
        await self.seen(*nodes)

    async def seen(self, *nodes: Node) -> None:
        def all_there() -> bool:
            for node in nodes or (self.node,):
                with node.chain.lent() as client:
                    if client.tip.hash != self.world.world.chain.tip:
                        return False
            return True

        await until(all_there)

    def paid(self, role: Role) -> int:
        """What stands at a payout script."""
        script = self.rolled.plans[0].party(role).payout_script
        return sum(coin.value for coin in unspent(self.world, script))


@asynccontextmanager
async def chained(
    path: Path, role: Role = Role.MAKER, *, records: int | None = None, hour: float = 3600.0, **changes: float
) -> AsyncIterator[Chained]:
    """One side's node, with so many records of a rollover on its disk; the other is away."""
    async with running_world(path, hour=hour) as world:
        node = Guarded(world, role, **changes)  # type: ignore[arg-type]  # times
        async with node.running("wallet"):
            made = await deal(world, node)
            await node.remember(made.facts[role])
            lock = made.transactions.lock_txid
            await until(lambda: lock in world.world.mempool.entries)
            this = Chained(world, node, await roll(made, node))
            await this.mine()
            await until(lambda: this.state() is State.OPEN)
            await node.remember(this.rolled.facts[role][:records])
            yield this


def output(raw: bytes) -> int:
    """What the only output gets."""
    (out,) = CTransaction.deserialize(raw).vout
    value: int = out.nValue
    return value


async def settle_down() -> None:
    """Time for what should not happen."""
    await trio.sleep(0.3)

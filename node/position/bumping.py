"""Raises the fees of transactions that must be confirmed and pay less than blocks ask for now.

What a contract's transactions pay is agreed on when it is signed, and signed with them. Afterwards only a child can pay
more: of a commit through its anchor, of a CET or refund through the own payout (`protocols.contract.bump`). Parent and
child are handed in together, since a parent that pays too little is taken by no mempool alone.

Which transactions are due is the broadcaster's to say, what became of them the chain's; what is remembered besides is
how long something waits. Begun anew, a child that the mempool shows is taken up again. Nobody follows the anchor's
script: the child pays to the payout script of its contract, and shows there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping

import structlog
import trio
from attrs import Factory, define, evolve, frozen
from bitcoin.core import CTransaction

from node.chain.broadcast import Broadcaster
from node.chain.chainsync import Tip
from node.chain.electrum import ElectrumClient
from node.chain.latest import Changes
from node.chain.session import ServerLost
from node.config import FeeRateTable
from node.health import UNREPORTED, Report, wait_beating
from node.position.book import Positions
from node.position.state import Position
from node.supervision import Service
from node.wallet.holds import CoinHolds
from node.wallet.interface import Wallet
from protocols.contract.bump import Child, Parent, Replaced, Unaffordable, anchored, child_of, paying, rate
from protocols.contract.funding import FundingInput, OutPoint
from protocols.contract.outcomes import covering
from protocols.contract.scripts import ANCHOR_SCRIPT
from protocols.contract.sighash import TxOut
from protocols.contract.transactions import ContractTransactions, completed, outpoints, txid, vsize
from protocols.errors import LocalError, WorldError

LOOK_EVERY = 30.0
"""Seconds between two looks when nothing else asks for one: estimates change without a sign."""
SOON = 2
"""Blocks in which what is due shall be confirmed. When so many passed without it, it pays a quarter more than it did,
whatever the estimate: the estimate was wrong, or the peer's own child stands in the way of ours."""

REMEDY = "see to free coins in the wallet and to the chain server; fees are raised as soon as they can be"

_log = structlog.get_logger(__name__)


@frozen
class _Raised:
    """A parent that waits, and the child that is on its way with it."""

    parent: bytes
    """Its id."""
    since: int
    """The tip's height when it began to wait, or was last raised."""
    child: Replaced | None = None
    raw: bytes | None = None
    """The child, complete."""
    coins: tuple[FundingInput, ...] = ()
    """Those of ours in the child."""


@define(eq=False)
class Bumper:
    """Outlives the lives of its service, as what the broadcaster keeps for it does."""

    positions: Service[Positions]
    chain: Service[ElectrumClient]
    wallet: Service[Wallet]
    broadcaster: Broadcaster
    holds: CoinHolds
    fee_rates: FeeRateTable
    _raised: dict[bytes, _Raised] = Factory(dict)
    """By the order id."""
    _bell: trio.Event = Factory(trio.Event)

    async def run(
        self, *, report: Report = UNREPORTED, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Look at each new tip, whenever something else is to be broadcast, and every 30 s."""
        with self.positions.lent() as positions, self.chain.lent() as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ring, client.tips())
                nursery.start_soon(self._ring, self.broadcaster.wanted.changes())
                task_status.started()
                while True:
                    self._bell = trio.Event()
                    if problems := await self._look(client, positions, report):
                        report.degraded("; ".join(problems), REMEDY)
                    else:
                        report.recovered()
                    await wait_beating(self._bell, report, LOOK_EVERY)

    async def _ring(self, changes: Changes[Tip] | Changes[int]) -> None:
        async for _ in changes:
            self._bell.set()

    async def _look(self, client: ElectrumClient, positions: Positions, report: Report) -> list[str]:
        """Once over everything that waits; returns what is in the way."""
        problems: list[str] = []
        if not client.takes_packages:
            problems.append(
                f"electrum server {client.server} takes no packages: what pays less than its relay fee cannot be raised"
            )
        try:
            estimate = await client.estimate_fee(SOON) or 0
        except ServerLost:
            raise
        except WorldError as error:
            problems.append(error.sentence)
            estimate = 0
        for order_id in [each.id for each in positions.all()]:
            report.beat()  # each may ask a slow server, and contracts are signed meanwhile
            if (position := positions.get(order_id)) is None:
                continue
            try:
                await self._see_to(client, positions, position, estimate)
            except ServerLost:
                raise
            except (LocalError, WorldError) as error:
                problems.append(f"position {position.id.hex()}: {error.sentence}")
            except Unaffordable as error:
                problems.append(f"position {position.id.hex()}: {error}")
        return problems

    async def _see_to(self, client: ElectrumClient, positions: Positions, position: Position, estimate: int) -> None:
        """Have what a position waits for pay enough. Raises `Unaffordable` when it cannot; it stays as it was then."""
        kept = self.broadcaster.kept(position.id)
        tip = client.tip.height  # before the history is read: what a newer block holds does not wait
        parent = await _waiting(client, position, kept) if kept else None
        if parent is None:
            if self._raised.pop(position.id, None) is not None:
                self.broadcaster.keep(_owner(position), {})
                self.holds.release(position.id)
            return
        raised = self._raised.get(position.id)
        if raised is None or raised.parent != parent.output.txid:
            raised = await self._found(client, position, parent)
            self._remember(position, kept, raised)
        paid = rate(parent, raised.child)
        late = tip >= raised.since + SOON
        wanted = min(max(estimate, paid * 5 // 4 + 1 if late else 0), self.fee_rates.highest)
        if wanted > paid:
            async with self.holds.lock:
                coins = await self._coins(positions, position, raised)
                child = _best(position, parent, coins, range(wanted, paid, -1), raised.child)
                raw = await self._signed(child, kept[raised.parent])
                raised = _Raised(raised.parent, tip, Replaced(child.fee, child.vsize), raw, child.coins)
                self._remember(position, kept, raised)
            _log.info(
                "raising a fee",
                order=position.id.hex(),
                parent=raised.parent[::-1].hex(),
                sat_per_vb=rate(parent, raised.child),
                fee=child.fee,
            )

    def _remember(self, position: Position, kept: Mapping[bytes, bytes], raised: _Raised) -> None:
        self._raised[position.id] = raised
        self.holds.hold(position.id, frozenset(coin.outpoint for coin in raised.coins))
        package: dict[bytes, bytes] = {}
        if raised.raw is not None:
            child: bytes = CTransaction.deserialize(raised.raw).GetTxid()
            package = {raised.parent: kept[raised.parent], child: raised.raw}
        self.broadcaster.keep(_owner(position), package, package=True)

    async def _found(self, client: ElectrumClient, position: Position, parent: Parent) -> _Raised:
        """The parent with the child that the mempool shows, if there is one: an earlier life of ours sent it."""
        waiting = _Raised(parent.output.txid, client.tip.height)
        for found, _ in await client.history(_payout_script(position)):
            raw = await client.transaction(found)
            tx = CTransaction.deserialize(raw)
            spent = outpoints(tx)
            if parent.output.outpoint not in spent:
                continue
            inputs = [await _output(client, each) for each in spent]
            fee = sum(each.value for each in inputs) - sum(each.nValue for each in tx.vout)
            inputs.remove(parent.output)
            ours = [each for each in inputs if await self.wallet.call(Wallet.is_mine, each.script)]
            return evolve(waiting, child=Replaced(fee, vsize(tx)), raw=raw, coins=tuple(ours))
        return waiting

    async def _coins(self, positions: Positions, position: Position, raised: _Raised) -> list[FundingInput]:
        """Those that the next child may spend: what the present one spends, and all that are free."""
        taken = positions.reserved() | self.holds.all(but=position.id) | {coin.outpoint for coin in raised.coins}
        coins = await self.wallet.call(Wallet.coins)
        return [*raised.coins, *(coin.input for coin in coins if coin.spendable and coin.outpoint not in taken)]

    async def _signed(self, child: Child, parent: bytes) -> bytes:
        witnesses = await self.wallet.call(Wallet.sign, child.tx.serialize(), child.spent, (parent,))
        for index, spent in enumerate(child.spent):
            if index not in witnesses and spent.script != ANCHOR_SCRIPT:
                raise LocalError("not_our_coin", f"input {index} of the child {txid(child.tx)[::-1].hex()} is not ours")
        return completed(child.tx, [witnesses.get(index, ()) for index in range(len(child.spent))])


def _owner(position: Position) -> bytes:
    """The name under which the broadcaster keeps a child with its parent."""
    return b"child of " + position.id


def _payout_script(position: Position) -> bytes:
    return position.transactions().plan.party(position.role).payout_script


async def _waiting(client: ElectrumClient, position: Position, kept: Mapping[bytes, bytes]) -> Parent | None:
    """The first of a position's due transactions that is in no block, pays something to us, and can have a child.

    One that a mempool shows comes before one that none does: of a close and a commit only one can be there. What
    punishes is made anew with a higher fee instead (`node.position.punishing`).
    """
    lock, present, script = position.transactions(0), position.transactions(), _payout_script(position)
    commits = {position.commit_txid(each) for each in position.attempts}
    parents: dict[bytes, Parent | None] = {}
    for id_, raw in kept.items():
        spent = {each.prevout.hash for each in CTransaction.deserialize(raw).vin}
        if position.cheated:
            continue
        if id_ in commits:
            if _stake(position, present):
                parents[id_] = anchored(raw, lock.lock_value)
        elif lock.lock_txid in spent:
            parents[id_] = paying(raw, lock.lock_value, script)
        elif present.commit_txid in spent:
            parents[id_] = paying(raw, present.commit_value, script)
    if not parents:
        return None
    heights = dict(await client.history(lock.lock_script)) | dict(await client.history(present.commit_script))
    waiting = [id_ for id_ in parents if heights.get(id_, 0) <= 0]
    shown = [id_ for id_ in waiting if id_ in heights]
    return next((parents[id_] for id_ in (*shown, *waiting)), None)


def _stake(position: Position, transactions: ContractTransactions) -> int:
    """What the commit brings us, as far as is known: the payout at the attested price, or else the refund."""
    attested = position.attested
    outputs = [TxOut(each.nValue, bytes(each.scriptPubKey)) for each in transactions.refund.vout]
    if attested is not None:
        outcome = covering(transactions.outcomes, attested.event, attested.price)
        assert outcome is not None, "only a price that the contract pays out at is recorded"
        outputs = list(transactions.outputs(outcome.long))
    return sum(each.value for each in outputs if each.script == _payout_script(position))


def _best(
    position: Position, parent: Parent, coins: list[FundingInput], rates: range, replaces: Replaced | None
) -> Child:
    """The child of the highest of these falling rates that coins pay for, and that costs no more than is at stake."""
    anchor = parent.output.script == ANCHOR_SCRIPT
    limit = _stake(position, position.transactions()) if anchor else parent.output.value
    script = _payout_script(position)

    def child(at: int) -> Child | Unaffordable:
        try:
            return child_of(parent, coins, rate=at, script=script, limit=limit, replaces=replaces)
        except Unaffordable as error:
            return error

    affordable = bisect_left(rates, True, key=lambda at: isinstance(child(at), Child))
    best = child(rates[affordable if affordable < len(rates) else 0])
    if isinstance(best, Unaffordable):
        raise best
    return best


async def _output(client: ElectrumClient, spent: OutPoint) -> FundingInput:
    outputs = CTransaction.deserialize(await client.transaction(spent.txid)).vout
    if spent.vout >= len(outputs):
        raise WorldError("bad_transaction", f"the chain server shows a transaction that spends {spent}, which is none")
    return FundingInput(spent.txid, spent.vout, outputs[spent.vout].nValue, bytes(outputs[spent.vout].scriptPubKey))

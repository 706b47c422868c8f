"""A lock that reaches no mempool must not hang over us: one of its inputs is spent back (money safety rule 2).

From the moment our lock signatures left, the peer can publish the lock at any later time, when the price suits it. What
is spent back pays more than the lock's whole fee and at least twice its rate, so that whoever has it does not take the
lock in its place.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio
from attrs import frozen
from bitcoin.core import CTransaction

from node.chain.monitor import Monitor
from node.clock import Clock, step
from node.health import UNREPORTED, Report, Working
from node.position.book import Positions
from node.position.commands import abandon_lock
from node.position.events import LockAbandoned
from node.position.state import Position, State, spent_back_to, watched_scripts
from node.supervision import Service
from node.wallet.interface import Wallet
from protocols.contract.funding import FundingInput
from protocols.contract.numbers import DUST
from protocols.contract.sighash import TxOut
from protocols.contract.transactions import FINAL, LOCK_VERSION, completed, outpoints, txid, unsigned, vsize
from protocols.errors import LocalError, WorldError

ABANDON_AFTER = 600.0
"""Seconds after our lock signatures left; a lock that is in no mempool then is given up."""

LOOK_EVERY = 30.0
"""Seconds between two looks at what waits for time to pass."""

OUT = frozenset({State.OPENING, State.ABANDONING})
"""Our signatures left, and there is no lock yet."""

BASE_WEIGHT = 4 * (10 + 43) + 2
"""Of a transaction with one P2TR output: version, counts, output, lock time; marker and flag."""
P2TR_INPUT_WEIGHT = 230

_log = structlog.get_logger(__name__)


def lock_fee(position: Position) -> int:
    """What the lock leaves to the miners, in satoshis."""
    transactions = position.transactions(0)
    spent: int = sum(coin.value for coin in transactions.lock_inputs)
    kept: int = sum(output.nValue for output in transactions.lock.vout)
    return spent - kept


def spend_back(position: Position, script: bytes, estimate: int) -> tuple[CTransaction, tuple[FundingInput, ...]]:
    """The unsigned transaction to `script`, and the inputs of ours that it spends: as few as pay for it.

    `estimate` is the present fee rate, sat/vB. It pays for replacing the lock if our inputs can, and for replacing what
    spent it back until now.
    LocalError when our inputs together do not pay for it.
    """
    contract = position.contract
    assert contract is not None, "without a contract our signatures never left"
    least = 2 * contract.terms.fee_rate
    if position.abandoned is not None:
        bids = [(max(least, estimate), _fee(position, position.abandoned))]
    else:
        # The peer's many inputs may make the lock dearer than ours are worth; its rate still is what keeps it out.
        bids = [(max(least, estimate), lock_fee(position)), (max(least, estimate), 0), (least, 0)]
    for rate, replaced in bids:
        inputs: list[FundingInput] = []
        for coin in sorted(contract.own.inputs, key=lambda coin: coin.value, reverse=True):
            inputs.append(coin)
            size = -(-(BASE_WEIGHT + P2TR_INPUT_WEIGHT * len(inputs)) // 4)
            # beyond the whole fee of what is replaced, what relaying the replacement itself costs
            fee = max(rate * size, replaced + size + 1)
            left = sum(each.value for each in inputs) - fee
            if left >= DUST:
                spends = [(each.txid, each.vout, FINAL) for each in inputs]
                return unsigned(LOCK_VERSION, spends, [TxOut(left, script)]), tuple(inputs)
    raise LocalError("too_poor_to_abandon", "our inputs of the lock do not pay for spending one of them back")


def _fee(position: Position, abandoned: LockAbandoned) -> int:
    tx = CTransaction.deserialize(abandoned.raw)
    values = {coin.outpoint: coin.value for coin in position.transactions(0).lock_inputs}
    spent: int = sum(values[each] for each in outpoints(tx))
    kept: int = sum(output.nValue for output in tx.vout)
    return spent - kept


def pays_too_little(position: Position, estimate: int) -> bool:
    """Whether what spends the lock's inputs back pays less than `estimate`, sat/vB, and a replacement would pay that.

    Left so, mempools that fill would drop it, and the peer could bring the lock in with a child of its change.
    """
    abandoned = position.abandoned
    if abandoned is None:
        return False
    size = vsize(CTransaction.deserialize(abandoned.raw))
    return estimate * size > _fee(position, abandoned) + size


async def _signed_spend_back(position: Position, wallet: Wallet, estimate: int) -> tuple[bytes, bytes]:
    """Id and bytes of the transaction, with the wallet's signatures, to a fresh script of ours; the same one again if
    it replaces another."""
    abandoned = position.abandoned
    script = await wallet.new_script() if abandoned is None else spent_back_to(abandoned)
    tx, inputs = spend_back(position, script, estimate)
    witnesses = await wallet.sign(tx.serialize(), [TxOut(coin.value, coin.script) for coin in inputs])
    return txid(tx), completed(tx, [witnesses[index] for index in range(len(inputs))])


@frozen
class LockKeeper:
    """Gives up every lock that is in no mempool so long after our signatures left; at once if it is older."""

    positions: Service[Positions]
    monitor: Monitor
    wallet: Service[Wallet]
    clock: Clock
    fee_rate: Callable[[], Awaitable[int]]
    """The present estimate, sat/vB."""
    report: Report = UNREPORTED
    """Told of a lock that cannot be given up."""
    after: float = ABANDON_AFTER

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        kept: set[bytes] = set()

        async def keep(positions: Positions, order_id: bytes, working: Working) -> None:
            await self._wait(positions, order_id, working)
            kept.remove(order_id)  # a reorganisation may take the lock back

        with self.positions.lent() as positions:
            async with trio.open_nursery() as nursery:
                task_status.started()
                changes, working = positions.changed.changes(), Working(self.report)
                while True:
                    await working.next(changes)
                    for position in positions.all():
                        if position.id not in kept and position.state in OUT:
                            kept.add(position.id)
                            nursery.start_soon(keep, positions, position.id, working)

    async def _wait(self, positions: Positions, order_id: bytes, working: Working) -> None:
        since = trio.current_time()
        while (position := positions.get(order_id)) is not None and position.state in OUT:
            # the wall clock may be set back, by years: what we waited ourselves counts too
            waited = max(self.clock.now() - position.out_since, trio.current_time() - since)
            left = self.after - waited
            if position.abandoned is not None:
                if pays_too_little(position, await self.fee_rate()):
                    await self._abandon(positions, position, working)
            elif left <= 0 and not await self._in_a_mempool(position):
                await self._abandon(positions, position, working)
            await trio.sleep(step(left, LOOK_EVERY))

    async def _in_a_mempool(self, position: Position) -> bool:
        with self.monitor.follow(watched_scripts(position)) as views:
            view = await anext(views)
        return position.transactions(0).lock_txid in view.transactions

    async def _abandon(self, positions: Positions, position: Position, working: Working) -> None:
        order = position.id.hex()
        try:
            estimate = await self.fee_rate()
            with working.piece():
                with self.wallet.lent() as wallet:
                    spent_back, raw = await _signed_spend_back(position, wallet, estimate)
                await positions.execute(position.id, abandon_lock(spent_back, raw))
        except WorldError as error:
            _log.warning("a lock cannot be abandoned yet", order=order, reason=error.sentence)
        except LocalError as error:
            sentence = f"the lock of position {order} cannot be abandoned: {error.sentence}"
            self.report.degraded(sentence, "nothing: it is tried again and again, and pays as soon as fees fall")
        else:
            _log.warning("lock abandoned", order=order, spent_back_by=spent_back[::-1].hex())

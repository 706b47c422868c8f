"""The transactions of one contract, unsigned: both peers build the same bytes from the same plan.

Source: contract.md, "Transactions", "Fees", "Byte level". The lock has version 2, all others version 3; lock times are
0; outputs are the maker's, then the taker's. Transaction ids are in internal byte order.
"""

from collections.abc import Sequence
from functools import cached_property

from attrs import frozen
from bitcoin.core import COutPoint, CTransaction, CTxIn, CTxInWitness, CTxOut, CTxWitness
from bitcoin.core.script import CScript, CScriptWitness

from .funding import FundingInput, OutPoint, change_value, funding_needed, later_fees, spend_fee
from .keys import Points, contract_id
from .numbers import DUST
from .oracle import Announcement
from .outcomes import Outcome, outcomes
from .payout import Payout
from .scripts import ANCHOR_SCRIPT, ANCHOR_VALUE, CommitOutput, LockOutput, commit_output, lock_output
from .sighash import LeafSpend, TxOut, signature_hash
from .terms import Role, Side, Terms

FINAL = 0xFFFFFFFD
"""The sequence of inputs without a relative lock; it lets the fee be bumped."""
LOCK_VERSION, LATER_VERSION = 2, 3
"""Version 3 (BIP431) keeps strangers from pinning what spends the lock."""


@frozen
class Party:
    """What one side contributes to a contract, as it goes over the wire."""

    points: Points
    inputs: tuple[FundingInput, ...]
    change_script: bytes
    payout_script: bytes


@frozen(cache_hash=True)  # plans are what transactions are kept by
class ContractPlan:
    """All that fixes the transactions of one attempt; picklable, so that workers can sign and verify.

    At a rollover `index`, `terms`, `announcements` and both sides' publish and revoke points are new; order id, fund
    points, inputs, scripts and fee rate are the setup's, so that the lock is too.
    """

    order_id: bytes
    index: int
    terms: Terms
    maker: Party
    taker: Party
    announcements: tuple[Announcement, ...]
    """The oracle's hourly events, in order; the last one settles."""

    def party(self, role: Role) -> Party:
        return self.maker if role is Role.MAKER else self.taker


class ContractTransactions:
    """The transactions of a plan. Building it is cheap; what costs more is computed when first asked for.

    Raises `BadScript` for payout scripts that are neither P2WPKH nor P2TR. `change` and `lock`, and with them all the
    rest, raise `Underfunded` when a side's inputs do not suffice, and `BadScript` for those and the change.
    """

    def __init__(self, plan: ContractPlan) -> None:
        self.plan = plan
        terms, maker, taker = plan.terms, plan.maker, plan.taker
        self.payout = Payout(terms)
        self.contract_id = contract_id(plan.order_id, maker.points.fund, taker.points.fund)
        self.lock_output: LockOutput = lock_output(maker.points.fund, taker.points.fund)
        self.commit_output: CommitOutput = commit_output(self.contract_id, plan.index, maker.points, taker.points)
        payout_scripts = maker.payout_script, taker.payout_script
        self.lock_value = terms.pool + later_fees(terms.fee_rate, *payout_scripts)
        self.commit_value = terms.pool + spend_fee(terms.fee_rate, *payout_scripts)
        """Satoshis of the commit output."""
        self._hashes: dict[tuple[int, int], bytes] = {}  # most CETs of the liquidation regions are alike

    # The lock

    @cached_property
    def lock_inputs(self) -> tuple[FundingInput, ...]:
        """The maker's inputs, then the taker's."""
        return self.plan.maker.inputs + self.plan.taker.inputs

    @property
    def lock_prevouts(self) -> tuple[TxOut, ...]:
        """The outputs that the lock spends, in the order of its inputs."""
        return tuple(TxOut(each.value, each.script) for each in self.lock_inputs)

    def change(self, role: Role) -> int:
        """A role's change in satoshis; 0: it has no change output."""
        own, peer, terms = self.plan.party(role), self.plan.party(role.other), self.plan.terms
        needed = funding_needed(role, terms, own.payout_script, peer.payout_script)
        return change_value(own.inputs, needed, terms.fee_rate, own.change_script)

    @cached_property
    def lock(self) -> CTransaction:
        """Lock output first, then the maker's and the taker's change."""
        change = [TxOut(self.change(role), self.plan.party(role).change_script) for role in Role]
        return unsigned(
            LOCK_VERSION,
            [(each.txid, each.vout, FINAL) for each in self.lock_inputs],
            [TxOut(self.lock_value, self.lock_output.script), *(each for each in change if each.value)],
        )

    @property
    def lock_script(self) -> bytes:
        return self.lock_output.script

    @cached_property
    def lock_txid(self) -> bytes:
        return txid(self.lock)

    # The commit

    @property
    def commit_outputs(self) -> tuple[TxOut, TxOut]:
        return TxOut(self.commit_value, self.commit_output.script), TxOut(ANCHOR_VALUE, ANCHOR_SCRIPT)

    @property
    def commit_script(self) -> bytes:
        return self.commit_output.script

    @cached_property
    def commit(self) -> CTransaction:
        return unsigned(LATER_VERSION, [(self.lock_txid, 0, FINAL)], self.commit_outputs)

    @cached_property
    def commit_txid(self) -> bytes:
        return txid(self.commit)

    @cached_property
    def commit_hash(self) -> bytes:
        """What both sign to spend the lock by its leaf."""
        spent = TxOut(self.lock_value, self.lock_output.script)
        return signature_hash(self.commit, 0, [spent], leaf_hash=self.lock_output.leaf.hash)

    # What spends the commit

    @cached_property
    def outcomes(self) -> tuple[Outcome, ...]:
        """Every outcome of every event, one CET each, by event and then by price."""
        return tuple(outcomes(self.plan.terms, len(self.plan.announcements)))

    @cached_property
    def by_event(self) -> tuple[tuple[Outcome, ...], ...]:
        """The outcomes of each event, in the order of their signatures."""
        events: list[list[Outcome]] = [[] for _ in self.plan.announcements]
        for outcome in self.outcomes:
            events[outcome.event].append(outcome)
        return tuple(map(tuple, events))

    def outputs(self, long: int) -> tuple[TxOut, ...]:
        """The outputs that pay `long` satoshis to the long and the rest of the pool to the short.

        A payout below DUST is left out and the other side gets the pool.
        """
        rest = self.payout.pool - long
        maker, taker = (long, rest) if self.plan.terms.maker_side is Side.LONG else (rest, long)
        if maker < DUST:
            return (TxOut(self.payout.pool, self.plan.taker.payout_script),)
        if taker < DUST:
            return (TxOut(self.payout.pool, self.plan.maker.payout_script),)
        return TxOut(maker, self.plan.maker.payout_script), TxOut(taker, self.plan.taker.payout_script)

    def cet(self, outcome: Outcome) -> CTransaction:
        return self.spend(outcome.timelock(self.plan.terms), self.outputs(outcome.long))

    @cached_property
    def refund(self) -> CTransaction:
        """Margins and accounts back, if the oracle never speaks."""
        return self.spend(self.plan.terms.timelocks.refund, self.outputs(self._refund_long))

    def spend(self, sequence: int, spent_to: Sequence[TxOut]) -> CTransaction:
        """A transaction that spends the commit output; `sequence` is its relative lock in blocks, or FINAL."""
        return unsigned(LATER_VERSION, [(self.commit_txid, 0, sequence)], spent_to)

    def cet_hash(self, outcome: Outcome) -> bytes:
        """What both sign to spend the commit by an outcome's CET."""
        return self._hash(outcome.timelock(self.plan.terms), outcome.long)

    @property
    def refund_hash(self) -> bytes:
        return self._hash(self.plan.terms.timelocks.refund, self._refund_long)

    def _hash(self, sequence: int, long: int) -> bytes:
        message = self._hashes.get((sequence, long))
        if message is None:
            message = self._hashes[sequence, long] = self._spends[sequence].hash(self.outputs(long))
        return message

    @cached_property
    def _refund_long(self) -> int:
        return self.payout.long(self.plan.terms.opening_price)

    @cached_property
    def _spends(self) -> dict[int, LeafSpend]:
        """By relative lock: what the transactions that spend the commit have in common."""
        locks = self.plan.terms.timelocks
        return {
            sequence: LeafSpend(
                version=LATER_VERSION,
                sequence=sequence,
                txid=self.commit_txid,
                vout=0,
                spent=self.commit_outputs[0],
                leaf_hash=self.commit_output.leaf.hash,
            )
            for sequence in (locks.liquidation, locks.settlement, locks.refund)
        }


def unsigned(version: int, inputs: Sequence[tuple[bytes, int, int]], outputs: Sequence[TxOut]) -> CTransaction:
    """A transaction without witnesses; inputs are (txid, output index, sequence)."""
    return CTransaction(
        [CTxIn(COutPoint(spent, vout), nSequence=sequence) for spent, vout, sequence in inputs],
        [CTxOut(each.value, CScript(each.script)) for each in outputs],
        nVersion=version,
    )


def completed(tx: CTransaction, witnesses: Sequence[Sequence[bytes]]) -> bytes:
    """A transaction as it is broadcast, with one witness for each input."""
    if len(witnesses) != len(tx.vin):
        raise ValueError(f"{len(witnesses)} witnesses for {len(tx.vin)} inputs")
    stacks = [CTxInWitness(CScriptWitness([bytes(item) for item in witness])) for witness in witnesses]
    raw: bytes = CTransaction(tx.vin, tx.vout, tx.nLockTime, tx.nVersion, CTxWitness(stacks)).serialize()
    return raw


def outpoints(tx: CTransaction) -> list[OutPoint]:
    """What a transaction spends, in the order of its inputs."""
    return [OutPoint(txin.prevout.hash, txin.prevout.n) for txin in tx.vin]


def txid(tx: CTransaction) -> bytes:
    """A transaction's id in internal byte order."""
    identifier: bytes = tx.GetTxid()
    return identifier


def vsize(tx: CTransaction) -> int:
    """Virtual bytes of a transaction with its witnesses (BIP141)."""
    base = CTransaction(tx.vin, tx.vout, tx.nLockTime, tx.nVersion).serialize()
    return -(-(3 * len(base) + len(tx.serialize())) // 4)

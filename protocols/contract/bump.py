"""Children that pay for their parents: raising the fee of a commit, a CET or a refund that is signed already.

A commit is raised through its anchor with coins of the wallet, a CET or refund through the own payout in it, with coins
besides if that does not suffice. The child has version 3 like its parent (BIP431), at most 1 000 vbytes, and one
output, to a script of ours. Amounts are satoshis, rates whole sat/vB. Source: contract.md, "Anchor" and "Fees".
"""

from collections.abc import Callable, Sequence

from attrs import frozen
from bitcoin.core import CTransaction

from .funding import FundingInput, input_weight, output_vsize
from .numbers import DUST
from .scripts import ANCHOR_SCRIPT, ANCHOR_VALUE
from .sighash import TxOut
from .transactions import FINAL, LATER_VERSION, txid, unsigned, vsize

MAX_VSIZE = 1_000
"""Vbytes of a version-3 child (BIP431)."""
RELAY_INCREMENT = 1
"""Satoshis that a replacement adds for each of its vbytes (BIP125, rule 4), and the least that any transaction pays."""
_BASE_WEIGHT = 4 * 10 + 2
"""Version, lock time, two counts; the two bytes that announce witnesses."""
_ANCHOR_WEIGHT = 4 * 41 + 1


@frozen
class Parent:
    """A complete transaction that waits for a block, and the output that its child spends."""

    fee: int
    vsize: int
    output: FundingInput


@frozen
class Child:
    """A child without its witnesses. `spent` are the outputs that it spends: the parent's first, then `coins`."""

    tx: CTransaction
    spent: tuple[TxOut, ...]
    coins: tuple[FundingInput, ...]
    fee: int
    vsize: int
    """With the witnesses."""


@frozen
class Replaced:
    """An earlier child of the same parent: what it pays, and its vbytes."""

    fee: int
    vsize: int


class Unaffordable(ValueError):
    """No child of these coins, or none within the limit, reaches the rate: satoshis there are, and needed."""

    def __init__(self, have: int, need: int) -> None:
        super().__init__(have, need)
        self.have = have
        self.need = need

    def __str__(self) -> str:
        return f"there are {self.have} sat to raise a fee with, {self.need} sat are needed"


def anchored(commit: bytes, lock_value: int) -> Parent:
    """A complete commit with its anchor, the second of its outputs."""
    tx = CTransaction.deserialize(commit)
    return Parent(_fee(tx, lock_value), vsize(tx), FundingInput(txid(tx), 1, ANCHOR_VALUE, ANCHOR_SCRIPT))


def paying(raw: bytes, spent: int, script: bytes) -> Parent | None:
    """A complete CET or refund, which spends `spent` satoshis, with its output to `script`; None if it has none."""
    tx = CTransaction.deserialize(raw)
    for vout, output in enumerate(tx.vout):
        if output.scriptPubKey == script:
            return Parent(_fee(tx, spent), vsize(tx), FundingInput(txid(tx), vout, output.nValue, script))
    return None


def _fee(tx: CTransaction, spent: int) -> int:
    fee: int = spent - sum(output.nValue for output in tx.vout)
    return fee


def rate(parent: Parent, child: Replaced | Child | None) -> int:
    """What parent and child pay together, rounded down."""
    if child is None:
        return parent.fee // parent.vsize
    return (parent.fee + child.fee) // (parent.vsize + child.vsize)


def child_of(
    parent: Parent,
    coins: Sequence[FundingInput],
    *,
    rate: int,
    script: bytes,
    limit: int,
    replaces: Replaced | None = None,
) -> Child:
    """The child with which parent and child together pay `rate`, or the little more that replacing takes.

    `coins` are those that it may spend, confirmed ones (a version-3 child has one unconfirmed parent and no other); of
    these it takes as few as will do. `script` is its output's; `limit` is the most that it may pay. Raises
    `Unaffordable`, and `BadScript` for coins and scripts of unknown weight.
    """

    def size(chosen: Sequence[FundingInput]) -> int:
        weight = _BASE_WEIGHT + 4 * output_vsize(script)
        weight += sum(_weight(each) for each in (parent.output, *chosen))
        return -(-weight // 4)

    def fee(chosen: Sequence[FundingInput]) -> int:
        own = size(chosen)
        least = max(rate * (parent.vsize + own) - parent.fee, RELAY_INCREMENT * own)
        if replaces is None:
            return least
        # more than it replaces in all (BIP125, rules 3 and 4), and for each vbyte
        return max(least, replaces.fee + RELAY_INCREMENT * own, replaces.fee * own // replaces.vsize + 1)

    def left(chosen: Sequence[FundingInput]) -> int:
        return parent.output.value + sum(each.value for each in chosen) - fee(chosen)

    chosen = _choose(coins, lambda some: left(some) >= DUST, lambda some: size(some) <= MAX_VSIZE)
    if chosen is None:
        most = sorted(coins, key=lambda each: each.value)
        while size(most) > MAX_VSIZE:
            most.pop(0)
        raise Unaffordable(parent.output.value + sum(each.value for each in most), fee(most) + DUST)
    if fee(chosen) > limit:
        raise Unaffordable(limit, fee(chosen))
    spends = parent.output, *chosen
    return Child(
        tx=unsigned(LATER_VERSION, [(each.txid, each.vout, FINAL) for each in spends], [TxOut(left(chosen), script)]),
        spent=tuple(TxOut(each.value, each.script) for each in spends),
        coins=chosen,
        fee=fee(chosen),
        vsize=size(chosen),
    )


def _weight(spent: FundingInput) -> int:
    return _ANCHOR_WEIGHT if spent.script == ANCHOR_SCRIPT else input_weight(spent.script)


def _choose(
    coins: Sequence[FundingInput],
    enough: Callable[[Sequence[FundingInput]], bool],
    fits: Callable[[Sequence[FundingInput]], bool],
) -> tuple[FundingInput, ...] | None:
    """As few coins as will do, none if the parent's output does; of those that could be the last, the smallest."""
    rest = sorted(coins, key=lambda each: (each.value, each.outpoint))
    chosen: tuple[FundingInput, ...] = ()
    while fits(chosen):
        if enough(chosen):
            return chosen
        last = next((each for each in rest if enough((*chosen, each))), None)
        if last is None and not rest:
            return None
        chosen = (*chosen, last or rest.pop())
    return None

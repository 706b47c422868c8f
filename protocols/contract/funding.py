"""Who pays what into the lock: inputs, fees that are prepaid, change. For the contract and for coin selection.

Source: contract.md, "Fees" and "Byte level". All amounts are satoshis, weights are weight units (4 to a vbyte), fee
rates whole sat/vB.
"""

from collections.abc import Sequence
from typing import NamedTuple

from attrs import frozen

from .numbers import DUST
from .scripts import ANCHOR_VALUE, is_p2tr, is_p2wpkh, p2tr
from .terms import Role, Terms

MAX_INPUTS = 20
"""A side adds at most so many inputs to the lock."""
COMMIT_VSIZE = 166
SPEND_BASE_VSIZE = 118
"""A CET, refund or cooperative spend without its outputs."""
PUNISH_BASE_VSIZE = 126
"""A punish transaction without its output."""
LOCK_SHARE_WEIGHT = 107
"""Half of what is neither side's own in the lock: 10.5 + 43 vbytes."""
P2WPKH_INPUT_WEIGHT, P2TR_INPUT_WEIGHT = 272, 230
P2WPKH_OUTPUT_VSIZE, P2TR_OUTPUT_VSIZE = 31, 43


class OutPoint(NamedTuple):
    """An output: transaction id (internal order) and index."""

    txid: bytes
    vout: int

    def __str__(self) -> str:
        """As people write it."""
        return f"{self.txid[::-1].hex()}:{self.vout}"


@frozen
class FundingInput:
    """A coin that goes into the lock: its outpoint (txid in internal order), satoshis and script."""

    txid: bytes
    vout: int
    value: int
    script: bytes

    @property
    def outpoint(self) -> OutPoint:
        return OutPoint(self.txid, self.vout)


class BadScript(ValueError):
    """Neither P2WPKH nor P2TR: other scripts are malleable, or of unknown weight."""

    def __init__(self, script: bytes) -> None:
        super().__init__(script)
        self.script = script

    def __str__(self) -> str:
        return f"script {self.script[:40].hex() or '(empty)'} is neither P2WPKH nor P2TR"


class Underfunded(ValueError):
    """Inputs that do not pay for their side of the lock: satoshis they have, and need."""

    def __init__(self, have: int, need: int) -> None:
        super().__init__(have, need)
        self.have = have
        self.need = need

    def __str__(self) -> str:
        return f"the inputs hold {self.have} sat, {self.need} sat are needed"


def is_native(script: bytes) -> bool:
    """Whether a contract may use this script: P2WPKH or P2TR."""
    return is_p2wpkh(script) or is_p2tr(script)


def input_weight(script: bytes) -> int:
    """What spending a coin of this script by its key adds to the lock. Raises `BadScript`."""
    if is_p2wpkh(script):
        return P2WPKH_INPUT_WEIGHT
    if is_p2tr(script):
        return P2TR_INPUT_WEIGHT
    raise BadScript(script)


def output_vsize(script: bytes) -> int:
    """Vbytes of an output with this script. Raises `BadScript`."""
    if is_p2wpkh(script):
        return P2WPKH_OUTPUT_VSIZE
    if is_p2tr(script):
        return P2TR_OUTPUT_VSIZE
    raise BadScript(script)


def side_fee(fee_rate: int, input_scripts: Sequence[bytes], change_script: bytes | None) -> int:
    """One side's part of the lock's fee: its inputs, its change if any, and half of the rest."""
    weight = LOCK_SHARE_WEIGHT + sum(input_weight(script) for script in input_scripts)
    if change_script is not None:
        weight += 4 * output_vsize(change_script)
    return -(-fee_rate * weight // 4)


def commit_fee(fee_rate: int) -> int:
    return fee_rate * COMMIT_VSIZE


def spend_fee(fee_rate: int, maker_payout: bytes, taker_payout: bytes) -> int:
    """The fee of a CET, refund or spend with both outputs; left to the miners whole when one is dust."""
    return fee_rate * (SPEND_BASE_VSIZE + output_vsize(maker_payout) + output_vsize(taker_payout))


def later_fees(fee_rate: int, maker_payout: bytes, taker_payout: bytes) -> int:
    """What the lock prepays for the transactions after it: commit's fee, anchor, CET's fee."""
    return commit_fee(fee_rate) + ANCHOR_VALUE + spend_fee(fee_rate, maker_payout, taker_payout)


def funding_needed(role: Role, terms: Terms, own_payout: bytes, peer_payout: bytes | None = None) -> int:
    """What a role's inputs must bring, beyond its `side_fee`: margin and half of the later fees.

    The maker chooses its inputs before it knows the taker's payout script; None counts the larger kind, and the
    difference comes back as change.
    """
    peer = p2tr(bytes(32)) if peer_payout is None else peer_payout
    later = later_fees(terms.fee_rate, own_payout, peer)
    return terms.margin(role) + (later - later // 2 if role is Role.MAKER else later // 2)


def change_value(inputs: Sequence[FundingInput], needed: int, fee_rate: int, change_script: bytes) -> int:
    """The satoshis that come back to a side as change; 0 means no change output, what is left goes to the fee.

    `needed` is `funding_needed`. Raises `Underfunded` and `BadScript`.
    """
    have = sum(each.value for each in inputs)
    scripts = [each.script for each in inputs]
    change = have - needed - side_fee(fee_rate, scripts, change_script)
    if change >= DUST:
        return change
    need = needed + side_fee(fee_rate, scripts, None)
    if have < need:
        raise Underfunded(have, need)
    return 0

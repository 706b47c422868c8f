"""The relay rules that one transaction can be judged by alone, as Bitcoin Core's mempool has them.

Each check raises `Rejected` with Bitcoin Core's reject reason. Only what contracts and wallets here can meet
is checked: no limits on signature operations, no bare multisig.
"""

from collections.abc import Sequence

from bitcoin.core import CTransaction

from protocols.contract.sighash import TxOut
from protocols.contract.transactions import outpoints
from protocols.errors import LocalError

P2A = b"\x51\x02\x4e\x73"
"""Pay to anchor: anyone may spend it, with an empty witness."""
TRUC = 3
"""The transaction version of BIP431: topologically restricted until confirmation."""

MAX_MONEY = 21_000_000 * 10**8
MAX_WEIGHT = 400_000
MAX_PACKAGE = 25
DUST_RATE = 3
"""Satoshis per virtual byte at which spending an output must not cost more than it holds."""
_NEVER_RELATIVE = 1 << 31
_RELATIVE_TIME = 1 << 22
_LOCK_IS_TIME = 500_000_000


class Rejected(LocalError):
    """The mempool refused a transaction: `reason` is Bitcoin Core's reject reason, `detail` what it adds.

    `txid` says which of a package it is, unless it is the package as a whole.
    """

    def __init__(self, reason: str, detail: str = "", *, txid: bytes | None = None) -> None:
        super().__init__("rejected", f"{reason}, {detail}" if detail else reason)
        self.reason = reason
        self.txid = txid


def bare(transaction: CTransaction) -> bytes:
    """The serialization without witnesses, whose hash is the transaction id."""
    stripped = CTransaction(transaction.vin, transaction.vout, transaction.nLockTime, transaction.nVersion)
    return bytes(stripped.serialize())


def weight(transaction: CTransaction) -> int:
    """BIP141 weight: four units a byte, one for bytes of the witness."""
    return 3 * len(bare(transaction)) + len(transaction.serialize())


def check_transaction(transaction: CTransaction) -> None:
    """The consensus rules that need no context, and that it is no coinbase."""
    if not transaction.vin:
        raise Rejected("bad-txns-vin-empty")
    if not transaction.vout:
        raise Rejected("bad-txns-vout-empty")
    if any(output.nValue < 0 for output in transaction.vout):
        raise Rejected("bad-txns-vout-negative")
    if any(output.nValue > MAX_MONEY for output in transaction.vout):
        raise Rejected("bad-txns-vout-toolarge")
    if sum(output.nValue for output in transaction.vout) > MAX_MONEY:
        raise Rejected("bad-txns-txouttotal-toolarge")
    if len(set(outpoints(transaction))) < len(transaction.vin):
        raise Rejected("bad-txns-inputs-duplicate")
    if transaction.is_coinbase():
        raise Rejected("coinbase")
    if any(txin.prevout.is_null() for txin in transaction.vin):
        raise Rejected("bad-txns-prevout-null")


def is_unspendable(script: bytes) -> bool:
    """Whether nobody can ever spend it, so that it is kept nowhere."""
    return script[:1] == b"\x6a" or len(script) > 10_000


def is_witness_program(script: bytes) -> bool:
    return 4 <= len(script) <= 42 and script[0] in (0, *range(0x51, 0x61)) and script[1] == len(script) - 2


def is_standard_script(script: bytes) -> bool:
    """P2PKH, P2SH, data, or a witness program of any version whose length that version allows."""
    if script[:1] == b"\x6a":
        return len(script) <= 100_000
    if len(script) == 25:
        return script[:3] == b"\x76\xa9\x14" and script[23:] == b"\x88\xac"
    if len(script) == 23 and script[0] == 0xA9:
        return script[1] == 0x14 and script[22] == 0x87
    return is_witness_program(script) and (script[0] != 0 or len(script) in (22, 34))


def dust_limit(script: bytes) -> int:
    """The least value of an output that is not dust: 330 for P2TR, 294 for P2WPKH, 240 for P2A, 0 for data."""
    if script[:1] == b"\x6a":
        return 0
    spending = 67 if is_witness_program(script) else 148
    return DUST_RATE * (8 + 1 + len(script) + spending)


def dust(transaction: CTransaction) -> list[int]:
    """Positions of the outputs below their dust limit."""
    return [n for n, out in enumerate(transaction.vout) if out.nValue < dust_limit(bytes(out.scriptPubKey))]


def check_standard(transaction: CTransaction) -> None:
    """Version, sizes and output scripts; dust is judged with the fee."""
    if not 1 <= transaction.nVersion <= TRUC:
        raise Rejected("version")
    if weight(transaction) > MAX_WEIGHT:
        raise Rejected("tx-size")
    if any(len(txin.scriptSig) > 1650 for txin in transaction.vin):
        raise Rejected("scriptsig-size")
    if not all(is_standard_script(bytes(out.scriptPubKey)) for out in transaction.vout):
        raise Rejected("scriptpubkey")
    if len(bare(transaction)) < 65:
        raise Rejected("tx-size-small")


def check_standard_inputs(transaction: CTransaction, spent: Sequence[TxOut]) -> None:
    """Scripts spent and the witnesses that spend them (limits of IsWitnessStandard)."""
    for index, output in enumerate(spent):
        if not is_standard_script(output.script):
            raise Rejected("bad-txns-nonstandard-inputs", f"input {index}")
        stack = witness(transaction, index)
        if stack and output.script == P2A:
            raise Rejected("bad-witness-nonstandard", f"input {index}")
        if len(output.script) != 34 or not stack:
            continue
        if output.script[0] == 0:
            items, limit = stack[:-1], len(stack) <= 101 and len(stack[-1]) <= 3600
        else:
            # an annex is never standard; the arguments of a tapscript are at most 80 bytes
            limit = len(stack) < 2 or stack[-1][:1] != b"\x50"
            items = stack[:-2]
        if not limit or any(len(item) > 80 for item in items):
            raise Rejected("bad-witness-nonstandard", f"input {index}")


def witness(transaction: CTransaction, index: int) -> tuple[bytes, ...]:
    if index >= len(transaction.wit.vtxinwit):
        return ()
    return tuple(bytes(item) for item in transaction.wit.vtxinwit[index].scriptWitness.stack)


def is_final(transaction: CTransaction, height: int, median_time: int) -> bool:
    """Whether the lock time lets it into the block of that height after that median time (BIP113)."""
    lock: int = transaction.nLockTime
    if lock < (height if lock < _LOCK_IS_TIME else median_time):
        return True
    return all(txin.nSequence == 0xFFFFFFFF for txin in transaction.vin)


def relative_locks(transaction: CTransaction) -> list[tuple[int | None, int | None]]:
    """For each input the (blocks, seconds) that BIP68 makes it wait after what it spends, or None."""
    locks: list[tuple[int | None, int | None]] = []
    for txin in transaction.vin:
        sequence = txin.nSequence
        if transaction.nVersion < 2 or sequence & _NEVER_RELATIVE:
            locks.append((None, None))
        elif sequence & _RELATIVE_TIME:
            locks.append((None, (sequence & 0xFFFF) << 9))
        else:
            locks.append((sequence & 0xFFFF, None))
    return locks


def check_package(package: Sequence[CTransaction]) -> None:
    """That they are a child, which comes last, and its parents, which do not spend one another."""
    if not 1 <= len(package) <= MAX_PACKAGE:
        raise Rejected("package-too-many-transactions", f"a package has 1 to {MAX_PACKAGE} transactions")
    txids = [transaction.GetTxid() for transaction in package]
    if len(set(txids)) < len(txids):
        raise Rejected("package-contains-duplicates")
    spent = [{bytes(txin.prevout.hash) for txin in transaction.vin} for transaction in package]
    if set(txids[:-1]) - spent[-1] or any(parents & set(txids) for parents in spent[:-1]):
        raise Rejected("package-not-child-with-parents")


def package_may_help(transaction: CTransaction, error: Rejected) -> bool:
    """Whether what alone was refused may be taken together with a child that pays, or with its parent."""
    match error.reason:
        case "min relay fee not met":
            return bool(transaction.nVersion == TRUC)
        case "insufficient fee" | "bad-txns-inputs-missingorspent":
            return True
    return False

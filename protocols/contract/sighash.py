"""BIP341's signature hash, whole for one transaction and in parts for the many that share most of it.

Only what this project signs and checks: no annex, code separator position ffffffff (BIP342).
"""

from collections.abc import Sequence
from hashlib import sha256

from attrs import frozen
from bitcoin.core import CTransaction

from .numbers import tagged_hash

DEFAULT, ALL, NONE, SINGLE, ANYONE_CAN_PAY = 0, 1, 2, 3, 0x80
HASH_TYPES = (DEFAULT, ALL, NONE, SINGLE, ALL | ANYONE_CAN_PAY, NONE | ANYONE_CAN_PAY, SINGLE | ANYONE_CAN_PAY)


@frozen
class TxOut:
    """A transaction's output: satoshis and the script that guards them."""

    value: int
    script: bytes

    @property
    def wire(self) -> bytes:
        """As it stands in a transaction."""
        return self.value.to_bytes(8, "little") + string(self.script)


def string(data: bytes) -> bytes:
    """Bytes with their length before them, as Bitcoin writes them (below 65 536 bytes)."""
    size = len(data)
    return (bytes((size,)) if size < 0xFD else b"\xfd" + size.to_bytes(2, "little")) + data


def _digest(parts: Sequence[bytes]) -> bytes:
    return sha256(b"".join(parts)).digest()


def signature_hash(
    tx: CTransaction,
    index: int,
    spent: Sequence[TxOut],
    *,
    leaf_hash: bytes | None = None,
    hash_type: int = DEFAULT,
) -> bytes:
    """The 32 bytes that a taproot signature of input `index` signs; `spent` are the outputs that `tx` spends.

    `leaf_hash` is the tapleaf's hash for a script path spend, None for the key path. Raises `ValueError` for an
    unknown hash type, a SINGLE without its output, or a count of `spent` that is not the inputs'.
    """
    if hash_type not in HASH_TYPES or len(spent) != len(tx.vin):
        raise ValueError(f"hash type {hash_type:#x} with {len(spent)} of {len(tx.vin)} spent outputs")
    anyone, kind = hash_type & ANYONE_CAN_PAY, hash_type & 3
    if kind == SINGLE and index >= len(tx.vout):
        raise ValueError(f"input {index} has no output of its own to sign")
    outpoints = [each.prevout.hash + each.prevout.n.to_bytes(4, "little") for each in tx.vin]
    sequences = [each.nSequence.to_bytes(4, "little") for each in tx.vin]
    outputs = [TxOut(each.nValue, bytes(each.scriptPubKey)).wire for each in tx.vout]
    parts = [
        bytes((0, hash_type)),  # epoch 0
        tx.nVersion.to_bytes(4, "little", signed=True),
        tx.nLockTime.to_bytes(4, "little"),
    ]
    if not anyone:
        parts += [
            _digest(outpoints),
            _digest([each.value.to_bytes(8, "little") for each in spent]),
            _digest([string(each.script) for each in spent]),
            _digest(sequences),
        ]
    if kind in (DEFAULT, ALL):
        parts.append(_digest(outputs))
    parts.append(b"\x00" if leaf_hash is None else b"\x02")
    parts.append(outpoints[index] + spent[index].wire + sequences[index] if anyone else index.to_bytes(4, "little"))
    if kind == SINGLE:
        parts.append(_digest([outputs[index]]))
    return tagged_hash("TapSighash", b"".join(parts) + _leaf_part(leaf_hash))


def _leaf_part(leaf_hash: bytes | None) -> bytes:
    return b"" if leaf_hash is None else leaf_hash + b"\x00\xff\xff\xff\xff"


class LeafSpend:
    """The hashes of all transactions that spend one output, alone, through one leaf, and differ in outputs only.

    A contract has hundreds of such transactions; what they share is computed once (2 µs for each instead of 13).
    """

    def __init__(self, *, version: int, sequence: int, txid: bytes, vout: int, spent: TxOut, leaf_hash: bytes) -> None:
        self._before = (
            bytes((0, DEFAULT))
            + version.to_bytes(4, "little")
            + bytes(4)  # lock time 0
            + sha256(txid + vout.to_bytes(4, "little")).digest()
            + sha256(spent.value.to_bytes(8, "little")).digest()
            + sha256(string(spent.script)).digest()
            + sha256(sequence.to_bytes(4, "little")).digest()
        )
        self._after = b"\x02" + bytes(4) + _leaf_part(leaf_hash)  # script path, input 0

    def hash(self, outputs: Sequence[TxOut]) -> bytes:
        """The hash to sign for the transaction with these outputs."""
        return tagged_hash("TapSighash", self._before + _digest([each.wire for each in outputs]) + self._after)

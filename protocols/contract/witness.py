"""The peer's witnesses in the lock are judged before ours are added: by key, nothing else (contract.md, "Inputs")."""

from collections.abc import Sequence

from bitcoin.core import CTransaction
from bitcoin.core.script import SIGVERSION_WITNESS_V0, CScript, SignatureHash
from bitcoin.core.serialize import Hash160
from btclib_secp256k1 import dsa

from ..errors import RemoteProtocolError
from . import schnorr
from .scripts import is_p2tr, is_p2wpkh
from .sighash import ALL, TxOut, signature_hash


def check_witness(tx: CTransaction, index: int, spent: Sequence[TxOut], witness: Sequence[bytes]) -> None:
    """Refuse a witness of input `index` that is not its key's signature over all of `tx`.

    `spent` are the outputs that `tx` spends. P2TR: one signature of 64 bytes, key path, hash type DEFAULT. P2WPKH:
    strict DER with low s and hash type ALL, then the key. So a lock is never larger than its fee was computed for, and
    consensus code accepts what passes. Raises `RemoteProtocolError` "bad_witness".
    """
    script = spent[index].script
    if is_p2tr(script):
        valid = len(witness) == 1 and schnorr.verify(script[2:], signature_hash(tx, index, spent), witness[0])
    elif is_p2wpkh(script):
        valid = len(witness) == 2 and _ecdsa(tx, index, spent[index], witness[0], witness[1])
    else:
        valid = False
    if not valid:
        raise RemoteProtocolError(
            "bad_witness", f"the witness of input {index} is not the signature of its key over the whole transaction"
        )


def _ecdsa(tx: CTransaction, index: int, spent: TxOut, signature: bytes, key: bytes) -> bool:
    key_hash = spent.script[2:]
    if len(key) != 33 or Hash160(key) != key_hash or signature[-1:] != bytes((ALL,)):
        return False
    code = CScript(b"\x76\xa9\x14" + key_hash + b"\x88\xac")  # BIP143: the script code of P2WPKH
    message = SignatureHash(code, tx, index, ALL, amount=spent.value, sigversion=SIGVERSION_WITNESS_V0)
    der = signature[:-1]
    try:
        # the library's parser is a little laxer than BIP66; it verifies low s only
        return dsa.serialize_der(dsa.parse_der(der)) == der and dsa.verify(message, key, der)
    except ValueError:
        return False

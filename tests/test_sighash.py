"""BIP341's signature hash, tweaks and trees against its published vectors; the shared hash against the whole one."""

import json
from typing import Any

import pytest
from bitcoin.core import CTransaction
from btclib_secp256k1 import xonly
from hypothesis import given
from hypothesis import strategies as st

from protocols.contract import schnorr
from protocols.contract.numbers import tagged_hash
from protocols.contract.scripts import branch_hash, is_p2tr, is_p2wpkh, leaf_hash, p2tr, tweak
from protocols.contract.sighash import ANYONE_CAN_PAY, SINGLE, LeafSpend, TxOut, signature_hash, string
from protocols.contract.transactions import unsigned

from .deals import digest
from .vectors import vector


def bip341() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(vector("bip341.json").read_text())
    return loaded


def test_bip341_signature_hashes_and_signatures() -> None:
    (case,) = bip341()["keyPathSpending"]
    tx = CTransaction.deserialize(bytes.fromhex(case["given"]["rawUnsignedTx"]))
    spent = [TxOut(each["amountSats"], bytes.fromhex(each["scriptPubKey"])) for each in case["given"]["utxosSpent"]]
    assert len(case["inputSpending"]) == 7
    for each in case["inputSpending"]:
        given, between = each["given"], each["intermediary"]
        message = signature_hash(tx, given["txinIndex"], spent, hash_type=given["hashType"])
        assert message.hex() == between["sigHash"]
        root = bytes.fromhex(given["merkleRoot"] or "")
        offset = tweak(bytes.fromhex(between["internalPubkey"]), root)
        assert offset.hex() == between["tweak"]
        secret = xonly.prvkey_tweak_add(bytes.fromhex(given["internalPrivkey"]), offset)
        assert secret.hex() == between["tweakedPrivkey"]
        suffix = bytes((given["hashType"],)) if given["hashType"] else b""
        assert schnorr.sign(secret, message, bytes(32)) + suffix == bytes.fromhex(each["expected"]["witness"][0])


def _root(tree: Any, leaves: list[str]) -> bytes:
    """The root of a tree as the vectors write it; collects its leaves' hashes."""
    if isinstance(tree, list):
        return branch_hash(*(_root(branch, leaves) for branch in tree))
    script, version = bytes.fromhex(tree["script"]), tree["leafVersion"]
    # one vector has a leaf of a version that we never use
    leaf = leaf_hash(script) if version == 0xC0 else tagged_hash("TapLeaf", bytes((version,)) + string(script))
    leaves.append(leaf.hex())
    return leaf


@pytest.mark.parametrize("number", range(7))
def test_bip341_trees_and_tweaks(number: int) -> None:
    case = bip341()["scriptPubKey"][number]
    leaves: list[str] = []
    tree, between = case["given"]["scriptTree"], case["intermediary"]
    root = _root(tree, leaves) if tree else b""
    assert root.hex() == (between["merkleRoot"] or "")
    assert leaves == between.get("leafHashes", [])
    internal = bytes.fromhex(case["given"]["internalPubkey"])
    assert tweak(internal, root).hex() == between["tweak"]
    key, _ = xonly.tweak_add(internal, tweak(internal, root))
    assert p2tr(key).hex() == case["expected"]["scriptPubKey"]


scripts = st.binary(max_size=300)
outputs = st.builds(TxOut, st.integers(0, 21 * 10**14), scripts)


@given(
    st.integers(0, 2**31 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    outputs,
    st.lists(outputs, min_size=1, max_size=4),
)
def test_the_shared_hash_is_the_whole_one(
    version: int, sequence: int, vout: int, spent: TxOut, paid: list[TxOut]
) -> None:
    txid, leaf = digest("txid"), digest("leaf")
    shared = LeafSpend(version=version, sequence=sequence, txid=txid, vout=vout, spent=spent, leaf_hash=leaf)
    tx = unsigned(version, [(txid, vout, sequence)], paid)
    assert shared.hash(paid) == signature_hash(tx, 0, [spent], leaf_hash=leaf)


def test_what_cannot_be_hashed_is_refused() -> None:
    spent = [TxOut(1_000, p2tr(digest(number))) for number in range(2)]
    tx = unsigned(2, [(digest("a"), 0, 0), (digest("b"), 0, 0)], [TxOut(500, p2tr(digest("out")))])
    for hash_type in (4, 0x80, 0x84, 255):
        with pytest.raises(ValueError, match="hash type"):
            signature_hash(tx, 0, spent, hash_type=hash_type)
    with pytest.raises(ValueError, match="1 of 2 spent outputs"):
        signature_hash(tx, 0, spent[:1])
    for hash_type in (SINGLE, SINGLE | ANYONE_CAN_PAY):
        signature_hash(tx, 0, spent, hash_type=hash_type)
        with pytest.raises(ValueError, match="no output of its own"):
            signature_hash(tx, 1, spent, hash_type=hash_type)


def test_scripts_are_told_apart() -> None:
    assert is_p2tr(p2tr(bytes(32)))
    assert is_p2wpkh(b"\x00\x14" + bytes(20))
    for other in (
        b"",
        b"\x00\x20" + bytes(32),
        b"\x52\x20" + bytes(32),
        b"\x51\x20" + bytes(31),
        b"\x00\x14" + bytes(21),
    ):
        assert not is_p2tr(other)
        assert not is_p2wpkh(other)

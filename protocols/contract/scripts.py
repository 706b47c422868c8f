"""The scripts of a contract, all taproot: the lock output, the commit output, the anchor.

Source: contract.md, "Transactions" and "Byte level"; BIP341 for leaves, trees and tweaks. x(·) is 32 bytes.
"""

from attrs import frozen
from btclib_secp256k1 import keys as curve
from btclib_secp256k1 import xonly

from .keys import Points, hash_scalar, key_agg, key_sort
from .numbers import tagged_hash
from .sighash import string
from .terms import Role

LEAF_VERSION = 0xC0
NUMS = bytes.fromhex("50929b74c1a04954b78b4b6035e97a5e078a5a0f28ec96d547bfee9ace803ac0")
"""BIP341's H: the x coordinate of a point whose discrete logarithm nobody knows."""
ANCHOR_SCRIPT = bytes.fromhex("51024e73")
"""Pay to anchor: anybody may spend it, to bump the fee of what it hangs on."""
ANCHOR_VALUE = 240
"""Satoshis; exactly the anchor's dust limit."""
OP_CHECKSIG, OP_CHECKSIGVERIFY = b"\xac", b"\xad"


def p2tr(key: bytes) -> bytes:
    """The script of a taproot output with this 32-byte output key."""
    return b"\x51\x20" + key


def is_p2tr(script: bytes) -> bool:
    return len(script) == 34 and script[:2] == b"\x51\x20"


def is_p2wpkh(script: bytes) -> bool:
    return len(script) == 22 and script[:2] == b"\x00\x14"


def leaf_hash(script: bytes) -> bytes:
    """BIP341's hash of a leaf of version c0."""
    return tagged_hash("TapLeaf", bytes((LEAF_VERSION,)) + string(script))


def branch_hash(one: bytes, other: bytes) -> bytes:
    """BIP341's hash of two branches or leaves, in either order."""
    return tagged_hash("TapBranch", min(one, other) + max(one, other))


def tweak(internal_key: bytes, root: bytes) -> bytes:
    """BIP341's tweak of a 32-byte internal key by a tree's root; `root` is empty when there is no tree."""
    return tagged_hash("TapTweak", internal_key + root)


@frozen
class Leaf:
    """A leaf and what proves that an output contains it."""

    script: bytes
    hash: bytes
    control: bytes
    """The control block of its spend."""

    def witness(self, first: bytes, second: bytes) -> tuple[bytes, ...]:
        """The witness with the signatures of the leaf's first and second key."""
        return second, first, self.script, self.control


@frozen
class LockOutput:
    script: bytes
    leaf: Leaf
    """Both fund keys."""
    internal_key: bytes
    """x of the aggregate of the fund keys: with it both spend by key path."""


@frozen
class CommitOutput:
    script: bytes
    leaf: Leaf
    """Both fund keys."""
    maker_punishes: Leaf
    """The maker's fund key, and the sum of the taker's publish and revoke keys."""
    taker_punishes: Leaf

    def punish(self, wronged: Role) -> Leaf:
        """The leaf open to the side whose peer published a revoked commit."""
        return self.maker_punishes if wronged is Role.MAKER else self.taker_punishes


def two_keys(first: bytes, second: bytes) -> bytes:
    """The leaf script `<first> OP_CHECKSIGVERIFY <second> OP_CHECKSIG` of two 32-byte keys."""
    return b"\x20" + first + OP_CHECKSIGVERIFY + b"\x20" + second + OP_CHECKSIG


def _taproot(internal_key: bytes, root: bytes) -> tuple[bytes, bytes]:
    """The output's script, and the beginning of its leaves' control blocks."""
    key, parity = xonly.tweak_add(internal_key, tweak(internal_key, root))
    return p2tr(key), bytes((LEAF_VERSION | parity,)) + internal_key


def lock_output(maker_fund: bytes, taker_fund: bytes) -> LockOutput:
    """The output that both margins go to, for two 33-byte fund points."""
    internal_key = key_agg(key_sort((maker_fund, taker_fund)))
    script = two_keys(maker_fund[1:], taker_fund[1:])
    root = leaf_hash(script)
    output, control = _taproot(internal_key, root)
    return LockOutput(output, Leaf(script, root, control), internal_key)


def commit_internal_key(contract_id: bytes, index: int) -> bytes:
    """x of NUMS + tagged_hash("cfd/nums", contract id ‖ index)·G: no key path, and no two outputs alike."""
    offset = hash_scalar("cfd/nums", contract_id + index.to_bytes(4, "big"))
    return curve.pubkey_tweak_add(b"\x02" + NUMS, offset)[1:]


def punish_key(cheat: Points) -> bytes:
    """x(publish + revoke) of the side that cheats: whoever knows both secrets signs for it.

    No proof of possession is needed: the cheat can complete the wronged side's single signature of that commit only
    with its publish secret, and a revocation counts only when its secret was checked.
    """
    return curve.pubkey_combine((cheat.publish, cheat.revoke))[1:]


def commit_output(contract_id: bytes, index: int, maker: Points, taker: Points) -> CommitOutput:
    """The commit transaction's first output: both keys at depth 1, the two punish leaves at depth 2."""
    both = two_keys(maker.fund[1:], taker.fund[1:])
    for_maker = two_keys(maker.fund[1:], punish_key(taker))
    for_taker = two_keys(taker.fund[1:], punish_key(maker))
    hashes = leaf_hash(both), leaf_hash(for_maker), leaf_hash(for_taker)
    punish_branch = branch_hash(hashes[1], hashes[2])
    script, control = _taproot(commit_internal_key(contract_id, index), branch_hash(hashes[0], punish_branch))
    return CommitOutput(
        script=script,
        leaf=Leaf(both, hashes[0], control + punish_branch),
        maker_punishes=Leaf(for_maker, hashes[1], control + hashes[2] + hashes[0]),
        taker_punishes=Leaf(for_taker, hashes[2], control + hashes[1] + hashes[0]),
    )

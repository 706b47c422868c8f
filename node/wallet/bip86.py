"""Keys of one BIP86 account, derived in Python over libsecp256k1: BIP32 paths m/86'/coin'/0'/chain/index, each key
tweaked by BIP341 with no script tree. Only private derivation; nothing here is constant-time beyond the library."""

import hmac
from collections.abc import Iterable

from attrs import field, frozen
from btclib_secp256k1 import keys, xonly

from node.networks import NETWORKS
from protocols.contract.scripts import p2tr, tweak

HARDENED = 0x80000000
RECEIVE, CHANGE = 0, 1
"""The two chains of an account: addresses that people are given, and scripts that transactions of ours pay to."""


@frozen
class ExtendedKey:
    """A private key of BIP32 with its chain code, 32 bytes each."""

    secret: bytes = field(repr=False)
    chain_code: bytes = field(repr=False)

    @classmethod
    def master(cls, seed: bytes) -> "ExtendedKey":
        """The root of the tree of a seed (16 to 64 bytes)."""
        return cls._split(hmac.digest(b"Bitcoin seed", seed, "sha512"))

    def child(self, index: int) -> "ExtendedKey":
        """CKDpriv; hardened from `HARDENED` on. Raises ValueError for the one index in 2¹²⁷ that has no key."""
        parent = b"\0" + self.secret if index >= HARDENED else keys.pubkey_from_prvkey(self.secret)
        derived = self._split(hmac.digest(self.chain_code, parent + index.to_bytes(4, "big"), "sha512"))
        return ExtendedKey(keys.prvkey_tweak_add(self.secret, derived.secret), derived.chain_code)

    def path(self, *indices: int) -> "ExtendedKey":
        """The descendant at the end of a path."""
        key = self
        for index in indices:
            key = key.child(index)
        return key

    @classmethod
    def _split(cls, digest: bytes) -> "ExtendedKey":
        return cls(digest[:32], digest[32:])


class Account:
    """Account 0 of BIP86: scripts and secrets by chain (`RECEIVE` or `CHANGE`) and index."""

    def __init__(self, seed: bytes, network: str) -> None:
        """`seed` is the 64 bytes of BIP39; `network`, one of `node.networks`, decides the coin type."""
        coin_type = NETWORKS[network].coin_type
        account = ExtendedKey.master(seed).path(86 | HARDENED, coin_type | HARDENED, 0 | HARDENED)
        self._chains = (account.child(RECEIVE), account.child(CHANGE))

    def secret(self, chain: int, index: int) -> bytes:
        """The tweaked secret that signs for the output at this place, 32 bytes."""
        internal = self._chains[chain].child(index).secret
        # no script tree, and the tweak proves that there is none
        return xonly.prvkey_tweak_add(internal, tweak(xonly.from_prvkey(internal)[0], b""))

    def script(self, chain: int, index: int) -> bytes:
        """The P2TR script at this place, 34 bytes."""
        internal = xonly.from_prvkey(self._chains[chain].child(index).secret)[0]
        return p2tr(xonly.tweak_add(internal, tweak(internal, b""))[0])

    def counts(self, scripts: Iterable[bytes], beyond: int) -> tuple[int, int]:
        """How many scripts of each chain must have been given out for `scripts` to be among them. The search ends
        `beyond` scripts past the last one found; what is not ours is passed over."""
        counts, wanted = [0, 0], set(scripts)
        for chain in (RECEIVE, CHANGE):
            index = 0
            while wanted and index < counts[chain] + beyond:
                script = self.script(chain, index)
                index += 1
                if script in wanted:
                    wanted.discard(script)
                    counts[chain] = index
        return counts[RECEIVE], counts[CHANGE]

"""A linked run of block headers, with the proof of work of each one checked.

This is what keeps an Electrum server from inventing confirmations cheaply. It is no full node: it sees work and
difficulty, not the blocks themselves; and on signet, whose blocks are signed, the work alone proves little.
No input and no output here.
"""

import hashlib
from collections.abc import Callable, Sequence

from attrs import frozen

SIZE = 80
PERIOD = 2016
"""Blocks between two changes of the difficulty."""
_TIMESPAN = PERIOD * 600


@frozen
class Network:
    """What a chain's headers must satisfy."""

    name: str
    genesis: bytes
    """Hash of the first block, internal byte order."""
    easiest_bits: int
    """The largest target allowed, in its compact form."""
    retargets: bool


def _network(name: str, genesis: str, easiest_bits: int, *, retargets: bool) -> Network:
    return Network(name, bytes.fromhex(genesis)[::-1], easiest_bits, retargets)


NETWORKS = {
    network.name: network
    for network in (
        _network(
            "bitcoin", "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f", 0x1D00FFFF, retargets=True
        ),
        _network(
            "signet", "00000008819873e925422c1ff0f99f7cc9bbb232af63a077a480a3633bee1ef6", 0x1E0377AE, retargets=True
        ),
        _network(
            "regtest", "0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206", 0x207FFFFF, retargets=False
        ),
    )
}


class BadHeader(Exception):
    """A header that breaks a rule; the text says which one and where."""


def header_hash(header: bytes) -> bytes:
    """The block's hash, internal byte order."""
    return hashlib.sha256(hashlib.sha256(header).digest()).digest()


def merkle_root(txid: bytes, branch: Sequence[bytes], position: int) -> bytes:
    """The root that a transaction at `position` of a block and its Merkle `branch` lead to (all internal order)."""
    node = txid
    for sibling in branch:
        pair = sibling + node if position & 1 else node + sibling
        node = header_hash(pair)
        position >>= 1
    return node


class Headers:
    """Headers of the heights `base` … `height`, without gap; empty at first (`height` = −1)."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._easiest = target(network.easiest_bits)
        self._raw = bytearray()
        self.base = 0

    @property
    def height(self) -> int:
        return self.base + len(self._raw) // SIZE - 1

    def header(self, height: int) -> bytes | None:
        """The 80 bytes at `height`, or None outside the run."""
        if not self.base <= height <= self.height:
            return None
        at = (height - self.base) * SIZE
        return bytes(self._raw[at : at + SIZE])

    def hash(self, height: int) -> bytes | None:
        header = self.header(height)
        return None if header is None else header_hash(header)

    def begin(self, height: int, raw: bytes) -> None:
        """Forget everything; hold `raw`, whose first header has `height`. Raises `BadHeader`."""
        self._check(height, raw, lambda _: None)
        self.base, self._raw = height, bytearray(raw)

    def prepend(self, raw: bytes) -> None:
        """Add the headers right below `base`. Raises `BadHeader`, also if the present run does not follow them."""
        first = self.header(self.base)
        assert first is not None
        base = self.base - len(raw) // SIZE
        self._check(base, raw + first, lambda _: None)
        self.base, self._raw = base, bytearray(raw) + self._raw

    def splice(self, height: int, raw: bytes) -> bool:
        """Let `raw` take the place of everything from `height` on. False, and nothing happens, if its first header
        does not follow ours at `height` − 1. Raises `BadHeader`."""
        before = self.hash(height - 1)
        if before is None or raw[4:36] != before:
            return False
        self._check(height, raw, self.header)
        del self._raw[(height - self.base) * SIZE :]
        self._raw += raw
        return True

    def _check(self, base: int, raw: bytes, known: Callable[[int], bytes | None]) -> None:
        if not raw or len(raw) % SIZE:
            raise BadHeader(f"the headers from height {base} are {len(raw)} bytes, not a multiple of {SIZE}")

        def at(height: int) -> bytes | None:
            start = (height - base) * SIZE
            return raw[start : start + SIZE] if start >= 0 else known(height)

        for height in range(base, base + len(raw) // SIZE):
            header, before = at(height), at(height - 1)
            assert header is not None
            block_hash = header_hash(header)
            if height == 0 and block_hash != self._network.genesis:
                raise BadHeader(f"the first block is not that of {self._network.name}")
            if before is not None and header[4:36] != header_hash(before):
                raise BadHeader(f"the header at height {height} does not follow the one before")
            bits = _bits(header)
            if not 0 < target(bits) <= self._easiest:
                raise BadHeader(f"the header at height {height} has the impossible target {bits:08x}")
            if int.from_bytes(block_hash, "little") > target(bits):
                raise BadHeader(f"the header at height {height} lacks its proof of work")
            if before is not None:
                self._check_bits(height, bits, before, at(height - PERIOD))

    def _check_bits(self, height: int, bits: int, before: bytes, first: bytes | None) -> None:
        """`before` is the header at height − 1, `first` the one at height − 2016 if we have it."""
        if not self._network.retargets or height % PERIOD:
            allowed = bits == _bits(before)
        elif first is not None:
            allowed = bits == next_bits(_bits(before), _time(before) - _time(first), self._easiest)
        else:  # without the period's first header only the bounds of a change are known
            hardest, easiest = (next_bits(_bits(before), span, self._easiest) for span in (0, 8 * _TIMESPAN))
            allowed = target(hardest) <= target(bits) <= target(easiest)
        if not allowed:
            raise BadHeader(f"the header at height {height} has the target {bits:08x} after {_bits(before):08x}")


def next_bits(bits: int, timespan: int, easiest: int) -> int:
    """The compact target after a period that began at `bits` and took `timespan` seconds; `easiest` is the largest
    target of the network."""
    timespan = min(max(timespan, _TIMESPAN // 4), _TIMESPAN * 4)
    return compact(min(target(bits) * timespan // _TIMESPAN, easiest))


def target(bits: int) -> int:
    """The number that `bits` writes compactly; 0, which no hash can satisfy, for a negative or oversized one."""
    exponent, mantissa = bits >> 24, bits & 0x7FFFFF
    number = mantissa << 8 * (exponent - 3) if exponent >= 3 else mantissa >> 8 * (3 - exponent)
    return 0 if bits & 0x800000 or number >= 2**256 else number


def compact(number: int) -> int:
    """A target in its compact form: the three highest bytes, rounded down."""
    size = (number.bit_length() + 7) // 8
    mantissa = number >> 8 * (size - 3) if size > 3 else number << 8 * (3 - size)
    if mantissa & 0x800000:  # this bit is a sign in the compact form
        mantissa, size = mantissa >> 8, size + 1
    return size << 24 | mantissa


def _bits(header: bytes) -> int:
    return int.from_bytes(header[72:76], "little")


def _time(header: bytes) -> int:
    return int.from_bytes(header[68:72], "little")

"""A linked run of block headers, with the proof of work of each one checked.

This is what keeps an Electrum server from inventing confirmations cheaply. It is no full node: it sees work and
difficulty, not the blocks themselves; and on signet, whose blocks are signed, the work alone proves little.
No input and no output here.
"""

import hashlib
from collections.abc import Callable, Sequence

from node.networks import Network

SIZE = 80
PERIOD = 2016
"""Blocks between two changes of the difficulty."""
_TIMESPAN = PERIOD * 600
_LATE = 20 * 60
_TIME_WARP = 600


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
        at = self._at(height)
        return bytes(self._raw[at : at + SIZE])

    def _at(self, height: int) -> int:
        return (height - self.base) * SIZE

    def hash(self, height: int) -> bytes | None:
        header = self.header(height)
        return None if header is None else header_hash(header)

    def work(self, first: int) -> int:
        """The expected number of hashes behind the headers from the height `first` on, as far as they are held."""
        heights = range(max(first, self.base), self.height + 1)
        return sum(2**256 // (target(_bits(bytes(self._raw[at : at + SIZE]))) + 1) for at in map(self._at, heights))

    def fork(self, other: "Headers") -> int | None:
        """The greatest height at which both hold the same header; None if they hold no header in common."""
        heights = range(min(self.height, other.height), max(self.base, other.base) - 1, -1)
        return next((height for height in heights if self.header(height) == other.header(height)), None)

    def lead(self, other: "Headers") -> int:
        """By how many blocks of the heavier chain's last difficulty this chain is ahead of `other`, by work; negative
        if it is behind. Chains without a common header are measured from the lowest height on that both show."""
        fork, lowest = self.fork(other), max(self.base, other.base)
        if fork is not None or lowest <= min(self.height, other.height):
            first = lowest if fork is None else fork + 1
            ahead = self.work(first) - other.work(first)
        else:
            shown = min(self.height - self.base, other.height - other.base)
            ahead = self.work(self.height - shown) - other.work(other.height - shown)
        heavier = self if ahead >= 0 else other
        unit = heavier.work(heavier.height)
        return (ahead + unit // 2) // unit if ahead >= 0 else -((-ahead + unit // 2) // unit)

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

        normal = self._normal_bits(base, at)
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
                self._check_bits(height, header, before, at(height - PERIOD), normal)
            if self._is_normal(height, bits):
                normal = bits

    def _is_normal(self, height: int, bits: int) -> bool:
        """Whether a block surely has its period's target, not one that BIP94 grants because it is late."""
        return not self._network.bip94 or height % PERIOD == 0 or bits != self._network.easiest_bits

    def _normal_bits(self, base: int, at: Callable[[int], bytes | None]) -> int | None:
        """The target of the period that the block below `base` is in; None when no header that we have shows it."""
        for height in range(base - 1, base - 1 - PERIOD, -1):
            if (header := at(height)) is None:
                break
            if self._is_normal(height, _bits(header)):
                return _bits(header)
        return None

    def _check_bits(self, height: int, header: bytes, before: bytes, first: bytes | None, normal: int | None) -> None:
        """`before` is the header at height − 1, `first` the one at height − 2016 if we have it; `normal` is the target
        of the period that `before` is in, if known."""
        bits, network = _bits(header), self._network
        if network.bip94 and height % PERIOD == 0 and header_time(header) < header_time(before) - _TIME_WARP:
            raise BadHeader(f"the header at height {height} begins a period before the last one has ended")
        if network.bip94 and height % PERIOD and header_time(header) > header_time(before) + _LATE:
            allowed = bits == network.easiest_bits
        elif normal is None:
            allowed = True
        elif not network.retargets or height % PERIOD:
            allowed = bits == normal
        elif first is not None:
            allowed = bits == next_bits(_bits(first), header_time(before) - header_time(first), self._easiest)
        else:  # without the period's first header only the bounds of a change are known
            hardest, easiest = (next_bits(normal, span, self._easiest) for span in (0, 8 * _TIMESPAN))
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


def header_time(header: bytes) -> int:
    """What a block says of its own time: seconds since 1970, up to two hours off."""
    return int.from_bytes(header[68:72], "little")

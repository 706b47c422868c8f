"""Headers: linked, with work, at a difficulty that follows the rules."""

import struct
from collections.abc import Callable

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from node.chain.headers import (
    PERIOD,
    SIZE,
    BadHeader,
    Headers,
    compact,
    header_hash,
    merkle_root,
    next_bits,
    target,
)
from node.networks import NETWORKS

EASY = 0x207FFFFF
REGTEST = NETWORKS["regtest"]
STRICT = evolve(REGTEST, retargets=True)
"""Easy, and yet it changes its difficulty."""


def ground(before: bytes, time: int, bits: int = EASY, *, root: bytes = bytes(32)) -> bytes:
    start = struct.pack("<i", 4) + before + root + struct.pack("<II", time, bits)
    nonce = 0
    while int.from_bytes(header_hash(start + struct.pack("<I", nonce)), "little") > target(bits):
        nonce += 1
    return start + struct.pack("<I", nonce)


def run(count: int, before: bytes = bytes(32), bits: int = EASY, *, start: int = 0, spacing: int = 600) -> bytes:
    raw = b""
    for index in range(count):
        header = ground(before, start + index * spacing, bits)
        raw, before = raw + header, header_hash(header)
    return raw


def last(raw: bytes) -> bytes:
    return header_hash(raw[-SIZE:])


@pytest.fixture
def headers() -> Headers:
    headers = Headers(REGTEST)
    headers.begin(100, run(10))
    return headers


def test_a_run_has_its_heights(headers: Headers) -> None:
    raw = run(10)
    assert (headers.base, headers.height) == (100, 109)
    assert [headers.header(height) for height in (99, 100, 109, 110)] == [None, raw[:SIZE], raw[-SIZE:], None]
    assert headers.hash(100) == raw[SIZE + 4 : SIZE + 36]
    assert headers.hash(110) is None


def test_a_splice_extends_and_reorganises(headers: Headers) -> None:
    top = headers.hash(109)
    assert top is not None
    assert headers.splice(110, run(2, top))
    assert headers.height == 111
    fork = headers.hash(104)
    assert fork is not None
    other = run(3, fork, start=9)
    assert headers.splice(105, other)
    assert (headers.height, headers.hash(107)) == (107, last(other))
    assert headers.hash(104) == fork


def test_a_splice_that_has_no_place_changes_nothing(headers: Headers) -> None:
    raw = run(1, bytes(31) + b"\1")
    for height in (99, 100, 105, 110, 111, 200):
        assert not headers.splice(height, raw)
    assert not headers.splice(110, b"")
    assert headers.height == 109


def test_older_headers_come_in_below() -> None:
    raw = run(20)
    headers = Headers(REGTEST)
    headers.begin(112, raw[12 * SIZE :])
    headers.prepend(raw[5 * SIZE : 12 * SIZE])
    assert (headers.base, headers.height, headers.header(105)) == (105, 119, raw[5 * SIZE : 6 * SIZE])
    with pytest.raises(BadHeader, match="does not follow"):
        headers.prepend(run(5, start=1))
    assert headers.base == 105


def _lazy(raw: bytearray) -> None:
    while int.from_bytes(header_hash(bytes(raw[-SIZE:])), "little") <= target(EASY):
        raw[-1] ^= 1
        raw[-2] += 1


def _broken_link(raw: bytearray) -> None:
    raw[-SIZE:] = ground(bytes(32), 0)


def _other_bits(raw: bytearray) -> None:
    before = bytes(raw[-SIZE + 4 : -SIZE + 36])
    raw[-SIZE:] = ground(before, 0, 0x207FFFFE)


def _impossible_bits(raw: bytearray) -> None:
    raw[-5] |= 0x80


def _cut(raw: bytearray) -> None:
    del raw[-1]


def _empty(raw: bytearray) -> None:
    raw.clear()


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_lazy, "lacks its proof of work"),
        (_broken_link, "does not follow the one before"),
        (_other_bits, "has the target 207ffffe after 207fffff"),
        (_impossible_bits, "impossible target"),
        (_cut, "not a multiple of 80"),
        (_empty, "not a multiple of 80"),
    ],
)
def test_what_breaks_a_rule_is_refused(harm: Callable[[bytearray], None], words: str) -> None:
    raw = bytearray(run(5))
    harm(raw)
    headers = Headers(REGTEST)
    with pytest.raises(BadHeader, match=words):
        headers.begin(7, bytes(raw))
    assert headers.height == -1


def test_the_first_block_is_the_networks() -> None:
    with pytest.raises(BadHeader, match="first block is not that of regtest"):
        Headers(REGTEST).begin(0, run(1))


@pytest.mark.parametrize(
    ("bits", "timespan", "after"),
    [
        # Bitcoin's first change of difficulty, at height 32 256; then the limits: the easiest, a quarter, four times
        (0x1D00FFFF, 1262152739 - 1261130161, 0x1D00D86A),
        (0x1D00FFFF, 1233061996 - 1231006505, 0x1D00FFFF),
        (0x1C05A3F4, 1279297671 - 1279008237, 0x1C0168FD),
        (0x1C387F6F, 1269211443 - 1263163443, 0x1D00E1FD),
    ],
)
def test_the_difficulty_changes_as_bitcoins_did(bits: int, timespan: int, after: int) -> None:
    assert next_bits(bits, timespan, target(NETWORKS["mainnet"].easiest_bits)) == after


HARDER = next_bits(EASY, (PERIOD - 1) * 300, target(EASY))


@pytest.fixture(scope="module")
def period() -> bytes:
    return run(PERIOD, spacing=300)


def test_a_new_period_takes_the_target_that_follows(period: bytes) -> None:
    """A chain may change its target at a multiple of 2016 only, and only to the one that the times give."""
    headers = Headers(STRICT)
    headers.begin(PERIOD, period)
    for bits in (EASY, HARDER + 1):
        with pytest.raises(BadHeader, match="has the target"):
            headers.splice(2 * PERIOD, ground(last(period), 0, bits))
    assert headers.splice(2 * PERIOD, ground(last(period), 0, HARDER))
    with pytest.raises(BadHeader, match="has the target"):
        headers.splice(2 * PERIOD - 1, ground(period[-SIZE + 4 : -SIZE + 36], 0, HARDER))


def test_without_the_periods_beginning_a_change_has_bounds(period: bytes) -> None:
    headers = Headers(STRICT)
    headers.begin(2 * PERIOD - 10, period[-10 * SIZE :])
    too_hard = compact(target(EASY) // 4) - 1
    with pytest.raises(BadHeader, match="has the target"):
        headers.splice(2 * PERIOD, ground(last(period), 0, too_hard))
    assert headers.splice(2 * PERIOD, ground(last(period), 0, too_hard + 1))


@given(st.integers(1, 2**256 - 1))
def test_the_compact_form_rounds_down_in_its_last_byte(number: int) -> None:
    bits = compact(number)
    assert bits == compact(target(bits))
    assert target(bits) <= number < target(bits) + (1 << max(0, number.bit_length() - 15))


@given(st.integers(0, 2**32 - 1))
def test_every_compact_form_has_a_target_within_256_bits(bits: int) -> None:
    assert 0 <= target(bits) < 2**256


@given(st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=20), st.data())
def test_a_merkle_branch_leads_to_the_root(txids: list[bytes], data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(txids) - 1))
    branch, row, index = [], txids, position
    while len(row) > 1:
        row = row + row[-1:] * (len(row) % 2)
        branch.append(row[index ^ 1])
        row = [header_hash(a + b) for a, b in zip(row[::2], row[1::2], strict=True)]
        index //= 2
    assert merkle_root(txids[position], branch, position) == row[0]

"""Which coins are sent, and at what fee; tables that are no formulas; the list of makers."""

from pathlib import Path
from typing import Literal

import pytest
from bitcoin.core import CTransaction
from hypothesis import assume, given
from hypothesis import strategies as st

from node import files
from node.errors import FieldError
from node.makers import Changes, keep_changes, read_changes
from node.network.address import PeerAddress
from node.sending import DUST, SEQUENCE, VERSION, choose
from node.wallet.selection import InsufficientFunds
from node.web.tables import cell, history_table
from protocols.contract.funding import FundingInput
from protocols.contract.scripts import p2tr
from protocols.contract.sighash import TxOut
from protocols.contract.transactions import completed, unsigned, vsize
from protocols.errors import LocalError

OURS = p2tr(bytes(32))
P2WPKH = bytes.fromhex("0014" + "11" * 20)


def coins(*values: int) -> list[FundingInput]:
    return [FundingInput(index.to_bytes(32, "big"), 0, value, OURS) for index, value in enumerate(values)]


@given(
    st.lists(st.integers(600, 10**9), min_size=1, max_size=12),
    st.integers(DUST, 10**9) | st.just("all"),
    st.integers(1, 300),
    st.sampled_from([0, 20_000]),
    st.sampled_from([OURS, P2WPKH]),
)
def test_what_is_sent_adds_up_and_pays_the_rate(
    values: list[int], amount: int | Literal["all"], rate: int, kept: int, script: bytes
) -> None:
    try:
        sending = choose(coins(*values), script, amount, rate, kept)
    except (InsufficientFunds, LocalError):
        assume(False)
    have = sum(coin.value for coin in sending.inputs)
    assert sending.amount + sending.fee + sending.change == have
    assert sending.amount >= DUST
    assert amount in ("all", sending.amount)
    assert sending.change == 0 or sending.change >= DUST
    assert sum(values) - sending.amount - sending.fee >= kept
    outputs = [TxOut(sending.amount, script)] + ([TxOut(sending.change, OURS)] if sending.change else [])
    tx = unsigned(VERSION, [(coin.txid, coin.vout, SEQUENCE) for coin in sending.inputs], outputs)
    size = vsize(CTransaction.deserialize(completed(tx, [(bytes(64),) for _ in sending.inputs])))
    assert rate * size - rate <= sending.fee <= rate * size + rate + DUST + 43 * rate


def test_what_cannot_be_sent() -> None:
    with pytest.raises(InsufficientFunds):
        choose(coins(1000), OURS, 1000, 1)
    with pytest.raises(InsufficientFunds):
        choose([], OURS, "all", 1)
    with pytest.raises(FieldError, match="amount_sat"):
        choose(coins(10_000), OURS, DUST - 1, 1)
    with pytest.raises(LocalError, match="keeps 20000 sat"):
        choose(coins(100_000), OURS, 90_000, 1, kept=20_000)
    assert choose(coins(100_000), OURS, "all", 1, kept=20_000).change == 20_000


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+1 or so", "'+1 or so"),
        ("-1+cmd", "'-1+cmd"),
        ("\t=1", "'\t=1"),
        (-5, "-5"),
        ("-0.25", "-0.25"),
        (None, ""),
        ("plain", "plain"),
    ],
)
def test_no_cell_is_a_formula(value: object, shown: str) -> None:
    assert cell(value) == shown


def test_a_table_has_a_line_for_each_position() -> None:
    view = {
        "order_id": "ab",
        "symbol": "BTCUSD",
        "margin": 1000,
        "placed_at": 0.5,
        "paid": {"kind": "close", "payout": 900, "txid": "cd"},
        "refusal": {"code": "x", "sentence": '=HYPERLINK("a,b")'},
    }
    first, line = history_table([view]).splitlines()
    assert first.startswith("order_id,symbol,")
    assert line == 'ab,BTCUSD,,,,,1970-01-01 00:00:00,,,1000,close,900,-100,cd,,"\'=HYPERLINK(""a,b"")"'


def test_makers_that_were_added_or_taken_away_are_kept(tmp_path: Path) -> None:
    one, other, moved = (f"{name * 31}3f@127.0.0.1:{port}" for name, port in (("11", 1), ("22", 2), ("11", 3)))
    assert read_changes(tmp_path) == Changes({})
    changes = Changes({}).with_maker(PeerAddress.parse(other)).without(PeerAddress.parse(one).peer)
    keep_changes(tmp_path, changes)
    assert [str(each) for (each,) in read_changes(tmp_path).apply((one,)).values()] == [other]
    again = read_changes(tmp_path).with_maker(PeerAddress.parse(moved))
    assert [[str(each) for each in addresses] for addresses in again.apply((one,)).values()] == [[other], [moved, one]]
    for damaged in ("", "[]", '{"added": {"x": "y"}, "removed": []}'):
        files.makers_file(tmp_path).write_text(damaged)
        assert read_changes(tmp_path) == Changes({})

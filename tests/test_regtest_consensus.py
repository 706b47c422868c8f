"""The embedded chain: what the kernel accepts, why it refuses, reorganisations, reopening."""

import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from bitcoin.core import CBlock, CMutableTransaction, CMutableTxIn, CMutableTxOut, COutPoint, CTransaction
from bitcoin.core.script import CScript

from node.regtest.consensus import (
    ANYONE,
    GENESIS,
    BlockChange,
    BlockRejected,
    Chain,
    ScriptRefused,
    check_scripts,
    subsidy,
)
from protocols.contract.sighash import TxOut
from protocols.errors import LocalError, WorldError

ROOT = Path(__file__).parent.parent
NEVER = b"\x00"


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Chain]:
    with Chain(tmp_path / "chain") as chain:
        yield chain


def coinbase(chain: Chain, height: int) -> CTransaction:
    transaction: CTransaction = CBlock.deserialize(chain.block(height)).vtx[0]
    return transaction


def spend(
    parent: CTransaction, value: int, *, script: bytes = ANYONE, sequence: int = 0xFFFFFFFF, version: int = 2
) -> CTransaction:
    transaction = CMutableTransaction(
        [CMutableTxIn(COutPoint(parent.GetTxid(), 0), nSequence=sequence)],
        [CMutableTxOut(value, CScript(script))],
    )
    transaction.nVersion = version
    return CTransaction.from_tx(transaction)


def test_starts_with_the_genesis_block(chain: Chain) -> None:
    assert (chain.height, chain.tip) == (0, GENESIS)
    assert chain.height_of(GENESIS) == 0


def test_mined_blocks_can_be_read_back(chain: Chain) -> None:
    chain.mine_many(20)
    first = chain.mine(script=b"\x52")
    assert (chain.height, chain.tip, chain.height_of(first)) == (21, first, 21)
    assert chain.block(21)[:80] == chain.header(21)
    assert coinbase(chain, 21).vout[0].scriptPubKey == b"\x52"
    assert coinbase(chain, 21).vout[0].nValue == subsidy(21) == 50 * 10**8
    with pytest.raises(IndexError):
        chain.block(22)
    with pytest.raises(IndexError):
        chain.header(-1)
    assert chain.height_of(bytes(32)) is None


def test_the_subsidy_halves_every_150_blocks(chain: Chain) -> None:
    chain.mine_many(151)
    assert coinbase(chain, 149).vout[0].nValue == 50 * 10**8
    assert coinbase(chain, 150).vout[0].nValue == 25 * 10**8
    assert subsidy(150 * 64) == 0


def test_a_coinbase_matures_after_a_hundred_blocks(chain: Chain) -> None:
    chain.mine_many(99)
    payment = spend(coinbase(chain, 1), 10**8)
    with pytest.raises(BlockRejected, match="bad-txns-premature-spend-of-coinbase"):
        chain.mine([payment])
    assert chain.height == 99
    chain.mine()
    block = chain.mine([payment.serialize()])
    assert chain.height_of(block) == 101


def test_refusals_carry_the_reasons_of_bitcoin_core(chain: Chain) -> None:
    chain.mine_many(110)
    parent = coinbase(chain, 1)
    with pytest.raises(BlockRejected, match="bad-txns-in-belowout"):
        chain.mine([spend(parent, 51 * 10**8)])
    with pytest.raises(BlockRejected, match="bad-txns-inputs-missingorspent"):
        chain.mine([spend(parent, 10**8), spend(parent, 2 * 10**8)])
    # mined at height 2, so a relative lock of 110 blocks is over in block 112
    with pytest.raises(BlockRejected, match="bad-txns-nonfinal"):
        chain.mine([spend(coinbase(chain, 2), 10**8, sequence=110)])
    stuck = spend(parent, 10**8, script=NEVER)
    chain.mine([stuck])
    with pytest.raises(BlockRejected, match="script"):
        chain.mine([spend(stuck, 10**7)])
    chain.mine([spend(coinbase(chain, 2), 10**8, sequence=110)])
    with pytest.raises(BlockRejected, match="time-too-old"):
        chain.mine(time=chain.median_time())
    with pytest.raises(BlockRejected, match="time-too-new"):
        chain.mine(time=chain.median_time() + 3 * 3600)
    with pytest.raises(BlockRejected, match="decode"):
        chain.submit(b"no block")
    with pytest.raises(LocalError, match="does not know"):
        chain.build(parent=bytes(32))
    assert chain.height == 112


def test_a_longer_branch_replaces_the_tip_and_listeners_hear_of_it(chain: Chain) -> None:
    heard: list[tuple[bool, int]] = []

    def listen(changes: Sequence[BlockChange]) -> None:
        heard.extend((change.connected, change.height) for change in changes)
        assert all(change.transactions() for change in changes)

    chain.listeners.append(listen)
    chain.mine_many(5)
    assert heard == [(True, height) for height in range(1, 6)]
    heard.clear()
    fork = chain.block_hash(4)
    one = chain.submit(chain.build(parent=fork))
    assert (heard, chain.height_of(one)) == ([], None)
    two = chain.submit(chain.build(parent=one))
    assert heard == [(False, 5), (True, 5), (True, 6)]
    assert (chain.height_of(one), chain.height_of(two)) == (5, 6)


def test_survives_being_closed_and_lets_nobody_else_in(tmp_path: Path) -> None:
    with Chain(tmp_path) as chain:
        chain.mine_many(12)
        tip = chain.tip
        with pytest.raises(WorldError, match="already held by process"):
            Chain(tmp_path)
    with Chain(tmp_path) as chain:
        assert (chain.height, chain.tip) == (12, tip)
        assert [change.height for change in chain.blocks()] == list(range(1, 13))
        chain.mine()


def test_survives_being_killed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from node.regtest.consensus import Chain; "
        "chain = Chain(Path(sys.argv[1])); chain.mine_many(5); print(chain.tip.hex(), flush=True); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    for height in (5, 10):
        killed = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=False, cwd=ROOT
        )
        assert killed.returncode == -signal.SIGKILL
        tip = bytes.fromhex(killed.stdout)
        # as if it was killed in the middle of writing, too
        with (tmp_path / "journal").open("ab") as journal:
            journal.write(b"\xff\x00\x00\x00half")
        with Chain(tmp_path) as chain:
            assert (chain.height, chain.tip) == (height, tip)


def test_scripts_run_outside_a_block(chain: Chain) -> None:
    parent = CTransaction([], [])
    free = spend(parent, 1)
    check_scripts(free.serialize(), [TxOut(5, ANYONE)])
    with pytest.raises(ScriptRefused) as refused:
        check_scripts(free.serialize(), [TxOut(5, NEVER)])
    assert refused.value.index == 0
    with pytest.raises(ValueError, match="0 spent outputs for 1 inputs"):
        check_scripts(free.serialize(), [])

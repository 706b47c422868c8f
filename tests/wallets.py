"""A world for wallets: a regtest chain judged by Bitcoin Core's consensus code, a mempool, an Electrum server."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import trio
from attrs import frozen
from bitcoin.core import (
    CMutableTransaction,
    CMutableTxIn,
    CMutableTxOut,
    COutPoint,
    CTransaction,
    CTxInWitness,
    CTxWitness,
)
from bitcoin.core.script import CScript, CScriptWitness
from btclib_secp256k1.keys import pubkey_from_prvkey

from node.regtest.consensus import ANYONE, COINBASE_MATURITY, Chain
from node.regtest.electrum_methods import Methods
from node.regtest.electrum_server import ElectrumServer
from node.regtest.index import Index, script_hash
from node.regtest.mempool import Mempool
from node.wallet.address import to_script
from node.wallet.interface import Funding, Wallet
from protocols.contract import schnorr
from protocols.contract.funding import OutPoint
from protocols.contract.scripts import p2tr
from protocols.contract.sighash import TxOut, signature_hash

MINER = (1).to_bytes(32, "big")
MINERS = p2tr(pubkey_from_prvkey(MINER)[1:])
"""The script of whoever mines, the world's source of money."""


@frozen
class Tip:
    height: int
    hash: bytes


class World:
    """A regtest chain with a mempool, and money to pay with. The pure wallet may ask it about the chain."""

    def __init__(self, datadir: Path) -> None:
        self.chain = Chain(datadir)
        self.index = Index(self.chain)
        self.mempool = Mempool(self.chain, self.index)
        self.chain.mine_many(COINBASE_MATURITY + 20, script=MINERS)
        self.electrum = ""
        self._coinbases = iter(self.chain.blocks())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.chain.close()

    # What the pure wallet asks.

    @property
    def tip(self) -> Tip:
        return Tip(self.chain.height, self.chain.tip)

    async def history(self, script: bytes) -> Sequence[tuple[bytes, int]]:
        key = script_hash(script)
        confirmed = [(each.txid, each.height) for each in self.index.history(key)]
        return confirmed + [(each.txid, 0) for each in self.mempool.history(key)]

    async def transaction(self, txid: bytes) -> bytes:
        waiting = self.mempool.entries.get(txid)
        return waiting.raw if waiting else self.index.transactions[txid].raw

    # What a test does.

    async def serve(self, nursery: trio.Nursery) -> str:
        """An Electrum server over this chain; returns its ``host:port``, which is `electrum` from then on."""
        server = ElectrumServer(Methods(self.chain, self.index, self.mempool), self.mempool)
        self.electrum = f"127.0.0.1:{await nursery.start(server.run)}"
        return self.electrum

    async def lose_mempool(self, nursery: trio.Nursery) -> None:
        """The server restarts without its mempool."""
        self.mempool = Mempool(self.chain, self.index)
        await self.serve(nursery)

    def coin(self) -> tuple[OutPoint, int]:
        """The outpoint and value of another coin of the miner's, mature."""
        coinbase = next(self._coinbases).transactions()[0]
        return OutPoint(coinbase.GetTxid(), 0), coinbase.vout[0].nValue

    def payment(self, *outputs: tuple[bytes, int], coin: tuple[OutPoint, int] | None = None, fee: int = 5_000) -> bytes:
        """A transaction of the miner's that pays to scripts; the rest of its coin comes back to the miner."""
        outpoint, value = coin or self.coin()
        rest = value - sum(value for _, value in outputs) - fee
        return with_witnesses(spend([outpoint], *outputs, (MINERS, rest)), [TxOut(value, MINERS)], {})

    def send(self, raw: bytes) -> bytes:
        """Put a transaction into the mempool; returns its id."""
        return self.mempool.submit(raw)

    def mine(self, blocks: int = 1, script: bytes = ANYONE) -> None:
        for _ in range(blocks):
            self.chain.mine(self.mempool.block_template(), script=script)

    def pay(self, *outputs: tuple[bytes, int]) -> bytes:
        """A confirmed payment; returns its id."""
        txid = self.send(self.payment(*outputs))
        self.mine()
        return txid


def spend(outpoints: Sequence[OutPoint], *outputs: tuple[bytes, int]) -> bytes:
    """An unsigned transaction."""
    inputs = [CMutableTxIn(COutPoint(*outpoint), nSequence=0xFFFFFFFD) for outpoint in outpoints]
    tx = CMutableTransaction(inputs, [CMutableTxOut(value, CScript(script)) for script, value in outputs], nVersion=2)
    raw: bytes = tx.serialize()
    return raw


def with_witnesses(unsigned: bytes, spent: Sequence[TxOut], witnesses: Mapping[int, tuple[bytes, ...]]) -> bytes:
    """The transaction with these witnesses, and the miner's for its own inputs."""
    tx = CTransaction.deserialize(unsigned)
    miners = {
        index: (schnorr.sign(MINER, signature_hash(tx, index, spent)),)
        for index, output in enumerate(spent)
        if output.script == MINERS
    }
    stacks = [(miners | dict(witnesses)).get(index, ()) for index in range(len(spent))]
    wit = CTxWitness([CTxInWitness(CScriptWitness(list(stack))) for stack in stacks])
    raw: bytes = CTransaction(tx.vin, tx.vout, tx.nLockTime, tx.nVersion, wit).serialize()
    return raw


async def script_of(wallet: Wallet) -> bytes:
    return to_script(await wallet.new_address(), "regtest")


async def signed(wallet: Wallet, funding: Funding, *outputs: tuple[bytes, int]) -> bytes:
    """A transaction of that wallet alone."""
    unsigned = spend([coin.outpoint for coin in funding.inputs], *outputs)
    spent = [TxOut(coin.value, coin.script) for coin in funding.inputs]
    return with_witnesses(unsigned, spent, await wallet.sign(unsigned, spent))

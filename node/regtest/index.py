"""What the kernel does not answer: unspent coins, spenders, transactions by id, history by script.

Held in memory, built from the chain's blocks when opened and kept up to date by its listeners.
"""

from collections.abc import Sequence
from hashlib import sha256

from attrs import field, frozen
from bitcoin.core import CTransaction

from node.regtest.consensus import BlockChange, Chain
from node.regtest.policy import is_unspendable
from protocols.contract.funding import OutPoint
from protocols.contract.sighash import TxOut
from protocols.contract.transactions import outpoints


@frozen
class Coin:
    """An unspent output: its value and script, the height that it confirmed at, and whether it was mined."""

    output: TxOut
    height: int
    coinbase: bool


@frozen
class Confirmed:
    """A transaction in the active chain."""

    txid: bytes
    raw: bytes = field(repr=False)
    height: int
    position: int
    """Index in its block."""


def script_hash(script: bytes) -> bytes:
    """SHA-256 of a script, by which history is kept; the Electrum protocol writes it reversed, in hex."""
    return sha256(script).digest()


def outputs(transaction: CTransaction) -> list[TxOut]:
    return [TxOut(txout.nValue, bytes(txout.scriptPubKey)) for txout in transaction.vout]


class Index:
    """Views of the active chain; read the attributes, never write them."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self.transactions: dict[bytes, Confirmed] = {}
        self.coins: dict[OutPoint, Coin] = {}
        self.spenders: dict[OutPoint, bytes] = {}
        """The confirmed transaction that spent an output."""
        self.blocks: list[list[bytes]] = [[]]
        """The transaction ids of each block by height; the genesis block's are left out, as nobody can spend them."""
        self._outputs: dict[OutPoint, Coin] = {}
        self._history: dict[bytes, dict[bytes, None]] = {}
        self._unspent: dict[bytes, dict[OutPoint, Coin]] = {}
        for block in chain.blocks():
            self._connect(block)
        chain.listeners.append(self._follow)

    def history(self, script: bytes) -> list[Confirmed]:
        """The confirmed transactions that pay to or spend from a script hash, in the order of the chain."""
        return [self.transactions[txid] for txid in self._history.get(script, ())]

    def unspent(self, script: bytes) -> dict[OutPoint, Coin]:
        """The confirmed coins that a script hash holds (a copy)."""
        return dict(self._unspent.get(script, ()))

    def output(self, outpoint: OutPoint) -> TxOut | None:
        """A confirmed output, spent or not."""
        coin = self._outputs.get(outpoint)
        return None if coin is None else coin.output

    def _follow(self, changes: Sequence[BlockChange]) -> None:
        for change in changes:
            if change.connected:
                self._connect(change)
            else:
                self._disconnect(change)

    def _connect(self, block: BlockChange) -> None:
        txids = []
        for position, transaction in enumerate(block.transactions()):
            txid: bytes = transaction.GetTxid()
            txids.append(txid)
            self.transactions[txid] = Confirmed(txid, transaction.serialize(), block.height, position)
            if position:
                for spent in outpoints(transaction):
                    self._touch(self._take(spent).output.script, txid)
                    self.spenders[spent] = txid
            for vout, output in enumerate(outputs(transaction)):
                outpoint = OutPoint(txid, vout)
                self._outputs[outpoint] = Coin(output, block.height, coinbase=position == 0)
                if not is_unspendable(output.script):
                    self._put(outpoint)
                self._touch(output.script, txid)
        self.blocks.append(txids)

    def _disconnect(self, block: BlockChange) -> None:
        for position, transaction in reversed(list(enumerate(block.transactions()))):
            txid: bytes = transaction.GetTxid()
            for vout, output in enumerate(outputs(transaction)):
                if not is_unspendable(output.script):
                    self._take(OutPoint(txid, vout))
                del self._outputs[OutPoint(txid, vout)]
                self._forget(output.script, txid)
            if position:
                for spent in outpoints(transaction):
                    self._put(spent)
                    self._forget(self._outputs[spent].output.script, txid)
                    del self.spenders[spent]
            del self.transactions[txid]
        self.blocks.pop()

    def _put(self, outpoint: OutPoint) -> None:
        coin = self.coins[outpoint] = self._outputs[outpoint]
        self._unspent.setdefault(script_hash(coin.output.script), {})[outpoint] = coin

    def _take(self, outpoint: OutPoint) -> Coin:
        coin = self.coins.pop(outpoint)
        del self._unspent[script_hash(coin.output.script)][outpoint]
        return coin

    def _touch(self, script: bytes, txid: bytes) -> None:
        self._history.setdefault(script_hash(script), {})[txid] = None

    def _forget(self, script: bytes, txid: bytes) -> None:
        self._history[script_hash(script)].pop(txid, None)

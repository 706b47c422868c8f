"""The world's own coins: it mines to one taproot key, and pays anyone who asks."""

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
from btclib_secp256k1 import xonly

from node.regtest import policy
from node.regtest.consensus import COINBASE_MATURITY, Chain
from node.regtest.index import Coin, script_hash
from node.regtest.mempool import Mempool
from protocols.contract import schnorr
from protocols.contract.funding import OutPoint
from protocols.contract.numbers import tagged_hash
from protocols.contract.scripts import p2tr
from protocols.contract.sighash import signature_hash
from protocols.errors import LocalError

FEE_RATE = 3
"""Satoshis per virtual byte of its own payments, unless blocks ask for more."""
_INPUT = 58
"""Virtual bytes of a taproot input, rounded up."""


class Treasury:
    """Spends what was mined to `script`. The key is no secret: whoever reads this may have the world's coins."""

    def __init__(self, chain: Chain, mempool: Mempool) -> None:
        self._chain = chain
        self._mempool = mempool
        self.fee_rate = FEE_RATE
        self._secret = tagged_hash("cfd/regtest-treasury", b"")
        self.script = p2tr(xonly.from_prvkey(self._secret)[0])

    @property
    def coins(self) -> dict[OutPoint, Coin]:
        """What can be spent now: mature and unspent, own unconfirmed change last."""
        height = self._chain.height + 1
        found = {
            outpoint: coin
            for outpoint, coin in self._mempool.unspent(script_hash(self.script)).items()
            if not coin.coinbase or height - coin.height >= COINBASE_MATURITY
        }
        return dict(sorted(found.items(), key=lambda item: (item[1].height == 0, -item[1].output.value)))

    def pay(self, script: bytes, amount: int) -> bytes:
        """Send that many satoshis to a script and return the transaction's id; the next block confirms it.

        Raises `LocalError`: ``dust`` below the script's dust limit, ``no_funds`` when too little is mature.
        """
        if amount < policy.dust_limit(script):
            raise LocalError("dust", f"amount_sat is {amount}, allowed is {policy.dust_limit(script)} or more")
        chosen: dict[OutPoint, Coin] = {}
        # version, counts, lock time, marker and both outputs
        fee = self.fee_rate * (11 + 9 + len(script) + 43)
        total = 0
        for outpoint, coin in self.coins.items():
            chosen[outpoint] = coin
            total += coin.output.value
            fee += self.fee_rate * _INPUT
            if total >= amount + fee:
                break
        else:
            raise LocalError(
                "no_funds", f"amount_sat is {amount}, allowed is at most {max(0, total - fee)}: mine more blocks"
            )
        return self._mempool.submit(self._signed(chosen, script, amount, total - amount - fee).serialize())

    def _signed(self, spent: dict[OutPoint, Coin], script: bytes, amount: int, change: int) -> CTransaction:
        outputs = [CMutableTxOut(amount, CScript(script))]
        if change >= policy.dust_limit(self.script):
            outputs.append(CMutableTxOut(change, CScript(self.script)))
        inputs = [CMutableTxIn(COutPoint(o.txid, o.vout), nSequence=0xFFFFFFFD) for o in spent]
        transaction = CMutableTransaction(inputs, outputs)
        transaction.nVersion = 2
        prevouts = [coin.output for coin in spent.values()]
        witnesses = []
        for index in range(len(inputs)):
            message = signature_hash(transaction, index, prevouts)
            witnesses.append(CTxInWitness(CScriptWitness([schnorr.sign(self._secret, message)])))
        transaction.wit = CTxWitness(witnesses)
        return CTransaction.from_tx(transaction)

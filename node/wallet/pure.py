"""The wallet in Python alone, for the simulator and for tests: no thread, no file, no randomness, so that a run with
the same seed and the same chain is the same run."""

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from bitcoin.core import CTransaction

from node.clock import Clock
from node.wallet.bip86 import CHANGE, RECEIVE, Account
from node.wallet.interface import BEYOND, GAP_LIMIT, LOOKAHEAD, Coin, Transaction, Wallet, our_inputs
from protocols.contract import schnorr
from protocols.contract.funding import OutPoint
from protocols.contract.sighash import TxOut, signature_hash
from protocols.contract.transactions import outpoints


class Tip(Protocol):
    @property
    def height(self) -> int: ...


class ChainView(Protocol):
    """What the wallet asks of the chain; `node.chain.electrum.ElectrumClient` is one."""

    @property
    def tip(self) -> Tip: ...

    async def history(self, script: bytes) -> Sequence[tuple[bytes, int]]:
        """Id and height (0 or less: in the mempool) of every transaction that pays to or spends from a script."""
        ...

    async def transaction(self, txid: bytes) -> bytes:
        """The transaction with that id, serialized."""
        ...


class PureWallet(Wallet):
    """A wallet that remembers nothing by itself: `revealed` says how many receive and change scripts earlier runs
    gave out."""

    def __init__(
        self,
        seed: bytes,
        network: str,
        chain: ChainView,
        *,
        clock: Clock | None = None,
        revealed: Sequence[int] = (0, 0),
        gap: int = GAP_LIMIT,
    ) -> None:
        """`seed` is the 64 bytes of BIP39, `network` one of `node.networks`; so many unused scripts in a row as `gap`
        says end the first scan."""
        super().__init__(network, clock or Clock())
        self._account = Account(seed, network)
        self._chain = chain
        self._revealed = list(revealed)
        self._gap = gap
        self._derived = [0, 0]
        self._places: dict[bytes, tuple[int, int]] = {}
        self._height: int | None = None
        self._found: dict[bytes, tuple[CTransaction, int]] = {}

    @property
    def revealed(self) -> tuple[int, int]:
        """How many receive and change scripts have been given out, or were seen on the chain."""
        return self._revealed[RECEIVE], self._revealed[CHANGE]

    async def _sync(self) -> None:
        await self._look(self._gap if self._height is None else 0)

    async def _rescan(self) -> None:
        await self._look(self._gap)

    async def _reach(self, scripts: Collection[bytes]) -> bool:
        before = self.revealed
        wanted = self._account.counts(scripts, BEYOND)
        self._revealed = [max(pair) for pair in zip(before, wanted, strict=True)]
        return self.revealed != before

    async def _look(self, gap: int) -> None:
        while True:
            tip = self._chain.tip
            heights = await self._scan(RECEIVE, gap) | await self._scan(CHANGE, gap)
            if self._chain.tip == tip:  # or else a block came in between, and part of the picture is older than it
                break
        known = self._found
        self._found = {
            txid: (known[txid][0] if txid in known else await self._fetch(txid), height)
            for txid, height in heights.items()
        }
        self._height = tip.height

    async def _reveal(self, chain: int) -> bytes:
        self._revealed[chain] += 1
        return self._account.script(chain, self._revealed[chain] - 1)

    async def _knows(self, script: bytes) -> bool:
        return self._is_mine(script)

    async def _sign(
        self, tx: CTransaction, prevouts: Sequence[TxOut], more: Mapping[OutPoint, TxOut]
    ) -> dict[int, tuple[bytes, ...]]:
        witnesses: dict[int, tuple[bytes, ...]] = {}
        for index in our_inputs(tx, prevouts, more, self._output, self._is_mine):
            secret = self._account.secret(*self._places[prevouts[index].script])
            witnesses[index] = (schnorr.sign(secret, signature_hash(tx, index, prevouts)),)
        return witnesses

    async def _coins(self) -> tuple[list[Coin], int]:
        height = self._height or 0
        spent = {outpoint for tx, _ in self._found.values() for outpoint in outpoints(tx)}
        coins = [
            Coin(
                txid,
                vout,
                txout.nValue,
                bytes(txout.scriptPubKey),
                confirmations=height - mined + 1 if mined > 0 else 0,
                coinbase=tx.is_coinbase(),
            )
            for txid, (tx, mined) in sorted(self._found.items())
            for vout, txout in enumerate(tx.vout)
            if self._is_mine(bytes(txout.scriptPubKey)) and (txid, vout) not in spent
        ]
        return coins, height

    async def _transactions(self) -> tuple[list[Transaction], int]:
        return [self._told(txid, tx, mined) for txid, (tx, mined) in self._found.items()], self._height or 0

    def _told(self, txid: bytes, tx: CTransaction, mined: int) -> Transaction:
        spent = [] if tx.is_coinbase() else [self._output(outpoint) for outpoint in outpoints(tx)]
        known = [output for output in spent if output is not None]
        fee = 0 if tx.is_coinbase() else sum(output.value for output in known) - sum(out.nValue for out in tx.vout)
        return Transaction(
            txid,
            received=sum(out.nValue for out in tx.vout if self._is_mine(bytes(out.scriptPubKey))),
            spent=sum(output.value for output in known if self._is_mine(output.script)),
            fee=fee if len(known) == len(spent) else None,
            height=mined if mined > 0 else None,
            time=None,
        )

    async def _scan(self, chain: int, gap: int) -> dict[bytes, int]:
        """Heights by id of the transactions of one chain's scripts: of all given out, and of `gap` unused ones more."""
        heights: dict[bytes, int] = {}
        index = unused = 0
        while index < self._revealed[chain] or unused < gap:
            history = await self._chain.history(self._account.script(chain, index))
            heights |= dict(history)
            unused = 0 if history else unused + 1
            index += 1
            if history:
                self._revealed[chain] = max(self._revealed[chain], index)
        return heights

    async def _fetch(self, txid: bytes) -> CTransaction:
        return CTransaction.deserialize(await self._chain.transaction(txid))

    def _is_mine(self, script: bytes) -> bool:
        for chain in (RECEIVE, CHANGE):
            for index in range(self._derived[chain], self._revealed[chain] + LOOKAHEAD):
                self._places[self._account.script(chain, index)] = (chain, index)
                self._derived[chain] = index + 1
        return script in self._places

    def _output(self, outpoint: OutPoint) -> TxOut | None:
        if outpoint.txid not in self._found:
            return None
        outputs = self._found[outpoint.txid][0].vout
        if outpoint.vout >= len(outputs):
            return None
        return TxOut(outputs[outpoint.vout].nValue, bytes(outputs[outpoint.vout].scriptPubKey))

"""What the node asks of a wallet, whoever keeps it: `node.wallet.bdk` for real money, `node.wallet.pure` where a run
must be repeatable. tests/test_wallet.py holds both to the same conduct.

A wallet is account 0 of BIP86 (P2TR, key path only) of the node's seed. Money is integer satoshi; transaction ids are
in internal byte order. What it knows of the chain is as old as its last `sync`. Which coins are reserved for setups
under way is not its business: that follows from events, and the caller says it.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence, Set
from datetime import UTC, datetime
from typing import NoReturn

import trio
from attrs import frozen
from bitcoin.core import CTransaction
from bitcoin.core.serialize import SerializationError

from node.clock import Clock
from node.health import UNREPORTED, Report
from node.wallet.address import to_address
from node.wallet.bip86 import CHANGE, RECEIVE
from node.wallet.selection import select
from protocols.contract.funding import FundingInput, OutPoint
from protocols.contract.sighash import TxOut
from protocols.contract.transactions import outpoints
from protocols.errors import LocalError, WorldError

GAP_LIMIT = 200
"""How many scripts in a row that the chain never saw end the first scan of a wallet rebuilt from its seed. The usual
20 would lose coins: every setup that came to nothing used up scripts, and an attacked maker has many such."""
LOOKAHEAD = 25
"""How many scripts past the last one given out are recognised as ours."""
BEYOND = 2000
"""How far past the last script found a script that an event names is looked for."""
COINBASE_MATURITY = 100
"""Confirmations of a coinbase that may be spent in the next block."""
PATIENCE = 600.0
"""Seconds for one look at the chain; a first one of a long history takes minutes."""
RESYNC, REBUILD = "resync", "rebuild"
"""Repairs: look through the whole chain again; do so with a new database, the old one moved aside."""
REMEDY = "see to the chain server, by which the wallet sees the chain; the wallet tries again by itself"


@frozen
class Coin:
    """An output of ours that no transaction known to us spends, not even an unconfirmed one."""

    txid: bytes
    vout: int
    value: int
    script: bytes
    confirmations: int
    """0 in a mempool, 1 in the tip."""
    coinbase: bool = False

    @property
    def outpoint(self) -> OutPoint:
        return OutPoint(self.txid, self.vout)

    @property
    def input(self) -> FundingInput:
        """To spend it."""
        return FundingInput(self.txid, self.vout, self.value, self.script)

    @property
    def spendable(self) -> bool:
        """Confirmed, and mature if it is a coinbase."""
        return self.confirmations >= (COINBASE_MATURITY if self.coinbase else 1)


@frozen
class Balance:
    """Satoshis that could be spent now and that will be, and the moment at which this was so."""

    confirmed: int
    pending: int
    """Unconfirmed coins and immature coinbases."""
    as_of: float
    """Seconds since 1970 on the wall clock, when the sync that saw this began."""
    height: int
    """Of the tip that it saw."""


@frozen
class Transaction:
    """A transaction that pays to us or spends from us. Amounts in satoshis."""

    txid: bytes
    received: int
    """By outputs of ours."""
    spent: int
    """Of outputs of ours; what it brought us is `received` - `spent`."""
    fee: int | None
    """All of it, whoever pays it; None when it spends outputs of transactions that the wallet does not know."""
    height: int | None
    """None while it is unconfirmed."""
    time: float | None
    """Of its block, seconds since 1970; None while it is unconfirmed, and of a wallet that reads no blocks."""


@frozen
class Statement:
    """All transactions, in the order of `Wallet.transactions`, and the moment at which this was so."""

    transactions: tuple[Transaction, ...]
    as_of: float
    """As that of a `Balance`."""
    height: int


@frozen
class Funding:
    """Our coins for a lock, and where its change goes (if it has any: `protocols.contract.funding.change_value`)."""

    inputs: tuple[FundingInput, ...]
    change_script: bytes


class Wallet(ABC):
    """One account. Every method may raise `WorldError`; those that speak of coins and of
    transactions do (``wallet_not_synced``) before the first `sync`.

    The public methods are all here and none is overridden, so that ``service.call(Wallet.fund, …)`` runs the same code
    whichever wallet the service keeps.
    """

    def __init__(self, network: str, clock: Clock) -> None:
        """`network` is one of `node.networks`."""
        self._network = network
        self._clock = clock
        self._as_of: float | None = None

    async def sync(self) -> None:
        """Learn what the chain and the mempool say of our scripts now.

        Raises `WorldError` when the chain server cannot be reached or answers nonsense; what was known stays.
        """
        started = self._clock.now()
        await self._sync()
        await self._note(started)

    async def rescan(self) -> None:
        """As `sync`, and look for coins at scripts past the last one given out, as a wallet does that was just rebuilt
        from its seed: `GAP_LIMIT` of them."""
        started = self._clock.now()
        await self._rescan()
        await self._note(started)

    async def reach(self, scripts: Collection[bytes]) -> bool:
        """Count the scripts up to the last one of ours among `scripts` as given out; whether that changed anything.

        For a wallet that was rebuilt: what events name was given out, however many unused scripts lie in between."""
        return bool(scripts) and await self._reach(scripts)

    @property
    def as_of(self) -> float | None:
        """When the last sync that succeeded began, seconds since 1970, maybe in an earlier life; None if there was
        none."""
        return self._as_of

    async def new_address(self) -> str:
        """A fresh address for somebody to pay to, remembered before it is returned."""
        return to_address(await self._reveal(RECEIVE), self._network)

    async def new_script(self) -> bytes:
        """A fresh P2TR script of ours for a payout or change, remembered before it is returned."""
        return await self._reveal(CHANGE)

    async def is_mine(self, script: bytes) -> bool:
        """Whether a script is one that we gave out, or one of the next `LOOKAHEAD`."""
        return await self._knows(script)

    async def coins(self) -> list[Coin]:
        """All unspent outputs of ours, unconfirmed ones too, in order of their outpoints."""
        return (await self._seen())[1]

    async def balance(self) -> Balance:
        """What the coins are worth, with the age of that knowledge."""
        as_of, coins, height = await self._seen()
        confirmed = sum(coin.value for coin in coins if coin.spendable)
        return Balance(confirmed, sum(coin.value for coin in coins) - confirmed, as_of, height)

    async def transactions(self) -> list[Transaction]:
        """All that the chain or the mempool holds of ours, the newest first: unconfirmed ones, then by height, then by
        id. What was replaced or fell out of the mempool is gone."""
        return list((await self.statement()).transactions)

    async def statement(self) -> Statement:
        """The `transactions`, with the age of that knowledge."""
        as_of = self._synced()
        found, height = await self._transactions()
        return Statement(tuple(sorted(found, key=_newest_first)), as_of, height)

    async def fund(self, needed: int, fee_rate: int, reserved: Set[OutPoint] = frozenset()) -> Funding:
        """Coins worth `needed` satoshis and our share of the lock's own fee at `fee_rate` sat/vB, none of `reserved`.

        Only confirmed, mature coins, at most 20 (`node.wallet.selection`). Nothing is reserved by this: two calls with
        the same `reserved` answer alike. Raises `InsufficientFunds`.
        """
        free = [coin.input for coin in await self.coins() if coin.spendable and coin.outpoint not in reserved]
        inputs = select(free, needed, fee_rate)
        return Funding(inputs, await self.new_script())

    async def sign(
        self, tx: bytes, prevouts: Sequence[TxOut], parents: Sequence[bytes] = ()
    ) -> dict[int, tuple[bytes, ...]]:
        """Witnesses for those inputs of a transaction that are ours, by index.

        `prevouts` are the outputs that all its inputs spend, in order; each signature (BIP86 key path,
        SIGHASH_DEFAULT) commits to them. `parents` are transactions whose outputs count as known, although no chain
        has shown them yet: what raises a fee may be signed before any mempool takes the parent alone. Coins that a
        known transaction spends are signed for too: replacing that transaction needs it. What the transaction does is
        the caller's business; what it spends is ours: `LocalError` (``not_our_coin``) if an input of ours is not known
        to us with this value and script.
        """
        transaction = _parsed(tx)
        more = {
            OutPoint(parent.GetTxid(), vout): TxOut(output.nValue, bytes(output.scriptPubKey))
            for parent in map(_parsed, parents)
            for vout, output in enumerate(parent.vout)
        }
        if len(prevouts) != len(transaction.vin):
            raise LocalError("bad_prevouts", f"{len(prevouts)} outputs are given for {len(transaction.vin)} inputs")
        return await self._sign(transaction, prevouts, more)

    async def _note(self, as_of: float) -> None:
        self._as_of = as_of
        await self._remember(as_of)

    def _synced(self) -> float:
        if self._as_of is None:
            raise WorldError("wallet_not_synced", "the wallet has not seen the chain yet")
        return self._as_of

    async def _seen(self) -> tuple[float, list[Coin], int]:
        as_of = self._synced()
        coins, height = await self._coins()
        return as_of, coins, height

    # What a kind of wallet does.

    @abstractmethod
    async def _sync(self) -> None: ...

    @abstractmethod
    async def _rescan(self) -> None: ...

    async def _remember(self, as_of: float) -> None:
        """Keep the moment of the last sync for the next life, if that finds what the sync saw."""
        await trio.lowlevel.checkpoint()

    @abstractmethod
    async def _reach(self, scripts: Collection[bytes]) -> bool: ...

    @abstractmethod
    async def _reveal(self, chain: int) -> bytes:
        """The next script of a chain (`RECEIVE` or `CHANGE`)."""

    @abstractmethod
    async def _knows(self, script: bytes) -> bool: ...

    @abstractmethod
    async def _coins(self) -> tuple[list[Coin], int]:
        """The coins in order of their outpoints, and the height of the tip that confirmations are counted from."""

    @abstractmethod
    async def _transactions(self) -> tuple[list[Transaction], int]:
        """The transactions in any order, and the height as in `_coins`."""

    @abstractmethod
    async def _sign(
        self, tx: CTransaction, prevouts: Sequence[TxOut], more: Mapping[OutPoint, TxOut]
    ) -> dict[int, tuple[bytes, ...]]:
        """As `sign`; which inputs are ours is for `our_inputs` to say. `more` are outputs that count as known."""


def _newest_first(transaction: Transaction) -> tuple[bool, int, bytes]:
    height = transaction.height
    return height is not None, -(height or 0), transaction.txid


def _parsed(raw: bytes) -> CTransaction:
    try:
        return CTransaction.deserialize(raw)
    except (SerializationError, ValueError) as error:
        raise LocalError("bad_transaction", f"{len(raw)} bytes are no transaction: {error}") from error


def our_inputs(
    tx: CTransaction,
    prevouts: Sequence[TxOut],
    more: Mapping[OutPoint, TxOut],
    output: Callable[[OutPoint], TxOut | None],
    is_mine: Callable[[bytes], bool],
) -> list[int]:
    """Which inputs are ours to sign (`Wallet.sign`); `output` finds an output in the wallet's own transactions, `more`
    are outputs besides that count as known.

    The outpoint and the script must both say so: with only one of them, somebody is being lied to.
    """
    ours = []
    for index, (spent, said) in enumerate(zip(outpoints(tx), prevouts, strict=True)):
        known = output(spent) or more.get(spent)
        known = known if known and is_mine(known.script) else None
        if known is None and not is_mine(said.script):
            continue
        if known != said:
            raise LocalError(
                "not_our_coin",
                f"input {index} is said to spend {said.value} sat at our script {said.script.hex()}, "
                f"our own record says {f'{known.value} sat at {known.script.hex()}' if known else 'nothing'} of it",
            )
        ours.append(index)
    return ours


async def run_wallet(
    wallet: Wallet,
    *,
    every: float = 30.0,
    news: Callable[[], Awaitable[object]] = trio.sleep_forever,
    report: Report = UNREPORTED,
    task_status: trio.TaskStatus[Wallet] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """A wallet's life as a service: a `sync` whenever `news` returns (a new tip), and every so many seconds. It is up
    once it has seen the chain, now or in an earlier life: what it knew then has its age.

    A sync that fails degrades it only, and signing needs no server.
    """
    started = wallet.as_of is not None
    if started:
        task_status.started(wallet)
    while True:
        try:
            await wallet.sync()
        except WorldError as error:
            if wallet.as_of is None:
                raise
            report.degraded(f"the balance is that of {_moment(wallet.as_of)}: {error.sentence}", REMEDY)
        else:
            report.fresh()
            report.recovered()
        if not started:
            started = True
            task_status.started(wallet)
        with trio.move_on_after(every):
            await news()
        report.beat()


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")

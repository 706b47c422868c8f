"""The wallet on BDK (bitcoindevkit.org): it derives, scans, persists and signs; this module says when, and where.

BDK's calls block, so each runs in a worker thread, one at a time. Only the talk with the chain server, which may take
long and changes nothing, goes on beside them and is abandoned when its caller is cancelled. BDK's Electrum client
dials the node's own loopback endpoint (`node.chain.forward`). The database is a cache of the chain and of how many
scripts were given out: if it is lost, the first sync rebuilds it from the seed; one that cannot be read is moved aside,
never deleted. Beside it a file tells of when it is.
"""

import base64
import contextlib
import os
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import bdkpython as bdk
import trio
from attrs import frozen
from bitcoin.core import CTransaction

from node.clock import Clock
from node.errors import NeedsUser
from node.eventstore.interface import RunBlocking
from node.networks import NETWORKS
from node.wallet.address import BDK
from node.wallet.bip86 import CHANGE, RECEIVE, Account
from node.wallet.interface import BEYOND, GAP_LIMIT, LOOKAHEAD, REBUILD, Coin, Transaction, Wallet, our_inputs
from node.wallet.seed import Seed
from protocols.contract.funding import OutPoint
from protocols.contract.sighash import TxOut, string
from protocols.errors import LocalError, WorldError

R = TypeVar("R")

BATCH = 50
"""Requests that BDK sends at once."""
SYNCED = ".synced"
"""What the name of the file ends with that holds the moment of the last sync, seconds since 1970."""
TIMEOUT = 30
"""Seconds that BDK waits for an answer."""


@frozen
class _Kept:
    """A client of BDK's and the address that it dialled."""

    address: str
    client: bdk.ElectrumClient


class BdkWallet(Wallet):
    """A wallet kept by BDK in a SQLite file. `open` makes one."""

    def __init__(
        self,
        wallet: bdk.Wallet,
        persister: bdk.Persister,
        electrum: Callable[[], str],
        *,
        seed: Seed,
        network: str,
        clock: Clock,
        run_blocking: RunBlocking,
        path: Path,
        as_of: float | None = None,
        aside: Path | None = None,
    ) -> None:
        super().__init__(network, clock)
        self._as_of = as_of
        self._path = path
        self.aside = aside
        """Where the database was moved that could not be read, if one was: this wallet is rebuilt from the seed."""
        self._seed = seed
        self._wallet = wallet
        self._persister = persister
        self._electrum = electrum
        self._run_blocking = run_blocking
        self._kept: _Kept | None = None
        self._coinbases: dict[bytes, bool] = {}
        """By transaction id, of coins: to ask BDK costs more than all else that is said of one."""
        self._syncing = trio.Lock()
        self._listed: tuple[list[Coin], int] | None = None
        """The coins and the height, until the wallet learns something."""
        self._turn = trio.Lock()
        """Held around each use of the wallet that must see or leave it whole, for milliseconds."""

    @classmethod
    async def open(
        cls,
        seed: Seed,
        network: str,
        path: Path,
        electrum: Callable[[], str],
        *,
        clock: Clock | None = None,
        run_blocking: RunBlocking = trio.to_thread.run_sync,
    ) -> "BdkWallet":
        """The wallet of a seed on a network (of `node.networks`), its database in the file `path`.

        `electrum` is asked for ``host:port`` at each sync: the endpoint's port changes when its service restarts. What
        it raises, `sync` raises. A database that is missing is made; one that is corrupt is moved aside first. Raises
        `NeedsUser` for one of another seed or network, `WorldError` when the disk refuses.
        """
        clock, aside = clock or Clock(), None
        try:
            wallet, persister = await run_blocking(partial(_open, seed, network, path))
        except _Corrupt:
            aside = await run_blocking(partial(move_aside, path, int(clock.now())))
            try:
                wallet, persister = await run_blocking(partial(_open, seed, network, path))
            except _Corrupt:
                raise WorldError("wallet_disk", f"{path}: a new database cannot be read either") from None
        as_of = await run_blocking(partial(_last_sync, path)) if wallet.latest_checkpoint().height else None
        return cls(
            wallet,
            persister,
            electrum,
            seed=seed,
            network=network,
            clock=clock,
            run_blocking=run_blocking,
            path=path,
            as_of=as_of,
            aside=aside,
        )

    async def _sync(self) -> None:
        async with self._syncing:
            # A wallet that never finished a scan knows no block but the first one.
            if self._wallet.latest_checkpoint().height == 0:
                await self._look(self._full_scan)
            await self._look(self._news)

    async def _rescan(self) -> None:
        async with self._syncing:
            await self._look(self._full_scan)
            await self._look(self._news)  # a scan ends at a gap, though scripts behind it were given out

    async def _look(self, question: Callable[[bdk.ElectrumClient], bdk.Update]) -> None:
        update = await self._ask(question)
        await self._in_turn(partial(self._apply, update))

    async def _remember(self, as_of: float) -> None:
        await self._run_blocking(partial(_keep_last_sync, self._path, as_of))

    async def _reach(self, scripts: Collection[bytes]) -> bool:
        return await self._in_turn(partial(self._reveal_to, scripts))

    async def _reveal(self, chain: int) -> bytes:
        return await self._in_turn(partial(self._reveal_next, _KEYCHAINS[chain]))

    async def _knows(self, script: bytes) -> bool:
        return await self._in_turn(partial(self._is_mine, script))

    async def _sign(
        self, tx: CTransaction, prevouts: Sequence[TxOut], more: Mapping[OutPoint, TxOut]
    ) -> dict[int, tuple[bytes, ...]]:
        return await self._in_turn(partial(self._witnesses, tx, prevouts, more))

    async def _coins(self) -> tuple[list[Coin], int]:
        return await self._in_turn(self._unspent)

    async def _transactions(self) -> tuple[list[Transaction], int]:
        return await self._in_turn(self._statement)

    async def _in_turn(self, function: Callable[[], R]) -> R:
        async with self._turn:
            return await self._run_blocking(function)

    async def _ask(self, question: Callable[[bdk.ElectrumClient], bdk.Update]) -> bdk.Update:
        """What the chain server answers. A client is kept between questions, because it remembers what it fetched."""
        address = self._electrum()
        # While in use it is in nobody's hands: one that fails, or is abandoned, is not asked again.
        kept, self._kept = self._kept, None

        def ask() -> tuple[bdk.ElectrumClient, bdk.Update]:
            if kept is not None and kept.address == address:
                with contextlib.suppress(bdk.ElectrumError):  # its connection may have ended since: dial again
                    return kept.client, question(kept.client)
            client = bdk.ElectrumClient(f"tcp://{address}", None, TIMEOUT, 0)
            return client, question(client)

        try:
            client, update = await trio.to_thread.run_sync(ask, abandon_on_cancel=True)
        except bdk.ElectrumError as error:
            raise WorldError("electrum", f"chain server at {address}: {_said(error)}") from error
        self._kept = _Kept(address, client)
        return update

    # What follows runs in worker threads.

    def _full_scan(self, client: bdk.ElectrumClient) -> bdk.Update:
        return client.full_scan(self._wallet.start_full_scan().build(), GAP_LIMIT, BATCH, False)

    def _news(self, client: bdk.ElectrumClient) -> bdk.Update:
        return client.sync(self._wallet.start_sync_with_revealed_spks().build(), BATCH, False)

    def _apply(self, update: bdk.Update) -> None:
        self._listed = None
        try:
            self._wallet.apply_update(update)
        except bdk.CannotConnectError as error:
            raise WorldError("wrong_chain", "the chain server's blocks are not those of this network") from error
        self._persist()

    def _persist(self) -> None:
        try:
            self._wallet.persist(self._persister)
        except bdk.PersistenceError as error:
            raise WorldError("wallet_disk", f"the wallet's database cannot be written: {error}") from error

    def _reveal_next(self, keychain: bdk.KeychainKind) -> bytes:
        address = self._wallet.reveal_next_address(keychain).address
        self._persist()
        return bytes(address.script_pubkey().to_bytes())

    def _reveal_to(self, scripts: Collection[bytes]) -> bool:
        found = [self._wallet.derivation_of_spk(bdk.Script(script)) for script in scripts]
        counts = dict.fromkeys(bdk.KeychainKind, 0)
        for place in filter(None, found):
            counts[place.keychain] = max(counts[place.keychain], place.index + 1)
        if any(place is None for place in found):  # beyond what BDK has derived so far, or nobody's
            searched = Account(self._seed.secret, self._network).counts(scripts, BEYOND)
            counts = {kind: max(counts[kind], searched[chain]) for chain, kind in _KEYCHAINS.items()}
        revealed = False
        for kind, count in counts.items():
            known = self._wallet.derivation_index(kind)
            if count > (-1 if known is None else known) + 1:
                self._wallet.reveal_addresses_to(kind, count - 1)
                revealed = True
        if revealed:
            self._persist()
            # BDK looks for our scripts in a transaction when it first sees it, and never again but when it loads
            self._wallet, self._persister = _open(self._seed, self._network, self._path)
            self._listed = None
        return revealed

    def _is_mine(self, script: bytes) -> bool:
        return bool(self._wallet.is_mine(bdk.Script(script)))

    def _output(self, outpoint: OutPoint) -> TxOut | None:
        found = self._wallet.get_tx(bdk.Txid.from_bytes(outpoint.txid))
        outputs = found.transaction.output() if found else []
        if outpoint.vout >= len(outputs):
            return None
        output = outputs[outpoint.vout]
        return TxOut(output.value.to_sat(), bytes(output.script_pubkey.to_bytes()))

    def _unspent(self) -> tuple[list[Coin], int]:
        if self._listed is None:  # BDK goes through all of its transactions for a list
            self._listed = self._list()
        coins, height = self._listed
        return coins.copy(), height

    def _list(self) -> tuple[list[Coin], int]:
        height = self._wallet.latest_checkpoint().height
        coins = []
        for output in self._wallet.list_unspent():
            txid, position = bytes(output.outpoint.txid.serialize()), output.chain_position
            if txid not in self._coinbases:
                transaction = self._wallet.get_tx(output.outpoint.txid)
                self._coinbases[txid] = transaction is not None and transaction.transaction.is_coinbase()
            coins.append(
                Coin(
                    txid,
                    output.outpoint.vout,
                    output.txout.value.to_sat(),
                    bytes(output.txout.script_pubkey.to_bytes()),
                    confirmations=height - position.confirmation_block_time.block_id.height + 1
                    if position.is_confirmed()
                    else 0,
                    coinbase=self._coinbases[txid],
                )
            )
        return sorted(coins, key=lambda coin: coin.outpoint), height

    def _statement(self) -> tuple[list[Transaction], int]:
        # `tx_details` says all of this at once, and goes through all transactions for each
        return [self._told(each) for each in self._wallet.transactions()], self._wallet.latest_checkpoint().height

    def _told(self, canonical: bdk.CanonicalTx) -> Transaction:
        tx, position = canonical.transaction, canonical.chain_position
        block = position.confirmation_block_time if position.is_confirmed() else None
        values = self._wallet.sent_and_received(tx)
        try:
            fee = self._wallet.calculate_fee(tx).to_sat()
        except bdk.CalculateFeeError:
            fee = None
        return Transaction(
            bytes(tx.compute_txid().serialize()),
            received=values.received.to_sat(),
            spent=values.sent.to_sat(),
            fee=fee,
            height=block.block_id.height if block else None,
            time=float(block.confirmation_time) if block else None,
        )

    def _witnesses(
        self, tx: CTransaction, prevouts: Sequence[TxOut], more: Mapping[OutPoint, TxOut]
    ) -> dict[int, tuple[bytes, ...]]:
        ours = our_inputs(tx, prevouts, more, self._output, self._is_mine)
        psbt = bdk.Psbt(base64.b64encode(_psbt(tx, prevouts)).decode("ascii"))
        self._wallet.sign(psbt, _SIGN)  # False while inputs of the peer lack signatures: look at ours instead
        inputs = psbt.input()
        witnesses = {index: tuple(bytes(item) for item in inputs[index].final_script_witness or ()) for index in ours}
        if not all(witnesses.values()):
            raise LocalError("not_signed", f"BDK did not sign all of our inputs {ours}")
        return witnesses


_KEYCHAINS = {RECEIVE: bdk.KeychainKind.EXTERNAL, CHANGE: bdk.KeychainKind.INTERNAL}
_SIGN = bdk.SignOptions(
    trust_witness_utxo=True,  # taproot signatures commit to the values of all inputs
    assume_height=None,
    allow_all_sighashes=False,
    try_finalize=True,
    sign_with_tap_internal_key=True,
    allow_grinding=False,
)


class _Corrupt(Exception):
    """The database cannot be read."""


def move_aside(path: Path, at: int) -> Path | None:
    """Rename a database, with what SQLite keeps beside it, so that a new one is made; nothing is deleted. Returns where
    it is now; None if there was none. `at` is the time in whole seconds. Raises `WorldError` when the disk refuses."""
    moved = path.with_name(f"{path.name}.aside-{at}")
    count = 1
    while moved.exists():
        count += 1
        moved = path.with_name(f"{path.name}.aside-{at}-{count}")
    found = None
    try:
        for suffix in (SYNCED, "-wal", "-shm", "-journal", ""):
            part = path.with_name(path.name + suffix)
            if part.exists():
                part.rename(moved.with_name(moved.name + suffix))
                found = moved
    except OSError as error:
        raise WorldError("wallet_disk", f"{path}: cannot be moved aside: {error.strerror}") from error
    return found


def _last_sync(path: Path) -> float | None:
    """When the database saw the chain last; None if nobody knows."""
    try:
        return float(path.with_name(path.name + SYNCED).read_text("ascii"))
    except (OSError, ValueError):
        return None


def _keep_last_sync(path: Path, as_of: float) -> None:
    """After the database is on disk: it may be newer than this says, never older."""
    file = path.with_name(path.name + SYNCED)
    unfinished = file.with_name(file.name + ".unfinished")
    try:
        unfinished.write_text(repr(as_of), "ascii")
        unfinished.replace(file)
    except OSError as error:
        raise WorldError("wallet_disk", f"{file}: {error.strerror}") from error


def _open(seed: Seed, network: str, path: Path) -> tuple[bdk.Wallet, bdk.Persister]:
    receive, change = _descriptors(seed, NETWORKS[network].coin_type)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # it holds no secret, but all of the owner's history
        persister = bdk.Persister.new_sqlite(str(path))
        try:
            wallet = bdk.Wallet.load(receive, change, persister, LOOKAHEAD)
        except bdk.LoadWithPersistError.CouldNotLoad:  # empty: new, or lost
            wallet = bdk.Wallet(receive, change, BDK[network], persister, LOOKAHEAD)
    except OSError as error:
        raise WorldError("wallet_disk", f"{path}: {error.strerror}") from error
    # What BDK says of these may quote keys, so it stays out of the sentence and of the traceback.
    except bdk.LoadWithPersistError.InvalidChangeSet:
        raise _of_another(path, network, _network_of(seed, path, coin_type=1 - NETWORKS[network].coin_type)) from None
    except (bdk.PersistenceError, bdk.LoadWithPersistError, bdk.CreateWithPersistError):
        if _sound(path):
            raise WorldError("wallet_disk", f"{path}: the wallet's database cannot be used: disk full?") from None
        raise _Corrupt from None
    if wallet.network() != BDK[network]:
        raise _of_another(path, network, _name(wallet))
    return wallet, persister


def _sound(path: Path) -> bool:
    """Whether SQLite finds nothing wrong with a file: then it is the disk or another process that is in the way."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            return bool(database.execute("PRAGMA quick_check").fetchall() == [("ok",)])
    except sqlite3.OperationalError:
        return True
    except sqlite3.DatabaseError:
        return False


def _descriptors(seed: Seed, coin_type: int) -> tuple[bdk.Descriptor, bdk.Descriptor]:
    """Of the receive and the change scripts; they differ between mainnet and all other networks."""
    kind = bdk.NetworkKind.TEST if coin_type else bdk.NetworkKind.MAIN
    key = bdk.DescriptorSecretKey(kind, bdk.Mnemonic.from_string(seed.words), None)
    return (
        bdk.Descriptor.new_bip86(key, bdk.KeychainKind.EXTERNAL, kind),
        bdk.Descriptor.new_bip86(key, bdk.KeychainKind.INTERNAL, kind),
    )


def _network_of(seed: Seed, path: Path, coin_type: int) -> str | None:
    """The network of a database if it is of this seed with this coin type, else None."""
    try:
        return _name(bdk.Wallet.load(*_descriptors(seed, coin_type), bdk.Persister.new_sqlite(str(path)), LOOKAHEAD))
    except (bdk.PersistenceError, bdk.LoadWithPersistError):
        return None


def _name(wallet: bdk.Wallet) -> str:
    found = wallet.network()
    return next((name for name, network in BDK.items() if network == found), "another network")


def _of_another(path: Path, network: str, found: str | None) -> NeedsUser:
    """`found` is the network that the database belongs to, None if not even the seed is ours."""
    if found is None:
        return NeedsUser(
            f"{path}: the wallet's database belongs to another seed",
            "give the node the seed that it belongs to, or have the file moved aside: rebuild",
            code="wallet_of_another_seed",
            repairs=(REBUILD,),
        )
    return NeedsUser(
        f"{path}: the wallet's database belongs to {found}, this node to {network}",
        f"run the node on {found}, or give it a data directory of its own for {network}",
        code="wallet_of_another_network",
    )


def _said(error: bdk.ElectrumError) -> str:
    """BDK's message, or the name of an error that has none: its ``str`` is empty or Rust's."""
    return getattr(error, "error_message", "") or type(error).__name__


def _psbt(tx: CTransaction, prevouts: Sequence[TxOut]) -> bytes:
    """The transaction as a PSBT (BIP174) that carries the spent output of every input, and nothing else."""
    unsigned = CTransaction(tx.vin, tx.vout, tx.nLockTime, tx.nVersion).serialize()
    parts = [b"psbt\xff", string(b"\x00"), string(unsigned), b"\x00"]
    for prevout in prevouts:
        parts += [string(b"\x01"), string(prevout.wire), b"\x00"]
    return b"".join(parts) + b"\x00" * len(tx.vout)

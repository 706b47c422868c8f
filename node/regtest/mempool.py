"""A mempool that refuses what Bitcoin Core's would refuse, in its words.

Scripts are judged by the kernel, by consensus rules alone (standardness of their encoding is not); what a
contract leans on besides is here: lock times (BIP68, BIP113), double spends and replacement (BIP125's fee
rules, without signalling), version-3 topology (BIP431), dust, relay fees, packages of a child with its
parents. Nothing expires and nothing is evicted for its size.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction

from attrs import evolve, field, frozen
from bitcoin.core import CTransaction
from bitcoin.core.serialize import SerializationError

from node.regtest import policy
from node.regtest.consensus import (
    COINBASE_MATURITY,
    BlockChange,
    Chain,
    ScriptRefused,
    check_scripts,
)
from node.regtest.index import Coin, Index, outputs, script_hash
from node.regtest.policy import TRUC, Rejected
from protocols.contract.funding import OutPoint
from protocols.contract.sighash import TxOut
from protocols.contract.transactions import outpoints

MIN_RELAY = 1
"""Satoshis per virtual byte that a transaction must pay, unless the mempool was made to ask for more."""
INCREMENTAL_RELAY = 1
"""Satoshis per virtual byte that a replacement must add to what it replaces."""
MAX_FEE_RATE = 10_000
"""Satoshis per virtual byte above which a broadcast is taken for a mistake: Bitcoin Core's 0.1 BTC/kvB."""
MAX_REPLACED = 100
MAX_CHAIN = 25
"""Unconfirmed ancestors or descendants, the transaction itself counted."""
TRUC_VSIZE = 10_000
TRUC_CHILD_VSIZE = 1_000
BLOCK_WEIGHT = 3_990_000


@frozen
class Entry:
    """A transaction in the mempool."""

    txid: bytes
    transaction: CTransaction = field(repr=False)
    raw: bytes = field(repr=False)
    spent: tuple[TxOut, ...] = field(repr=False)
    """The outputs that it spends, in the order of its inputs."""
    fee: int
    vsize: int
    parents: frozenset[bytes]
    """Unconfirmed transactions that it spends from."""
    scripts: frozenset[bytes] = field(repr=False)
    """Hashes of all scripts that it spends from or pays to."""

    @property
    def truc(self) -> bool:
        return bool(self.transaction.nVersion == TRUC)


class Mempool:
    """Unconfirmed transactions over a chain; `index` must have been made before, so that it follows blocks first."""

    def __init__(self, chain: Chain, index: Index, *, min_relay: int = MIN_RELAY) -> None:
        """`min_relay` is the least fee rate that is taken, in sat/vB: a higher one is what a full mempool asks for."""
        self._chain = chain
        self._index = index
        self.min_relay = min_relay
        self.entries: dict[bytes, Entry] = {}
        """By transaction id, parents before children; read only."""
        self._spenders: dict[OutPoint, bytes] = {}
        self.listeners: list[Callable[[], None]] = []
        """Called after every change of the mempool or of the chain."""
        chain.listeners.append(self._follow)

    # Reading

    def spender(self, outpoint: OutPoint) -> bytes | None:
        """The transaction, in the mempool or confirmed, that spends an output."""
        return self._spenders.get(outpoint) or self._index.spenders.get(outpoint)

    def history(self, script: bytes) -> list[Entry]:
        """The unconfirmed transactions that pay to or spend from a script hash."""
        return [entry for entry in self.entries.values() if script in entry.scripts]

    def unspent(self, script: bytes) -> dict[OutPoint, Coin]:
        """What a script hash holds, unconfirmed transactions counted: their coins have height 0."""
        found = self._index.unspent(script)
        for entry in self.history(script):
            for vout, output in enumerate(outputs(entry.transaction)):
                if script_hash(output.script) == script:
                    found[OutPoint(entry.txid, vout)] = Coin(output, 0, coinbase=False)
        return {outpoint: coin for outpoint, coin in found.items() if outpoint not in self._spenders}

    def block_template(self, floor: int = 0) -> list[CTransaction]:
        """The transactions of the next block: of those that pay `floor` sat/vB the oldest ones that fit. Whoever is
        spent from counts with what spends it."""
        paying: set[bytes] = set()
        for entry in self.entries.values():
            family = _closure([entry.txid], lambda txid: self.entries[txid].parents) - paying
            members = [self.entries[txid] for txid in family]
            if sum(member.fee for member in members) >= floor * sum(member.vsize for member in members):
                paying |= family
        chosen, left = [], BLOCK_WEIGHT
        for entry in self.entries.values():
            if entry.txid not in paying:
                continue
            left -= policy.weight(entry.transaction)
            if left < 0:
                break
            chosen.append(entry.transaction)
        return chosen

    # Writing

    def submit(self, raw: bytes) -> bytes:
        """Take one transaction in and return its id, as ``sendrawtransaction`` does; raises `Rejected`.

        What is here already is accepted again, even with another witness: the one that came first stays.
        """
        transaction = _parse(raw)
        txid: bytes = transaction.GetTxid()
        if txid not in self.entries:
            self._accept([transaction])
            self._tell()
        return txid

    def submit_package(self, raws: Sequence[bytes]) -> dict[bytes, Rejected | None]:
        """Take in a child with its unconfirmed parents (the child last), like Bitcoin Core's ``submitpackage``.

        Each is tried alone first; those that failed for a fee, or for a parent that is missing because of one, are
        then judged together. Returns why each is refused; the child's reason may be the package's. Raises `Rejected`
        when they are no such package.
        """
        package = [_parse(raw) for raw in raws]
        policy.check_package(package)
        results: dict[bytes, Rejected | None] = {}
        together: list[CTransaction] = []
        hopeless = False
        for transaction in package:
            txid = transaction.GetTxid()
            results[txid] = None
            if txid in self.entries or txid in self._index.transactions:
                continue
            try:
                self._accept([transaction])
            except Rejected as error:
                results[txid] = error
                together.append(transaction)
                hopeless |= not policy.package_may_help(transaction, error)
        if len(together) > 1 and not hopeless:
            try:
                self._accept(together)
                results = dict.fromkeys(results)
            except Rejected as error:
                results[error.txid or package[-1].GetTxid()] = error
        self._tell()
        return results

    # Judging

    def _accept(self, group: Sequence[CTransaction], *, returning: bool = False) -> None:
        """Take in a transaction, or a package whose fees count together, or nothing.

        `returning` are transactions of a block that left the chain, or stood here before: policy is not asked
        again.
        """
        new: dict[bytes, Entry] = {}
        direct: set[bytes] = set()
        for transaction in group:
            try:
                entry = self._examine(transaction, new, returning=returning)
                new[entry.txid] = entry
                direct |= {txid for spent in outpoints(transaction) if (txid := self._spenders.get(spent))}
                if not returning:
                    self._check_entry(entry, alone=len(group) == 1)
                    direct |= self._check_topology(entry, new, direct, alone=len(group) == 1)
            except Rejected as error:
                error.txid = transaction.GetTxid()
                raise
        if returning and direct:
            raise Rejected("txn-mempool-conflict")
        evicted = self._with_descendants(direct)
        if not returning:
            self._check_fees(new, direct, evicted)
            self._check_dust_is_spent(new)
        for entry in new.values():
            try:
                check_scripts(entry.raw, entry.spent)
            except ScriptRefused as error:
                reason = "mempool-script-verify-flag-failed"
                raise Rejected(reason, f"input {error.index}", txid=entry.txid) from error
        fee, vsize = _sums(new)
        if not returning and fee > MAX_FEE_RATE * vsize:
            raise Rejected("max-fee-exceeded", f"{fee} > {MAX_FEE_RATE * vsize}")
        for txid in evicted:
            self._remove(txid)
        for entry in new.values():
            self.entries[entry.txid] = entry
            self._spenders.update((spent, entry.txid) for spent in outpoints(entry.transaction))

    def _examine(self, transaction: CTransaction, new: Mapping[bytes, Entry], *, returning: bool) -> Entry:
        """Everything about one transaction but its fee rate, its relatives and its scripts."""
        height, median_time = self._chain.height + 1, self._chain.median_time()
        txid: bytes = transaction.GetTxid()
        policy.check_transaction(transaction)
        if not returning:
            policy.check_standard(transaction)
        if not policy.is_final(transaction, height, median_time):
            raise Rejected("non-final")
        if any(OutPoint(txid, vout) in self._index.coins for vout in range(len(transaction.vout))):
            # confirmed; once all of its outputs are spent, nobody remembers, and its inputs are missing
            raise Rejected("txn-already-known")
        coins: list[Coin] = []
        parents: set[bytes] = set()
        for spent in outpoints(transaction):
            parent = new.get(spent.txid) or self.entries.get(spent.txid)
            if parent is not None and spent.vout < len(parent.transaction.vout):
                coins.append(Coin(outputs(parent.transaction)[spent.vout], height, coinbase=False))
                parents.add(spent.txid)
            elif spent in self._index.coins:
                coins.append(self._index.coins[spent])
            else:
                raise Rejected("bad-txns-inputs-missingorspent")
        self._check_relative_locks(transaction, coins, height, median_time)
        if any(coin.coinbase and height - coin.height < COINBASE_MATURITY for coin in coins):
            raise Rejected("bad-txns-premature-spend-of-coinbase")
        fee = sum(coin.output.value for coin in coins) - sum(out.nValue for out in transaction.vout)
        if fee < 0:
            raise Rejected("bad-txns-in-belowout", f"value in is {-fee} sat less than value out")
        spent_outputs = tuple(coin.output for coin in coins)
        if not returning:
            policy.check_standard_inputs(transaction, spent_outputs)
        return Entry(
            txid=txid,
            transaction=transaction,
            raw=transaction.serialize(),
            spent=spent_outputs,
            fee=fee,
            vsize=-(-policy.weight(transaction) // 4),
            parents=frozenset(parents),
            scripts=frozenset(script_hash(o.script) for o in (*spent_outputs, *outputs(transaction))),
        )

    def _check_relative_locks(
        self, transaction: CTransaction, coins: Sequence[Coin], height: int, median_time: int
    ) -> None:
        for coin, (blocks, seconds) in zip(coins, policy.relative_locks(transaction), strict=True):
            if blocks is not None and coin.height + blocks > height:
                raise Rejected("non-BIP68-final")
            if seconds is not None:
                before = self._chain.median_time(self._chain.block_hash(max(coin.height - 1, 0)))
                if before + seconds > median_time:
                    raise Rejected("non-BIP68-final")

    def _check_entry(self, entry: Entry, *, alone: bool) -> None:
        """Dust, of which one output is allowed where the fee is zero and every child spends it (ephemeral dust), and
        the fee, which a package may pay for its parent only where topology keeps the two together."""
        dust = policy.dust(entry.transaction)
        if dust and (len(dust) > 1 or entry.fee):
            raise Rejected("dust", "tx with dust output must be 0-fee" if len(dust) == 1 else "")
        if (alone or not entry.truc) and entry.fee < self.min_relay * entry.vsize:
            raise Rejected("min relay fee not met", f"{entry.fee} < {self.min_relay * entry.vsize}")

    def _check_topology(
        self, entry: Entry, new: Mapping[bytes, Entry], conflicts: set[bytes], *, alone: bool
    ) -> set[bytes]:
        """Chain limits and version 3; returns the sibling that a version-3 child would replace, if any."""
        everyone = {**self.entries, **new}
        ancestors = _closure(entry.parents, lambda txid: everyone[txid].parents)
        if len(ancestors) + 1 > MAX_CHAIN:
            raise Rejected("too-long-mempool-chain", f"too many unconfirmed ancestors [limit: {MAX_CHAIN}]")
        for ancestor in ancestors - new.keys():
            if len(self._with_descendants({ancestor}) - self._with_descendants(conflicts)) + 1 > MAX_CHAIN:
                raise Rejected("too-long-mempool-chain", f"too many descendants [limit: {MAX_CHAIN}]")
        siblings: set[bytes] = set()
        if entry.truc or any(everyone[txid].truc for txid in ancestors):
            siblings = self._check_truc(entry, everyone, ancestors, conflicts)
            if siblings and not alone:
                raise Rejected("TRUC-violation", "a package may not replace its transactions' siblings")
        if ancestors & self._with_descendants(conflicts):
            raise Rejected("bad-txns-spends-conflicting-tx")
        return siblings

    def _check_truc(
        self, entry: Entry, everyone: Mapping[bytes, Entry], ancestors: set[bytes], conflicts: set[bytes]
    ) -> set[bytes]:
        """BIP431: one unconfirmed parent with one child, both of version 3, and the child small."""
        name = f"tx {entry.txid[::-1].hex()}"
        for txid in ancestors:
            if everyone[txid].truc != entry.truc:
                kinds = ("version=3", "non-version=3")
                own, other = kinds if entry.truc else reversed(kinds)
                other = f"{other} tx {txid[::-1].hex()}"
                raise Rejected("TRUC-violation", f"{own} {name} cannot spend from {other}")
        limit = TRUC_CHILD_VSIZE if ancestors else TRUC_VSIZE
        if entry.vsize > limit:
            raise Rejected("TRUC-violation", f"version=3 {name} is too big: {entry.vsize} > {limit} vB")
        if len(ancestors) > 1:
            raise Rejected("TRUC-violation", f"{name} would have too many ancestors")
        siblings = set().union(*(self._children(parent) for parent in ancestors))
        if siblings & conflicts:
            return set()  # a child takes a child's place
        # a fork may have left more than one, or grandchildren: which to replace is not to be decided here
        if len(self._with_descendants(siblings)) > 1 or any(len(self.entries[txid].parents) > 1 for txid in siblings):
            (parent,) = ancestors
            raise Rejected("TRUC-violation", f"tx {parent[::-1].hex()} would exceed descendant count limit")
        return siblings  # to be replaced, if this one pays enough

    def _check_fees(self, new: dict[bytes, Entry], direct: set[bytes], evicted: set[bytes]) -> None:
        """The relay fee of all together, and BIP125's rules for what would be replaced."""
        fee, vsize = _sums(new)
        last = next(reversed(new))
        if fee < self.min_relay * vsize:
            raise Rejected("min relay fee not met", f"{fee} < {self.min_relay * vsize}")
        if not direct:
            return
        about = f"rejecting replacement {last[::-1].hex()}"
        if len(new) > 2 or (len(new) == 2 and any(entry.parents - new.keys() for entry in new.values())):
            raise Rejected("package RBF failed", "package must be 1-parent-1-child")
        insufficient = "insufficient fee" if len(new) == 1 else "package RBF failed"
        for txid in direct:
            old = self.entries[txid]
            if Fraction(fee, vsize) <= Fraction(old.fee, old.vsize):
                raise Rejected(
                    insufficient,
                    f"{about}; new feerate {fee}/{vsize} <= old feerate {old.fee}/{old.vsize} sat/vB",
                )
        if len(evicted) > MAX_REPLACED:
            raise Rejected("too many potential replacements", f"{about}; {len(evicted)} > {MAX_REPLACED}")
        known = frozenset().union(*(self.entries[txid].parents for txid in direct))
        if any(entry.parents - known - new.keys() for entry in new.values()):
            # a version-3 child may take the place of its sibling: their parent is known
            raise Rejected("replacement-adds-unconfirmed", about)
        replaced = sum(self.entries[txid].fee for txid in evicted)
        if fee < replaced:
            raise Rejected(insufficient, f"{about}, less fees than conflicting txs; {fee} < {replaced}")
        if fee - replaced < INCREMENTAL_RELAY * vsize:
            raise Rejected(
                insufficient,
                f"{about}, not enough additional fees to relay; {fee - replaced} < {INCREMENTAL_RELAY * vsize}",
            )

    def _check_dust_is_spent(self, new: Mapping[bytes, Entry]) -> None:
        """Every child spends its parent's dust."""
        everyone = {**self.entries, **new}
        for entry in new.values():
            spent = set(outpoints(entry.transaction))
            for parent in entry.parents:
                if any(OutPoint(parent, n) not in spent for n in policy.dust(everyone[parent].transaction)):
                    raise Rejected("missing-ephemeral-spends", f"tx {entry.txid[::-1].hex()}")

    # Keeping up

    def _follow(self, changes: Sequence[BlockChange]) -> None:
        lost: list[CTransaction] = []
        for change in changes:
            if not change.connected:
                lost[:0] = change.transactions()[1:]
                continue
            for transaction in change.transactions()[1:]:
                self._leave(transaction)
        if lost:
            before = [entry.transaction for entry in self.entries.values()]
            self.entries.clear()
            self._spenders.clear()
            for transaction in [*lost, *before]:
                try:
                    self._accept([transaction], returning=True)
                except Rejected:
                    continue  # no longer valid on this branch, or confirmed in it
        self._tell()

    def _leave(self, transaction: CTransaction) -> None:
        """A transaction confirmed: it goes, and with their descendants all that spend the same coins."""
        txid: bytes = transaction.GetTxid()
        if txid in self.entries:
            self._remove(txid)
            for child in self._children(txid):
                entry = self.entries[child]
                self.entries[child] = evolve(entry, parents=entry.parents - {txid})
        rivals = {rival for spent in outpoints(transaction) if (rival := self._spenders.get(spent))}
        for gone in self._with_descendants(rivals):
            self._remove(gone)

    def _remove(self, txid: bytes) -> None:
        for spent in outpoints(self.entries.pop(txid).transaction):
            if self._spenders.get(spent) == txid:
                del self._spenders[spent]

    def _children(self, txid: bytes) -> set[bytes]:
        return {entry.txid for entry in self.entries.values() if txid in entry.parents}

    def _with_descendants(self, txids: Iterable[bytes]) -> set[bytes]:
        return _closure(txids, self._children)

    def _tell(self) -> None:
        for listener in self.listeners:
            listener()


def _parse(raw: bytes) -> CTransaction:
    try:
        return CTransaction.deserialize(raw)
    except (SerializationError, ValueError) as error:
        raise Rejected("TX decode failed", "the bytes are no transaction") from error


def _sums(entries: Mapping[bytes, Entry]) -> tuple[int, int]:
    """Fee and virtual size of all together."""
    return sum(entry.fee for entry in entries.values()), sum(entry.vsize for entry in entries.values())


def _closure(start: Iterable[bytes], following: Callable[[bytes], Iterable[bytes]]) -> set[bytes]:
    """All that can be reached, the start included."""
    found: set[bytes] = set()
    waiting = list(start)
    while waiting:
        txid = waiting.pop()
        if txid not in found:
            found.add(txid)
            waiting.extend(following(txid))
    return found

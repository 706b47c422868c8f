"""A contract's transactions in a real bitcoind: under its relay policy, beside our own mempool over the same chain.

Both get every block and every transaction, and must say the same of each, in Bitcoin Core's words; their mempools must
be equal after every step. So the tests on the embedded chain, which are many and fast, stand for a real node.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from random import Random

import pytest
from attrs import evolve, field, mutable
from bitcoin.core import CTransaction

from node.regtest.consensus import BlockChange, Chain
from node.regtest.index import Index
from node.regtest.mempool import MAX_FEE_RATE, MIN_RELAY, Mempool
from node.regtest.policy import Rejected
from protocols.contract import schnorr, signing
from protocols.contract.funding import P2TR_OUTPUT_VSIZE, PUNISH_BASE_VSIZE, FundingInput, OutPoint
from protocols.contract.sighash import TxOut, signature_hash
from protocols.contract.terms import Role
from protocols.contract.transactions import FINAL, completed, txid, unsigned

from .bitcoind import Bitcoind, RpcError, running_bitcoind
from .deals import deal, digest, opening, p2tr_of, with_inputs
from .opened import COIN_SCRIPTS, COIN_SECRETS, LOCKS, PRICE, TERMS, TOO_LOW, Open, World, lock_witnesses, paid
from .test_regtest_mempool import COIN, HOME, anchored, out, pay

pytestmark = pytest.mark.slow

CONTRACT_COINS, LAST_HEIGHT = 60, 250
FIRST_FREE, LAST_FREE = CONTRACT_COINS + 1, 149
"""Heights whose coins anyone may spend: 50 BTC each."""
HIGHER_RELAY = 5


@mutable
class Both(World):
    """One chain twice, embedded and in a bitcoind, each with its mempool."""

    index: Index = field(kw_only=True)
    mempool: Mempool = field(kw_only=True)
    node: Bitcoind = field(kw_only=True)
    _free: Iterator[int] = field(factory=lambda: iter(range(FIRST_FREE, LAST_FREE + 1)), kw_only=True)

    @classmethod
    @contextmanager
    def running(cls, folder: Path, *, min_relay: int = MIN_RELAY, policy: Sequence[str] = ()) -> Iterator["Both"]:
        options = [f"-minrelaytxfee={Decimal(min_relay) / 10**5}", *policy]
        with running_bitcoind(folder, *options) as node, Chain(folder / "chain") as chain:
            index = Index(chain)
            both = cls(chain, index=index, mempool=Mempool(chain, index, min_relay=min_relay), node=node)
            chain.listeners.append(both.hand_over)
            for height in range(1, LAST_HEIGHT + 1):
                role = Role.MAKER if height % 2 else Role.TAKER
                chain.mine(script=COIN_SCRIPTS[role] if height <= CONTRACT_COINS else HOME)
            yield both

    def hand_over(self, changes: Sequence[BlockChange]) -> None:
        for change in changes:
            if change.connected:
                # of a branch that does not have the most work yet it says "inconclusive"
                assert self.node.rpc("submitblock", change.raw.hex()) in (None, "inconclusive")
        assert self.node.rpc("getbestblockhash") == self.chain.tip[::-1].hex()

    def free(self) -> OutPoint:
        """A coin of 50 BTC that anyone may spend."""
        return OutPoint(self.index.blocks[next(self._free)][0], 0)

    def compare(self) -> None:
        """The same transactions wait in both mempools, with the same sizes and fees."""
        theirs = {
            txid: (entry["vsize"], entry["fees"]["base"] * 10**8)
            for txid, entry in self.node.rpc("getrawmempool", True).items()
        }
        assert {e.txid[::-1].hex(): (e.vsize, e.fee) for e in self.mempool.entries.values()} == theirs

    def pool(self) -> set[bytes]:
        return set(self.mempool.entries)

    def send(self, transaction: bytes | CTransaction) -> str | None:
        """What both say of a transaction: None if they took it, else the reject reason."""
        raw = serialized(transaction)
        ours = theirs = None
        try:
            self.mempool.submit(raw)
        except Rejected as error:
            ours = error.reason
        try:
            self.node.rpc("sendrawtransaction", raw.hex())
        except RpcError as error:
            theirs = cores_reason(error.message)
        assert ours == theirs
        self.compare()
        return ours

    def send_package(self, *package: bytes | CTransaction) -> list[str | None]:
        """What both say of each transaction of a package."""
        raws = [serialized(each) for each in package]
        ours = [None if error is None else error.reason for error in self.mempool.submit_package(raws).values()]
        answer = self.node.rpc("submitpackage", [raw.hex() for raw in raws])
        errors = {result["txid"]: result.get("error") for result in answer["tx-results"].values()}
        theirs = [errors[txid(CTransaction.deserialize(raw))[::-1].hex()] for raw in raws]
        if theirs[-1] == "bad-txns-inputs-missingorspent" and answer["package_msg"] != "transaction failed":
            theirs[-1] = answer["package_msg"]  # what the two together were refused for
        assert ours == [error and cores_reason(error) for error in theirs]
        self.compare()
        return ours

    def mine_pool(self, blocks: int = 1) -> None:
        """Blocks with all that waits; nothing is left."""
        for _ in range(blocks):
            self.mine(*(transaction.serialize() for transaction in self.mempool.block_template()))
        assert not self.pool()
        self.compare()

    def fork(self, depth: int) -> None:
        """The last `depth` blocks leave the chain for one more, all empty."""
        parent = self.chain.block_hash(self.chain.height - depth)
        for _ in range(depth + 1):
            parent = self.chain.submit(self.chain.build(parent=parent))
        self.compare()


def serialized(transaction: bytes | CTransaction) -> bytes:
    return transaction if isinstance(transaction, bytes) else bytes(transaction.serialize())


def cores_reason(message: str) -> str:
    """The reject reason in what the node answers, in Core's words: Knots is more exact in some."""
    if message.startswith("Fee exceeds maximum configured"):
        return "max-fee-exceeded"
    if message == "Transaction outputs already in utxo set":
        return "txn-already-known"
    for end in (",", " (", ":"):
        message = message.partition(end)[0]
    for prefix, reason in (("truc-", "TRUC-violation"), ("bad-witness-", "bad-witness-nonstandard")):
        if message.startswith(prefix):
            return reason
    return message


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with Both.running(tmp_path_factory.mktemp("bitcoind")) as both:
        yield both


@pytest.fixture
def both(running: Both) -> Iterator[Both]:
    """The two with empty mempools."""
    yield running
    running.mine_pool()


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """The two, asking for more than contracts pay by themselves."""
    with Both.running(tmp_path_factory.mktemp("crowded"), min_relay=HIGHER_RELAY) as both:
        yield both


def unopened(both: Both) -> tuple[Open, bytes]:
    """A contract, and its lock, which nobody has seen."""
    opened = Open.of(both, deal(TERMS, coins=both.coin))
    return opened, signing.complete_lock(opened.deal.plan, lock_witnesses(opened.deal))


def anchor_child(
    both: Both, commit: bytes, *, fee: int, coin: OutPoint | None = None, outputs: int = 1, version: int = 3
) -> bytes:
    """A child of a commit that spends its anchor and a coin of 50 BTC."""
    coin = coin or both.free()
    left = COIN + 240 - fee - 1000 * (outputs - 1)
    spent = [OutPoint(txid(CTransaction.deserialize(commit)), 1), coin]
    return serialized(anchored(pay(spent, left, *[1000] * (outputs - 1), version=version)))


def own_spend(coin: FundingInput, secret: bytes, script: bytes, *, fee: int, version: int) -> bytes:
    """A coin of one side, by its key path, to a script."""
    tx = unsigned(version, [(coin.txid, coin.vout, FINAL)], [TxOut(coin.value - fee, script)])
    return completed(tx, [[schnorr.sign(secret, signature_hash(tx, 0, [TxOut(coin.value, coin.script)]))]])


# Lock and commit


def test_the_commit_waits_for_the_locks_confirmation(both: Both) -> None:
    """Version 3 may not spend an unconfirmed output of version 2: contract.md, "Anchor"."""
    opened, lock = unopened(both)
    commit, copy = opened.commit(Role.MAKER), opened.commit(Role.TAKER)
    assert both.send(commit) == "bad-txns-inputs-missingorspent"
    assert both.send(lock) is None
    assert both.send(lock) is None
    assert both.send(commit) == "TRUC-violation"
    assert both.send_package(lock, commit) == [None, "TRUC-violation"]
    assert both.send(opened.close()) == "TRUC-violation"
    both.mine_pool()
    assert both.send(lock) == "txn-already-known"
    assert both.send(commit) is None
    # the same transaction by the other side's signatures: the one that came first stays
    assert both.send(copy) is None
    assert both.mempool.entries[opened.transactions.commit_txid].raw == commit
    both.mine_pool()
    assert both.send(copy) == "txn-already-known"


def test_both_sides_signatures_are_needed(both: Both) -> None:
    opened = both.open()
    commit, leaf = opened.transactions.commit, opened.transactions.lock_output.leaf
    second, first, *_ = CTransaction.deserialize(opened.commit(Role.MAKER)).wit.vtxinwit[0].scriptWitness.stack
    for one, other in ((second, first), (first, b""), (b"", second), (first, first)):
        assert both.send(completed(commit, [leaf.witness(one, other)])) == "mempool-script-verify-flag-failed"
    assert both.send(completed(commit, [leaf.witness(first, second)])) is None


def test_the_lock_is_closed_together(both: Both) -> None:
    opened = both.open()
    close = opened.close()
    assert both.send(close) is None
    assert both.pool() == {txid(CTransaction.deserialize(close))}
    assert both.send(opened.commit(Role.TAKER)) == "insufficient fee"
    both.mine_pool()
    # at one rate the close is the smaller: a commit that is out, whoever published it, stands in its way
    opened = both.open()
    assert both.send(opened.commit(Role.TAKER)) is None
    assert both.send(opened.close()) == "insufficient fee"


def test_an_abandoned_lock_is_replaced(both: Both) -> None:
    """Money safety rule 2: one of our inputs goes back to us at twice the rate, and for more than the lock's fee."""
    opened, lock = unopened(both)
    plan = opened.deal.plan
    assert both.send(lock) is None
    fee = both.mempool.entries[opened.transactions.lock_txid].fee

    def back(fee: int) -> bytes:
        return own_spend(plan.maker.inputs[0], COIN_SECRETS[Role.MAKER], plan.maker.change_script, fee=fee, version=2)

    assert both.send(back(fee)) == "insufficient fee"
    assert both.send(back(fee + 50)) == "insufficient fee"
    assert both.send(back(2 * fee)) is None
    assert both.send(lock) == "insufficient fee"
    both.mine_pool()
    assert both.send(lock) == "bad-txns-inputs-missingorspent"


# What spends the commit


def settlement(opened: Open) -> bytes:
    outcome = opened.outcome(PRICE)
    return opened.cet(Role.MAKER, outcome, opening(outcome, PRICE))


def liquidation(opened: Open) -> bytes:
    outcome = opened.outcome(TOO_LOW, event=0)
    return opened.cet(Role.TAKER, outcome, opening(outcome, TOO_LOW))


def refund(opened: Open) -> bytes:
    return opened.refund(Role.TAKER)


@pytest.mark.parametrize(
    ("spend", "lock"),
    [(liquidation, LOCKS.liquidation), (settlement, LOCKS.settlement), (refund, LOCKS.refund)],
    ids=["liquidation", "settlement", "refund"],
)
def test_what_spends_the_commit_waits_for_its_lock(both: Both, spend: Callable[[Open], bytes], lock: int) -> None:
    opened = both.open()
    raw = spend(opened)
    assert both.send(raw) == "bad-txns-inputs-missingorspent"
    assert both.send(opened.commit(Role.MAKER)) is None
    assert both.send(raw) == "non-BIP68-final"
    both.mine_pool()
    for _ in range(lock - 1):
        assert both.send(raw) == "non-BIP68-final"
        both.mine_pool()
    assert both.send(raw) is None
    both.mine_pool()
    assert both.send(raw) == "txn-already-known"


def test_both_spend_the_commit_at_once(both: Both) -> None:
    opened = both.open()
    assert both.send_package(opened.commit(Role.MAKER), opened.together(PRICE)) == [None, None]


@pytest.mark.parametrize("cheat", Role)
def test_a_revoked_commit_is_punished_in_the_mempool_already(both: Both, cheat: Role) -> None:
    opened = both.open()
    commit = opened.commit(cheat)
    assert both.send(commit) is None
    assert both.send(opened.punish(cheat, commit, fee=1_000)) is None
    # raised as the lock nears, whatever the cheat does
    assert both.send(opened.punish(cheat, commit, fee=1_100)) == "insufficient fee"
    assert both.send(opened.punish(cheat, commit, fee=2_000)) is None
    assert both.send(opened.together(PRICE)) == "insufficient fee"
    # no further than this: for nodes a higher rate is a mistake of the sender
    most = MAX_FEE_RATE * (PUNISH_BASE_VSIZE + P2TR_OUTPUT_VSIZE)
    assert most < opened.transactions.commit_value
    assert both.send(opened.punish(cheat, commit, fee=most + 1)) == "max-fee-exceeded"
    assert both.send(opened.punish(cheat, commit, fee=most)) is None


def test_a_new_commit_does_not_replace_the_old_one_by_itself(both: Both) -> None:
    """Both pay the same: whoever wants n+1 confirmed over n has to pay more, through the anchor."""
    opened = both.open()
    rolled = deal(evolve(TERMS, maker_account=12_000), attempt=1)
    plan = with_inputs(rolled.plan, opened.deal.plan.maker.inputs, opened.deal.plan.taker.inputs)
    after = Open.of(both, evolve(rolled, plan=plan))
    new = after.commit(Role.MAKER)
    assert both.send(opened.commit(Role.TAKER)) is None
    assert both.send(new) == "insufficient fee"
    coin = both.free()
    poor = anchor_child(both, new, fee=100, coin=coin)
    assert both.send_package(new, poor) == ["insufficient fee", "package RBF failed"]
    assert both.send_package(new, anchor_child(both, new, fee=5_000, coin=coin)) == [None, None]
    assert after.transactions.commit_txid in both.pool()
    assert opened.transactions.commit_txid not in both.pool()


# The anchor


def test_one_small_child_raises_the_commit(both: Both) -> None:
    opened = both.open()
    commit = opened.commit(Role.MAKER)
    assert both.send(commit) is None
    coin = both.free()

    def child(fee: int, *, outputs: int = 1, version: int = 3, other: OutPoint | None = None) -> bytes:
        return anchor_child(both, commit, fee=fee, coin=other or coin, outputs=outputs, version=version)

    assert both.send(child(50_000, outputs=24)) == "TRUC-violation"  # 1 128 vbytes
    assert both.send(child(50_000, version=2)) == "TRUC-violation"
    assert both.send(child(2_000, outputs=20)) is None  # 956 vbytes
    # replaced, as fees rise
    assert both.send(child(2_000)) == "insufficient fee"
    assert both.send(child(2_100)) == "insufficient fee"
    assert both.send(child(4_000)) is None
    other = both.free()
    assert both.send(child(3_000, other=other)) == "insufficient fee"
    assert both.send(child(6_000, other=other)) is None
    # no child of the child
    grandchild = pay(OutPoint(txid(CTransaction.deserialize(child(6_000, other=other))), 0), COIN - 10**5, version=3)
    assert both.send(grandchild) == "TRUC-violation"
    # a second child of the commit takes the place of the first, if it pays more
    assert both.send(opened.together(PRICE)) == "insufficient fee"
    assert both.send(opened.punish(Role.MAKER, commit, fee=20_000)) is None
    assert len(both.pool()) == 2


def test_a_witness_on_the_anchor_is_refused(both: Both) -> None:
    opened = both.open()
    commit = opened.commit(Role.MAKER)
    assert both.send(commit) is None
    spent = [OutPoint(opened.transactions.commit_txid, 1), both.free()]
    assert both.send(pay(spent, COIN - 5_000, version=3)) == "bad-witness-nonstandard"


def test_a_commit_below_the_relay_fee_comes_in_with_its_child(crowded: Both) -> None:
    both = crowded
    opened = both.open()
    commit = opened.commit(Role.MAKER)
    assert both.send(commit) == "min relay fee not met"
    coin = both.free()
    poor, rich, richer = (anchor_child(both, commit, fee=fee, coin=coin) for fee in (600, 2_000, 6_000))
    assert both.send(rich) == "bad-txns-inputs-missingorspent"
    assert both.send_package(commit, poor) == ["min relay fee not met"] * 2
    assert both.send_package(commit, rich) == [None, None]
    assert both.send_package(commit, rich) == [None, None]
    assert both.send_package(commit, richer) == [None, None]
    both.mine_pool()


def test_a_cet_below_the_relay_fee_comes_in_with_a_child_of_its_own_output(crowded: Both) -> None:
    both = crowded
    opened = both.open()
    commit, cet = opened.commit(Role.MAKER), settlement(opened)
    assert both.send_package(commit, anchor_child(both, commit, fee=2_000)) == [None, None]
    both.mine_pool(LOCKS.settlement)
    assert both.send(cet) == "min relay fee not met"
    script = opened.deal.plan.maker.payout_script
    (own,) = (n for n, (_, paid_to) in enumerate(paid(cet)) if paid_to == script)
    payout = FundingInput(txid(CTransaction.deserialize(cet)), own, paid(cet)[own][0], script)
    child = own_spend(payout, digest("payout", Role.MAKER), p2tr_of("home"), fee=2_000, version=3)
    assert both.send_package(cet, child) == [None, None]
    both.mine_pool()


# Forks


def test_a_contract_comes_back_from_a_block_that_is_lost(both: Both) -> None:
    """All of it waits again, even the commit whose lock is unconfirmed now; what has a lock of its own is dropped."""
    opened, lock = unopened(both)
    commit, together = opened.commit(Role.TAKER), opened.together(PRICE)
    for raw in (lock, commit, together):
        assert both.send(raw) is None
        both.mine_pool()
    # two children of the commit: not to be had but in a fork
    assert both.send(anchor_child(both, commit, fee=2_000)) is None
    both.fork(3)
    assert len(both.pool()) == 4
    assert both.send(opened.commit(Role.MAKER)) is None
    both.mine_pool()

    opened = both.open()
    assert both.send(opened.commit(Role.MAKER)) is None
    both.mine_pool(LOCKS.settlement)
    assert both.send(settlement(opened)) is None
    both.fork(LOCKS.settlement)
    assert both.pool() == {opened.transactions.commit_txid}
    assert both.send(settlement(opened)) == "non-BIP68-final"


# Whatever else


def basics(both: Both) -> Iterator[tuple[str | None, CTransaction]]:
    """Transactions of all kinds, and what is to be said of each."""
    coin = both.free()
    yield "bad-txns-vout-empty", pay(coin)
    yield "bad-txns-inputs-duplicate", pay([coin, coin], 1_000)
    yield "bad-txns-vout-toolarge", pay(coin, 22_000_000 * 10**8)
    yield "bad-txns-inputs-missingorspent", pay(OutPoint(bytes(31) + b"\x01", 7), 1_000)
    yield "bad-txns-inputs-missingorspent", pay(OutPoint(coin.txid, 1), 1_000)
    yield "bad-txns-premature-spend-of-coinbase", pay(OutPoint(both.index.blocks[-99][0], 0), 1_000)
    yield "bad-txns-in-belowout", pay(coin, COIN + 1)
    yield "version", pay(coin, COIN - 1_000, version=4)
    yield "version", pay(coin, COIN - 1_000, version=0)
    yield "scriptpubkey", pay(coin, COIN - 1_000, script=b"\x51")
    yield "tx-size-small", pay(coin, 0, script=b"\x6a")
    yield "tx-size", pay(coin, COIN - 4_000_000, *[1_000] * 2_400)
    yield "min relay fee not met", pay(coin, COIN - 95)
    yield "max-fee-exceeded", pay(coin, 1_000)
    yield "dust", pay(coin, COIN - 1_000, 329)
    yield "dust", pay(coin, COIN - 1_000, anchor=239)
    yield "mempool-script-verify-flag-failed", pay(coin, COIN - 1_000, witness=[b"\x00"])
    yield "mempool-script-verify-flag-failed", pay(coin, 1_000, witness=[b"\x00"])
    yield "bad-witness-nonstandard", pay(coin, COIN - 1_000, witness=[bytes(81), b"\x51"])
    yield "non-final", pay(coin, COIN - 1_000, lock=both.chain.height + 1, sequence=0xFFFFFFFD)
    yield "non-final", pay(coin, COIN - 1_000, lock=both.chain.median_time(), sequence=0xFFFFFFFD)
    yield "non-BIP68-final", pay(coin, COIN - 1_000, sequence=5_000)
    yield "TRUC-violation", pay(coin, COIN - 300_000, *[1_000] * 240, version=3)
    yield None, pay(coin, COIN - 96)
    yield None, pay(coin, COIN - 2_000, lock=both.chain.height, sequence=0xFFFFFFFD)
    yield None, pay(coin, COIN - 4_000, 330, anchor=240)


def test_transactions_of_all_kinds(both: Both) -> None:
    for reason, transaction in basics(both):
        assert both.send(transaction) == reason, transaction


@pytest.mark.parametrize("seed", range(3))
def test_random_payments_blocks_and_forks(both: Both, seed: int) -> None:
    random = Random(seed)
    known = {both.free(): COIN for _ in range(10)}
    verdicts: Counter[str | None] = Counter()
    for _ in range(200):
        match random.randrange(12):
            case 0:
                both.mine_pool()
            case 1:
                both.fork(random.randrange(1, 4))
            case kind:
                spent = dict(random.sample(list(known.items()), random.choice([1, 1, 1, 2])))
                fee = random.choice([0, 200, 500, 2_000, 9_000, 40_000])
                halves = (sum(spent.values()) - fee) // 2
                payment = pay(
                    list(spent),
                    halves,
                    halves,
                    version=random.choice([2, 3]),
                    sequence=random.choice([0xFFFFFFFF, 0xFFFFFFFD, 0, 1, 3, 200]),
                    lock=random.choice([0, 0, both.chain.height, both.chain.height + 2]),
                )
                if kind < 5 and both.mempool.spender(next(iter(spent))) is None:
                    child = pay(out(payment), halves - random.choice([100, 3_000]), version=payment.nVersion)
                    verdicts.update(both.send_package(payment, child))
                else:
                    verdicts[both.send(payment)] += 1
                if payment.GetTxid() in both.pool():
                    known |= {out(payment, n): halves for n in range(2)}
    assert verdicts[None] > 20
    assert len(verdicts) > 5, verdicts


def test_all_of_a_contract_is_standard_by_knots_own_policy(tmp_path: Path) -> None:
    """Not everybody keeps to Core's: what a contract needs passes through the stricter nodes, too."""
    with Both.running(tmp_path, policy=["-corepolicy=0"]) as both:
        for spend in (liquidation, settlement, refund, lambda opened: opened.together(PRICE)):
            opened, lock = unopened(both)
            assert both.send(lock) is None
            both.mine_pool()
            commit = opened.commit(Role.TAKER)
            assert both.send(commit) is None
            assert both.send(anchor_child(both, commit, fee=2_000)) is None
            both.mine_pool(LOCKS.refund)
            assert both.send(spend(opened)) is None
            both.mine_pool()
        opened = both.open()
        assert both.send(opened.close()) is None
        opened = both.open()
        commit = opened.commit(Role.TAKER)
        assert both.send_package(commit, opened.punish(Role.TAKER, commit, fee=1_000)) == [None, None]
        both.mine_pool()

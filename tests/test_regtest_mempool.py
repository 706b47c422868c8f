"""The mempool refuses what Bitcoin Core's refuses, with the same reasons, and survives reorganisations."""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest
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

from node.regtest.consensus import Chain
from node.regtest.index import Index, script_hash
from node.regtest.mempool import MAX_CHAIN, Mempool
from node.regtest.policy import P2A, Rejected, dust_limit, weight
from protocols.contract.funding import OutPoint

TRUE = b"\x51"
HOME = b"\x00\x20" + sha256(TRUE).digest()
"""P2WSH of OP_TRUE: standard, and anyone's to spend with the witness [TRUE]."""
COIN = 50 * 10**8


class World:
    """A chain with a mempool, and coins that anyone may spend."""

    def __init__(self, datadir: Path, script: bytes = HOME) -> None:
        self.chain = Chain(datadir)
        self.index = Index(self.chain)
        self.mempool = Mempool(self.chain, self.index)
        self.chain.mine_many(120, script=script)

    def coin(self, height: int) -> OutPoint:
        return OutPoint(self.index.blocks[height][0], 0)

    def send(self, transaction: CTransaction) -> bytes:
        return self.mempool.submit(transaction.serialize())

    def refusal(self, transaction: CTransaction) -> str:
        before = dict(self.mempool.entries)
        with pytest.raises(Rejected) as refused:
            self.send(transaction)
        assert self.mempool.entries == before
        return refused.value.sentence

    def mine(self) -> None:
        self.chain.mine(self.mempool.block_template())

    def pool(self) -> set[bytes]:
        return set(self.mempool.entries)


def pay(
    spent: OutPoint | Sequence[OutPoint],
    *values: int,
    version: int = 2,
    sequence: int = 0xFFFFFFFF,
    lock: int = 0,
    script: bytes = HOME,
    witness: Sequence[bytes] = (TRUE,),
    padding: int = 0,
    anchor: int | None = None,
) -> CTransaction:
    inputs = [spent] if isinstance(spent, OutPoint) else spent
    transaction = CMutableTransaction(
        [CMutableTxIn(COutPoint(o.txid, o.vout), nSequence=sequence) for o in inputs],
        [CMutableTxOut(value, CScript(script)) for value in values],
        nLockTime=lock,
    )
    if anchor is not None:
        transaction.vout.append(CMutableTxOut(anchor, CScript(P2A)))
    if padding:
        transaction.vout.append(CMutableTxOut(0, CScript(b"\x6a" + bytes(padding))))
    transaction.nVersion = version
    transaction.wit = CTxWitness([CTxInWitness(CScriptWitness(list(witness))) for _ in inputs])
    return CTransaction.from_tx(transaction)


def out(transaction: CTransaction, vout: int = 0) -> OutPoint:
    return OutPoint(transaction.GetTxid(), vout)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.chain.close()


def test_takes_a_transaction_in_and_gives_it_to_the_next_block(world: World) -> None:
    told: list[int] = []
    world.mempool.listeners.append(lambda: told.append(len(world.mempool.entries)))
    payment = pay(world.coin(1), COIN - 1000)
    txid = world.send(payment)
    entry = world.mempool.entries[txid]
    assert (entry.fee, entry.vsize, entry.parents) == (1000, -(-weight(payment) // 4), frozenset())
    assert world.send(payment) == txid
    assert world.send(pay(world.coin(1), COIN - 1000, witness=[b"another"])) == txid
    assert world.mempool.entries[txid] == entry
    assert world.mempool.spender(world.coin(1)) == txid
    assert world.index.coins.get(out(payment)) is None
    child = pay(out(payment), COIN - 2000)
    assert world.mempool.entries[world.send(child)].parents == {txid}
    world.mine()
    assert (world.pool(), told) == (set(), [1, 2, 0])
    assert [
        (world.index.transactions[t].height, world.index.transactions[t].position) for t in (txid, child.GetTxid())
    ] == [(121, 1), (121, 2)]
    assert world.mempool.spender(world.coin(1)) == txid
    assert world.refusal(child) == "txn-already-known"
    # nobody remembers a transaction whose outputs are all spent
    assert world.refusal(payment) == "bad-txns-inputs-missingorspent"


def test_basic_refusals(world: World) -> None:
    with pytest.raises(Rejected, match="TX decode failed"):
        world.mempool.submit(b"\x01\x00")
    coin = world.coin(1)
    assert world.refusal(pay(coin)) == "bad-txns-vout-empty"
    assert world.refusal(pay([coin, coin], 1000)) == "bad-txns-inputs-duplicate"
    assert world.refusal(pay(coin, 22_000_000 * 10**8)) == "bad-txns-vout-toolarge"
    assert world.refusal(pay(coin, COIN - 1000, version=4)) == "version"
    assert world.refusal(pay(coin, COIN - 2000, 1000, script=TRUE)) == "scriptpubkey"
    assert world.refusal(pay(coin, COIN - 1000, padding=99_990)) == "tx-size"
    assert world.refusal(pay(OutPoint(bytes(32), 7), 1000)) == "bad-txns-inputs-missingorspent"
    assert world.refusal(pay(world.coin(100), COIN - 1000)) == "bad-txns-premature-spend-of-coinbase"
    assert world.refusal(pay(coin, COIN + 1)).startswith("bad-txns-in-belowout")
    assert world.refusal(pay(coin, COIN - 10)).startswith("min relay fee not met, 10 < ")
    assert world.refusal(pay(coin, 1000)).startswith("max-fee-exceeded")
    assert world.refusal(pay(coin, COIN - 1000, witness=[b"\x00"])).startswith("mempool-script-verify-flag-failed")
    assert world.refusal(pay(coin, COIN - 1000, witness=[bytes(81), TRUE])).startswith("bad-witness-nonstandard")
    world.chain.mine(script=TRUE)
    world.chain.mine_many(100)
    assert world.refusal(pay(world.coin(121), COIN // 2)).startswith("bad-txns-nonstandard-inputs")


def test_dust(world: World) -> None:
    assert [dust_limit(script) for script in (P2A, b"\x00\x14" + bytes(20), b"\x51\x20" + bytes(32))] == [
        240,
        294,
        330,
    ]
    assert world.refusal(pay(world.coin(1), COIN - 1000, 329)).startswith("dust")
    assert world.refusal(pay(world.coin(1), COIN - 1000, anchor=239)).startswith("dust")
    world.send(pay(world.coin(1), COIN - 1000, 330, anchor=240))


@pytest.mark.parametrize("lock", ["height", "time", "blocks", "seconds"])
def test_lock_times_are_judged_for_the_next_block(world: World, lock: str) -> None:
    match lock:
        case "height":
            late = pay(world.coin(1), COIN - 1000, lock=121, sequence=0xFFFFFFFD)
            assert world.refusal(late) == "non-final"
            world.chain.mine()
        case "time":
            now = world.chain.median_time()
            late = pay(world.coin(1), COIN - 1000, lock=now + 600, sequence=0xFFFFFFFD)
            assert world.refusal(late) == "non-final"
            for _ in range(6):
                world.chain.mine(time=now + 601)
        case "blocks":
            # confirmed at height 3, so a lock of 119 blocks lets it into block 122
            late = pay(world.coin(3), COIN - 1000, sequence=119)
            assert world.refusal(late) == "non-BIP68-final"
            world.chain.mine()
        case _:
            now = world.chain.median_time()
            late = pay(world.coin(20), COIN - 1000, sequence=1 << 22 | 3)
            assert world.refusal(late) == "non-BIP68-final"
            for _ in range(6):
                world.chain.mine(time=now + 3 * 512)
    world.send(late)
    world.mine()
    assert late.GetTxid() in world.index.transactions


def test_relative_locks_start_with_the_confirmation(world: World) -> None:
    parent = pay(world.coin(1), COIN - 1000)
    world.send(parent)
    assert world.refusal(pay(out(parent), COIN - 2000, sequence=1)) == "non-BIP68-final"
    world.send(pay(out(parent), COIN - 2000, sequence=0))
    world.mine()
    assert not world.pool()


def test_a_replacement_pays_for_what_it_replaces_and_for_itself(world: World) -> None:
    one = pay(world.coin(1), COIN - 1000)
    child = pay(out(one), COIN - 3000)
    world.send(one)
    world.send(child)
    assert "new feerate" in world.refusal(pay(world.coin(1), COIN - 999))
    assert "less fees than conflicting txs" in world.refusal(pay(world.coin(1), COIN - 2999))
    assert "not enough additional fees" in world.refusal(pay(world.coin(1), COIN - 3001))
    assert "spends-conflicting-tx" in world.refusal(pay([world.coin(1), out(child)], COIN))
    other = pay(world.coin(3), COIN - 1000)
    world.send(other)
    assert "adds-unconfirmed" in world.refusal(pay([world.coin(1), out(other)], 2 * COIN - 10**5))
    better = pay(world.coin(1), COIN - 4000)
    world.send(better)
    assert world.pool() == {better.GetTxid(), other.GetTxid()}


def test_a_block_evicts_what_it_double_spends(world: World) -> None:
    loser, child = pay(world.coin(1), COIN - 1000), pay(out(pay(world.coin(1), COIN - 1000)), COIN - 2000)
    keeper = pay(world.coin(2), COIN - 1000)
    for transaction in (loser, child, keeper):
        world.send(transaction)
    world.chain.mine([pay(world.coin(1), COIN - 500)])
    assert world.pool() == {keeper.GetTxid()}


def test_chains_of_unconfirmed_transactions_end_somewhere(world: World) -> None:
    last = pay(world.coin(1), COIN - 1000)
    world.send(last)
    for n in range(2, MAX_CHAIN + 1):
        last = pay(out(last), COIN - 1000 * n)
        world.send(last)
    assert world.refusal(pay(out(last), 10**8)).startswith("too-long-mempool-chain")


class TestTruc:
    """Version 3, as BIP431 restricts it."""

    def test_keeps_to_its_own_version(self, world: World) -> None:
        two = pay(world.coin(1), COIN - 1000)
        three = pay(world.coin(2), COIN - 1000, version=3)
        world.send(two)
        world.send(three)
        assert "cannot spend from non-version=3" in world.refusal(pay(out(two), COIN - 2000, version=3))
        assert "cannot spend from version=3" in world.refusal(pay(out(three), COIN - 2000))
        world.mine()
        world.send(pay(out(two), COIN - 2000, version=3))
        world.send(pay(out(three), COIN - 2000))

    def test_sizes_are_bounded(self, world: World) -> None:
        huge = pay(world.coin(1), COIN - 50_000, version=3, padding=9_950)
        assert "is too big" in world.refusal(huge)
        parent = pay(world.coin(1), COIN - 50_000, version=3, padding=9_000)
        world.send(parent)
        assert "is too big" in world.refusal(pay(out(parent), COIN - 10**5, version=3, padding=950))
        world.send(pay(out(parent), COIN - 10**5, version=3, padding=800))

    def test_one_parent_and_one_child(self, world: World) -> None:
        parent = pay(world.coin(1), COIN // 2 - 1000, COIN // 2, version=3)
        world.send(parent)
        child = pay(out(parent), COIN // 2 - 3000, version=3)
        world.send(child)
        assert "too many ancestors" in world.refusal(pay(out(child), COIN // 2 - 4000, version=3))
        # a sibling may take the child's place if it pays enough
        assert "insufficient fee" in world.refusal(pay(out(parent, 1), COIN // 2 - 2000, version=3))
        sibling = pay(out(parent, 1), COIN // 2 - 9000, version=3)
        world.send(sibling)
        assert world.pool() == {parent.GetTxid(), sibling.GetTxid()}
        rival = pay(world.coin(2), COIN - 1000, version=3)
        world.send(rival)
        both = pay([out(parent), out(rival)], COIN, version=3)
        assert "too many ancestors" in world.refusal(both)


class TestPackages:
    def results(self, world: World, *package: CTransaction) -> list[str | None]:
        found = world.mempool.submit_package([t.serialize() for t in package])
        assert list(found) == [t.GetTxid() for t in package][: len(found)]
        return [None if error is None else error.sentence for error in found.values()]

    def test_a_child_pays_for_a_parent_without_a_fee(self, world: World) -> None:
        parent = pay(world.coin(1), COIN - 240, version=3, anchor=240)
        child = pay([out(parent, 1), world.coin(2)], COIN - 2000, version=3)
        child = anchored(child)
        assert world.refusal(parent).startswith("min relay fee not met")
        assert self.results(world, parent, child) == [None, None]
        assert world.pool() == {parent.GetTxid(), child.GetTxid()}
        assert self.results(world, parent, child) == [None, None]
        world.mine()
        assert not world.pool()

    def test_a_poor_package_is_refused_whole(self, world: World) -> None:
        parent = pay(world.coin(1), COIN, version=3)
        poor = self.results(world, parent, pay(out(parent), COIN - 100, version=3))
        assert [sentence and sentence.partition(",")[0] for sentence in poor] == ["min relay fee not met"] * 2
        assert not world.pool()

    def test_only_version_3_may_leave_the_fee_to_its_child(self, world: World) -> None:
        parent = pay(world.coin(1), COIN)
        refused = self.results(world, parent, pay(out(parent), COIN - 1000))
        assert refused == ["min relay fee not met, 0 < 96", "bad-txns-inputs-missingorspent"]
        assert not world.pool()

    def test_a_higher_relay_fee_keeps_out_what_pays_less_and_has_no_child(self, world: World) -> None:
        mempool = Mempool(world.chain, world.index, min_relay=5)
        parent = pay(world.coin(1), COIN - 240 - 2 * 109, version=3, anchor=240)
        with pytest.raises(Rejected, match="min relay fee not met, 218 < 545"):
            mempool.submit(parent.serialize())
        child = anchored(pay([out(parent, 1), world.coin(2)], COIN - 5000, version=3))
        assert set(mempool.submit_package([parent.serialize(), child.serialize()]).values()) == {None}

    def test_ephemeral_dust_must_be_spent(self, world: World) -> None:
        parent = pay(world.coin(1), COIN, version=3, anchor=0)
        child = pay(out(parent), COIN - 1000, version=3)
        assert self.results(world, parent, child) == [
            "min relay fee not met, 0 < 109",
            f"missing-ephemeral-spends, tx {child.GetTxid()[::-1].hex()}",
        ]
        assert self.results(world, parent, anchored(pay([out(parent, 1), out(parent)], COIN - 1000, version=3))) == [
            None,
            None,
        ]

    def test_a_package_replaces_a_package(self, world: World) -> None:
        parent = pay(world.coin(1), COIN - 240, version=3, anchor=240)
        child = anchored(pay([out(parent, 1), world.coin(2)], COIN - 2000, version=3))
        assert self.results(world, parent, child) == [None, None]
        rival = pay(world.coin(1), COIN - 241, version=3, anchor=240)
        poor = anchored(pay([out(rival, 1), world.coin(3)], COIN - 2000, version=3))
        low, insufficient = self.results(world, rival, poor)
        assert low == "min relay fee not met, 1 < 109"
        assert insufficient is not None
        assert insufficient.startswith("package RBF failed")
        rich = anchored(pay([out(rival, 1), world.coin(3)], COIN - 9000, version=3))
        assert self.results(world, rival, rich) == [None, None]
        assert world.pool() == {rival.GetTxid(), rich.GetTxid()}

    def test_one_alone_is_a_package_too(self, world: World) -> None:
        assert self.results(world, pay(world.coin(1), COIN - 1000)) == [None]
        assert self.results(world, pay(world.coin(2), COIN - 10)) == ["min relay fee not met, 10 < 96"]

    def test_only_a_child_with_its_parents(self, world: World) -> None:
        one, two = pay(world.coin(1), COIN - 1000), pay(world.coin(2), COIN - 1000)
        for package, reason in (
            ([], "package-too-many-transactions"),
            ([one, one], "package-contains-duplicates"),
            ([one, two], "package-not-child-with-parents"),
            ([one, pay(out(one), COIN - 2000), pay(out(one), COIN - 3000)], "package-not-child-with-parents"),
        ):
            with pytest.raises(Rejected, match=reason):
                world.mempool.submit_package([t.serialize() for t in package])


def anchored(child: CTransaction) -> CTransaction:
    """The same, its first input a pay-to-anchor output: that witness has to be empty."""
    mutable = CMutableTransaction.from_tx(child)
    stacks = [CTxInWitness(), *(CTxInWitness(CScriptWitness([TRUE])) for _ in child.vin[1:])]
    mutable.wit = CTxWitness(stacks)
    return CTransaction.from_tx(mutable)


class TestReorganisation:
    def fork(self, world: World, depth: int, *blocks: Sequence[CTransaction]) -> None:
        parent = world.chain.block_hash(world.chain.height - depth)
        for transactions in blocks:
            parent = world.chain.submit(world.chain.build(transactions, parent=parent))

    def test_transactions_come_back(self, world: World) -> None:
        parent = pay(world.coin(1), COIN - 1000)
        child = pay(out(parent), COIN - 2000)
        world.send(parent)
        world.mine()
        world.send(child)
        waiting = pay(out(child), COIN - 3000)
        world.mine()
        world.send(waiting)
        everything = world.pool() | {parent.GetTxid(), child.GetTxid()}
        self.fork(world, 2, [], [], [])
        assert list(world.mempool.entries) == [t.GetTxid() for t in (parent, child, waiting)]
        assert world.mempool.entries[child.GetTxid()].parents == {parent.GetTxid()}
        assert world.index.spenders.get(world.coin(1)) is None
        world.mine()
        assert everything <= world.index.transactions.keys()

    def test_what_the_new_branch_contradicts_is_dropped(self, world: World) -> None:
        payment = pay(world.coin(1), COIN - 1000)
        child = pay(out(payment), COIN - 2000)
        world.send(payment)
        world.mine()
        world.send(child)
        rival = pay(world.coin(1), COIN - 5000)
        self.fork(world, 1, [rival], [])
        assert world.pool() == set()
        assert world.mempool.spender(world.coin(1)) == rival.GetTxid()

    def test_a_relative_lock_that_runs_again_drops_its_spender(self, world: World) -> None:
        payment = pay(world.coin(1), COIN - 1000)
        world.send(payment)
        world.mine()
        world.chain.mine()
        late = pay(out(payment), COIN - 2000, sequence=2)
        world.send(late)
        self.fork(world, 2, [], [], [])
        assert world.pool() == {payment.GetTxid()}

    def test_the_index_is_what_a_new_one_would_be(self, world: World) -> None:
        payment = pay(world.coin(1), COIN - 1000)
        world.send(payment)
        world.mine()
        self.fork(world, 1, [pay(world.coin(2), COIN - 700)], [pay(world.coin(3), COIN - 700)])
        fresh, home = Index(world.chain), script_hash(HOME)
        assert fresh.coins == world.index.coins
        assert fresh.spenders == world.index.spenders
        assert fresh.transactions == world.index.transactions
        assert fresh.blocks == world.index.blocks
        assert fresh.unspent(home) == world.index.unspent(home)
        assert [t.txid for t in fresh.history(home)] == [t.txid for t in world.index.history(home)]


@pytest.mark.parametrize("seed", range(4))
def test_whatever_it_takes_the_kernel_takes(world: World, seed: int) -> None:
    """Random payments, replacements, packages, locks, blocks and forks: every template is a valid block."""
    random = Random(seed)
    known: list[tuple[OutPoint, int]] = [(world.coin(height), COIN) for height in range(1, 15)]
    taken = refused = mined = 0
    for _ in range(250):
        match random.randrange(12):
            case 0:
                world.mine()
                mined += 1
            case 1:
                depth = random.randrange(1, 4)
                parent = world.chain.block_hash(world.chain.height - depth)
                for _ in range(depth + 1):
                    parent = world.chain.submit(world.chain.build(parent=parent, script=HOME))
            case kind:
                spent = dict(random.sample(known, random.choice([1, 1, 1, 2])))
                fee = random.choice([0, 200, 500, 2000, 9000, 40_000])
                halves = (sum(spent.values()) - fee) // 2
                payment = pay(
                    list(spent),
                    halves,
                    halves,
                    version=random.choice([2, 3]),
                    sequence=random.choice([0xFFFFFFFF, 0xFFFFFFFD, 0, 1, 3, 110]),
                    lock=random.choice([0, 0, world.chain.height, world.chain.height + 2]),
                )
                child = pay(out(payment), halves - 3000, version=payment.nVersion)
                try:
                    if kind < 4:
                        if any(world.mempool.submit_package([payment.serialize(), child.serialize()]).values()):
                            refused += 1
                    else:
                        world.send(payment)
                    taken += payment.GetTxid() in world.pool()
                    known += [(out(payment, n), halves) for n in range(2)]
                except Rejected:
                    refused += 1
    world.mine()
    assert not world.pool()
    assert min(taken, refused, mined) > 5
    fresh = Index(world.chain)
    assert (fresh.coins, fresh.spenders, fresh.transactions) == (
        world.index.coins,
        world.index.spenders,
        world.index.transactions,
    )


def test_a_block_with_a_floor_takes_a_parent_with_the_child_that_pays_for_it(world: World) -> None:
    parent, alone = pay(world.coin(1), COIN - 300), pay(world.coin(2), COIN - 300)
    modest, rich = pay(out(parent), COIN - 1_300), pay(out(alone), COIN - 9_300)
    for transaction in (parent, alone, modest, rich):
        world.send(transaction)
    size = sum(world.mempool.entries[transaction.GetTxid()].vsize for transaction in (parent, modest))

    def template(floor: int) -> list[bytes]:
        return [transaction.GetTxid() for transaction in world.mempool.block_template(floor)]

    assert template(0) == [each.GetTxid() for each in (parent, alone, modest, rich)]
    assert template(1_300 // size) == template(0)
    assert template(1_300 // size + 1) == [alone.GetTxid(), rich.GetTxid()]
    assert template(100) == []

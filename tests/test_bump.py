"""Children pay for their parents to the satoshi, as their sizes are on the chain's rules; they replace each other; the
embedded mempool takes them with parents that it would not take alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from attrs import evolve
from bitcoin.core import CTransaction
from hypothesis import given
from hypothesis import strategies as st

from node.regtest.consensus import Chain
from node.regtest.index import Index
from node.regtest.mempool import Mempool
from node.regtest.policy import Rejected
from protocols.contract import schnorr
from protocols.contract.bump import (
    MAX_VSIZE,
    Child,
    Parent,
    Replaced,
    Unaffordable,
    anchored,
    child_of,
    paying,
    rate,
)
from protocols.contract.funding import BadScript, FundingInput
from protocols.contract.numbers import DUST
from protocols.contract.scripts import ANCHOR_SCRIPT, ANCHOR_VALUE, p2tr
from protocols.contract.sighash import signature_hash
from protocols.contract.terms import Role
from protocols.contract.transactions import completed, txid, vsize

from .deals import digest, opening, p2tr_of, x_only
from .opened import COIN_SCRIPTS, COIN_SECRETS, LOCKS, PRICE, TERMS, Open, World

HOME = p2tr_of("home")
PLENTY = 10**9


def coin(number: int, value: int) -> FundingInput:
    return FundingInput(number.to_bytes(32, "big"), number, value, p2tr_of("coin", number))


COMMIT = Parent(332, 166, FundingInput(bytes(32), 1, ANCHOR_VALUE, ANCHOR_SCRIPT))
CET = Parent(408, 204, FundingInput(bytes(32), 0, 50_000, p2tr_of("payout")))
wallets = st.lists(st.integers(1, 300_000), max_size=30).map(
    lambda values: [coin(number, value) for number, value in enumerate(values, 1)]
)
parents = st.sampled_from([COMMIT, CET])


def signed_size(child: Child) -> int:
    """With the witnesses that its inputs need: none for the anchor, one signature for each other."""
    witnesses = [() if each.script == ANCHOR_SCRIPT else (bytes(64),) for each in child.spent]
    return vsize(CTransaction.deserialize(completed(child.tx, witnesses)))


def check(child: Child, parent: Parent, coins: Sequence[FundingInput]) -> None:
    tx = child.tx
    spends = [parent.output, *child.coins]
    assert [(each.prevout.hash, each.prevout.n) for each in tx.vin] == [(each.txid, each.vout) for each in spends]
    assert [(each.value, each.script) for each in child.spent] == [(each.value, each.script) for each in spends]
    assert len({(each.txid, each.vout) for each in spends}) == len(spends)
    assert set(child.coins) <= set(coins)
    assert (tx.nVersion, tx.nLockTime, len(tx.vout)) == (3, 0, 1)
    assert tx.vout[0].scriptPubKey == HOME
    assert tx.vout[0].nValue == sum(each.value for each in spends) - child.fee >= DUST
    assert child.vsize == signed_size(child) <= MAX_VSIZE


def attempt(
    parent: Parent, coins: Sequence[FundingInput], wanted: int, replaces: Replaced | None = None, limit: int = PLENTY
) -> Child | Unaffordable:
    try:
        return child_of(parent, coins, rate=wanted, script=HOME, limit=limit, replaces=replaces)
    except Unaffordable as error:
        return error


@given(parents, wallets, st.integers(3, 500))
def test_parent_and_child_pay_the_rate_exactly(parent: Parent, coins: list[FundingInput], wanted: int) -> None:
    child = attempt(parent, coins, wanted)
    if isinstance(child, Unaffordable):
        assert child.have < child.need
        return
    check(child, parent, coins)
    assert parent.fee + child.fee == wanted * (parent.vsize + child.vsize)
    assert rate(parent, child) == wanted


@given(parents, wallets, st.integers(3, 500))
def test_as_few_coins_as_will_do_and_none_that_could_be_spared(
    parent: Parent, coins: list[FundingInput], wanted: int
) -> None:
    child = attempt(parent, coins, wanted)
    if isinstance(child, Unaffordable):
        assert isinstance(attempt(parent, sorted(coins, key=lambda each: each.value)[-15:], wanted), Unaffordable)
        return
    for spared in child.coins:
        rest = [each for each in child.coins if each != spared]
        assert isinstance(attempt(parent, rest, wanted), Unaffordable)


children_of_others = st.builds(Replaced, st.integers(0, 20_000), st.integers(100, MAX_VSIZE))


@given(parents, wallets, st.integers(3, 100) | children_of_others, st.integers(3, 200))
def test_a_replacement_pays_more_in_all_and_for_each_vbyte(
    parent: Parent, coins: list[FundingInput], first: int | Replaced, second: int
) -> None:
    """Of an earlier child of ours, at a rate, or of somebody else's."""
    earlier = first if isinstance(first, Replaced) else attempt(parent, coins, first)
    if isinstance(earlier, Unaffordable):
        return
    replaced = Replaced(earlier.fee, earlier.vsize)
    child = attempt(parent, coins, second, replaced)
    if isinstance(child, Unaffordable):
        return
    check(child, parent, coins)
    assert child.fee >= replaced.fee + child.vsize
    assert child.fee * replaced.vsize > replaced.fee * child.vsize
    assert rate(parent, child) >= second


@given(parents, wallets, st.integers(3, 500), st.integers(0, 30_000))
def test_it_never_pays_more_than_its_limit(parent: Parent, coins: list[FundingInput], wanted: int, limit: int) -> None:
    free, child = attempt(parent, coins, wanted), attempt(parent, coins, wanted, limit=limit)
    if isinstance(child, Child):
        assert child == free
        assert child.fee <= limit
    else:
        assert isinstance(free, Unaffordable) or free.fee > limit


def test_a_cets_own_payout_pays_if_it_can() -> None:
    child = child_of(CET, [coin(1, 10**6)], rate=100, script=HOME, limit=PLENTY)
    assert child.coins == ()
    rich = child_of(CET, [coin(1, 10**6)], rate=200, script=HOME, limit=PLENTY)
    assert len(rich.coins) == 1


def test_what_is_missing_is_said() -> None:
    with pytest.raises(Unaffordable, match="there are 240 sat to raise a fee with, ") as caught:
        child_of(COMMIT, [], rate=10, script=HOME, limit=PLENTY)
    # anchor and output alone: 379 weight units
    assert caught.value.need == 10 * (166 + 95) - 332 + DUST
    with pytest.raises(Unaffordable, match="there are 99 sat"):
        child_of(COMMIT, [coin(1, 10**6)], rate=10, script=HOME, limit=99)
    with pytest.raises(BadScript):
        child_of(COMMIT, [evolve(coin(1, 10**6), script=b"\x51")], rate=10, script=HOME, limit=PLENTY)


# On the chain


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Mempool]]:
    with Chain(Path(tmp_path_factory.mktemp("chain"))) as chain:
        mempool = Mempool(chain, Index(chain))
        for height in range(1, 21):
            chain.mine(script=COIN_SCRIPTS[Role.MAKER if height % 2 else Role.TAKER])
        chain.mine_many(100)
        yield World(chain), mempool


def complete(child: Child) -> bytes:
    """Signed with the key of the maker's coins, or that of its payout."""
    secrets = {
        COIN_SCRIPTS[Role.MAKER]: COIN_SECRETS[Role.MAKER],
        p2tr(x_only(digest("payout", Role.MAKER))): digest("payout", Role.MAKER),
    }
    witnesses = [
        (schnorr.sign(secrets[spent.script], signature_hash(child.tx, index, child.spent)),)
        if spent.script in secrets
        else ()
        for index, spent in enumerate(child.spent)
    ]
    return completed(child.tx, witnesses)


def accepted(mempool: Mempool, *raws: bytes) -> bool:
    return not any(mempool.submit_package(raws).values())


def bump(world: World, opened: Open, wanted: int, replaces: Child | None = None) -> Child:
    parent = anchored(opened.commit(Role.MAKER), opened.transactions.lock_value)
    earlier = None if replaces is None else Replaced(replaces.fee, replaces.vsize)
    coins = [world.coin(Role.MAKER)] if replaces is None else replaces.coins
    return child_of(parent, coins, rate=wanted, script=HOME, limit=PLENTY, replaces=earlier)


def test_a_commit_is_raised_and_raised_again(world: tuple[World, Mempool]) -> None:
    chain, mempool = world
    opened = chain.open()
    commit, taken = opened.commit(Role.MAKER), opened.transactions.commit_txid
    first = bump(chain, opened, 30)
    assert accepted(mempool, commit, complete(first))
    assert set(mempool.entries) == {taken, txid(first.tx)}
    assert mempool.entries[txid(first.tx)].vsize == first.vsize
    assert sum(each.fee for each in mempool.entries.values()) == 30 * sum(
        each.vsize for each in mempool.entries.values()
    )
    assert not accepted(mempool, commit, complete(bump(chain, opened, 29)))
    second = bump(chain, opened, 31, first)
    assert accepted(mempool, commit, complete(second))
    assert set(mempool.entries) == {taken, txid(second.tx)}
    chain.mine(commit, complete(second))
    assert not mempool.entries


def test_the_other_side_may_raise_it_with_its_own_copy(world: tuple[World, Mempool]) -> None:
    chain, mempool = world
    opened = chain.open()
    assert mempool.submit(opened.commit(Role.TAKER)) == opened.transactions.commit_txid
    child = bump(chain, opened, 10)
    assert accepted(mempool, opened.commit(Role.MAKER), complete(child))
    chain.mine(opened.commit(Role.TAKER), complete(child))


def test_a_commit_that_no_mempool_takes_alone_goes_with_its_child(world: tuple[World, Mempool]) -> None:
    chain, mempool = world
    opened = chain.open()
    commit = opened.commit(Role.MAKER)
    mempool.min_relay = 5
    try:
        with pytest.raises(Rejected, match="min relay fee not met"):
            mempool.submit(commit)
        child = complete(bump(chain, opened, 6))
        assert accepted(mempool, commit, child)
    finally:
        mempool.min_relay = 1
    chain.mine(commit, child)


def test_a_cet_is_raised_out_of_its_own_payout(world: tuple[World, Mempool]) -> None:
    chain, mempool = world
    opened = chain.open()
    outcome = opened.outcome(PRICE)
    cet = opened.cet(Role.MAKER, outcome, opening(outcome, PRICE))
    script = opened.deal.plan.maker.payout_script
    parent = paying(cet, opened.transactions.commit_value, script)
    assert parent is not None
    assert parent.fee == TERMS.fee_rate * parent.vsize
    child = child_of(parent, [], rate=50, script=HOME, limit=parent.output.value)
    opened.publish(Role.MAKER)
    chain.chain.mine_many(LOCKS.settlement - 1)
    assert accepted(mempool, cet, complete(child))
    chain.mine(cet, complete(child))
    assert paying(cet, opened.transactions.commit_value, HOME) is None


def test_a_refund_too(world: tuple[World, Mempool]) -> None:
    chain, mempool = world
    opened = chain.open()
    refund = opened.refund(Role.MAKER)
    parent = paying(refund, opened.transactions.commit_value, opened.deal.plan.maker.payout_script)
    assert parent is not None
    assert parent.output.value == TERMS.margin(Role.MAKER) + TERMS.account(Role.MAKER)
    child = complete(child_of(parent, [], rate=20, script=HOME, limit=parent.output.value))
    opened.publish(Role.TAKER)
    chain.chain.mine_many(LOCKS.refund - 1)
    assert accepted(mempool, refund, child)

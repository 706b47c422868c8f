"""What every wallet does, on a chain that Bitcoin Core's consensus code judges: BDK's through an Electrum server, the
pure one on the chain itself."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
from attrs import evolve
from bitcoin.core import CBlockHeader, CTransaction

from node.clock import Clock
from node.regtest.consensus import COINBASE_MATURITY, check_scripts
from node.regtest.consensus import TxOut as Spent
from node.wallet.bdk import BdkWallet
from node.wallet.bip86 import CHANGE, RECEIVE, Account
from node.wallet.interface import GAP_LIMIT, LOOKAHEAD, Balance, Coin, Statement, Transaction, Wallet
from node.wallet.pure import PureWallet
from node.wallet.seed import Seed
from node.wallet.selection import InsufficientFunds
from protocols.contract.funding import MAX_INPUTS, OutPoint, side_fee
from protocols.contract.scripts import ANCHOR_SCRIPT, ANCHOR_VALUE
from protocols.contract.sighash import TxOut
from protocols.errors import LocalError, WorldError
from tests.wallets import MINERS, World, script_of, signed, spend, with_witnesses

NOW = 1_800_000_000.0
CLOCK = Clock(wall=lambda: NOW)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path / "chain") as world:
        yield world


class Opener:
    """Opens wallets of one kind. Opening the same `data` again is a restart; other `data`, a loss of all but the
    seed."""

    def __init__(self, kind: str, world: World, folder: Path) -> None:
        self.kind = kind
        self._world = world
        self._folder = folder
        self._pure: dict[str, PureWallet] = {}

    async def __call__(self, seed: Seed, data: str = "first") -> Wallet:
        if self.kind == "bdk":
            return await BdkWallet.open(seed, "regtest", self._folder / data, lambda: self._world.electrum, clock=CLOCK)
        before = self._pure.get(data)
        revealed = before.revealed if before else (0, 0)
        self._pure[data] = PureWallet(seed.secret, "regtest", self._world, clock=CLOCK, revealed=revealed)
        return self._pure[data]


@pytest.fixture(params=["bdk", "pure"])
async def open_wallet(request: pytest.FixtureRequest, world: World, tmp_path: Path, nursery: trio.Nursery) -> Opener:
    await world.serve(nursery)
    return Opener(request.param, world, tmp_path / "wallets")


@pytest.fixture
async def wallet(open_wallet: Opener) -> Wallet:
    return await open_wallet(Seed.generate())


async def test_addresses_and_scripts_follow_from_the_seed(open_wallet: Opener) -> None:
    seed = Seed.generate()
    wallet = await open_wallet(seed)
    account = Account(seed.secret, "regtest")
    for index in range(3):
        assert await script_of(wallet) == account.script(RECEIVE, index)
        assert await wallet.new_script() == account.script(CHANGE, index)


async def test_before_the_first_sync_it_speaks_of_no_coins(wallet: Wallet) -> None:
    for question in (wallet.balance, wallet.coins, wallet.transactions, partial(wallet.fund, 5_000, 2)):
        with pytest.raises(WorldError, match="wallet_not_synced"):
            await question()


async def test_a_payment_is_pending_then_confirmed(world: World, wallet: Wallet) -> None:
    script = await script_of(wallet)
    await wallet.sync()
    assert await wallet.balance() == Balance(0, 0, NOW, world.chain.height)
    txid = world.send(world.payment((script, 100_000)))
    await wallet.sync()
    assert await wallet.balance() == Balance(0, 100_000, NOW, world.chain.height)
    assert await wallet.coins() == [Coin(txid, 0, 100_000, script, confirmations=0)]
    world.mine(3)
    assert (await wallet.balance()).pending == 100_000  # as old as the last sync
    await wallet.sync()
    assert await wallet.balance() == Balance(100_000, 0, NOW, world.chain.height)
    assert await wallet.coins() == [Coin(txid, 0, 100_000, script, confirmations=3)]


async def test_a_coinbase_can_be_spent_when_it_is_mature(world: World, wallet: Wallet) -> None:
    script = await script_of(wallet)
    world.mine(script=script)
    world.mine(COINBASE_MATURITY - 2)
    await wallet.sync()
    [coin] = await wallet.coins()
    assert (coin.coinbase, coin.confirmations) == (True, COINBASE_MATURITY - 1)
    assert await wallet.balance() == Balance(0, coin.value, NOW, world.chain.height)
    with pytest.raises(InsufficientFunds):
        await wallet.fund(5_000, 2)
    world.mine()
    await wallet.sync()
    assert await wallet.balance() == Balance(coin.value, 0, NOW, world.chain.height)
    funding = await wallet.fund(5_000, 2)
    world.send(await signed(wallet, funding, (MINERS, coin.value - 5_000)))  # the mempool knows maturity, too


async def test_funding_takes_what_is_confirmed_and_free(world: World, wallet: Wallet) -> None:
    scripts = [await wallet.new_script() for _ in range(3)]
    world.pay((scripts[0], 60_000), (scripts[1], 50_000))
    world.send(world.payment((scripts[2], 900_000)))
    await wallet.sync()
    coins = {coin.script: coin for coin in await wallet.coins()}
    first = await wallet.fund(40_000, 2)
    assert [coin.script for coin in first.inputs] == [scripts[1]]
    second = await wallet.fund(40_000, 2, {coins[scripts[1]].outpoint})
    assert [coin.script for coin in second.inputs] == [scripts[0]]
    both = await wallet.fund(100_000, 2)
    assert {coin.script for coin in both.inputs} == set(scripts[:2])
    with pytest.raises(InsufficientFunds) as caught:
        await wallet.fund(40_000, 2, {coins[script].outpoint for script in scripts[:2]})
    assert (caught.value.have, caught.value.need) == (0, 40_000 + side_fee(2, [], None))
    changes = [each.change_script for each in (first, second, both)]
    assert len({*changes, *scripts}) == 6
    assert all([await wallet.is_mine(script) for script in changes])


async def test_at_most_twenty_inputs(world: World, wallet: Wallet) -> None:
    world.pay(*[(await wallet.new_script(), 10_000) for _ in range(MAX_INPUTS + 5)])
    await wallet.sync()
    assert (await wallet.balance()).confirmed == 10_000 * (MAX_INPUTS + 5)
    assert len((await wallet.fund(190_000, 2)).inputs) == MAX_INPUTS
    with pytest.raises(InsufficientFunds) as caught:
        await wallet.fund(200_000, 2)
    assert caught.value.have == 10_000 * MAX_INPUTS


async def test_two_wallets_sign_one_transaction(world: World, open_wallet: Opener) -> None:
    ours, theirs = [await open_wallet(Seed.generate(), data) for data in ("ours", "theirs")]
    world.pay((await script_of(ours), 70_000), (await ours.new_script(), 40_000), (await script_of(theirs), 80_000))
    for wallet in (ours, theirs):
        await wallet.sync()
    inputs = [*(await ours.fund(100_000, 2)).inputs, *(await theirs.fund(70_000, 2)).inputs]
    assert len(inputs) == 3
    spent = [TxOut(coin.value, coin.script) for coin in inputs]
    change = await ours.new_script()
    tx = spend([coin.outpoint for coin in inputs], (MINERS, 170_000), (change, 15_000))
    mine, other = await ours.sign(tx, spent), await theirs.sign(tx, spent)
    assert (set(mine), set(other)) == ({0, 1}, {2})
    assert all(len(item) == 64 for stack in (mine | other).values() for item in stack)  # SIGHASH_DEFAULT
    whole = with_witnesses(tx, spent, mine | other)
    check_scripts(whole, [Spent(each.value, each.script) for each in spent])
    txid = world.send(whole)
    world.mine()
    for wallet in (ours, theirs):
        await wallet.sync()
    assert await ours.coins() == [Coin(txid, 1, 15_000, change, confirmations=1)]
    assert await theirs.coins() == []


async def test_it_signs_only_what_it_knows_to_be_its_own(world: World, wallet: Wallet) -> None:
    script, other = await wallet.new_script(), await wallet.new_script()
    world.pay((script, 70_000), (other, 70_000))
    await wallet.sync()
    [outpoint] = [coin.outpoint for coin in await wallet.coins() if coin.script == script]
    tx = spend([outpoint], (MINERS, 60_000))
    assert set(await wallet.sign(tx, [TxOut(70_000, script)])) == {0}
    for lie in (TxOut(70_001, script), TxOut(70_000, other), TxOut(70_000, MINERS)):
        with pytest.raises(LocalError, match="not_our_coin") as caught:
            await wallet.sign(tx, [lie])
        assert "input 0" in caught.value.sentence
    for unknown in (OutPoint(bytes(32), 0), OutPoint(outpoint.txid, 9)):
        with pytest.raises(LocalError, match="not_our_coin"):
            await wallet.sign(spend([unknown], (MINERS, 60_000)), [TxOut(70_000, script)])
    with pytest.raises(LocalError, match="bad_prevouts"):
        await wallet.sign(tx, [])
    with pytest.raises(LocalError, match="bad_transaction"):
        await wallet.sign(b"no transaction", [TxOut(70_000, script)])
    foreign = spend([OutPoint(bytes(32), 0)], (script, 60_000))
    assert await wallet.sign(foreign, [TxOut(70_000, MINERS)]) == {}


async def test_it_signs_for_the_output_of_a_parent_that_no_chain_has_shown(world: World, wallet: Wallet) -> None:
    """As a CET that no mempool takes alone: the wallet is shown the transaction itself, and believes nothing else."""
    script = await wallet.new_script()
    await wallet.sync()
    parent = world.payment((script, 70_000))
    txid = CTransaction.deserialize(parent).GetTxid()
    tx, spent = spend([OutPoint(txid, 0)], (MINERS, 60_000)), [TxOut(70_000, script)]
    with pytest.raises(LocalError, match="not_our_coin"):
        await wallet.sign(tx, spent)
    witnesses = await wallet.sign(tx, spent, [parent])
    check_scripts(with_witnesses(tx, spent, witnesses), [Spent(70_000, script)])
    with pytest.raises(LocalError, match="not_our_coin"):
        await wallet.sign(tx, [TxOut(70_001, script)], [parent])
    with pytest.raises(LocalError, match="not_our_coin"):
        await wallet.sign(tx, spent, [world.payment((script, 70_000))])
    with pytest.raises(LocalError, match="bad_transaction"):
        await wallet.sign(tx, spent, [parent[:-1]])
    assert await wallet.coins() == []


async def test_it_signs_beside_an_anchor(world: World, wallet: Wallet) -> None:
    """As in the child that raises a commit's fee: the anchor needs no signature, and is nobody's."""
    script = await wallet.new_script()
    world.pay((script, 70_000))
    anchored = world.pay((ANCHOR_SCRIPT, ANCHOR_VALUE))
    await wallet.sync()
    [coin] = await wallet.coins()
    tx = spend([OutPoint(anchored, 0), coin.outpoint], (MINERS, 60_000))
    spent = [TxOut(ANCHOR_VALUE, ANCHOR_SCRIPT), TxOut(70_000, script)]
    witnesses = await wallet.sign(tx, spent)
    assert set(witnesses) == {1}
    world.send(with_witnesses(tx, spent, witnesses))


async def test_a_signature_covers_the_peers_inputs(world: World, wallet: Wallet) -> None:
    """BIP341: a peer that lies about the value of its own input gets a signature that is worth nothing."""
    script = await wallet.new_script()
    world.pay((script, 70_000))
    await wallet.sync()
    [coin] = await wallet.coins()
    tx = spend([coin.outpoint, OutPoint(bytes(32), 0)], (MINERS, 60_000))
    spent = [TxOut(70_000, script), TxOut(5_000, MINERS)]
    whole = with_witnesses(tx, spent, await wallet.sign(tx, spent))
    check_scripts(whole, [Spent(each.value, each.script) for each in spent])
    with pytest.raises(LocalError, match="script_refused"):
        check_scripts(whole, [Spent(70_000, script), Spent(6_000, MINERS)])


async def test_a_coin_that_a_waiting_transaction_spends_is_not_offered_but_can_be_replaced(
    world: World, wallet: Wallet
) -> None:
    world.pay((await wallet.new_script(), 70_000))
    await wallet.sync()
    funding = await wallet.fund(60_000, 2)
    world.send(await signed(wallet, funding, (MINERS, 60_000)))
    await wallet.sync()
    assert await wallet.coins() == []
    back = await wallet.new_script()
    replacement = world.send(await signed(wallet, funding, (back, 40_000)))
    await wallet.sync()
    assert await wallet.coins() == [Coin(replacement, 0, 40_000, back, confirmations=0)]
    world.mine()
    await wallet.sync()
    assert await wallet.coins() == [Coin(replacement, 0, 40_000, back, confirmations=1)]


async def test_a_payment_that_left_the_mempool_is_forgotten(world: World, wallet: Wallet) -> None:
    script = await wallet.new_script()
    world.pay((script, 70_000))
    coin = world.coin()
    world.send(world.payment((script, 30_000), coin=coin))
    await wallet.sync()
    assert (await wallet.balance()).pending == 30_000
    world.send(world.payment(coin=coin, fee=50_000))
    await wallet.sync()
    assert await wallet.balance() == Balance(70_000, 0, NOW, world.chain.height)


async def test_what_a_lost_transaction_spent_is_free_again(world: World, wallet: Wallet, nursery: trio.Nursery) -> None:
    world.pay((await wallet.new_script(), 70_000))
    await wallet.sync()
    free = await wallet.coins()
    funding = await wallet.fund(60_000, 2)
    world.send(await signed(wallet, funding, (await wallet.new_script(), 60_000)))
    await wallet.sync()
    assert await wallet.balance() == Balance(0, 60_000, NOW, world.chain.height)
    await world.lose_mempool(nursery)
    await wallet.sync()
    assert await wallet.coins() == free


async def test_a_reorganised_payment_waits_again(world: World, wallet: Wallet) -> None:
    script = await wallet.new_script()
    fork = world.chain.tip
    txid = world.pay((script, 70_000))
    await wallet.sync()
    assert (await wallet.balance()).confirmed == 70_000
    for _ in range(2):
        fork = world.chain.submit(world.chain.build(parent=fork, script=MINERS))
    await wallet.sync()
    assert await wallet.coins() == [Coin(txid, 0, 70_000, script, confirmations=0)]
    world.mine()
    await wallet.sync()
    assert await wallet.balance() == Balance(70_000, 0, NOW, world.chain.height)


async def statement(wallet: Wallet) -> list[Transaction]:
    """The transactions once the wallet has looked, without the times, which only some wallets know."""
    await wallet.sync()
    return [evolve(each, time=None) for each in await wallet.transactions()]


async def test_a_statement_tells_what_came_and_went(world: World, wallet: Wallet) -> None:
    assert await statement(wallet) == []
    script = await script_of(wallet)
    came = world.send(world.payment((script, 100_000)))
    unconfirmed = Transaction(came, received=100_000, spent=0, fee=None, height=None, time=None)
    assert await statement(wallet) == [unconfirmed]
    assert (await wallet.transactions())[0].time is None
    world.mine()
    height = world.chain.height
    assert await statement(wallet) == [evolve(unconfirmed, height=height)]
    assert await wallet.statement() == Statement(tuple(await wallet.transactions()), NOW, height)

    funding = await wallet.fund(60_000, 2)
    change = await wallet.new_script()
    went = world.send(await signed(wallet, funding, (MINERS, 60_000), (change, 39_500)))
    sent = Transaction(went, received=39_500, spent=100_000, fee=500, height=None, time=None)
    assert await statement(wallet) == [sent, evolve(unconfirmed, height=height)]
    world.mine()
    assert await statement(wallet) == [evolve(sent, height=height + 1), evolve(unconfirmed, height=height)]


async def test_a_statement_tells_when_a_block_was_made_if_the_wallet_reads_blocks(
    world: World, open_wallet: Opener
) -> None:
    wallet = await open_wallet(Seed.generate())
    world.pay((await script_of(wallet), 100_000))
    await wallet.sync()
    [paid] = await wallet.transactions()
    made = CBlockHeader.deserialize(world.chain.header(world.chain.height)).nTime
    assert paid.time == (float(made) if open_wallet.kind == "bdk" else None)


async def test_the_fee_is_told_when_all_that_was_spent_is_known(world: World, open_wallet: Opener) -> None:
    ours, theirs = [await open_wallet(Seed.generate(), data) for data in ("ours", "theirs")]
    first = world.pay((await script_of(ours), 70_000))
    second = world.pay((await script_of(theirs), 80_000))
    for wallet in (ours, theirs):
        await wallet.sync()
    inputs = [*(await ours.fund(60_000, 2)).inputs, *(await theirs.fund(70_000, 2)).inputs]
    spent = [TxOut(coin.value, coin.script) for coin in inputs]
    tx = spend([coin.outpoint for coin in inputs], (MINERS, 130_000), (await ours.new_script(), 19_000))
    both = world.send(with_witnesses(tx, spent, await ours.sign(tx, spent) | await theirs.sign(tx, spent)))
    seen = {each.txid: each for each in await statement(ours)}
    assert set(seen) == {first, both}
    assert seen[both] == Transaction(both, received=19_000, spent=70_000, fee=None, height=None, time=None)
    seen = {each.txid: each for each in await statement(theirs)}
    assert seen[both] == Transaction(both, received=0, spent=80_000, fee=None, height=None, time=None)
    assert set(seen) == {second, both}


async def test_a_coinbase_pays_no_fee(world: World, wallet: Wallet) -> None:
    world.mine(script=await script_of(wallet))
    [mined] = await statement(wallet)
    assert (mined.fee, mined.spent, mined.height) == (0, 0, world.chain.height)


async def test_a_statement_has_the_newest_first(world: World, wallet: Wallet) -> None:
    scripts = [await wallet.new_script() for _ in range(6)]
    payments = [world.payment((script, 50_000 + number)) for number, script in enumerate(scripts)]
    oldest = world.send(payments[0])
    world.mine()
    together = [world.send(payment) for payment in payments[1:3]]
    world.mine(2)
    newest = world.send(payments[3])
    world.mine()
    waiting = [world.send(payment) for payment in payments[4:]]
    found = await statement(wallet)
    assert [each.txid for each in found] == [*sorted(waiting), newest, *sorted(together), oldest]


async def test_a_statement_forgets_what_was_replaced_and_follows_a_reorganisation(world: World, wallet: Wallet) -> None:
    fork = world.chain.tip
    txid = world.pay((await script_of(wallet), 70_000))
    coin = world.coin()
    replaced = world.send(world.payment((await wallet.new_script(), 30_000), coin=coin))
    paid = Transaction(txid, received=70_000, spent=0, fee=None, height=world.chain.height, time=None)
    assert [each.txid for each in await statement(wallet)] == [replaced, txid]
    world.send(world.payment(coin=coin, fee=50_000))
    assert await statement(wallet) == [paid]
    for _ in range(2):
        fork = world.chain.submit(world.chain.build(parent=fork, script=MINERS))
    assert await statement(wallet) == [evolve(paid, height=None)]
    world.mine()
    assert await statement(wallet) == [evolve(paid, height=world.chain.height)]


async def test_a_restart_gives_out_no_script_twice(open_wallet: Opener) -> None:
    seed = Seed.generate()
    wallet = await open_wallet(seed)
    before = {await script_of(wallet), await wallet.new_script()}
    again = await open_wallet(seed)
    assert all([await again.is_mine(script) for script in before])
    assert not before & {await script_of(again), await again.new_script()}


async def test_the_seed_alone_brings_the_coins_back(world: World, open_wallet: Opener) -> None:
    """Across a gap that failed setups left: each of them used up scripts that the chain never saw."""
    seed = Seed.generate()
    wallet = await open_wallet(seed)
    scripts = [await wallet.new_script() for _ in range(GAP_LIMIT)]
    world.pay((await script_of(wallet), 10_000), (scripts[-1], 20_000))
    await wallet.sync()
    restored = await open_wallet(seed, "after the loss")
    await restored.sync()
    assert await restored.coins() == await wallet.coins()
    assert (await restored.balance()).confirmed == 30_000
    assert await restored.new_script() not in scripts
    world.send(await signed(restored, await restored.fund(25_000, 2), (MINERS, 25_000)))


async def test_is_mine(open_wallet: Opener) -> None:
    seed = Seed.generate()
    wallet = await open_wallet(seed)
    account = Account(seed.secret, "regtest")
    assert await wallet.is_mine(account.script(CHANGE, LOOKAHEAD - 1))
    assert not await wallet.is_mine(account.script(CHANGE, LOOKAHEAD + 200))
    for script in (MINERS, b"", Account(seed.secret, "mainnet").script(RECEIVE, 0)):
        assert not await wallet.is_mine(script)

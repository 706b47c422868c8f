"""What a hostile peer, a lying clock or a reorganisation might gain, and does not (design.md, "Money safety rules")."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, evolve
from bitcoin.core import CTransaction
from btclib_secp256k1 import keys as curve

from node.clock import Clock
from node.errors import Conflict
from node.eventstore.memory import MemoryBackend
from node.oracle.client import OracleClient
from node.position.abandon import ABANDON_AFTER, LockKeeper, lock_fee, spend_back
from node.position.commands import force_close
from node.position.observing import observe
from node.position.state import State
from node.regtest.mempool import Entry
from node.taker import check_fineness
from protocols.contract import schnorr
from protocols.contract.announcements import price_digits
from protocols.contract.funding import FundingInput
from protocols.contract.numbers import ORDER
from protocols.contract.oracle import OLIVIA
from protocols.contract.outcomes import covering, settlement_outcomes
from protocols.contract.payout import Payout
from protocols.contract.sighash import TxOut, signature_hash
from protocols.contract.signing import anticipation
from protocols.contract.terms import REGTEST_TIMELOCKS, TOLERANCE_FAR, TOLERANCE_NEAR, Role, Side
from protocols.contract.transactions import completed, vsize
from protocols.contract_setup import SignLock
from protocols.errors import LocalError, RemoteProtocolError
from tests.keeping import chained
from tests.positions import LAST, attestation, history, view, wanted
from tests.setups import OFFER, Trader
from tests.worlds import Node, deal, running_world, until

# --- offers -----------------------------------------------------------------------------------------------------------


def test_steps_so_coarse_that_one_of_them_is_the_makers_gain_are_refused() -> None:
    """With the widest steps that the format allows, a maker takes nearly half of the margin though no price moved."""
    hostile = evolve(
        OFFER,
        side=Side.SHORT,
        price="98000",
        leverages=(10,),
        max_quantity=100_000,
        opening_fee=0,
        funding_rate="0",
        tolerance_near="0.1",
        tolerance_far="0.1",
    )

    def lost(tolerance_near: str, tolerance_far: str) -> float:
        """What the taker loses at the opening price, as a part of its margin."""
        offer = evolve(hostile, tolerance_near=tolerance_near, tolerance_far=tolerance_far)
        terms = offer.check_order(100_000, 10)
        outcome = covering(settlement_outcomes(terms), 0, 98_000)
        assert outcome is not None
        return abs(outcome.long - Payout(terms).long(98_000)) / terms.margin(Role.TAKER)

    assert lost("0.1", "0.1") > 0.4
    assert lost(TOLERANCE_NEAR, TOLERANCE_FAR) < 0.01
    check_fineness(evolve(hostile, tolerance_near=TOLERANCE_NEAR, tolerance_far=TOLERANCE_FAR))
    for near, far in (("0.1", "0.1"), ("0.0021", "0.01"), ("0.002", "0.011")):
        with pytest.raises(Conflict, match="tolerance_"):
            check_fineness(evolve(hostile, tolerance_near=near, tolerance_far=far))


@pytest.mark.parametrize(("price", "code"), [("44000", "decided"), ("54000", "not_our_coin")])
async def test_a_contract_that_was_decided_while_the_peer_took_its_time_is_not_signed(
    tmp_path: Path, price: str, code: str
) -> None:
    async with running_world(tmp_path, hour=1.0) as world:
        world.world.market.override = price
        node = Node(world, Role.TAKER)
        async with node.running("contracts", "locks", "attestations"):
            plan = (await deal(world, node)).plan
            first = plan.announcements[0]
            await node.oracle.call(OracleClient.wait_attestation, first)
            sign = node.setup.host(Role.TAKER, bytes(32)).answers[SignLock]
            with pytest.raises(LocalError) as refused:  # the wallet, asked next, has no such coins
                await sign(SignLock(plan))
            assert refused.value.code == code


async def test_coins_that_a_peer_brings_into_two_locks_at_once_are_refused(tmp_path: Path) -> None:
    """Of many setups in parallel with the same coin one lock confirms; giving up the others costs the maker alone."""
    async with running_world(tmp_path) as world:
        node = Node(world, Role.MAKER)
        async with node.running("contracts", "locks", "attestations"):
            made = await deal(world, node)
            await node.remember(made.facts[Role.MAKER][:2])
            sign = node.setup.host(Role.MAKER, bytes(32)).answers[SignLock]
            with pytest.raises(RemoteProtocolError, match="promised to another lock"):
                await sign(SignLock(evolve(made.plan, order_id=bytes(16))))
            with pytest.raises(LocalError) as refused:  # its own lock may have them; no such coins in our wallet
                await sign(SignLock(made.plan))
            assert refused.value.code == "not_our_coin"


# --- locks ------------------------------------------------------------------------------------------------------------


async def test_a_maker_that_was_away_publishes_no_lock_of_an_old_price(tmp_path: Path) -> None:
    """It stopped between its signatures and the broadcast; the taker, who has all it needs to undo the lock, would
    leave it alone only if the price has moved its way."""
    passed = 0.0
    async with running_world(tmp_path, wall=lambda: time.time() + passed) as world:
        before = Node(world, Role.MAKER, MemoryBackend(world.clock))
        async with before.running("wallet", "contracts", "locks", "attestations"):
            old, fresh = await deal(world, before, name="old"), await deal(world, before, name="fresh")
            await before.remember(old.facts[Role.MAKER])
        passed = ABANDON_AFTER + 1
        after = Node(world, Role.MAKER, disk=before.disk)
        async with after.running("wallet", "attestations"):
            await after.remember(fresh.facts[Role.MAKER])
            await until(lambda: fresh.transactions.lock_txid in world.world.mempool.entries)
            world.world.mine()
            await until(lambda: after.position(fresh.plan.order_id).state is State.OPEN)
            assert after.position(old.plan.order_id).state is State.OPENING
            assert after.broadcaster.kept(old.plan.order_id) == {}
            assert old.transactions.lock_txid not in world.world.index.transactions
            assert old.transactions.lock_txid not in world.world.mempool.entries


async def test_a_lock_that_a_mempool_shows_is_kept_there_however_old(tmp_path: Path) -> None:
    passed = 0.0
    async with running_world(tmp_path, wall=lambda: time.time() + passed) as world:
        before = Node(world, Role.MAKER, MemoryBackend(world.clock))
        async with before.running("wallet", "attestations"):
            made = await deal(world, before)
            await before.remember(made.facts[Role.MAKER])
            await until(lambda: made.transactions.lock_txid in world.world.mempool.entries)
        passed = ABANDON_AFTER + 1
        after = Node(world, Role.MAKER, disk=before.disk)
        async with after.running("wallet", "attestations"):
            await until(lambda: made.transactions.lock_txid in after.broadcaster.kept(made.plan.order_id))


async def test_a_clock_that_is_set_back_keeps_no_lock_hanging_over_us(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        node = Node(world, Role.TAKER)
        async with node.running("wallet", "locks", "attestations"):
            made = await deal(world, node)
            await node.remember(made.facts[Role.TAKER][:-1])
            tried = trio.Event()

            async def fee_rate() -> int:
                tried.set()
                return 2

            a_year_ago = Clock(wall=lambda: time.time() - 365 * 86_400)
            keeper = LockKeeper(node.positions, node.monitor, node.wallet, a_year_ago, fee_rate, after=0.2)
            async with trio.open_nursery() as nursery:
                await nursery.start(keeper.run)
                with trio.fail_after(10):
                    await tried.wait()
                nursery.cancel_scope.cancel()


def test_a_peer_with_many_inputs_cannot_make_a_lock_too_dear_to_give_up() -> None:
    """Twenty inputs cost a peer that goes silent nothing, and us, had we to outbid them, more than our whole coin."""
    position = history(Role.TAKER, 4).position
    (attempt,) = position.attempts
    assert attempt.peer is not None
    many = tuple(FundingInput(bytes([at]) * 32, 0, 1_000_000, bytes([0, 20]) + bytes(20)) for at in range(20))
    (coin,) = attempt.own.inputs
    attempt = evolve(
        attempt,
        terms=evolve(attempt.terms, quantity=100, fee_rate=50, maker_account=0),
        own=evolve(attempt.own, inputs=(evolve(coin, value=52_000),)),
        peer=evolve(attempt.peer, inputs=many),
    )
    position = evolve(position, attempts=(attempt,), terms=attempt.terms)
    assert lock_fee(position) > 52_000
    for estimate, rate in ((2, 100), (150, 150), (10_000, 100)):
        tx, inputs = spend_back(position, bytes([0x51, 32]) + bytes(32), estimate)
        fee = 52_000 - tx.vout[0].nValue
        signed = CTransaction.deserialize(completed(tx, [(bytes(64),)] * len(inputs)))
        assert rate * vsize(signed) <= fee < rate * (vsize(signed) + 2)


@define(eq=False)
class Coins:
    """As much of a wallet as spending back needs."""

    trader: Trader

    async def new_script(self) -> bytes:
        return self.trader.script("back")

    async def sign(self, raw: bytes, prevouts: Sequence[TxOut]) -> dict[int, tuple[bytes]]:
        tx = CTransaction.deserialize(raw)
        hashes = (signature_hash(tx, index, prevouts) for index in range(len(prevouts)))
        return {index: (schnorr.sign(self.trader.coin_key, each),) for index, each in enumerate(hashes)}


class WithCoins(Node):
    async def _run_wallet(self, *, task_status: trio.TaskStatus[Any]) -> None:
        task_status.started(Coins(self.trader))
        await trio.sleep_forever()


async def test_what_spends_a_lock_back_is_raised_when_blocks_ask_for_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else mempools that fill would drop it, and the peer could bring in the lock of the old price after all."""
    monkeypatch.setattr("node.position.abandon.LOOK_EVERY", 0.05)
    async with running_world(tmp_path) as world:
        mempool, estimate = world.world.mempool, 2
        node = WithCoins(world, Role.TAKER)

        async def fee_rate() -> int:
            return estimate

        async with node.running("locks", "attestations"):
            made = await deal(world, node)
            await node.remember(made.facts[Role.TAKER][:-1])  # the maker's witnesses never came
            keeper = LockKeeper(node.positions, node.monitor, node.wallet, world.clock, fee_rate, after=0.1)
            spent_back: list[Entry] = []
            for rate in (2, 50, 200):
                estimate = rate
                least = max(4, rate)  # twice the lock's
                async with trio.open_nursery() as nursery:  # begun anew each time
                    await nursery.start(keeper.run)
                    await until(lambda: any(each.fee >= least * each.vsize for each in mempool.entries.values()))  # noqa: B023
                    nursery.cancel_scope.cancel()
                spent_back += mempool.entries.values()
            assert node.broadcaster.kept(made.plan.order_id).keys() == {spent_back[2].txid}
            # a block takes one that was replaced
            chain = world.world.chain
            chain.submit(chain.build([spent_back[1].transaction], script=world.world.treasury.script))
            await world.world.mine_many(5)
            await until(lambda: node.position(made.plan.order_id).state is State.SETUP_FAILED)


# --- reorganisations --------------------------------------------------------------------------------------------------


def test_a_taker_that_never_got_the_makers_witnesses_learns_them_from_the_chain() -> None:
    """The maker publishes the lock and keeps its last message: after a reorganisation, whether the lock comes back
    would be its choice alone."""
    maker = history(Role.MAKER)
    ((txid, raw),) = wanted(maker).items()
    taker = history(Role.TAKER, 4)
    forged = CTransaction.deserialize(raw)
    forged = completed(forged, [(bytes(64),)] * len(forged.vin))
    taker.do(observe(view(100, ({txid: forged}, None))))
    assert wanted(taker) == {}  # a server may show any witness
    taker.do(observe(view(101, ({txid: raw}, 101))))
    assert (taker.state(), wanted(taker)) == (State.OPEN, {})
    taker.do(observe(view(101)))
    assert (taker.state(), wanted(taker)) == (State.OPENING, {txid: raw})


def test_the_peers_commit_that_a_reorganisation_took_is_brought_back_by_us() -> None:
    """Its publisher may have thought better of it, and a silent oracle leaves us nothing but the refund."""
    peer, lock = history(Role.TAKER), wanted(history(Role.MAKER))
    peer.do(observe(view(100, (lock, 100))), force_close("by the user"))
    commit = wanted(peer)
    ours = history(Role.MAKER)
    ours.do(observe(view(103, (lock, 100), (commit, 102))))
    assert (ours.state(), wanted(ours)) == (State.COMMITTED, {})
    ours.do(observe(view(104, (lock, 100))))
    ((txid, raw),) = wanted(ours).items()
    assert [txid] == list(commit)
    blocks = REGTEST_TIMELOCKS.refund
    ours.do(observe(view(105 + blocks, (lock, 100), ({txid: raw}, 105))))
    assert wanted(ours).keys() == {ours.position.transactions().refund.GetTxid()}


# --- three attacks that were published against plain designs ----------------------------------------------------------


def test_the_olivia_combination_opens_no_other_price() -> None:
    """An attestation's scalars, each scaled by 1, 2 or ½, add up to the openings of other prices when digits are summed
    plainly. Here every CET of a real contract is tried, which is what there is to steal."""
    attested = attestation(LAST, 49_262)
    transactions = history(Role.TAKER).position.transactions()
    announced = transactions.plan.announcements[LAST]
    paying = covering(transactions.outcomes, LAST, 49_262)
    assert paying is not None
    scalars = [int.from_bytes(scalar, "big") for scalar in attested.scalars]
    weighted = [OLIVIA.weight(announced, index) * scalar for index, scalar in enumerate(scalars)]
    plainly, opened = set(), set()
    for outcome in transactions.by_event[LAST]:
        pairs = zip(price_digits(49_262), outcome.digits, strict=False)
        factors = [{("0", "1"): 2, ("1", "0"): pow(2, -1, ORDER)}.get(pair, 1) for pair in pairs]
        plain, heavy = (
            curve.pubkey_from_prvkey(sum(factor * each for factor, each in zip(factors, those, strict=False)) % ORDER)
            for those in (scalars, weighted)
        )
        points = [OLIVIA.digit_point(announced, index, int(digit)) for index, digit in enumerate(outcome.digits)]
        if plain == curve.pubkey_combine([*map(curve.serialize, points)]):
            plainly.add(outcome.digits)
        if anticipation(announced).point(outcome.digits) in (plain, heavy):
            opened.add(outcome.digits)
    assert plainly > {paying.digits}  # summed plainly, the peer would choose
    assert opened == {paying.digits}


@pytest.mark.parametrize("answer", ["silence", "n", "n + 1"])
async def test_the_rollover_ransom_gains_nothing(tmp_path: Path, answer: str) -> None:
    """The peer is silent after receiving the first commit signature: it alone can enforce both contracts now, and waits
    for what it likes better. We publish ours within the hour, and claim on whichever confirms."""
    async with chained(tmp_path, Role.TAKER, records=2, roll_within=0.5) as this:
        this.node.supervisor["attestations"].stop()
        index = 1 if answer == "n + 1" else 0
        if answer != "silence":
            this.publish(this.rolled.commit(Role.MAKER, index))
        await until(lambda: this.rolled.txid(index) in this.pool)
        await this.mine(REGTEST_TIMELOCKS.refund)
        refund = this.rolled.refund(index).GetTxid()
        await until(lambda: refund in this.pool)
        await this.mine(3)
        await until(lambda: this.state() is State.REFUNDED)
        owed = Payout(this.rolled.plans[index].terms).refund()
        assert {role: this.paid(role) for role in Role} == owed


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("confirmed", [False, True], ids=["in a mempool", "in a block"])
async def test_publish_then_revoke_costs_everything(tmp_path: Path, role: Role, *, confirmed: bool) -> None:
    """The peer publishes n in the middle of a rollover, and then finishes it as if nothing were: we must neither take
    n for gone because it was superseded, nor miss that it was out before."""
    async with chained(tmp_path, role, records=2) as this:
        facts = this.rolled.facts[role]
        commit = this.publish(this.rolled.commit(role.other, 0))
        if confirmed:
            await this.mine()
        await until(lambda: this.state() in (State.FORCE_CLOSING, State.COMMITTED))
        await this.node.remember(facts[2:])
        await until(lambda: this.spender(commit))
        await this.mine(3)
        await until(lambda: this.state() is State.PUNISHED)
        assert this.paid(role.other) == 0
        assert this.paid(role) > this.rolled.plans[0].terms.pool * 99 // 100

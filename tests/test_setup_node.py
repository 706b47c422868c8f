"""What a setup asks of its node: coins, fees, the oracle, the peer's coins, and a record of how it ended. The chain,
the Electrum server, the wallet and the oracle are real."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
import trio.testing
from attrs import evolve
from bitcoin.core import CTransaction

from node.config import FeeRateTable
from node.health import State as Up
from node.position.book import Positions
from node.position.commands import fail_setup, place_order
from node.position.state import State
from node.regtest.world import RunningWorld
from node.setup import KEPT_FOR_FEES, Setup
from node.wallet.interface import Wallet
from protocols.contract.funding import FundingInput, OutPoint, funding_needed, side_fee
from protocols.contract.oracle import DLC
from protocols.contract.schedule import HOUR, first_event
from protocols.contract.scripts import p2tr
from protocols.contract.terms import Role
from protocols.contract.transactions import ContractPlan, ContractTransactions
from protocols.contract_setup import (
    AttemptBegun,
    CheckCoins,
    CheckFeeRate,
    FetchAnnouncements,
    Fund,
    Funding,
    KnownPoints,
    Now,
    SignaturesHeld,
    SignLock,
)
from protocols.dialogue import Ask
from protocols.errors import CodedError, LocalError, PeerGone, RemoteProtocolError, WorldError
from protocols.offers import OracleKeys
from tests.positions import PEER
from tests.setups import MAKER, TAKER, order, secret, x_only
from tests.worlds import Node, deal, fund, running_world, until

R = TypeVar("R")
PLACED = order()
ORDER_ID = PLACED.order_id
SOMEONE = p2tr(x_only(secret("someone")))


async def ask(node: Node, question: Ask[R]) -> R:
    """As a dialogue would."""
    answer: R = await node.setup.host(node.role, PEER[node.role]).answers[type(question)](question)
    return answer


async def refused(node: Node, question: Ask[Any]) -> CodedError:
    with pytest.raises(CodedError) as caught:
        await ask(node, question)
    return caught.value


@asynccontextmanager
async def running(path: Path, *coins: int, **options: Any) -> AsyncIterator[tuple[RunningWorld, Node]]:
    """A taker's node; its wallet holds `coins`."""
    async with running_world(path) as world:
        node = Node(world, Role.TAKER, **options)
        async with node.running():
            for coin in coins:
                fund(world, await node.wallet.call(Wallet.new_script), coin)
            await synced(world, node)
            yield world, node


async def synced(world: RunningWorld, node: Node) -> None:
    with node.chain.lent() as client:
        await until(lambda: client.tip.hash == world.world.chain.tip)
    await node.wallet.call(Wallet.sync)


def fund_ask(number: int = 1, quantity: int = 3_500) -> Fund:
    terms = PLACED.offer.check_order(quantity, 5)
    return Fund(bytes([number]) * 16, Role.TAKER, terms, MAKER.script("payout"))


def outpoints(funding: Funding) -> set[OutPoint]:
    return {coin.outpoint for coin in funding.inputs}


# --- fees, clock, oracle ----------------------------------------------------------------------------------------------


async def test_a_fee_rate_is_taken_within_half_and_three_times_our_own(tmp_path: Path) -> None:
    async with running(tmp_path, fee_rates=FeeRateTable(lowest=9, default=9, highest=9)) as (_, node):
        assert await node.setup.fee_rate() == 9
        for rate in (5, 9, 27):
            await ask(node, CheckFeeRate(rate))
        for rate in (0, 4, 28, 10**6):
            error = await refused(node, CheckFeeRate(rate))
            assert isinstance(error, RemoteProtocolError)
            assert error.code == "bad_fee_rate"
            assert f"fee_rate is {rate} sat/vB" in error.sentence


async def test_without_a_chain_the_default_rate_is_our_own(tmp_path: Path) -> None:
    async with running(tmp_path, fee_rates=FeeRateTable(lowest=2, default=40, highest=500)) as (_, node):
        estimate = await node.setup.fee_rate()
        node.supervisor["chain"].stop()
        assert await node.setup.fee_rate() == 40 != estimate


async def test_time_is_the_oracles_calendar(tmp_path: Path) -> None:
    wall = [1_790_000_000.0]
    async with running_world(tmp_path, hour=60.0, wall=lambda: wall[0]) as world:
        node = Node(world, Role.TAKER)
        async with node.running():
            before = await ask(node, Now())
            wall[0] += 1
            assert await ask(node, Now()) == before + 60


async def test_announcements_are_our_own_oracles_and_come_in_order(tmp_path: Path) -> None:
    async with running(tmp_path) as (world, node):
        first = first_event(world.clock.calendar())
        ids = tuple(DLC.event_id("BTCUSD", first + HOUR * each) for each in (3, 1, 2))
        keys = node.setup.oracle_keys
        found = await ask(node, FetchAnnouncements(keys, ids))
        assert tuple(each.id for each in found) == ids

        other = OracleKeys(keys.scheme, keys.announcement_key, x_only(secret("other")))
        assert (await refused(node, FetchAnnouncements(other, ids))).code == "other_oracle"

        unknown = DLC.event_id("BTCUSD", first + HOUR * 1_000)
        error = await refused(node, FetchAnnouncements(keys, (*ids, unknown)))
        assert isinstance(error, WorldError)
        assert unknown in error.sentence
        node.supervisor["oracle"].stop()
        assert (await refused(node, FetchAnnouncements(keys, ids))).code == "disconnected"


async def test_every_attempt_has_a_salt_and_keys_of_its_own(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        setup = Node(world, Role.TAKER).setup
        first, second = setup.attempt(ORDER_ID), setup.attempt(ORDER_ID)
        assert first.salt != second.salt
        assert not {point for _, point in first.keys.points.each()} & {point for _, point in second.keys.points.each()}
        assert first.salt.hex() not in repr((first, setup))
        assert repr(TAKER.seed) not in repr(setup)


# --- our coins --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pure", "bdk"])
async def test_setups_at_the_same_time_never_choose_the_same_coins(tmp_path: Path, kind: str) -> None:
    """BDK's works in threads, so that others get their turn between looking at the coins and choosing."""
    bdk = tmp_path / "wallet.sqlite" if kind == "bdk" else None
    async with running(tmp_path, 2_000_000, 2_000_000, 2_000_000, bdk=bdk) as (_, node):
        chosen: list[Funding] = []
        refusals: list[CodedError] = []

        async def choose(number: int) -> None:
            try:
                chosen.append(await ask(node, fund_ask(number)))
            except LocalError as error:
                refusals.append(error)

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(choose, number)
        assert len(chosen) == 3
        assert [error.code for error in refusals] == ["insufficient_funds"] * 2
        coins = [outpoints(each) for each in chosen]
        assert sum(map(len, coins)) == len(set().union(*coins)) == 3
        scripts = {script for each in chosen for script in (each.change_script, each.payout_script)}
        assert len(scripts) == 6

        for number in range(5):
            node.setup.holds.release(bytes([number]) * 16)
        again = outpoints(await ask(node, fund_ask(6))) | outpoints(await ask(node, fund_ask(7)))
        assert again <= set().union(*coins)


async def test_what_fees_may_need_is_left_in_the_wallet(tmp_path: Path) -> None:
    async with running(tmp_path) as (world, node):
        terms = PLACED.offer.check_order(3_500, 5)
        needed = funding_needed(Role.TAKER, terms, MAKER.script("change"), MAKER.script("payout"))
        own = side_fee(terms.fee_rate, [MAKER.script("change")], MAKER.script("change"))
        coin = fund(world, await node.wallet.call(Wallet.new_script), needed + own + KEPT_FOR_FEES - 1)
        await synced(world, node)
        refusal = await refused(node, fund_ask(1))
        assert refusal.code == "kept_for_fees"
        assert refusal.sentence.startswith(f"the wallet would have {KEPT_FOR_FEES - 1} sat left")
        assert node.setup.holds.all() == frozenset()
        assert node.setup.kept_for_fees() == 0

        # change of the lock or another coin: either may pay
        fund(world, await node.wallet.call(Wallet.new_script), 330)
        await synced(world, node)
        first = await ask(node, fund_ask(1))
        assert first.inputs == (coin,)
        assert node.setup.kept_for_fees() == KEPT_FOR_FEES

        # each position under way counts, once
        fund(world, await node.wallet.call(Wallet.new_script), needed + own + KEPT_FOR_FEES)
        await synced(world, node)
        assert (await refused(node, fund_ask(2))).code == "kept_for_fees"
        fund(world, await node.wallet.call(Wallet.new_script), KEPT_FOR_FEES - 330)
        await synced(world, node)
        await ask(node, fund_ask(2))
        assert node.setup.kept_for_fees() == 2 * KEPT_FOR_FEES


async def test_coins_of_positions_stay_reserved_without_a_setup_under_way(tmp_path: Path) -> None:
    async with running(tmp_path, 2_000_000, 2_000_000) as (world, node):
        made = await deal(world, node)
        await synced(world, node)
        first = await ask(node, fund_ask(1))
        own = evolve(made.plan.taker, inputs=first.inputs)
        begun = evolve(_begun(made.facts[Role.TAKER][0]), own=own)
        await node.remember((begun,))
        node.setup.holds.release(bytes([1]) * 16)  # from here on only the event says so
        with node.positions.lent() as positions:
            assert positions.reserved() == outpoints(first)
        second = await ask(node, fund_ask(2))
        assert not outpoints(second) & outpoints(first)
        assert (await refused(node, fund_ask(3))).code == "insufficient_funds"

        failed = fail_setup("peer_gone", "the peer is gone")
        await node.positions.call(Positions.execute, begun.order.order_id, failed)
        assert outpoints(await ask(node, fund_ask(4))) == outpoints(first)


def _begun(fact: object) -> AttemptBegun:
    assert isinstance(fact, AttemptBegun)
    return fact


async def test_coins_pay_for_margin_and_fees_or_the_order_is_too_large(tmp_path: Path) -> None:
    async with running(tmp_path, 1_300_000) as (_, node):
        error = await refused(node, fund_ask(quantity=5_000))
        assert error.code == "insufficient_funds"
        assert "1300000" in error.sentence.replace(" ", "")
        assert len(outpoints(await ask(node, fund_ask(quantity=3_400)))) == 1


async def test_only_our_own_inputs_of_a_lock_are_signed(tmp_path: Path) -> None:
    async with running(tmp_path, 2_000_000, 2_000_000) as (world, node):
        made = await deal(world, node)
        await synced(world, node)
        funding = await ask(node, fund_ask())
        own = evolve(
            made.plan.taker,
            inputs=funding.inputs,
            change_script=funding.change_script,
            payout_script=funding.payout_script,
        )
        plan = evolve(made.plan, taker=own)
        (witness,) = await ask(node, SignLock(plan))
        assert [len(item) for item in witness] == [64]

        # one that the peer says is its own, and that is ours
        other = await ask(node, fund_ask(2))
        stolen = evolve(plan, maker=evolve(plan.maker, inputs=(*plan.maker.inputs, *other.inputs)))
        assert (await refused(node, SignLock(stolen))).code == "not_our_coin"
        # and one whose value is not what the coin holds
        (coin,) = funding.inputs
        lied = evolve(plan, taker=evolve(own, inputs=(evolve(coin, value=coin.value + 1),)))
        assert (await refused(node, SignLock(lied))).code == "not_our_coin"
        assert len(ContractTransactions(plan).lock.vin) == 2


# --- the peer's coins and points --------------------------------------------------------------------------------------


async def test_coins_of_the_peer_are_looked_up_in_our_own_view_of_the_chain(tmp_path: Path) -> None:
    async with running(tmp_path, 2_000_000) as (world, node):
        good = fund(world, SOMEONE, 1_000_000)
        own = await node.wallet.call(Wallet.new_script)
        ours = fund(world, own, 1_000_000)
        await synced(world, node)
        scripts = (TAKER.script("change"), TAKER.script("payout"))
        await ask(node, CheckCoins((good,), scripts))

        world.world.treasury.pay(SOMEONE, 700_000)
        (waiting,) = world.world.mempool.entries.values()
        vout = next(n for n, out in enumerate(waiting.transaction.vout) if out.nValue == 700_000)
        bad: list[tuple[CheckCoins, str, str]] = [
            (CheckCoins((good, ours), scripts), "not_yours", "inputs"),
            (CheckCoins((good,), (scripts[0], own)), "not_yours", "scripts"),
            (CheckCoins((evolve(good, value=good.value + 1),), scripts), "bad_input", "is said to hold 1000001 sat"),
            (CheckCoins((evolve(good, script=TAKER.script("x")),), scripts), "bad_input", "is said to have the script"),
            (CheckCoins((evolve(good, vout=7),), scripts), "bad_input", "does not exist"),
            (CheckCoins((evolve(good, txid=bytes(32)),), scripts), "bad_input", "does not know"),
            (
                CheckCoins((FundingInput(waiting.txid, vout, 700_000, SOMEONE),), scripts),
                "bad_input",
                "has 0 confirmations",
            ),
            (CheckCoins((_immature(world),), scripts), "bad_input", "a coinbase needs 100"),
            (CheckCoins((_spent(world),), scripts), "bad_input", "is spent already"),
        ]
        for question, code, said in bad:
            error = await refused(node, question)
            assert isinstance(error, RemoteProtocolError)
            assert (error.code, said in error.sentence) == (code, True), error


def _immature(world: RunningWorld) -> FundingInput:
    coinbase = list(world.world.chain.blocks())[-1].transactions()[0]
    return FundingInput(coinbase.GetTxid(), 0, coinbase.vout[0].nValue, bytes(coinbase.vout[0].scriptPubKey))


def _spent(world: RunningWorld) -> FundingInput:
    """What the treasury's latest confirmed payment spent."""
    block = list(world.world.chain.blocks())[-1]
    spent = block.transactions()[1].vin[0].prevout
    output = world.world.index.transactions[spent.hash]
    funded = CTransaction.deserialize(output.raw).vout[spent.n]
    return FundingInput(spent.hash, spent.n, funded.nValue, bytes(funded.scriptPubKey))


async def test_points_that_any_attempt_ever_used_are_known(tmp_path: Path) -> None:
    async with running(tmp_path) as (world, node):
        made = await deal(world, node)
        assert await ask(node, KnownPoints(made.plan.maker.points)) == frozenset()
        await node.remember(made.facts[Role.TAKER])
        for party in (made.plan.maker, made.plan.taker):
            known = await ask(node, KnownPoints(party.points))
            assert known == {point for _, point in party.points.each()}


# --- how it ends ------------------------------------------------------------------------------------------------------


async def placed(node: Node) -> Setup:
    await node.positions.call(Positions.execute, ORDER_ID, place_order(PLACED, Role.TAKER, PEER[Role.TAKER]))
    node.setup.holds.hold(ORDER_ID, frozenset({OutPoint(bytes(32), 0)}))
    return Setup(PEER[Role.TAKER], ORDER_ID)


async def fails(error: Exception) -> ContractPlan:
    await trio.lowlevel.checkpoint()
    raise error


async def test_a_failed_setup_is_on_record_and_its_coins_are_free(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, node):
        setup = await placed(node)
        await node.setup.carry_out(setup, fails(PeerGone()))
        assert node.position(ORDER_ID).refusal == ("peer_gone", "the peer is gone")
        assert node.setup.holds.all() == frozenset()


async def test_a_setup_that_is_cancelled_is_on_record(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, node):
        setup = await placed(node)

        async def never_ends() -> ContractPlan:
            await trio.sleep_forever()
            raise AssertionError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.setup.carry_out, setup, never_ends())
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert node.position(ORDER_ID).refusal == ("interrupted", "the setup was interrupted")
        assert node.setup.holds.all() == frozenset()


async def test_a_bug_is_on_record_and_goes_on_to_whoever_counts_bugs(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, node):
        setup = await placed(node)
        with pytest.raises(ZeroDivisionError):
            await node.setup.carry_out(setup, fails(ZeroDivisionError()))
        assert node.position(ORDER_ID).state is State.REJECTED
        assert node.setup.holds.all() == frozenset()


async def test_a_contract_stays_one_however_the_conversation_ended(tmp_path: Path) -> None:
    """The last message was lost: our lock signatures count as left."""
    async with running(tmp_path) as (world, node):
        made = await deal(world, node)
        await node.remember(made.facts[Role.TAKER])
        setup = Setup(PEER[Role.TAKER], made.plan.order_id)
        await node.setup.carry_out(setup, fails(PeerGone()))
        position = node.position(made.plan.order_id)
        assert position.state is State.OPENING
        coins = {coin.outpoint for coin in made.plan.taker.inputs}
        assert position.inputs_held == coins


async def test_a_failure_that_cannot_be_recorded_is_when_the_store_is_back(tmp_path: Path) -> None:
    async with running(tmp_path) as (world, node):
        made = await deal(world, node)
        await node.remember(made.facts[Role.TAKER][:1])
        setup = Setup(PEER[Role.TAKER], made.plan.order_id)
        node.supervisor["store"].stop()
        await node.supervisor["store"].until(Up.STOPPED)
        await node.setup.carry_out(setup, fails(PeerGone()))
        node.supervisor["store"].start()
        with trio.fail_after(30):
            await node.positions.until(Up.RESTARTING, Up.WAITING)
            await node.positions.until(Up.HEALTHY)
        assert node.position(made.plan.order_id).state is State.SETUP_FAILED
        with pytest.raises(LocalError, match="not under way"):
            await node.remember((next(each for each in made.facts[Role.TAKER] if isinstance(each, SignaturesHeld)),))


async def test_an_order_that_was_never_recorded_leaves_nothing(tmp_path: Path) -> None:
    """The maker refused it: nothing is written for whoever asks."""
    async with running(tmp_path) as (_, node):
        await node.setup.carry_out(Setup(PEER[Role.TAKER], bytes(16)), fails(PeerGone()))
        await node.setup.carry_out(Setup(PEER[Role.TAKER]), fails(PeerGone()))
        with node.positions.lent() as positions:
            assert positions.all() == ()

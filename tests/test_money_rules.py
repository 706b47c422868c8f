"""Rules about money that no other test is about: without these, the proofs would find nobody who looks."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve, field, frozen
from bitcoin.core.serialize import Hash160

from node.errors import Conflict, Disconnected
from node.eventstore.memory import MemoryBackend
from node.oracle.client import OracleClient
from node.position.abandon import LockKeeper, lock_fee, spend_back
from node.position.book import Positions
from node.position.commands import RefusedCommand, attest, force_close, override_recovery, recover
from node.position.events import CommitPublishing, PriceAttested, RecoveryOverridden
from node.position.state import Position
from protocols.contract.bump import Parent, Unaffordable, child_of
from protocols.contract.contradictions import contradiction, write_proof
from protocols.contract.funding import MAX_INPUTS, FundingInput
from protocols.contract.keys import Points
from protocols.contract.oracle import parse_announcement, parse_attestation
from protocols.contract.parties import check_scripts
from protocols.contract.schedule import HOUR, check_events, contract_events, first_event
from protocols.contract.scripts import ANCHOR_SCRIPT, p2tr
from protocols.contract.sighash import TxOut
from protocols.contract.terms import Role, Timelocks
from protocols.contract.transactions import Party
from protocols.contract.witness import check_witness
from protocols.contract_setup import KnownPoints
from protocols.errors import RemoteProtocolError
from protocols.offers import ID_LENGTH, Offer
from tests.lives import opened
from tests.opened import TAKER_COIN_KEY, sign_p2wpkh
from tests.positions import LIQUIDATING, PEER, attestation, history, wanted
from tests.setups import MAKER, TAKER, order, points_of
from tests.simulation.faults import Faults
from tests.simulation.run import play
from tests.simulation.scenarios import Story
from tests.simulation.world import COIN, ORACLE, SCHEME
from tests.test_attacks import WithCoins
from tests.worlds import Node, deal, running_world, until

HOME = p2tr(bytes(32))
BOTH = pytest.mark.parametrize("role", Role)


# --- a lock that comes to nothing -------------------------------------------------------------------------------------


@frozen
class Looking(LockKeeper):
    """Remembers what it saw in the mempools."""

    looks: list[bool] = field(factory=list)

    async def _in_a_mempool(self, position: Position) -> bool:
        self.looks.append(await super()._in_a_mempool(position))
        return self.looks[-1]


async def two() -> int:
    await trio.lowlevel.checkpoint()
    return 2


async def test_a_lock_that_a_mempool_has_is_not_given_up_however_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.position.abandon.LOOK_EVERY", 0.01)
    async with running_world(tmp_path) as world:
        node = WithCoins(world, Role.MAKER)
        async with node.running("locks", "attestations"):
            made = await deal(world, node)
            await node.remember(made.facts[Role.MAKER])
            await until(lambda: made.transactions.lock_txid in world.world.mempool.entries)
            keeper = Looking(node.positions, node.monitor, node.wallet, world.clock, two, after=0.0)
            async with trio.open_nursery() as nursery:
                await nursery.start(keeper.run)
                await until(lambda: len(keeper.looks) > 2 or node.position(made.plan.order_id).abandoned, 5)
                nursery.cancel_scope.cancel()
            assert node.position(made.plan.order_id).abandoned is None
            assert set(keeper.looks) == {True}


async def test_a_lock_that_is_old_at_the_start_is_given_up_at_once(tmp_path: Path) -> None:
    passed = 0.0
    async with running_world(tmp_path, wall=lambda: time.time() + passed) as world:
        before = WithCoins(world, Role.TAKER, MemoryBackend(world.clock))
        async with before.running("locks", "attestations"):
            made = await deal(world, before)
            await before.remember(made.facts[Role.TAKER][:-1])  # the maker's witnesses never came
        passed = 601.0
        after = WithCoins(world, Role.TAKER, disk=before.disk)
        async with after.running("attestations"):
            await until(lambda: after.position(made.plan.order_id).abandoned, 5)


def test_what_spends_a_lock_back_pays_more_than_the_whole_lock() -> None:
    position = history(Role.TAKER, 4).position
    (attempt,) = position.attempts
    assert attempt.peer is not None
    many = tuple(FundingInput(bytes([at]) * 32, 0, 1_000_000, HOME) for at in range(20))
    position = evolve(position, attempts=(evolve(attempt, peer=evolve(attempt.peer, inputs=many)),))
    tx, inputs = spend_back(position, HOME, 2)
    assert sum(each.value for each in inputs) - tx.vout[0].nValue > lock_fee(position)


# --- a record that is too old -----------------------------------------------------------------------------------------


@BOTH
def test_a_recovered_position_publishes_nothing_by_itself(role: Role) -> None:
    made = opened(role)
    made.do(recover("restored from a backup"))
    with pytest.raises(RefusedCommand) as refused:
        made.do(force_close("by the user"))
    assert refused.value.code == "recovered"
    assert [type(event) for event in made.do(attest(attestation(3, LIQUIDATING)))] == [PriceAttested]
    assert made.position.publishing is None


@BOTH
def test_a_commit_that_was_being_published_is_not_published_from_an_old_record(role: Role) -> None:
    made = opened(role)
    made.do(force_close("by the user"))
    assert wanted(made)
    made.do(recover("restored from a backup"))
    assert not wanted(made)
    made.do(override_recovery("the user's word"))
    assert wanted(made)


@BOTH
def test_only_the_users_word_publishes_the_commit_of_an_old_record(role: Role) -> None:
    made = opened(role)
    with pytest.raises(RefusedCommand) as refused:
        made.do(override_recovery("not recovered at all"))
    assert refused.value.code == "not_recovered"
    made.do(recover("restored from a backup"))
    published = made.do(override_recovery("the user's word"))
    assert [type(event) for event in published] == [RecoveryOverridden, CommitPublishing]
    assert made.do(override_recovery("once more")) == []
    assert list(wanted(made)) == [made.position.transactions(0).commit_txid]
    made.do(recover("restored once more"))
    assert not wanted(made)


# --- what the other side says -----------------------------------------------------------------------------------------


async def test_a_point_that_was_named_once_is_known_at_once(tmp_path: Path) -> None:
    async with running_world(tmp_path) as world:
        node = Node(world, Role.MAKER)
        async with node.running("contracts", "locks", "attestations"):
            known = node.setup.host(Role.MAKER, PEER[Role.MAKER]).answers[KnownPoints]
            points: Points = points_of(TAKER, order().order_id)
            assert await known(KnownPoints(points)) == frozenset()
            assert await known(KnownPoints(points)) == {point for _, point in points.each()}


def test_more_than_twenty_inputs_are_refused() -> None:
    many = tuple(FundingInput(bytes([at]) * 32, 0, 1_000_000, HOME) for at in range(MAX_INPUTS + 1))
    party = Party(points_of(MAKER, order().order_id), many, HOME, HOME)
    check_scripts(evolve(party, inputs=many[1:]))
    with pytest.raises(RemoteProtocolError, match="allowed are 1 to 20"):
        check_scripts(party)


def test_the_first_event_is_more_than_two_minutes_away() -> None:
    assert first_event(10 * HOUR - 121) == 10 * HOUR
    assert first_event(10 * HOUR - 119) == first_event(10 * HOUR - 120) == 11 * HOUR


def test_a_witness_names_the_hash_type_that_was_signed() -> None:
    """Consensus would refuse the other one, and the lock would never confirm."""
    tx, coin = history(Role.MAKER).position.transactions(0).lock, TxOut(COIN, b"\x00\x14" + Hash160(TAKER_COIN_KEY))
    spent = (coin, coin)
    signature, key = sign_p2wpkh(tx, 1, COIN)
    check_witness(tx, 1, spent, (signature, key))
    for other in (b"", b"\x00", b"\x02", b"\x81"):
        with pytest.raises(RemoteProtocolError):
            check_witness(tx, 1, spent, (signature[:-1] + other, key))


def test_events_are_on_full_hours() -> None:
    now = 500_000 * HOUR - 10
    listed = contract_events("BTCUSD", now, SCHEME)
    check_events("BTCUSD", listed, SCHEME, asked_at=now, now=now)
    late = [SCHEME.event_id("BTCUSD", SCHEME.parse_event(each)[1] + HOUR // 2) for each in listed]
    with pytest.raises(RemoteProtocolError, match="not on a full hour"):
        check_events("BTCUSD", late, SCHEME, asked_at=now, now=now)


def test_a_bump_spends_no_more_than_fits_into_a_thousand_vbytes() -> None:
    """Version 3 takes no larger child; another one would be refused, and the commit stay where it is."""
    coins = [FundingInput(bytes([at]) * 32, 0, 5_000, HOME) for at in range(100)]
    parent = Parent(332, 166, FundingInput(bytes(32), 1, 240, ANCHOR_SCRIPT))
    child_of(parent, coins, rate=10, script=HOME, limit=10**6)
    with pytest.raises(Unaffordable):
        child_of(parent, coins, rate=80, script=HOME, limit=10**6)


def told(tell: Callable[[Story], Awaitable[None]]) -> None:
    """In the simulator, to its end."""
    assert play("told", 0, tell, Faults()).violations == ()


async def nodes(story: Story) -> Offer:
    story.world.faults.open = False
    story.world.add("maker")
    story.world.add("taker", "maker")
    offer = await story.offer(story.maker)
    assert offer is not None
    return offer


def test_offers_that_are_old_or_of_other_rules_are_not_taken() -> None:
    async def tell(story: Story) -> None:
        good, taker, board = await nodes(story), story.taker.taker, story.maker.maker.board
        other_oracle = evolve(good.oracle, scheme="olivia-v1")
        for number, (changed, code) in enumerate(
            (
                (evolve(good, timelocks=Timelocks(1, 2, 3)), "other_timelocks"),
                (evolve(good, oracle=other_oracle), "other_oracle"),
            ),
            1,
        ):
            offer = evolve(changed, id=bytes([number]) * ID_LENGTH)
            board.put(offer)
            await trio.sleep(1)
            with pytest.raises(Conflict) as refused:
                await taker.place(None, offer.id, 1_000, 2)
            assert refused.value.code == code
        fresh = await story.offer(story.maker)
        assert fresh is not None
        await trio.sleep(1)
        story.taker.skew = 601.0
        with pytest.raises(Conflict) as refused:
            await taker.place(None, fresh.id, 1_000, 2)
        assert refused.value.code == "stale_offer"

    told(tell)


def test_nothing_is_rolled_over_with_an_oracle_that_said_two_things() -> None:
    async def tell(story: Story) -> None:
        offer = await nodes(story)
        order_id = await story.order(story.taker, offer)
        assert await story.opened(order_id)
        assert order_id is not None
        await story.hour(2.2)
        core = story.maker.maker.core
        position = story.position(story.taker, order_id)
        assert position is not None
        await core.oracle.call(OracleClient.import_proof, _proof(position.plan().announcements[0].id))
        await story.roll_over(story.taker, order_id)
        await trio.sleep(5)
        position = story.position(story.taker, order_id)
        assert position is not None
        assert (position.own_revoked, position.rolling) == (0, False)

    told(tell)


def _proof(event: str) -> bytes:
    """That the simulator's oracle attested an event twice."""
    nonces = ORACLE.nonces(SCHEME, event)
    secrets = ORACLE.attestation_secret(SCHEME), ORACLE.announcement_secret(SCHEME)
    announcement_key, attestation_key = ORACLE.public(SCHEME)
    announcement = parse_announcement(
        SCHEME.announce(event, nonces, *secrets),
        announcement_key=announcement_key,
        attestation_key=attestation_key,
        scheme=SCHEME.name,
    )
    first, second = (
        parse_attestation(SCHEME.attest(event, nonces, *secrets, price), announcement) for price in (54_000, 30_000)
    )
    assert first is not None
    assert second is not None
    found = contradiction(announcement, announcement_key, first, second)
    assert found is not None
    return write_proof(found)


def test_an_order_put_on_record_while_the_setups_are_ended_is_not_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The write is not cancelled half-way, and whoever was to carry the order out is gone when it is done."""
    before = Positions._before
    struck: list[bytes] = []

    async def tell(story: Story) -> None:
        offer, taker = await nodes(story), story.taker.taker

        async def strikes(self: Positions, position: Position, *others: Any) -> None:
            await before(self, position, *others)
            if not position.version and not struck and taker.core.positions.health.up:
                struck.append(position.id)
                taker._trades.restart()
                await trio.sleep(1)  # shielded: the write goes on

        monkeypatch.setattr(Positions, "_before", strikes)
        await trio.sleep(1)
        with pytest.raises(Disconnected):
            await taker.place(None, offer.id, 1_000, 2)
        await trio.sleep(1)
        with taker.core.positions.lent() as positions:
            (position,) = positions.all()
        assert position.id == struck[0]
        assert position.refusal == ("interrupted", "the setup was interrupted")

    told(tell)

"""An old copy of the data directory is put back, beside a backup that knows better: nothing of the old record is acted
upon."""

from __future__ import annotations

import copy
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define

from node.backup.behind import OLDER
from node.backup.service import Backup, Owner, run_backup
from node.chain.broadcast import Broadcaster
from node.chain.monitor import Monitor
from node.clock import Clock
from node.config import FeeRateTable
from node.eventstore.interface import EventStore, NewEvent
from node.eventstore.memory import MemoryBackend, inline, run_memory_store
from node.eventstore.sqlite import SqliteBackend, run_store
from node.health import UP
from node.health import State as Up
from node.position.book import Positions, run_positions
from node.position.commands import attest, force_close
from node.position.events import CloseRejected, CommitPublishing, Recovered, RolloverHeld
from node.position.keeper import ChainKeeper
from node.position.observing import observe
from node.position.state import Position, State
from node.settlement import SettlementNode
from node.setup import SetupNode
from node.supervision import Service, Supervisor
from protocols.contract.terms import Role
from protocols.dialogue import Fact
from protocols.errors import Declined, LocalError, WorldError
from tests.lives import LOCKED, lock, rollovers
from tests.positions import LAST, ORDER_ID, PEER, TRADER, attestation, view
from tests.setups import order
from tests.test_backup import BOTH, SEAL, Node, Place, kept, place


async def open_it(it: Node, role: Role) -> None:
    await place(it, role)
    await it.remember(role)
    await it.positions.call(Positions.execute, ORDER_ID, observe(view(LOCKED, (lock(), LOCKED))))


async def settled(it: Node) -> None:
    """Everything is in the backup."""
    await trio.testing.wait_all_tasks_blocked()
    assert it.names() == it.recorded()


async def remember(it: Node, role: Role, *facts: Fact) -> None:
    for each in facts:
        await it.positions.call(Positions.remember, each, PEER[role])


def position(it: Node) -> Position:
    with it.positions.lent() as positions:
        found = positions.get(ORDER_ID)
    assert found is not None
    return found


async def check_recovered(it: Node, expected: list[str]) -> None:
    assert it.recorded() == [*expected, Recovered.__name__]
    assert position(it).recovered
    with pytest.raises(LocalError, match="may be older than what was signed"):
        await it.positions.call(Positions.execute, ORDER_ID, force_close("a test"))
    await it.positions.call(Positions.execute, ORDER_ID, attest(attestation(LAST, 60_000)))
    assert CommitPublishing.__name__ not in it.recorded()
    await settled(it)


@BOTH
@pytest.mark.parametrize("had", [0, 1, 3])
async def test_after_a_rollover_what_is_missing_is_taken_and_recovered(
    autojump_clock: object, role: Role, had: int
) -> None:
    facts = rollovers(1).records(role)
    async with kept() as it:
        await open_it(it, role)
        await remember(it, role, *facts[:had])
        old = copy.deepcopy(it.disk)
        await remember(it, role, *facts[had:])
        await settled(it)
        after, now, backup = it.recorded(), position(it), it.place
    async with kept(old, backup) as again:
        assert again.recorded()[: len(after)] == after
        assert position(again).attempts == now.attempts
        assert position(again).peer_secrets == now.peer_secrets
        assert position(again).changed_at - now.changed_at < 10
        assert position(again).attempts[1].held_at == pytest.approx(now.attempts[1].held_at, abs=1)
        await again.positions.call(Positions.signatures, ORDER_ID, 1)
        await check_recovered(again, after)
        then = again.recorded()
    async with kept(again.disk, again.place) as third:
        assert third.recorded() == then, "once is enough"


@BOTH
async def test_after_a_setup_the_whole_position_is_taken_and_recovered(autojump_clock: object, role: Role) -> None:
    async with kept() as it:
        old = copy.deepcopy(it.disk)
        await open_it(it, role)
        await settled(it)
        after, backup = it.recorded(), it.place
    async with kept(old, backup) as again:
        assert position(again).state is State.OPEN
        await check_recovered(again, after)


async def test_a_write_that_the_store_never_saw_is_no_older_store(autojump_clock: object) -> None:
    begun, held = rollovers(1).facts[Role.TAKER][0][:2]
    async with kept() as it:
        await open_it(it, Role.TAKER)
        await remember(it, Role.TAKER, begun)
        killed = copy.deepcopy(it.disk)
        await remember(it, Role.TAKER, held)
        after, backup = it.recorded(), it.place
        assert after[-1] == RolloverHeld.__name__
    async with kept(killed, backup) as again:
        assert again.recorded() == after
        assert not position(again).recovered
        assert position(again).rolling
        await again.positions.call(Positions.signatures, ORDER_ID, 1)
        await settled(again)


@define
class Away(Place):
    """Not there at first."""

    away: bool = True

    def prepare(self) -> None:
        if self.away:
            raise WorldError("backup_failed", "/backup: Transport endpoint is not connected")


@asynccontextmanager
async def keeping(disk: MemoryBackend, away: Away) -> AsyncIterator[tuple[Node, Broadcaster, Supervisor]]:
    """The same with what broadcasts, and a backup that is not there yet."""
    supervisor = Supervisor(raise_bugs=True)
    store = supervisor.reporting("store", partial(run_memory_store, disk))
    made = Backup(away, SEAL, Owner("regtest", "taker"), Clock(), os.urandom, inline)
    backup = supervisor.reporting("backup", partial(run_backup, made))
    positions = supervisor.reporting("positions", partial(run_positions, store, backup), [store])
    broadcaster = Broadcaster(Clock())
    keeper = ChainKeeper(positions, Monitor(), broadcaster, TRADER[Role.TAKER].seed, Clock())
    supervisor.service("contracts", keeper.run, [positions])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        await positions.until(*UP)
        yield Node(disk, away, positions, backup), broadcaster, supervisor
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("older", [False, True])
async def test_while_the_backup_is_away_no_commit_is_published(autojump_clock: object, older: bool) -> None:
    async with kept() as it:
        await open_it(it, Role.TAKER)
        old = copy.deepcopy(it.disk)
        if older:
            await remember(it, Role.TAKER, *rollovers(1).facts[Role.TAKER][0])
        await settled(it)
        away = Away(kept=it.place.kept)
    async with keeping(old, away) as (node, broadcaster, supervisor):
        with pytest.raises(WorldError, match="nothing was signed"):
            await remember(node, Role.TAKER, *rollovers(1).facts[Role.TAKER][0])
        await node.positions.call(Positions.execute, ORDER_ID, attest(attestation(LAST, 60_000)))
        await trio.sleep(60)
        commit = position(node).transactions(0).commit_txid
        assert node.recorded()[-1] == CommitPublishing.__name__
        assert broadcaster.kept(ORDER_ID) == {}, "it may have been revoked since"
        assert "no commit is published" in supervisor["positions"].health.reason
        assert "Transport endpoint is not connected" in supervisor["positions"].health.reason
        away.away = False
        await trio.sleep(120)
        assert position(node).recovered is older
        assert broadcaster.kept(ORDER_ID).keys() == (set() if older else {commit})
        assert supervisor["positions"].state is (Up.DEGRADED if older else Up.HEALTHY)
        await trio.sleep(120)
        await settled(node)
    if older:
        async with kept(node.disk, Place(kept=away.kept)) as again:
            assert position(again).recovered
            assert position(again).attempts[1].commit_signature is not None


async def test_the_old_state_is_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "events.sqlite"
    supervisor = Supervisor(raise_bugs=True)
    store = supervisor.reporting("store", partial(run_store, path))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.run)
        await store.until(*UP)
        await store.call(EventStore.append, "position/00", 0, [NewEvent("A", 1, b"a")])
        copied = Path(await store.call(EventStore.keep_copy, OLDER))
        await store.call(EventStore.append, "position/00", 1, [NewEvent("B", 1, b"b", recorded_at=1.5)])
        (_, second) = await store.call(EventStore.load, "position/00")
        nursery.cancel_scope.cancel()
    assert second.recorded_at == 1.5
    assert copied.name.startswith(f"events.sqlite.{OLDER}-")
    aside = SqliteBackend(copied, lambda: 0.0)
    assert [each.name for each in aside.load("position/00", 0)] == ["A"]
    aside.close()


async def test_a_maker_has_it_on_record_why_a_taker_refused_its_own_close(autojump_clock: object) -> None:
    """Said once, however often the taker tries; another reason is the dialogue's alone."""
    away: Service[Any] = Service("away", run_memory_store)
    async with kept() as it:
        await open_it(it, Role.MAKER)
        base = SetupNode(
            clock=Clock(),
            oracle_keys=order().offer.oracle,
            fee_rates=FeeRateTable(),
            positions=it.positions,
            chain=away,
            wallet=away,
            oracle=away,
            seed=TRADER[Role.MAKER].seed,
        )
        node = SettlementNode(base)
        before = it.recorded()
        await node.note(ORDER_ID, WorldError("peer_gone", "the peer is gone"))
        assert it.recorded() == before
        for txid in ("aa", "bb"):
            await node.note(ORDER_ID, Declined("other_contract", f"close_txid is {txid}"))
        assert it.recorded() == [*before, CloseRejected.__name__]
        refusal = position(it).close_refusal
        assert refusal is not None
        assert "a record from before the last rollover" in refusal[1]
        await node.note(bytes(16), Declined("other_contract", "of nothing"))

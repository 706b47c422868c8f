"""Keeps what contracts promise: follows each one's transactions, acts on attestations, broadcasts what is due.

Both keepers look at positions, at the chain and at the oracle, and at nothing that they remembered: begun anew, they do
the same again, and every command that they give may be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog
import trio
from attrs import Factory, define, evolve, field, frozen

from node.chain.broadcast import Broadcaster
from node.chain.monitor import Monitor
from node.clock import Clock, step
from node.health import UNREPORTED, Beating, Report, Working
from node.oracle.client import OracleClient
from node.position.abandon import ABANDON_AFTER, LOOK_EVERY
from node.position.book import Positions
from node.position.commands import attest
from node.position.due import due, needs_signatures, punishment
from node.position.observing import observe
from node.position.state import Position, State, watched_scripts
from node.supervision import Service
from protocols.contract.oracle import Announcement, Attestation
from protocols.errors import LocalError

REMEDY = "its record is damaged: restore it from the backup into a new data directory (cfdnode restore)"

_log = structlog.get_logger(__name__)


@define(eq=False)
class _Kept:
    """A contract that is being kept."""

    order_id: bytes
    working: Working
    lock_shown: bool = False
    """Whether the chain or a mempool shows the lock, as far as we looked."""
    turn: trio.Lock = Factory(trio.Lock)


@frozen
class ChainKeeper:
    """Watches the lock and the commit of every contract, and keeps due transactions on their way."""

    positions: Service[Positions]
    monitor: Monitor
    broadcaster: Broadcaster
    seed: bytes = field(repr=False)
    """64 bytes."""
    clock: Clock
    report: Report = UNREPORTED
    """Told of a contract that cannot be kept."""
    after: float = ABANDON_AFTER
    """As the `LockKeeper` has it."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        kept: set[bytes] = set()
        working = Working(self.report)
        with self.positions.lent() as positions:
            changes = positions.changed.changes()
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    await working.next(changes)
                    for position in positions.all():
                        if position.id in kept or position.contract is None:
                            continue
                        kept.add(position.id)
                        if position.over:
                            self._hand_over(position.id, {}, {})  # what an earlier life left there
                        else:
                            nursery.start_soon(self._keep, positions, _Kept(position.id, working))

    async def _keep(self, positions: Positions, kept: _Kept) -> None:
        """One contract until it ended. When this is cancelled or fails, what was due goes on being broadcast."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, positions, kept)
            nursery.start_soon(self._let_go, positions, kept)
            async for _ in positions.of(kept.order_id).changes():
                position = _get(positions, kept)
                await self._broadcast(positions, kept)
                if position.over:  # as it was broadcast: what it became meanwhile is another change
                    break
            nursery.cancel_scope.cancel()

    async def _watch(self, positions: Positions, kept: _Kept) -> None:
        try:
            await self._follow(positions, kept)
        except LocalError as error:
            self._cannot_keep(kept.order_id, error)

    def _cannot_keep(self, order_id: bytes, error: LocalError) -> None:
        """A damaged record: that of one contract, and no reason to let the others go."""
        _log.exception("a contract cannot be kept", order=order_id.hex())
        self.report.degraded(f"position {order_id.hex()}: {error.sentence}", REMEDY)

    async def _follow(self, positions: Positions, kept: _Kept) -> None:
        while True:
            scripts = watched_scripts(_get(positions, kept))
            with self.monitor.follow(scripts) as views:
                async for view in views:
                    with kept.working.piece():
                        position = await positions.execute(kept.order_id, observe(view))
                    shown = position.transactions(0).lock_txid in view.transactions
                    if shown != kept.lock_shown:
                        kept.lock_shown = shown
                        await self._broadcast(positions, kept)
                    if watched_scripts(position) != scripts:
                        break

    async def _let_go(self, positions: Positions, kept: _Kept) -> None:
        """Have nothing broadcast any more that has become too old for it meanwhile."""
        held_back: tuple[bool, bool] | None = None
        while True:
            position = _get(positions, kept)
            now = self._too_late(position, kept), positions.unsure_of(position.id)
            if now != held_back:
                held_back = now
                await self._broadcast(positions, kept)
            left = position.out_since + self.after - self.clock.now() if position.state is State.OPENING else LOOK_EVERY
            await trio.sleep(step(left, LOOK_EVERY))

    async def _broadcast(self, positions: Positions, kept: _Kept) -> None:
        with kept.working.piece():
            await self._broadcast_now(positions, kept)

    async def _broadcast_now(self, positions: Positions, kept: _Kept) -> None:
        async with kept.turn:  # so that who comes last has seen everything
            position = _get(positions, kept)
            try:
                wanted = {} if self._too_late(position, kept) else await self._due(positions, position)
            except LocalError as error:
                self._cannot_keep(position.id, error)
            else:
                self._hand_over(position.id, wanted, punishment(position))

    def _hand_over(self, order_id: bytes, wanted: Mapping[bytes, bytes], punishing: Mapping[bytes, bytes]) -> None:
        self.broadcaster.keep(order_id, wanted)
        self.broadcaster.keep(b"punishment of " + order_id, punishing, package=len(punishing) > 1)

    def _too_late(self, position: Position, kept: _Kept) -> bool:
        """Whether the lock is about to be given up: the peer may choose by now whether it wants the old price."""
        if position.state is not State.OPENING or kept.lock_shown:
            return False
        return self.clock.now() >= position.out_since + self.after

    async def _due(self, positions: Positions, position: Position) -> dict[bytes, bytes]:
        present = position.present
        assert present is not None
        signatures = await positions.signatures(position.id, present.index) if needs_signatures(position) else None
        if positions.unsure_of(position.id):
            position = evolve(position, publishing=None)
        return due(position, self.seed, signatures)


def _get(positions: Positions, kept: _Kept) -> Position:
    position = positions.get(kept.order_id)
    assert position is not None, "no position is forgotten until it was over for a while"
    return position


@frozen
class AttestationKeeper:
    """Waits for every event that a live contract names, once for all contracts that name it."""

    positions: Service[Positions]
    oracle: Service[OracleClient]

    async def run(
        self, *, report: Report = UNREPORTED, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        asked: dict[str, Attestation | None] = {}
        """By event; None while it is not attested."""
        told: dict[bytes, frozenset[int]] = {}
        """By position the contracts of which every event is asked for."""
        seen: dict[bytes, Position] = {}
        with self.positions.lent() as positions:
            async with trio.open_nursery() as nursery:
                task_status.started()
                async for _ in Beating(report, positions.changed.changes()):
                    for position in positions.all():
                        if seen.get(position.id) is position:
                            continue
                        seen[position.id] = position
                        claimable = _claimable(position)
                        new = claimable.keys() - told.get(position.id, frozenset())
                        told[position.id] = frozenset(claimable)  # none once it ended: a reorganisation may revive it
                        for announcement in {each.id: each for index in new for each in claimable[index]}.values():
                            if announcement.id not in asked:
                                asked[announcement.id] = None
                                nursery.start_soon(self._wait, positions, announcement, asked)
                            elif (known := asked[announcement.id]) is not None:
                                # attested while this contract was being signed
                                await positions.execute(position.id, attest(known))

    async def _wait(
        self, positions: Positions, announcement: Announcement, asked: dict[str, Attestation | None]
    ) -> None:
        attestation = await self.oracle.call(OracleClient.wait_attestation, announcement)
        asked[announcement.id] = attestation
        for position in positions.all():
            if any(each.id == announcement.id for named in _claimable(position).values() for each in named):
                await positions.execute(position.id, attest(attestation))


def _claimable(position: Position) -> dict[int, tuple[Announcement, ...]]:
    """The events of every contract that may pay out. None of a record that is damaged, of which the chain's keeper
    tells."""
    if position.contract is None or position.ended or position.cet_timelock_expired:
        return {}
    try:
        return {each.index: position.plan(each.index).announcements for each in position.claimable}
    except LocalError:
        return {}

"""Keeps what contracts promise: follows each one's transactions, acts on attestations, broadcasts what is due.

Both keepers look at positions and at nothing that they remembered: begun anew, they do the same again, and every
command that
they give may be repeated.
"""

from __future__ import annotations

import structlog
import trio
from attrs import field, frozen

from node.chain.broadcast import Broadcaster
from node.chain.monitor import Monitor
from node.oracle.client import OracleClient
from node.position.book import Positions
from node.position.commands import attest, observe
from node.position.due import due
from node.position.state import Position
from node.supervision import Service
from protocols.contract.oracle import Announcement

_log = structlog.get_logger(__name__)


@frozen
class ChainKeeper:
    """Watches the lock and the commit of every contract, and keeps due transactions on their way."""

    positions: Service[Positions]
    monitor: Monitor
    broadcaster: Broadcaster
    seed: bytes = field(repr=False)
    """64 bytes."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        kept: set[bytes] = set()
        with self.positions.lent() as positions:
            async with trio.open_nursery() as nursery:
                task_status.started()
                number = -1
                while True:
                    number = await positions.changed_since(number)
                    for position in positions.all():
                        if position.id not in kept and position.contract is not None and not position.ended:
                            kept.add(position.id)
                            nursery.start_soon(self._keep, positions, position.id)

    async def _keep(self, positions: Positions, order_id: bytes) -> None:
        """One contract until it ended."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, positions, order_id)
            await self._broadcast(positions, order_id)
            nursery.cancel_scope.cancel()

    async def _watch(self, positions: Positions, order_id: bytes) -> None:
        position = positions.get(order_id)
        assert position is not None
        transactions = position.transactions()
        with self.monitor.follow([transactions.lock_output.script, transactions.commit_output.script]) as views:
            async for view in views:
                await positions.execute(order_id, observe(view))

    async def _broadcast(self, positions: Positions, order_id: bytes) -> None:
        number, version = -1, -1
        try:
            while True:
                number = await positions.changed_since(number)
                position = positions.get(order_id)
                if position is None or position.version == version:
                    continue
                version = position.version
                self.broadcaster.keep(order_id, await self._due(positions, position))
                if position.ended:
                    return
        finally:
            self.broadcaster.keep(order_id, {})

    async def _due(self, positions: Positions, position: Position) -> dict[bytes, bytes]:
        contract = position.contract
        assert contract is not None
        needed = position.cet_timelock_expired or position.refund_timelock_expired
        signatures = await positions.signatures(position.id, contract.index) if needed else None
        return due(position, self.seed, signatures)


@frozen
class AttestationKeeper:
    """Waits for every event that a live contract names, once for all contracts that name it."""

    positions: Service[Positions]
    oracle: Service[OracleClient]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        waiting: set[str] = set()
        with self.positions.lent() as positions:
            async with trio.open_nursery() as nursery:
                task_status.started()
                number = -1
                while True:
                    number = await positions.changed_since(number)
                    for position in filter(_settles_by_oracle, positions.all()):
                        for announcement in position.plan().announcements:
                            if announcement.id not in waiting:
                                waiting.add(announcement.id)
                                nursery.start_soon(self._wait, positions, announcement, waiting)

    async def _wait(self, positions: Positions, announcement: Announcement, waiting: set[str]) -> None:
        attestation = await self.oracle.call(OracleClient.wait_attestation, announcement)
        for position in filter(_settles_by_oracle, positions.all()):
            named = [each.id for each in position.plan().announcements]
            if announcement.id in named:
                await positions.execute(position.id, attest(named.index(announcement.id), attestation))


def _settles_by_oracle(position: Position) -> bool:
    return position.contract is not None and not position.ended and not position.cet_timelock_expired

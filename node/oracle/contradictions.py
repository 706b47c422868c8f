"""Watches an oracle whose word contracts depend on: whether what it attested once is what it attests to everybody.

It is asked again for a while about every event that it attested and that a live contract names; and a CET that the
peer publishes tells what the peer was told. What differs is weighed, and told, by the `OracleClient`. A cooperative
spend tells nothing: its signatures are plain ones, and ours was given at the price that we were told ourselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import structlog
import trio
from attrs import field, frozen
from bitcoin.core import CTransaction

from node.chain.electrum import ElectrumClient
from node.clock import Clock
from node.errors import Disconnected
from node.health import UNREPORTED, Beating, Report
from node.oracle.client import OracleClient
from node.position.book import Positions
from node.position.state import EndingKind, Position
from node.supervision import Service
from protocols.contract.contradictions import Opening
from protocols.contract.keys import attempt_keys
from protocols.contract.oracle import Announcement
from protocols.contract.signing import recover_opening
from protocols.contract.transactions import ContractPlan
from protocols.errors import LocalError, WorldError

AGAIN_AFTER = (0.0, 60.0, 600.0, 3600.0)
"""Seconds of the calendar after which the oracle is asked again: after its first attestation, or the node's start."""
LOOK_BACK = 7 * 86_400.0
"""Seconds after its end in which the CET of a position is looked at, by a node that was not there at the time."""
RETRY_EVERY = 30.0

_log = structlog.get_logger("oracle")


@frozen
class OracleWatch:
    """A service: compares the oracle's word with itself."""

    positions: Service[Positions]
    oracle: Service[OracleClient]
    chain: Service[ElectrumClient]
    clock: Clock
    seed: bytes = field(repr=False)
    """64 bytes."""

    async def run(
        self, *, report: Report = UNREPORTED, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        asked: set[str] = set()
        looked: set[tuple[bytes, bytes]] = set()
        with self.positions.lent() as positions:
            async with trio.open_nursery() as nursery:
                task_status.started()
                async for _ in Beating(report, positions.changed.changes()):
                    for position in positions.all():
                        for announcement in _named(position):
                            if announcement.id not in asked:
                                asked.add(announcement.id)
                                nursery.start_soon(self._ask_again, positions, announcement)
                        cet = self._recent_cet(position)
                        if cet is not None and (position.id, cet) not in looked:
                            looked.add((position.id, cet))
                            nursery.start_soon(self._look_at, position, cet)

    async def _ask_again(self, positions: Positions, announcement: Announcement) -> None:
        await self.oracle.call(OracleClient.wait_attestation, announcement)
        for before, after in pairwise((0.0, *AGAIN_AFTER)):
            await trio.sleep(self.clock.wall_seconds(after - before))
            if not any(announcement in _named(position) for position in positions.all()):
                return
            try:
                await self.oracle.call(OracleClient.ask_again, announcement)
            except Disconnected:
                raise
            except WorldError as error:  # the client has told of it; what it cannot say now, it may say later
                _log.info("the oracle did not answer again", oracle_event=announcement.id, reason=error.sentence)

    def _recent_cet(self, position: Position) -> bytes | None:
        ending = position.ending
        if (
            ending is None
            or ending.kind is not EndingKind.CET
            or (position.ended and position.changed_at < self.clock.now() - LOOK_BACK)
        ):
            return None
        return ending.txid

    async def _look_at(self, position: Position, cet: bytes) -> None:
        """What the peer was told, by the CET that it published."""
        found = None
        while found is None:
            try:
                raw = await self.chain.call(ElectrumClient.transaction, cet)
                found = list(self._openings(position, raw))
            except (ValueError, WorldError) as error:  # one server that is gone, or lies, is not all of them
                _log.info("a CET cannot be looked at yet", txid=cet[::-1].hex(), reason=str(error))
                await trio.sleep(RETRY_EVERY)
            except LocalError:  # a damaged record, of which the chain's keeper tells
                return
        for announcement, opening in found:
            await self.oracle.call(OracleClient.compare, announcement, opening)

    def _openings(self, position: Position, raw: bytes) -> Iterator[tuple[Announcement, Opening]]:
        commit = CTransaction.deserialize(raw).vin[0].prevout.hash
        for plan in _plans(position):
            if position.transactions(plan.index).commit_txid != commit:
                continue
            salt = position.attempts[0].salt
            keys = attempt_keys(self.seed, setup_salt=salt, salt=salt, order_id=position.id, index=0)
            recovered = recover_opening(plan, position.role, raw, keys.fund)  # the fund key is every attempt's
            if recovered is not None:
                outcome, scalar = recovered
                yield plan.announcements[outcome.event], Opening(outcome.digits, scalar)


def _plans(position: Position) -> Iterator[ContractPlan]:
    """Of every attempt that may have a commit."""
    return (position.plan(attempt.index) for attempt in position.attempts if attempt.peer is not None)


def _named(position: Position) -> tuple[Announcement, ...]:
    """The events of a live contract."""
    if position.contract is None or position.ended:
        return ()
    try:
        return position.plan().announcements
    except LocalError:  # a damaged record, of which the chain's keeper tells
        return ()

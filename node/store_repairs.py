"""What the user may ask of a damaged event store: to go on without it, or with what the backup holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog
import trio

from node import files
from node.clock import Clock
from node.config import NodeConfig
from node.eventstore.interface import EventStore
from node.eventstore.sqlite import move_aside
from node.health import State
from node.supervision import Repair, Service
from node.wallet.seed import Seed

_log = structlog.get_logger(__name__)


def store_repairs(
    config: NodeConfig, seed: Seed, clock: Clock, store: Callable[[], Service[EventStore]]
) -> tuple[Repair, Repair]:
    """For the service that `store` gives; it is down while they work, and begins anew behind them."""
    path = files.store_file(config.data)

    def aside(damaged: Path) -> Path:
        kept = move_aside(damaged, clock.now())
        _log.warning("the event store was moved aside at the user's word", to=str(kept))
        return kept

    def restore() -> None:
        from node.backup.restore import restore_into

        restored = restore_into(path, config.backup_folder, seed.secret, config.network, config.role, aside=aside)
        _log.warning("positions were restored from the backup", positions=len(restored.positions))

    async def while_down(work: Callable[[], object]) -> None:
        service = store()
        service.stop()
        try:
            await service.until(State.STOPPED)
            await trio.to_thread.run_sync(work)
        finally:
            service.start()

    return (
        Repair(
            "restore-backup",
            "move the damaged file aside and restore the positions from the backup",
            "the restored positions are marked as recovered: none of their commits is published by itself, and they"
            " cannot be rolled over; positions that the backup does not hold are not restored",
            partial(while_down, restore),
        ),
        Repair(
            "move-aside",
            "move the damaged file aside and start with an empty one",
            "the node forgets its history, and what it keeps of the oracle's word; positions that the backup holds come"
            " back as recovered, for all others it does nothing any more, neither at expiry nor when the peer cheats",
            partial(while_down, partial(aside, path)),
        ),
    )

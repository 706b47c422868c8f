"""A place for the backup that takes nothing any more: what nobody could sign is not begun, until it takes it again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from node.backup.files import MemoryFiles
from node.backup.service import LOOK_EVERY
from node.health import State
from protocols.errors import WorldError
from tests.simulation.world import Player
from tests.test_rollover_node import playing

SOON = LOOK_EVERY + 20.0


@contextmanager
def full(player: Player) -> Iterator[None]:
    write, try_out = MemoryFiles.write, MemoryFiles.try_out

    def refuse(files: MemoryFiles) -> None:
        if files is player.backup:
            raise WorldError("backup_failed", "/backup: No space left on device")

    def written(files: MemoryFiles, name: str, data: bytes) -> None:
        refuse(files)
        write(files, name, data)

    def tried_out(files: MemoryFiles, name: str) -> None:
        refuse(files)
        try_out(files, name)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MemoryFiles, "write", written)
        patched.setattr(MemoryFiles, "try_out", tried_out)
        yield


async def test_a_maker_withdraws_its_offers_and_they_come_back(autojump_clock: object) -> None:
    async with playing(roll=False) as story:
        offer = await story.offer(story.maker)
        assert offer is not None
        maker = story.maker.maker
        assert maker.board.standing()
        with full(story.maker):
            assert await story.until(lambda: not maker.board.standing(), SOON)
            assert "/backup: No space left on device" in maker.board.held[offer.symbol]
            assert maker.core.backup.state is State.DEGRADED
        assert await story.until(lambda: bool(maker.board.standing()), 3 * SOON)
        order_id = await story.order(story.taker, offer, offer.lot * 10)
        assert await story.opened(order_id)


async def test_a_takers_order_is_refused_at_once(autojump_clock: object) -> None:
    async with playing(roll=False) as story:
        offer = await story.offer(story.maker)
        assert offer is not None
        taker = story.taker.taker
        with full(story.taker):
            assert await story.until(lambda: taker.core.backup.state is State.DEGRADED, SOON)
            with pytest.raises(WorldError, match="No space left on device") as refused:
                taker.core.setup.check_ready()
            assert refused.value.code == "backup_failed"
            assert await story.order(story.taker, offer, offer.lot * 10) is None
            assert story.taker.positions() == story.maker.positions() == ()
        assert await story.until(lambda: taker.core.backup.state is State.HEALTHY, 3 * SOON)
        assert await story.opened(await story.order(story.taker, offer, offer.lot * 10))

"""A taker whose event store is damaged: it shows what it can, begins nothing, and is mended through its API."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

from tests.test_node import Api, give, maker_on, nowhere, taker_on
from tests.test_pauses import refusal
from tests.worlds import running_world, until


def damage(path: Path) -> bytes:
    """Noise in the place of an index; returns what the file holds then."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE type = 'index' AND tbl_name = 'events'"
        ).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    raw = bytearray(path.read_bytes())
    raw[(page - 1) * size : page * size] = bytes([0xEE]) * size
    path.write_bytes(raw)
    return bytes(raw)


def kept_aside(folder: Path) -> list[bytes]:
    """What the files hold, without their logs."""
    return [
        path.read_bytes()
        for path in sorted(folder.glob("events.sqlite.damaged-*"))
        if not path.name.endswith(("-wal", "-shm"))
    ]


async def test_a_damaged_store_is_shown_and_restored_from_the_backup_or_moved_aside(tmp_path: Path) -> None:
    data = tmp_path / "taker"
    async with (
        running_world(tmp_path / "world", hour=60.0) as world,
        maker_on(world.config, tmp_path / "maker", listen=nowhere(), max_quantity=5_000) as (maker, node),
    ):
        world.world.market.override = "50000"
        await until(lambda: node.listener.health.up)
        address = str(node.address)
        async with taker_on(world.config, data, address) as taker:
            await maker.healthy()
            await taker.healthy()
            await give(world, maker, taker)
            offer = await maker.done("/offers", side="short", price="50000")

            async def offered() -> Any:
                return await taker.get("/offers")

            await taker.sees(offered)
            order_id = (await taker.done("/orders", offer_id=offer["id"], quantity=1_000, leverage=2))["order_id"]
            await taker.comes_to(order_id, "opening", "open")
            await until(lambda: world.world.mempool.entries)
            await world.world.mine_many(1)
            await taker.comes_to(order_id, "open")

        spoilt = damage(data / "events.sqlite")
        async with taker_on(world.config, data, address) as taker:

            async def store(state: str = "degraded") -> Any:
                found = await taker.service("store")
                return found["state"] == state and found

            health = await taker.sees(store)
            assert "damaged" in health["reason"]
            assert {each["name"] for each in health["repairs"]} == {"restore-backup", "move-aside"}
            assert (await taker.comes_to(order_id, "open"))["recovered"] is False

            async def read_only(path: str, **body: Any) -> None:
                async def refused() -> bool:
                    problem = (await taker.post(path, **body)).json()
                    return bool(problem.get("code") == "store_read_only")

                await taker.sees(refused)

            await read_only(f"/positions/{order_id}/force-close")
            await taker.sees(offered)
            await read_only("/orders", offer_id=offer["id"], quantity=100, leverage=2)
            assert (data / "events.sqlite").read_bytes() == spoilt

            unsaid = await refusal(taker, 409, "/services/store/repairs/restore-backup")
            assert "marked as recovered" in unsaid["detail"]
            await taker.done("/services/store/repairs/restore-backup", confirm=True)
            await taker.sees(lambda: store("healthy"))
            view = await taker.sees(lambda: recovered(taker, order_id))
            assert view["state"] == "open"
            assert kept_aside(data) == [spoilt]

        damage(data / "events.sqlite")
        async with taker_on(world.config, data, address) as taker:
            await taker.sees(store)
            await taker.done("/services/store/repairs/move-aside", confirm=True)
            await taker.sees(lambda: store("healthy"))
            await taker.sees(lambda: recovered(taker, order_id))
            assert len(kept_aside(data)) == 2
            not_offered = await refusal(taker, 409, "/services/store/repairs/move-aside", confirm=True)
            assert "is not offered now" in not_offered["detail"]


async def recovered(taker: Api, order_id: str) -> Any:
    answer = await taker.http.get(f"/positions/{order_id}")
    return answer.is_success and answer.json()["recovered"] and answer.json()

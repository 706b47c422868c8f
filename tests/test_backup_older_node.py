"""A taker whose data directory is put back from an old copy, beside its backup: by real processes and the API alone."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio

from node.regtest.processes import Failed, Node, Processes, healthy
from node.regtest.story import comes_true

COIN = 50_000_000
WITHIN = 60.0
HOUR = 6.0
"""Seconds; the contract must not expire while its taker is started three times on a busy machine."""


@pytest.mark.slow
async def test_a_contract_that_the_old_copy_does_not_know_is_closed_and_the_revoked_one_stays_away(
    tmp_path: Path,
) -> None:
    async with httpx2.AsyncClient(timeout=15, trust_env=False) as http:
        world = Processes(tmp_path, HOUR, http)
        async with world.world() as process:
            with trio.fail_after(WITHIN):
                await world.world_is_up(process)
            async with world.maker() as maker:
                with trio.fail_after(WITHIN):
                    await healthy(maker)
                    makers = (await maker.call("GET", "/maker"))["address"]
                async with world.taker(makers, "taker", "--backup", str(tmp_path / "elsewhere")) as taker:
                    with trio.fail_after(4 * WITHIN):
                        await healthy(taker)
                        for node in (maker, taker):
                            address = (await node.call("POST", "/wallet/addresses"))["address"]
                            await world.control("/fund", {"address": address, "amount_sat": COIN})
                        for node in (maker, taker):
                            await comes_true(node, "/wallet", lambda wallet: wallet["confirmed"] == COIN)
                        price = (await world.control("/state"))["price"].partition(".")[0]
                        said = {"side": "short", "price": price, "funding_rate": "0.0003"}
                        await comes_true(maker, "/offers", lambda offer: "id" in offer, method="POST", body=said)
                        (offer, *_) = await comes_true(taker, "/offers", bool)
                        order = {"offer_id": offer["id"], "quantity": 1_000, "leverage": 2}
                        placed = await comes_true(taker, "/orders", lambda _: True, method="POST", body=order)
                        path = f"/positions/{placed['order_id']}"
                        first = await comes_true(taker, path, lambda view: view["state"] == "open")

                        await taker.end()
                        shutil.copytree(taker.data, tmp_path / "copy")
                        await taker.start()
                        await rolled_over(taker, path)

                        await taker.end()
                        shutil.rmtree(taker.data)
                        shutil.copytree(tmp_path / "copy", taker.data)
                        await taker.start()
                        back = await comes_true(taker, path, lambda view: view["recovered"])
                        assert back["rollover"]["contracts"] == 2
                        assert back["contract"]["commit_txid"] != first["contract"]["commit_txid"]
                        assert list(taker.data.glob("events.sqlite.older-than-backup-*"))
                        health = await comes_true(taker, "/health", bool)
                        (said,) = [each for each in health["services"] if each["name"] == "positions"]
                        assert said["state"] == "degraded"
                        assert placed["order_id"] in said["reason"]
                        assert "older than the backup" in said["reason"]

                        async def closed_by_both() -> bool:
                            view = await taker.call("GET", path)
                            if view["state"] == "open":  # not asked yet, or the maker was too busy to agree
                                await taker.answer("POST", path + "/close")
                            return over(view)

                        await taker.until(closed_by_both)
                        closed = [await comes_true(node, path, over) for node in (taker, maker)]
                        assert [view["state"] for view in closed] == ["closed", "closed"]
                        assert closed[0]["paid"]["payout"] > 0
                        with pytest.raises(Failed):
                            await world.transaction(first["contract"]["commit_txid"])


def over(view: dict[str, Any]) -> bool:
    return view["state"] in ("closed", "settled", "refunded", "punished")


async def rolled_over(taker: Node, path: str) -> None:
    async def asked() -> bool:
        return (await taker.answer("POST", path + "/rollover")).is_success

    await taker.until(asked)
    await comes_true(
        taker, path, lambda view: view["rollover"]["contracts"] == 2 and view["rollover"]["peer_revoked"] == 1
    )

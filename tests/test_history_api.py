"""What is over and archived, over HTTP."""

from __future__ import annotations

from pathlib import Path

import trio

from node.health import State as Up
from node.position.archive import FAILED_FOR
from node.position.commands import fail_setup, place_order
from protocols.contract.terms import Role
from tests.positions import PEER
from tests.setups import order
from tests.test_networks import config_text
from tests.test_node import nowhere, taker_on

PLACE = place_order(order(), Role.TAKER, PEER[Role.TAKER])


async def test_archived_positions_are_paged_and_found_by_their_order(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(config_text("testnet4", nowhere()))
    async with taker_on(config, tmp_path / "taker") as api:
        with trio.fail_after(20):
            await api.core.positions.until(Up.HEALTHY)
        ids = [bytes([number]) * 16 for number in range(5)]
        with api.core.positions.lent() as positions:
            for order_id in ids:
                await positions.execute(order_id, PLACE)
                await positions.execute(order_id, fail_setup("no", "not today"))
            live = {each["order_id"]: each for each in await api.get("/positions")}
            paged, pages = "/positions?limit=2", []
            while paged:
                answer = await api.http.get(paged)
                pages.append([each["order_id"] for each in answer.json()])
                paged = answer.links["next"]["url"].removeprefix("/api/v1") if "next" in answer.links else ""
            assert [len(page) for page in pages] == [2, 2, 1]
            assert [order_id for page in pages for order_id in page] == list(live)
            unknown = await api.http.get(f"/positions?limit=2&after={bytes(16).hex()[:-1]}f")
            assert unknown.status_code == 422
            assert "after" in unknown.json()["detail"]
            later = positions._clock.now() + FAILED_FOR
            for order_id in ids[:-1]:
                await positions.tidy(order_id, later)
        assert [each["order_id"] for each in await api.get("/positions")] == [ids[-1].hex()]
        first = await api.get("/positions/history?limit=3")
        assert [each["order_id"] for each in first["positions"]] == [each.hex() for each in ids[3:0:-1]]
        rest = await api.get(f"/positions/history?limit=3&before={first['next']}")
        assert [each["order_id"] for each in rest["positions"]] == [ids[0].hex()]
        assert rest["next"] is None
        found = await api.get(f"/positions/{ids[0].hex()}")
        assert found == rest["positions"][0]
        assert found["archived_at"] >= found["changed_at"]
        assert found["refusal"] == live[ids[0].hex()]["refusal"] == {"code": "no", "sentence": "not today"}
        refused = await api.post(f"/positions/{ids[0].hex()}/force-close")
        assert refused.status_code == 409
        assert refused.json()["code"] == "archived"
        assert (await api.http.get("/positions/history?limit=0")).status_code == 422
        assert (await api.http.get(f"/positions/{bytes(15).hex()}ff")).status_code == 404

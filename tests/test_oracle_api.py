"""What a user sees and gets of an oracle that contradicted itself, and what is not traded any more."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from node.oracle.client import OracleClient
from protocols.contract.contradictions import read_proof
from tests.test_node import Api, Market, market


async def first_attestation(node: Api, order_id: str) -> None:
    """Wait for that of a position's first event."""
    with node.core.positions.lent() as positions:
        position = positions.get(bytes.fromhex(order_id))
    assert position is not None
    await node.core.oracle.call(OracleClient.wait_attestation, position.plan().announcements[0])


async def oracle_of(this: Market, **behaviour: object) -> None:
    answer = await this.taker.http.post(f"{this.world.control}/oracle", json=behaviour)
    assert answer.json() == {"mode": behaviour["mode"]}, answer.text


async def contradicted(node: Api) -> Any:
    told = await node.get("/oracle")
    return told if told["contradicted"] else None


async def test_an_oracle_that_contradicts_itself_is_shown_and_trusted_no_more(tmp_path: Path) -> None:
    async with market(tmp_path) as this:
        nodes = this.maker, this.taker
        fine = await this.taker.get("/oracle")
        assert (fine["contradicted"], fine["contradictions"], fine["remedy"]) == (False, [], None)
        assert fine["attestation_key"] == this.world.attestation_key.hex()
        order_id = await this.order()
        _, taking = await this.both(order_id, "opening")
        await this.confirm(taking["contract"]["lock_txid"])
        for view in await this.both(order_id, "open"):
            assert view["oracle_contradicted"] is False
        for node in nodes:
            await first_attestation(node, order_id)

        await oracle_of(this, mode="contradict", price=49_000)
        for node in nodes:
            await node.done("/services/oracle-watch/restart")  # it may have asked for the last time
        for node in nodes:
            told = await node.sees(partial(contradicted, node))
            (found, *_) = told["contradictions"]
            assert (found["first"], found["second"]) == ([50_000, 50_000], [49_000, 49_000])
            assert "show the proof" in told["remedy"]
            answer = await node.http.get(found["proof"].removeprefix("/api/v1"))
            assert answer.headers["content-disposition"].startswith("attachment")
            assert read_proof(answer.content).announcement.id == found["event"]
            assert (await node.position(order_id))["oracle_contradicted"] is True
            service = await node.service("oracle")
            assert service["state"] == "degraded"
            assert found["sentence"] in service["reason"]
            again = await node.http.post("/oracle/proofs", content=answer.content)
            assert (again.status_code, again.json()) == (201, found)
            doctored = await node.http.post("/oracle/proofs", content=answer.content.replace(b"1", b"2"))
            assert (doctored.status_code, doctored.json()["code"]) == (400, "bad_proof")
            missing = await node.http.get("/oracle/proofs/btcusd0")
            assert missing.status_code == 404

        await this.taker.sees(partial(no_offers, this.taker))
        offered = await this.maker.post("/offers", side="short", price="50000", opening_fee=0, funding_rate="0")
        assert (offered.status_code, offered.json()["code"]) == (409, "oracle_contradicted")
        ordered = await this.taker.post("/orders", offer_id=this.offer["id"], quantity=1_000, leverage=2)
        assert (ordered.status_code, ordered.json()["code"]) == (409, "oracle_contradicted")
        # the maker is offered a close: standing still would let it choose between the two
        closing = await this.taker.sees(partial(close_signed, this.taker, order_id))
        await this.confirm(closing["txid"], 3)
        for view in await this.both(order_id, "closed"):
            assert view["paid"]["kind"] == "close"


async def close_signed(node: Api, order_id: str) -> Any:
    closing = (await node.position(order_id))["closing"]
    return closing if closing is not None and closing["stage"] == "signed" else None


async def no_offers(node: Api) -> bool:
    return not await node.get("/offers")

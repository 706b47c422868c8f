"""``/api/v1/oracle``: which oracle this node goes by, and whether it has contradicted itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from node.core import Core
from node.oracle.client import REMEDY, OracleClient
from node.position.state import Position
from node.projections import Kept
from protocols.contract.contradictions import Contradiction, price_range

PROOFS = "/api/v1/oracle/proofs"


def oracle_router(core: Core) -> APIRouter:
    """The routes about the oracle."""
    router = APIRouter()

    async def ask() -> tuple[Contradiction, ...]:
        with core.oracle.lent() as client:
            return tuple(client.contradictions)
        raise AssertionError("a recalled loan raises")

    kept = Kept(core.clock, ask)

    @router.get("/api/v1/oracle")
    async def oracle() -> dict[str, Any]:
        """The oracle's keys, and every event that was attested twice, with where its proof is."""
        known = await kept.read()
        return {**oracle_view(core, known.value), **known.age(core.clock.now())}

    @router.get(PROOFS + "/{event:path}")
    async def proof(event: str) -> Response:
        """What anybody can check who has the oracle's keys: its announcement and both attestations, in hex."""
        with core.oracle.lent() as client:
            found = client.proof(event)
        headers = {"content-disposition": 'attachment; filename="oracle-contradiction.json"'}
        return Response(found, media_type="application/json", headers=headers)

    @router.post(PROOFS, status_code=201)
    async def import_proof(request: Request) -> dict[str, Any]:
        """A proof that another node exported, checked in full."""
        return _contradiction_view(await core.oracle.call(OracleClient.import_proof, await request.body()))

    return router


def oracle_view(core: Core, found: Sequence[Contradiction]) -> dict[str, Any]:
    keys = core.setup.oracle_keys
    contradicted = any(each.announcement.key == keys.attestation_key for each in found)
    return {
        "url": core.config.oracle.url,
        "scheme": keys.scheme,
        "announcement_key": keys.announcement_key.hex(),
        "attestation_key": keys.attestation_key.hex(),
        "contradicted": contradicted,
        "remedy": REMEDY if contradicted else None,
        "contradictions": [_contradiction_view(each) for each in found],
    }


def oracle_contradicted(core: Core, position: Position) -> bool | None:
    """Whether the oracle that a position's contract names has contradicted itself; None while nobody can say."""
    if position.offer is None or not core.oracle.health.up:
        return None
    with core.oracle.lent() as client:
        return client.contradicted(position.offer.oracle.attestation_key)


def _contradiction_view(found: Contradiction) -> dict[str, Any]:
    """Prices as ranges: what a CET on the chain gives away may be no more than a price's first digits."""
    event = found.announcement.id
    return {
        "event": event,
        "time": found.announcement.time,
        "attestation_key": found.announcement.key.hex(),
        "first": price_range(found.first),
        "second": price_range(found.second),
        "sentence": found.sentence,
        "proof": f"{PROOFS}/{quote(event, safe='')}",
    }

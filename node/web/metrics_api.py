"""``GET /metrics`` in Prometheus' text format, behind the same token and Host as the API."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from node.core import Core
from node.metrics import Measured, NodeCollector, exposition
from node.projections import Projections

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def metrics_router(core: Core, projections: Projections, measured: Measured) -> APIRouter:
    router = APIRouter()

    @router.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        collector = NodeCollector(core, projections, measured, request.app.state.requests)
        return Response(exposition(collector), media_type=CONTENT_TYPE)

    return router

"""``/api/v1/health`` and what the user may ask of a service."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from fastapi import APIRouter, BackgroundTasks

from node.clock import Clock
from node.errors import Conflict, NotFound
from node.health import all_healthy
from node.supervision import Service, Supervisor


class Action(StrEnum):
    START = "start"
    STOP = "stop"
    RESTART = "restart"


def health_router(
    supervisor: Supervisor, clock: Clock, *, serving: str = "api", warnings: Sequence[str] = ()
) -> APIRouter:
    """`serving` is the name of the service that answers these requests: it cannot be stopped through itself.

    `warnings` are what the user must know although no service is unwell."""
    router = APIRouter(prefix="/api/v1")

    @router.get("/health")
    async def health() -> dict[str, object]:
        services, now = supervisor.health(), clock.now()
        return {
            "healthy": all_healthy(services),
            "time": now,
            "warnings": list(warnings),
            "services": [service.as_json(now) for service in services],
        }

    @router.post("/services/{name}/{action}")
    async def ask(name: str, action: Action, after: BackgroundTasks) -> dict[str, object]:
        try:
            service = supervisor[name]
        except KeyError:
            names = ", ".join(service.name for service in supervisor.services)
            raise NotFound("no_such_service", f"there is no service {name!r}; there are {names}") from None
        match action:
            case Action.START:
                service.start()
            case Action.RESTART if name == serving:
                after.add_task(_restart, service)  # once this is answered
            case Action.RESTART:
                service.restart()
            case Action.STOP if name == serving:
                raise Conflict("serves_this_api", f"{name} answers this request; to stop it, end the node")
            case Action.STOP:
                service.stop()
        return service.health.as_json(clock.now())

    return router


async def _restart(service: Service[Any]) -> None:
    service.restart()

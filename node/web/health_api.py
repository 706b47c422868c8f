"""``/api/v1/health`` and what the user may ask of a service."""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

from fastapi import APIRouter, BackgroundTasks, Response
from pydantic import BaseModel, ConfigDict, Field

from node.clock import Clock
from node.errors import Conflict, NotFound
from node.health import page
from node.supervision import Service, Supervisor


class Action(StrEnum):
    START = "start"
    STOP = "stop"
    RESTART = "restart"


class ConfirmIn(BaseModel):
    """The user's word that the consequence is understood."""

    model_config = ConfigDict(extra="forbid", strict=True)

    confirm: bool = Field(default=False, description="Whether the repair's consequence, if it has one, is accepted.")


UNCONFIRMED = ConfirmIn()


def health_router(
    supervisor: Supervisor, clock: Clock, *, serving: str = "api", warnings: Sequence[str] = ()
) -> APIRouter:
    """`serving` is the name of the service that answers these requests: it cannot be stopped through itself.

    `warnings` are what the user must know although no service is unwell."""
    router = APIRouter(prefix="/api/v1")

    def find(name: str) -> Service[Any]:
        try:
            return supervisor[name]
        except KeyError:
            names = ", ".join(service.name for service in supervisor.services)
            raise NotFound("no_such_service", f"there is no service {name!r}; there are {names}") from None

    @router.get("/health")
    async def health() -> dict[str, object]:
        """Every service: its state, why, what the node does about it and what the user can do."""
        return page(supervisor.health(), clock.now(), warnings)

    @router.get("/services/{name}")
    async def service(name: str) -> dict[str, object]:
        """One service, as in ``/health``."""
        return find(name).health.as_json(clock.now())

    @router.post("/services/{name}/repairs/{repair}")
    async def mend(name: str, repair: str, said: ConfirmIn = UNCONFIRMED) -> dict[str, object]:
        """Carry out a repair that the service offers now; answered when it is done."""
        asked = find(name)
        consequence = asked.repair(repair).consequence
        if consequence and not said.confirm:
            raise Conflict(
                "not_confirmed", f'{repair} of {name}: {consequence}; to do it all the same: "confirm": true, or --yes'
            )
        await asked.mend(repair)
        return asked.health.as_json(clock.now())

    @router.post("/services/{name}/{action}")
    async def ask(name: str, action: Action, after: BackgroundTasks) -> dict[str, object]:
        asked = find(name)
        match action:
            case Action.START:
                asked.start()
            case Action.RESTART if name == serving:
                after.add_task(_restart, asked)  # once this is answered
            case Action.RESTART:
                asked.restart()
            case Action.STOP if name == serving:
                raise Conflict("serves_this_api", f"{name} answers this request; to stop it, end the node")
            case Action.STOP:
                asked.stop()
        return asked.health.as_json(clock.now())

    return router


def waiting_router(answer: Callable[[], Response]) -> APIRouter:
    """`answer` for every path, while the node is being built."""
    router = APIRouter()

    async def waiting() -> Response:
        return answer()

    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    router.add_api_route("/{path:path}", waiting, methods=methods, include_in_schema=False)
    return router


async def _restart(service: Service[Any]) -> None:
    service.restart()

"""The API on real sockets: who may use it, and what its errors look like."""

import socket
import stat
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from fastapi import APIRouter, WebSocket
from pydantic import BaseModel, Field
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from node.clock import Clock
from node.config import HostPort
from node.errors import ConfigError, Conflict, Disconnected, NeedsUser, NotFound
from node.health import Report, State, stay
from node.supervision import Repair, Supervisor
from node.web.door import Door
from node.web.security import LARGEST_BODY, api_token
from node.web.server import create_app, run_door, serve
from node.web.sockets import bind_api, url_of
from protocols.errors import LocalError, RemoteError, WorldError

ANY_PORT = HostPort("127.0.0.1", 0)
TOKEN = "t" * 43
ERRORS: dict[str, tuple[Exception, int, dict[str, object]]] = {
    "disconnected": (
        Disconnected("wallet", "restarting"),
        503,
        {"code": "disconnected", "service": "wallet", "reason": "restarting"},
    ),
    "needs_user": (NeedsUser("it is locked", "unlock it"), 409, {"remedy": "unlock it", "detail": "it is locked"}),
    "not_found": (NotFound("no_offer", "there is no offer 7"), 404, {"code": "no_offer"}),
    "conflict": (Conflict("not_open", "the position is closed"), 409, {"code": "not_open"}),
    "local": (LocalError("bad_quantity", "quantity 7: multiples of 100"), 400, {"code": "bad_quantity"}),
    "remote": (RemoteError("order_rejected", "the maker said no"), 502, {"code": "order_rejected"}),
    "world": (WorldError("no_chain", "no server answers"), 503, {"detail": "no server answers"}),
    "bug": (ZeroDivisionError("secret inner things"), 500, {"code": "internal_error"}),
    "bugs": (ExceptionGroup("secret", [ZeroDivisionError("things")]), 500, {"code": "internal_error"}),
}


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as entries:
        yield entries


class NewOffer(BaseModel):
    price: str
    limits: dict[str, int] = Field(default_factory=dict)


def routes() -> APIRouter:
    router = APIRouter()

    @router.get("/fails/{how}")
    async def fails(how: str) -> None:
        raise ERRORS[how][0]

    @router.post("/offers")
    async def offers(offer: NewOffer) -> str:
        return offer.price

    @router.websocket("/feed")
    async def feed(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    return router


@asynccontextmanager
async def api(*routers: APIRouter) -> AsyncIterator[httpx2.AsyncClient]:
    with bind_api(ANY_PORT) as listener:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, create_app(routers, token=TOKEN, sockets=[listener]), [listener])
            headers = {"Authorization": f"Bearer {TOKEN}"}
            async with httpx2.AsyncClient(base_url=url_of(listener), headers=headers) as client:
                yield client
            nursery.cancel_scope.cancel()


async def test_without_the_token_or_from_another_host_nothing_is_answered() -> None:
    async with api(routes()) as client:
        good = await client.post("/offers", json={"price": "54000"})
        assert (good.status_code, good.json()) == (200, "54000")
        port = client.base_url.port
        assert port is not None
        for authorization in ("", f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer", "Bearer \xfc"):
            answer = await client.get("/offers", headers={b"Authorization": authorization.encode("latin-1")})
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert TOKEN not in answer.text
        for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", "127.0.0.1:80"):
            answer = await client.get("/offers", headers={"Host": host})
            assert (answer.status_code, answer.json()["code"]) == (421, "wrong_host")
        assert (await client.get("/offers", headers={"Host": f"localhost:{port}"})).status_code == 405
        for path in ("/docs", "/redoc"):
            assert (await client.get(path)).status_code == 404


@pytest.mark.parametrize("how", ERRORS)
async def test_each_error_is_a_problem(how: str, logged: list[MutableMapping[str, Any]]) -> None:
    _, status, members = ERRORS[how]
    async with api(routes()) as client:
        for _ in range(2):  # and the server lives on
            answer = await client.get(f"/fails/{how}")
            assert answer.status_code == status
            assert answer.headers["content-type"] == "application/problem+json"
            problem = answer.json()
            assert problem["status"] == status
            assert {key: problem[key] for key in members} == members
            assert "secret" not in answer.text
            assert "Traceback" not in answer.text
    bugs = [ERRORS[how][0]] * 2 if status == 500 else []
    assert [entry["exc_info"] for entry in logged] == bugs


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "price"),
        (b'{"price": 3}', "price"),
        (b'{"price": "3", "limits": {"lot": "x"}}', "limits.lot"),
        (b'{"price"', "body"),
        (b"[]", "body"),
    ],
)
async def test_a_malformed_request_names_the_field(body: bytes, field: str) -> None:
    async with api(routes()) as client:
        answer = await client.post("/offers", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422
        problem = answer.json()
        assert (problem["code"], problem["field"]) == ("malformed", field)
        assert problem["detail"].startswith(f"{field}: ")


async def test_unknown_paths_methods_and_large_bodies_are_problems_too() -> None:
    async with api(routes()) as client:
        assert (await client.get("/nowhere")).json()["code"] == "not_found"
        wrong_method = await client.get("/offers")
        assert (wrong_method.json()["code"], wrong_method.headers["allow"]) == ("method_not_allowed", "POST")
        large = await client.post("/offers", json={"price": "x" * LARGEST_BODY})
        assert (large.status_code, large.json()["code"]) == (413, "body_too_large")


async def test_a_websocket_needs_the_token_as_well() -> None:
    def upgrade(port: int, *headers: str) -> bytes:
        lines = (
            "GET /feed HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            *headers,
        )
        return "\r\n".join((*lines, "", "")).encode()

    async with api(routes()) as client:
        port = client.base_url.port
        assert port is not None
        for headers, status in (((), b"403"), ((f"Authorization: Bearer {TOKEN}",), b"101")):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(upgrade(port, *headers))
                assert (await stream.receive_some(4096)).split(b" ")[1] == status


async def test_hostile_bytes_end_their_own_connection_only() -> None:
    async with api(routes()) as client:
        port = client.base_url.port
        assert port is not None
        for junk in (
            b"\x00" * 100 + b"\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /offers HTTP/1.1\r\nHost: \xff\r\n\r\n",
        ):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(junk)
                answer = await stream.receive_some(4096)
            assert not answer or answer.startswith(b"HTTP/1.1 4")
        assert (await client.post("/offers", json={"price": "1"})).status_code == 200


# Health


class Oracle:
    """A service whose life can be told to fail."""

    def __init__(self) -> None:
        self.fail = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await self.fail.wait()
        raise WorldError("oracle_down", "the oracle answers 502")


async def test_health_shows_every_service_and_the_user_can_act_on_it(tmp_path: Path) -> None:
    clock = Clock()
    supervisor = Supervisor(clock=clock, raise_bugs=True)
    oracle = Oracle()
    with bind_api(ANY_PORT) as listener:
        door = Door(tmp_path, listener=listener, supervisor=supervisor, clock=clock, warnings=[])
        door.let_in_services()

        async def serve_api(*, task_status: trio.TaskStatus[None]) -> None:
            await run_door(door, listener, task_status=task_status)

        page = supervisor.service("api", serve_api)
        supervisor.service("oracle", oracle.run, needs=[page])
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            url = (tmp_path / "api.url").read_text().strip()
            token = (tmp_path / "api.token").read_text().strip()
            async with httpx2.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client:

                async def health() -> tuple[bool, list[dict[str, Any]]]:
                    answer = (await client.get("/api/v1/health")).json()
                    return answer["healthy"], answer["services"]

                healthy, services = await health()
                assert healthy
                assert [(s["name"], s["state"]) for s in services] == [("api", "healthy"), ("oracle", "healthy")]
                oracle.fail.set()
                await supervisor["oracle"].until(State.RESTARTING)
                healthy, services = await health()
                assert not healthy
                assert services[1]["reason"] == "the oracle answers 502"
                assert services[1]["next_try"] > services[1]["since"]

                stopped = await client.post("/api/v1/services/oracle/stop")
                assert stopped.status_code == 200
                await supervisor["oracle"].until(State.STOPPED)
                oracle.fail = trio.Event()
                await client.post("/api/v1/services/oracle/start")
                await supervisor["oracle"].until(State.HEALTHY)

                own = await client.post("/api/v1/services/api/stop")
                assert (own.status_code, own.json()["code"]) == (409, "serves_this_api")
                unknown = await client.post("/api/v1/services/moon/restart")
                assert (unknown.status_code, unknown.json()["code"]) == (404, "no_such_service")
                assert unknown.json()["detail"] == "there is no service 'moon'; there are api, oracle"
                again = await client.post("/api/v1/services/api/restart")  # is answered first
                assert again.status_code == 200
                await page.until(State.ENDING, State.WAITING, State.STARTING)
                await page.until(State.HEALTHY)
            async with httpx2.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client:
                wrong = await client.post("/api/v1/services/oracle/explode")
                assert (wrong.status_code, wrong.json()["field"]) == (422, "action")

            page.restart()  # and the same address answers again
            await page.until(State.HEALTHY)
            async with httpx2.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}) as client:
                assert (await client.get("/api/v1/health")).status_code == 200
            nursery.cancel_scope.cancel()


async def test_repairs_are_asked_for_by_name_and_their_consequence_is_agreed_to(tmp_path: Path) -> None:
    clock, done = Clock(), list[str]()
    supervisor = Supervisor(clock=clock, raise_bugs=True)

    async def run(*, report: Report, task_status: trio.TaskStatus[None]) -> None:
        report.degraded("a page is damaged", "move it aside", ["move-aside"])
        task_status.started()
        await stay(report)

    async def move_aside() -> None:
        await trio.lowlevel.checkpoint()
        done.append("move-aside")

    async def resync() -> None:
        raise WorldError("chain_away", "the chain is away")

    repairs = [
        Repair("move-aside", "move the file aside", "what is in it is not seen", move_aside),
        Repair("resync", "look again", "", resync, always=True),
        Repair("restore", "take the backup", "what is newer is lost", move_aside),
    ]
    with bind_api(ANY_PORT) as listener:
        door = Door(tmp_path, listener=listener, supervisor=supervisor, clock=clock, warnings=[])
        door.let_in_services()

        async def serve_api(*, task_status: trio.TaskStatus[None]) -> None:
            await run_door(door, listener, task_status=task_status)

        supervisor.service("api", serve_api)
        supervisor.reporting("store", run, repairs=repairs)
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            token = (tmp_path / "api.token").read_text().strip()
            async with httpx2.AsyncClient(
                base_url=url_of(listener), headers={"Authorization": f"Bearer {token}"}
            ) as client:
                service = (await client.get("/api/v1/services/store")).json()
                assert (service["state"], service["remedy"]) == ("degraded", "move it aside")
                assert [repair["name"] for repair in service["repairs"]] == ["move-aside", "resync"]
                assert (await client.get("/api/v1/services/moon")).status_code == 404

                async def ask(repair: str, said: object = None) -> tuple[int, str, str]:
                    answer = await client.post(f"/api/v1/services/store/repairs/{repair}", json=said)
                    problem = answer.json()
                    return answer.status_code, problem.get("code", ""), problem.get("detail", "")

                for said in (None, {}, {"confirm": False}):
                    status, code, detail = await ask("move-aside", said)
                    assert (status, code) == (409, "not_confirmed")
                    assert "what is in it is not seen" in detail
                assert (await ask("restore", {"confirm": True}))[:2] == (409, "repair_not_offered")
                assert (await ask("explode", {"confirm": True}))[:2] == (404, "no_such_repair")
                assert (await ask("resync"))[:2] == (503, "chain_away")
                assert (await ask("move-aside", {"confirm": "yes"}))[:2] == (422, "malformed")
                assert done == []
                assert (await ask("move-aside", {"confirm": True}))[0] == 200
                assert done == ["move-aside"]
            nursery.cancel_scope.cancel()


async def test_a_web_server_that_does_not_answer_itself_begins_anew_on_the_same_sockets(tmp_path: Path) -> None:
    clock, lives = Clock(), list[int]()
    supervisor = Supervisor(clock=clock, raise_bugs=True)

    class Jammed(Door):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if len(lives) == 1 and jam.is_set():
                await trio.sleep_forever()
            await super().__call__(scope, receive, send)

    jam = trio.Event()
    with bind_api(ANY_PORT) as listener:
        door = Jammed(tmp_path, listener=listener, supervisor=supervisor, clock=clock, warnings=[])

        async def run(*, report: Report, task_status: trio.TaskStatus[None]) -> None:
            lives.append(1)
            await run_door(door, listener, report=report, task_status=task_status)

        page = supervisor.reporting("api", run, patience=0.6)
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            await trio.sleep(1.5)
            assert (page.state, len(lives)) == (State.HEALTHY, 1)
            jam.set()
            await page.until(State.RESTARTING)
            assert "no progress" in page.health.reason
            await page.until(State.HEALTHY)
            async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {door.token}"}) as client:
                assert (await client.get(f"{url_of(listener)}/api/v1/health")).status_code == 200
            nursery.cancel_scope.cancel()


# Token and socket


def test_the_token_is_made_once_for_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "node" / "api.token"
    token = api_token(path)
    assert len(token) == 43
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert api_token(path) == token


@pytest.mark.parametrize("damage", ["exposed", "empty", "binary"])
def test_a_token_that_others_could_read_or_that_is_damaged_is_replaced(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "api.token"
    token = api_token(path)
    match damage:
        case "exposed":
            path.chmod(0o640)
        case "empty":
            path.write_bytes(b"")
        case _:
            path.write_bytes(b"\xff" * 50)
    again = api_token(path)
    assert (len(again), stat.S_IMODE(path.stat().st_mode)) == (43, 0o600)
    assert again != token
    assert [file.name for file in tmp_path.iterdir()] == ["api.token"]


def test_a_port_in_use_is_named() -> None:
    with bind_api(ANY_PORT) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"^api: cannot serve on 127.0.0.1:{port}: the port is in use"):
            bind_api(HostPort("127.0.0.1", port))
    with bind_api(HostPort("127.0.0.1", port)) as again:  # free when the first is closed
        assert again.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)

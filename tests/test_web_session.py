"""Signing in at the page: passwords, sessions, what a cookie is good for, and the page's files."""

import re
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
import trio
from fastapi import APIRouter, WebSocket

from node import files
from node.clock import Clock
from node.config import HostPort
from node.errors import FieldError
from node.supervision import Supervisor
from node.web.door import Door
from node.web.page import Page
from node.web.passwords import set_password
from node.web.security import CONTENT_POLICY
from node.web.server import access_to, create_app, serve
from node.web.sessions import LASTS, Attempts, Sessions
from node.web.sockets import bind_api, url_of

TOKEN = "t" * 43
PASSWORD = "correct horse battery"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


def routes() -> APIRouter:
    router = APIRouter(prefix="/api/v1")

    @router.get("/thing")
    async def thing() -> str:
        return "a thing"

    @router.post("/thing")
    async def change() -> str:
        return "changed"

    @router.websocket("/live")
    async def live(socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()

    return router


@asynccontextmanager
async def api(data: Path, clock: Clock | None = None) -> AsyncIterator[httpx2.AsyncClient]:
    """A client without the token, that keeps cookies."""
    with bind_api(HostPort("127.0.0.1", 0)) as listener:
        access = access_to([listener], TOKEN, data=data, clock=clock)
        app = create_app([routes()], token=TOKEN, sockets=[listener], access=access)
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, app, [listener])
            async with httpx2.AsyncClient(base_url=url_of(listener)) as client:
                yield client
            nursery.cancel_scope.cancel()


async def test_a_password_signs_in_for_a_cookie_that_only_our_page_can_use(tmp_path: Path) -> None:
    set_password(tmp_path, PASSWORD)
    assert stat.S_IMODE(files.password_file(tmp_path).stat().st_mode) == 0o600
    assert files.password_file(tmp_path).read_text().startswith("$argon2id$")
    async with api(tmp_path) as client:
        own = str(client.base_url).rstrip("/")
        assert (await client.get("/api/v1/thing")).status_code == 401
        before = (await client.get("/api/v1/session")).json()
        assert (before["signed_in"], before["password_set"]) == (False, True)
        wrong = await client.post("/api/v1/session", json={"password": "wrong horse battery"})
        assert (wrong.status_code, wrong.json()["code"]) == (401, "wrong_password")
        good = await client.post("/api/v1/session", json={"password": PASSWORD}, headers={"Origin": own})
        assert good.status_code == 200
        cookie = good.headers["set-cookie"]
        assert cookie.startswith(f"cfdnode_session_{client.base_url.port}=")
        for attribute in ("HttpOnly", "SameSite=strict", "Path=/"):
            assert attribute in cookie
        assert "Secure" not in cookie
        assert (await client.get("/api/v1/session")).json()["signed_in"]
        assert (await client.get("/api/v1/thing")).json() == "a thing"
        for headers, status in (
            ({"Origin": own}, 200),
            ({"Sec-Fetch-Site": "same-origin"}, 200),
            ({}, 403),
            ({"Origin": "http://127.0.0.1:1"}, 403),
            ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, 403),
            ({"Sec-Fetch-Site": "same-site"}, 403),
        ):
            assert (await client.post("/api/v1/thing", headers=headers)).status_code == status
        secret = client.cookies[f"cfdnode_session_{client.base_url.port}"]
        assert secret not in files.sessions_file(tmp_path).read_text()
        assert (await client.delete("/api/v1/session")).status_code == 204
        assert (await client.get("/api/v1/thing")).status_code == 401
        stolen = {"Cookie": f"cfdnode_session_{client.base_url.port}={secret}"}
        assert (await client.get("/api/v1/thing", headers=stolen)).status_code == 401


async def test_another_page_can_neither_sign_in_nor_out(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        evil = {"Origin": "http://evil.example"}
        answer = await client.post("/api/v1/session", json={"token": TOKEN}, headers=evil)
        assert (answer.status_code, answer.json()["code"]) == (403, "other_origin")
        plain = await client.post("/api/v1/session", content=b"{}", headers={"Content-Type": "text/plain"})
        assert plain.status_code == 415
        assert (await client.post("/api/v1/session", json={"token": TOKEN})).status_code == 200
        assert (await client.delete("/api/v1/session", headers=evil)).status_code == 403
        assert (await client.get("/api/v1/thing")).status_code == 200


async def test_a_websocket_by_cookie_needs_our_origin(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        await client.post("/api/v1/session", json={"token": TOKEN})
        port = client.base_url.port
        cookie = f"Cookie: cfdnode_session_{port}={client.cookies[f'cfdnode_session_{port}']}"
        bearer = f"Authorization: Bearer {TOKEN}"
        own, other = f"Origin: http://127.0.0.1:{port}", "Origin: http://127.0.0.1:1"
        cases = (((cookie, own), b"101"), ((cookie,), b"403"), ((cookie, other), b"403"))
        for headers, status in (*cases, ((bearer,), b"101"), ((bearer, other), b"403"), ((own,), b"403")):
            lines = (
                "GET /api/v1/live HTTP/1.1",
                f"Host: 127.0.0.1:{port}",
                "Connection: Upgrade",
                "Upgrade: websocket",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
                *headers,
            )
            async with await trio.open_tcp_stream("127.0.0.1", port or 0) as stream:
                await stream.send_all("\r\n".join((*lines, "", "")).encode())
                assert (await stream.receive_some(4096)).split(b" ")[1] == status


async def test_sessions_outlive_the_node_and_end_with_the_password_or_their_time(tmp_path: Path) -> None:
    now = 1_000_000.0
    clock = Clock(wall=lambda: now)
    secret = await Sessions(tmp_path, clock).begin("token")
    again = Sessions(tmp_path, clock)
    assert await again.find(secret) is not None
    assert await again.find(secret + "x") is None
    now += LASTS + 1
    assert await again.find(secret) is None
    secret = await again.begin("token")
    set_password(tmp_path, PASSWORD)  # by the command line, on the same directory
    assert await Sessions(tmp_path, clock).find(secret) is None
    files.sessions_file(tmp_path).write_text("[1, 2")
    assert await Sessions(tmp_path, clock).find(secret) is None


async def test_who_asks_while_the_password_is_first_read_is_signed_in_too(tmp_path: Path) -> None:
    """As two tabs do when the node comes back."""
    set_password(tmp_path, "correct horse battery")
    secret = await Sessions(tmp_path, Clock()).begin("password")
    again = Sessions(tmp_path, Clock())
    found = []

    async def find() -> None:
        found.append(await again.find(secret))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(find)
    assert None not in found


async def test_a_new_password_ends_every_session_but_the_one_that_set_it(tmp_path: Path) -> None:
    async with api(tmp_path) as client, httpx2.AsyncClient(base_url=client.base_url) as other:
        own = {"Origin": str(client.base_url).rstrip("/")}
        for each in (client, other):
            assert (await each.post("/api/v1/session", json={"token": TOKEN})).status_code == 200
        short = await client.put("/api/v1/password", json={"password": "short"}, headers=own)
        assert (short.status_code, short.json()["field"]) == (422, "password")
        assert (await client.put("/api/v1/password", json={"password": PASSWORD})).status_code == 403
        assert (await client.put("/api/v1/password", json={"password": PASSWORD}, headers=own)).status_code == 200
        assert (await client.get("/api/v1/thing")).status_code == 200
        assert (await other.get("/api/v1/thing")).status_code == 401
        assert (await other.put("/api/v1/password", json={"password": PASSWORD})).status_code == 401
        # who signed in with the password has to give it once more
        assert (await other.post("/api/v1/session", json={"password": PASSWORD})).status_code == 200
        change = {"password": "another password"}
        refused = await other.put("/api/v1/password", json=change, headers=own)
        assert (refused.status_code, refused.json()["field"]) == (401, "current")
        changed = await other.put("/api/v1/password", json={**change, "current": PASSWORD}, headers=own)
        assert changed.status_code == 200
        assert (await client.get("/api/v1/thing")).status_code == 401
        assert (await client.put("/api/v1/password", json=change, headers=BEARER)).status_code == 204


async def test_who_tries_too_often_waits(tmp_path: Path) -> None:
    set_password(tmp_path, PASSWORD)
    async with api(tmp_path) as client:
        answers = [await client.post("/api/v1/session", json={"token": "x"}) for _ in range(Attempts().burst)]
        assert {answer.status_code for answer in answers} == {401}
        late = await client.post("/api/v1/session", json={"password": PASSWORD})
        assert (late.status_code, late.json()["code"]) == (429, "too_many_attempts")
        assert 0 < int(late.headers["retry-after"]) <= Attempts().every
        assert (await client.get("/api/v1/thing", headers=BEARER)).status_code == 200


async def test_attempts_are_bounded_by_source_and_in_all(autojump_clock: trio.testing.MockClock) -> None:
    attempts = Attempts(burst=2, every=30, burst_of_all=4, every_of_all=5)
    assert [attempts.take("a"), attempts.take("a"), attempts.take("a")] == [0.0, 0.0, 30.0]
    assert [attempts.take(source) for source in "bcd"] == [0.0, 0.0, 5.0]
    await trio.sleep(30)
    assert [attempts.take("a"), attempts.take("a")] == [0.0, 30.0]
    attempts.give_back("a")
    assert attempts.take("a") == 0.0


@pytest.mark.parametrize("password", ["", "too short", "x" * 1001])
def test_a_password_has_a_length(password: str, tmp_path: Path) -> None:
    with pytest.raises(FieldError):
        set_password(tmp_path, password)
    assert not files.password_file(tmp_path).exists()


# The page


async def test_the_plain_page_is_served_without_a_token_but_only_here(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        page = await client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        assert "<script>" not in page.text
        assert "style=" not in page.text
        for answer in (page, await client.get("/api/v1/thing"), await client.get("/nothing")):
            assert answer.headers["content-security-policy"] == CONTENT_POLICY
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert (await client.get("/", headers={"Host": "evil.example"})).status_code == 421
        assert (await client.post("/")).status_code == 401


async def test_the_built_page_is_served_from_its_folder_alone(tmp_path: Path) -> None:
    folder, plain = tmp_path / "static", tmp_path / "plain"
    page = Page(folder, plain)

    async def status(path: str) -> tuple[int, str] | None:
        answer = await page.answer(path)
        return None if answer is None else (answer.status_code, answer.headers["cache-control"])

    for each in (folder / "assets", plain):
        each.mkdir(parents=True)
    (plain / "index.html").write_text("plain")
    (tmp_path / "secret.json").write_text("secret")
    assert await status("/") == (200, "no-cache")
    (folder / "index.html").write_text("built")
    (folder / "assets" / "app-1a2b.js").write_text("js")
    (folder / "link.json").symlink_to(tmp_path / "secret.json")
    answer = await page.answer("/")
    assert answer is not None
    assert answer.body == b"built"
    assert await status("/assets/app-1a2b.js") == (200, "public, max-age=31536000, immutable")
    for path in (
        "/../secret.json",
        "/assets/../../secret.json",
        "/link.json",
        "//etc/passwd.txt",
        "/a\0.js",
        "/assets",
    ):
        assert await status(path) is None


async def test_the_apis_description_is_shown_by_a_page_of_ours(tmp_path: Path) -> None:
    async with api(tmp_path) as client:
        docs = await client.get("/api/v1/docs")
        assert docs.headers["content-security-policy"] == CONTENT_POLICY
        for name in re.findall(r'(?:src|href)="(/[^"]+)"', docs.text):
            assert (await client.get(name)).status_code == 200
        assert (await client.get("/api/v1/openapi.json")).status_code == 401
        described = (await client.get("/api/v1/openapi.json", headers=BEARER)).json()
        assert {"/api/v1/session", "/api/v1/password", "/api/v1/thing"} <= described["paths"].keys()
        for methods in described["paths"].values():
            for operation in methods.values():
                assert "application/problem+json" in operation["responses"]["default"]["content"]
        change = described["paths"]["/api/v1/thing"]["post"]
        assert [each["name"] for each in change["parameters"]] == ["Idempotency-Key"]


async def test_people_can_sign_in_before_the_node_is_built(tmp_path: Path) -> None:
    clock = Clock()
    with bind_api(HostPort("127.0.0.1", 0)) as listener:
        door = Door(tmp_path, listener=listener, supervisor=Supervisor(clock=clock), clock=clock, warnings=[])
        async with trio.open_nursery() as nursery:
            await nursery.start(serve, door, [listener])
            async with httpx2.AsyncClient(base_url=url_of(listener)) as client:
                assert (await client.get("/")).status_code == 200
                assert (await client.get("/api/v1/health")).status_code == 401
                assert (await client.post("/api/v1/session", json={"token": door.token})).status_code == 200
                assert (await client.get("/api/v1/health")).json()["services"] == []
                assert (await client.get("/api/v1/wallet")).json()["code"] == "starting"
                door.let_in_services()  # and stays so
                assert (await client.get("/api/v1/health")).status_code == 200
            nursery.cancel_scope.cancel()

"""The first stage of a node's start: the page answers whatever the data directory is like, and what is built behind it
is built once."""

from __future__ import annotations

import sys
import types
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio

from node import files
from node.config import TakerConfig, load
from node.start import Stage, run_node
from node.wallet.seed import Seed
from node.web.door import kept_token
from node.web.sockets import bind_api, url_of
from tests.worlds import until

ROLE = "cfdnode_test_role"


@pytest.fixture
def config(tmp_path: Path) -> TakerConfig:
    text = """
network = "regtest"
electrum = ["127.0.0.1:1"]
[oracle]
url = "http://127.0.0.1:1"
announcement_key = "{}"
attestation_key = "{}"
""".format("02" * 32, "03" * 32)
    file = tmp_path / "node.toml"
    file.write_text(text)
    return load(TakerConfig, paths=[file], environ={}, flags={"data": str(tmp_path / "data"), "api": "127.0.0.1:0"})


@asynccontextmanager
async def starting(
    config: TakerConfig, monkeypatch: pytest.MonkeyPatch, build: Any, token: Path | None = None
) -> AsyncIterator[httpx2.AsyncClient]:
    role = types.ModuleType(ROLE)
    vars(role)["build_behind"] = build
    monkeypatch.setitem(sys.modules, ROLE, role)
    with bind_api(config.api) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_node, ROLE, config, listener)
            path = files.token_file(config.data)
            await until(path.exists)
            headers = {"Authorization": f"Bearer {path.read_text().strip()}"}
            async with httpx2.AsyncClient(base_url=url_of(listener) + "/api/v1", headers=headers) as http:
                yield http
            nursery.cancel_scope.cancel()


async def state(http: httpx2.AsyncClient, name: str) -> dict[str, Any]:
    services: list[dict[str, Any]] = (await http.get("/health")).json()["services"]
    return next(service for service in services if service["name"] == name)


async def reaches(http: httpx2.AsyncClient, wanted: str) -> dict[str, Any]:
    with trio.fail_after(20):
        while True:
            found = await state(http, "data")
            if found["state"] == wanted:
                return found
            await trio.sleep(0.05)


def nothing(_config: TakerConfig, _stage: Stage) -> None:
    pass


async def test_a_new_seed_is_told(config: TakerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    async with starting(config, monkeypatch, nothing) as http:
        await reaches(http, "healthy")
        assert "write its words down" in (await http.get("/health")).json()["warnings"][0]
        answer = await http.get("/positions")
        assert (answer.status_code, answer.json()["code"]) == (503, "starting")


async def test_no_new_seed_is_made_beside_events_and_the_old_one_is_waited_for(
    config: TakerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.data.mkdir(parents=True)
    files.store_file(config.data).touch()
    async with starting(config, monkeypatch, nothing) as http:
        found = await reaches(http, "blocked")
        assert "the seed is gone" in found["reason"]
        assert "seed import" in found["remedy"]
        assert "the seed is gone" in (await http.get("/node")).json()["detail"]
        assert not files.seed_file(config.data).exists()
        Seed.generate().write(files.seed_file(config.data))
        await reaches(http, "healthy")


@pytest.mark.parametrize(
    ("name", "content", "told", "remedy"),
    [
        ("seed", "no words at all", "words were given", "seed import"),
        ("network", "mainnet", "belongs to mainnet", "--data"),
        ("role", "maker", "belongs to maker", "--data"),
    ],
)
async def test_what_is_wrong_with_the_data_directory_is_told(
    config: TakerConfig, monkeypatch: pytest.MonkeyPatch, *, name: str, content: str, told: str, remedy: str
) -> None:
    config.data.mkdir(parents=True)
    wrong = config.data / name
    wrong.write_text(content)
    wrong.chmod(0o600)
    async with starting(config, monkeypatch, nothing) as http:
        found = await reaches(http, "blocked")
        assert told in found["reason"]
        assert remedy in found["remedy"]
        wrong.unlink()
        await reaches(http, "healthy")


async def test_a_bug_in_building_leaves_an_api_that_says_so(
    config: TakerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Stage] = []

    def half(_config: TakerConfig, stage: Stage) -> None:
        built.append(stage)
        stage.supervisor.service("store", partial(_up))
        raise RuntimeError("a bug")

    async with starting(config, monkeypatch, half) as http:
        found = await reaches(http, "blocked")
        assert "a bug" in found["reason"]
        assert (await state(http, "store"))["state"] == "healthy"
        await http.post("/services/data/restart")
        await reaches(http, "blocked")
        assert len(built) == 1


async def _up(*, task_status: trio.TaskStatus[None]) -> None:
    task_status.started()
    await trio.sleep_forever()


async def test_a_connection_outlives_the_change_to_the_whole_api(
    config: TakerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fastapi import APIRouter

    router = APIRouter(prefix="/api/v1")

    @router.get("/node")
    async def node() -> dict[str, str]:
        return {"whole": "yes"}

    stages: list[Stage] = []
    async with starting(config, monkeypatch, lambda _, stage: stages.append(stage)) as http:
        await reaches(http, "healthy")
        async with http.stream("GET", "/node") as before:
            assert before.status_code == 503
            await before.aread()
            connection = before.extensions["network_stream"].get_extra_info("socket")
        door = stages[0].door
        assert door is not None
        door.let_in([router])
        async with http.stream("GET", "/node") as after:
            assert await after.aread() == b'{"whole":"yes"}'
            assert after.extensions["network_stream"].get_extra_info("socket") is connection


def test_a_token_that_cannot_be_kept_beside_the_data_is_kept_where_its_owner_alone_reads(
    config: TakerConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with bind_api(config.api) as listener:
        token, folders = kept_token(tmp_path / "file" / "data", url_of(listener))
        (folder,) = tmp_path.glob("cfdnode-*")
        assert folders == [tmp_path / "file" / "data", folder]
        assert files.token_file(folder).read_text().strip() == token
        assert files.url_file(folder).read_text().strip() == url_of(listener)
        assert folder.stat().st_mode & 0o077 == 0
    told = caplog.text
    assert str(folder) in told
    assert token not in told

"""The worst places to start in, as real processes: the page answers from the first second on, says what is wrong and
what can be done, and the node comes well by itself when the cause goes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio

from node.regtest.processes import ENDS_WITHIN, Node, Processes
from tests.faults.disk import full

pytestmark = pytest.mark.slow

WITHIN = 60.0
PAGE_WITHIN = 10.0
"""Seconds from the start of a process to its page, on a machine that is busy with all the other tests."""
ANSWERS_WITHIN = 5.0
NOWHERE = """
network = "regtest"
electrum = ["nowhere.invalid:50001", "electrum.nowhere.invalid:50001"]
[oracle]
url = "https://oracle.nowhere.invalid"
announcement_key = "{0}"
attestation_key = "{0}"
[prices]
url = "ws://exchange.nowhere.invalid/realtime"
""".format("79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798")
MAKER = "02" * 32 + "@maker.nowhere.invalid:9735"
ROUTES = ("/health", "/node", "/positions", "/wallet", "/offers", "/prices", "/backup")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@asynccontextmanager
async def taker(folder: Path, config: Path, makers: str, token_in: Path) -> AsyncIterator[Node]:
    """One whose address is known before it can write it anywhere, and which is asked without end. It ends in time."""
    port = free_port()
    data = folder / "taker"
    arguments = ("--config", str(config), "--makers", makers, "--api", f"127.0.0.1:{port}", "--data", str(data))
    command = (sys.executable, "-m", "node", "taker", *arguments)
    async with httpx2.AsyncClient(timeout=ANSWERS_WITHIN, trust_env=False) as http:
        node = Node(
            "taker", data, config.with_name("taker.log"), ("env", f"XDG_RUNTIME_DIR={token_in}", *command), http
        )
        with node.log.open("ab") as output:
            node._process = await trio.lowlevel.open_process(
                [*node._command], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        node.url = f"http://127.0.0.1:{port}"
        try:
            with trio.fail_after(PAGE_WITHIN):
                node._token = await token(token_in, data)
                await node.until(lambda: answers(node))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask_without_end, node)
                yield node
                nursery.cancel_scope.cancel()
            node.process.terminate()
            with trio.fail_after(ENDS_WITHIN):
                await node.process.wait()
        finally:
            if node.process.returncode is None:
                await node.kill()


async def token(*folders: Path) -> str:
    while True:
        for folder in folders:
            for file in folder.glob("**/api.token"):
                if said := file.read_text().strip():
                    return said
        await trio.sleep(0.05)


async def answers(node: Node) -> bool:
    return (await node.answer("GET", "/health")).status_code == 200


async def ask_without_end(node: Node) -> None:
    """The page is there throughout: each answer comes in time, and none is a bug's."""
    while True:
        for route in ROUTES:
            assert (await node.answer("GET", route)).status_code in (200, 503), route
        await trio.sleep(0.2)


async def services(node: Node) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in (await node.call("GET", "/health"))["services"]}


async def comes(node: Node, *names: str, when: Callable[[dict[str, Any]], object]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []

    async def so() -> bool:
        said = await services(node)
        found[:] = [said.get(name, {}) for name in names]
        return all(each and when(each) for each in found)

    with trio.fail_after(WITHIN):
        await node.until(so)
    return found


async def test_a_first_start_where_nothing_can_be_reached_or_written(tmp_path: Path) -> None:
    """No chain, oracle, exchange or maker, no place for the data, then a full disk; all of it goes by, in any order."""
    runtime = tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    async with httpx2.AsyncClient(timeout=15, trust_env=False) as http:
        world = Processes(tmp_path, 60.0, http)
        async with world.world() as process:
            with trio.fail_after(WITHIN):
                await world.world_is_up(process)
        config = tmp_path / "world" / "world.toml"
        folder = tmp_path / "place"
        folder.write_text("no directory")
        nobody = "02" * 32 + f"@127.0.0.1:{free_port()}"
        async with taker(folder, config, nobody, runtime) as node:
            (data,) = await comes(node, "data", when=lambda each: each["state"] == "blocked")
            assert str(folder) in data["reason"]
            assert "make the directory writable" in data["remedy"]
            folder.unlink()
            folder.mkdir()
            # until the store is up, the oracle waits for it and asks nobody
            for each in await comes(node, "chain", "oracle", when=lambda each: "127.0.0.1" in (each["reason"] or "")):
                assert each["state"] != "healthy", each
                assert each["remedy"], each
            with full(node):
                (store,) = await comes(node, "store", when=lambda each: each["state"] in ("healthy", "restarting"))
                assert store["state"] == "healthy" or "make room on the disk" in store["remedy"]
                await trio.sleep(1)
            async with world.world() as process:
                with trio.fail_after(WITHIN):
                    await world.world_is_up(process)
                    await comes(node, "chain", "oracle", "store", "wallet", "prices", when=well)
                assert (await node.call("GET", "/wallet"))["stale"] is False


def well(each: dict[str, Any]) -> bool:
    return bool(each["state"] == "healthy")


async def test_names_that_nobody_resolves(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(NOWHERE)
    async with taker(tmp_path, config, MAKER, tmp_path / "taker") as node:
        for name, place in (
            ("chain", "nowhere.invalid"),
            ("oracle", "oracle.nowhere.invalid"),
            ("prices", "exchange.nowhere.invalid"),
        ):
            (said,) = await comes(node, name, when=lambda each: each["state"] in ("restarting", "degraded"))
            assert place in said["reason"], said
            assert said["remedy"], said
        (link,) = [each for name, each in (await services(node)).items() if name.startswith("maker-")]
        assert link["remedy"]


async def test_a_thread_that_hangs_keeps_no_process_alive(tmp_path: Path) -> None:
    """The seed is a pipe that nobody writes to: who reads it waits for ever, as on a mount whose server is away."""
    config = tmp_path / "node.toml"
    config.write_text(NOWHERE)
    data = tmp_path / "taker"
    data.mkdir()
    os.mkfifo(data / "seed", 0o600)
    async with taker(tmp_path, config, MAKER, data) as node:
        (said,) = await comes(node, "data", when=lambda each: each["state"] == "starting")
        assert said["remedy"]


async def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    config = tmp_path / "node.toml"
    config.write_text(NOWHERE)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "node", "taker", "--config", str(config), "--makers", MAKER]
        command += ["--api", place, "--data", str(tmp_path / "taker")]
        with trio.fail_after(WITHIN):
            ended = await trio.run_process(command, check=False, capture_stdout=True, capture_stderr=True)
    assert ended.returncode != 0
    (line,) = ended.stderr.decode().splitlines()
    assert place in line

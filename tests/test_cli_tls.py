"""The command line in front of a node that serves its API by TLS, with a certificate that nobody else vouches for."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from node import cli, files
from node.clock import Clock
from node.config import HostPort, WebTable
from node.supervision import Supervisor
from node.web.door import Door
from node.web.server import run_door
from node.web.sockets import bind_api
from tests.test_cli_node import Ran, no_settings
from tests.test_web_public import certificate, signed

__all__ = ["no_settings"]  # the fixture: no variable of whoever runs the tests is heard


@asynccontextmanager
async def served(data: Path, cert: Path | None, key: Path | None) -> AsyncIterator[int]:
    """A node's API, of which there is no more than its health; its port."""
    clock = Clock()
    supervisor = Supervisor(clock=clock)
    with bind_api(HostPort("127.0.0.1", 0)) as listener:
        web = WebTable(cert=cert, key=key, hosts=("node.example",))
        door = Door(data, listener=listener, supervisor=supervisor, clock=clock, warnings=[], web=web)

        async def run(*, report: Any, task_status: trio.TaskStatus[None]) -> None:
            await run_door(door, listener, report=report, task_status=task_status)

        supervisor.reporting("api", run)
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            yield listener.getsockname()[1]
            nursery.cancel_scope.cancel()


async def typed(capsys: pytest.CaptureFixture[str], *arguments: object) -> Ran:
    status = await trio.to_thread.run_sync(partial(cli.main, list(map(str, arguments))))
    out, err = capsys.readouterr()
    return Ran(status, out, err)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


async def test_on_the_nodes_own_machine_its_certificate_is_trusted_and_no_other(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = certificate(tmp_path)
    (tmp_path / "other").mkdir()
    other, _ = certificate(tmp_path / "other")
    monkeypatch.setenv("CFDNODE_CA", str(other))  # of a node elsewhere
    async with served(data, cert, key):
        told = await typed(capsys, "health", "--data", data, "--json")
        assert [each["name"] for each in told.json["services"]] == ["api"]
        shutil.copy(other, files.certificate_file(data))
        told = await typed(capsys, "health", "--data", data)
        assert told.status == 2
        assert "its certificate is not trusted: " in told.err
        assert told.err.endswith(f"; trusted is what is in {data / 'api.cert'}\n")
    async with served(data, cert, key):  # a start says what is served from then on
        assert (await typed(capsys, "health", "--data", data)).status == 0


async def test_elsewhere_a_certificate_is_named_and_its_name_is_the_nodes(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = certificate(tmp_path, "localhost")
    async with served(data, cert, key) as port:
        there = ("health", "--api", f"https://localhost:{port}", "--token-file", files.token_file(data))
        assert (await typed(capsys, *there, "--ca", cert)).status == 0
        told = await typed(capsys, *there)
        assert (told.status, told.out) == (2, "")
        assert told.err.endswith("; --ca FILE names the one to trust\n")
        monkeypatch.setenv("CFDNODE_CA", str(cert))
        assert (await typed(capsys, *there)).status == 0
        there = (*there[:2], f"https://127.0.0.1:{port}", *there[3:])
        assert "IP address mismatch" in (await typed(capsys, *there)).err
        assert "mismatch" in (await typed(capsys, "health", "--data", data, "--ca", cert)).err
        for file, why in (
            (key, "there is no certificate in it"),
            (tmp_path / "none", "No such file or directory"),
        ):
            assert (await typed(capsys, *there, "--ca", file)).err == f"cfdnode: {file}: {why}\n"


async def test_of_a_chain_the_nodes_own_certificate_alone_is_kept(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not its authority, which signs for others, too, and not a key that lies in the same file."""
    authority, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    above = signed("authority.example", authority, authority=True)
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    own = signed("node.example", key, (above, authority)).public_bytes(pem)
    whole = tmp_path / "whole.pem"
    whole.write_bytes(secret + own + above.public_bytes(pem))
    async with served(data, whole, whole):
        assert files.certificate_file(data).read_bytes() == own
        assert files.certificate_file(data).stat().st_mode & 0o077 == 0
        assert (await typed(capsys, "health", "--data", data)).status == 0
    async with served(data, None, None):
        assert not files.certificate_file(data).exists()
        assert (await typed(capsys, "health", "--data", data)).status == 0
        told = await typed(capsys, "health", "--data", data, "--ca", whole)
        assert "is not served by https" in told.err

"""The command line: what people type, and one line when it is wrong."""

import io
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from node import cli
from node.cli import running
from node.clock import Clock
from node.config import HostPort, MakerConfig, load
from node.eventstore.lock import lock_directory
from node.health import Report, State, stay
from node.network.address import PeerAddress
from node.supervision import Repair, Supervisor
from node.wallet.seed import Seed
from node.web.door import Door
from node.web.server import run_door
from node.web.sockets import bind_api, url_of
from protocols.errors import LocalError, WorldError

ROOT = Path(__file__).parent.parent
WORDS = "abandon " * 11 + "about"
KEY = "dd" * 32


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CFDNODE_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def world(tmp_path: Path) -> Path:
    path = tmp_path / "world.toml"
    path.write_text(
        f'network = "regtest"\nelectrum = "127.0.0.1:1"\n[oracle]\nurl = "http://127.0.0.1:1"\n'
        f'announcement_key = "{KEY}"\nattestation_key = "{KEY}"\n'
    )
    return path


Refuses = Callable[..., str]


@pytest.fixture
def refuses(capsys: pytest.CaptureFixture[str]) -> Refuses:
    def run(*arguments: object) -> str:
        """The one line that the command ends with, and status 2."""
        assert cli.main([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("cfdnode: ")
        return err.removeprefix("cfdnode: ").rstrip("\n")

    return run


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "Missing command."),
        (("tinker",), "No such command 'tinker'."),
        (("maker", "--colour", "blue"), "maker: No such option: --colour"),
        (("taker", "--makers"), "Option '--makers' requires an argument."),
        (("taker", "extra"), "taker: Got unexpected extra argument"),
        (("seed",), "seed: Missing command."),
        (("seed", "new"), "seed new: Missing option '--data'."),
        (("maker",), "network is needed and not set"),
        (("maker", "--config", "/none.toml"), "/none.toml: No such file or directory"),
        (("regtest", "--hour", "-1"), "--hour: '-1': input should be greater than 0"),
        (("regtest", "--electrum-port", "x"), "--electrum-port: 'x': input should be a valid integer"),
        (("health",), "health: give --data, or --api and --token-file"),
        (("health", "--data", "/none"), "/none/api.url: No such file or directory; is the node running?"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2(refuses: Refuses, arguments: tuple[str, ...], told: str) -> None:
    assert refuses(*arguments).startswith(told)


def test_bad_input_in_the_settings_too(
    refuses: Refuses, world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert refuses("taker", "--config", world, "--makers", "me").startswith("--makers: peer address: 'me' has no @")
    assert refuses("maker", "--config", world, "--lot", "x").startswith("--lot: 'x'")
    assert refuses("maker", "--config", world, "--fee-rate", "x").startswith("--fee-rate: 'x'")
    monkeypatch.setenv("CFDNODE_LOT", "x")
    assert refuses("maker", "--config", world).startswith("CFDNODE_LOT: 'x'")
    assert [path.name for path in tmp_path.iterdir()] == ["world.toml"]


@pytest.mark.parametrize("role", ["maker", "taker"])
def test_a_port_in_use_is_one_line_and_nothing_is_touched(
    refuses: Refuses, world: Path, tmp_path: Path, role: str
) -> None:
    with bind_api(HostPort("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = refuses(role, "--config", world, "--data", tmp_path / "data", "--api", f"127.0.0.1:{port}")
    assert told == f"api: cannot serve on 127.0.0.1:{port}: the port is in use"
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("role", ["maker", "taker"])
def test_a_data_directory_in_use_is_one_line_and_nothing_is_touched(
    refuses: Refuses, world: Path, tmp_path: Path, role: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    with lock_directory(data):
        told = refuses(role, "--config", world, "--data", data, "--api", "127.0.0.1:0")
        assert told.startswith(f"{data} is in use by process {os.getpid()}; stop that process")
        assert [path.name for path in data.iterdir()] == ["lock"]


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://127.0.0.1", "http://127.0.0.1:x", "http://[", ""])
def test_the_apis_url_is_checked(refuses: Refuses, tmp_path: Path, url: str) -> None:
    (tmp_path / "api.token").write_text("token")
    (tmp_path / "api.url").write_text(url)
    assert refuses("health", "--data", tmp_path) == f"the API's URL {url!r} is not http://host:port"


def test_help_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(command in told for command in ("maker", "taker", "regtest", "health", "seed", "address"))
    assert cli.main(["maker", "--help"]) == 0
    assert "--max-exposure" in capsys.readouterr().out


def test_the_command_line_starts_without_the_heavy_parts() -> None:
    code = "import node.cli, sys; print(*{'fastapi', 'bdkpython', 'trio', 'pydantic', 'pbk'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


# Seed and address


def test_new_words_are_printed_once_and_kept_for_the_owner_alone(
    capsys: pytest.CaptureFixture[str], refuses: Refuses, tmp_path: Path
) -> None:
    data = tmp_path / "node"
    assert cli.main(["seed", "new", "--data", str(data)]) == 0
    words = capsys.readouterr().out.strip()
    assert len(words.split()) == 12
    assert Seed.read(data / "seed").words == words
    assert stat.S_IMODE((data / "seed").stat().st_mode) == 0o600
    assert "there is a seed already" in refuses("seed", "new", "--data", data)
    assert Seed.read(data / "seed").words == words


def test_words_are_imported_from_standard_input_and_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], refuses: Refuses, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("abandon " * 11 + "sausage"))
    told = refuses("seed", "import", "--data", tmp_path / "node")
    assert told.startswith("seed words: ")
    assert "sausage" not in told
    assert not (tmp_path / "node").exists()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8"))
    assert refuses("seed", "import", "--data", tmp_path / "node") == "seed words: standard input is no text"
    monkeypatch.setattr(sys, "stdin", io.StringIO(WORDS + "\n"))
    assert cli.main(["seed", "import", "--data", str(tmp_path / "node")]) == 0
    assert capsys.readouterr().out == ""
    assert Seed.read(tmp_path / "node" / "seed").words == WORDS


def test_the_makers_address_is_of_its_seed_and_where_it_is_told_to_be(
    capsys: pytest.CaptureFixture[str], refuses: Refuses, world: Path, tmp_path: Path
) -> None:
    arguments = ["address", "--config", str(world), "--data", str(tmp_path)]
    assert "there is no seed" in refuses(*arguments)
    Seed.from_words(WORDS).write(tmp_path / "seed")
    assert cli.main([*arguments, "--listen", "127.0.0.1:7000"]) == 0
    local = PeerAddress.parse(capsys.readouterr().out.strip())
    assert cli.main([*arguments, "--public", "maker.example:7000"]) == 0
    public = PeerAddress.parse(capsys.readouterr().out.strip())
    assert (local.host, public.host, local.port, local.peer) == ("127.0.0.1", "maker.example", 7000, public.peer)


# Health


async def test_health_prints_a_line_per_service_and_says_in_its_status_how_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    supervisor = Supervisor(raise_bugs=True)

    async def run_oracle(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def main(*arguments: object) -> tuple[int, str, str]:
        status = await trio.to_thread.run_sync(cli.main, ["health", *map(str, arguments)])
        out, err = capsys.readouterr()
        return status, out, err

    with bind_api(HostPort("127.0.0.1", 0)) as listener:

        async def run_page(*, task_status: trio.TaskStatus[None]) -> None:
            door = Door(tmp_path, listener=listener, supervisor=supervisor, clock=Clock(), warnings=[])
            door.let_in_services()
            await run_door(door, listener, task_status=task_status)

        supervisor.service("api", run_page)
        oracle = supervisor.service("oracle", run_oracle)
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            await oracle.until(State.HEALTHY)
            status, out, _ = await main("--data", tmp_path)
            assert status == 0
            assert re.fullmatch(r"api +healthy +for \d s\noracle +healthy +for \d s\n", out)
            oracle.degraded("answers 502", "wait")
            by_url = ("--api", url_of(listener), "--token-file", tmp_path / "api.token")
            status, out, _ = await main(*by_url)
            assert status == 1
            assert re.search(r"\noracle +degraded +for \d s; answers 502; you can: wait\n    last well \d s ago\n", out)
            status, out, _ = await main("--json", *by_url)
            assert status == 1
            assert [each["reason"] for each in json.loads(out)["services"]] == ["", "answers 502"]
            (tmp_path / "api.token").write_text("wrong")
            status, out, err = await main(*by_url)
            assert (status, out) == (2, "")
            assert "the request needs the header Authorization" in err
            nursery.cancel_scope.cancel()
    status, out, err = await main("--data", tmp_path)
    assert (status, out) == (2, "")
    assert err.startswith(f"cfdnode: {url_of_file(tmp_path)}: no answer from a node")
    assert err.count("\n") == 1


async def test_services_are_restarted_and_repaired_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    supervisor, mended = Supervisor(raise_bugs=True), trio.Event()

    async def run_store(*, report: Report, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await stay(report)

    async def move_aside() -> None:
        await trio.lowlevel.checkpoint()
        mended.set()

    async def main(*arguments: str) -> tuple[int, str, str]:
        status = await trio.to_thread.run_sync(cli.main, ["service", *arguments, "--data", str(tmp_path)])
        out, err = capsys.readouterr()
        return status, out, err

    with bind_api(HostPort("127.0.0.1", 0)) as listener:

        async def run_page(*, task_status: trio.TaskStatus[None]) -> None:
            door = Door(tmp_path, listener=listener, supervisor=supervisor, clock=Clock(), warnings=[])
            door.let_in_services()
            await run_door(door, listener, task_status=task_status)

        supervisor.service("api", run_page)
        repair = Repair("move-aside", "move the file aside", "what is in it is not seen", move_aside, always=True)
        store = supervisor.reporting("store", run_store, repairs=[repair])
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run)
            await store.until(State.HEALTHY)
            status, out, _ = await main("store", "stop")
            assert (status, store.state) == (0, State.STOPPED)
            assert out.startswith("store ")
            assert (await main("store", "start"))[0] == 0
            await store.until(State.HEALTHY)
            status, _, err = await main("store", "move-aside")
            assert (status, mended.is_set()) == (2, False)
            assert "what is in it is not seen" in err
            assert (await main("store", "move-aside", "--yes"))[0] == 0
            assert mended.is_set()
            assert "no repair 'explode'" in (await main("store", "explode"))[2]
            assert "there is no service 'moon'" in (await main("moon", "restart"))[2]
            assert "is no name" in (await main("store", "../../health"))[2]
            nursery.cancel_scope.cancel()


def url_of_file(data: Path) -> str:
    return (data / "api.url").read_text().strip()


# Running


@pytest.mark.parametrize("error", [LocalError("bad_hour", "hour 0"), WorldError("port_in_use", "port 1 is in use")])
def test_what_a_start_refuses_is_one_line_however_deep_in_nurseries(
    error: Exception, monkeypatch: pytest.MonkeyPatch, refuses: Refuses, tmp_path: Path
) -> None:
    async def run_world(*_: object) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)

    async def fail() -> None:
        raise error

    monkeypatch.setattr("node.regtest.world.run_world", run_world)
    monkeypatch.setattr(running, "set_up_logs", lambda _level, _style: None)
    assert refuses("regtest", "--data", tmp_path) == str(error).partition(" [")[0]


def test_a_bug_is_no_bad_input() -> None:
    async def buggy() -> None:
        raise ZeroDivisionError

    run: Callable[[Callable[[], Awaitable[object]]], None] = running.until_told_to_end
    with pytest.raises(ExceptionGroup) as caught:
        run(buggy)
    assert caught.group_contains(ZeroDivisionError)


async def test_a_world_writes_what_nodes_read_and_ends_when_told(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "node", "regtest", "--data", str(tmp_path / "world"), "--hour", "2"]
    process = await trio.lowlevel.open_process(command, cwd=ROOT, stderr=subprocess.PIPE)
    try:
        with trio.fail_after(60):
            while not (tmp_path / "world" / "world.toml").exists():
                assert process.poll() is None, "it ended before its time"
                await trio.sleep(0.05)
            config = load(MakerConfig, paths=[tmp_path / "world" / "world.toml"], environ={})
            assert (config.network, config.clock.hour) == ("regtest", 2.0)
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    finally:
        process.kill()
        await process.wait()
        assert process.stderr is not None
        await process.stderr.aclose()

"""The commands that ask a node, on a maker and a taker as they are built for real; and on no node at all."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import frozen

from node import cli, files
from node.cli import output
from node.network.address import Identity
from node.web.passwords import is_password, kept_hash
from tests.test_node import Market, market

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CFDNODE_")]:
        monkeypatch.delenv(name)


@frozen
class Ran:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)


@frozen
class Shell:
    """Who types commands beside a node."""

    data: Path
    capsys: pytest.CaptureFixture[str]

    async def __call__(self, *arguments: object) -> Ran:
        typed = [*map(str, arguments), "--data", str(self.data)]
        status = await trio.to_thread.run_sync(partial(cli.main, typed))
        out, err = self.capsys.readouterr()
        return Ran(status, out, err)


async def test_an_order_from_the_ticket_to_the_payout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with market(tmp_path, hour=3600.0) as this:
        maker, taker = Shell(tmp_path / "maker", capsys), Shell(tmp_path / "taker", capsys)
        await offers_are_shown(this, maker, taker)
        await makers_come_and_go(this, taker)
        order_id = await order_is_placed(this, taker)
        await positions_are_shown(this, order_id, maker, taker)
        await it_is_closed(this, order_id, taker)
        await coins_are_sent(this, taker)
        await transactions_are_listed(this, order_id, taker)


async def offers_are_shown(this: Market, maker: Shell, taker: Shell) -> None:
    told = await taker("offers")
    assert re.search(rf"\n{this.offer['id']}  BTCUSD  long +50000 ", told.out)
    told = await maker("offers", "set", "--side", "long", "--price", "49000", "--leverages", "1,2")
    assert re.fullmatch(r"[0-9a-f]{32}: long BTCUSD at 49000\n", told.out)
    bid = (await maker("offers", "--json")).json[-1]
    assert (bid["maker_side"], bid["leverages"]) == ("long", [1, 2])
    assert (await maker("offers", "withdraw", bid["id"])).out == "withdrawn\n"
    assert len((await maker("offers", "--json")).json) == 1
    assert "give either --price or --spread" in (await maker("offers", "set", "--side", "long")).err
    wrong = await maker("offers", "set", "--side", "long", "--price", "1.234")
    assert (wrong.status, wrong.out) == (2, "")
    assert wrong.err.startswith("cfdnode: price")


async def makers_come_and_go(this: Market, taker: Shell) -> None:
    address = (await this.maker.get("/maker"))["address"]
    identity = address.partition("@")[0]
    assert re.search(rf"\n{identity}  healthy +{address} ", (await taker("makers")).out)
    other = f"{Identity(bytes(31) + bytes([7])).public}@127.0.0.1:1"
    assert (await taker("makers", "add", other)).status == 0
    assert len((await taker("makers", "--json")).json) == 2
    assert (await taker("makers", "remove", other.partition("@")[0])).out == "removed\n"
    assert len((await taker("makers", "--json")).json) == 1
    assert (await taker("makers", "add", "nobody")).status == 2


async def order_is_placed(this: Market, taker: Shell) -> str:
    typed = ("order", "--side", "long", "--quantity", 1_000, "--leverage", 2)
    unasked = await taker(*typed)
    assert unasked.status == 2
    assert "give --yes to agree" in unasked.err
    assert re.search(r"\nyour margin, sat +1 000 000\n", unasked.out)
    assert re.search(r"\nfunding per 24 h, sat +-\d", unasked.out)
    assert "no offer stands in which you would be short" in (await taker(*typed, "--side", "short")).err
    assert (await taker(*typed, "--limit", "49999", "--yes")).status == 2
    assert (await taker("positions", "--json")).json == []

    told: list[Ran] = []
    async with trio.open_nursery() as nursery:

        async def order() -> None:
            told.append(await taker(*typed, "--yes", "--wait", "--json", "--key", "first"))

        nursery.start_soon(order)
        (found,) = await this.taker.sees(partial(this.taker.get, "/positions"))
        order_id: str = found["order_id"]
        opening = await this.taker.comes_to(order_id, "opening")
        await this.confirm(opening["contract"]["lock_txid"])
    assert told[0].json["state"] == "open"
    assert told[0].json["order_id"] == order_id
    return order_id


async def positions_are_shown(this: Market, order_id: str, maker: Shell, taker: Shell) -> None:
    told = await taker("positions")
    assert re.search(rf"\n{order_id}  open +BTCUSD  long +1 000  50000 ", told.out)
    assert (await maker("positions", order_id, "--json")).json["side"] == "short"
    told = await taker("positions", order_id)
    assert re.search(r"^state +open$", told.out, re.MULTILINE)
    assert re.search(r"^lock +[0-9a-f]{64}$", told.out, re.MULTILINE)
    (row,) = csv.DictReader(io.StringIO((await taker("positions", "--csv")).out))
    assert (row["order"], row["quantity"], row["margin"]) == (order_id, "1000", "1000000")
    assert (await taker("positions", "--history")).out == "no positions\n"
    assert "is not 32 hex digits" in (await taker("positions", "../health")).err
    assert (await taker("positions", "0" * 32)).err == f"cfdnode: there is no position {'0' * 32}\n"
    unasked = await taker("force-close", order_id)
    assert (unasked.status, "give --yes" in unasked.err) == (2, True)


async def it_is_closed(this: Market, order_id: str, taker: Shell) -> None:
    unasked = await taker("close", order_id)
    assert unasked.status == 2
    assert re.search(r"^price now, USD +50000$", unasked.out, re.MULTILINE)
    told: list[Ran] = []
    async with trio.open_nursery() as nursery:

        async def close() -> None:
            told.append(await taker("close", order_id, "--limit", "49900", "--yes", "--wait"))

        async def signed() -> Any:
            closing = (await this.taker.position(order_id))["closing"]
            return closing if closing and closing["stage"] == "signed" else None

        nursery.start_soon(close)
        closing = await this.taker.sees(signed)
        await this.confirm(closing["txid"], 3)
    assert told[0].status == 0
    assert told[0].out.splitlines()[0] == f"{order_id}: the maker is asked to close at 50000"
    assert closing["txid"] in told[0].out


async def coins_are_sent(this: Market, taker: Shell) -> None:
    told = await taker("wallet")
    assert re.search(r"^confirmed, sat +\d\d? \d{3} \d{3}$", told.out, re.MULTILINE)
    address = (await taker("wallet", "address", "--json")).json["address"]
    assert "sat" in (await taker("wallet", "coins")).out
    assert "neither whole satoshis nor all" in (await taker("wallet", "send", address, "0.5")).err
    unasked = await taker("wallet", "send", address, 50_000)
    assert (unasked.status, "fee, sat" in unasked.out) == (2, True)
    sent = (await taker("wallet", "send", address, 50_000, "--yes", "--json", "--key", "k1")).json
    assert (await taker("wallet", "send", address, 50_000, "--yes", "--json", "--key", "k1")).json["txid"] == sent[
        "txid"
    ]
    await this.confirm(sent["txid"])


async def transactions_are_listed(this: Market, order_id: str, taker: Shell) -> None:
    await this.taker.seen_block(this.world)
    found = (await taker("wallet", "transactions", "--json")).json
    assert (found["next"], found["stale"]) == (None, False)
    sent, *others = found["transactions"]
    assert (sent["of"], sent["confirmations"] > 0) == (None, True)
    assert sent["amount"] == -sent["fee"]  # paid to itself
    ours = {each["of"]["kind"]: each for each in others if each["of"]}
    assert {each["of"]["order_id"] for each in ours.values()} == {order_id}
    assert ours["lock"]["amount"] < 0 < ours["close"]["amount"]
    assert sum(each["amount"] for each in found["transactions"]) == (await taker("wallet", "--json")).json["confirmed"]
    newest = (await taker("wallet", "transactions", "--json", "--limit", 1)).json
    assert (newest["transactions"], newest["next"]) == ([sent], sent["txid"])
    told = (await taker("wallet", "transactions")).out.splitlines()
    assert told[0].split() == ["time", "amount", "fee", "confirmations", "for", "transaction"]
    assert re.fullmatch(rf"\d{{4}}-[-\d]+ [:\d]+ +-{sent['fee']} +{sent['fee']} +\d+  – +{sent['txid']}", told[1])
    assert any(re.search(rf"  lock of {order_id[:8]} +{ours['lock']['txid']}$", line) for line in told)
    assert (await taker("wallet", "transactions", "--limit", 0)).status == 2


# --- no node, or one that does not answer -----------------------------------------------------------------------------


@contextmanager
def mute(data: Path) -> Iterator[list[bytes]]:
    """An API that takes a request and hangs up; what it got."""
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        files.url_file(data).write_text(f"http://127.0.0.1:{listener.getsockname()[1]}")
        files.token_file(data).write_text("token")

        def take() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    got.append(connection.recv(10_000))

        thread = threading.Thread(target=take)
        thread.start()
        try:
            yield got
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_request_that_may_have_been_taken_is_status_3_and_names_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with mute(tmp_path) as got:
        assert cli.main(["force-close", "00" * 16, "--yes", "--data", str(tmp_path), "--key", "mine"]) == 3
        assert b"Idempotency-Key: mine\r\n" in got[0]
        assert "; with --key mine it is asked again, and nothing is done twice" in capsys.readouterr().err
        assert cli.main(["positions", "--data", str(tmp_path)]) == 2
    assert cli.main(["force-close", "00" * 16, "--yes", "--data", str(tmp_path)]) == 2
    assert "no answer from a node" in capsys.readouterr().err


def test_the_data_directory_may_be_named_by_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CFDNODE_DATA", str(tmp_path / "mine"))
    assert cli.main(["positions"]) == 2
    assert str(tmp_path / "mine" / "api.url") in capsys.readouterr().err


# --- the terminal -----------------------------------------------------------------------------------------------------


def test_a_table_is_aligned_and_shows_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("name", "sat", "note"), [("a", 1_234_567, None), ("long name", 5, "\x1b[2Jhello")], "nothing")
    assert capsys.readouterr().out == (
        "name             sat  note\na          1 234 567  –\nlong name          5  ?[2Jhello\n"
    )
    output.table(("name",), [], "nothing")
    assert capsys.readouterr().out == "nothing\n"


@pytest.mark.parametrize(
    ("text", "written"), [("=1+1", "'=1+1"), ("@SUM(1)", "'@SUM(1)"), ("-5", "-5"), ("-0.01", "-0.01"), ("-x", "'-x")]
)
def test_no_cell_is_a_formula(text: str, written: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.as_csv(["x"], [[text]])
    assert capsys.readouterr().out == f"x\n{written}\n"


def test_progress_is_told_on_a_terminal_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, pipe = Terminal(), io.StringIO()
    monkeypatch.setattr(output, "QUICK", 0.01)
    monkeypatch.setattr(sys, "stderr", terminal)
    with output.progress("asking"):
        while "asking … 0 s" not in terminal.getvalue():
            threading.Event().wait(0.001)
    assert terminal.getvalue().endswith("\r\x1b[K")
    monkeypatch.setattr(sys, "stderr", pipe)
    with output.progress("asking"):
        threading.Event().wait(0.05)
    assert pipe.getvalue() == ""


def test_the_shell_completes_commands() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "node"],
        env={**os.environ, "_CFDNODE_COMPLETE": "complete_bash", "COMP_WORDS": "cfdnode for", "COMP_CWORD": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.stdout.split() == ["force-close"]


def test_a_password_is_set_from_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("correct horse\n"))
    assert cli.main(["password", "--data", str(tmp_path)]) == 0
    assert is_password(kept_hash(tmp_path), "correct horse")
    monkeypatch.setattr(sys, "stdin", io.StringIO("short\n"))
    assert cli.main(["password", "--data", str(tmp_path)]) == 2
    assert "it has 5 characters, allowed are 10" in capsys.readouterr().err
    assert cli.main(["password", "--data", str(tmp_path / "none")]) == 2


def test_every_command_has_json_but_those_that_run(capsys: pytest.CaptureFixture[str]) -> None:
    from node.cli.app import app

    def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        for command in group.registered_commands:
            yield (*path, command.name or command.callback.__name__)
        for inner in group.registered_groups:
            yield from commands(inner.typer_instance, (*path, inner.name))

    without = []
    for path in commands(app):
        assert cli.main([*path, "--help"]) == 0
        if "--json" not in capsys.readouterr().out:
            without.append(path)
    assert without == [("maker",), ("taker",), ("regtest",), ("password",), ("seed", "import")]


def commands() -> set[str]:
    from node.cli.app import app

    found = set()
    for command in app.registered_commands:
        assert command.callback is not None
        found.add(command.name or command.callback.__name__)
    return found | {str(group.name) for group in app.registered_groups}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_each_command_and_metric_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```.*?```|`[^`]+`", text, re.DOTALL))
    assert set(re.findall(r"\bcfdnode ([a-z][a-z-]*)", code)) <= commands()
    metrics = (ROOT / "node" / "metrics.py").read_text(encoding="utf-8")
    assert {name for name in re.findall(r"\bcfdnode_[a-z_]+", code) if f'"{name}"' not in metrics} == set()

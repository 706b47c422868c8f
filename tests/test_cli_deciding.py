"""The commands by which a maker's operator decides, on a maker and a taker as they are built for real."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from attrs import define, field

from node import cli
from node.cli import output
from node.cli.app import app
from node.policy import Policy
from tests.test_cli_node import Shell, mute, no_settings
from tests.test_node import Market, market

__all__ = ["no_settings"]  # the fixture: no variable of whoever runs the tests is heard


@define
class Terminal:
    """Somebody who says yes, and what they were asked."""

    asked: list[str] = field(factory=list)

    def agree(self, question: str, *, yes: bool) -> None:
        if not yes:
            self.asked.append(question)


async def test_a_maker_decides_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with market(tmp_path, hour=3600.0, accept="manual") as this:
        maker = Shell(tmp_path / "maker", capsys)
        assert (await maker("requests")).out == "nothing waits for a word\n"
        assert (await maker("requests", "--json")).json["requests"] == []
        await an_order_is_declined(this, maker)
        await an_order_is_accepted(this, maker, monkeypatch)
        await the_policy_is_set(this, maker)
        await rates_are_set(this, maker)
        taker = Shell(tmp_path / "taker", capsys)
        for command in ("requests", "policy", "rates"):
            assert (await taker(command)).status == 2  # a taker has none


async def waiting(this: Market) -> Any:
    async def found() -> Any:
        return (await this.maker.get("/requests"))["requests"]

    (request,) = await this.maker.sees(found)
    return request


async def an_order_is_declined(this: Market, maker: Shell) -> None:
    order_id = await this.order()
    request = await waiting(this)
    told = await maker("requests")
    assert re.search(
        rf"\n{request['id']}  order  BTCUSD  short +1 000 +2 +50000 +0.001  [0-9a-f]{{8}}  \d\d s\n", told.out
    )
    assert "is not 32 hex digits" in (await maker("requests", "decline", "../policy")).err
    typed = ("requests", "decline", request["id"], "--sentence", "not today", "--key", "k1")
    assert (await maker(*typed)).out == f"declined: the order of {order_id}\n"
    assert (await maker(*typed, "--json")).json["id"] == request["id"]  # the first answer again
    gone = await maker("requests", "decline", request["id"])
    assert (gone.status, gone.err) == (2, f"cfdnode: no request {request['id']} waits for an answer\n")

    async def refused() -> Any:
        return (await this.taker.position(order_id))["refusal"]

    assert (await this.taker.sees(refused))["sentence"] == "not today"


async def an_order_is_accepted(this: Market, maker: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    order_id = await this.order()
    request = await waiting(this)
    unasked = await maker("requests", "accept", request["id"])
    assert unasked.status == 2
    assert "give --yes to agree" in unasked.err
    assert re.search(r"^you +short BTCUSD, 1 000 contracts$", unasked.out, re.MULTILINE)
    assert (await maker("requests", "accept", request["id"], "--price", "50000", "--yes")).err == (
        "cfdnode: price is said of rollovers only, and this request is of kind order\n"
    )
    assert (await maker("requests", "accept", "00" * 16)).err == f"cfdnode: no request {'00' * 16} waits for a word\n"
    terminal = Terminal()
    with monkeypatch.context() as patched:
        patched.setattr(output, "agree", terminal.agree)
        told = await maker("requests", "accept", request["id"])
    assert terminal.asked == ["Accept it?"]
    assert told.out.endswith(f"\naccepted: the order of {order_id}\n")
    await this.both(order_id, "opening")


async def the_policy_is_set(this: Market, maker: Shell) -> None:
    before = (await maker("policy", "--json")).json
    assert re.search(r"^accept_orders +manual +–$", (await maker("policy")).out, re.MULTILINE)
    typed = ["--accept-orders", "auto", "--max-quantity", "BTCUSD=700", "--max-margin", "50000", "--rate-max-age", "60"]
    told = await maker("policy", "set", *typed)
    assert re.search(r"^max_quantity +BTCUSD 700, ETHUSD [\d ]+ +yes$", told.out, re.MULTILINE)
    assert re.search(r"^max_margin +50 000 +yes$", told.out, re.MULTILINE)
    after = (await maker("policy", "set", "--max-margin", "none", "--funding-rate", "BTCUSD=-0.001", "--json")).json
    assert (after["max_margin"], after["funding_rate"]) == (None, {"BTCUSD": "-0.001"})
    assert after["changed"] == ["accept_orders", "max_quantity", "funding_rate", "rate_max_age"]
    assert await this.maker.get("/policy") == after
    for wrong, sentence in (
        (["--max-quantity", "BTCUSD"], "--max-quantity: 'BTCUSD' is not SYMBOL=VALUE"),
        (["--max-quantity", "BTCUSD=many"], "--max-quantity: 'many' is no whole number"),
        (["--max-quantity", "DOGE=1"], "is not a contract symbol"),
        (["--accept-orders", "perhaps"], "accept_orders"),
        (["--price-band", "2"], "price_band"),
        ([], "name something to change"),
    ):
        refusal = await maker("policy", "set", *wrong)
        assert (refusal.status, refusal.out) == (2, "")
        assert sentence in refusal.err
    assert await this.maker.get("/policy") == after
    unasked = await maker("policy", "reset")
    assert unasked.status == 2
    assert re.search(r"^max_quantity +BTCUSD 700, ETHUSD [\d ]+$", unasked.out, re.MULTILINE)
    assert (await maker("policy", "reset", "--yes", "--json")).json == before
    assert (await maker("policy", "reset")).status == 0  # nothing is forgotten by that


async def rates_are_set(this: Market, maker: Shell) -> None:
    assert re.search(r"\nBTCUSD  as each position opened +–", (await maker("rates")).out)
    assert (await maker("rates", "withdraw", "BTCUSD")).status == 2
    told = await maker("rates", "set", "--funding-rate", "-0.0003")
    assert re.fullmatch(r"BTCUSD: -0.0003 per 24 h, good until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n", told.out)
    assert re.search(r"\nBTCUSD  -0.0003 .* in force\n", (await maker("rates")).out)
    await maker("policy", "set", "--rate-max-age", "0.001", "--funding-rate", "BTCUSD=0.0001")
    assert re.search(r"\nBTCUSD .* too old: orders and rollovers are refused\n", (await maker("rates")).out)
    assert (await maker("rates", "withdraw", "BTCUSD")).out == "BTCUSD: 0.0001 per 24 h\n"
    assert (await maker("rates", "--json")).json["BTCUSD"]["since"] is None
    assert "of the policy" in (await maker("rates")).out
    assert (await maker("rates", "set", "--funding-rate", "much")).status == 2
    assert "is not such as BTCUSD" in (await maker("rates", "set", "--symbol", "../x", "--funding-rate", "0")).err


def test_each_field_of_the_policy_has_its_flag() -> None:
    (group,) = [each for each in typer.main.get_group(app).commands.values() if each.name == "policy"]
    names = {name for option in group.commands["set"].params for name in option.opts}  # type: ignore[attr-defined]
    others = {"--data", "--api", "--token-file", "--ca", "--json"}
    assert names - others == {f"--{name.replace('_', '-')}" for name in Policy.model_fields}


def test_flags_before_a_subcommand_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["policy", "--data", str(tmp_path), "set", "--price-band", "0"]) == 2
    assert capsys.readouterr().err == "cfdnode: policy set: write flags behind set\n"


def test_a_wish_that_may_have_been_heard_is_status_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mute(tmp_path) as got:
        assert cli.main(["policy", "set", "--price-band", "0.02", "--data", str(tmp_path)]) == 3
        assert got[0].startswith(b"PATCH /api/v1/policy ")
        assert "asked again, nothing is done twice" in capsys.readouterr().err
        assert cli.main(["requests", "accept", "ab" * 16, "--yes", "--key", "mine", "--data", str(tmp_path)]) == 3
        assert "; with --key mine it is asked again, and nothing is done twice" in capsys.readouterr().err

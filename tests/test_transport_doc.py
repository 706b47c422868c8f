"""docs/transport.md: its code runs, and its figures are those of the code."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from node.config import MakerConfig, PeersTable
from node.network.connection import Liveness
from node.network.endpoint import Endpoint, Limits
from protocols.transport.guard import MAX_DATA, Allowance, Budgets
from protocols.transport.http2 import QUICK, SessionLimits

TEXT = (Path(__file__).parent.parent / "docs" / "transport.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def page() -> dict[str, Callable[..., Any]]:
    """What all of the page's code together defines."""
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile("\n".join(blocks("python")), "docs/transport.md", "exec"), names)  # noqa: S102  # our own page
    return names


def test_asking_takes_five_lines() -> None:
    (function,) = re.findall(r"^async def ask.*?\n((?: {4}.*\n)+)", blocks("python")[0], re.MULTILINE)
    assert len(function.splitlines()) + 1 == 5


async def test_both_sides_of_the_page_speak_with_each_other(
    page: dict[str, Callable[..., Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    async with trio.open_nursery() as nursery:
        address = await nursery.start(page["serve"])
        await page["ask"](address)
        assert capsys.readouterr().out == "b'HELLO'\n"
        async with page["Endpoint"](page["Identity"](bytes(32))).running() as endpoint:
            await page["keep_asking"](endpoint, address)
        assert capsys.readouterr().out == "b'STILL THERE?'\n"
        nursery.cancel_scope.cancel()


async def test_events_are_watched_to_the_end_of_the_endpoint(
    page: dict[str, Callable[..., Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    async with trio.open_nursery() as nursery:
        address = await nursery.start(page["serve"])
        endpoint: Endpoint
        async with page["Endpoint"](page["Identity"](bytes(32))).running() as endpoint:
            nursery.start_soon(page["watch"], endpoint)
            await endpoint.dial(address)
            await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        assert capsys.readouterr().out == f"{address.peer.short} closed on this side\n"
        nursery.cancel_scope.cancel()


def test_the_part_without_sockets(page: dict[str, Callable[..., Any]]) -> None:
    assert page["in_memory"]() == b"hello"


def test_the_configuration_is_one(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    values = tomllib.loads(text)
    assert values.keys() - MakerConfig.model_fields.keys() == set()
    table = PeersTable.model_validate(values["peers"])
    assert (str(table.proxy), table.proxy_for) == ("127.0.0.1:9050", "onions")
    assert table.allow == Path("/home/maker/allow")


def test_the_figures_are_the_codes() -> None:
    limits, session, budgets = Limits(), SessionLimits(), Budgets()
    assert (limits.strangers, limits.strangers_per_address, limits.handshake_within) == (256, 32, 10)
    assert (limits.answer_within, limits.settle_within) == (5, 30)
    assert (limits.backoff, limits.longest_backoff) == (1, 300)
    assert limits.liveness == Liveness(ping_after=15, dead_after=30, farewell=5)
    assert (session.streams, session.stream_window, session.connection_window) == (100, 256 * 1024, 8 * 1024 * 1024)
    assert (session.quick_windows, QUICK) == (4 * 1024 * 1024, 4)
    assert (session.unsent_answers, session.last_stream, MAX_DATA) == (16 * 1024, 2**31 - 1, 65_510)
    assert budgets.resets == Allowance(200, 20)
    assert budgets.pings == budgets.idle == Allowance(20, 1)
    assert budgets.settings == Allowance(20, 20 / 60)

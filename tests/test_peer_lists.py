"""Who may connect, by files that are edited while the node runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing

from node.health import UNREPORTED
from node.network.address import Identity, PeerId
from node.network.errors import Forbidden
from node.network.lists import LARGEST, PeerLists, read_peers
from protocols.errors import LocalError
from tests.electrums import until
from tests.endpoints import ECHO, Joined, echo, joined
from tests.sessions import DIALLER

TAKER = Identity(DIALLER).public
OTHER = PeerId(bytes(range(32)))


def test_lists_are_read_with_their_comments() -> None:
    text = f"# friends\n{TAKER}  # the desk downstairs\n\n  {str(OTHER).upper()}\n"
    assert read_peers(text) == {TAKER, OTHER}
    assert read_peers("") == frozenset()


def test_a_wrong_line_is_named() -> None:
    with pytest.raises(LocalError, match=r"line 3: peer id 'abc': must be 64 hex digits"):
        read_peers(f"{TAKER}\n\nabc # who?\n")


class Told(type(UNREPORTED)):  # type: ignore[misc]  # a class of the module's own
    """What was said about the service's health."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self._said = trio.Event()

    async def said(self) -> None:
        """Until something new is."""
        with trio.fail_after(20):
            await self._said.wait()
        self._said = trio.Event()

    def degraded(self, reason: str, remedy: str = "", repairs: Sequence[str] = ()) -> None:
        self.reasons.append(reason)
        self._said.set()

    def recovered(self) -> None:
        self.reasons.append("")
        self._said.set()


async def ask(both: Joined) -> bytes:
    async with await both.at_taker.open(ECHO) as stream:
        await stream.send_all(b"question")
        return bytes(await stream.receive_some())


async def test_a_change_counts_within_seconds_and_parts_with_who_is_out(tmp_path: Path) -> None:
    allow, block = tmp_path / "allow", tmp_path / "block"
    allow.write_text(f"{TAKER}\n")
    block.write_text("")
    async with joined({ECHO: echo}) as both, trio.open_nursery() as nursery:
        await nursery.start(PeerLists(allow, block, every=0.001).run, both.maker)
        assert both.maker.allow == {TAKER}
        assert await ask(both) == b"question"
        block.write_text(f"{OTHER}\n")
        await until(lambda: both.maker.block == {OTHER})
        assert await ask(both) == b"question"
        allow.write_text(f"{OTHER}\n")
        await until(lambda: both.maker.allow == {OTHER})
        with pytest.raises(Forbidden):
            await ask(both)
        nursery.cancel_scope.cancel()


async def test_a_file_that_cannot_be_read_counts_as_it_was(tmp_path: Path) -> None:
    allow = tmp_path / "allow"
    report = Told()
    async with joined() as both, trio.open_nursery() as nursery:
        # Before it could ever be read, nobody is allowed.
        await nursery.start(
            lambda task_status: PeerLists(allow, every=0.001).run(both.maker, report=report, task_status=task_status)
        )
        assert both.maker.allow == frozenset()
        assert report.reasons == [f"{allow}: no such file or directory"]
        await report.said()
        for content, reason in (
            (f"{TAKER}\n".encode(), ""),
            (b"nonsense", "line 1"),
            (b"\xff", "UTF-8"),
            (bytes(LARGEST + 1), "at most 1048576"),
            (f"{TAKER} # again\n".encode(), ""),
        ):
            other = tmp_path / "new"
            other.write_bytes(content)
            os.replace(other, allow)
            await report.said()
            assert reason in report.reasons[-1]
            assert bool(reason) == bool(report.reasons[-1])
            assert both.maker.allow == {TAKER}
        assert len(report.reasons) == 6
        nursery.cancel_scope.cancel()

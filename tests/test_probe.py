"""`scripts/probe_maker`: what it shows of a maker, and what it says when there is none."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import trio
from attrs import evolve

from node.network.conversation import Host, answering
from node.network.endpoint import Endpoint
from protocols import identify, offers, ping
from protocols.dialogue import Dialogue
from protocols.identify import Identity, PeerRole
from protocols.offers import NextOffers, Offer
from tests.endpoints import address_of, running
from tests.setups import OFFER

ROOT = Path(__file__).parent.parent


async def probe(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.probe", *arguments]
    run = partial(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    done: subprocess.CompletedProcess[str] = await trio.to_thread.run_sync(run)
    return done


def speaks(maker: Endpoint, offered: tuple[Offer, ...] | None) -> None:
    """What every maker speaks, and offers unless there is None."""

    def who(_: object) -> tuple[Dialogue[object], Host]:
        return identify.listener(Identity("cfdnode", "9.8.7", maker.paths, "signet", PeerRole.MAKER)), Host()

    def publishes(_: object) -> tuple[Dialogue[object], Host]:
        async def next_offers(ask: NextOffers) -> tuple[Offer, ...]:
            if ask.last is not None:
                await trio.sleep_forever()
            return offered or ()

        return offers.maker(), Host(answers={NextOffers: next_offers})

    maker.handle(identify.PROTOCOL.path, answering(identify.PROTOCOL, who))
    maker.handle(ping.PROTOCOL.path, answering(ping.PROTOCOL, lambda _: (ping.listener(), Host())))
    if offered is not None:
        maker.handle(offers.PROTOCOL.path, answering(offers.PROTOCOL, publishes))


async def test_it_shows_who_is_there_what_is_spoken_and_offered_and_how_far_it_is() -> None:
    async with running() as maker:
        speaks(maker, (OFFER, evolve(OFFER, id=bytes(16), price="53999.5")))
        done = await probe(str(await address_of(maker)), "--pings", "3")
        assert (done.returncode, done.stderr) == (0, "")
        lines = done.stdout.splitlines()
        assert lines[0].startswith(f"dialled {maker.identity.public.short} at 127.0.0.1:")
        assert lines[1] == "is      cfdnode 9.8.7, maker on signet"
        assert lines[2:5] == [f"speaks  {path}" for path in maker.paths]
        assert "the maker is short at 54000, 100 to 10000 contracts in lots of 100, leverage ×1, ×2, ×5" in lines[5]
        assert OFFER.id.hex() in lines[5]
        assert "at 53999.5" in lines[6]
        assert [line.split(":")[0] for line in lines[7:10]] == ["ping    1", "ping    2", "ping    3"]
        assert lines[10].startswith("ping    3 round trips: median ")
        assert len(lines) == 11
        assert maker.crashes == 0


async def test_a_maker_without_offers_is_shown_as_such() -> None:
    async with running() as maker:
        speaks(maker, ())
        done = await probe(str(await address_of(maker)), "--pings", "0")
        assert done.returncode == 0
        assert done.stdout.splitlines()[-1] == "offers  none at present"


async def test_a_node_that_does_not_speak_of_offers_is_no_failure() -> None:
    async with running() as node:
        speaks(node, None)
        done = await probe(str(await address_of(node)), "--pings", "1")
        assert done.returncode == 0
        assert "offers  nothing: it does not speak of offers" in done.stdout


async def test_one_line_says_what_is_wrong() -> None:
    done = await probe("nonsense")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "scripts/probe_maker: peer address: 'nonsense' has no @: must be <64 hex digits>@host:port\n"
    async with running() as maker:
        host, port = await maker.listen("127.0.0.1", 0)
        done = await probe(f"{'1' * 64}@{host}:{port}")  # somebody else's key
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "answers, but not as that peer" in done.stderr
    done = await probe(f"{'1' * 64}@{host}:{port}")
    assert done.returncode == 1
    assert done.stderr == f"scripts/probe_maker: cannot reach 127.0.0.1:{port}: connection refused\n"

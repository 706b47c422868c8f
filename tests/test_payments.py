"""What is sent from the wallet stays on disk until the chain has it, whatever happens to node, mempool and server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from node.chain.electrum import BroadcastRejected, ElectrumClient
from node.errors import Disconnected
from node.payments import GIVEN_UP, SETTLED, Payments
from node.regtest.world import RunningWorld
from node.wallet.address import to_address
from tests.test_node import MONEY, Api, taker_on
from tests.test_wallet_api import ELSEWHERE
from tests.worlds import fund, running_world, until

ADDRESS = to_address(ELSEWHERE, "regtest")


async def funded(world: RunningWorld, taker: Api) -> None:
    await taker.healthy()
    fund(world, await taker.script(), MONEY)
    await taker.seen_block(world)


async def send(taker: Api) -> dict[str, Any]:
    sent: dict[str, Any] = await taker.done("/wallet/send", address=ADDRESS, amount_sat=1_000_000)
    return sent


def under_way(data: Path) -> list[str]:
    return sorted(path.stem for path in (data / "payments").iterdir())


async def is_dropped(world: RunningWorld, taker: Api, data: Path) -> None:
    taker.core.supervisor["payments"].restart()  # it looks once a minute
    await until(lambda: under_way(data) == [] and not taker.core.setup.holds.payments())


async def test_a_payment_is_handed_in_until_it_is_deep_in_the_chain(tmp_path: Path) -> None:
    data = tmp_path / "taker"
    async with running_world(tmp_path / "world", hour=3600.0) as world:
        mempool = world.world.mempool
        async with taker_on(world.config, data) as taker:
            await funded(world, taker)
            sent = await send(taker)
            assert sent["waits"] is None
            txid = bytes.fromhex(sent["txid"])[::-1]
            assert under_way(data) == [sent["txid"]]
            assert (data / "payments" / f"{sent['txid']}.json").stat().st_mode & 0o777 == 0o600
            assert txid in mempool.entries
        mempool._remove(txid)  # as when blocks have become dear
        async with taker_on(world.config, data) as taker:
            await until(lambda: txid in mempool.entries)
            await taker.healthy()
            much = await taker.post("/wallet/send", address=ADDRESS, amount_sat=1_000_000)
            assert (much.status_code, much.json()["code"]) == (409, "insufficient_funds"), "its coin is not taken again"
            for _ in range(SETTLED - 1):
                world.world.mine()
            await taker.seen_block(world)
            taker.core.supervisor["payments"].restart()
            await until(lambda: taker.core.supervisor["payments"].health.up)
            assert under_way(data) == [sent["txid"]]
            world.world.mine()
            await taker.seen_block(world)
            await is_dropped(world, taker, data)
            assert taker.core.broadcaster.kept(b"payment " + txid) == {}


async def test_a_server_that_goes_away_in_the_middle_gets_it_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "taker"

    async def lost(_client: ElectrumClient, _raw: bytes) -> bytes:
        raise Disconnected("chain", "it is gone")

    async with running_world(tmp_path / "world", hour=3600.0) as world, taker_on(world.config, data) as taker:
        await funded(world, taker)
        with monkeypatch.context() as patched:
            patched.setattr(ElectrumClient, "broadcast", lost)
            sent = await send(taker)
        assert "gone" in sent["waits"]
        txid = bytes.fromhex(sent["txid"])[::-1]
        assert txid not in world.world.mempool.entries
        (coin,) = (await taker.get("/wallet/coins"))["coins"]
        assert (coin["value"], coin["held_by"]) == (MONEY, "payment")
        world.world.mine()  # with every block all is handed in again
        await until(lambda: txid in world.world.mempool.entries)


async def test_what_the_server_refuses_was_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "taker"

    async def refused(_client: ElectrumClient, _raw: bytes) -> bytes:
        raise BroadcastRejected("min relay fee not met")

    async with running_world(tmp_path / "world", hour=3600.0) as world, taker_on(world.config, data) as taker:
        await funded(world, taker)
        with monkeypatch.context() as patched:
            patched.setattr(ElectrumClient, "broadcast", refused)
            answer = await taker.post("/wallet/send", address=ADDRESS, amount_sat=1_000_000)
        assert (answer.status_code, answer.json()["code"]) == (503, "broadcast_rejected")
        assert under_way(data) == []
        assert (await send(taker))["waits"] is None


async def test_nothing_leaves_that_is_not_on_disk(tmp_path: Path) -> None:
    data = tmp_path / "taker"
    async with running_world(tmp_path / "world", hour=3600.0) as world, taker_on(world.config, data) as taker:
        await funded(world, taker)
        (data / "payments").write_text("a file in the place of the folder")
        answer = await taker.post("/wallet/send", address=ADDRESS, amount_sat=1_000_000)
        assert (answer.status_code, answer.json()["code"]) == (503, "disk")
        assert "nothing was sent" in answer.json()["detail"]
        assert not world.world.mempool.entries
        (data / "payments").unlink()
        assert (await send(taker))["waits"] is None


async def test_a_damaged_file_is_named_and_one_that_nobody_takes_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "taker"
    async with running_world(tmp_path / "world", hour=3600.0) as world:
        async with taker_on(world.config, data) as taker:
            await funded(world, taker)
            sent = await send(taker)
        txid = bytes.fromhex(sent["txid"])[::-1]
        # the same coins, spent otherwise and confirmed meanwhile: as by another wallet of the same seed
        world.world.mempool._remove(txid)
        (data / "payments" / f"{'ab' * 32}.json").write_text(json.dumps({"raw": "00"}))
        (file,) = [path for path in (data / "payments").iterdir() if path.stem == sent["txid"]]
        said = json.loads(file.read_text())
        file.write_text(json.dumps({**said, "since": said["since"] - GIVEN_UP - 1}))

        async def refused(_client: ElectrumClient, _raw: bytes) -> bytes:
            raise BroadcastRejected("bad-txns-inputs-missingorspent")

        monkeypatch.setattr(ElectrumClient, "broadcast", refused)
        async with taker_on(world.config, data) as taker:
            payments = taker.core.supervisor["payments"]
            await until(lambda: "payments cannot be read" in payments.health.reason)
            assert "abab" in payments.health.reason
            await until(lambda: bool(taker.core.broadcaster.status()))
            payments.restart()
            await until(lambda: under_way(data) == ["ab" * 32])
            await until(lambda: not taker.core.setup.holds.payments())


async def test_before_they_are_read_nothing_is_sent(tmp_path: Path) -> None:
    async with running_world(tmp_path / "world", hour=3600.0) as world, taker_on(world.config, tmp_path / "t") as taker:
        await funded(world, taker)
        core = taker.core
        taker.core.payments._kept = None
        answer = await taker.post("/wallet/send", address=ADDRESS, amount_sat=1_000_000)
        assert (answer.status_code, answer.json()["code"]) == (503, "payments_unreadable")
        fresh = Payments(core.payments.folder, core.chain, core.broadcaster, core.setup.holds, core.clock)
        assert fresh.holds.all() == frozenset()

"""What becomes of a data directory, over real processes: two nodes on it, its wallet's database lost or damaged."""

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
import trio

from node.regtest.processes import Node, Processes, healthy
from node.regtest.story import comes_true

COIN = 50_000_000
WITHIN = 60.0


@pytest.mark.slow
async def test_a_second_process_and_a_lost_wallet(tmp_path: Path) -> None:
    async with httpx2.AsyncClient(timeout=15, trust_env=False) as http:
        world = Processes(tmp_path, 2.0, http)
        async with world.world() as process:
            with trio.fail_after(WITHIN):
                await world.world_is_up(process)
            async with world.maker() as maker:
                with trio.fail_after(WITHIN):
                    await healthy(maker)
                    address = (await maker.call("POST", "/wallet/addresses"))["address"]
                    await world.control("/fund", {"address": address, "amount_sat": COIN})
                    await _has_its_coin(maker)

                second = await _second(maker)
                assert second.returncode == 2
                assert len(second.stderr.decode().splitlines()) == 1
                assert str(maker.data) in second.stderr.decode()
                with trio.fail_after(WITHIN):
                    await healthy(maker)

                database = maker.data / "wallet.sqlite"
                for spoil in (_remove, _scribble):
                    await maker.end()
                    spoil(database)
                    await maker.start()
                    with trio.fail_after(WITHIN):
                        await healthy(maker)
                        await _has_its_coin(maker)
                kept = [path.name for path in maker.data.iterdir() if path.name.startswith("wallet.sqlite.aside-")]
                assert kept, "what is damaged is moved aside, never deleted"


async def _has_its_coin(node: Node) -> None:
    await comes_true(node, "/wallet", lambda wallet: wallet["confirmed"] == COIN)


async def _second(node: Node) -> subprocess.CompletedProcess[bytes]:
    """The same command on the same data directory, while the first one runs."""
    config = str(node.data.parent / "world" / "world.toml")
    command = [sys.executable, "-m", "node", "maker", "--config", config, "--data", str(node.data)]
    places = ["--listen", "127.0.0.1:0", "--api", "127.0.0.1:0"]
    with trio.fail_after(WITHIN):
        return await trio.run_process([*command, *places], capture_stderr=True, check=False)


def _remove(database: Path) -> None:
    database.unlink()


def _scribble(database: Path) -> None:
    database.write_bytes(b"no database" * 1000)

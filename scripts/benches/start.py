"""How long a maker with 1 000 open positions and 100 000 events takes to its first page, and until all is healthy.

The locks are in the chain of an embedded world, in this process; the maker is a process of its own, started anew on the
same data directory in each round, after one in which it built its caches. Beside it: sqlite3 alone reading the same
file, and a Python that imports nothing.
"""

import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import httpx2
import trio
from attrs import frozen
from bitcoin.core import (
    CMutableTransaction,
    CMutableTxIn,
    CMutableTxOut,
    COutPoint,
    CTransaction,
)
from bitcoin.core.script import CScript

from node import files
from node.config import WorldConfig
from node.oracle.server import OracleKeys as OracleSecret
from node.position.state import Placed
from node.regtest.index import script_hash
from node.regtest.world import RunningWorld, run_world
from node.wallet.bip86 import CHANGE, RECEIVE, Account
from node.wallet.seed import Seed
from protocols.contract import schnorr
from protocols.contract.funding import FundingInput
from protocols.contract.oracle import OLIVIA
from protocols.contract.sighash import TxOut, signature_hash
from protocols.contract.terms import Role
from protocols.contract.transactions import completed
from protocols.offers import OracleKeys
from scripts.benches import Figure, Seconds, summary
from scripts.benches.history import COIN, COIN_KEY, COIN_SCRIPT, Contract, Oracle, contracts, make_history

ROUNDS = 5
POSITIONS, EVENTS = 1_000, 100_000
PATIENCE = 300.0
ASK_EVERY = 0.05
"""Seconds; each answer costs the node a few milliseconds of what is measured."""


@frozen
class Start:
    """Seconds from the start of the process on."""

    health: float
    """The first answer of the API."""
    page: float
    healthy: float
    megabytes: float
    """The largest resident size until then."""


def figures(rounds: int = ROUNDS, positions: int = POSITIONS, events: int = EVENTS) -> Iterator[Figure]:
    with TemporaryDirectory() as directory:
        starts, raw = trio.run(_measured, Path(directory), rounds, positions, events)
    bare = summary([_bare() for _ in range(rounds)])
    what = f"with {positions} open positions"
    page = summary([max(start.page, start.health) for start in starts])
    healthy = summary([start.healthy for start in starts])
    yield Figure(f"start to first page {what}", page.median, "s", bare.median, "a bare Python", page.spread)
    yield Figure(
        f"start to all healthy {what}, {events} events",
        healthy.median,
        "s",
        raw.median,
        "sqlite3 alone reading the events",
        healthy.spread,
    )
    yield Figure("memory then", max(start.megabytes for start in starts), "MB")


async def _measured(folder: Path, rounds: int, positions: int, events: int) -> tuple[list[Start], Seconds]:
    async with trio.open_nursery() as nursery:
        world: RunningWorld = await nursery.start(run_world, WorldConfig(data=folder / "world"))
        data = folder / "maker"
        _prepared(world, data, positions, events)
        starts = [await _start(world, data) for _ in range(rounds + 1)]
        raw = summary([_read(files.store_file(data)) for _ in range(rounds)])
        nursery.cancel_scope.cancel()
    return starts[1:], raw


def _prepared(world: RunningWorld, data: Path, positions: int, events: int) -> None:
    """A maker's data directory, and its locks in the chain."""
    seed = Seed.generate()
    data.mkdir(mode=0o700)
    seed.write(files.seed_file(data))
    secret = OracleSecret.load(world.config.parent / "oracle.secret")
    secrets = secret.attestation_secret(OLIVIA), secret.announcement_secret(OLIVIA)
    keys = OracleKeys(OLIVIA.name, *secret.public(OLIVIA))
    oracle = Oracle(keys, lambda event: OLIVIA.announce(event, secret.nonces(OLIVIA, event), *secrets))
    (data.parent / "oracle.toml").write_text(
        f'[oracle]\nannouncement_key = "{keys.announcement_key.hex()}"\n'
        f'attestation_key = "{keys.attestation_key.hex()}"\nscheme = "{keys.scheme}"\n'
    )
    account = Account(seed.secret, "regtest")
    made = contracts(
        positions,
        events,
        now=int(world.clock.calendar()),
        role=Role.MAKER,
        seed=seed.secret,
        oracle=oracle,
        coins=_coins(world, positions),
        scripts=lambda number: (account.script(CHANGE, number), account.script(RECEIVE, number)),
    )
    placed = _locked(world, made)
    history = partial(make_history, made=made, placed=placed, seed=seed.secret, oracle=oracle)
    thread = Thread(target=history, args=(files.store_file(data), positions, events))  # it runs a loop of its own
    thread.start()
    thread.join()


def _coins(world: RunningWorld, positions: int) -> list[tuple[FundingInput, FundingInput]]:
    """Two for each position, from one large coin."""
    inner = world.world
    amount = 2 * positions * COIN
    fee = 3 * (200 + 2 * positions * 43)
    paid = inner.treasury.pay(COIN_SCRIPT, amount + fee)
    inner.mine()
    coin = next(
        outpoint
        for outpoint, found in inner.mempool.unspent(script_hash(COIN_SCRIPT)).items()
        if outpoint.txid == paid and found.output.value == amount + fee
    )
    unsigned = CTransaction.from_tx(
        CMutableTransaction(
            [CMutableTxIn(COutPoint(coin.txid, coin.vout))],
            [CMutableTxOut(COIN, CScript(COIN_SCRIPT)) for _ in range(2 * positions)],
            nVersion=2,
        )
    )
    signature = schnorr.sign(COIN_KEY, signature_hash(unsigned, 0, [TxOut(amount + fee, COIN_SCRIPT)]))
    txid = inner.mempool.submit(completed(unsigned, [(signature,)]))
    inner.mine()
    made = [FundingInput(txid, vout, COIN, COIN_SCRIPT) for vout in range(2 * positions)]
    return list(zip(made[::2], made[1::2], strict=True))


def _locked(world: RunningWorld, made: list[Contract]) -> dict[bytes, Placed]:
    inner = world.world
    for contract in made:
        inner.mempool.submit(contract.lock)
    block = inner.mine()
    assert not inner.mempool.entries, "they fit one block"
    return {contract.lock_txid: Placed(contract.lock_txid, inner.chain.height, block) for contract in made}


async def _start(world: RunningWorld, data: Path) -> Start:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "node", "maker", "--data", str(data), "--listen", "127.0.0.1:0"]
    command += [
        "--config",
        str(world.config),
        "--config",
        str(data.parent / "oracle.toml"),
        "--api",
        f"127.0.0.1:{port}",
    ]
    begun = time.perf_counter()
    async with _process(command, data.parent / "maker.log") as process:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            with trio.fail_after(PATIENCE):
                page = await _when(http, "/", {}, begun, lambda answer: answer.status_code == 200)
                headers = {"Authorization": f"Bearer {files.token_file(data).read_text().strip()}"}
                path = "/api/v1/health"
                health = await _when(http, path, headers, begun, lambda answer: answer.status_code == 200)
                healthy = await _when(http, path, headers, begun, lambda answer: bool(answer.json().get("healthy")))
        return Start(health, page, healthy, _peak(process.pid))


async def _when(
    http: httpx2.AsyncClient,
    path: str,
    headers: dict[str, str],
    begun: float,
    enough: Callable[[httpx2.Response], bool],
) -> float:
    while True:
        try:
            if enough(await http.get(path, headers=headers)):
                return time.perf_counter() - begun
        except httpx2.TransportError:
            pass  # not up yet
        await trio.sleep(ASK_EVERY)


@asynccontextmanager
async def _process(command: list[str], log: Path) -> AsyncIterator[trio.Process]:
    with log.open("ab") as output:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            process.terminate()
            await process.wait()


def _peak(pid: int) -> float:
    """Megabytes; 0 where the system does not tell."""
    try:
        told = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return next(int(line.split()[1]) / 1024 for line in told.splitlines() if line.startswith("VmHWM"))


def _read(store: Path) -> float:
    """Seconds in which sqlite3 alone reads all events."""
    begun = time.perf_counter()
    with closing(sqlite3.connect(f"{store.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        for _ in connection.execute("SELECT * FROM events ORDER BY id"):
            pass
    return time.perf_counter() - begun


def _bare() -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", ""], check=True)
    return time.perf_counter() - begun

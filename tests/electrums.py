"""Electrum servers to test with: the regtest one, with a hand in between that can change what it says."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import trio
from bitcoin.core import (
    CMutableTransaction,
    CMutableTxIn,
    CMutableTxOut,
    COutPoint,
    CTransaction,
    CTxInWitness,
    CTxWitness,
)
from bitcoin.core.script import CScript, CScriptWitness

from node.chain.electrum import ElectrumClient, run_electrum
from node.chain.session import ServerLost
from node.clock import Clock
from node.networks import NETWORKS
from node.regtest.electrum_methods import PROTOCOL_MAX, Methods
from node.regtest.electrum_server import ElectrumServer
from tests.test_regtest_mempool import COIN, HOME, TRUE, World

REGTEST = NETWORKS["regtest"]
CLOCK = Clock(wall=lambda: 1_800_000_000.0)

Edit = Callable[[str, dict[str, Any]], dict[str, Any] | bytes | None]
"""Called with the method and every message that answers it (or notifies of it); what it returns goes out instead:
a message, raw bytes, or nothing."""


OPEN = bytes.fromhex("517551")
"""OP_1 OP_DROP OP_1."""
OTHER = b"\x00\x20" + sha256(OPEN).digest()
"""P2WSH of that, anyone's to spend with the witness [OPEN]: a script that nothing pays to before a test does."""


def give(world: World, coin: int, *values: int, script: bytes = OTHER, fee: int = 1000) -> CTransaction:
    """A transaction that pays `values` to `script` out of the coinbase at height `coin`; the rest goes back."""
    transaction = CMutableTransaction(
        [CMutableTxIn(COutPoint(*world.coin(coin)))],
        [CMutableTxOut(value, CScript(script)) for value in values]
        + [CMutableTxOut(COIN - sum(values) - fee, CScript(HOME))],
    )
    transaction.nVersion = 2
    transaction.wit = CTxWitness([CTxInWitness(CScriptWitness([TRUE]))])
    return CTransaction.from_tx(transaction)


def honest(_: str, message: dict[str, Any]) -> dict[str, Any]:
    return message


class Between:
    """Stands before the real server, on a port of its own that stays through `stop` and `start`."""

    def __init__(self, nursery: trio.Nursery, real: int) -> None:
        self.edit: Edit = honest
        self.asked: list[str] = []
        """The methods that were called, in order."""
        self.port = 0
        self._nursery = nursery
        self._real = real
        self._life = trio.CancelScope()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._life = trio.CancelScope()
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        self._nursery.start_soon(self._serve, listeners)

    def stop(self) -> None:
        self._life.cancel()

    async def _serve(self, listeners: list[trio.SocketListener]) -> None:
        with self._life:
            await trio.serve_listeners(self.pass_on, listeners)

    async def pass_on(self, client: trio.abc.Stream) -> None:
        methods: dict[int, str] = {}
        async with client, await trio.open_tcp_stream("127.0.0.1", self._real) as server:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._questions, client, server, methods)
                    await self._answers(server, client, methods)
                    nursery.cancel_scope.cancel()
            except* (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async def _questions(self, client: trio.abc.Stream, server: trio.abc.Stream, methods: dict[int, str]) -> None:
        async for line in _Lines(client):
            try:
                question = json.loads(line)
            except ValueError:
                await client.aclose()
                return
            methods[question["id"]] = question["method"]
            self.asked.append(question["method"])
            await server.send_all(line + b"\n")

    async def _answers(self, server: trio.abc.Stream, client: trio.abc.Stream, methods: dict[int, str]) -> None:
        async for line in _Lines(server):
            message = json.loads(line)
            edited = self.edit(message["method"] if "method" in message else methods[message["id"]], message)
            if edited is not None:
                await client.send_all(edited if isinstance(edited, bytes) else json.dumps(edited).encode() + b"\n")


class _Lines:
    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._buffer = b""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while b"\n" not in self._buffer:
            data = await self._stream.receive_some()
            if not data:
                raise StopAsyncIteration
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line


@contextmanager
def regtest(path: Path, script: bytes = HOME) -> Iterator[World]:
    world = World(path, script)
    try:
        yield world
    finally:
        world.chain.close()


async def serve(world: World, nursery: trio.Nursery, *, newest: tuple[int, ...] = PROTOCOL_MAX) -> Between:
    """A server over this world, which speaks the protocol up to that version."""
    server = ElectrumServer(Methods(world.chain, world.index, world.mempool), world.mempool, newest=newest)
    between = Between(nursery, await nursery.start(server.run))
    await between.start()
    return between


async def dial(nursery: trio.Nursery, *servers: Between | str) -> ElectrumClient:
    """A client of the first of these servers that will do. Its loss shows in what is asked of it, and nowhere else."""
    addresses = [server if isinstance(server, str) else server.address for server in servers]

    async def live(task_status: trio.TaskStatus[ElectrumClient]) -> None:
        with suppress(ServerLost):
            await run_electrum(addresses, REGTEST, clock=CLOCK, task_status=task_status)

    client: ElectrumClient = await nursery.start(live)
    return client


async def until(condition: Callable[[], object]) -> None:
    """Wait for what another task is about to bring about."""
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110  anything may be the condition
            await trio.sleep(0.005)

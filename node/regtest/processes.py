"""A world and nodes as processes of their own, used as their users would: by command line and HTTP API."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import trio
from attrs import Factory, define, field
from bitcoin.core import CTransaction

from node import files
from node.clock import Clock
from protocols.contract.numbers import parse_price
from protocols.contract.outcomes import covering, settlement_outcomes
from protocols.contract.payout import Payout
from protocols.contract.terms import Role, Side, Terms, Timelocks

ENDS_WITHIN = 10.0
"""Seconds that a process has to end in good order."""


class Failed(Exception):
    """Something did not come true; the text says what."""


def end_in_order() -> None:
    """From now on SIGTERM and SIGHUP end this program as an interrupt at the terminal does: its children first."""

    def interrupt(_number: int, _frame: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)


class Starting(Failed):
    """The node answers, and is being built behind its API."""


@define(eq=False)
class Node:
    """One `cfdnode` process, which may be killed and started again on its data."""

    name: str
    data: Path
    log: Path
    _command: tuple[str, ...] = field(repr=False)
    http: httpx2.AsyncClient = field(repr=False)
    url: str = ""
    _token: str = field(default="", repr=False)
    _process: trio.Process | None = field(default=None, repr=False)

    @property
    def process(self) -> trio.Process:
        assert self._process is not None, "not started yet"
        return self._process

    async def start(self) -> None:
        """A new process, once the last one has ended."""
        assert self._process is None or self._process.returncode is not None, "it runs already"
        self.url = ""
        files.url_file(self.data).unlink(missing_ok=True)  # of the last process, which may not have ended in order
        # a session of its own: an interrupt at the terminal is for this program, which then ends its children in order
        with self.log.open("ab") as output:
            self._process = await trio.lowlevel.open_process(
                self._command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    async def kill(self) -> None:
        """As a power cut would: at once, and nothing is told to anyone."""
        with trio.CancelScope(shield=True):
            self.process.kill()
            await self.process.wait()

    async def end(self) -> None:
        """In good order; killed if that takes too long."""
        with trio.CancelScope(shield=True):
            self.process.terminate()
            with trio.move_on_after(ENDS_WITHIN):
                await self.process.wait()
            if self.process.returncode is None:
                await self.kill()

    async def call(self, method: str, path: str, body: object = None) -> Any:
        """The API's answer; Failed with the problem's sentence if it refuses."""
        response = await self.answer(method, path, body)
        if response.status_code == 503 and response.json().get("code") == "starting":
            raise Starting(f"{self.name}: {method} {path}: {response.json()['detail']}")
        if response.status_code >= 400:
            raise Failed(f"{self.name}: {method} {path}: {response.json().get('detail', response.text)}")
        return response.json()

    async def answer(self, method: str, path: str, body: object = None) -> httpx2.Response:
        if not self.url:
            self.url = files.url_file(self.data).read_text().strip()
            self._token = files.token_file(self.data).read_text().strip()
        headers = {"Authorization": f"Bearer {self._token}"}
        return await self.http.request(method, self.url + "/api/v1" + path, json=body, headers=headers)

    async def until(self, question: Callable[[], Awaitable[bool]]) -> None:
        """Ask again and again, for as long as the process lives."""
        while True:
            if self.process.returncode is not None:
                raise Failed(f"{self.name} ended with status {self.process.returncode}; see {self.log}")
            try:
                if await question():
                    return
            except (httpx2.TransportError, FileNotFoundError, Starting):
                pass  # not up yet
            await trio.sleep(0.1)


@define(eq=False)
class Processes:
    """A world and the nodes that live in it, their data and logs in one folder."""

    folder: Path
    hour: float
    """Seconds that an hour takes."""
    http: httpx2.AsyncClient = field(repr=False)
    calendar: Clock = Factory(Clock)
    """The world's, once it is up."""
    _control: str = ""

    @asynccontextmanager
    async def running(self, name: str, *arguments: str) -> AsyncIterator[Node]:
        """One `cfdnode` process, ended at the end of the block."""
        data = self.folder / name
        command = (sys.executable, "-m", "node", *arguments, "--data", str(data))
        node = Node(name, data, self.folder / f"{name}.log", command, self.http)
        await node.start()
        try:
            yield node
        finally:
            await node.end()

    def world(self) -> AbstractAsyncContextManager[Node]:
        return self.running("world", "regtest", "--hour", str(self.hour))

    def maker(self, name: str = "maker", *arguments: str) -> AbstractAsyncContextManager[Node]:
        return self.running(name, "maker", *self._node_arguments, "--listen", "127.0.0.1:0", *arguments)

    def taker(
        self, makers: str, name: str = "taker", *arguments: str, roll: bool = False
    ) -> AbstractAsyncContextManager[Node]:
        """`makers`: the address of the one it dials; `roll`: whether its positions are rolled over by themselves."""
        rollover = "--rollover-auto" if roll else "--no-rollover-auto"
        return self.running(name, "taker", *self._node_arguments, "--makers", makers, rollover, *arguments)

    @property
    def _node_arguments(self) -> tuple[str, ...]:
        return "--api", "127.0.0.1:0", "--config", str(self.folder / "world" / "world.toml")

    async def world_is_up(self, world: Node) -> None:
        config = world.data / "world.toml"

        async def up() -> bool:
            if not config.exists():
                return False
            said = tomllib.loads(config.read_text())
            self._control = said["regtest"]["control"]
            self.calendar = Clock(hour=said["clock"]["hour"], anchor=said["clock"]["anchor"])
            await self.control("/state")
            return True

        await world.until(up)

    async def control(self, path: str, body: object = None) -> Any:
        """The world's answer: to a question, or to a command if there is a body."""
        response = await self.http.request("GET" if body is None else "POST", self._control + path, json=body)
        if response.status_code >= 400:
            raise Failed(f"the world: {path}: {response.text}")
        return response.json()

    async def transaction(self, txid: str) -> CTransaction:
        """As it stands in the world's chain."""
        return CTransaction.deserialize(bytes.fromhex((await self.control(f"/tx/{txid}"))["hex"]))

    async def fee(self, txid: str) -> int:
        """What a transaction leaves to the miners, in satoshis."""
        tx = await self.transaction(txid)
        fee = 0
        for spent in tx.vin:
            parent = await self.transaction(spent.prevout.hash[::-1].hex())
            fee += parent.vout[spent.prevout.n].nValue
        for output in tx.vout:
            fee -= output.nValue
        return fee


async def healthy(node: Node) -> dict[str, Any]:
    """The node's health once every service is healthy."""
    health: dict[str, Any] = {}

    async def all_healthy() -> bool:
        health.update(await node.call("GET", "/health"))
        return bool(health["healthy"])

    await node.until(all_healthy)
    return health


def due_payouts(view: Mapping[str, Any]) -> list[int]:
    """What a settled position's contract pays to maker and taker, in satoshis, by its terms and the attested price."""
    terms, settlement = _terms(view), view["settlement"]
    outcome = covering(settlement_outcomes(terms), 0, settlement["price"])
    assert outcome is not None, "a settlement covers every price"
    payouts = Payout(terms).split(outcome.long)
    return [payouts[Role.MAKER], payouts[Role.TAKER]]


def close_payouts(view: Mapping[str, Any]) -> list[int]:
    """What a close pays to maker and taker, in satoshis, by the contract's terms and the close's price.

    At rate r, the prepaid fees of commit and CET are r·(166 + 118 + outputs) + 240, those of a close r·(68 + outputs);
    each side gets half of the difference, the maker the odd satoshi.
    """
    terms = _terms(view)
    left = terms.fee_rate * (166 + 118 - 68) + 240
    payouts = Payout(terms).split(Payout(terms).long(parse_price(view["closing"]["price"])))
    return [payouts[Role.MAKER] + left - left // 2, payouts[Role.TAKER] + left // 2]


def _terms(view: Mapping[str, Any]) -> Terms:
    said = view["contract"]["terms"]
    return Terms(**{**said, "maker_side": Side(said["maker_side"]), "timelocks": Timelocks(**said["timelocks"])})
